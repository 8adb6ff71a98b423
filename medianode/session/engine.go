// Package session is one viewer's session: SDP, RTCP, and the way of a stream's
// packets to the viewer, sealed. What carries them, ICE and DTLS, is package
// transport's.
//
// An Engine is made once per node. Engine.Open answers a viewer's offer;
// Session.Run then goes on until the viewer or the camera is gone.
//
// The output of all sessions is the engine's shards', one goroutine a core. A
// connected session is a viewer of one shard, which takes the bursts of each
// camera (stream.Burst) once for all its viewers of that camera, and seals each
// packet for each of them straight into the batch that it leaves in (package
// udp). Nothing is copied, allocated or locked for a packet and viewer, and a
// viewer that is slow delays nobody: UDP drops, a TCP connection has a bounded
// queue, and where packets are left out for a viewer it resumes at a keyframe,
// with sequence numbers that go on. The packets that viewers ask for again are the
// stream's, kept once for all of them.
//
// A viewer who comes between two keyframes gets at once what the stream has kept
// since the last, squeezed into a hundredth of a second, and then what is live
// (catchup.go); so does one that asks for a keyframe. A session has all of its
// camera's profiles, of which the viewer gets one: by the size of the box that it
// shows it in, by what the path carries, and by what the camera has (steer.go,
// which decides, and course.go, which has it so). It says which it needs
// (OpenConfig.Hold). A viewer who does not look gets nothing. Whatever is sent, past,
// live, or another profile, is to the viewer one sequence of numbers and
// timestamps that go on; each part of it is a run of its lane (lane.go), of which
// it can still ask for packets when the next has begun.
//
// What is negotiated: one video section and, if the viewer offers one, one
// audio section, both only sent. One payload type for each codec that both sides
// know, of several the one whose profile fits the camera best: H264 with
// packetization mode 1, H265, AV1, VP9 and VP8; OPUS, G722, PCMU and PCMA. What is
// sent is what the camera sends. Feedback: NACK, answered over RTX where offered
// (RFC 4588), within a budget, and twice while the viewer loses packets
// (resend.go); PLI and FIR, answered from what is kept, and by asking the camera for
// a keyframe; REMB, of a camera with several profiles. Header extensions
// (extension.go): the playout delay, which is 0 unless the viewer loses packets
// (cushion.go); the time of capture; and with REMB the time of sending. Sections
// that are not sent in are answered as inactive. What leaves is not paced by the
// path's state, which only chooses among the profiles. No transport-wide feedback,
// no forward error correction, no data channels.
//
// Encryption is DTLS-SRTP with the node as DTLS server, preferring
// AEAD_AES_128_GCM, then AEAD_AES_256_GCM, then AES128_CM_HMAC_SHA1_80: by what
// a packet costs. The viewer's certificate must have the offer's fingerprint,
// which an ICE restart may not change. ICE user name fragment and password are
// random for each session and restart. A viewer that has been silent for 20 s is
// given up; one that says goodbye (DTLS close_notify) ends its session at once.
//
// Sender reports (RFC 3550 §6.4.1) ride with a burst once a second, nothing
// ticks. Audio and video are put on one clock by stream.Stream.SenderClock: the
// camera's, if it reports on all its tracks, else their arrival.
//
// A panic in what a session does ends that session with fleet.Internal, and no
// other. pion's own goroutines cannot be guarded so.
package session

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"runtime"
	"runtime/debug"
	"sync"
	"time"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
	"fanlight/medianode/transport"
	"fanlight/medianode/udp"
)

// Config is how an Engine is made. Only UDP must be given.
type Config struct {
	Log         *slog.Logger // nil: nothing is logged
	UDP         *udp.Conn    // the socket of all sessions; the engine's from New on
	TCP         net.Listener // for ICE-TCP, on the same port; the engine's from New on; nil: UDP only
	Advertise   []netip.Addr // candidates' IP addresses; empty: those that UDP listens on
	MaxSessions int          // at a time, and as many orphans; 0: 1,000
	Shards      int          // goroutines that send; 0: one for each core that Go may use
	Timeouts    Timeouts
}

// Timeouts are when a viewer is given up. Each zero means the default.
type Timeouts struct {
	Connect time.Duration // from Run to connected: 30 s
	Silence time.Duration // without a word of the viewer until the session ends: 20 s
}

// DefaultMaxSessions is Config.MaxSessions if that is 0.
const DefaultMaxSessions = 1000

func (t Timeouts) withDefaults() Timeouts {
	set := func(d *time.Duration, to time.Duration) {
		if *d <= 0 {
			*d = to
		}
	}
	set(&t.Connect, 30*time.Second)
	set(&t.Silence, 20*time.Second)
	return t
}

// Engine makes sessions. Its methods may be called from any goroutine.
type Engine struct {
	// Static after New.
	log         *slog.Logger
	conn        *udp.Conn
	port        *transport.Port
	shards      []*shard
	senders     sync.WaitGroup // the shards' goroutines
	timeouts    Timeouts
	maxSessions int

	mu       sync.Mutex        // guards the rest
	sessions map[*Session]bool // true: an orphan, see Session.Orphan
	orphans  int               // of sessions
	ended    Stats             // of sessions that are gone
	closed   bool
	opening  sync.WaitGroup // calls of Open with a session; none begins once closed
}

// EngineStats are an engine's figures.
type EngineStats struct {
	Sessions   int            // open now
	Profiles   map[string]int // of these, those that are connected, by SRTP profile as in RFC 5764 §4.1.2 and RFC 7714 §14.2
	Total      Stats          // of all sessions ever
	TCPRefused uint64         // TCP connections refused because there were too many, or too many for one session or from one address
}

// New returns an Engine, which owns cfg.UDP and cfg.TCP from then on: Close
// closes them, and so does New when it fails.
func New(cfg Config) (*Engine, error) {
	if cfg.UDP == nil {
		return nil, errors.New("make a session engine: no UDP socket")
	}
	e, err := newEngine(cfg)
	if err != nil {
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
	if cfg.Shards <= 0 {
		cfg.Shards = runtime.GOMAXPROCS(0)
	}
	var err error
	e.port, err = transport.Listen(transport.PortConfig{
		Log: e.log, UDP: cfg.UDP, TCP: cfg.TCP, Advertise: cfg.Advertise, Viewers: e.maxSessions,
	})
	if err != nil {
		return nil, err
	}
	for range cfg.Shards {
		sh := newShard(cfg.UDP)
		e.shards = append(e.shards, sh)
		e.senders.Go(sh.run)
	}
	return e, nil
}

// Addresses returns the IP addresses of the sessions' candidates.
func (e *Engine) Addresses() []netip.Addr { return e.port.Addresses() }

// Stats returns the figures.
func (e *Engine) Stats() EngineStats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := EngineStats{Sessions: len(e.sessions), Total: e.ended, Profiles: make(map[string]int)}
	for session := range e.sessions {
		s.Total.add(session.Stats())
		if p := session.profile.Load(); p != nil {
			s.Profiles[p.String()]++
		}
	}
	s.TCPRefused = e.port.Stats().TCPRefused
	return s
}

// Sending says how packets leave, for the log.
func (e *Engine) Sending() string { return e.conn.Segmentation() }

// SocketStats returns the figures of the UDP socket.
func (e *Engine) SocketStats() udp.Stats { return e.conn.Stats() }

// Open answers a viewer's offer. The session must be run, or closed. If it is
// not to trickle, the answer has all candidates.
//
// The error is fleet.BadOffer, fleet.NoVideoSection, fleet.CodecUnsupported,
// fleet.NodeFull, or fleet.NodeStopping after Close. Its text is for the viewer,
// and names neither the session nor the camera.
func (e *Engine) Open(cfg OpenConfig) (s *Session, answer string, err error) {
	defer func() {
		if err != nil {
			if s != nil {
				s.Close()
			}
			s, answer = nil, ""
		}
	}()
	if len(cfg.Profiles) == 0 {
		return nil, "", fmt.Errorf("no profile: %w", fleet.InvalidArgument)
	}
	err = guard(func() error {
		o, err := parseOffer(cfg.Offer)
		if err != nil {
			return err
		}
		profiles := make([][]stream.Track, len(cfg.Profiles))
		for i, profile := range cfg.Profiles {
			profiles[i] = profile.Stream.Tracks()
		}
		p, err := negotiate(o, profiles, cfg.Codecs)
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
		s.course.camera = s.board().Status()
		if err := s.settle(); err != nil {
			return err
		}
		answer, err = s.answerSDP(o, !cfg.Trickle)
		return err
	})
	return s, answer, err
}

// shard returns the shard that a viewer is to be given: the one with the fewest,
// so that those of one camera are spread over all.
func (e *Engine) shard() *shard {
	var least *shard
	load := 0
	for _, sh := range e.shards {
		sh.mu.Lock()
		n := sh.load
		sh.mu.Unlock()
		if least == nil || n < load {
			least, load = sh, n
		}
	}
	return least
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
	for _, sh := range e.shards {
		sh.stop()
	}
	e.senders.Wait()
	if err := e.port.Close(); err != nil {
		return fmt.Errorf("close the session engine: %w", err)
	}
	return nil
}

// guard calls f and makes a panic its error.
func guard(f func() error) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = panicked(r)
		}
	}()
	return f()
}

// panicked returns the error of a panic.
func panicked(r any) error { return fmt.Errorf("%w: panic: %v\n%s", fleet.Internal, r, debug.Stack()) }
