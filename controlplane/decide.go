package controlplane

import (
	"slices"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/controlplane/placement"
	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// flight is the moves that are under way. Owned by planner.
type flight struct {
	moves map[fleet.CameraID]*move
	from  map[fleet.NodeID]int // moves away from a node that are not stuck
	// stranded has the cameras whose assignments say that they should leave and
	// can't.
	stranded map[fleet.CameraID]struct{}
}

// move is one of them.
type move struct {
	from       fleet.NodeID
	generation int64
	phase      store.Move
	stuck      bool
	since      time.Time // when this leader first saw it so
}

func newFlight() flight {
	return flight{
		moves:    make(map[fleet.CameraID]*move),
		from:     make(map[fleet.NodeID]int),
		stranded: make(map[fleet.CameraID]struct{}),
	}
}

// take takes in a camera's assignment; nil: it has none any more.
func (f *flight) take(id fleet.CameraID, a *store.Assignment, now time.Time) {
	old := f.moves[id]
	if old != nil && !old.stuck {
		f.count(old.from, -1)
	}
	delete(f.moves, id)
	delete(f.stranded, id)
	switch {
	case a == nil:
		return
	case a.From == "":
		if a.Node != "" && a.Reason != controlv1.Reason_REASON_UNSPECIFIED {
			f.stranded[id] = struct{}{}
		}
		return
	}
	m := &move{from: a.From, generation: a.Generation, phase: a.Move, since: now}
	m.stuck = a.Move == store.Warming && a.Reason != controlv1.Reason_REASON_UNSPECIFIED
	if old != nil && old.generation == m.generation && old.phase == m.phase {
		m.since = old.since
	}
	if !m.stuck {
		f.count(m.from, 1)
	}
	f.moves[id] = m
}

func (f *flight) count(id fleet.NodeID, n int) {
	if f.from[id] += n; f.from[id] == 0 {
		delete(f.from, id)
	}
}

// decide returns what is to be stored: what a plan wants, as far as it can be
// done now, and what becomes of the moves that are under way. It also returns
// how long until it may decide otherwise; 0: only when something happens.
func (p *planner) decide(result placement.Result, now time.Time, revision int64) ([]store.Decision, time.Duration) {
	d := &decider{planner: p, now: now, revision: revision, at: timestamppb.New(now), decided: make(map[fleet.CameraID]bool)}
	var ids, notes []fleet.CameraID
	for id, to := range result.Assignments {
		switch d.concerns(id, to) {
		case aNode:
			ids = append(ids, id)
		case itsReason:
			notes = append(notes, id)
		case nothing:
		}
	}
	slices.Sort(ids)
	for _, id := range ids {
		d.place(id, result.Assignments[id])
	}
	for id, m := range p.flight.moves {
		d.advance(id, m)
	}
	for id, reason := range result.Stranded {
		d.strand(id, reason)
	}
	for id := range p.flight.stranded {
		if _, still := result.Stranded[id]; !still {
			d.strand(id, "")
		}
	}
	d.note(notes, result)
	return d.decisions, d.wait
}

// concern is what a planned assignment would change.
type concern int

const (
	nothing   concern = iota
	itsReason         // why the camera has no node, which it did not have before
	aNode
)

// concerns returns what a planned assignment would change.
func (d *decider) concerns(id fleet.CameraID, to placement.Assignment) concern {
	if to.Node != "" {
		return aNode
	}
	v, ok := d.planner.server.cache.camera(id)
	switch a := v.assignment; {
	case !ok, a == nil && to.Reason == placement.NoNode && !v.anyNode:
		return nothing // which is known without
	case a == nil:
		return itsReason
	case a.Node != "" || a.From != "":
		return aNode
	case a.Reason == controlv1.Reason(controlv1.Reason_value[to.Reason.Enum()]) && a.Message == to.Message:
		return nothing
	default:
		return itsReason
	}
}

// note decides on cameras that stay without a node, for another reason. That may
// be all of them, and another one with the next node: they wait until there is
// nothing else to store, and go some at a time, so that nothing waits for them.
func (d *decider) note(ids []fleet.CameraID, result placement.Result) {
	if len(ids) == 0 {
		return
	}
	if len(d.decisions) > 0 {
		d.wait = sooner(d.wait, noteAfter)
		return
	}
	slices.Sort(ids)
	if len(ids) > notesAtOnce {
		ids = ids[:notesAtOnce]
		d.wait = sooner(d.wait, noteAfter)
	}
	for _, id := range ids {
		d.place(id, result.Assignments[id])
	}
}

// notesAtOnce is how many cameras are told at a time why they have no node, and
// noteAfter how long the others wait.
const (
	notesAtOnce = 1000
	noteAfter   = 100 * time.Millisecond
)

// decider makes the decisions of one plan.
type decider struct {
	planner   *planner
	now       time.Time
	at        *timestamppb.Timestamp // now
	revision  int64
	decisions []store.Decision
	decided   map[fleet.CameraID]bool
	wait      time.Duration
}

// place decides on a camera that is to be elsewhere.
func (d *decider) place(id fleet.CameraID, to placement.Assignment) {
	v, ok := d.planner.server.cache.camera(id)
	if !ok {
		return
	}
	var old store.Assignment
	if v.assignment != nil {
		old = *v.assignment
	}
	want := place{node: to.Node, reason: controlv1.Reason(controlv1.Reason_value[to.Reason.Enum()]), message: to.Message}
	if v.assignment != nil && old.Node == want.node && old.Reason == want.reason && old.Message == want.message {
		return
	}
	old.Camera = id
	s := d.scene(v)
	next, ok := relocate(old, want, s)
	if !ok {
		d.wait = sooner(d.wait, s.holding)
		return
	}
	d.add(v, next)
}

// advance decides on a move that is under way.
func (d *decider) advance(id fleet.CameraID, m *move) {
	v, ok := d.planner.server.cache.camera(id)
	if !ok || d.decided[id] || v.assignment == nil || v.assignment.From == "" {
		return // the next plan knows
	}
	s := d.scene(v)
	s.age = d.now.Sub(m.since)
	st, wait := advance(v.assignment, s)
	d.wait = sooner(d.wait, wait)
	if st == stay {
		return
	}
	log := d.planner.server.log.With("camera", id, "node", v.assignment.Node, "from", v.assignment.From)
	switch {
	case st == stuck:
		log.Warn("camera not LIVE at its new node in time; its old node goes on")
	case st == back && !s.single:
		log.Warn("camera not LIVE at its new node in time; it stays where it is")
		d.planner.balance.fix(id, d.now)
	case st == settle && s.age >= letGoTime:
		log.Warn("node has not said that it let go of a camera; going on without")
	}
	d.add(v, st.apply(v.assignment))
}

// strand notes on a camera's assignment why it stays where it should not; "":
// that it may.
func (d *decider) strand(id fleet.CameraID, reason fleet.Reason) {
	v, ok := d.planner.server.cache.camera(id)
	if !ok || d.decided[id] || v.assignment == nil || v.assignment.Node == "" || v.assignment.From != "" {
		return
	}
	next := *v.assignment
	next.Reason, next.Message = controlv1.Reason(controlv1.Reason_value[reason.Enum()]), strandedText(reason)
	if reason == "" {
		next.Reason, next.Message = controlv1.Reason_REASON_UNSPECIFIED, ""
	}
	if next.Reason != v.assignment.Reason || next.Message != v.assignment.Message {
		d.add(v, next)
	}
}

// strandedText says why no other node takes a camera, and what to change.
func strandedText(reason fleet.Reason) string {
	switch reason {
	case placement.NoMatchingNode:
		return "no node matches its node selector; label a node so, or change the selector"
	case placement.NoCapacity:
		return "every other node that matches it is full; add a node or raise their capacity"
	default:
		return "no other node that matches it is ready; start one or end a drain"
	}
}

// add adds a decision. One without a generation gets a new one: every earlier
// decision on the camera was stored before d.revision, and one from before a
// deletion before the camera was created anew.
func (d *decider) add(v cameraView, next store.Assignment) {
	old := v.assignment
	if next.Generation == 0 {
		next.Generation = max(d.revision, generationOf(old)+1, v.camera.Created)
		next.Time = d.at
	}
	if next.Move != store.NoMove && (old == nil || next.Move != old.Move || next.Generation != old.Generation) {
		next.MoveTime = d.at
	}
	_, doubt := d.planner.doubted[v.camera.ID]
	decision := store.Decision{Assignment: next, CameraCreated: v.camera.Created, Gone: countedOut(old, next, v), Doubt: doubt}
	if old != nil {
		decision.Before = old.Revision
	}
	d.decided[v.camera.ID] = true
	d.decisions = append(d.decisions, decision)
	// What this plan sets off counts for its bounds.
	d.planner.flight.take(v.camera.ID, &next, d.now)
}

// scene returns what is known of a camera. age is not set.
func (d *decider) scene(v cameraView) scene {
	p, a := d.planner, v.assignment
	s := scene{single: v.camera.Desired.GetMaxSessions() == 1}
	if a == nil {
		return s
	}
	s.node, s.from = d.presence(a.Node, v.node), d.presence(a.From, v.from)
	s.live, s.fromLive = v.isLive(a.Generation), v.isLive(a.FromGeneration)
	_, ends := p.deadlines[a.From]
	s.draining = ends || v.from != nil && (v.from.Registered.GetLeaving() || !v.fits(v.from))
	s.full = p.flight.from[a.Node] >= maxMoves
	switch {
	case a.Move == store.Releasing && v.from == nil:
		s.holding = p.hold(a.From, d.now)
	case s.single && a.Node != "" && v.node == nil:
		s.holding = p.hold(a.Node, d.now)
	}
	return s
}

// presence returns what is known of a node, which the cache has or not.
func (d *decider) presence(id fleet.NodeID, n *store.Node) presence {
	if n == nil {
		if _, ok := d.planner.awaited[id]; ok {
			return awaited
		}
		return gone
	}
	if t, ok := d.planner.deadlines[id]; ok && t.IsZero() {
		return closing
	}
	return here
}

// hold returns how long a camera that accepts one RTSP session must not be
// given to another node, because a node that is not connected may still pull it.
// Etcd may live by longer leases than were asked for; it grants a leader's and a
// node's alike.
func (p *planner) hold(node fleet.NodeID, now time.Time) time.Duration {
	since, ok := p.gone[node]
	if !ok {
		since = now
		p.gone[node] = now
	}
	return max(0, since.Add(max(p.server.cfg.LeaseTTL, p.leader.TTL)+afterLease).Sub(now))
}
