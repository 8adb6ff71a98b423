package session

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
	"fanlight/medianode/transport"
)

// OpenConfig is one viewer's session to be.
type OpenConfig struct {
	ID     fleet.SessionID
	Camera fleet.CameraID
	Offer  string // SDP, at most 64 KiB

	Profiles []Profile     // of the camera, best picture first; one at least
	Board    *stream.Board // where it is said what is seen of the camera; nil: the first profile's
	// Hold is called with a profile's index before the session takes it, and what it
	// returns when the session has no use for it any more. It must not block. nil:
	// nobody is told.
	Hold func(profile int) (release func())
	// Viewport is how the picture is shown at first; nil: not known.
	Viewport *Viewport

	// Trickle: the answer has no candidates; they come by OnCandidate.
	Trickle bool
	// OnCandidate takes our candidates, the end of them last, as an empty one.
	// Run calls it, one call at a time, so never before the answer was returned.
	// It should not block. nil: they are dropped.
	OnCandidate func(Candidate)
	// OnStatus takes what is seen of the camera, and which profile the viewer gets: at
	// Run's start, and whenever that changes. Run calls it, one call at a time. It
	// should not block. nil: nobody is told.
	OnStatus func(Status)
	// Codecs orders the answer's audio codecs by RTP encoding name, best first.
	// It excludes none: what is sent is the camera's codec.
	Codecs []string
}

// Profile is one of a camera's profiles.
type Profile struct {
	ID     string
	Stream *stream.Stream
}

// Viewport is how the picture is shown.
type Viewport struct {
	Width, Height int // of the box, in device pixels; 0: not known
	Visible       bool
}

// Status is what a viewer is told.
type Status struct {
	Camera  fleet.CameraStatus
	Profile string // that the viewer gets; empty: none yet, or nobody looks
}

// Session is one viewer's session. Run has one caller; the other methods may be
// called from any goroutine.
type Session struct {
	// Static after Open.
	engine    *Engine
	log       *slog.Logger
	cfg       OpenConfig
	plan      *plan
	lanes     [2]lane        // by stream.Kind, as the viewer begins with
	offered   []offeredCodec // of the video section
	transport *transport.Transport
	closing   chan struct{} // closed by Close
	sdpID     uint64        // of the answers' o= (RFC 8866 §5.2)

	feedback  feedback
	counts    counts
	connected atomic.Bool
	profile   atomic.Pointer[transport.Profile] // once connected
	viewer    atomic.Pointer[viewer]            // once connected

	course  course
	hanging sync.Mutex // held while the session is hung up

	negotiating sync.Mutex // guards the next two; taken before mu
	remote      *offer
	sdpVersion  uint64

	mu      sync.Mutex    // guards the rest
	closed  bool          // closing is closed
	failure error         // why, if it was not by Close
	running chan struct{} // closed when Run has returned; nil before Run
}

// counts are what a session's shard has counted.
type counts struct {
	packets, bytes  atomic.Uint64
	errors          atomic.Uint64
	held, full      atomic.Uint64
	resent, refused atomic.Uint64
	missed          atomic.Uint64
	spent           atomic.Uint64 // of refused: there was no budget left

	switches, replays atomic.Uint64
}

// Stats are one session's figures.
type Stats struct {
	Connected        bool   // media can flow
	Packets          uint64 // RTP packets sent, audio and video, without retransmissions
	Bytes            uint64 // of their payload
	WriteErrors      uint64 // packets that could not be sealed
	Held             uint64 // packets that were left out until the next keyframe
	Full             uint64 // packets that had no room on the viewer's TCP connection
	KeyframeRequests uint64 // PLI and FIR from the viewer
	Nacked           uint64 // packets that the viewer asked for again
	Resent           uint64 // packets that were sent again
	NackRefused      uint64 // packets that were not sent again because the viewer asked for too many
	NackMissed       uint64 // packets that were not sent again because they are no longer there
	PacketsLost      uint32 // video packets that the viewer reported as lost
	Switches         uint64 // from one profile to another
	Replays          uint64 // wishes for a keyframe that were answered from what is recent
}

// Path is what is known of the way to a viewer, by its reports.
type Path struct {
	Loss      float64       // share of video packets lost in the latest report, before they were sent again
	RoundTrip time.Duration // 0: unknown
	Jitter    time.Duration // of video at the viewer (RFC 3550 §6.4.1)
	Estimate  int64         // bits per second that it carries; 0: unknown
}

// Path returns what is known of the way to the viewer.
func (s *Session) Path() Path {
	f := &s.feedback
	return Path{
		Loss: float64(f.fraction.Load()) / 256, RoundTrip: s.roundTrip(), Jitter: time.Duration(f.jitter.Load()), Estimate: f.estimate.Load(),
	}
}

func newSession(e *Engine, cfg OpenConfig, o *offer, p *plan) *Session {
	return &Session{
		engine: e, cfg: cfg, course: newCourse(cfg), plan: p, remote: o, lanes: newLanes(o, p, len(cfg.Profiles) > 1), offered: o.sections[o.video].codecs,
		log:     e.log.With("session", string(cfg.ID), "camera", string(cfg.Camera)),
		closing: make(chan struct{}), sdpID: rand.Uint64() >> 2, sdpVersion: 1,
	}
}

// connect begins to listen for the viewer.
func (s *Session) connect() error {
	t, err := s.engine.port.Open(transport.Config{Remote: s.remote.ice, Fingerprints: s.remote.fingerprints, OnRTCP: s.hearAll})
	if err != nil {
		return fmt.Errorf("%w: %w", fleet.NodeStopping, err)
	}
	s.transport = t
	for _, addr := range s.remote.addresses {
		t.AddCandidate(addr)
	}
	return nil
}

// Restart answers an offer that restarts ICE (RFC 8445 §2.4): the same sections
// and certificate, new ICE credentials. The answer has all candidates. Media
// keeps its path until the viewer has found another. The error
// is fleet.BadOffer, and the session is as before; or
// fleet.PeerConnectionFailed, and the session is ending.
func (s *Session) Restart(text string) (answer string, err error) {
	s.negotiating.Lock()
	defer s.negotiating.Unlock()
	if s.isClosed() {
		return "", fmt.Errorf("restart ICE: %w: the session has ended", fleet.PeerConnectionFailed)
	}
	o, err := parseOffer(text)
	if err == nil {
		err = s.remote.checkRestart(o, s.plan)
	}
	if err != nil {
		return "", fmt.Errorf("restart ICE: %w", err)
	}
	err = guard(func() error {
		if _, err = s.transport.Restart(o.ice); err != nil {
			return err
		}
		for _, addr := range o.addresses {
			s.transport.AddCandidate(addr)
		}
		answer, err = s.answerSDP(o, true)
		return err
	})
	if err != nil {
		// The reason is not err's: the offer may be good and the connection is lost.
		err = fmt.Errorf("restart ICE: %w: %s", fleet.PeerConnectionFailed, err.Error())
		s.fail(err)
		return "", err
	}
	s.remote = o
	return answer, nil
}

// checkRestart tells whether an offer can restart ICE of a session.
func (o *offer) checkRestart(next *offer, p *plan) error {
	switch {
	case !o.sameSections(next):
		return badOffer("its media sections are not the session's: offer from the same peer connection")
	case !slices.Equal(o.fingerprints, next.fingerprints):
		return badOffer("its certificate is not the session's: an ICE restart keeps the DTLS connection (RFC 8842 §4)")
	case o.ice.Fragment == next.ice.Fragment:
		return badOffer("its ice-ufrag is the session's: offer with restartIce()")
	case o.video != next.video || o.audio != next.audio:
		return badOffer("it receives in other sections than the session does")
	}
	return p.checkKept(next)
}

// Run sends the camera's media to the viewer until ctx ends or the session is
// closed (then it returns nil), the connection fails or the viewer leaves
// (fleet.PeerConnectionFailed), the camera comes back with a codec that was not
// negotiated (fleet.CodecUnsupported), or the stream is closed (its error). When
// it returns the session is closed.
func (s *Session) Run(ctx context.Context) error {
	done := make(chan struct{})
	s.mu.Lock()
	if s.closed || s.running != nil {
		closed := s.closed
		s.mu.Unlock()
		if closed {
			return nil
		}
		return fmt.Errorf("run session %q a second time: %w", s.cfg.ID, fleet.Internal)
	}
	s.running = done
	s.mu.Unlock()
	defer s.Close()
	defer close(done)

	err := guard(func() error { return s.watch(ctx) })
	s.end()
	s.hangUp()
	if err == nil {
		s.mu.Lock()
		err = s.failure
		s.mu.Unlock()
	}
	if err != nil {
		return fmt.Errorf("session %q: %w", s.cfg.ID, err)
	}
	return nil
}

// punchInterval is the time between checks of the addresses that a viewer named.
const punchInterval = 50 * time.Millisecond

// watch follows the camera and the connection until one of them ends.
func (s *Session) watch(ctx context.Context) error {
	if s.cfg.Trickle && s.cfg.OnCandidate != nil {
		s.negotiating.Lock()
		candidates := s.local()
		s.negotiating.Unlock()
		for _, c := range candidates {
			s.cfg.OnCandidate(c)
		}
	}
	camera := s.board().Watch()
	defer camera.Close()
	connect := time.NewTimer(s.engine.timeouts.Connect)
	defer connect.Stop()
	silence := time.NewTimer(s.engine.timeouts.Connect + s.engine.timeouts.Silence)
	defer silence.Stop()
	punch := time.NewTimer(0)
	defer punch.Stop()
	look := time.NewTimer(time.Hour)
	defer look.Stop()
	defer s.letGo()
	for {
		select {
		case <-camera.Changed():
			status, err := camera.Status()
			if err != nil {
				return err
			}
			s.course.camera = status
			if err := s.steer(look); err != nil {
				return err
			}
		case <-s.course.review:
			if err := s.steer(look); err != nil {
				return err
			}
		case <-look.C:
			if err := s.steer(look); err != nil {
				return err
			}
		case <-s.transport.Changed():
			if err := s.moved(); err != nil {
				return err
			}
			if s.connected.Load() {
				if connect.Stop() {
					silence.Reset(s.engine.timeouts.Silence)
				}
			} else {
				punch.Reset(0)
			}
		case <-punch.C:
			if s.transport.Punch(time.Now()) {
				punch.Reset(punchInterval)
			}
		case <-connect.C:
			return fmt.Errorf("%w: not connected within %v", fleet.PeerConnectionFailed, s.engine.timeouts.Connect)
		case <-silence.C:
			left := s.engine.timeouts.Silence - s.transport.Silence(time.Now())
			if left <= 0 {
				return fmt.Errorf("%w: no path to the viewer, or it fell silent", fleet.PeerConnectionFailed)
			}
			silence.Reset(left)
		case <-s.closing:
			return nil
		case <-ctx.Done():
			return nil
		}
	}
}

// moved acts on what may have changed of the transport.
func (s *Session) moved() error {
	switch state, err := s.transport.State(); state {
	case transport.Failed:
		return fmt.Errorf("%w: %w", fleet.PeerConnectionFailed, err)
	case transport.Closed:
		if s.isClosed() {
			return nil
		}
		return fmt.Errorf("%w: the viewer closed it", fleet.PeerConnectionFailed)
	case transport.Connected:
		if !s.connected.Load() {
			return s.begin()
		}
	case transport.Connecting:
	}
	return nil
}

// begin lets media flow.
func (s *Session) begin() error {
	keys := s.transport.Keys()
	c, err := newCryptor(keys)
	if err != nil {
		return fmt.Errorf("%w: %w", fleet.PeerConnectionFailed, err)
	}
	sh := s.engine.shard()
	v := newViewer(s, sh, c)
	s.viewer.Store(v)
	s.profile.Store(&keys.Profile)
	s.connected.Store(true)
	s.course.connected = true
	v.paused, v.thin = s.course.choice.paused, s.course.choice.thin
	sh.admit(v, s.cfg.Profiles[s.course.choice.profile].Stream)
	s.course.look()
	s.log.Debug("session connected", "path", s.transport.Path().String())
	return nil
}

// Stats returns the figures.
func (s *Session) Stats() Stats {
	return Stats{
		Connected:        s.connected.Load(),
		Packets:          s.counts.packets.Load(),
		Bytes:            s.counts.bytes.Load(),
		WriteErrors:      s.counts.errors.Load(),
		Held:             s.counts.held.Load(),
		Full:             s.counts.full.Load(),
		KeyframeRequests: s.feedback.keyframeRequests.Load(),
		Nacked:           s.feedback.nacked.Load(),
		Resent:           s.counts.resent.Load(),
		NackRefused:      s.counts.refused.Load(),
		NackMissed:       s.counts.missed.Load(),
		PacketsLost:      s.feedback.lost.Load(),
		Switches:         s.counts.switches.Load(),
		Replays:          s.counts.replays.Load(),
	}
}

// add adds another session's counters.
func (s *Stats) add(o Stats) {
	s.Packets += o.Packets
	s.Bytes += o.Bytes
	s.WriteErrors += o.WriteErrors
	s.KeyframeRequests += o.KeyframeRequests
	s.Nacked += o.Nacked
	s.Resent += o.Resent
	s.NackRefused += o.NackRefused
	s.NackMissed += o.NackMissed
	s.Held += o.Held
	s.Full += o.Full
	s.Switches += o.Switches
	s.Replays += o.Replays
}

// Orphan takes the session out of those that Config.MaxSessions bounds, for its
// viewer is about to open another that takes its place: a gateway that dies must
// not fill the node. False: the session has ended, or as many are orphans
// already.
func (s *Session) Orphan() bool { return s.engine.orphan(s) }

// Close ends the session: it says goodbye to the viewer, and returns when Run
// has and all goroutines have ended. It must not be called by OnCandidate or
// OnStatus.
func (s *Session) Close() {
	running := s.end()
	s.hangUp()
	if running != nil {
		<-running
	}
	s.letGo()
	s.engine.release(s)
}

// end tells Run to return. It returns what Run closes then, or nil.
func (s *Session) end() chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	return s.running
}

// fail ends the session with an error, unless it has ended.
func (s *Session) fail(err error) {
	s.mu.Lock()
	if !s.closed {
		s.failure = err
	}
	s.mu.Unlock()
	s.end()
}

func (s *Session) isClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closed
}

// hangUp ends the output, and then the transport.
func (s *Session) hangUp() {
	s.hanging.Lock()
	defer s.hanging.Unlock()
	if v := s.viewer.Swap(nil); v != nil {
		v.shard.dismiss(v)
	}
	if s.transport != nil {
		s.transport.Close()
	}
}
