// Package source pulls one profile of one camera over RTSP (RFC 2326) and writes
// what it sends into a stream.Stream.
//
// A [Source] connects, asks what there is (DESCRIBE), sets up the first video
// track that a stream can carry and the first such audio track, and plays them.
// RTP packets go into the stream as they come, with the NTP time of RTCP sender
// reports; a keyframe that the stream wants is asked for by a picture loss
// indication (RTCP PLI), or over ONVIF where that has no effect. There is one RTSP
// session, whatever the number of viewers.
//
// When anything fails it says why, as a fleet.Reason and a sentence that tells
// what to change, and tries again: after connections that were refused or lost,
// after 0.25 to 1 s and then with exponential backoff and full jitter up to 30 s;
// after failures that only somebody's action cures (no such stream, camera busy,
// codec not supported…) more slowly. A host that has refused the credentials three
// times is not tried again, because cameras lock accounts, until the source is
// made anew with others or [Source.Retry] is called. No packet of video for 5 s
// is a failure too, and ends the connection. How often one host is connected to
// is bounded over all sources, see [Hosts].
//
// A profile's fallback URLs are tried in order when its URL fails. While one of
// them is in use, those before it are probed with DESCRIBE, which takes none of
// the sessions that a camera accepts; when one has a usable stream twice in a
// row, the source goes back to it: the new connection replaces the old one in the
// stream with its first packet of video. Twice, because a camera that starts, or
// a network that comes and goes, may answer once and not again, and each return
// costs the viewers a wait for a keyframe.
//
// What it trusts: the operator's URLs, and nothing that the camera says. Host
// names are resolved once for each attempt, each address is checked against the
// allowed networks and dialled as an address; redirects are followed up to three
// times, by the same rules, never from rtsps to rtsp, and take the credentials
// along only to the host they were meant for. Media over UDP is taken from, and
// sent to, the address of the RTSP connection only, unless the camera names
// another one in a network that was explicitly allowed.
//
// The package does no transcoding, keeps no media, and knows neither viewers nor
// the control plane. It is the only user of gortsplib beside the simulated
// cameras.
package source

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// Config says what to pull and where to. Camera, Profile and Stream are needed;
// the zero values of the others are the defaults.
type Config struct {
	Log         *slog.Logger // nil: nothing is logged
	Camera      fleet.CameraID
	Profile     fleet.Profile
	Credentials fleet.Credentials
	Stream      *stream.Stream

	// OnStatus is called with each change of the status, from Run's goroutine,
	// after Stream.SetStatus. It must not block. Viewers and figures that are
	// measured are the caller's to fill in.
	OnStatus func(fleet.CameraStatus)

	// OnFailure is called from Run's goroutine when an attempt has failed, or the
	// connection of a live camera, with the reason that the status gives.
	OnFailure func(fleet.Reason)

	Networks []netip.Prefix // where cameras may be; none: anywhere

	// ONVIFURL is the camera's ONVIF device service, without credentials. Empty:
	// http://HOST/onvif/device_service, with the host of the profile's URL;
	// fleet.ONVIFNone: ONVIF is not used.
	ONVIFURL string
	// Keyframes is what is learnt of how the camera is asked for keyframes, to be
	// kept for as long as there is the camera; nil: for as long as the source.
	Keyframes *KeyframeMemory
	// Accounts is which credentials are good over ONVIF, shared by all sources of the
	// node; nil: the source's own.
	Accounts *Accounts

	// TCPFirst has TCP tried before UDP where the profile's transport is
	// automatic, until one of them has worked here: elsewhere it was TCP that did.
	TCPFirst bool

	// MaxSessions is how many RTSP sessions the camera accepts; 0: any number. With
	// 1, the connection to a fallback URL ends before that to an earlier one begins.
	MaxSessions int

	Timeouts Timeouts
	Retry    Retry
	Hosts    *Hosts // shared by all sources of the node; nil: no limit

	RootCAs  *x509.CertPool // for rtsps without a fingerprint; nil: the system's
	Resolver *net.Resolver  // nil: net.DefaultResolver
}

// Timeouts are how long a source waits. The zero values are the defaults.
type Timeouts struct {
	Request time.Duration // to connect, and for the answer to each request; 0: 10 s
	UDP     time.Duration // for the first packet over UDP before TCP is tried; 0: 3 s
	Media   time.Duration // for the next packet of video; 0: 5 s
}

func (t Timeouts) withDefaults() Timeouts {
	if t.Request <= 0 {
		t.Request = 10 * time.Second
	}
	if t.UDP <= 0 {
		t.UDP = 3 * time.Second
	}
	if t.Media <= 0 {
		t.Media = 5 * time.Second
	}
	return t
}

// Source pulls one profile of one camera.
type Source struct {
	// Static after New.
	log   *slog.Logger
	cfg   Config
	retry chan struct{} // holds a token from Retry until Run has heeded it

	// Owned by Run.
	status       fleet.CameraStatus
	profile      fleet.ProfileStatus
	backoff      backoff
	tcpFirst     map[string]bool     // by host and port: media came over TCP last time
	audioRefused bool                // the camera refused to set its audio up; it is not asked again
	refusals     map[string]*refusal // of the credentials, in a row, by host
	returns      returns

	keys     *keyframes
	counters counters

	// handover is held while a connection takes the stream, or is made to take it
	// again: which connection has the stream's writer, and which believes so, change
	// together.
	handover sync.Mutex

	onVideo func() // in tests: called for each packet of video, in gortsplib's goroutine
}

type counters struct {
	connects, plays, lost, malformed, panics atomic.Int64
	keyframes                                askCounters
}

// Counters are what a source has counted since it was made.
type Counters struct {
	Connects    int64 // RTSP connections opened
	Plays       int64 // PLAY requests that the camera accepted
	PacketsLost int64 // RTP, by their sequence numbers
	Malformed   int64 // RTP and RTCP packets that could not be read, or were of no track
	Panics      int64 // that were recovered while something of the camera's was handled

	Keyframes KeyframeCounters
}

// Counters returns what was counted. It may be called from any goroutine.
func (s *Source) Counters() Counters {
	return Counters{
		Connects:    s.counters.connects.Load(),
		Plays:       s.counters.plays.Load(),
		PacketsLost: s.counters.lost.Load(),
		Malformed:   s.counters.malformed.Load(),
		Panics:      s.counters.panics.Load(),

		Keyframes: s.counters.keyframes.load(),
	}
}

// New returns a source that does nothing until Run.
func New(cfg Config) *Source {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.OnStatus == nil {
		cfg.OnStatus = func(fleet.CameraStatus) {}
	}
	if cfg.OnFailure == nil {
		cfg.OnFailure = func(fleet.Reason) {}
	}
	if cfg.Resolver == nil {
		cfg.Resolver = net.DefaultResolver
	}
	cfg.Timeouts = cfg.Timeouts.withDefaults()
	s := &Source{
		log:      cfg.Log.With("camera", string(cfg.Camera), "profile", cfg.Profile.ID),
		cfg:      cfg,
		profile:  fleet.ProfileStatus{ID: cfg.Profile.ID},
		backoff:  backoff{retry: cfg.Retry.withDefaults()},
		tcpFirst: make(map[string]bool),
		refusals: make(map[string]*refusal),
		retry:    make(chan struct{}, 1),
	}
	s.keys = newKeyframes(s)
	return s
}

// Retry has the source try at once what it would try later: it ends the wait
// after a failure, forgets the failures and the refusals of the credentials, and
// begins with the first URL. While media comes from a fallback URL, those before
// it are probed at once, and one good answer is enough to go back. While media
// comes from the first URL it has no effect on that. Credentials that were refused
// over ONVIF more than a minute ago are tried once more when a keyframe is needed.
// It may be called from any goroutine, and returns at once.
func (s *Source) Retry() {
	s.keys.accounts.forgive(s.keys.account, time.Now())
	select {
	case s.retry <- struct{}{}:
	default:
	}
}

// startOver forgets what has failed.
func (s *Source) startOver() {
	s.log.Info("camera retried")
	s.backoff = backoff{retry: s.backoff.retry}
	clear(s.refusals)
	s.returns = returns{}
}

// Run pulls the camera until ctx ends, and returns nil when everything it
// started has ended. It can be called once. Whatever the camera does, it tries
// again.
func (s *Source) Run(ctx context.Context) error {
	keys, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.keys.run(keys) })
	defer wg.Wait()
	defer cancel()
	s.setStatus(fleet.CameraStatus{State: fleet.CameraConnecting, Reason: fleet.ReasonStarting})
	for {
		said, tried := s.pullOnce(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // an end that was asked for is no error
		}
		if said.again {
			// The camera is told of the end of a session, and not waited for.
			if !s.pause(ctx, s.backoff.retry.Min/4, true) {
				return nil
			}
			continue
		}
		status := fleet.CameraStatus{State: fleet.CameraFailed, Reason: said.reason, Message: said.message}
		var delay time.Duration
		if tried != nil {
			delay = s.backoff.after(tried.reason)
			status.RetryTime = time.Now().Add(delay)
			s.log.Info("camera failed", "reason", string(said.reason), "message", said.message, "retry_in", delay)
		} else {
			s.log.Warn("camera failed and is not tried again", "reason", string(said.reason), "message", said.message)
		}
		s.profile.Transport, s.profile.URLIndex = fleet.TransportAuto, 0 // none
		s.setStatus(status)
		s.cfg.OnFailure(said.reason)
		if !s.pause(ctx, delay, tried != nil) {
			return nil
		}
	}
}

// pause waits for d, without wake until Retry is called, and tells whether ctx is
// still on.
func (s *Source) pause(ctx context.Context, d time.Duration, wake bool) bool {
	var passed <-chan time.Time
	if wake {
		t := time.NewTimer(d)
		defer t.Stop()
		passed = t.C
	}
	select {
	case <-passed:
	case <-s.retry:
		s.startOver()
	case <-ctx.Done():
		return false
	}
	return true
}

// setStatus is the only place that says where the camera stands.
func (s *Source) setStatus(status fleet.CameraStatus) {
	status.Since = s.status.Since
	if s.status.Since.IsZero() || s.status.State != status.State {
		status.Since = time.Now()
	}
	profile := s.profile
	profile.Tracks = append([]fleet.TrackStatus(nil), s.profile.Tracks...)
	profile.PacketsLost = s.counters.lost.Load()
	profile.KeyframeRequest = s.keys.way()
	profile.State, profile.Reason, profile.Message, profile.RetryTime = status.State, status.Reason, status.Message, status.RetryTime
	status.Profiles = []fleet.ProfileStatus{profile}
	s.status = status
	s.cfg.Stream.Board().SetStatus(status)
	s.cfg.OnStatus(status)
}

// sleep waits for d and tells whether ctx is still on.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
