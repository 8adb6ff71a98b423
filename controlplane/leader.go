package controlplane

import (
	"context"
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/controlplane/placement"
	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// planEvery is the least time between two plans: what comes meanwhile is
// planned together.
const planEvery = 2 * time.Millisecond

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
		outages:   s.cache.interruptions(),
		gone:      make(map[fleet.NodeID]time.Time),
		deadlines: make(map[fleet.NodeID]time.Time),
	}
	s.cache.subscribe(p.sub, s.cache.interest.ofPlan)
	defer s.cache.unsubscribe(p.sub, s.cache.interest.ofPlan)
	// Earlier leaders' decisions are older than the election; with them in the
	// cache, nothing is decided twice.
	for s.cache.wait(ctx, leader.Revision) != nil {
		if ctx.Err() != nil || isDone(leader.Done()) {
			return
		}
	}
	p.settle(time.Now(), leader.Revision)

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
			continue
		case <-again.C:
		case <-p.sub.wake:
		}
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
		pause(ctx, planEvery)
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
	outages int                       // of the cache's watch, as far as noticed
	since   int64                     // the revision of the election, or after the outage
	settled time.Time                 // from then on, who is not there is gone
	seen    map[fleet.NodeID]struct{} // the nodes that have been alive since
	awaited map[fleet.NodeID]struct{} // those that may be on their way

	// gone has the nodes that cameras are assigned to and that are not
	// connected, with when that was first seen.
	gone map[fleet.NodeID]time.Time
	// deadlines are of the drains. A node that has reached its own counts as
	// gone, so that it is emptied even if nobody can take its cameras.
	deadlines map[fleet.NodeID]time.Time
}

// plan takes in what has changed, plans, and stores the decisions. It returns
// after how long to plan again even if nothing changes; 0: never.
func (p *planner) plan(ctx context.Context) (time.Duration, error) {
	srv := p.server
	cameras, nodes, revision := srv.cache.take(p.sub)
	now := time.Now()
	if n := srv.cache.interruptions(); n != p.outages {
		p.outages = n
		srv.log.Warn("the store was out of reach; nodes have time to come back", "time", srv.cfg.SettleTime)
		p.settle(now, revision)
	}
	for id := range nodes {
		p.takeNode(id, now)
	}
	for id := range cameras {
		p.takeCamera(id)
	}
	wait := sooner(p.passDeadlines(now), p.giveUp(now))
	began := time.Now()
	result := p.planner.Plan(placement.Options{})
	srv.metrics.planned(began)
	if len(result.Assignments) == 0 {
		return wait, nil
	}
	decisions, held := p.decide(result, now, revision)
	wait = sooner(wait, held)
	if len(decisions) == 0 {
		return wait, nil
	}
	causes := srv.cache.causes(decisions)
	revs, err := srv.store.Assign(ctx, p.leader, decisions)
	if err != nil {
		p.lookAgain(decisions)
		return wait, err
	}
	// The next plan starts from these.
	if err := srv.cache.wait(ctx, slices.Max(revs)); err != nil {
		p.lookAgain(decisions)
		return wait, err
	}
	srv.metrics.stored(causes, time.Now())
	return wait, nil
}

// lookAgain has cameras taken in anew at the next plan.
func (p *planner) lookAgain(decisions []store.Decision) {
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
// alive since a revision. The next plan takes everything in anew.
func (p *planner) settle(now time.Time, since int64) {
	p.since, p.settled = since, now.Add(p.server.cfg.SettleTime)
	p.seen = make(map[fleet.NodeID]struct{})
	p.awaited = make(map[fleet.NodeID]struct{})
	p.server.cache.markAll(p.sub)
}

// giveUp takes the nodes from the planner that have not come back in time, and
// returns how long the others have; 0: there are none.
func (p *planner) giveUp(now time.Time) time.Duration {
	if len(p.awaited) == 0 {
		return 0
	}
	if d := p.settled.Sub(now); d > 0 {
		return d
	}
	for id := range p.awaited {
		p.server.log.Info("node has not come back", "node", id)
		p.server.metrics.nodeGone(id, now)
		p.planner.DeleteNode(id)
	}
	clear(p.awaited)
	return 0
}

// takeNode tells the planner what a node is now. One that is not registered is
// gone if it was seen alive, and its cameras go elsewhere at once. If it was
// not, this replica only knows that its lease has run out, perhaps because
// nobody could renew it: until all is settled, the node counts as alive.
//
// A key that is older than the election or the outage proves nothing. Leases
// outlive both, whether or not the node has.
func (p *planner) takeNode(id fleet.NodeID, now time.Time) {
	v, _ := p.server.cache.node(id)
	delete(p.deadlines, id)
	delete(p.awaited, id)
	if v.drain != nil {
		p.deadlines[id] = v.drain.Drain.GetDeadline().AsTime()
	}
	if v.node == nil {
		if _, seen := p.seen[id]; seen || v.cameras == 0 || !now.Before(p.settled) {
			p.planner.DeleteNode(id)
			if v.cameras > 0 {
				p.server.metrics.nodeGone(id, now)
			}
			return
		}
		p.awaited[id] = struct{}{}
		if _, ok := p.gone[id]; !ok {
			p.gone[id] = now
		}
		p.planner.AwaitNode(id, v.drain != nil)
		return
	}
	if v.node.Revision > p.since || p.server.keeps(v.node) {
		p.seen[id] = struct{}{}
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
		Draining:  v.drain != nil,
		Viewers:   int(n.GetLoad().GetViewers()),
		EgressBPS: n.GetLoad().GetEgressBps(),
	})
}

// takeCamera tells the planner what a camera is now.
func (p *planner) takeCamera(id fleet.CameraID) {
	v, ok := p.server.cache.camera(id)
	if !ok {
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
	})
	p.planner.Assign(id, nodeOf(v.assignment))
}

// passDeadlines takes the nodes from the planner whose drain has reached its
// deadline, and returns how long it is until the next one; 0: there is none.
func (p *planner) passDeadlines(now time.Time) time.Duration {
	var next time.Duration
	for id, t := range p.deadlines {
		d := t.Sub(now)
		if d <= 0 {
			p.planner.DeleteNode(id)
			delete(p.deadlines, id)
			continue
		}
		if next == 0 || d < next {
			next = d
		}
	}
	return next
}

// decide returns what of a plan is to be stored, and how long the first
// decision that must be held back has to wait; 0: none has to.
func (p *planner) decide(result placement.Result, now time.Time, revision int64) ([]store.Decision, time.Duration) {
	var decisions []store.Decision
	var held time.Duration
	at := timestamppb.New(now)
	for id, to := range result.Assignments {
		v, ok := p.server.cache.camera(id)
		if !ok {
			continue
		}
		old := v.assignment
		reason := controlv1.Reason(controlv1.Reason_value[to.Reason.Enum()])
		if old != nil && old.Node == to.Node && old.Reason == reason && old.Message == to.Message {
			continue
		}
		if wait := p.hold(v, now); wait > 0 {
			if held == 0 || wait < held {
				held = wait
			}
			continue
		}
		d := store.Decision{Assignment: store.Assignment{
			Camera:  id,
			Node:    to.Node,
			Reason:  reason,
			Message: to.Message,
			Time:    at,
			// Every earlier decision on the camera was stored before this revision,
			// and one from before a deletion before the camera was created anew.
			Generation: max(revision, generationOf(old)+1, v.camera.Created),
			Previous:   nodeOf(old),
		}, CameraCreated: v.camera.Created}
		if old != nil {
			d.Before = old.Revision
		}
		decisions = append(decisions, d)
	}
	return decisions, held
}

// hold returns how long a camera that accepts one RTSP session must not be
// given to another node, because its own may still pull it. Etcd may live by
// longer leases than were asked for; it grants a leader's and a node's alike.
func (p *planner) hold(v cameraView, now time.Time) time.Duration {
	node := nodeOf(v.assignment)
	if v.camera.Desired.GetMaxSessions() != 1 || v.camera.Desired.GetDisabled() || node == "" || v.node != nil {
		return 0
	}
	since, ok := p.gone[node]
	if !ok {
		since = now
		p.gone[node] = now
	}
	return since.Add(max(p.server.cfg.LeaseTTL, p.leader.TTL) + afterLease).Sub(now)
}
