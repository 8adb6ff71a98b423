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
// codec not supported…) more slowly; after three refusals of the password every
// 15 minutes only, because cameras lock accounts. No packet of video for 5 s is a
// failure too, and ends the connection.
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
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/bluenviron/gortsplib/v5/pkg/base"

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

	Networks []netip.Prefix // where cameras may be; none: anywhere

	// ONVIFURL is the camera's ONVIF device service, without credentials. Empty:
	// http://HOST/onvif/device_service, with the host of the profile's URL;
	// fleet.ONVIFNone: ONVIF is not used.
	ONVIFURL string
	// Keyframes is what is learnt of how the camera is asked for keyframes, to be
	// kept for as long as there is the camera; nil: for as long as the source.
	Keyframes *KeyframeMemory

	// TCPFirst has TCP tried before UDP where the profile's transport is
	// automatic, until one of them has worked here: elsewhere it was TCP that did.
	TCPFirst bool

	Timeouts Timeouts
	Retry    Retry

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
	log *slog.Logger
	cfg Config

	// Owned by Run.
	status       fleet.CameraStatus
	profile      fleet.ProfileStatus
	backoff      backoff
	tcpFirst     map[string]bool // by host and port: media came over TCP last time
	audioRefused bool            // the camera refused to set its audio up; it is not asked again

	keys     *keyframes
	counters counters

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
	}
	s.keys = newKeyframes(s)
	return s
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
		f := s.pullOnce(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // an end that was asked for is no error
		}
		delay := s.backoff.after(f.reason)
		s.log.Info("camera failed", "reason", string(f.reason), "message", f.message, "retry_in", delay)
		s.profile.Transport = fleet.TransportAuto // none
		s.setStatus(fleet.CameraStatus{
			State: fleet.CameraFailed, Reason: f.reason, Message: f.message, RetryTime: time.Now().Add(delay),
		})
		if !sleep(ctx, delay) {
			return nil
		}
	}
}

// pullOnce tries the URL and then the fallback URLs. It returns why the first
// one failed, or the one that media came from.
func (s *Source) pullOnce(ctx context.Context) *failure {
	var first *failure
	refused := make(map[string]bool) // hosts that refused the credentials
	for _, raw := range append([]string{s.cfg.Profile.URL}, s.cfg.Profile.FallbackURLs...) {
		u, f := s.parseURL(raw)
		if f == nil && refused[u.Host] {
			continue // would only bring the account nearer to being locked
		}
		if f == nil {
			f = s.pull(ctx, u)
		}
		if ctx.Err() != nil || f.wasLive {
			return f
		}
		if f.reason == fleet.ReasonAuthenticationFailed {
			refused[u.Host] = true
		}
		if first == nil {
			first = f
		} else {
			s.log.Debug("fallback URL failed", "reason", string(f.reason), "message", f.message)
		}
	}
	return first
}

// parseURL returns a configured URL with the credentials in it, which is how
// gortsplib takes them; it sends and prints URLs without.
func (s *Source) parseURL(raw string) (*base.URL, *failure) {
	u, err := base.ParseURL(raw)
	if err != nil || u.Hostname() == "" {
		// The error would quote the URL.
		return nil, failed(fleet.ReasonProtocolError, "the URL cannot be used: it must be like rtsp://host:port/path or rtsps://host:port/path")
	}
	creds := s.cfg.Credentials
	if strings.ContainsFunc(creds.Username+creds.Password, unicode.IsControl) {
		return nil, failed(fleet.ReasonAuthenticationFailed, "the user name or password has control characters, which cannot be sent: set them without")
	}
	return withCredentials(u, creds), nil
}

// pull pulls from one URL over the transports that are allowed for it.
func (s *Source) pull(ctx context.Context, u *base.URL) *failure {
	var f *failure
	for _, t := range s.transports(u) {
		f = s.connect(ctx, u, t)
		if f.wasLive {
			s.tcpFirst[u.Host] = t == fleet.TransportTCP
		}
		if ctx.Err() != nil || f.wasLive || !f.otherTransport {
			break
		}
		s.log.Debug("transport failed", "transport", t.String(), "reason", string(f.reason), "message", f.message)
	}
	return f
}

// transports returns what to try for a URL, in order.
func (s *Source) transports(u *base.URL) []fleet.Transport {
	switch {
	case s.cfg.Profile.Transport != fleet.TransportAuto:
		return []fleet.Transport{s.cfg.Profile.Transport}
	case u.Scheme == "rtsps":
		return []fleet.Transport{fleet.TransportTCP} // inside TLS, whether or not the camera has SRTP
	case s.tcpBefore(u):
		return []fleet.Transport{fleet.TransportTCP, fleet.TransportUDP}
	default:
		return []fleet.Transport{fleet.TransportUDP, fleet.TransportTCP}
	}
}

// tcpBefore tells whether TCP is tried before UDP for a URL.
func (s *Source) tcpBefore(u *base.URL) bool {
	if worked, known := s.tcpFirst[u.Host]; known {
		return worked
	}
	return s.cfg.TCPFirst
}

// setLive says that media comes, with the tracks and transport of s.profile.
func (s *Source) setLive() {
	s.log.Info("camera live", "transport", s.profile.Transport.String())
	s.setStatus(fleet.CameraStatus{State: fleet.CameraLive})
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

// connect pulls from one URL over one transport, and follows redirects.
func (s *Source) connect(ctx context.Context, u *base.URL, t fleet.Transport) *failure {
	const redirects = 3
	for range redirects + 1 {
		f := s.play(ctx, u, t)
		var r *redirectError
		if !errors.As(f.err, &r) {
			return f
		}
		next, problem := redirect(u, r.location)
		if problem != nil {
			return problem
		}
		u = next
	}
	return failed(fleet.ReasonProtocolError, fmt.Sprintf("the camera redirected more than %d times: set the URL it leads to", redirects))
}

// play holds one RTSP connection, from dialling to its end.
func (s *Source) play(ctx context.Context, u *base.URL, t fleet.Transport) *failure {
	c := newConnection(s, u, t)
	if err := c.client.Start(); err != nil {
		return c.failure(err)
	}
	var wg sync.WaitGroup
	closing, ended := make(chan struct{}), make(chan error, 1)
	wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-closing:
		}
		c.client.Close()
	})
	wg.Go(func() { ended <- c.client.Wait() })
	defer func() {
		close(closing)
		wg.Wait()
		c.closeWriter()
	}()

	if err := c.open(); err != nil {
		return c.failure(err)
	}
	return c.watch(ctx, ended)
}
