package signaling

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

const testAnswer = "v=0\r\no=- 3 4 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n" +
	"m=video 9 UDP/TLS/RTP/SAVPF 102\r\na=mid:0\r\na=ice-ufrag:node2\r\na=ice-pwd:nodepassword\r\na=candidate:9 1 udp 1 127.0.0.1 8189 typ host\r\na=end-of-candidates\r\n"

// post begins a WHEP session that the node answers.
func post(h *harness, n *fakeNode, headers ...string) (reply, *nodeSession) {
	h.t.Helper()
	sessions := make(chan *nodeSession, 1)
	go func() {
		select {
		case s := <-n.sessions:
			s.answer("v=0 answer")
			sessions <- s
		case <-time.After(patience):
			close(sessions)
		}
	}()
	resp, body := h.do("POST", "/v1/cameras/lobby/whep", sdpType, testOffer, headers...)
	s := <-sessions
	if resp.StatusCode != http.StatusCreated || body != "v=0 answer" || resp.Header.Get("Content-Type") != sdpType || s == nil {
		h.t.Fatalf("POST: %d %s", resp.StatusCode, body)
	}
	return resp, s
}

func TestWHEP(t *testing.T) {
	h := newHarness(t, func(c *Config) {
		c.ICE = ICE{Servers: []ICEServer{{URLs: []string{"stun:stun.example.com"}}, {URLs: []string{"turn:turn.example.com"}}}, TURNSecret: []byte("s")}
	})
	n := h.node("n1")
	h.control.assign("lobby", n, 3)
	resp, s := post(h, n)
	location, etag := resp.Header.Get("Location"), resp.Header.Get("ETag")
	if !strings.HasPrefix(location, "/v1/cameras/lobby/whep/") || etag == "" || resp.Header.Get("Accept-Patch") != fragType {
		t.Errorf("headers %v", resp.Header)
	}
	links := strings.Join(resp.Header.Values("Link"), "\n")
	if !strings.Contains(links, `<stun:stun.example.com>; rel="ice-server"`) || !strings.Contains(links, `<turn:turn.example.com>; rel="ice-server"; username="`) ||
		!strings.Contains(links, `credential-type="password"`) {
		t.Errorf("Link %s", links)
	}
	if s.open.GetTrickle() || s.open.GetGeneration() != 3 || s.open.GetOffer() != testOffer {
		t.Errorf("open %+v", s.open)
	}

	frag := "a=ice-ufrag:old1\r\na=ice-pwd:oldpassword0123456789ab\r\nm=video 9 UDP/TLS/RTP/SAVPF 102\r\na=mid:0\r\na=" + testCandidate + "\r\na=end-of-candidates\r\n"
	resp, body := h.do("PATCH", location, fragType, frag)
	h.wantProblem(resp, body, http.StatusPreconditionRequired, "precondition_failed")
	resp, body = h.do("PATCH", location, fragType, frag, "If-Match", `"other"`)
	h.wantProblem(resp, body, http.StatusPreconditionFailed, "precondition_failed")
	resp, body = h.do("PATCH", location, "text/plain", frag, "If-Match", etag)
	h.wantProblem(resp, body, http.StatusUnsupportedMediaType, "unsupported_media_type")
	resp, body = h.do("PATCH", location, fragType, "garbage", "If-Match", etag)
	h.wantProblem(resp, body, http.StatusBadRequest, "bad_candidate")
	resp, body = h.do("PATCH", location, fragType, frag, "If-Match", etag)
	if resp.StatusCode != http.StatusNoContent {
		t.Errorf("PATCH: %d %s", resp.StatusCode, body)
	}
	if c := s.request().GetCandidate(); c.GetCandidate() != testCandidate || c.GetSdpMid() != "0" || c.GetUsernameFragment() != "old1" {
		t.Errorf("candidate %+v", c)
	}
	if c := s.request().GetCandidate(); c == nil || c.GetCandidate() != "" {
		t.Errorf("end of candidates %+v", c)
	}

	// An ICE restart.
	restarted := make(chan string, 1)
	go func() {
		offer := s.request().GetRestart().GetOffer()
		s.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Rejected{Rejected: &mediav1.Rejected{Reason: "BAD_CANDIDATE", Message: "of before"}}})
		s.answer(testAnswer)
		restarted <- offer
	}()
	frag = strings.Replace(strings.Replace(frag, "old1", "new1", 1), "oldpassword0123456789ab", "newpassword", 1)
	resp, body = h.do("PATCH", location, fragType, frag, "If-Match", "*")
	offer := <-restarted
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != fragType || resp.Header.Get("ETag") == etag {
		t.Errorf("restart: %d %v %s", resp.StatusCode, resp.Header, body)
	}
	for _, want := range []string{"a=group:BUNDLE 0\r\n", "a=ice-ufrag:node2\r\n", "a=ice-pwd:nodepassword\r\n", "a=mid:0\r\n", "a=candidate:9 1 udp"} {
		if !strings.Contains(body, want) {
			t.Errorf("restart's answer %q lacks %q", body, want)
		}
	}
	if !strings.Contains(offer, "a=ice-ufrag:new1\r\n") || !strings.Contains(offer, "a=ice-pwd:newpassword\r\n") || strings.Contains(offer, "old1") || !strings.Contains(offer, "a="+testCandidate) {
		t.Errorf("restart's offer %q", offer)
	}
	resp, body = h.do("PATCH", location, fragType, frag, "If-Match", etag)
	h.wantProblem(resp, body, http.StatusPreconditionFailed, "precondition_failed")
	resp, body = h.do("PATCH", location, fragType, "a=ice-options:trickle\r\n", "If-Match", "*")
	h.wantProblem(resp, body, http.StatusBadRequest, "bad_candidate")

	resp, body = h.do("DELETE", location, "", "")
	if resp.StatusCode != http.StatusOK {
		t.Errorf("DELETE: %d %s", resp.StatusCode, body)
	}
	s.left()
	resp, body = h.do("DELETE", location, "", "")
	h.wantProblem(resp, body, http.StatusNotFound, "session_not_found")
	if line := auditLine(t, h.logs.String(), "viewing ended"); line["via"] != "whep" || line["camera"] != "lobby" {
		t.Errorf("audit line %v", line)
	}
}

func TestWHEPRefusals(t *testing.T) {
	h := newHarness(t, func(c *Config) {
		c.Limits.AnswerTimeout = 500 * time.Millisecond
		c.AllowedOrigins = []string{"https://wall.example.com"}
	})
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	h.control.set(&controlv1.Route{Camera: "cameras/off", State: controlv1.Route_STATE_DISABLED})
	for _, test := range []struct {
		name, method, path, contentType, body string
		headers                               []string
		status                                int
		reason                                string
	}{
		{"method", "GET", "/v1/cameras/lobby/whep", "", "", nil, 405, "method_not_allowed"},
		{"method on session", "GET", "/v1/cameras/lobby/whep/x", "", "", nil, 405, "method_not_allowed"},
		{"content type", "POST", "/v1/cameras/lobby/whep", "text/plain", testOffer, nil, 415, "unsupported_media_type"},
		{"no content type", "POST", "/v1/cameras/lobby/whep", "", testOffer, nil, 415, "unsupported_media_type"},
		{"garbage", "POST", "/v1/cameras/lobby/whep", sdpType, "hello", nil, 400, "bad_offer"},
		{"no video", "POST", "/v1/cameras/lobby/whep", sdpType, "v=0\r\nm=audio 9 X 0\r\n", nil, 400, "no_video_section"},
		{"too large", "POST", "/v1/cameras/lobby/whep", sdpType, strings.Repeat("x", maxOffer+1), nil, 413, "message_too_large"},
		{"far too large", "POST", "/v1/cameras/lobby/whep", sdpType, strings.Repeat("x", 4<<20), nil, 413, "message_too_large"},
		{"far too large for its type", "POST", "/v1/cameras/lobby/whep", "text/plain", strings.Repeat("x", 4<<20), nil, 415, "unsupported_media_type"},
		{"camera id", "POST", "/v1/cameras/UP/whep", sdpType, testOffer, nil, 400, "invalid_argument"},
		{"no such camera", "POST", "/v1/cameras/nowhere/whep", sdpType, testOffer, nil, 404, "camera_not_found"},
		{"disabled", "POST", "/v1/cameras/off/whep", sdpType, testOffer, nil, 409, "camera_disabled"},
		{"origin", "POST", "/v1/cameras/lobby/whep", sdpType, testOffer, []string{"Origin", "https://evil.example.com"}, 403, "origin_forbidden"},
		{"no session", "PATCH", "/v1/cameras/lobby/whep/x", fragType, "", nil, 404, "session_not_found"},
		{"no session to delete", "DELETE", "/v1/cameras/lobby/whep/x", "", "", nil, 404, "session_not_found"},
	} {
		t.Run(test.name, func(t *testing.T) {
			resp, body := h.do(test.method, test.path, test.contentType, test.body, test.headers...)
			h.wantProblem(resp, body, test.status, test.reason)
			if test.status == 405 && resp.Header.Get("Allow") == "" {
				t.Error("no Allow")
			}
		})
	}
	t.Run("node refuses", func(*testing.T) {
		go func() { n.next().end <- fmt.Errorf("camera sends H265: %w", fleet.CodecUnsupported) }()
		resp, body := h.do("POST", "/v1/cameras/lobby/whep", sdpType, testOffer)
		h.wantProblem(resp, body, http.StatusNotAcceptable, "codec_unsupported")
	})
	t.Run("node is full", func(t *testing.T) {
		go func() {
			n.next().end <- fmt.Errorf("%w: its processors are 91 %% busy, its limit is 85 %%", fleet.NodeFull)
		}()
		resp, body := h.do("POST", "/v1/cameras/lobby/whep", sdpType, testOffer)
		h.wantProblem(resp, body, http.StatusServiceUnavailable, "node_full")
		if got := resp.Header.Get("Retry-After"); got != "30" {
			t.Errorf("Retry-After %q", got)
		}
		if !strings.Contains(body, `"detail":"the node takes no more sessions: its processors are 91 % busy, its limit is 85 %"`) {
			t.Errorf("body %s", body)
		}
	})
	t.Run("node does not answer", func(t *testing.T) {
		resp, body := h.do("POST", "/v1/cameras/lobby/whep", sdpType, testOffer)
		h.wantProblem(resp, body, http.StatusServiceUnavailable, "node_unreachable")
		if resp.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		n.next().left()
	})
	t.Run("preflight", func(t *testing.T) {
		resp, body := h.do("OPTIONS", "/v1/cameras/lobby/whep", "", "", "Origin", "https://wall.example.com", "Access-Control-Request-Method", "POST")
		if resp.StatusCode != http.StatusNoContent || body != "" || resp.Header.Get("Access-Control-Allow-Origin") != "https://wall.example.com" ||
			!strings.Contains(resp.Header.Get("Access-Control-Allow-Methods"), "POST") || resp.Header.Get("Accept-Post") != sdpType {
			t.Errorf("preflight: %d %v", resp.StatusCode, resp.Header)
		}
	})
}

func TestWHEPUnassigned(t *testing.T) {
	h := newHarness(t, nil)
	h.control.set(&controlv1.Route{Camera: "cameras/lobby", State: controlv1.Route_STATE_UNASSIGNED, Reason: controlv1.Reason_REASON_NO_NODE, Message: operatorsOnly})
	resp, body := h.do("POST", "/v1/cameras/lobby/whep", sdpType, testOffer)
	h.wantProblem(resp, body, http.StatusServiceUnavailable, "camera_unassigned")
	if !strings.Contains(body, "no media node is ready") || strings.Contains(body, "192.0.2.7") {
		t.Errorf("body %s", body)
	}
}

// TestWHEPEnds loses the node: the session is forgotten.
func TestWHEPEnds(t *testing.T) {
	h := newHarness(t, nil)
	n1, n2 := h.node("n1"), h.node("n2")
	h.control.assign("lobby", n1, 1)
	resp, s := post(h, n1)
	h.control.assign("lobby", n2, 2)
	time.Sleep(50 * time.Millisecond) // the move must not end it
	etag := resp.Header.Get("ETag")
	location := resp.Header.Get("Location")
	if resp, body := h.do("PATCH", location, fragType, "a=end-of-candidates\r\n", "If-Match", etag); resp.StatusCode != http.StatusNoContent {
		t.Errorf("PATCH after the move: %d %s", resp.StatusCode, body)
	}
	s.end <- fmt.Errorf("moved: %w", fleet.CameraMoved)
	eventually(t, "forgotten", func() bool {
		resp, _ := h.do("PATCH", location, fragType, "", "If-Match", etag)
		return resp.StatusCode == http.StatusNotFound
	})
	// The gateway's end leaves the sessions to their nodes.
	h.moved("lobby", n1, 3)
	_, s = post(h, n1)
	h.stop()
	s.orphaned()
}

// TestWHEPAtAnotherGateway asks a gateway for what another one made.
func TestWHEPAtAnotherGateway(t *testing.T) {
	h, other := newHarness(t, nil), newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	resp, s := post(h, n)
	location, etag := resp.Header.Get("Location"), resp.Header.Get("ETag")
	for _, method := range []string{"PATCH", "DELETE"} {
		resp, body := other.do(method, location, fragType, "a=end-of-candidates\r\n", "If-Match", etag)
		other.wantProblem(resp, body, http.StatusNotFound, "session_not_found")
		if !strings.Contains(body, "another gateway made the session") {
			t.Errorf("%s: %s", method, body)
		}
	}
	if resp, body := h.do("DELETE", location, "", ""); resp.StatusCode != http.StatusOK {
		t.Errorf("DELETE: %d %s", resp.StatusCode, body)
	}
	s.left()
	resp, body := h.do("DELETE", location, "", "")
	h.wantProblem(resp, body, http.StatusNotFound, "session_not_found")
	if strings.Contains(body, "another gateway") {
		t.Errorf("the gateway does not know its own: %s", body)
	}
}
