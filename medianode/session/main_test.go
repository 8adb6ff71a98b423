package session_test

import (
	"context"
	"encoding/base64"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtp"
	"go.uber.org/goleak"

	"fanlight/internal/fleet"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
	"fanlight/medianode/stream"
	"fanlight/medianode/udp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is an engine on loopback with one camera.
type node struct {
	*session.Engine
	conn *udp.Conn
	cam  *camera
}

func newNode(t testing.TB, change func(*session.Config)) *node {
	t.Helper()
	conn, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), udp.Config{})
	if err != nil {
		t.Fatal(err)
	}
	cfg := session.Config{Log: slog.New(slog.DiscardHandler), UDP: conn}
	if cfg.TCP, err = net.Listen("tcp4", conn.AddrPort().String()); err != nil {
		_ = conn.Close()
		t.Skipf("the UDP port is taken for TCP: %v", err)
	}
	if change != nil {
		change(&cfg)
	}
	e, err := session.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Errorf("close the engine: %v", err)
		}
	})
	return &node{Engine: e, conn: conn, cam: newCamera(t)}
}

// only is the profiles of a camera that has one.
func only(s *stream.Stream) []session.Profile { return []session.Profile{{ID: "main", Stream: s}} }

// running is a session under Run.
type running struct {
	*session.Session
	err    error
	done   chan struct{} // closed when Run has returned
	cancel context.CancelFunc
}

// watch opens a session for a viewer and runs it. Candidates trickle both ways
// if the viewer does.
func (n *node) watch(t testing.TB, v *viewertest.Viewer, cfg session.OpenConfig) *running {
	t.Helper()
	ctx := testContext(t)
	offer, err := v.Offer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Camera, cfg.Offer = "lobby", offer
	if len(cfg.Profiles) == 0 {
		cfg.Profiles = only(n.cam.stream)
	}
	if cfg.ID == "" {
		cfg.ID = "s1"
	}
	s, answer, err := n.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Answer(answer); err != nil {
		t.Fatalf("%v\n%s", err, answer)
	}
	return run(t, s)
}

func run(t testing.TB, s *session.Session) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Session: s, done: make(chan struct{}), cancel: cancel}
	go func() {
		defer close(r.done)
		r.err = s.Run(ctx)
	}()
	t.Cleanup(r.stop)
	return r
}

func (r *running) stop() {
	r.cancel()
	<-r.done
}

// wait returns what Run returned.
func (r *running) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-r.done:
		return r.err
	case <-time.After(30 * time.Second):
		t.Fatal("the session still runs")
		return nil
	}
}

func testContext(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func newViewer(t testing.TB, cfg viewertest.Config) *viewertest.Viewer {
	t.Helper()
	v, err := viewertest.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return v
}

func wait(t testing.TB, v *viewertest.Viewer, ok func(viewertest.Report) bool) {
	t.Helper()
	if err := v.Wait(testContext(t), ok); err != nil {
		t.Fatal(err)
	}
}

func connected(r viewertest.Report) bool { return r.State == "connected" }

// camera writes a synthetic stream. Its pictures cannot be decoded.
type camera struct {
	t      testing.TB
	stream *stream.Stream
	asked  atomic.Int32 // keyframes that were asked for

	mu     sync.Mutex // guards the rest
	writer *stream.Writer
	seq    [2]uint16
	ts     [2]uint32
}

// Parameter sets of a constrained baseline stream of 640 by 360 pixels.
var (
	sps = unbase64("Z0LAHtkAoC/5cBEAAAMAAQAAAwA8DxYuSA==")
	pps = unbase64("aMuDyyA=")
)

func unbase64(s string) []byte {
	b, err := base64.StdEncoding.DecodeString(s)
	if err != nil {
		panic(err)
	}
	return b
}

func h264Track() stream.Track {
	return stream.Track{Kind: stream.Video, Codec: "H264", ClockRate: 90000, FMTP: "packetization-mode=1", ParameterSets: [][]byte{sps, pps}}
}

func pcmaTrack() stream.Track {
	return stream.Track{Kind: stream.Audio, Codec: "PCMA", ClockRate: 8000, Channels: 1}
}

func newCamera(t testing.TB) *camera {
	t.Helper()
	c := &camera{t: t, stream: stream.New(stream.Config{})}
	t.Cleanup(func() { c.stream.Close(nil) })
	return c
}

// connect begins a connection, anew with other sequence numbers.
func (c *camera) connect(tracks ...stream.Track) {
	c.t.Helper()
	w, err := c.stream.Publish(tracks)
	if err != nil {
		c.t.Fatal(err)
	}
	w.OnKeyframeRequest(func() { c.asked.Add(1) })
	c.mu.Lock()
	defer c.mu.Unlock()
	c.writer = w
	for i := range c.seq {
		c.seq[i] += 12345
		c.ts[i] += 987654
	}
}

func (c *camera) keyframeRequests() int { return int(c.asked.Load()) }

// frame writes one picture of n packets, at least, as track 0.
func (c *camera) frame(key bool, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ts[0] += 3600
	kind := byte(1)
	if key {
		kind = 5
		c.write(0, false, sps)
		c.write(0, false, pps)
	}
	for i := range n {
		fu := make([]byte, 1000)
		fu[0], fu[1] = 0x60|28, kind // FU-A (RFC 6184 §5.8)
		if i == 0 {
			fu[1] |= 0x80
			fu[2] = 0x80 // the picture's first slice
		}
		if i == n-1 {
			fu[1] |= 0x40
		}
		if n == 1 { // a fragmented unit has two fragments at least
			fu[0], fu[1] = 0x60|kind, 0x80
		}
		c.write(0, i == n-1, fu)
	}
}

// sound writes 20 ms of audio as track 1.
func (c *camera) sound() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ts[1] += 160
	c.write(1, false, make([]byte, 160))
}

func (c *camera) write(track int, marker bool, payload []byte) {
	c.seq[track]++
	c.writer.WriteRTP(track, &rtp.Packet{
		Header:  rtp.Header{Version: 2, Marker: marker, SequenceNumber: c.seq[track], Timestamp: c.ts[track], PayloadType: 96},
		Payload: payload,
	})
}

// play writes pictures until stop is called: a keyframe of 20 packets first and
// every 25, else 3 packets; and audio if there is.
func (c *camera) play(interval time.Duration, audio bool) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for i := 0; ; i++ {
			key, n := i%25 == 0, 3
			if key {
				n = 20
			}
			c.frame(key, n)
			if audio {
				c.sound()
			}
			select {
			case <-tick.C:
			case <-quit:
				return
			}
		}
	}()
	var once sync.Once
	stop = func() {
		once.Do(func() { close(quit) })
		<-done
	}
	c.t.Cleanup(stop)
	return stop
}

// want fails the test unless err is of a kind.
func want(t testing.TB, err error, kind fleet.Error) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("the error is %v, want %s", err, string(kind))
	}
}
