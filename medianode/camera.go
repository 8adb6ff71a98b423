package medianode

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"fanlight/internal/fleet"
	"fanlight/medianode/source"
	"fanlight/medianode/stream"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// camera is one camera that the node has: a feed for each of its profiles, for as
// long as the node has it. One goroutine, run, starts and stops the sources.
type camera struct {
	// Static after newCamera.
	node   *Node
	log    *slog.Logger
	id     fleet.CameraID
	board  *stream.Board      // what is seen of it
	cancel context.CancelFunc // ends run
	done   chan struct{}      // closed when run has returned
	wake   chan struct{}      // holds a token while run has something to look at

	failures  failures              // of its sources
	keyframes source.KeyframeMemory // of its sources

	announcing sync.Mutex // held while the board is told; taken before mu

	mu           sync.Mutex // guards the rest
	desired      desired
	feeds        []*feed // of desired.Profiles, in their order
	gone         []*feed // of profiles that it no longer has, to be stopped
	suspended    bool
	sessions     int
	orphans      int       // of these, sessions whose gateway is gone
	replaced     int       // of these, those whose viewer is back with another
	restingSince time.Time // when it was last pulled
	handOver     time.Time // by when, while that is the node's part
	figures      figures   // as last reported
	viewings     map[*viewing]struct{}
	nodeVerdict  fleet.Verdict // on the node, as far as its viewers are concerned
	verdict      fleet.Verdict // on what was looked at last

	trial trial // owned by Node.judge
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
		node: n, log: n.log.With("camera", string(d.ID)), id: d.ID, board: stream.NewBoard(), restingSince: time.Now(),
		done: make(chan struct{}), wake: make(chan struct{}, 1), viewings: make(map[*viewing]struct{}),
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
	gone := c.arrange()
	c.gone = append(c.gone, gone...)
	if before == partTakeOver && d.part != partTakeOver && c.feeds[0].users == 0 {
		c.feeds[0].idleSince = now
	}
	if d.part == partHandOver && before != partHandOver {
		c.handOver = now.Add(c.node.cfg.HandOverTimeout)
	}
	c.mu.Unlock()
	for _, f := range gone {
		f.stream.Close(fmt.Errorf("profile %q of camera %q is no more: %w", f.id, c.id, fleet.CameraMoved))
	}
	c.poke()
}

// close ends the streams, and with them the sessions.
func (c *camera) close(err error) {
	c.mu.Lock()
	feeds := slices.Clone(c.feeds)
	c.mu.Unlock()
	c.board.Close(err)
	for _, f := range feeds {
		f.stream.Close(err)
	}
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
	feeds      []*feed
	pull       []bool
	gone       []*feed
	handedOver bool          // there is nothing left to do with it here
	wait       time.Duration // until it is something else, if nothing else changes; 0: never
}

func (c *camera) next(now time.Time) next {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := next{desired: c.desired.Camera, feeds: slices.Clone(c.feeds), pull: make([]bool, len(c.feeds)), gone: c.gone}
	soon := func(t time.Time) {
		if d := max(t.Sub(now), 0); !t.IsZero() && (out.wait == 0 || d < out.wait) {
			out.wait = d
		}
	}
	if c.desired.part == partHandOver {
		soon(c.handOver)
		out.handedOver = c.sessions == 0 || out.wait == 0
	}
	if c.suspended || out.handedOver {
		return out
	}
	for i := range c.feeds {
		var until time.Time
		if out.pull[i], until = c.wanted(i, now); out.pull[i] {
			soon(until)
		}
	}
	return out
}

// move returns the generation under which the node has the camera, and its part.
func (c *camera) move() (generation int64, p part) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.desired.generation, c.desired.part
}

// run pulls the camera as desired until ctx ends. It begins when the camera of
// the same name that the node had before has been let go of; nil: none.
func (c *camera) run(ctx context.Context, before *camera) {
	defer close(c.done)
	defer c.node.metrics.has(c)()
	if before != nil {
		<-before.done // it has been told to end
	}
	defer func() {
		last := c.next(time.Now())
		for _, f := range slices.Concat(last.feeds, last.gone) {
			f.pulling.stop()
			f.pulling = nil
		}
	}()
	for {
		now := c.next(time.Now())
		if now.handedOver {
			c.node.handedOver(c)
			if ctx.Err() == nil {
				continue // it is wanted again
			}
		}
		c.reconcile(ctx, now)
		c.mu.Lock()
		c.gone = c.gone[len(now.gone):]
		c.mu.Unlock()
		if ctx.Err() != nil {
			return
		}
		if !slices.Contains(now.pull, true) {
			c.idle()
		} else if c.unplayable() {
			c.announce()
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

// idle says that the camera is not pulled. Saying it again changes nothing.
func (c *camera) idle() {
	c.mu.Lock()
	status := c.resting()
	c.mu.Unlock()
	if old := c.board.Status(); old.State != status.State || old.Message != status.Message {
		c.announce()
	}
}

// status returns what is seen of the camera, with the figures of the streams.
func (c *camera) status() (status fleet.CameraStatus, generation int64) {
	status = c.board.Status()
	c.mu.Lock()
	status.Viewers, generation = c.sessions, c.desired.generation
	feeds := slices.Clone(c.feeds)
	users := make([]int, len(feeds))
	for i, f := range feeds {
		users[i] = f.users
	}
	c.mu.Unlock()
	status.Profiles = slices.Clone(status.Profiles)
	for i := range status.Profiles {
		p := &status.Profiles[i]
		at := slices.IndexFunc(feeds, func(f *feed) bool { return f.id == p.ID })
		if at < 0 {
			continue
		}
		stats := feeds[at].stream.Stats()
		p.BitrateBPS, p.FramesPerSecond, p.KeyframeInterval = stats.BitrateBPS, stats.FramesPerSecond, stats.KeyframeInterval
		p.PacketsLost, p.Viewers, p.BFrames = stats.ConnectionPacketsLost, users[at], stats.BFrames
		if p.State == fleet.CameraLive {
			p.Loss, p.Jitter = stats.Loss, stats.Jitter
		}
		p.Tracks = slices.Clone(p.Tracks)
		for t := range p.Tracks {
			if stream.Supported(stream.Video, p.Tracks[t].Codec) && p.Tracks[t].UnsupportedReason == "" {
				p.Tracks[t].Width, p.Tracks[t].Height = stats.Width, stats.Height
			}
		}
	}
	return status, generation
}
