package join

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
)

// kept is how many pictures a viewer remembers at most: some 80 s of 25 a second.
const kept = 2000

// viewer is one viewer and what it has seen. Its methods may be called from any
// goroutine.
type viewer struct {
	player // static after newViewer

	mu        sync.Mutex // guards the rest
	wake      chan struct{}
	packet    time.Time // the first; zero: none yet
	connected time.Time
	over      string // the peer connection's state when it had ended; "": it has not
	pictures  []viewertest.Picture
	first     *viewertest.Picture // the first keyframe with its parameter sets
}

// newViewer makes a viewer that has asked for nothing yet. It must leave.
func newViewer(ctx context.Context, s site, at address, websocket bool) (*viewer, error) {
	v := &viewer{wake: make(chan struct{})}
	p, err := s.prepare(ctx, at, websocket, viewertest.Config{NACK: true, Stamp: simcam.ParseTimestamp, OnState: v.state, OnPicture: v.picture, OnFirst: v.begun})
	if err != nil {
		return nil, err
	}
	v.player = p
	return v, nil
}

// state is told of the peer connection's states.
func (v *viewer) state(s string) {
	now := time.Now()
	v.mu.Lock()
	defer v.mu.Unlock()
	switch s {
	case "connected":
		if v.connected.IsZero() {
			v.connected = now
		}
	case "failed", "closed", "disconnected":
		v.over = s
	}
	v.notify()
}

// begun is told of the first packet.
func (v *viewer) begun(at time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.packet = at
}

// picture is told of each whole picture.
func (v *viewer) picture(p viewertest.Picture) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.first == nil {
		if !p.Key || !p.ParameterSets {
			return
		}
		v.first = &p
	}
	if len(v.pictures) >= kept {
		v.pictures = slices.Clone(v.pictures[kept/2:])
	}
	v.pictures = append(v.pictures, p)
	v.notify()
}

// notify wakes whoever waits. The caller holds mu.
func (v *viewer) notify() {
	close(v.wake)
	v.wake = make(chan struct{})
}

// await waits until something is true, which is looked at, with mu held,
// whenever a picture comes or the state changes.
func (v *viewer) await(ctx context.Context, what string, fits func() bool) error {
	for {
		v.mu.Lock()
		ok, over, wake := fits(), v.over, v.wake
		v.mu.Unlock()
		switch {
		case ok:
			return nil
		case over != "":
			return fmt.Errorf("wait for %s: the peer connection is %s", what, over)
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; %s", what, ctx.Err(), v.stands())
		}
	}
}

// stands says how far the viewer has come.
func (v *viewer) stands() string {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.connected.IsZero():
		return "the peer connection is not up"
	case v.packet.IsZero():
		return "no packet has come"
	case v.first == nil:
		return "packets come, but no whole keyframe"
	default:
		return fmt.Sprintf("%d pictures have come", len(v.pictures))
	}
}

// awaitPicture waits for the first keyframe.
func (v *viewer) awaitPicture(ctx context.Context) (viewertest.Picture, error) {
	if err := v.await(ctx, "a whole keyframe", func() bool { return v.first != nil }); err != nil {
		return viewertest.Picture{}, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	return *v.first, nil
}

// snapshot returns the pictures that came, the oldest first.
func (v *viewer) snapshot() []viewertest.Picture {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.pictures)
}

// leave ends the session. It says so to a server that may be gone, and waits
// for the viewer's goroutines in any case.
func (v *viewer) leave(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	if err := v.Delete(ctx); err != nil {
		return fmt.Errorf("leave: %w", err)
	}
	return nil
}

// usual returns what is usual at a viewer who has watched for long: the median
// latency of the pictures that came within a second before a time, and the time
// between two of them. False: too few came, or they have no stamps.
func usual(pictures []viewertest.Picture, at time.Time) (latency, period time.Duration, ok bool) {
	var latencies, periods []time.Duration
	for i, p := range pictures {
		if p.Sent.IsZero() || p.Arrival.After(at) || p.Arrival.Before(at.Add(-time.Second)) {
			continue
		}
		latencies = append(latencies, p.Arrival.Sub(p.Sent))
		if i > 0 {
			periods = append(periods, p.Sent.Sub(pictures[i-1].Sent))
		}
	}
	if len(latencies) < 5 || len(periods) == 0 {
		return 0, 0, false
	}
	return quantile(latencies, 0.5), quantile(periods, 0.5), true
}

// live returns the first picture that is as new as it can be: its latency is at
// most limit. before is how many came before it.
func live(pictures []viewertest.Picture, limit time.Duration) (p viewertest.Picture, before int, ok bool) {
	for i, p := range pictures {
		if !p.Sent.IsZero() && p.Arrival.Sub(p.Sent) <= limit {
			return p, i, true
		}
	}
	return viewertest.Picture{}, len(pictures), false
}

// later returns how much later pictures that came between two times came than
// the same ones at another viewer, the median. False: there are too few.
func later(pictures, other []viewertest.Picture, from, to time.Time) (time.Duration, bool) {
	at := make(map[int64]time.Time, len(other))
	for _, p := range other {
		if !p.Sent.IsZero() {
			at[p.Sent.UnixMicro()] = p.Arrival
		}
	}
	var diffs []time.Duration
	for _, p := range pictures {
		if there, ok := at[p.Sent.UnixMicro()]; ok && !p.Arrival.Before(from) && p.Arrival.Before(to) {
			diffs = append(diffs, p.Arrival.Sub(there))
		}
	}
	if len(diffs) < 10 {
		return 0, false
	}
	return quantile(diffs, 0.5), true
}

// shift returns how much later than their RTP timestamps say, counted from the
// first picture, pictures come from a time on, the median. A player that goes by
// the first picture would show them so much sooner or later than they come. What
// the camera's own clock did meanwhile, the viewer who has watched for long has
// seen too, and is left out.
func shift(pictures, reference []viewertest.Picture, from time.Time) time.Duration {
	begin := pictures[0]
	clock := func(list []viewertest.Picture, from, to time.Time) time.Duration {
		var ahead []time.Duration
		for _, p := range list {
			if !p.Arrival.Before(from) && p.Arrival.Before(to) {
				ahead = append(ahead, p.Arrival.Sub(begin.Arrival)-time.Duration(int32(p.Timestamp-begin.Timestamp))*time.Second/90_000)
			}
		}
		return quantile(ahead, 0.5)
	}
	to := from.Add(compareFor)
	meanwhile := clock(reference, from, to) - clock(reference, begin.Arrival.Add(-time.Second), begin.Arrival)
	return clock(pictures, from, to) - meanwhile
}
