package signaling

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"fanlight/internal/metrics"
	"fanlight/signaling/viewer"
)

// exports waits until a scrape of the gateway has all the lines.
func (h *harness) exports(lines ...string) {
	h.t.Helper()
	r, err := metrics.NewRegistry("test")
	if err != nil {
		h.t.Fatal(err)
	}
	if err := r.Register(h.gateway.Metrics()); err != nil {
		h.t.Fatal(err)
	}
	for _, line := range lines {
		eventually(h.t, line, func() bool {
			w := httptest.NewRecorder()
			r.Handler(nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
			return strings.Contains(w.Body.String(), line+"\n")
		})
	}
}

// TestMetricsOfASession follows a session from its wish to its end.
func TestMetricsOfASession(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	h.exports(`fanlight_gateway_control_connected 1`, `fanlight_gateway_websockets 0`, `fanlight_gateway_routes 0`,
		`fanlight_gateway_watches_total{result="answered",via="websocket"} 0`)
	b := h.welcomed("")
	s := b.live("s1", "lobby", n)
	h.exports(`fanlight_gateway_websockets 1`, `fanlight_gateway_sessions{via="websocket"} 1`, `fanlight_gateway_routes 1`, `fanlight_gateway_node_connections 1`,
		`fanlight_gateway_watches_total{result="answered",via="websocket"} 1`, `fanlight_gateway_answer_duration_seconds_count{via="websocket"} 1`,
		`fanlight_gateway_http_requests_total{code="101",method="GET",path="/v1/ws"} 1`)
	for _, ms := range []float64{250, 300} { // what is said again does not count
		b.send(map[string]any{"type": "stats", "session": "s1", "first_frame_ms": ms})
	}
	h.exports(`fanlight_gateway_first_frame_duration_seconds_count 1`, `fanlight_gateway_first_frame_duration_seconds_bucket{le="0.3"} 1`, `fanlight_gateway_first_frame_duration_seconds_bucket{le="0.2"} 0`)
	b.send(map[string]any{"type": "leave", "session": "s1"})
	s.left()
	h.exports(`fanlight_gateway_session_ends_total{reason="left",via="websocket"} 1`, `fanlight_gateway_sessions{via="websocket"} 0`)

	b.watch("s2", "nowhere")
	b.untilState("s2", stateEnded)
	h.exports(`fanlight_gateway_watches_total{result="camera_not_found",via="websocket"} 1`, `fanlight_gateway_watches_total{result="answered",via="websocket"} 1`)
}

// TestMetricsOfAMove counts a browser that is told to follow its camera.
func TestMetricsOfAMove(t *testing.T) {
	h := newHarness(t, nil)
	n1, n2 := h.node("n1"), h.node("n2")
	h.control.assign("lobby", n1, 1)
	b := h.welcomed("")
	b.live("s1", "lobby", n1)
	h.moved("lobby", n2, 2)
	b.untilType("s1", typeMove)
	h.exports(`fanlight_gateway_moves_total 1`)
}

// TestMetricsOfRefusals counts what tokens do not do, over both ways in.
func TestMetricsOfRefusals(t *testing.T) {
	h := newHarness(t, withAuth(t))
	token := mint(t, viewer.Grant{Cameras: []string{"lobby"}})
	h.exports(`fanlight_gateway_auth_refusals_total{reason="unauthenticated"} 0`)
	b := h.connect("a.b.c")
	_ = b.closed()
	h.exports(`fanlight_gateway_auth_refusals_total{reason="unauthenticated"} 1`)
	good := h.welcomed(token)
	good.watch("s1", "vault")
	good.untilState("s1", stateEnded)
	resp, body := h.do("POST", "/v1/cameras/vault/whep", sdpType, testOffer, "Authorization", "Bearer "+token)
	h.wantProblem(resp, body, http.StatusForbidden, "camera_forbidden")
	h.exports(`fanlight_gateway_auth_refusals_total{reason="camera_forbidden"} 2`,
		`fanlight_gateway_watches_total{result="camera_forbidden",via="websocket"} 1`, `fanlight_gateway_watches_total{result="camera_forbidden",via="whep"} 1`,
		`fanlight_gateway_http_requests_total{code="403",method="POST",path="/v1/cameras/{camera}/whep"} 1`)
	// A preflight without a token is none: browsers send them so.
	h.do("OPTIONS", "/v1/cameras/lobby/whep", "", "")
	h.exports(`fanlight_gateway_http_requests_total{code="204",method="OPTIONS",path="/v1/cameras/{camera}/whep"} 1`, `fanlight_gateway_auth_refusals_total{reason="unauthenticated"} 1`)
}

// What others send makes no series of its own.
func TestMetricsOfStrangeRequests(t *testing.T) {
	h := newHarness(t, nil)
	for _, path := range []string{"/no-such-page", "/another/one", "/v1/cameras/a/whep/b"} {
		h.do("BREW", path, "", "")
		h.do("GET", path, "", "")
	}
	h.do("GET", "/v1/cameras", "", "", "Origin", "https://pages.example")
	h.exports(`fanlight_gateway_http_requests_total{code="404",method="GET",path="/"} 2`, `fanlight_gateway_http_requests_total{code="405",method="other",path="/"} 2`,
		`fanlight_gateway_http_requests_total{code="405",method="other",path="/v1/cameras/{camera}/whep/{id}"} 1`,
		`fanlight_gateway_http_requests_total{code="403",method="GET",path="none"} 1`)
}
