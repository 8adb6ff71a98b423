package session_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/rtp"

	"fanlight/internal/fleet"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
	"fanlight/medianode/stream"
	"fanlight/medianode/udp"
)

func TestOpenRefuses(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	good := offerOf(t)
	cut := func(prefix string) string {
		var keep []string
		for line := range strings.SplitSeq(good, "\r\n") {
			if !strings.HasPrefix(line, prefix) {
				keep = append(keep, line)
			}
		}
		return strings.Join(keep, "\r\n")
	}
	vp8, err := newViewer(t, viewertest.Config{NoH264: true}).Offer(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	tests := []struct {
		name  string
		offer string
		want  fleet.Error
	}{
		{"no password", cut("a=ice-pwd"), fleet.BadOffer},
		{"fingerprint without a value", strings.ReplaceAll(good, "a=fingerprint:sha-256 ", "a=fingerprint:sha-256"), fleet.BadOffer},
		{"no SDP", "x", fleet.BadOffer},
		{"VP8 only", vp8, fleet.CodecUnsupported}, // the camera sends H264
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, answer, err := n.Open(session.OpenConfig{ID: "s1", Camera: "lobby", Profiles: only(n.cam.stream), Offer: tt.offer})
			want(t, err, tt.want)
			if s != nil || answer != "" {
				t.Error("a refused offer got a session")
			}
			if got := n.Stats().Sessions; got != 0 {
				t.Errorf("%d sessions are left", got)
			}
		})
	}
	_, _, err = n.Open(session.OpenConfig{Offer: good})
	want(t, err, fleet.InvalidArgument)
}

// A camera that nobody can watch is refused at once; on demand, it is pulled
// nevertheless, so that it is found out when it can be watched again.
func TestOpenRefusesBFrames(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	n.cam.writer.WriteRTP(0, &rtp.Packet{Header: rtp.Header{Marker: true}, Payload: []byte{0x41, 0x9f, 0xab}}) // a B slice that others refer to
	var held, released int
	hold := func(int) func() { held++; return func() { released++ } }
	s, answer, err := n.Open(session.OpenConfig{Profiles: only(n.cam.stream), Offer: offerOf(t), Hold: hold})
	want(t, err, fleet.CodecUnsupported)
	if !errors.Is(err, stream.ErrBFrames) || s != nil || answer != "" {
		t.Errorf("session %v, answer %q, error %v", s, answer, err)
	}
	if held != 1 || released != 1 {
		t.Errorf("the camera was held %d times and let go %d times", held, released)
	}
}

func TestCandidates(t *testing.T) {
	n := newNode(t, nil)
	s, _, err := n.Open(session.OpenConfig{Profiles: only(n.cam.stream), Offer: offerOf(t), Trickle: true})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, tt := range candidates {
		t.Run(tt.name, func(t *testing.T) {
			err := s.AddCandidate(tt.candidate)
			if got := errors.Is(err, fleet.BadCandidate); got != tt.bad || (err != nil) != tt.bad {
				t.Errorf("the error is %v; BAD_CANDIDATE wanted: %v", err, tt.bad)
			}
		})
	}
	bad := 0
	for i := range 100 {
		if s.AddCandidate(session.Candidate{Candidate: fmt.Sprintf("candidate:1 1 udp 1 127.0.0.1 %d typ host", 1000+i)}) != nil {
			bad++
		}
	}
	if bad < 30 {
		t.Errorf("%d of 100 more candidates were refused", bad)
	}
}

func ptr[T any](v T) *T { return &v }

const host = "candidate:1 1 udp 2130706431 127.0.0.1 5000 typ host"

var candidates = []struct {
	name      string
	candidate session.Candidate
	bad       bool
}{
	{"host", session.Candidate{Candidate: host, SDPMid: ptr("0"), SDPMLineIndex: ptr(uint16(0))}, false},
	{"without prefix", session.Candidate{Candidate: strings.TrimPrefix(host, "candidate:")}, false},
	{"name of multicast DNS", session.Candidate{Candidate: "candidate:1 1 udp 1 0a1b2c3d-0000-4000-8000-000000000000.local 5000 typ host generation 0"}, false},
	{"TCP", session.Candidate{Candidate: "candidate:1 1 tcp 1 127.0.0.1 9 typ host tcptype active"}, false},
	{"passive TCP", session.Candidate{Candidate: "candidate:1 1 tcp 1 127.0.0.1 1 typ host tcptype passive"}, false},
	{"end", session.Candidate{}, false},
	{"end with an empty mid", session.Candidate{SDPMid: ptr("")}, false},
	{"garbage", session.Candidate{Candidate: "nonsense"}, true},
	{"prefix only", session.Candidate{Candidate: "candidate:"}, true},
	{"host name", session.Candidate{Candidate: "candidate:1 1 udp 1 example.com 5000 typ host"}, true},
	{"no port", session.Candidate{Candidate: "candidate:1 1 udp 1 127.0.0.1 typ host"}, true},
	{"port too large", session.Candidate{Candidate: "candidate:1 1 udp 1 127.0.0.1 70000 typ host"}, true},
	{"too long", session.Candidate{Candidate: host + strings.Repeat(" x y", 500)}, true},
	{"unknown mid", session.Candidate{Candidate: host, SDPMid: ptr("7")}, true},
	{"index out of range", session.Candidate{Candidate: host, SDPMLineIndex: ptr(uint16(9))}, true},
	{"another generation", session.Candidate{Candidate: host, UsernameFragment: ptr("nope")}, true},
}

func FuzzCandidate(f *testing.F) {
	for _, tt := range candidates {
		f.Add(tt.candidate.Candidate)
	}
	n := newNode(f, nil)
	s, _, err := n.Open(session.OpenConfig{Profiles: only(n.cam.stream), Offer: offerOf(f), Trickle: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(s.Close)
	f.Fuzz(func(t *testing.T, c string) {
		if err := s.AddCandidate(session.Candidate{Candidate: c}); err != nil && !errors.Is(err, fleet.BadCandidate) {
			t.Errorf("%q: %v", c, err)
		}
	})
}

func FuzzOpen(f *testing.F) {
	n := newNode(f, nil)
	n.cam.connect(h264Track())
	f.Add(offerOf(f))
	f.Add("")
	f.Fuzz(func(t *testing.T, offer string) {
		s, answer, err := n.Open(session.OpenConfig{Profiles: only(n.cam.stream), Offer: offer})
		switch {
		case err == nil && !strings.Contains(answer, "m=video"):
			t.Errorf("the answer has no video: %q", answer)
		case errors.Is(err, fleet.Internal):
			t.Errorf("a panic: %v", err)
		}
		if s != nil {
			s.Close()
		}
	})
}

// The answer has one payload type a codec, the camera's first, with the feedback
// that is acted on, and is that of a DTLS server.
func TestAnswer(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track(), pcmaTrack())
	s, answer, err := n.Open(session.OpenConfig{Camera: "lobby", Profiles: only(n.cam.stream), Offer: offerOf(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	port := n.conn.AddrPort().Port()
	for _, line := range []string{
		"m=video 9 UDP/TLS/RTP/SAVPF 102 103",
		"a=fmtp:102 level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
		"a=rtcp-fb:102 nack", "a=rtcp-fb:102 nack pli", "a=rtcp-fb:102 ccm fir", "a=fmtp:103 apt=102",
		"a=rtpmap:8 PCMA/8000", "a=rtpmap:0 PCMU/8000", "a=rtpmap:126 opus/48000/2",
		"a=sendonly", "a=setup:passive",
		fmt.Sprintf(" udp 2130706431 127.0.0.1 %d typ host", port),
		fmt.Sprintf(" tcp 1671430143 127.0.0.1 %d typ host tcptype passive", port),
	} {
		if !strings.Contains(answer, line+"\r\n") && !strings.Contains(answer, line+" ") {
			t.Errorf("the answer lacks %q", line)
		}
	}
	for _, line := range []string{"goog-remb", "transport-cc", "ulpfec", "a=recvonly", "a=sendrecv", "a=extmap"} {
		if strings.Contains(answer, line) {
			t.Errorf("the answer has %q", line)
		}
	}
	if t.Failed() {
		t.Log(answer)
	}
}

// Listening on all addresses, the candidates are those advertised.
func TestWildcard(t *testing.T) {
	conn, err := udp.Listen(netip.MustParseAddrPort("0.0.0.0:0"), udp.Config{})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp4", conn.AddrPort().String())
	if err != nil {
		_ = conn.Close()
		t.Skipf("the UDP port is taken for TCP: %v", err)
	}
	e, err := session.New(session.Config{UDP: conn, TCP: lis, Advertise: []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	n := &node{Engine: e, conn: conn, cam: newCamera(t)}
	n.cam.connect(h264Track())
	n.cam.play(10*time.Millisecond, false)
	for _, tcp := range []bool{false, true} {
		v := newViewer(t, viewertest.Config{TCP: tcp})
		r := n.watch(t, v, session.OpenConfig{})
		wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 20 })
		if got := v.Report().Video; !got.Perfect() {
			t.Errorf("tcp %v: %v", tcp, got)
		}
		r.stop()
	}
}

func TestNewRefuses(t *testing.T) {
	if _, err := session.New(session.Config{}); err == nil {
		t.Error("an engine without a socket was made")
	}
	for name, change := range map[string]func(*session.Config){
		"advertise": func(c *session.Config) { c.Advertise = []netip.Addr{netip.IPv6Loopback()} },
	} {
		conn, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), udp.Config{})
		if err != nil {
			t.Fatal(err)
		}
		cfg := session.Config{UDP: conn}
		change(&cfg)
		if _, err := session.New(cfg); err == nil {
			t.Errorf("%s: an engine was made", name)
		}
		if _, err := conn.WriteToAddrPort([]byte("x"), conn.AddrPort()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: the socket is still open", name)
		}
	}
}
