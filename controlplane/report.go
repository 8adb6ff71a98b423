package controlplane

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	// figuresEvery is how often a camera's figures (rates, viewers) are stored
	// while nothing else of it changes, and a node's load.
	figuresEvery = 5 * time.Second
	// refusedEvery is how often a report is tried again whose assignment has
	// changed, until this replica has seen that.
	refusedEvery = 20 * time.Millisecond
	// The bounds of what a node may say of a camera.
	maxMessage = 500 // characters
	maxTracks  = 16
)

// reports is what a node has said and is not stored yet: the latest of each
// camera, what it has let go of, and its load.
type reports struct {
	wake chan struct{} // has room for one

	mu      sync.Mutex // guards the rest
	pending map[fleet.CameraID]*controlv1.CameraStatus
	gone    map[fleet.CameraID]int64 // let go of, under a generation
	node    nodeReport
}

// nodeReport is what there is to store of the node itself.
type nodeReport struct {
	load    *controlv1.NodeLoad // nil: nothing new
	leaving bool                // it is about to stop
	again   bool                // it is to be stored even if nothing has changed
}

// newReports returns reports that begin with what is known to have been let go.
func newReports(gone map[fleet.CameraID]int64) *reports {
	r := &reports{wake: make(chan struct{}, 1), pending: make(map[fleet.CameraID]*controlv1.CameraStatus), gone: gone}
	if r.gone == nil {
		r.gone = make(map[fleet.CameraID]int64)
	}
	return r
}

func (r *reports) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// load takes the node's load.
func (r *reports) load(l *controlv1.NodeLoad) {
	if l != nil {
		r.ofNode(nodeReport{load: l})
	}
}

// leave takes that the node is about to stop.
func (r *reports) leave() { r.ofNode(nodeReport{leaving: true}) }

// touch has the node stored once more.
func (r *reports) touch() { r.ofNode(nodeReport{again: true}) }

// ofNode adds to what there is to store of the node.
func (r *reports) ofNode(n nodeReport) {
	r.mu.Lock()
	if n.load != nil {
		r.node.load = n.load
	}
	r.node.leaving = r.node.leaving || n.leaving
	r.node.again = r.node.again || n.again
	r.mu.Unlock()
	r.poke()
}

// release takes that the node has let go of a camera under a generation.
func (r *reports) release(id fleet.CameraID, generation int64) {
	r.mu.Lock()
	r.gone[id] = generation
	r.mu.Unlock()
	r.poke()
}

// camera takes a camera's status, with its generation.
func (r *reports) camera(id fleet.CameraID, st *controlv1.CameraStatus) {
	r.mu.Lock()
	r.pending[id] = st
	r.mu.Unlock()
	r.poke()
}

// reported takes a report of the node, if it is of a current assignment.
func (a *agent) reported(o *controlv1.ObservedCamera) {
	id, err := fleet.ParseCameraName(o.GetCamera())
	if err != nil || o.GetStatus() == nil {
		a.log.Warn("report of a camera cannot be read", "error", err)
		return
	}
	v, _ := a.server.cache.camera(id)
	if v.judge(a.id, o.GetGeneration(), o.GetStatus().GetState()) == drop {
		a.log.Debug("report dropped", "camera", id, "generation", o.GetGeneration(), "reason", fleet.StaleGeneration)
		return
	}
	switch o.GetStatus().GetState() {
	case controlv1.CameraStatus_STATE_CONNECTING, controlv1.CameraStatus_STATE_LIVE,
		controlv1.CameraStatus_STATE_FAILED, controlv1.CameraStatus_STATE_IDLE:
	default:
		a.log.Warn("report of a state that is not a node's to say", "camera", id, "state", o.GetStatus().GetState())
		return
	}
	st := bounded(o.GetStatus())
	st.Node, st.Generation = a.id.Name(), o.GetGeneration()
	a.reports.camera(id, st)
}

// refused takes the error of a camera that the node could not apply.
func (a *agent) refused(e *controlv1.ApplyError, setGeneration int64, d *desired) {
	id, err := fleet.ParseCameraName(e.GetCamera())
	if err != nil || setGeneration != d.sent.GetGeneration() {
		return // of a set that has been replaced, and so will be the answer
	}
	g := d.generation(id)
	v, _ := a.server.cache.camera(id)
	if g == 0 || v.judge(a.id, g, controlv1.CameraStatus_STATE_FAILED) == drop {
		return
	}
	a.log.Warn("camera refused by its node", "camera", id, "reason", e.GetReason(), "message", clean(e.GetMessage()))
	a.reports.camera(id, &controlv1.CameraStatus{
		State:      controlv1.CameraStatus_STATE_FAILED,
		Reason:     e.GetReason(),
		Message:    clean(e.GetMessage()),
		Node:       a.id.Name(),
		Generation: g,
	})
}

// released takes what the node has let go of, if anyone waits for that.
func (a *agent) released(r *controlv1.RunningAssignment) {
	id, err := fleet.ParseCameraName(r.GetCamera())
	if err != nil {
		a.log.Warn("release of a camera cannot be read", "error", err)
		return
	}
	if v, _ := a.server.cache.camera(id); v.releases(a.id, r.GetGeneration()) {
		a.reports.release(id, r.GetGeneration())
	}
}

// bounded returns a copy of a status that is no larger than it may be.
func bounded(st *controlv1.CameraStatus) *controlv1.CameraStatus {
	st = proto.CloneOf(st)
	st.ProtoReflect().SetUnknown(nil)
	st.Message = clean(st.GetMessage())
	if st.GetVerdict() != nil {
		st.Verdict.Message = clean(st.GetVerdict().GetMessage())
	}
	st.Profiles = st.GetProfiles()[:min(len(st.GetProfiles()), maxProfiles)]
	for _, p := range st.GetProfiles() {
		p.Id = clip(p.GetId())
		p.Message = clean(p.GetMessage())
		p.Tracks = p.GetTracks()[:min(len(p.GetTracks()), maxTracks)]
		for _, t := range p.GetTracks() {
			t.Codec = clip(t.GetCodec())
			t.UnsupportedReason = clean(t.GetUnsupportedReason())
		}
	}
	return st
}

// clean returns a message without control characters, and not too long.
func clean(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
	if r := []rune(s); len(r) > maxMessage {
		s = string(r[:maxMessage]) + "…"
	}
	return s
}

// writer stores reports. Owned by reports.write.
type writer struct {
	agent    *agent
	stored   map[fleet.CameraID]time.Time // when a camera's status was stored last
	loadTime time.Time                    // when the node's load was
	backoff  rpc.Backoff
}

// write stores what the node says, until ctx ends. What is not stored by then
// is lost: the node says it again on its next stream.
func (r *reports) write(ctx context.Context, a *agent) {
	w := &writer{
		agent:   a,
		stored:  make(map[fleet.CameraID]time.Time),
		backoff: rpc.Backoff{Min: 50 * time.Millisecond, Max: 2 * time.Second},
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-r.wake:
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		wait, err := w.flush(ctx)
		if err != nil && ctx.Err() == nil {
			a.log.Warn("reports not stored; trying again", "error", err)
			if w.backoff.Sleep(ctx) != nil {
				return
			}
			wait = time.Millisecond
		}
		if err == nil {
			w.backoff.Reset()
		}
		if wait > 0 {
			timer.Reset(wait)
		}
	}
}

// flush stores what is due, and returns when to look again; 0: when something
// comes.
func (w *writer) flush(ctx context.Context) (time.Duration, error) {
	now := time.Now()
	due, wait := w.due(now)
	if err := w.storeNode(ctx, due.node, now); err != nil {
		due.node.again = true // nobody knows whether it was stored
		w.putBack(due)
		return 0, err
	}
	due.node = nodeReport{}
	refused, err := w.storeReleases(ctx, due.gone)
	if err != nil {
		w.putBack(due)
		return 0, err
	}
	due.gone = refused
	revs, observations, err := w.observe(ctx, due, now)
	if err != nil {
		w.putBack(due)
		return 0, err
	}
	var last int64
	for i, o := range observations {
		if last = max(last, revs[i]); revs[i] > 0 {
			w.stored[o.Camera] = now
			delete(due.cameras, o.Camera)
		}
	}
	// What was refused was made under a decision that has changed: the one that
	// this replica is about to see says what becomes of it.
	w.putBack(due)
	if len(due.cameras)+len(due.gone) > 0 && (wait == 0 || wait > refusedEvery) {
		wait = refusedEvery
	}
	// What comes next is compared with what is in the cache.
	return wait, w.agent.server.cache.wait(ctx, last)
}

// observe stores what the node has seen of cameras, and takes from due what
// needs no storing.
func (w *writer) observe(ctx context.Context, due dueReports, now time.Time) ([]int64, []store.Observation, error) {
	observations := make([]store.Observation, 0, len(due.cameras))
	for id, st := range due.cameras {
		v, ok := w.agent.server.cache.camera(id)
		if !ok || v.judge(w.agent.id, st.GetGeneration(), st.GetState()) != keep {
			delete(due.cameras, id) // moved or deleted meanwhile
			continue
		}
		if st.GetStateTime() == nil {
			st.StateTime = stateTime(v, st, now)
		}
		if v.isObserved() && proto.Equal(v.observed.Status, st) {
			delete(due.cameras, id)
			continue
		}
		observations = append(observations, store.Observation{Camera: id, Status: st, Assignment: v.assignment.Revision})
	}
	if len(observations) == 0 {
		return nil, nil, nil
	}
	var revs []int64
	err := w.agent.server.inTurn(ctx, func() (err error) {
		revs, err = w.agent.server.store.Observe(ctx, observations)
		return err
	})
	return revs, observations, err
}

// reportWriters is how many nodes' reports a replica stores at a time. When
// many cameras have been placed, all nodes report at once; what matters more,
// leases above all, would come after hundreds of transactions, and too late.
const reportWriters = 2

// inTurn makes a write of a node's reports when there are few others.
func (s *Server) inTurn(ctx context.Context, write func() error) error {
	select {
	case s.reporting <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-s.reporting }()
	return write()
}

// storeReleases ends the moves of cameras that the node has let go of. It
// returns those whose assignment has changed meanwhile.
func (w *writer) storeReleases(ctx context.Context, gone map[fleet.CameraID]int64) (map[fleet.CameraID]int64, error) {
	srv := w.agent.server
	var assignments []*store.Assignment
	for id, generation := range gone {
		if v, _ := srv.cache.camera(id); v.releases(w.agent.id, generation) {
			assignments = append(assignments, v.assignment)
		}
	}
	if len(assignments) == 0 {
		return nil, nil
	}
	var revs []int64
	err := srv.inTurn(ctx, func() (err error) {
		revs, err = srv.store.Release(ctx, assignments)
		return err
	})
	if err != nil {
		return nil, err
	}
	refused := make(map[fleet.CameraID]int64)
	for i, a := range assignments {
		if revs[i] == 0 {
			refused[a.Camera] = a.FromGeneration
		}
	}
	return refused, srv.cache.wait(ctx, slices.Max(revs))
}

// dueReports is what is to be stored now.
type dueReports struct {
	cameras map[fleet.CameraID]*controlv1.CameraStatus
	gone    map[fleet.CameraID]int64
	node    nodeReport
}

// due takes from the reports what is to be stored now, and returns when more
// will be; 0: nothing.
func (w *writer) due(now time.Time) (due dueReports, wait time.Duration) {
	r := w.agent.reports
	r.mu.Lock()
	defer r.mu.Unlock()
	due.cameras = make(map[fleet.CameraID]*controlv1.CameraStatus)
	due.gone, r.gone = r.gone, make(map[fleet.CameraID]int64)
	due.node.leaving, due.node.again = r.node.leaving, r.node.again
	r.node.leaving, r.node.again = false, false
	if r.node.load != nil {
		if d := w.loadTime.Add(figuresEvery).Sub(now); d > 0 {
			wait = d
		} else {
			due.node.load, r.node.load = r.node.load, nil
		}
	}
	for id, st := range r.pending {
		v, _ := w.agent.server.cache.camera(id)
		switch v.judge(w.agent.id, st.GetGeneration(), st.GetState()) {
		case later: // the stream pokes when the assignment has changed
			continue
		case drop:
			delete(r.pending, id)
			continue
		case keep:
		}
		if d := w.stored[id].Add(figuresEvery).Sub(now); d > 0 && v.isObserved() && sameButFigures(v.observed.Status, st) {
			wait = sooner(wait, d)
			continue
		}
		due.cameras[id] = st
		delete(r.pending, id)
	}
	for id, t := range w.stored {
		if now.Sub(t) > figuresEvery {
			delete(w.stored, id)
		}
	}
	return due, wait
}

// putBack returns what could not be stored, unless newer reports have come.
func (w *writer) putBack(due dueReports) {
	r := w.agent.reports
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, st := range due.cameras {
		if _, ok := r.pending[id]; !ok {
			r.pending[id] = st
		}
	}
	for id, generation := range due.gone {
		r.gone[id] = max(r.gone[id], generation)
	}
	if r.node.load == nil {
		r.node.load = due.node.load
	}
	r.node.leaving = r.node.leaving || due.node.leaving
	r.node.again = r.node.again || due.node.again
}

// storeNode stores what there is to store of the node.
func (w *writer) storeNode(ctx context.Context, report nodeReport, now time.Time) error {
	a := w.agent
	a.mu.Lock()
	node := proto.CloneOf(a.node)
	if report.load != nil {
		node.Load = report.load
	}
	node.Leaving = node.GetLeaving() || report.leaving
	if !report.again && proto.Equal(a.node, node) {
		a.mu.Unlock()
		return nil
	}
	a.node = node
	lease := a.lease
	a.mu.Unlock()
	var rev int64
	err := a.server.inTurn(ctx, func() (err error) {
		rev, err = lease.Update(ctx, a.id, node)
		return err
	})
	switch {
	case errors.Is(err, store.ErrSuperseded):
		return nil // hold or run will see to it
	case err != nil:
		return err
	}
	a.wrote(rev)
	if report.load != nil {
		w.loadTime = now
	}
	return nil
}

// stateTime returns since when a camera is in the state of a status.
func stateTime(v cameraView, st *controlv1.CameraStatus, now time.Time) *timestamppb.Timestamp {
	if v.isObserved() && v.observed.Status.GetState() == st.GetState() && v.observed.Status.GetStateTime() != nil {
		return v.observed.Status.GetStateTime()
	}
	return timestamppb.New(now)
}

// sameButFigures tells whether two statuses differ in nothing but figures that
// change all the time.
func sameButFigures(a, b *controlv1.CameraStatus) bool {
	if b.GetStateTime() == nil {
		b = proto.CloneOf(b)
		b.StateTime = a.GetStateTime()
	}
	return proto.Equal(withoutFigures(a), withoutFigures(b))
}

func withoutFigures(st *controlv1.CameraStatus) *controlv1.CameraStatus {
	st = proto.CloneOf(st)
	st.Viewers = 0
	if st.GetVerdict() != nil {
		st.Verdict.Message = "" // has figures
	}
	for _, p := range st.GetProfiles() {
		p.BitrateBps, p.FramesPerSecond, p.KeyframeInterval, p.PacketsLost = 0, 0, nil, 0
		p.Loss, p.Jitter, p.Viewers = 0, nil, 0
	}
	return st
}
