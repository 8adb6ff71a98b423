package source

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"strings"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"

	"fanlight/internal/fleet"
	"fanlight/medianode/onvif"
	"fanlight/medianode/stream"
)

const (
	// pliPatience is how long a keyframe may take after a picture loss indication
	// before ONVIF is tried, and patience how long it may take to count as the
	// answer to a request at all.
	pliPatience = 300 * time.Millisecond
	patience    = 1500 * time.Millisecond

	onvifTimeout = 30 * time.Second      // for all that a keyframe over ONVIF takes
	onvifSpacing = time.Second           // between two requests over ONVIF, at least
	look         = 20 * time.Millisecond // how often it is looked whether a keyframe has come
)

// keyframes asks a camera for keyframes, and learns how that is done: by RTCP at
// once, and over ONVIF if no keyframe has come of it, or over ONVIF alone once that
// has brought one. Its goroutine, run, asks over ONVIF, one request at a time, and
// watches what comes of each request.
type keyframes struct {
	// Static after newKeyframes.
	source *Source
	memory *KeyframeMemory
	key    habitKey
	device deviceKey // of the ONVIF device service; no URL: not used

	accounts *Accounts
	account  accountKey // at the device service

	wake    chan struct{} // holds a token while there is a request; never closed
	changed chan struct{} // holds a token when way has changed; never closed

	// Owned by run.
	client    *onvif.Client
	clientURL string    // the RTSP URL that client was made for
	spaced    time.Time // when ONVIF may be used next

	mu      sync.Mutex  // guards the rest
	owner   *connection // that is asked; nil: there is none
	pli     func()      // of the connection; nil: there is none
	url     string      // of the connection
	epoch   int         // counts connections
	pending *wish       // nil: none that run has not taken
}

// wish is a request for a keyframe, and what there was when it came up.
type wish struct {
	at     time.Time
	before stream.Stats
	epoch  int
	rtcp   bool // a picture loss indication was sent
}

func newKeyframes(s *Source) *keyframes {
	k := &keyframes{source: s, memory: s.cfg.Keyframes, wake: make(chan struct{}, 1), changed: make(chan struct{}, 1)}
	if k.memory == nil {
		k.memory = new(KeyframeMemory)
	}
	k.device = deviceKey{url: deviceURL(s.cfg), credentials: s.cfg.Credentials}
	k.accounts = s.cfg.Accounts
	if k.accounts == nil {
		k.accounts = new(Accounts)
	}
	k.account = newAccountKey(k.device.url, k.device.credentials)
	k.key = habitKey{profile: s.cfg.Profile.URL, device: k.device}
	return k
}

// deviceURL returns where the camera's ONVIF device service is; empty: nowhere.
func deviceURL(cfg Config) string {
	switch cfg.ONVIFURL {
	case fleet.ONVIFNone:
		return ""
	case "":
	default:
		return cfg.ONVIFURL
	}
	u, err := base.ParseURL(cfg.Profile.URL)
	if err != nil || u.Hostname() == "" {
		return ""
	}
	host := u.Hostname()
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	return "http://" + host + "/onvif/device_service"
}

// connected says that there is a connection, with its URL and what sends a picture
// loss indication on it.
func (k *keyframes) connected(c *connection, pli func()) {
	stats := k.source.cfg.Stream.Stats()
	k.memory.with(k.key, func(h *habit) { h.forced = stats.Keyframes + 1 })
	k.mu.Lock()
	defer k.mu.Unlock()
	k.owner, k.pli, k.url, k.pending = c, pli, c.target.url.CloneWithoutCredentials().String(), nil
	k.epoch++
}

// disconnected says that a connection has ended; if it is the one that is asked,
// there is none.
func (k *keyframes) disconnected(c *connection) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.owner != c {
		return
	}
	k.owner, k.pli, k.pending = nil, nil, nil
	k.epoch++
}

// way returns how the camera is asked, as far as that is known.
func (k *keyframes) way() (way fleet.KeyframeRequest) {
	k.memory.with(k.key, func(h *habit) { way = h.way })
	return way
}

// possible tells whether the device service may be asked now.
func (k *keyframes) possible(now time.Time) bool {
	return k.memory.possible(k.device, now) && !k.accounts.refused(k.account)
}

// ask asks the camera, or has run do so. It may be called from any goroutine and
// does not block. The stream has coalesced what its viewers want.
func (k *keyframes) ask() {
	stats := k.source.cfg.Stream.Stats()
	now := time.Now()
	var resting, viaONVIF bool
	possible := k.possible(now)
	k.memory.with(k.key, func(h *habit) {
		resting, viaONVIF = h.resting(now), h.way == fleet.KeyframeRequestONVIF && possible
	})
	k.mu.Lock()
	pli := k.pli
	if pli == nil || resting {
		k.mu.Unlock()
		return
	}
	if k.pending == nil {
		k.pending = &wish{at: now, before: stats, epoch: k.epoch}
	}
	k.pending.rtcp = k.pending.rtcp || !viaONVIF
	k.mu.Unlock()
	if !viaONVIF {
		pli()
	}
	poke(k.wake)
}

// poke puts a token into a channel that has room for one.
func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// run serves requests until ctx ends.
func (k *keyframes) run(ctx context.Context) {
	defer func() {
		if k.client != nil {
			k.client.Close()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case <-k.wake:
		}
		k.mu.Lock()
		r := k.pending
		k.pending = nil
		k.mu.Unlock()
		if r != nil {
			k.guard(func() { k.serve(ctx, r) })
		}
	}
}

// guard keeps what a camera says over ONVIF from ending the process.
func (k *keyframes) guard(f func()) {
	defer func() {
		if r := recover(); r != nil {
			k.source.counters.panics.Add(1)
			k.source.log.Error("panic while asking a camera for a keyframe", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			k.memory.note(k.device, time.Now(), onvif.ErrUnsupported)
		}
	}()
	f()
}

// serve follows one request to its end, and learns from it.
func (k *keyframes) serve(ctx context.Context, r *wish) {
	before := k.way()
	defer func() {
		if k.way() != before {
			k.source.log.Info("keyframe requests learnt", "by", wayName(k.way()))
			poke(k.changed)
		}
	}()
	var h habit
	k.memory.with(k.key, func(memory *habit) {
		memory.observe(r.before)
		h = *memory
	})
	worth := k.possible(r.at) && h.worthONVIF(r.at, r.before)
	switch {
	case r.rtcp && (!worth || h.way == fleet.KeyframeRequestRTCP):
		k.outcome(ctx, r, r.at, fleet.KeyframeRequestRTCP)
		return
	case r.rtcp && h.rtcpMisses < enoughMisses:
		if _, came := k.await(ctx, r, r.at.Add(pliPatience)); came {
			k.outcome(ctx, r, r.at, fleet.KeyframeRequestRTCP)
			return
		}
	}
	if stats, came := k.await(ctx, r, k.spaced); came {
		k.judge(r, r.at, stats, fleet.KeyframeRequestRTCP)
		return
	}
	k.serveONVIF(ctx, r)
}

// serveONVIF is serve's part over ONVIF.
func (k *keyframes) serveONVIF(ctx context.Context, r *wish) {
	if !k.current(r) || ctx.Err() != nil {
		return
	}
	sent, err := k.overONVIF(ctx, r)
	if ctx.Err() != nil {
		return
	}
	if stats, came := k.await(ctx, r, time.Time{}); came && errors.Is(err, errUntried) {
		k.judge(r, r.at, stats, fleet.KeyframeRequestRTCP)
		return
	}
	if err == nil {
		k.source.countKeyframe(askedONVIF)
		k.outcome(ctx, r, sent, fleet.KeyframeRequestONVIF)
		return
	}
	if !errors.Is(err, errUntried) {
		k.source.countKeyframe(askFailed)
		k.source.log.Debug("keyframe not requested over onvif", "error", quote(err.Error(), k.source.cfg.Credentials))
	}
	k.mu.Lock()
	pli := k.pli
	k.mu.Unlock()
	if !r.rtcp && pli != nil {
		pli()
		return
	}
	k.outcome(ctx, r, r.at, fleet.KeyframeRequestRTCP)
}

// overONVIF sends a request when the account may be used, and returns when that
// was: finding the service may have taken seconds. errUntried: it was not sent,
// because a keyframe has come, the connection is another, or the account may not
// be used now.
func (k *keyframes) overONVIF(ctx context.Context, r *wish) (sent time.Time, err error) {
	turn, cancelTurn := context.WithTimeout(ctx, onvifTimeout)
	defer cancelTurn()
	end, ok := k.accounts.begin(turn, k.account)
	if !ok {
		return sent, errUntried
	}
	outcome := errUntried // also of a panic
	defer func() { end(outcome) }()
	if _, came := k.await(ctx, r, time.Time{}); came || !k.current(r) {
		return sent, errUntried
	}
	limited, cancel := context.WithTimeout(ctx, onvifTimeout)
	defer cancel()
	client, err := k.newClient()
	if err == nil {
		picture := k.picture()
		if err = client.Find(limited, picture); err == nil {
			if _, came := k.await(ctx, r, time.Time{}); came {
				return sent, errUntried
			}
			sent = time.Now()
			k.spaced = sent.Add(onvifSpacing)
			err = client.RequestKeyframe(limited, picture)
		}
	}
	if ctx.Err() != nil && !errors.Is(err, onvif.ErrRefused) {
		return sent, errUntried
	}
	k.memory.note(k.device, time.Now(), err)
	outcome = err
	return sent, err
}

// outcome waits for what comes of a request that was sent one way, and learns from
// it.
func (k *keyframes) outcome(ctx context.Context, r *wish, sent time.Time, way fleet.KeyframeRequest) {
	stats, came := k.await(ctx, r, sent.Add(patience))
	if ctx.Err() != nil || !k.current(r) {
		return
	}
	if came {
		k.judge(r, sent, stats, way)
		return
	}
	if stats.Frames == r.before.Frames {
		return // nothing comes at all
	}
	possible := k.memory.possibleAtAll(k.device, time.Now()) && !k.accounts.refused(k.account)
	k.memory.with(k.key, func(h *habit) {
		if way == fleet.KeyframeRequestONVIF && r.rtcp {
			h.missed(fleet.KeyframeRequestRTCP, possible, time.Now())
		}
		h.missed(way, possible, time.Now())
		h.forced = stats.Keyframes
	})
}

// judge learns from a keyframe that came after a request.
func (k *keyframes) judge(r *wish, sent time.Time, stats stream.Stats, way fleet.KeyframeRequest) {
	if !k.current(r) {
		return
	}
	k.memory.with(k.key, func(h *habit) {
		// One that came before ONVIF was asked is RTCP's doing, if anybody's.
		if way == fleet.KeyframeRequestONVIF && stats.LastKeyframe.Before(sent) {
			way = fleet.KeyframeRequestRTCP
		}
		h.forced = stats.Keyframes
		if (r.rtcp || way == fleet.KeyframeRequestONVIF) && stats.LastKeyframe.Sub(sent) <= patience {
			h.came(way, r.before, stats)
		}
	})
}

// await waits for a keyframe that has begun since the request, until a time; it
// looks once at least.
func (k *keyframes) await(ctx context.Context, r *wish, until time.Time) (stats stream.Stats, came bool) {
	for {
		stats = k.source.cfg.Stream.Stats()
		if stats.Keyframes > r.before.Keyframes {
			return stats, true
		}
		left := time.Until(until)
		if left <= 0 || !k.current(r) || !sleep(ctx, min(left, look)) {
			return stats, false
		}
	}
}

// current tells whether the connection is still the one of the request.
func (k *keyframes) current(r *wish) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.epoch == r.epoch
}

// newClient returns the client, another one when another URL is pulled.
func (k *keyframes) newClient() (*onvif.Client, error) {
	k.mu.Lock()
	pulled := k.url
	k.mu.Unlock()
	if k.client != nil && k.clientURL == pulled {
		return k.client, nil
	}
	s := k.source
	client, err := onvif.New(onvif.Config{
		Log: s.log, DeviceURL: k.device.url, StreamURL: pulled, Credentials: s.cfg.Credentials,
		Dial: s.dialAllowed,
		DialTLS: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := s.dialAllowed(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return s.secure(ctx, conn, address)
		},
	})
	if err != nil {
		return nil, errors.Join(onvif.ErrUnsupported, err)
	}
	if k.client != nil {
		k.client.Close()
	}
	k.client, k.clientURL = client, pulled
	return client, nil
}

// picture returns what is known of the video.
func (k *keyframes) picture() onvif.Picture {
	stats := k.source.cfg.Stream.Stats()
	p := onvif.Picture{Width: stats.Width, Height: stats.Height}
	for _, t := range k.source.cfg.Stream.Tracks() {
		if t.Kind == stream.Video {
			p.Codec = t.Codec
		}
	}
	return p
}
