// Package simcam simulates RTSP cameras: for tests, for demonstrations, and for
// trying out what a fleet does when cameras fail.
//
// One [Server] is any number of cameras at one address, each at its own path:
//
//	sim, err := simcam.New(simcam.Config{Cameras: []string{"demo-0", "demo-1"}})
//	go sim.Run(ctx)
//	sim.URL("demo-0") // rtsp://127.0.0.1:41234/demo-0
//	sim.SetFault("demo-0", simcam.Freeze)
//
// A camera sends H264 (constrained baseline, 640x360, 25 frames a second, a
// keyframe each second) of a picture that moves and has a clock burnt in, over
// UDP or TCP, in RTP packets as large as real cameras send them. The clip is 10 s
// long and starts over; RTP timestamps go on. The cameras share it in memory and
// start at different places in it, so that their clocks differ.
//
// Each access unit carries the time at which it was sent, see [TimestampSEI] and
// [ParseTimestamp]. A picture loss indication (RTCP PLI) is answered by skipping
// to the next keyframe of the clip, which is sent at once, unless
// [Config.IgnorePLI] is set.
//
// Faults are set per camera, with [Server.SetFault] or over HTTP, see
// [Server.Handler]. A camera that refuses connections at the TCP level is made
// by ending the Run of its server: the cameras of a server share its listener.
//
// The package is no test of other people's cameras: it talks RTSP as gortsplib
// does, which Fanlight's source uses as well.
package simcam

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"

	"fanlight/internal/fleet"
)

// Auth is how a server asks for the password.
type Auth int

// The ways. The zero value is the default.
const (
	AuthAny    Auth = iota // Basic or Digest with MD5, as the client likes
	AuthBasic              // Basic only
	AuthDigest             // Digest with MD5 only (RFC 2617)
)

// Config says what cameras there are and how they behave. The zero values are
// the defaults; only Cameras is needed.
type Config struct {
	Log *slog.Logger // nil: nothing is logged

	Addr    string   // host and port; "": a free port of 127.0.0.1
	Cameras []string // names, which are the paths of their URLs
	Small   []string // more of them, of 320x180 pixels and with a keyframe each second: sub profiles

	Username, Password string // "": everyone may watch
	Auth               Auth
	TLS                *tls.Config     // if set, the URLs are rtsps
	Transport          fleet.Transport // the only one that SETUP accepts, others get 461; TransportAuto: UDP and TCP
	LoseUDP            bool            // media over UDP is accepted by SETUP and never arrives

	// KeyframeInterval is a whole number of seconds from 1 to 10; 0: 1 s. With
	// more than 1 s, the picture starts over at each keyframe.
	KeyframeInterval  time.Duration
	IgnorePLI         bool // a picture loss indication is counted, and nothing comes of it, as with most real cameras
	KeyframeAtPlay    bool // who begins to play gets a keyframe first, as many cameras have it
	OmitParameterSets bool // the SDP has neither SPS nor PPS; they are in-band only
	Audio             bool // a second track: PCMA, a tone of 1 kHz

	// Bitrate in bits a second is what the video has at least: pictures are filled
	// up with data that decoders drop. 0: what the clip has, less than 0.5 Mbit/s.
	Bitrate    int
	PacketSize int // bytes of payload that an RTP packet of video has at most, 100 at least; 0: 1460, or 1440 with TLS
}

// Server is simulated cameras at one address.
type Server struct {
	// Static after New.
	log      *slog.Logger
	cfg      Config
	clip     *clip
	listener net.Listener
	udp      [2]*net.UDPConn // RTP and RTCP
	cameras  []*camera

	mu      sync.RWMutex // guards the rest
	byName  map[string]*camera
	running bool
}

// maxBitrate is what an access unit is filled up for at most, in bits a second.
const maxBitrate = 100_000_000

// New opens the server's sockets, so that its address is known. They are closed
// by Run: a Server that was made must be run.
func New(cfg Config) (*Server, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Addr == "" {
		cfg.Addr = "127.0.0.1:0"
	}
	if cfg.Bitrate < 0 || cfg.Bitrate > maxBitrate {
		return nil, fmt.Errorf("bitrate %d: must be 0 to %d bits a second", cfg.Bitrate, maxBitrate)
	}
	if cfg.PacketSize != 0 && (cfg.PacketSize < 100 || cfg.PacketSize > payloadSize) {
		return nil, fmt.Errorf("packet size %d: must be 100 to %d bytes", cfg.PacketSize, payloadSize)
	}
	clip, err := loadClip(cfg.KeyframeInterval)
	if err != nil {
		return nil, err
	}
	s := &Server{log: cfg.Log, cfg: cfg, clip: clip, byName: make(map[string]*camera)}
	small, err := parseClip(smallData)
	if err != nil {
		return nil, err
	}
	for i, name := range slices.Concat(cfg.Cameras, cfg.Small) {
		if name == "" || strings.ContainsAny(name, "/?# ") || s.byName[name] != nil {
			return nil, fmt.Errorf("simulated camera %q: names must be different, and not empty, and have no %q", name, "/?# ")
		}
		shown := clip
		if i >= len(cfg.Cameras) {
			shown = small
		}
		cam := newCamera(name, i, shown, cfg)
		s.cameras = append(s.cameras, cam)
		s.byName[name] = cam
	}
	var lc net.ListenConfig
	s.listener, err = lc.Listen(context.Background(), "tcp", cfg.Addr) // resolves no name that takes time
	if err != nil {
		return nil, fmt.Errorf("listen for RTSP: %w", err)
	}
	host, _, err := net.SplitHostPort(s.listener.Addr().String())
	if err == nil {
		s.udp, err = listenPair(context.Background(), &lc, host)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("listen for RTP: %w", err), s.listener.Close())
	}
	return s, nil
}

// Addr returns the address of the server, with the port that was chosen.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// URL returns a camera's URL, without credentials.
func (s *Server) URL(camera string) string {
	u := url.URL{Scheme: "rtsp", Host: s.listener.Addr().String(), Path: "/" + camera}
	if s.cfg.TLS != nil {
		u.Scheme = "rtsps"
	}
	return u.String()
}

// Run serves until ctx ends, then closes the sockets and returns nil. It can be
// called once.
func (s *Server) Run(ctx context.Context) error {
	server := &gortsplib.Server{
		Handler:        &handler{s},
		RTSPAddress:    s.listener.Addr().String(),
		TLSConfig:      s.cfg.TLS,
		UDPRTPAddress:  s.udp[0].LocalAddr().String(),
		UDPRTCPAddress: s.udp[1].LocalAddr().String(),
		WriteQueueSize: 2048,
		AuthMethods:    authMethods(s.cfg.Auth),
		Listen:         func(string, string) (net.Listener, error) { return s.listener, nil },
		ListenPacket:   s.listenPacket,
	}
	started, err := s.start(server)
	if err != nil {
		if started {
			server.Close()
		}
		return fmt.Errorf("start simulated cameras: %w", err)
	}

	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.pace(ctx) })
	wg.Go(func() { <-ctx.Done(); server.Close() })
	err = server.Wait()
	cancel()
	wg.Wait()
	for _, cam := range s.cameras {
		cam.stream.Close()
	}
	if errors.As(err, &liberrors.ErrServerTerminated{}) {
		return nil
	}
	return fmt.Errorf("simulated cameras: %w", err)
}

// start starts the server and opens the cameras' streams on it, with the lock
// held, so that requests wait for them. It tells whether the server was started.
func (s *Server) start(server *gortsplib.Server) (started bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.running {
		return false, errors.New("run a second time")
	}
	s.running = true
	if err := server.Start(); err != nil {
		return false, err
	}
	for _, cam := range s.cameras {
		if err := cam.open(server); err != nil {
			return true, err
		}
	}
	return true, nil
}

// listenPacket hands the sockets to gortsplib.
func (s *Server) listenPacket(_, address string) (net.PacketConn, error) {
	for _, c := range s.udp {
		if c.LocalAddr().String() == address {
			if s.cfg.LoseUDP {
				return lossyConn{c}, nil
			}
			return c, nil
		}
	}
	return nil, fmt.Errorf("listen on %s: not a socket of this server", address)
}

// lossyConn sends nothing.
type lossyConn struct{ *net.UDPConn }

func (c lossyConn) WriteTo(b []byte, _ net.Addr) (int, error) { return len(b), nil }

// listenPair opens an even UDP port and the next one (RFC 3550 §11).
func listenPair(ctx context.Context, lc *net.ListenConfig, host string) ([2]*net.UDPConn, error) {
	listen := func(port int) (*net.UDPConn, error) {
		c, err := lc.ListenPacket(ctx, "udp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return nil, err
		}
		return c.(*net.UDPConn), nil //nolint:errcheck // that is what it is for "udp"
	}
	var last error
	for range 100 {
		probe, err := listen(0)
		if err != nil {
			return [2]*net.UDPConn{}, err
		}
		port := probe.LocalAddr().(*net.UDPAddr).Port &^ 1 //nolint:errcheck // that is what it is for "udp"
		if err := probe.Close(); err != nil {
			return [2]*net.UDPConn{}, err
		}
		rtp, err := listen(port)
		if err != nil {
			last = err
			continue
		}
		rtcp, err := listen(port + 1)
		if err != nil {
			last = errors.Join(err, rtp.Close())
			continue
		}
		return [2]*net.UDPConn{rtp, rtcp}, nil
	}
	return [2]*net.UDPConn{}, fmt.Errorf("no free pair of ports: %w", last)
}

func authMethods(a Auth) []auth.VerifyMethod {
	switch a {
	case AuthBasic:
		return []auth.VerifyMethod{auth.VerifyMethodBasic}
	case AuthDigest:
		return []auth.VerifyMethod{auth.VerifyMethodDigestMD5}
	default:
		return []auth.VerifyMethod{auth.VerifyMethodBasic, auth.VerifyMethodDigestMD5}
	}
}
