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
	// The bounds of what a node may say of a camera.
	maxMessage = 500 // characters
	maxTracks  = 16
)

// reports is what a node has said and is not stored yet: the latest of each
// camera, and its load.
type reports struct {
	wake chan struct{} // has room for one

	mu      sync.Mutex // guards the rest
	pending map[fleet.CameraID]*controlv1.CameraStatus
	newLoad *controlv1.NodeLoad // nil: nothing new
}

func newReports() reports {
	return reports{wake: make(chan struct{}, 1), pending: make(map[fleet.CameraID]*controlv1.CameraStatus)}
}

func (r *reports) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// load takes the node's load.
func (r *reports) load(l *controlv1.NodeLoad) {
	if l == nil {
		return
	}
	r.mu.Lock()
	r.newLoad = l
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
	if !a.current(id, o.GetGeneration()) {
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
	if g == 0 || !a.current(id, g) {
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

// current tells whether a camera is assigned to this node under a generation.
func (a *agent) current(id fleet.CameraID, generation int64) bool {
	v, ok := a.server.cache.camera(id)
	return ok && nodeOf(v.assignment) == a.id && v.assignment.Generation == generation
}

// bounded returns a copy of a status that is no larger than it may be.
func bounded(st *controlv1.CameraStatus) *controlv1.CameraStatus {
	st = proto.CloneOf(st)
	st.ProtoReflect().SetUnknown(nil)
	st.Message = clean(st.GetMessage())
	st.Profiles = st.GetProfiles()[:min(len(st.GetProfiles()), maxProfiles)]
	for _, p := range st.GetProfiles() {
		p.Id = clip(p.GetId())
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
	due, load, wait := w.due(now)
	if load != nil {
		if err := w.storeLoad(ctx, load); err != nil {
			w.putBack(due, load)
			return 0, err
		}
		w.loadTime = now
	}
	var observations []store.Observation
	for id, st := range due {
		v, ok := w.agent.server.cache.camera(id)
		if !ok || generationOf(v.assignment) != st.GetGeneration() || nodeOf(v.assignment) != w.agent.id {
			continue // moved or deleted meanwhile
		}
		if st.GetStateTime() == nil {
			st.StateTime = stateTime(v, st, now)
		}
		if v.isObserved() && proto.Equal(v.observed.Status, st) {
			continue
		}
		observations = append(observations, store.Observation{Camera: id, Status: st, Assignment: v.assignment.Revision})
	}
	if len(observations) == 0 {
		return wait, nil
	}
	revs, err := w.agent.server.store.Observe(ctx, observations)
	if err != nil {
		w.putBack(due, nil)
		return 0, err
	}
	for _, o := range observations {
		w.stored[o.Camera] = now
	}
	// What comes next is compared with what is in the cache.
	return wait, w.agent.server.cache.wait(ctx, slices.Max(revs))
}

// due takes from the reports what is to be stored now.
func (w *writer) due(now time.Time) (due map[fleet.CameraID]*controlv1.CameraStatus, load *controlv1.NodeLoad, wait time.Duration) {
	r := &w.agent.reports
	r.mu.Lock()
	defer r.mu.Unlock()
	later := func(d time.Duration) {
		if wait == 0 || d < wait {
			wait = d
		}
	}
	if r.newLoad != nil {
		if d := w.loadTime.Add(figuresEvery).Sub(now); d > 0 {
			later(d)
		} else {
			load, r.newLoad = r.newLoad, nil
		}
	}
	due = make(map[fleet.CameraID]*controlv1.CameraStatus)
	for id, st := range r.pending {
		v, _ := w.agent.server.cache.camera(id)
		if d := w.stored[id].Add(figuresEvery).Sub(now); d > 0 && v.isObserved() && sameButFigures(v.observed.Status, st) {
			later(d)
			continue
		}
		due[id] = st
		delete(r.pending, id)
	}
	for id, t := range w.stored {
		if now.Sub(t) > figuresEvery {
			delete(w.stored, id)
		}
	}
	return due, load, wait
}

// putBack returns what could not be stored, unless newer reports have come.
func (w *writer) putBack(due map[fleet.CameraID]*controlv1.CameraStatus, load *controlv1.NodeLoad) {
	r := &w.agent.reports
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, st := range due {
		if _, ok := r.pending[id]; !ok {
			r.pending[id] = st
		}
	}
	if r.newLoad == nil {
		r.newLoad = load
	}
}

// storeLoad stores the node's load.
func (w *writer) storeLoad(ctx context.Context, load *controlv1.NodeLoad) error {
	a := w.agent
	a.mu.Lock()
	if proto.Equal(a.node.GetLoad(), load) {
		a.mu.Unlock()
		return nil
	}
	node := proto.CloneOf(a.node)
	node.Load = load
	a.node = node
	lease := a.lease
	a.mu.Unlock()
	_, err := lease.Update(ctx, a.id, node)
	if errors.Is(err, store.ErrSuperseded) {
		return nil // hold or run will see to it
	}
	return err
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
	for _, p := range st.GetProfiles() {
		p.BitrateBps, p.FramesPerSecond, p.KeyframeInterval, p.PacketsLost = 0, 0, nil, 0
	}
	return st
}
