package controlplane

import (
	"math"
	"time"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
)

const (
	// rebalanceEvery is how often cameras are moved for balance while there are
	// some to move.
	rebalanceEvery = time.Second
	// fixedTime is how long a camera stays where it is after a move for balance
	// that had to be given up.
	fixedTime = 10 * time.Minute
	// mostPutOff is how many times RebalanceAfter nodes that join may put balance
	// off: one that comes and goes does not keep the others from it.
	mostPutOff = 6
	// demandChange is how much a node's demand must change, as a share of its
	// capacity, for balance to be looked at again.
	demandChange = 0.1
)

// balance says when cameras may move for balance alone: some time after nodes,
// cameras or load have changed, and then until nothing is left to move. In a
// fleet where nothing changes it is never looked at. Owned by planner.
type balance struct {
	most  int // moves at a time; negative: none
	after time.Duration
	due   time.Time // when to look next; zero: when something has changed
	asked time.Time // since when it has waited for that
	nodes map[fleet.NodeID]balanced
	fixed map[fleet.CameraID]time.Time // until when a camera stays
}

// balanced is a node as it was when balance was last asked for.
type balanced struct {
	node   *store.Node
	leaves bool
	demand float64
}

func newBalance(cfg Config) balance {
	return balance{
		most:  cfg.RebalanceMoves,
		after: cfg.RebalanceAfter,
		nodes: make(map[fleet.NodeID]balanced),
		fixed: make(map[fleet.CameraID]time.Time),
	}
}

// unsettle says that something has changed.
func (b *balance) unsettle(now time.Time) {
	if b.due.IsZero() && b.most > 0 {
		b.asked, b.due = now, now.Add(b.after)
	}
}

// putOff says that a node has joined, which is to have been there for a while.
func (b *balance) putOff(now time.Time) {
	b.unsettle(now)
	if !b.due.IsZero() && now.Sub(b.asked) < mostPutOff*b.after {
		b.due = now.Add(b.after)
	}
}

// node takes a node in. One that has joined, or may take cameras again, puts
// balance off until it has been there for a while.
func (b *balance) node(v nodeView, now time.Time) {
	if v.node == nil {
		delete(b.nodes, v.id) // what it had is placed anew, evenly
		return
	}
	old, known := b.nodes[v.id]
	next := balanced{node: v.node, leaves: v.leaves(), demand: demand(v.node)}
	switch {
	case !known || old.leaves && !next.leaves:
		b.putOff(now)
	case !samePlace(old.node, v.node), math.Abs(next.demand-old.demand) > demandChange:
		b.unsettle(now)
	default:
		next.demand = old.demand
	}
	b.nodes[v.id] = next
}

// demand returns how much of a node's capacity its viewers use; more than all of
// one that is overloaded.
func demand(n *store.Node) float64 {
	c, l := n.Registered.GetCapacity(), n.Registered.GetLoad()
	if l.GetOverloaded() {
		return 2
	}
	return max(share(int64(l.GetViewers()), int64(c.GetViewers())), share(l.GetEgressBps(), c.GetEgressBps()))
}

// share returns how much of a capacity is used; 0 if it has no limit.
func share(used, capacity int64) float64 {
	if capacity <= 0 {
		return 0
	}
	return float64(used) / float64(capacity)
}

// allow returns how many cameras may be set off now, with so many on their way.
func (b *balance) allow(now time.Time, inFlight int) int {
	if b.due.IsZero() || now.Before(b.due) {
		return 0
	}
	n := max(0, b.most-inFlight)
	if n == 0 {
		b.asked, b.due = now, now.Add(rebalanceEvery)
	}
	return n
}

// moved takes in whether a plan with moves for balance changed anything: if it
// did not, there is nothing left to move.
func (b *balance) moved(now time.Time, changed bool) {
	b.due = time.Time{}
	if changed {
		b.asked, b.due = now, now.Add(rebalanceEvery)
	}
}

// wait returns how long until balance is looked at; 0: until something changes.
func (b *balance) wait(now time.Time) time.Duration {
	if b.due.IsZero() {
		return 0
	}
	return max(time.Millisecond, b.due.Sub(now))
}

// fix has a camera stay where it is for a while.
func (b *balance) fix(id fleet.CameraID, now time.Time) { b.fixed[id] = now.Add(fixedTime) }

// free forgets the cameras whose time to stay has passed, and returns them.
func (b *balance) free(now time.Time) []fleet.CameraID {
	var free []fleet.CameraID
	for id, until := range b.fixed {
		if now.After(until) {
			free = append(free, id)
			delete(b.fixed, id)
		}
	}
	return free
}

// isFixed tells whether a camera stays.
func (b *balance) isFixed(id fleet.CameraID) bool {
	_, ok := b.fixed[id]
	return ok
}
