package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// OpenConfig is one viewer's session to be.
type OpenConfig struct {
	ID     fleet.SessionID
	Camera fleet.CameraID
	Stream *stream.Stream
	Offer  string // SDP, at most 64 KiB

	// Trickle: the answer has no candidates; they come by OnCandidate.
	Trickle bool
	// OnCandidate takes our candidates, the end of them last, as an empty one.
	// Run calls it, one call at a time, so never before the answer was returned.
	// It should not block. nil: they are dropped.
	OnCandidate func(Candidate)
	// OnStatus takes what is seen of the camera: at Run's start, and whenever
	// that changes. Run calls it, one call at a time; while it blocks no media is
	// sent. nil: nobody is told.
	OnStatus func(fleet.CameraStatus)
	// Codecs orders the answer's audio codecs by RTP encoding name, best first.
	// It excludes none: what is sent is the camera's codec.
	Codecs []string
}

// Session is one viewer's peer connection. Run has one caller; the other
// methods may be called from any goroutine.
type Session struct {
	// Static after Open.
	engine   *Engine
	log      *slog.Logger
	stream   *stream.Stream
	cfg      OpenConfig
	plan     *plan
	pc       *webrtc.PeerConnection
	video    *track
	audio    *track // nil: the viewer gets none
	changed  chan struct{}
	closing  chan struct{} // closed by Close
	gather   *gathering
	feedback feedback
	resends  *resends

	subscription  atomic.Pointer[stream.Subscription]
	connected     atomic.Bool
	keyframeAsked time.Time // owned by the video's RTCP reader

	negotiating sync.Mutex // guards remote; held over calls of pion's that change descriptions; taken before mu
	remote      *offer

	mu      sync.Mutex    // guards the rest
	closed  bool          // closing is closed
	failure error         // why, if it was not by Close
	running chan struct{} // closed when Run has returned; nil before Run
}

// Stats are one session's figures.
type Stats struct {
	Connected        bool   // media can flow
	Packets          uint64 // RTP packets sent, audio and video, without retransmissions
	Bytes            uint64 // of their payload
	WriteErrors      uint64 // packets that could not be sent
	KeyframeRequests uint64 // PLI and FIR from the viewer
	Nacked           uint64 // packets that the viewer asked for again
	Resent           uint64 // packets that were sent again
	NackRefused      uint64 // packets that were not sent again because the viewer asked for too many
	PacketsLost      uint32 // video packets that the viewer reported as lost
}

func newSession(e *Engine, cfg OpenConfig, o *offer, p *plan) *Session {
	s := &Session{
		engine: e, stream: cfg.Stream, cfg: cfg, plan: p, remote: o,
		log:     e.log.With("session", string(cfg.ID), "camera", string(cfg.Camera)),
		changed: make(chan struct{}, 1), closing: make(chan struct{}), gather: newGathering(cfg.Trickle),
	}
	s.video = &track{
		kind: stream.Video, streamID: string(cfg.Camera), bind: p.video.payloadType,
		payloads: map[string]uint8{p.video.name: p.video.payloadType},
	}
	if !p.quiet && len(p.audio) > 0 {
		s.audio = &track{kind: stream.Audio, streamID: string(cfg.Camera), bind: p.audio[p.first].payloadType, payloads: map[string]uint8{}}
		for name, c := range p.audio {
			s.audio.payloads[name] = c.payloadType
		}
	}
	s.resends = &resends{sent: s.sent, original: s.original}
	return s
}

// sent returns how many RTP packets were sent, without those sent again.
func (s *Session) sent() uint64 {
	var n uint64
	for _, t := range s.tracks() {
		n += t.packets.Load()
	}
	return n
}

// original tells whether a packet that pion writes is one of the pump's, whose
// headers pion hands on: those it sends again have headers of its own.
func (s *Session) original(h *rtp.Header) bool {
	return h == &s.video.header || s.audio != nil && h == &s.audio.header
}

// connect makes the peer connection with its tracks.
func (s *Session) connect() error {
	engine, err := s.plan.mediaEngine()
	if err != nil {
		return err
	}
	registry := new(interceptor.Registry)
	registry.Add(s.resends) // before the responder
	registry.Add(s.engine.responder)
	api := webrtc.NewAPI(webrtc.WithSettingEngine(s.engine.settings), webrtc.WithMediaEngine(engine), webrtc.WithInterceptorRegistry(registry))
	if s.pc, err = api.NewPeerConnection(webrtc.Configuration{}); err != nil {
		return fmt.Errorf("make a peer connection: %w", err)
	}
	s.pc.OnConnectionStateChange(func(webrtc.PeerConnectionState) { signal(s.changed) })
	s.pc.OnICECandidate(s.gather.found)
	for _, t := range s.tracks() {
		tr, err := s.pc.AddTransceiverFromTrack(t, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionSendonly})
		if err != nil {
			return fmt.Errorf("add the %s track: %w", t.kind, err)
		}
		t.sender = tr.Sender()
	}
	return nil
}

func (s *Session) tracks() []*track {
	if s.audio == nil {
		return []*track{s.video}
	}
	return []*track{s.video, s.audio}
}

// answer answers an offer; complete: with all candidates. Errors of pion's are
// the offer's fault.
func (s *Session) answer(ctx context.Context, o *offer, complete bool) (string, error) {
	text, err := o.forPion(s.plan)
	if err != nil {
		return "", err
	}
	if err := s.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeOffer, SDP: text}); err != nil {
		return "", badOffer("%s", clip(err.Error()))
	}
	answer, err := s.pc.CreateAnswer(nil)
	if err != nil {
		return "", badOffer("no answer can be made: %s", clip(err.Error()))
	}
	if err := s.pc.SetLocalDescription(answer); err != nil {
		return "", badOffer("no answer can be made: %s", clip(err.Error()))
	}
	if !complete {
		return answer.SDP, nil
	}
	ctx, cancel := context.WithTimeout(ctx, gatherTimeout)
	defer cancel()
	select {
	case <-s.gather.complete:
	case <-ctx.Done(): // what there is will do
	}
	return s.pc.LocalDescription().SDP, nil
}

// Restart answers an offer that restarts ICE (RFC 8445 §2.4): the same sections
// and certificate, new ICE credentials. The answer has all candidates. Packets
// sent until the new path is found are lost, for pion leaves the old one at
// once; the viewer asks for them again (NACK). The error
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
	s.gather.stop()
	select {
	case <-s.gather.complete: // of the answer before
	default:
	}
	err = guard(func() error {
		answer, err = s.answer(context.Background(), o, true)
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
	case o.fingerprints != next.fingerprints:
		return badOffer("its certificate is not the session's: an ICE restart keeps the DTLS connection (RFC 8842 §4)")
	case o.ufrag == next.ufrag:
		return badOffer("its ice-ufrag is the session's: offer with restartIce()")
	case o.video != next.video || o.audio != next.audio:
		return badOffer("it receives in other sections than the session does")
	}
	for _, c := range next.sections[next.video].codecs {
		if c.payloadType == p.video.payloadType && c.name == p.video.name {
			return nil
		}
	}
	return badOffer("payload type %d is no longer %s", p.video.payloadType, p.video.name)
}

// Run sends the camera's media to the viewer until ctx ends or the session is
// closed (then it returns nil), the peer connection fails or the viewer leaves
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

	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	sub := s.stream.Subscribe(stream.SubscribeOptions{})
	defer sub.Close()
	s.subscription.Store(sub)

	var wg sync.WaitGroup
	for _, t := range s.tracks() {
		wg.Go(func() { // ends with the peer connection
			if err := guard(func() error { s.readRTCP(t); return nil }); err != nil {
				s.log.Error("rtcp reader failed", "error", err)
			}
		})
	}
	results := make(chan error, 3)
	for _, f := range []func(context.Context) error{s.watch, s.deliver, func(ctx context.Context) error { return s.pump(ctx, sub) }} {
		wg.Go(func() { results <- guard(func() error { return f(ctx) }) })
	}
	var err error
	select {
	case err = <-results:
	case <-ctx.Done():
	case <-s.closing:
	}
	cancel()
	s.hangUp()
	wg.Wait()
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

// watch follows the peer connection until it fails.
func (s *Session) watch(ctx context.Context) error {
	deadline := time.NewTimer(s.engine.timeouts.Connect)
	defer deadline.Stop()
	for {
		//nolint:exhaustive // in the other states there is nothing to do but wait
		switch s.pc.ConnectionState() {
		case webrtc.PeerConnectionStateConnected:
			if !s.connected.Load() {
				deadline.Stop()
				if err := s.begin(); err != nil {
					return err
				}
			}
		case webrtc.PeerConnectionStateFailed:
			if s.pc.ICEConnectionState() == webrtc.ICEConnectionStateFailed {
				return fmt.Errorf("%w: no path to the viewer, or it fell silent", fleet.PeerConnectionFailed)
			}
			return fmt.Errorf("%w: the DTLS handshake failed", fleet.PeerConnectionFailed)
		case webrtc.PeerConnectionStateClosed:
			if s.isClosed() || ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("%w: the viewer closed it", fleet.PeerConnectionFailed)
		}
		select {
		case <-s.changed:
		case <-deadline.C:
			return fmt.Errorf("%w: not connected within %v", fleet.PeerConnectionFailed, s.engine.timeouts.Connect)
		case <-ctx.Done():
			return nil
		}
	}
}

// begin lets media flow. pion says it is connected a moment before SRTP is up,
// and drops what is written meanwhile without a word; setting a deadline, here
// none, waits for SRTP.
func (s *Session) begin() error {
	for _, t := range s.tracks() {
		if err := t.sender.SetReadDeadline(time.Time{}); err != nil {
			return fmt.Errorf("%w: start SRTP: %w", fleet.PeerConnectionFailed, err)
		}
	}
	s.connected.Store(true)
	s.log.Debug("session connected")
	if sub := s.subscription.Load(); sub != nil {
		sub.RequestKeyframe()
	}
	return nil
}

// deliver hands our candidates to the viewer.
func (s *Session) deliver(ctx context.Context) error {
	for {
		for _, c := range s.gather.take() {
			if s.cfg.OnCandidate != nil {
				s.cfg.OnCandidate(c)
			}
		}
		select {
		case <-s.gather.wake:
		case <-ctx.Done():
			return nil
		}
	}
}

// pump sends the stream's bursts, from the first keyframe after the peer
// connection is connected.
func (s *Session) pump(ctx context.Context, sub *stream.Subscription) error {
	begun := false
	var reported time.Time
	for {
		ev, err := sub.Next(ctx)
		if err != nil {
			if ctx.Err() != nil {
				return nil //nolint:nilerr // the end that was asked for
			}
			return err
		}
		switch ev := ev.(type) {
		case stream.StatusChange:
			if s.cfg.OnStatus != nil {
				s.cfg.OnStatus(ev.Status)
			}
		case *stream.Burst:
			if !begun {
				begun = s.connected.Load() && (ev.Keyframe || trackOf(s.stream.Tracks(), stream.Video) == nil)
			}
			if !begun {
				continue
			}
			t, err := s.send(ev)
			if err != nil {
				return err
			}
			if now := time.Now(); t != nil && now.Sub(reported) >= reportInterval {
				reported = now
				s.report(t, now)
			}
		}
	}
}

// send writes a burst and flushes the socket. It returns the track, nil if the
// burst was of none that the viewer takes.
func (s *Session) send(b *stream.Burst) (*track, error) {
	t := s.video
	if b.Kind == stream.Audio {
		t = s.audio
	}
	if t == nil {
		return nil, nil
	}
	ok := t.write(b)
	s.engine.conn.Flush()
	switch {
	case ok:
		return t, nil
	case b.Kind == stream.Audio:
		return nil, nil // the picture goes on
	}
	s.negotiating.Lock()
	defer s.negotiating.Unlock()
	return nil, codecUnsupported(b.Codec, s.remote.sections[s.remote.video].codecs)
}

// Stats returns the figures.
func (s *Session) Stats() Stats {
	st := Stats{
		Connected:        s.connected.Load(),
		Packets:          s.sent(),
		KeyframeRequests: s.feedback.keyframeRequests.Load(),
		Nacked:           s.resends.asked.Load(),
		Resent:           s.resends.resent.Load(),
		NackRefused:      s.resends.refused.Load(),
		PacketsLost:      s.feedback.lost.Load(),
	}
	for _, t := range s.tracks() {
		st.Bytes += t.bytes.Load()
		st.WriteErrors += t.errors.Load()
	}
	return st
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

// hangUp closes the peer connection and waits for pion's goroutines.
func (s *Session) hangUp() {
	if s.pc == nil {
		return
	}
	err := guard(s.pc.GracefulClose)
	if err != nil && !errors.Is(err, context.Canceled) {
		s.log.Debug("peer connection closed", "error", err)
	}
}
