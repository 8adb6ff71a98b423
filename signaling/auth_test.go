package signaling

import (
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gorilla/websocket"

	"fanlight/signaling/viewer"
)

var testSecret = []byte("0123456789abcdef0123456789abcdef")

// mint makes a token that the harness of withAuth takes.
func mint(t *testing.T, g viewer.Grant) string {
	t.Helper()
	if g.TTL == 0 {
		g.TTL = time.Hour
	}
	token, err := viewer.SignHMAC(testSecret, g)
	if err != nil {
		t.Fatal(err)
	}
	return token
}

func withAuth(t *testing.T) func(*Config) {
	t.Helper()
	return func(c *Config) {
		v, err := viewer.New(viewer.Config{Secret: testSecret, Leeway: -1})
		if err != nil {
			t.Fatal(err)
		}
		c.Auth = v
		c.ICE = ICE{Servers: []ICEServer{{URLs: []string{"turn:t"}}}, TURNSecret: []byte("s")}
	}
}

func TestWebsocketNeedsAToken(t *testing.T) {
	h := newHarness(t, withAuth(t))
	expired := mint(t, viewer.Grant{Cameras: []string{"*"}, TTL: time.Nanosecond})
	for token, reason := range map[string]string{"": "unauthenticated", "a.b.c": "unauthenticated", expired: "token_expired"} {
		b := h.connect(token)
		m := b.next()
		if m.Type != typeError || m.Session != "" || m.Reason != reason {
			t.Errorf("%q: first message %+v, want %s", token, m, reason)
		}
		if ce := b.closed(); ce.Code != websocket.ClosePolicyViolation || !strings.HasPrefix(ce.Text, reason+": ") {
			t.Errorf("%q: closed with %v", token, ce)
		}
	}
	// A token in the URL counts for nothing.
	good := mint(t, viewer.Grant{Cameras: []string{"*"}})
	for _, query := range []string{"?token=" + good, "?access_token=" + good} {
		resp, body := h.do("GET", "/v1/cameras"+query, "", "")
		h.wantProblem(resp, body, http.StatusUnauthorized, "unauthenticated")
	}
	b := h.connect(good)
	if m := b.next(); m.Type != typeWelcome || m.ICEServers[0].Credential == "" {
		t.Errorf("welcome %+v", m)
	}
	if strings.Contains(h.logs.String(), good) || strings.Contains(h.logs.String(), strings.Split(good, ".")[2]) {
		t.Error("the log has a token")
	}
}

func TestEachSessionIsAuthorized(t *testing.T) {
	h := newHarness(t, withAuth(t))
	n := h.node("n1")
	for _, camera := range []string{"lobby", "plant-1", "vault"} {
		h.control.assign(camera, n, 1)
	}
	b := h.welcomed(mint(t, viewer.Grant{Subject: "anna", Cameras: []string{"lobby", "plant-*"}, MaxSessions: 2}))
	s := b.live("a", "lobby", n)
	if s.open.GetViewer() != "anna" {
		t.Errorf("viewer %q", s.open.GetViewer())
	}
	b.live("b", "plant-1", n)
	b.watch("c", "vault")
	if m := b.untilType("c", typeError); m.Reason != "camera_forbidden" {
		t.Errorf("error %+v", m)
	}
	b.untilState("c", stateEnded)
	b.watch("d", "lobby")
	if m := b.untilType("d", typeError); m.Reason != "too_many_sessions" {
		t.Errorf("error %+v", m)
	}
	// The same viewer elsewhere has no session left either.
	other := h.welcomed(mint(t, viewer.Grant{Subject: "anna", Cameras: []string{"*"}, MaxSessions: 2}))
	other.watch("d", "lobby")
	if m := other.untilType("d", typeError); m.Reason != "too_many_sessions" {
		t.Errorf("error %+v", m)
	}
	b.works("a", s)
	if line := auditLine(t, h.logs.String(), "viewing refused"); line["viewer"] != "anna" || line["camera"] != "vault" || line["reason"] != "camera_forbidden" {
		t.Errorf("audit line %v", line)
	}
}

func TestTokenExpiresWhileWatching(t *testing.T) {
	h := newHarness(t, withAuth(t))
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	h.control.assign("yard", n, 1)
	b := h.welcomed(mint(t, viewer.Grant{Subject: "anna", Cameras: []string{"*"}, TTL: 2 * time.Second}))
	s := b.live("a", "lobby", n)
	if m := b.untilType("a", typeError); m.Reason != "token_expired" {
		t.Errorf("error %+v", m)
	}
	b.untilState("a", stateEnded)
	s.left()
	b.watch("b", "lobby")
	if m := b.untilType("b", typeError); m.Reason != "token_expired" {
		t.Errorf("error %+v", m)
	}
	// The connection is still there for a new token, of the same viewer.
	b.send(map[string]any{"type": "token", "token": "garbage"})
	if m := b.untilType("", typeError); m.Reason != "unauthenticated" {
		t.Errorf("error %+v", m)
	}
	b.send(map[string]any{"type": "token", "token": mint(t, viewer.Grant{Subject: "bert", Cameras: []string{"*"}})})
	if m := b.untilType("", typeError); m.Reason != "unauthenticated" {
		t.Errorf("error %+v", m)
	}
	b.send(map[string]any{"type": "token", "token": mint(t, viewer.Grant{Subject: "anna", Cameras: []string{"*"}})})
	b.untilType("", typeWelcome)
	s = b.live("c", "lobby", n)
	yard := b.live("d", "yard", n)
	// Rights that are taken away end what is watched by them, and no more.
	b.send(map[string]any{"type": "token", "token": mint(t, viewer.Grant{Subject: "anna", Cameras: []string{"lobby"}})})
	if m := b.untilType("d", typeError); m.Reason != "camera_forbidden" {
		t.Errorf("error %+v", m)
	}
	yard.left()
	b.works("c", s)
}

// TestOrphansAreCounted is a viewer who breaks connections to have more
// sessions than the token allows.
func TestOrphansAreCounted(t *testing.T) {
	h := newHarness(t, withAuth(t))
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	token := mint(t, viewer.Grant{Subject: "anna", Cameras: []string{"*"}, MaxSessions: 1})
	cut := func(token string) *nodeSession {
		b := h.welcomed(token)
		s := b.live("a", "lobby", n)
		_ = b.ws.NetConn().Close()
		return s
	}
	cut(token).orphaned()
	eventually(t, "the place to be free", func() bool {
		release, ok := h.gateway.sessions.add("viewer anna", 1)
		if ok {
			release()
		}
		return ok
	})
	cut(token).left()
	cut(mint(t, viewer.Grant{Subject: "bert", Cameras: []string{"*"}, MaxSessions: 1})).orphaned()
}

func TestRenewedTokenKeepsSessions(t *testing.T) {
	h := newHarness(t, withAuth(t))
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	first := time.Now().Add(2 * time.Second)
	b := h.welcomed(mint(t, viewer.Grant{Cameras: []string{"*"}, TTL: 2 * time.Second}))
	s := b.live("a", "lobby", n)
	b.send(map[string]any{"type": "token", "token": mint(t, viewer.Grant{Cameras: []string{"*"}})})
	b.untilType("", typeWelcome)
	time.Sleep(time.Until(first) + 200*time.Millisecond)
	b.works("a", s)
}

func TestHTTPAuthorization(t *testing.T) {
	h := newHarness(t, withAuth(t))
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	h.control.assign("vault", n, 1)
	token := "Bearer " + mint(t, viewer.Grant{Subject: "anna", Cameras: []string{"lob*"}})
	other := "Bearer " + mint(t, viewer.Grant{Subject: "bert", Cameras: []string{"lob*"}})

	resp, body := h.do("GET", "/v1/cameras", "", "", "Authorization", token)
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"lobby"`) || strings.Contains(body, "vault") {
		t.Errorf("cameras: %d %s", resp.StatusCode, body)
	}
	resp, body = h.do("GET", "/stats", "", "", "Authorization", token)
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, `"lobby"`) || strings.Contains(body, "vault") {
		t.Errorf("stats: %d %s", resp.StatusCode, body)
	}
	for _, path := range []string{"/v1/cameras", "/stats"} {
		resp, body = h.do("GET", path, "", "")
		h.wantProblem(resp, body, http.StatusUnauthorized, "unauthenticated")
		if resp.Header.Get("WWW-Authenticate") == "" {
			t.Error("no WWW-Authenticate")
		}
	}
	resp, body = h.do("POST", "/v1/cameras/lobby/whep", sdpType, testOffer)
	h.wantProblem(resp, body, http.StatusUnauthorized, "unauthenticated")
	resp, body = h.do("POST", "/v1/cameras/vault/whep", sdpType, testOffer, "Authorization", token)
	h.wantProblem(resp, body, http.StatusForbidden, "camera_forbidden")

	resp, s := post(h, n, "Authorization", token)
	location := resp.Header.Get("Location")
	resp, body = h.do("DELETE", location, "", "", "Authorization", other)
	h.wantProblem(resp, body, http.StatusNotFound, "session_not_found")
	resp, body = h.do("DELETE", location, "", "")
	h.wantProblem(resp, body, http.StatusUnauthorized, "unauthenticated")
	if s.stream.Context().Err() != nil {
		t.Error("another viewer ended the session")
	}
	if resp, _ := h.do("OPTIONS", "/v1/cameras/lobby/whep", "", ""); resp.Header.Get("Link") != "" {
		t.Error("TURN credentials for nobody")
	}
	if resp, _ := h.do("OPTIONS", "/v1/cameras/lobby/whep", "", "", "Authorization", token); resp.Header.Get("Link") == "" {
		t.Error("no Link for a viewer")
	}
	resp, _ = h.do("DELETE", location, "", "", "Authorization", token)
	if resp.StatusCode != http.StatusOK {
		t.Errorf("DELETE: %d", resp.StatusCode)
	}
	s.left()
}
