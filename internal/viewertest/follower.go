package viewertest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"github.com/pion/webrtc/v4"
)

// FollowerConfig is how a Follower is made. Gateway and Camera are needed.
type FollowerConfig struct {
	Log     *slog.Logger // nil: nothing is logged
	Gateway string       // host:port
	Camera  string       // its id
	Token   string       // empty: none

	// Network is where this side's ICE candidates are. The zero value: on
	// loopback.
	Network netip.Prefix
	// Stamp reads the sending time out of an SEI NAL unit; nil: not known.
	Stamp func(nal []byte) (time.Time, bool)
}

// How the player of the page waits, and so does a Follower.
const (
	welcomeTimeout = 10 * time.Second
	answerTimeout  = 15 * time.Second
	connectTimeout = 15 * time.Second
	frameTimeout   = 30 * time.Second
	grace          = 1500 * time.Millisecond // of a peer connection that is "disconnected"
	restartTimeout = 6 * time.Second
	stallRenew     = 12 * time.Second
	stableSocket   = 5 * time.Second
	stablePicture  = 10 * time.Second
	lastingWait    = 30 * time.Second
	sendTimeout    = 5 * time.Second
	stallCheck     = time.Second
)

// Follower watches a camera as the page's player does, over the websocket
// (docs/signaling.md), and keeps the time of every frame that could have been
// shown. It follows its camera from node to node and from gateway to gateway:
//
//   - told to move, it begins another session, swaps at that one's first
//     complete frame, and leaves the old one;
//   - when the websocket is lost it keeps the old peer connection and its
//     picture, connects again, begins a session there, swaps, and closes the
//     old;
//   - a session that fails is followed by another, after a wait.
//
// The waits are the player's, with its jitter. Run is everything it does; the
// other methods may be called from any goroutine, before and after too.
type Follower struct {
	// Static after NewFollower.
	cfg    FollowerConfig
	log    *slog.Logger
	api    *webrtc.API
	events chan func() // for the loop to call; never closed
	done   chan struct{}

	workers sync.WaitGroup // what the loop started: dialers, readers, closers

	// Owned by the loop.
	socket       *websocket.Conn // nil: none
	attempt      int             // counts sockets, so that what an older one brings is ignored
	welcomed     bool
	welcomedAt   time.Time
	sessions     int
	viewport     viewport
	alarms       map[*alarm]struct{}
	socketAlarm  *alarm
	retryAlarm   *alarm
	silenceAlarm *alarm
	heartbeat    time.Duration // of the gateway; 0: it has none
	socketPause  pause
	sessionPause pause
	takes        map[string]*take // those that the gateway may speak of, by session

	mu      sync.Mutex // guards the rest
	series  series
	shown   *take // its frames are the picture
	pending *take // replaces shown with its first frame
	closed  bool
	wake    chan struct{} // closed and replaced with every frame
}

// NewFollower returns a Follower that does nothing before Run.
func NewFollower(cfg FollowerConfig) (*Follower, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if !cfg.Network.IsValid() {
		cfg.Network = netip.MustParsePrefix("127.0.0.0/8")
	}
	if cfg.Gateway == "" || cfg.Camera == "" {
		return nil, errors.New("make a follower: a gateway and a camera are needed")
	}
	api, err := followerAPI(cfg.Network)
	if err != nil {
		return nil, fmt.Errorf("make a follower: %w", err)
	}
	return &Follower{
		cfg: cfg, log: cfg.Log.With("camera", cfg.Camera), api: api,
		events: make(chan func(), 64), done: make(chan struct{}),
		viewport: viewport{640, 360, true}, alarms: map[*alarm]struct{}{}, takes: map[string]*take{},
		series: series{base: time.Now()}, wake: make(chan struct{}),
	}, nil
}

// Run watches until ctx ends, then leaves, and returns nil when everything has
// ended. It can be called once.
func (f *Follower) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f.connect(ctx)
	f.every(ctx, stallCheck, f.checkStall)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		timer.Reset(f.nextAlarm())
		select {
		case <-ctx.Done():
		case <-timer.C:
		case do := <-f.events:
			do()
		}
		f.ring(time.Now())
	}
	f.finish()
	cancel()
	close(f.done)
	f.workers.Wait()
	return nil
}

// finish leaves and closes everything; what it starts is waited for by Run.
func (f *Follower) finish() {
	f.mu.Lock()
	shown, pending := f.shown, f.pending
	f.shown, f.pending, f.closed = nil, nil, true
	f.mu.Unlock()
	f.discard(pending)
	f.discard(shown)
	if f.socket != nil {
		_ = f.socket.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), time.Now().Add(time.Second))
		_ = f.socket.Close()
	}
}

// post has the loop do something; it does not wait for it. After the loop's end
// it does nothing.
func (f *Follower) post(do func()) {
	select {
	case f.events <- do:
	case <-f.done:
	}
}

// Summary returns what was seen from one time to another.
func (f *Follower) Summary(from, to time.Time) Summary {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.series.summary(from, to)
}

// Gaps returns the times between frames: those that ended after from and began
// before to, and one that had not ended at to. Without any frame there is one
// gap, from the beginning to the end.
func (f *Follower) Gaps(from, to time.Time) []Gap {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.series.gaps(from, to)
}

// Events returns what happened from one time to another.
func (f *Follower) Events(from, to time.Time) []Event {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.series.eventsBetween(from, to)
}

// AwaitFrame waits for a frame that comes after a time.
func (f *Follower) AwaitFrame(ctx context.Context, after time.Time) error {
	for {
		f.mu.Lock()
		wake, frames := f.wake, f.series.frames
		if n := len(frames); n > 0 && f.series.base.Add(frames[n-1].at).After(after) {
			f.mu.Unlock()
			return nil
		}
		f.mu.Unlock()
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("wait for a frame of camera %s: %w", f.cfg.Camera, ctx.Err())
		}
	}
}

// Settled tells whether there is a picture and no session on its way to replace
// it, nor a session without a gateway.
func (f *Follower) Settled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shown != nil && f.pending == nil && !f.shown.orphaned && !f.shown.dead
}

// Remote returns the media address, host:port, of the node that the picture
// comes from; empty: there is none.
func (f *Follower) Remote() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.shown == nil || f.shown.dead {
		return ""
	}
	return f.shown.remote
}

// note adds to the log of events.
func (f *Follower) note(kind EventKind, session, detail string) {
	f.mu.Lock()
	f.series.events = append(f.series.events, Event{time.Now(), kind, session, detail})
	f.mu.Unlock()
	f.log.Debug("follower", "event", string(kind), "session", session, "detail", detail)
}

// alarm is something that the loop does at a time.
type alarm struct {
	at time.Time
	do func()
}

// after has the loop do something later, unless it is cancelled.
func (f *Follower) after(d time.Duration, do func()) *alarm {
	a := &alarm{time.Now().Add(d), do}
	f.alarms[a] = struct{}{}
	return a
}

// every has the loop do something again and again until ctx ends.
func (f *Follower) every(ctx context.Context, d time.Duration, do func(context.Context)) {
	f.after(d, func() {
		do(ctx)
		f.every(ctx, d, do)
	})
}

func (f *Follower) cancel(a *alarm) { delete(f.alarms, a) }

// nextAlarm returns how long it is until the first.
func (f *Follower) nextAlarm() time.Duration {
	var first time.Time
	for a := range f.alarms {
		if first.IsZero() || a.at.Before(first) {
			first = a.at
		}
	}
	return time.Until(first)
}

// ring does what is due.
func (f *Follower) ring(now time.Time) {
	for a := range f.alarms {
		if !a.at.After(now) {
			delete(f.alarms, a)
			a.do()
		}
	}
}

// pause makes waits: exponential with full jitter, as the player's.
type pause struct{ tries int }

func (p *pause) next(random func(time.Duration) time.Duration) time.Duration {
	most := min(15*time.Second, 500*time.Millisecond<<min(p.tries, 10))
	p.tries++
	return random(most)
}

func (p *pause) reset() { p.tries = 0 }
