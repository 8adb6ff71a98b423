package failover

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"fanlight/internal/fleettest"
	"fanlight/internal/viewertest"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// The phases of a failover, each as the time since its cause. The first four are
// of cameras, as an operator and the cameras see it; the others of viewers, of
// the session whose picture ended the gap.
const (
	phaseNoticed   = "noticed"   // viewers are told that something is wrong
	phaseAssigned  = "assigned"  // the camera has another node
	phasePlay      = "play"      // that has asked the camera to play
	phaseLive      = "live"      // the control plane says that it does
	phaseMove      = "move"      // viewers are told to begin another session
	phaseWatch     = "watch"     // they have asked for it
	phaseAnswer    = "answer"    // the new node has answered
	phaseConnected = "connected" // ICE and DTLS are done
	phaseMedia     = "media"     // the first packet
	phaseShown     = "shown"     // the first complete frame
)

// Phases in the order in which they come.
var phaseOrder = []string{
	phaseNoticed, phaseAssigned, phasePlay, phaseLive, phaseMove, phaseWatch, phaseAnswer, phaseConnected, phaseMedia, phaseShown,
}

// clock notes when cameras are assigned, asked and live, after something has
// been done to their node. Owned by the caller of startClock; stop waits.
type clock struct {
	began time.Time

	cancel context.CancelFunc
	wg     sync.WaitGroup
	err    error // of the watch, after stop

	mu   sync.Mutex                      // guards the rest
	seen map[string]map[string]time.Time // phase → camera → when
}

// startClock begins to look. It returns when the watch has begun.
func (b *bench) startClock(ctx context.Context, node *fleettest.Process) *clock {
	ctx, cancel := context.WithCancel(ctx)
	c := &clock{cancel: cancel, seen: map[string]map[string]time.Time{}}
	ready := make(chan struct{})
	c.wg.Go(func() {
		c.err = c.watchCameras(ctx, b.fleet, "nodes/"+node.Name, ready)
	})
	c.wg.Go(func() { c.watchPlays(ctx, b.fleet) })
	select {
	case <-ready:
	case <-ctx.Done():
	}
	return c
}

// stop ends the watch.
func (c *clock) stop() error {
	c.cancel()
	c.wg.Wait()
	if c.err != nil {
		return fmt.Errorf("watch the cameras: %w", c.err)
	}
	return nil
}

func (c *clock) note(phase, camera string, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.seen[phase] == nil {
		c.seen[phase] = map[string]time.Time{}
	}
	if c.seen[phase][camera].IsZero() {
		c.seen[phase][camera] = at
	}
}

// watchCameras follows CameraService.WatchCameras. ready is closed when it has
// begun, or cannot.
func (c *clock) watchCameras(ctx context.Context, f *fleettest.Fleet, from string, ready chan struct{}) error {
	var once sync.Once
	begun := func() { once.Do(func() { close(ready) }) }
	defer begun()
	stream, err := f.CameraService().WatchCameras(ctx, &controlv1.WatchCamerasRequest{})
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // it was stopped
			}
			return err
		}
		now := time.Now()
		for _, e := range resp.GetEvents() {
			st := e.GetCamera().GetStatus()
			id := strings.TrimPrefix(e.GetCamera().GetName(), "cameras/")
			if st.GetNode() == "" || st.GetNode() == from {
				continue
			}
			c.note(phaseAssigned, id, now)
			if st.GetState() == controlv1.CameraStatus_STATE_LIVE {
				c.note(phaseLive, id, now)
			}
		}
		if resp.GetSnapshotComplete() {
			begun()
		}
	}
}

// watchPlays looks at the simulated cameras' counters.
func (c *clock) watchPlays(ctx context.Context, f *fleettest.Fleet) {
	before := f.Plays()
	for ctx.Err() == nil {
		now := time.Now()
		for id, n := range f.Plays() {
			if n > before[id] {
				c.note(phasePlay, id, now)
			}
		}
		pause(ctx, 5*time.Millisecond)
	}
}

// phases returns when each phase came for one viewer, since the cause. What did
// not come is not in it.
func (c *clock) phases(v *viewertest.Follower, camera string, to time.Time) map[string]time.Duration {
	out := map[string]time.Duration{}
	if c == nil {
		return out
	}
	c.mu.Lock()
	for phase, cameras := range c.seen {
		if at, ok := cameras[camera]; ok {
			out[phase] = at.Sub(c.began)
		}
	}
	c.mu.Unlock()
	events := v.Events(c.began, to)
	session := ""
	for _, e := range events {
		if e.Kind == viewertest.EventShown {
			session = e.Session
		}
	}
	first := func(phase string, e viewertest.Event) {
		if _, ok := out[phase]; !ok {
			out[phase] = e.Time.Sub(c.began)
		}
	}
	for _, e := range events {
		switch {
		case e.Kind == viewertest.EventState && strings.HasPrefix(e.Detail, "moving"), e.Kind == viewertest.EventEnded:
			first(phaseNoticed, e)
		case e.Kind == viewertest.EventMove:
			first(phaseMove, e)
		case e.Session != session:
		case e.Kind == viewertest.EventWatch:
			first(phaseWatch, e)
		case e.Kind == viewertest.EventAnswer:
			first(phaseAnswer, e)
		case e.Kind == viewertest.EventConnected:
			first(phaseConnected, e)
		case e.Kind == viewertest.EventMedia:
			first(phaseMedia, e)
		case e.Kind == viewertest.EventShown:
			first(phaseShown, e)
		}
	}
	return out
}
