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

	mu         sync.Mutex // guards the rest
	desired    fleet.Camera
	generation int64
	suspended  bool
	sessions   int
	idleSince  time.Time // when the last session left; zero: there has been none
	figures    figures   // as last reported
}

func newCamera(n *Node, desired fleet.Camera, generation int64) *camera {
	return &camera{
		node: n, log: n.log.With("camera", string(desired.ID)), id: desired.ID, stream: stream.New(stream.Config{}),
		done: make(chan struct{}), wake: make(chan struct{}, 1), desired: desired, generation: generation,
	}
}

// change sets what the camera should be.
func (c *camera) change(desired fleet.Camera, generation int64) {
	c.mu.Lock()
	c.desired = desired
	c.generation = generation
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

func (c *camera) poke() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// wanted returns what to pull, and whether to. For a camera on demand without
// sessions that is still pulled, wait is how long.
func (c *camera) wanted(now time.Time) (desired fleet.Camera, pull bool, wait time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.suspended:
		return c.desired, false, 0
	case c.desired.PullPolicy != fleet.PullOnDemand || c.sessions > 0:
		return c.desired, true, 0
	case c.idleSince.IsZero():
		return c.desired, false, 0
	}
	wait = c.idleSince.Add(c.desired.IdleTimeout).Sub(now)
	return c.desired, wait > 0, max(wait, 0)
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
		desired, pull, wait := c.wanted(time.Now())
		if current != nil && (!pull || !samePull(current.desired, desired)) {
			current.stop()
			current = nil
		}
		switch {
		case ctx.Err() != nil:
			return
		case pull && current == nil:
			current = c.pull(ctx, desired)
		case !pull:
			c.idle()
		}
		var idle <-chan time.Time
		if wait > 0 {
			idle = time.After(wait)
		}
		select {
		case <-c.wake:
		case <-idle:
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
		Networks: c.node.cfg.CameraNetworks, Timeouts: c.node.cfg.SourceTimeouts, Retry: c.node.cfg.SourceRetry,
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
	status.Viewers, generation = c.sessions, c.generation
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
