package signaling

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
	"fanlight/signaling/viewer"
)

func TestSession(t *testing.T) {
	h := newHarness(t, func(c *Config) {
		c.ICE.Servers = []ICEServer{{URLs: []string{"stun:stun.example.com:3478"}}}
	})
	n := h.node("n1")
	h.control.assign("lobby", n, 7)
	b := h.connect("")
	m := b.next()
	if m.Type != typeWelcome || len(m.ICEServers) != 1 || m.ICEServers[0].URLs[0] != "stun:stun.example.com:3478" {
		t.Fatalf("welcome %+v", m)
	}
	// The candidate comes before the node has even been reached.
	b.send(map[string]any{
		"type": "watch", "session": "s1", "camera": "lobby", "offer": testOffer, "codecs": []string{"H264", "VP8"},
		"viewport": map[string]any{"width": 640, "height": 360, "visible": true}, "from_the_future": 1,
	})
	b.send(map[string]any{"type": "candidate", "session": "s1", "candidate": map[string]any{
		"candidate": testCandidate, "sdpMid": "0", "sdpMLineIndex": 0, "usernameFragment": "old1",
	}})
	b.send(map[string]any{"type": "candidate", "session": "s1", "candidate": nil})
	s := n.next()
	if o := s.open; o.GetCamera() != "cameras/lobby" || o.GetGeneration() != 7 || o.GetOffer() != testOffer || !o.GetTrickle() ||
		o.GetSession() == "" || o.GetRemoteAddress() != "127.0.0.1" || o.GetViewport().GetWidth() != 640 || strings.Join(o.GetCodecs(), " ") != "H264 VP8" {
		t.Errorf("open %+v", o)
	}
	c := s.request().GetCandidate()
	if c.GetCandidate() != testCandidate || c.GetSdpMid() != "0" || c.SdpMlineIndex == nil || c.GetUsernameFragment() != "old1" {
		t.Errorf("candidate %+v", c)
	}
	if c := s.request().GetCandidate(); c == nil || c.GetCandidate() != "" {
		t.Errorf("end of candidates %+v", c)
	}
	if m := b.next(); m.State != stateConnecting {
		t.Errorf("first state %+v", m)
	}
	mid := "0"
	s.answer("v=0 answer")
	s.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Candidate{Candidate: &mediav1.Candidate{Candidate: testCandidate, SdpMid: &mid}}})
	s.state(mediav1.SessionState_STATE_LIVE, "")
	if m := b.next(); m.Type != typeAnswer || m.SDP != "v=0 answer" || m.Session != "s1" {
		t.Errorf("answer %+v", m)
	}
	if m := b.next(); m.Type != typeCandidate || m.Candidate.Candidate != testCandidate || *m.Candidate.SDPMid != "0" {
		t.Errorf("candidate %+v", m)
	}
	b.untilState("s1", stateLive)

	b.send(map[string]any{"type": "viewport", "session": "s1", "width": 1, "height": 2, "visible": false})
	if v := s.request().GetViewport(); v.GetWidth() != 1 || v.GetHeight() != 2 {
		t.Errorf("viewport %+v", v)
	}
	b.send(map[string]any{"type": "restart", "session": "s1", "offer": testOffer})
	if r := s.request().GetRestart(); r.GetOffer() != testOffer {
		t.Errorf("restart %+v", r)
	}
	s.answer("v=0 second")
	if m := b.untilType("s1", typeAnswer); m.SDP != "v=0 second" {
		t.Errorf("second answer %+v", m)
	}
	s.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Rejected{Rejected: &mediav1.Rejected{Reason: "BAD_CANDIDATE", Message: "not one"}}})
	if m := b.untilType("s1", typeError); m.Reason != "bad_candidate" || m.Message != "not one" {
		t.Errorf("rejected %+v", m)
	}
	b.send(map[string]any{"type": "stats", "session": "s1", "first_frame_ms": 123})
	b.send(map[string]any{"type": "leave", "session": "s1"})
	s.left()
	eventually(t, "audit line", func() bool { return strings.Contains(h.logs.String(), `"viewing ended"`) })
	line := auditLine(t, h.logs.String(), "viewing ended")
	if line["camera"] != "lobby" || line["remote_address"] != "127.0.0.1" || line["reason"] != "left" || line["node"] != "n1" || line["first_frame"] != float64(123*time.Millisecond) {
		t.Errorf("audit line %v", line)
	}
	for _, secret := range []string{"ice-ufrag", testCandidate, "v=0"} {
		if strings.Contains(h.logs.String(), secret) {
			t.Errorf("the log has %q", secret)
		}
	}
	// The id is free again.
	b.live("s1", "lobby", n)
}

// auditLine returns the first log line with a message.
func auditLine(t *testing.T, logs, msg string) map[string]any {
	t.Helper()
	for line := range strings.Lines(logs) {
		var m map[string]any
		if json.Unmarshal([]byte(line), &m) == nil && m["msg"] == msg {
			return m
		}
	}
	t.Fatalf("no %q in the log", msg)
	return nil
}

// badMessages is every way to be wrong that leaves the connection open. "s1"
// is live, "old" has ended, "new" never was.
var badMessages = []struct {
	name, message, session, reason string
	ended                          bool
}{
	{name: "not JSON", message: `{"type":`, reason: "bad_message"},
	{name: "empty", message: ``, reason: "bad_message"},
	{name: "not an object", message: `["watch"]`, reason: "bad_message"},
	{name: "two objects", message: `{"type":"leave","session":"a"}{}`, reason: "bad_message"},
	{name: "not UTF-8", message: "{\"type\":\"\xff\"}", reason: "bad_message"},
	{name: "no type", message: `{"session":"new"}`, session: "new", reason: "bad_message"},
	{name: "wrong type of field", message: `{"type":"watch","session":"new","camera":7}`, session: "new", reason: "bad_message", ended: true},
	{name: "deep", message: strings.Repeat("[", 20_000), reason: "bad_message"},
	{name: "unknown type", message: `{"type":"record","session":"s1"}`, session: "s1", reason: "unknown_message"},
	{name: "no session", message: `{"type":"watch","camera":"lobby"}`, reason: "bad_message"},
	{name: "session too long", message: `{"type":"leave","session":"` + strings.Repeat("x", 65) + `"}`, reason: "bad_message"},
	{name: "session with a space", message: `{"type":"leave","session":"a b"}`, reason: "bad_message"},
	{name: "camera id", message: `{"type":"watch","session":"new","camera":"../etc"}`, session: "new", reason: "invalid_argument", ended: true},
	{name: "no offer", message: `{"type":"watch","session":"new","camera":"lobby"}`, session: "new", reason: "bad_offer", ended: true},
	{name: "offer is no SDP", message: `{"type":"watch","session":"new","camera":"lobby","offer":"hello"}`, session: "new", reason: "bad_offer", ended: true},
	{name: "offer too long", message: `{"type":"watch","session":"new","camera":"lobby","offer":"v=0` + strings.Repeat("x", maxOffer) + `"}`, session: "new", reason: "bad_offer", ended: true},
	{name: "offer without video", message: `{"type":"watch","session":"new","camera":"lobby","offer":"v=0\r\nm=audio 9 X 0\r\n"}`, session: "new", reason: "no_video_section", ended: true},
	{name: "codecs", message: `{"type":"watch","session":"new","camera":"lobby","codecs":["a b"],"offer":"v=0\nm=video "}`, session: "new", reason: "bad_message", ended: true},
	{name: "viewport of watch", message: `{"type":"watch","session":"new","camera":"lobby","viewport":{"width":-1},"offer":"v=0\nm=video "}`, session: "new", reason: "bad_message", ended: true},
	{name: "duplicate id", message: `{"type":"watch","session":"s1","camera":"lobby","offer":"v=0\nm=video "}`, session: "s1", reason: "session_exists"},
	{name: "unknown camera", message: `{"type":"watch","session":"new","camera":"nowhere","offer":"v=0\nm=video "}`, session: "new", reason: "camera_not_found", ended: true},
	{name: "disabled camera", message: `{"type":"watch","session":"new","camera":"off","offer":"v=0\nm=video "}`, session: "new", reason: "camera_disabled", ended: true},
	{name: "candidate before watch", message: `{"type":"candidate","session":"never","candidate":null}`, session: "never", reason: "out_of_order"},
	{name: "restart before watch", message: `{"type":"restart","session":"never","offer":"v=0\nm=video "}`, session: "never", reason: "out_of_order"},
	{name: "candidate after leave", message: `{"type":"candidate","session":"old","candidate":null}`, session: "old", reason: "session_not_found"},
	{name: "leave of nothing", message: `{"type":"leave","session":"never"}`, session: "never", reason: "session_not_found"},
	{name: "candidate is a number", message: `{"type":"candidate","session":"s1","candidate":7}`, session: "s1", reason: "bad_candidate"},
	{name: "candidate is garbage", message: `{"type":"candidate","session":"s1","candidate":{"candidate":"garbage"}}`, session: "s1", reason: "bad_candidate"},
	{name: "candidate of two lines", message: `{"type":"candidate","session":"s1","candidate":{"candidate":"candidate:1\r\na=x"}}`, session: "s1", reason: "bad_candidate"},
	{name: "candidate too long", message: `{"type":"candidate","session":"s1","candidate":{"candidate":"candidate:` + strings.Repeat("1", maxCandidate) + `"}}`, session: "s1", reason: "bad_candidate"},
	{name: "viewport", message: `{"type":"viewport","session":"s1","width":100000,"height":1}`, session: "s1", reason: "bad_message"},
	{name: "restart without offer", message: `{"type":"restart","session":"s1"}`, session: "s1", reason: "bad_offer"},
	{name: "stats", message: `{"type":"stats","session":"s1","first_frame_ms":-1}`, session: "s1", reason: "bad_message"},
	{name: "token", message: `{"type":"token"}`, reason: "bad_message"},
}

func TestBadMessagesEndNothing(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	h.control.set(&controlv1.Route{Camera: "cameras/off", State: controlv1.Route_STATE_DISABLED, Reason: controlv1.Reason_REASON_DISABLED})
	other := h.welcomed("")
	elsewhere := other.live("x", "lobby", n)
	b := h.welcomed("")
	b.live("old", "lobby", n)
	b.send(map[string]any{"type": "leave", "session": "old"})
	s := b.live("s1", "lobby", n)
	for _, test := range badMessages {
		t.Run(test.name, func(t *testing.T) {
			b.text(test.message)
			m := b.until("error", func(m outbound) bool { return m.Type == typeError })
			if m.Reason != test.reason || m.Session != test.session || m.Message == "" {
				t.Errorf("error %+v, want %s for %q", m, test.reason, test.session)
			}
			if test.ended {
				if m := b.untilState(test.session, stateEnded); m.Reason != test.reason {
					t.Errorf("ended %+v", m)
				}
			}
			b.works("s1", s)
		})
	}
	t.Run("binary", func(t *testing.T) {
		if err := b.ws.WriteMessage(websocket.BinaryMessage, []byte{1, 2, 3}); err != nil {
			t.Fatal(err)
		}
		if m := b.untilType("", typeError); m.Reason != "bad_message" {
			t.Errorf("error %+v", m)
		}
		b.works("s1", s)
	})
	t.Run("restart before answer", func(t *testing.T) {
		b.watch("new", "lobby")
		pending := n.next()
		b.send(map[string]any{"type": "restart", "session": "new", "offer": testOffer})
		if m := b.untilType("new", typeError); m.Reason != "out_of_order" {
			t.Errorf("error %+v", m)
		}
		pending.answer("late") // and the session goes on
		b.untilType("new", typeAnswer)
		b.works("s1", s)
	})
	other.works("x", elsewhere)
}

func TestTooLargeClosesWithTheReason(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	other := h.welcomed("")
	s := other.live("x", "lobby", n)
	b := h.welcomed("")
	gone := b.live("s1", "lobby", n)
	b.text(`{"type":"watch","offer":"` + strings.Repeat("x", 256<<10) + `"}`)
	if ce := b.closed(); ce.Code != websocket.CloseMessageTooBig || !strings.HasPrefix(ce.Text, "message_too_large: ") {
		t.Errorf("closed with %v", ce)
	}
	gone.left()
	other.works("x", s)
}

func TestRateLimit(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Limits.MessageBurst = 70; c.Limits.MessageRate = 1 })
	b := h.welcomed("")
	for range 200 {
		b.text(`{"type":"leave","session":"a"}`)
	}
	b.until("rate_limited", func(m outbound) bool { return m.Reason == "rate_limited" && m.Session == "" })
	for range refusedKept {
		b.text(`{"type":"leave","session":"a"}`)
	}
	if ce := b.closed(); ce.Code != websocket.ClosePolicyViolation || !strings.HasPrefix(ce.Text, "rate_limited: ") {
		t.Errorf("closed with %v", ce)
	}
}

func TestLimits(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Limits.SessionsPerConnection = 2; c.Limits.ConnectionsPerAddress = 2 })
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	s := b.live("1", "lobby", n)
	b.live("2", "lobby", n)
	b.watch("3", "lobby")
	if m := b.untilType("3", typeError); m.Reason != "too_many_sessions" {
		t.Errorf("error %+v", m)
	}
	b.untilState("3", stateEnded)
	b.works("1", s)

	h.welcomed("")
	resp, body := h.do("GET", "/v1/ws", "", "", "Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13",
		"Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Protocol", Protocol)
	h.wantProblem(resp, body, http.StatusTooManyRequests, "too_many_connections")
	_ = b.ws.Close()
	s.orphaned()
	eventually(t, "a free place", func() bool {
		release, ok := h.gateway.connections.add("127.0.0.1", 2)
		if ok {
			release()
		}
		return ok
	})
	h.welcomed("")
}

func TestHandshake(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.AllowedOrigins = []string{"https://wall.example.com"} })
	upgrade := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="}
	resp, body := h.do("GET", "/v1/ws", "", "", append(upgrade, "Sec-WebSocket-Protocol", "other")...)
	h.wantProblem(resp, body, http.StatusBadRequest, "protocol_unsupported")
	resp, body = h.do("GET", "/v1/ws", "", "")
	h.wantProblem(resp, body, http.StatusBadRequest, "protocol_unsupported")
	resp, body = h.do("GET", "/v1/ws", "", "", append(upgrade, "Sec-WebSocket-Protocol", Protocol, "Origin", "https://evil.example.com")...)
	h.wantProblem(resp, body, http.StatusForbidden, "origin_forbidden")
	resp, body = h.do("GET", "/v1/ws", "", "", append(upgrade, "Sec-WebSocket-Protocol", Protocol, "Host", "rebound.example.com")...)
	h.wantProblem(resp, body, http.StatusForbidden, "origin_forbidden")
	for _, origin := range []string{h.http.URL, "https://wall.example.com"} {
		d := websocket.Dialer{Subprotocols: []string{Protocol}}
		ws, resp, err := d.Dial("ws"+strings.TrimPrefix(h.http.URL, "http")+"/v1/ws", http.Header{"Origin": {origin}})
		if err != nil {
			t.Fatalf("origin %s: %v", origin, err)
		}
		_ = resp.Body.Close()
		_ = ws.Close()
	}
}

func TestSlowReaderIsClosed(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Limits.QueuedMessages = 20; c.Limits.QueuedBytes = 1 << 20 })
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	other := h.welcomed("")
	fast := other.live("x", "lobby", n)
	b := h.welcomed("")
	s := b.live("s1", "lobby", n)
	// Nobody reads b; the socket's buffers fill, then the queue.
	big := strings.Repeat("x", 200<<10)
	for range 1000 {
		if s.stream.Send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Answer{Answer: &mediav1.Answer{Sdp: big}}}) != nil {
			break
		}
	}
	s.orphaned()
	if !strings.Contains(h.logs.String(), "slow_reader") {
		t.Error("the log does not say why")
	}
	other.works("x", fast)
}

func TestStopClosesWebsockets(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	s := b.live("s1", "lobby", n)
	began := time.Now()
	done := make(chan struct{})
	go func() { defer close(done); h.stop() }()
	if ce := b.closed(); ce.Code != websocket.CloseServiceRestart || !strings.HasPrefix(ce.Text, "gateway_stopping: ") {
		t.Errorf("closed with %v", ce)
	}
	if err := h.gateway.Ready(); !errors.Is(err, fleet.GatewayStopping) {
		t.Errorf("ready while it stops: %v", err)
	}
	<-done
	if took := time.Since(began); took > stopSpreadMost+2*closeWait {
		t.Errorf("stopped after %v", took)
	}
	s.orphaned()
	resp, body := h.do("GET", "/v1/cameras", "", "")
	h.wantProblem(resp, body, http.StatusServiceUnavailable, "gateway_stopping")
}

// TestRefusedBrowserThatGoesOnSending has no token and does not stop talking,
// nor does it answer the close frame.
func TestRefusedBrowserThatGoesOnSending(t *testing.T) {
	h := newHarness(t, withAuth(t))
	chatter := func(b *browser) (ended chan struct{}) {
		ended = make(chan struct{})
		go func() {
			defer close(ended)
			for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				if b.ws.WriteControl(websocket.PongMessage, nil, time.Now().Add(patience)) != nil ||
					b.ws.WriteMessage(websocket.TextMessage, []byte(`{"type":"leave","session":"a"}`)) != nil {
					return
				}
			}
		}()
		return ended
	}
	began := time.Now()
	select {
	case <-chatter(h.connect("")):
	case <-time.After(patience):
	}
	if took := time.Since(began); took > closeWait*3 {
		t.Errorf("the connection lived for %v, want about %v", took, closeWait)
	}
	eventually(t, "a free place", func() bool {
		h.gateway.connections.mu.Lock()
		defer h.gateway.connections.mu.Unlock()
		return h.gateway.connections.counts["127.0.0.1"] == 0
	})

	// The same while the gateway stops.
	ended := chatter(h.connect(""))
	good := chatter(h.connect(mint(t, viewer.Grant{Cameras: []string{"*"}})))
	began = time.Now()
	h.stop()
	if took := time.Since(began); took > closeWait*3 {
		t.Errorf("the gateway took %v to stop, want about %v", took, closeWait)
	}
	<-ended
	<-good
}

// What browsers can see tells them that the gateway is there.
func TestHeartbeat(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Limits.HeartbeatEvery = 20 * time.Millisecond })
	b := h.connect("")
	if m := b.any(); m.Type != typeWelcome || m.Heartbeat != 20 {
		t.Fatalf("welcome %+v", m)
	}
	for range 3 {
		if m := b.any(); m.Type != typeHeartbeat {
			t.Fatalf("%+v in place of a heartbeat", m)
		}
	}
}

func TestSilentBrowserIsClosed(t *testing.T) {
	h := newHarness(t, func(c *Config) {
		c.Limits.PingEvery = 50 * time.Millisecond
		c.Limits.WriteTimeout = 200 * time.Millisecond
	})
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	s := b.live("s1", "lobby", n)
	// Without reads gorilla answers no ping.
	s.orphaned()
}

// TestEndOfAWebsocket tells browsers that leave from those that are cut off.
func TestEndOfAWebsocket(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	closing := func(code int) func(*browser) {
		return func(b *browser) {
			msg := websocket.FormatCloseMessage(code, "")
			if err := b.ws.WriteControl(websocket.CloseMessage, msg, time.Now().Add(patience)); err != nil {
				t.Error(err)
			}
		}
	}
	for _, test := range []struct {
		name   string
		end    func(*browser)
		orphan bool
		reason string
	}{
		{"normally", closing(websocket.CloseNormalClosure), false, "left"},
		{"page left", closing(websocket.CloseGoingAway), false, "left"},
		{"without a code", closing(websocket.CloseNoStatusReceived), false, "left"},
		{"to come back", closing(4000), true, "lost"},
		{"cut", func(b *browser) { _ = b.ws.NetConn().Close() }, true, "lost"},
		{"refused", func(b *browser) { b.text(strings.Repeat("x", 257<<10)) }, false, "left"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b := h.welcomed("")
			s := b.live("a", "lobby", n)
			before := len(h.logs.String())
			test.end(b)
			if test.orphan {
				s.orphaned()
			} else {
				s.left()
			}
			eventually(t, "audit line", func() bool { return strings.Contains(h.logs.String()[before:], `"viewing ended"`) })
			if line := auditLine(t, h.logs.String()[before:], "viewing ended"); line["reason"] != test.reason {
				t.Errorf("audit line %v", line)
			}
		})
	}
}

func TestManySessions(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	const tiles = 64
	for i := range tiles {
		h.control.assign(fmt.Sprintf("cam-%d", i), n, 1)
	}
	b := h.welcomed("")
	for i := range tiles {
		b.watch(fmt.Sprintf("s%d", i), fmt.Sprintf("cam-%d", i))
		b.send(map[string]any{"type": "candidate", "session": fmt.Sprintf("s%d", i), "candidate": map[string]any{"candidate": testCandidate}})
	}
	for range tiles {
		s := n.next()
		s.answer(s.open.GetCamera())
		if c := s.request().GetCandidate(); c.GetCandidate() != testCandidate {
			t.Errorf("%s: candidate %+v", s.open.GetCamera(), c)
		}
	}
	got := make(map[string]string)
	for len(got) < tiles {
		m := b.until("answer", func(m outbound) bool { return m.Type == typeAnswer })
		got[m.Session] = m.SDP
	}
	for i := range tiles {
		if sdp := got[fmt.Sprintf("s%d", i)]; sdp != fleet.CameraID(fmt.Sprintf("cam-%d", i)).Name() {
			t.Errorf("session %d has the answer of %s", i, sdp)
		}
	}
}
