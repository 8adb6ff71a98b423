package controlplane

import (
	"cmp"
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"fanlight/controlplane/placement"
	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
)

// planEvery is the least time between two plans: what comes meanwhile is
// planned together.
const planEvery = 2 * time.Millisecond

// maxPause is the most time between two plans if there is something to plan.
const maxPause = 100 * time.Millisecond

// lead leads whenever this replica is elected, until ctx ends.
func (s *Server) lead(ctx context.Context) {
	select {
	case <-s.cache.ready:
	case <-ctx.Done():
		return
	}
	backoff := rpc.Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second}
	for ctx.Err() == nil {
		leader, err := s.store.Campaign(ctx, s.cfg.ReplicaName, s.cfg.LeaseTTL)
		if err != nil {
			if ctx.Err() == nil {
				s.log.Warn("not elected", "error", err)
			}
			_ = backoff.Sleep(ctx) // its error is ctx's
			continue
		}
		backoff.Reset()
		s.log.Info("leading", "replica", s.cfg.ReplicaName)
		done := s.metrics.led()
		s.leadOnce(ctx, leader)
		done()
		leader.Resign()
		s.log.Info("no longer leading", "replica", s.cfg.ReplicaName)
	}
}

// leadOnce plans and compacts until the leadership or ctx ends.
func (s *Server) leadOnce(ctx context.Context, leader *store.Leader) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := &planner{
		server:    s,
		leader:    leader,
		sub:       newSubscriber(),
		planner:   placement.NewPlanner(),
		doubted:   make(map[fleet.CameraID]struct{}),
		outages:   -1, // none is noticed: begin as after one
		gone:      make(map[fleet.NodeID]time.Time),
		deadlines: make(map[fleet.NodeID]time.Time),
		flight:    newFlight(),
		balance:   newBalance(s.cfg),
	}
	s.cache.subscribe(p.sub, s.cache.interest.ofPlan)
	defer s.cache.unsubscribe(p.sub, s.cache.interest.ofPlan)

	compact := time.NewTicker(s.cfg.CompactEvery)
	defer compact.Stop()
	var compactTo int64
	backoff := rpc.Backoff{Min: 20 * time.Millisecond, Max: time.Second}
	again := time.NewTimer(0)
	defer again.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-leader.Done():
			return
		case <-compact.C:
			compactTo = s.compact(ctx, compactTo)
			p.forget()
			continue
		case <-again.C:
		case <-p.sub.wake:
		}
		from := time.Now()
		wait, err := p.plan(ctx)
		if err != nil {
			if ctx.Err() != nil || isDone(leader.Done()) {
				return
			}
			s.log.Warn("decisions not stored; trying again", "error", err)
			wait = backoff.Next()
		} else {
			backoff.Reset()
		}
		if wait > 0 {
			again.Reset(wait)
		}
		// Planning and storing take no more than half of the time.
		pause(ctx, max(planEvery, min(time.Since(from), maxPause)))
	}
}

func isDone(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}

// compact drops the store's history up to the revision of the last time, and
// returns the current one for the next time.
func (s *Server) compact(ctx context.Context, to int64) int64 {
	if to > 0 {
		if err := s.store.Compact(ctx, to); err != nil {
			s.log.Warn("store not compacted", "error", err)
		}
	}
	s.cache.mu.RLock()
	defer s.cache.mu.RUnlock()
	return s.cache.revision
}

// planner is one leadership's planning. Owned by leadOnce.
type planner struct {
	server  *Server
	leader  *store.Leader
	sub     *subscriber
	planner *placement.Planner

	// After an election, and after the store could not be reached, nodes that
	// nobody has seen alive since may be on their way back: see takeNode.
	outages int                        // of the cache's watch, as far as noticed
	since   int64                      // the revision of the leader's announcement
	settled time.Time                  // from then on, who is not there is gone
	seen    map[fleet.NodeID]struct{}  // the nodes that have been alive since
	awaited map[fleet.NodeID]time.Time // those that may be on their way, and until when

	// doubted has the cameras of which it is not known whether a first decision
	// was stored.
	doubted map[fleet.CameraID]struct{}
	// gone has the nodes with cameras that are not connected, with when that was
	// first seen.
	gone map[fleet.NodeID]time.Time
	// deadlines are of the drains; one that has passed is zero. A node that has
	// reached its own counts as gone for placement, so that it is emptied even if
	// nobody can take its cameras.
	deadlines map[fleet.NodeID]time.Time

	flight  flight
	balance balance
}

// plan takes in what has changed, plans, and stores the decisions. It returns
// after how long to plan again even if nothing changes; 0: never.
func (p *planner) plan(ctx context.Context) (time.Duration, error) {
	srv := p.server
	if n := srv.cache.interruptions(); n != p.outages {
		if p.outages >= 0 {
			srv.log.Warn("the store was out of reach; nodes have time to come back", "time", srv.cfg.SettleTime)
		}
		if err := p.settle(ctx); err != nil {
			return 0, err
		}
		p.outages = n
	}
	cameras, nodes, revision := srv.cache.take(p.sub)
	now := time.Now()
	for id := range nodes {
		p.takeNode(id, now)
	}
	for id := range cameras {
		p.takeCamera(id, now)
	}
	for _, id := range p.balance.free(now) {
		p.takeCamera(id, now)
	}
	wait := sooner(p.passDeadlines(now), p.giveUp(now))
	moves := p.balance.allow(now, len(p.flight.moves))
	began := time.Now()
	result := p.planner.Plan(placement.Options{MaxMoves: moves})
	srv.metrics.planned(began)
	decisions, held := p.decide(result, now, revision)
	if moves > 0 {
		p.balance.moved(now, result.Rebalanced > 0 || len(decisions) > 0 || places(result))
	}
	wait = sooner(wait, sooner(held, p.balance.wait(now)))
	if len(decisions) == 0 {
		return wait, nil
	}
	slices.SortFunc(decisions, func(a, b store.Decision) int {
		return cmp.Or(cmp.Compare(a.Node, b.Node), cmp.Compare(a.Camera, b.Camera))
	})
	causes := srv.cache.causes(decisions)
	last, refused, err := p.assign(ctx, decisions)
	if err == nil {
		err = srv.cache.wait(ctx, last) // the next plan starts from these
	}
	if err != nil {
		for i := range decisions {
			if decisions[i].Before == 0 {
				p.doubted[decisions[i].Camera] = struct{}{}
			}
		}
		p.lookAgain(decisions)
		return wait, err
	}
	p.lookAgain(refused) // when what they were refused for is in the cache
	srv.metrics.stored(causes, time.Now())
	return wait, nil
}

// places tells whether a plan gives a camera a node. It has not looked at balance
// then, even if nothing of it can be done yet.
func places(result placement.Result) bool {
	for _, a := range result.Assignments {
		if a.Node != "" {
			return true
		}
	}
	return false
}

// assignAtOnce is how many decisions are worth a writer of their own, of which
// there are assignWriters at most.
const (
	assignAtOnce  = 500
	assignWriters = 4
)

// assign stores decisions, and returns the revision of the last one, and those
// that were refused. Those on one node's cameras are next to each other, so that
// the node gets few sets.
func (p *planner) assign(ctx context.Context, decisions []store.Decision) (last int64, refused []store.Decision, err error) {
	n := min(assignWriters, 1+len(decisions)/assignAtOnce)
	revs, errs := make([][]int64, n), make([]error, n)
	var wait sync.WaitGroup
	for i := range n {
		part := decisions[i*len(decisions)/n : (i+1)*len(decisions)/n]
		wait.Go(func() { revs[i], errs[i] = p.server.store.Assign(ctx, p.leader, part) })
	}
	wait.Wait()
	if err := errors.Join(errs...); err != nil {
		return 0, nil, err
	}
	for i, rev := range slices.Concat(revs...) {
		if last = max(last, rev); rev == 0 {
			refused = append(refused, decisions[i])
		}
	}
	return last, refused, nil
}

// lookAgain has cameras taken in anew at the next plan.
func (p *planner) lookAgain(decisions []store.Decision) {
	if len(decisions) == 0 {
		return
	}
	c := p.server.cache
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, d := range decisions {
		p.sub.cameras[d.Camera] = struct{}{}
	}
	p.sub.dirty = true
}

// sooner returns the shorter of two waits, of which 0 is for ever.
func sooner(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}

// settle gives nodes time to come back: nobody knows which of them have been
// alive until now. It tells the replicas, who register those that are, and has
// the next plan take everything in anew. Earlier leaders' decisions are older
// than that: with them in the cache, nothing is decided twice.
func (p *planner) settle(ctx context.Context) error {
	since, err := p.leader.Announce(ctx)
	if err == nil {
		err = p.server.cache.wait(ctx, since)
	}
	if err != nil {
		return err
	}
	// Who was gone may have been there meanwhile, and be gone since less.
	clear(p.gone)
	p.since, p.settled = since, time.Now().Add(p.server.cfg.SettleTime)
	p.seen = make(map[fleet.NodeID]struct{})
	p.awaited = make(map[fleet.NodeID]time.Time)
	p.server.cache.markAll(p.sub)
	return nil
}

// giveUp takes the nodes from the planner that have not come back in time, and
// returns how long the others have; 0: there are none.
func (p *planner) giveUp(now time.Time) time.Duration {
	var next time.Duration
	for id, until := range p.awaited {
		if d := until.Sub(now); d > 0 {
			next = sooner(next, d)
			continue
		}
		p.server.log.Info("node has not come back", "node", id)
		p.server.metrics.nodeGone(id, now)
		p.planner.DeleteNode(id)
		delete(p.awaited, id)
	}
	return next
}

// takeNode tells the planner what a node is now. One that is not registered is
// gone if it was seen alive, and its cameras go elsewhere at once. If it was
// not, this replica only knows that its lease has run out, perhaps because
// nobody could renew it: until all is settled, the node counts as alive.
//
// A key that is older than the leader's announcement proves nothing. Leases
// outlive elections and outages, whether or not the node has. But every replica
// registers its nodes once more when it hears the announcement, and one that it
// finds dead before it removes it.
//
// Nodes that go together have not died: their lease, which is their replica's,
// has ended, because the replica did or because etcd stood still. They have the
// time of another lease to register anew.
func (p *planner) takeNode(id fleet.NodeID, now time.Time) {
	v, written, expired := p.server.cache.nodeBrief(id)
	delete(p.deadlines, id)
	delete(p.awaited, id)
	if v.drain != nil {
		p.deadlines[id] = v.drain.Drain.GetDeadline().AsTime()
	}
	if written > p.since || v.node != nil && p.server.keeps(v.node) {
		p.seen[id] = struct{}{}
	}
	p.balance.node(v, now)
	if v.node == nil {
		if _, ok := p.gone[id]; !ok && v.cameras > 0 {
			p.gone[id] = now
		}
		until := p.settled
		if _, seen := p.seen[id]; seen {
			until = expired.Add(p.server.cfg.LeaseTTL) // long past, unless it has just expired
		}
		if v.cameras == 0 || !now.Before(until) {
			p.planner.DeleteNode(id)
			if v.cameras > 0 {
				p.server.metrics.nodeGone(id, now)
			}
			return
		}
		p.awaited[id] = until
		p.planner.AwaitNode(id, v.leaves())
		return
	}
	delete(p.gone, id)
	p.server.metrics.nodeBack(id)
	n := v.node.Registered
	c := n.GetCapacity()
	p.planner.PutNode(placement.Node{
		ID:     id,
		Labels: n.GetLabels(),
		Capacity: placement.Capacity{
			Cameras:    int(c.GetCameras()),
			IngressBPS: c.GetIngressBps(),
			EgressBPS:  c.GetEgressBps(),
			Viewers:    int(c.GetViewers()),
		},
		Draining:  v.leaves(),
		Viewers:   int(n.GetLoad().GetViewers()),
		EgressBPS: n.GetLoad().GetEgressBps(),
		// The node keeps from flapping, so that all leaders see the same.
		Overloaded: n.GetLoad().GetOverloaded(),
	})
}

// takeCamera tells the planner what a camera is now.
func (p *planner) takeCamera(id fleet.CameraID, now time.Time) {
	v, ok := p.server.cache.camera(id)
	p.flight.take(id, v.assignment, now)
	if !ok || v.assignment != nil {
		delete(p.doubted, id)
	}
	if !ok {
		p.balance.unsettle(now)
		p.planner.DeleteCamera(id)
		return
	}
	d := v.camera.Desired
	p.planner.PutCamera(placement.Camera{
		ID:          id,
		Selector:    d.GetNodeSelector(),
		BitrateBPS:  d.GetExpectedBitrateBps(),
		Disabled:    d.GetDisabled(),
		MaxSessions: int(d.GetMaxSessions()),
		Moving:      p.flight.moves[id] != nil || p.balance.isFixed(id),
	})
	p.planner.Assign(id, nodeOf(v.assignment))
}

// forget forgets the nodes that are gone and have no camera any more.
func (p *planner) forget() {
	nobody := func(id fleet.NodeID) bool {
		v, _, _ := p.server.cache.nodeBrief(id)
		return v.node == nil && v.cameras == 0
	}
	maps.DeleteFunc(p.gone, func(id fleet.NodeID, _ time.Time) bool { return nobody(id) })
	maps.DeleteFunc(p.seen, func(id fleet.NodeID, _ struct{}) bool { return nobody(id) })
}

// passDeadlines takes the nodes from the planner whose drain has reached its
// deadline, and returns how long it is until the next one; 0: there is none.
func (p *planner) passDeadlines(now time.Time) time.Duration {
	var next time.Duration
	for id, t := range p.deadlines {
		if t.IsZero() {
			continue
		}
		d := t.Sub(now)
		if d <= 0 {
			p.planner.DeleteNode(id)
			p.deadlines[id] = time.Time{}
			continue
		}
		next = sooner(next, d)
	}
	return next
}
