package viewertest

import (
	"context"
	"time"
)

// Frame is one frame that a Follower could have shown.
type Frame struct {
	At      time.Time
	Latency time.Duration // since the camera sent it; 0: unknown
	Skipped int           // frames missing before it, by RTP timestamps
}

// Frames returns the frames from one time to another.
func (f *Follower) Frames(from, to time.Time) []Frame {
	f.mu.Lock()
	defer f.mu.Unlock()
	var list []Frame
	for _, t := range f.series.between(from, to) {
		at := f.series.base.Add(t.at)
		if at.Before(from) {
			continue
		}
		frame := Frame{At: at, Skipped: t.skipped}
		if t.sent != 0 {
			frame.Latency = t.at - t.sent
		}
		list = append(list, frame)
	}
	return list
}

// SetViewport says how large the picture's box is, in device pixels, and
// whether it can be seen: to the gateway at once, and with each session that
// begins later. A picture that cannot be seen is not expected to move.
// It must be called after Run has begun, and returns when the loop has done it.
func (f *Follower) SetViewport(ctx context.Context, width, height int, visible bool) {
	done := make(chan struct{})
	select {
	case f.events <- func() {
		defer close(done)
		f.setViewport(viewport{width, height, visible})
	}:
	case <-f.done:
		return
	case <-ctx.Done():
		return
	}
	select {
	case <-done:
	case <-f.done:
	case <-ctx.Done():
	}
}

func (f *Follower) setViewport(v viewport) {
	shows := v.Visible && !f.viewport.Visible
	f.viewport = v
	if shows {
		f.mu.Lock()
		for _, t := range []*take{f.shown, f.pending} {
			if t != nil {
				t.moved = time.Now()
			}
		}
		f.mu.Unlock()
	}
	for _, t := range f.takes {
		if t.offered {
			f.send(resized{"viewport", t.id, v})
		}
	}
}
