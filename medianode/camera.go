package medianode

import (
	"context"
	"log/slog"
	"reflect"
	"sync"
	"time"

	"fanlight/internal/fleet"
	"fanlight/medianode/source"
	"fanlight/medianode/stream"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// camera is one camera that the node has: its stream, for as long as the node
// has it, and its source, while it is to be pulled. One goroutine, run, starts
// and stops the source.
type camera struct {
	// Static after newCamera.
	node   *Node
	log    *slog.Logger
	id     fleet.CameraID
	stream *stream.Stream
	cancel context.CancelFunc // ends run
	done   chan struct{}      // closed when run has returned
	wake   chan struct{}      // holds a token while run has something to look at

	failures failures // of its sources

	mu        sync.Mutex // guards the rest
	desired   desired
	suspended bool
	sessions  int
	orphans   int       // of these, sessions whose gateway is gone
	replaced  int       // of these, those whose viewer is back with another
	idleSince time.Time // when the last session left; zero: there has been none
	handOver  time.Time // by when, while that is the node's part
	figures   figures   // as last reported
}

// desired is what the control plane wants of a camera.
type desired struct {
	fleet.Camera
	generation int64
	part       part
}

// part is the node's part in a camera's move.
type part = controlv1.DesiredCamera_Part

const (
	partTakeOver      = controlv1.DesiredCamera_PART_TAKE_OVER
	partHandOver      = controlv1.DesiredCamera_PART_HAND_OVER
	partAwaitHandOver = controlv1.DesiredCamera_PART_AWAIT_HAND_OVER
)

func newCamera(n *Node, d desired) *camera {
	c := &camera{
		node: n, log: n.log.With("camera", string(d.ID)), id: d.ID, stream: stream.New(stream.Config{}),
		done: make(chan struct{}), wake: make(chan struct{}, 1),
	}
	c.change(d)
	return c
}

// change sets what the camera should be. The viewers of one that was taken over
// are still on their way here: it is as if the last had left now.
func (c *camera) change(d desired) {
	now := time.Now()
	c.mu.Lock()
	before := c.desired.part
	c.desired = d
	if before == partTakeOver && d.part != partTakeOver && c.sessions == 0 {
		c.idleSince = now
	}
	if d.part == partHandOver && before != partHandOver {
		c.handOver = now.Add(c.node.cfg.HandOverTimeout)
	}
	c.mu.Unlock()
	c.poke()
}

// setSuspended says whether the camera must not be pulled although it should be.
func (c *camera) setSuspended(v bool) {
	c.mu.Lock()
	c.suspended = v && c.desired.MaxSessions == 1
	c.mu.Unlock()
	c.poke()
}

// join counts a session in, and leave out.
func (c *camera) join() {
	c.mu.Lock()
	c.sessions++
	c.mu.Unlock()
	c.poke()
}

func (c *camera) leave() {
	c.mu.Lock()
	c.sessions--
	c.idleSince = time.Now()
	c.mu.Unlock()
	c.poke()
}

// orphan counts a session whose gateway is gone until done is called.
func (c *camera) orphan() (done func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.orphans++
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.orphans--
		c.replaced = max(c.replaced-1, 0)
	}
}

// replaces tells whether a new session takes the place of an orphan: nobody
// knows which viewer has come back, but that one has is likely.
func (c *camera) replaces() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.replaced >= c.orphans {
		return false
	}
	c.replaced++
	return true
}

// replacesNot says that such a session could not be opened.
func (c *camera) replacesNot() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.replaced = max(c.replaced-1, 0)
}

func (c *camera) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// next is what run has to do with a camera.
type next struct {
	desired    fleet.Camera
	pull       bool
	handedOver bool          // there is nothing left to do with it here
	wait       time.Duration // until it is something else, if nothing else changes; 0: never
}

func (c *camera) next(now time.Time) next {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := next{desired: c.desired.Camera}
	if c.desired.part == partHandOver {
		out.wait = max(c.handOver.Sub(now), 0)
		out.handedOver = c.sessions == 0 || out.wait == 0
	}
	switch {
	case c.suspended || out.handedOver:
	case c.desired.part == partTakeOver || c.desired.PullPolicy != fleet.PullOnDemand || c.sessions > 0:
		out.pull = true
	case !c.idleSince.IsZero():
		out.wait = max(c.idleSince.Add(c.desired.IdleTimeout).Sub(now), 0)
		out.pull = out.wait > 0
	}
	return out
}

// move returns the generation under which the node has the camera, and its part.
func (c *camera) move() (generation int64, p part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.desired.generation, c.desired.part
}

// pulling is a source that runs.
type pulling struct {
	desired fleet.Camera
	cancel  context.CancelFunc
	done    chan struct{}
}

// samePull tells whether two cameras are pulled in the same way.
func samePull(a, b fleet.Camera) bool {
	return a.Credentials == b.Credentials && reflect.DeepEqual(a.Profiles[0], b.Profiles[0])
}

// run pulls the camera as desired until ctx ends. It begins when the camera of
// the same name that the node had before has been let go of; nil: none.
func (c *camera) run(ctx context.Context, before *camera) {
	defer close(c.done)
	defer c.node.metrics.has(c)()
	if before != nil {
		<-before.done // it has been told to end
	}
	var current *pulling
	defer func() { current.stop() }()
	for {
		now := c.next(time.Now())
		if now.handedOver {
			c.node.handedOver(c)
			if ctx.Err() == nil {
				continue // it is wanted again
			}
		}
		if current != nil && (!now.pull || !samePull(current.desired, now.desired)) {
			current.stop()
			current = nil
		}
		switch {
		case ctx.Err() != nil:
			return
		case now.pull && current == nil:
			current = c.pull(ctx, now.desired)
		case !now.pull:
			c.idle()
		}
		var changes <-chan time.Time
		if now.wait > 0 {
			changes = time.After(now.wait)
		}
		select {
		case <-c.wake:
		case <-changes:
		case <-ctx.Done():
			return
		}
	}
}

// pull starts a source of the camera's first profile.
func (c *camera) pull(ctx context.Context, desired fleet.Camera) *pulling {
	ctx, cancel := context.WithCancel(ctx)
	p := &pulling{desired: desired, cancel: cancel, done: make(chan struct{})}
	src := source.New(source.Config{
		Log: c.node.log, Camera: c.id, Profile: desired.Profiles[0], Credentials: desired.Credentials,
		Stream: c.stream, OnStatus: func(s fleet.CameraStatus) { c.failures.note(s); c.node.changes.add(c.id) },
		Networks: c.node.cfg.CameraNetworks, TCPFirst: desired.TCPFirst, Timeouts: c.node.cfg.SourceTimeouts, Retry: c.node.cfg.SourceRetry,
	})
	go func() {
		defer close(p.done)
		if err := src.Run(ctx); err != nil {
			c.log.Error("source ended", "error", err)
		}
	}()
	return p
}

// stop ends the source and waits for it.
func (p *pulling) stop() {
	if p != nil {
		p.cancel()
		<-p.done
	}
}

// idle says that the camera is not pulled. Saying it again changes nothing.
func (c *camera) idle() {
	status := fleet.CameraStatus{
		State: fleet.CameraIdle, Reason: fleet.ReasonIdle, Message: "nobody watches; the camera is pulled on demand", Since: time.Now(),
	}
	c.mu.Lock()
	if c.suspended {
		status.Message = "the control plane cannot be reached, and another node may have been given the camera, which accepts one session"
	}
	c.mu.Unlock()
	if old := c.stream.Status(); old.State == status.State && old.Message == status.Message {
		return
	}
	c.stream.SetStatus(status)
	c.node.changes.add(c.id)
}

// status returns what is seen of the camera, with the figures of the stream.
func (c *camera) status() (status fleet.CameraStatus, generation int64) {
	stats := c.stream.Stats()
	status = c.stream.Status()
	c.mu.Lock()
	status.Viewers, generation = c.sessions, c.desired.generation
	c.mu.Unlock()
	if len(status.Profiles) > 0 {
		profiles := append([]fleet.ProfileStatus(nil), status.Profiles...)
		p := &profiles[0]
		p.BitrateBPS, p.FramesPerSecond, p.KeyframeInterval = stats.BitrateBPS, stats.FramesPerSecond, stats.KeyframeInterval
		p.PacketsLost = stats.ConnectionPacketsLost
		p.Tracks = append([]fleet.TrackStatus(nil), p.Tracks...)
		for i := range p.Tracks {
			if stream.Supported(stream.Video, p.Tracks[i].Codec) {
				p.Tracks[i].Width, p.Tracks[i].Height = stats.Width, stats.Height
			}
		}
		status.Profiles = profiles
	}
	return status, generation
}
