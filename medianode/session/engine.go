// Package session is one viewer's peer connection: SDP, ICE, DTLS, SRTP and
// RTCP, and the pump that sends a stream's bursts through it. It is the only
// user of pion/webrtc.
//
// An Engine is made once per node and owns the node's UDP mux and ICE-TCP mux,
// so that all viewers share one port. Engine.Open answers a viewer's offer;
// Session.Run then carries the camera's media until the viewer or the camera
// is gone. Whole bursts are handed to a session (stream.Burst), which writes
// them with its own SSRC and payload type and flushes the socket after each:
// another way of sending, with less work a packet, can take that place without
// stream or signaling noticing.
//
// What is negotiated: one video section and, if the viewer offers one, one
// audio section, both only sent. H264 with packetization mode 1 on the offered
// payload type whose profile fits the camera best; OPUS, PCMU and PCMA as the
// camera sends them. Feedback: NACK, answered over RTX where offered (RFC 4588)
// from the session's last 512 packets and within a budget (resend.go); PLI and FIR, which ask the camera for a
// keyframe. Sections that are not sent in are answered as inactive. No header
// extensions, no congestion control, no data channels.
//
// Encryption is DTLS-SRTP with the node as DTLS server, preferring
// AEAD_AES_128_GCM, then AEAD_AES_256_GCM, then AES128_CM_HMAC_SHA1_80: by what
// a packet costs. The viewer's certificate must have the offer's fingerprint,
// which an ICE restart may not change. ICE user name fragment and password are
// random for each session and restart.
//
// ICE is full ICE as the controlled agent. Candidates are host candidates over
// UDP and passive TCP for the advertised addresses. The node resolves no names
// and dials nothing: a viewer's .local and TCP candidates are left alone, for a
// viewer that can reach the node is learnt from its own checks. A viewer that
// falls silent is disconnected after 5 s and given up after 20 s; consent is
// checked every 2 s (RFC 7675). One that says goodbye (DTLS close_notify) ends
// its session at once.
//
// Sender reports (RFC 3550 §6.4.1) ride with a burst once a second, nothing
// ticks. Audio and video are put on one clock by stream.Stream.SenderClock: the
// camera's, if it reports on all its tracks, else their arrival.
//
// A panic in a session's own goroutines and calls ends that session with
// fleet.Internal. pion's own goroutines cannot be guarded so.
package session

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/interceptor/pkg/nack"
	"github.com/pion/webrtc/v4"

	"fanlight/internal/fleet"
	"fanlight/medianode/udp"
)

// Config is how an Engine is made. Only UDP must be given.
type Config struct {
	Log         *slog.Logger // nil: nothing is logged
	UDP         *udp.Conn    // the socket of all sessions; the engine's from New on
	TCP         net.Listener // for ICE-TCP, on the same port; the engine's from New on; nil: UDP only
	Advertise   []netip.Addr // candidates' IP addresses; empty: those that UDP listens on
	MaxSessions int          // at a time, and as many orphans; 0: 1,000, some 2 GB of memory with today's retransmission buffers
	Timeouts    Timeouts
}

// Timeouts are when a viewer is given up. Each zero means the default.
type Timeouts struct {
	Connect      time.Duration // from Run to connected: 30 s
	Disconnected time.Duration // silence until ICE calls it disconnected: 5 s
	Failed       time.Duration // silence until the session ends: 20 s; more than Disconnected
	Keepalive    time.Duration // between checks of consent: 2 s
}

// DefaultMaxSessions is Config.MaxSessions if that is 0.
const DefaultMaxSessions = 1000

const (
	// resendPackets is how many packets are kept for NACK in each session: 2 s
	// of 2 Mbit/s. A power of two, as pion demands.
	resendPackets = 512
	// gatherTimeout bounds the wait for our own candidates. They are known and
	// there is nobody to ask, so that it takes a millisecond.
	gatherTimeout = 2 * time.Second
)

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	set(&t.Connect, 30*time.Second)
	set(&t.Disconnected, 5*time.Second)
	set(&t.Failed, 20*time.Second)
	set(&t.Keepalive, 2*time.Second)
	return t
}

// Engine makes sessions. Its methods may be called from any goroutine.
type Engine struct {
	// Static after New.
	log         *slog.Logger
	conn        *udp.Conn
	settings    webrtc.SettingEngine
	responder   interceptor.Factory // answers NACKs
	timeouts    Timeouts
	maxSessions int
	udpMux      *udpMux
	tcpMux      *tcpMux // nil: no ICE-TCP
	listener    *tcpListener
	addrs       []netip.Addr

	mu       sync.Mutex        // guards the rest
	sessions map[*Session]bool // true: an orphan, see Session.Orphan
	orphans  int               // of sessions
	ended    Stats             // of sessions that are gone
	closed   bool
	opening  sync.WaitGroup // calls of Open with a session; none begins once closed
}

// EngineStats are an engine's figures.
type EngineStats struct {
	Sessions   int    // open now
	Total      Stats  // of all sessions ever
	TCPRefused uint64 // TCP connections refused because there were too many, or too many for one session or from one address
}

// New returns an Engine, which owns cfg.UDP and cfg.TCP from then on: Close
// closes them, and so does New when it fails.
func New(cfg Config) (*Engine, error) {
	if cfg.UDP == nil {
		return nil, errors.New("make a session engine: no UDP socket")
	}
	e, err := newEngine(cfg)
	if err != nil {
		_ = cfg.UDP.Close()
		if cfg.TCP != nil {
			_ = cfg.TCP.Close()
		}
		return nil, fmt.Errorf("make a session engine: %w", err)
	}
	return e, nil
}

func newEngine(cfg Config) (*Engine, error) {
	e := &Engine{
		log: cfg.Log, conn: cfg.UDP, timeouts: cfg.Timeouts.withDefaults(), maxSessions: cfg.MaxSessions,
		sessions: make(map[*Session]bool),
	}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	if e.maxSessions <= 0 {
		e.maxSessions = DefaultMaxSessions
	}
	if e.timeouts.Failed <= e.timeouts.Disconnected {
		return nil, fmt.Errorf("timeout failed %v is not longer than disconnected %v", e.timeouts.Failed, e.timeouts.Disconnected)
	}
	var err error
	if e.addrs, err = candidateAddresses(cfg.UDP.AddrPort().Addr(), cfg.Advertise, net.InterfaceAddrs); err != nil {
		return nil, err
	}
	network, err := newNetwork(e.addrs)
	if err != nil {
		return nil, err
	}
	e.responder, err = nack.NewResponderInterceptor(nack.ResponderSize(resendPackets), nack.WithResponderLoggerFactory(pionLog{e.log}))
	if err != nil {
		return nil, fmt.Errorf("make the NACK responder: %w", err)
	}
	if err := e.set(network, cfg.TCP != nil); err != nil {
		return nil, err
	}
	// From here on nothing fails: the muxes run.
	e.udpMux = newUDPMux(cfg.UDP, e.addrs, network, pionLog{e.log})
	e.settings.SetICEUDPMux(e.udpMux)
	if cfg.TCP != nil {
		e.listener = newTCPListener(cfg.TCP, tcpLimits{conns: 2 * e.maxSessions, waiting: tcpWaiting, fragment: tcpFragment, answer: tcpAnswer})
		e.tcpMux = newTCPMux(e.listener, pionLog{e.log})
		e.settings.SetICETCPMux(e.tcpMux)
	}
	return e, nil
}

// set makes the settings of all peer connections.
func (e *Engine) set(network *network, tcp bool) error {
	se := &e.settings
	se.LoggerFactory = pionLog{e.log}
	se.SetNet(network)
	se.SetNetworkTypes(networkTypes(e.addrs, tcp))
	se.SetIncludeLoopbackCandidate(true) // only the network's one interface is asked
	se.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	se.DisableActiveTCP(true) // a viewer must not make the node dial
	se.SetICETimeouts(e.timeouts.Disconnected, e.timeouts.Failed-e.timeouts.Disconnected, e.timeouts.Keepalive)
	se.SetSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AEAD_AES_256_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80)
	// The handshake's cookie (RFC 6347 §4.2.1) proves what ICE has proven
	// already, that the viewer is where it says, and costs a round trip.
	se.SetDTLSInsecureSkipHelloVerify(true)
	if err := se.SetAnsweringDTLSRole(webrtc.DTLSRoleServer); err != nil {
		return fmt.Errorf("set the DTLS role: %w", err)
	}
	return nil
}

// Addresses returns the IP addresses of the sessions' candidates.
func (e *Engine) Addresses() []netip.Addr { return e.addrs }

// Stats returns the figures.
func (e *Engine) Stats() EngineStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := EngineStats{Sessions: len(e.sessions), Total: e.ended}
	for session := range e.sessions {
		s.Total.add(session.Stats())
	}
	if e.listener != nil {
		s.TCPRefused = e.listener.refused.Load()
	}
	return s
}

// SocketStats returns the figures of the UDP socket.
func (e *Engine) SocketStats() udp.Stats { return e.conn.Stats() }

// Open answers a viewer's offer. The session must be run, or closed. If it is
// not to trickle, the answer has all candidates, for which Open waits, until
// ctx ends at most; nothing else of the session depends on ctx.
//
// The error is fleet.BadOffer, fleet.NoVideoSection, fleet.CodecUnsupported,
// fleet.NodeFull, or fleet.NodeStopping after Close. Its text is for the viewer,
// and names neither the session nor the camera.
func (e *Engine) Open(ctx context.Context, cfg OpenConfig) (s *Session, answer string, err error) {
	defer func() {
		if err != nil {
			if s != nil {
				s.Close()
			}
			s, answer = nil, ""
		}
	}()
	if cfg.Stream == nil {
		return nil, "", fmt.Errorf("no stream: %w", fleet.InvalidArgument)
	}
	err = guard(func() error {
		o, err := parseOffer(cfg.Offer)
		if err != nil {
			return err
		}
		p, err := negotiate(o, cfg.Stream.Tracks(), cfg.Codecs)
		if err != nil {
			return err
		}
		if s, err = e.admit(cfg, o, p); err != nil {
			return err
		}
		defer e.opening.Done()
		if err := s.connect(); err != nil {
			return err
		}
		answer, err = s.answer(ctx, o, !cfg.Trickle)
		return err
	})
	return s, answer, err
}

// admit makes a session if there is room. The caller is then one of opening.
func (e *Engine) admit(cfg OpenConfig, o *offer, p *plan) (*Session, error) {
	s := newSession(e, cfg, o, p)
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fleet.NodeStopping
	}
	if len(e.sessions)-e.orphans >= e.maxSessions {
		return nil, fmt.Errorf("%w: it has %d, its limit", fleet.NodeFull, e.maxSessions)
	}
	e.sessions[s] = false
	e.opening.Add(1)
	return s, nil
}

// orphan is Session.Orphan.
func (e *Engine) orphan(s *Session) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	orphan, ok := e.sessions[s]
	if ok && !orphan && e.orphans < e.maxSessions {
		orphan = true
		e.sessions[s] = true
		e.orphans++
	}
	return orphan
}

func (e *Engine) release(s *Session) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if orphan, ok := e.sessions[s]; ok {
		delete(e.sessions, s)
		e.ended.add(s.Stats())
		if orphan {
			e.orphans--
		}
	}
}

// Close waits for calls of Open, some milliseconds, closes all sessions, waits
// for them, and closes the socket and the listener. A second call does nothing.
func (e *Engine) Close() error {
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return nil
	}
	e.closed = true
	e.mu.Unlock()
	e.opening.Wait()
	e.mu.Lock()
	open := make([]*Session, 0, len(e.sessions))
	for s := range e.sessions {
		open = append(open, s)
	}
	e.mu.Unlock()

	var wg sync.WaitGroup
	for _, s := range open {
		wg.Go(s.Close)
	}
	wg.Wait()
	err := e.udpMux.Close()
	err = errors.Join(err, e.conn.Close())
	if e.tcpMux != nil {
		err = errors.Join(err, e.tcpMux.Close())
	}
	if err != nil {
		return fmt.Errorf("close the session engine: %w", err)
	}
	return nil
}

// guard calls f and makes a panic its error.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: panic: %v\n%s", fleet.Internal, r, debug.Stack())
		}
	}()
	return f()
}
