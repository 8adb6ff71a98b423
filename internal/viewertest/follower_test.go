package viewertest

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
)

// gateway is a websocket server that answers as a test says. Real gateways and
// nodes are in fleettest's tests.
type gateway struct {
	t    *testing.T
	http *httptest.Server
	// got has what followers send, and "open" for each websocket.
	got chan toGateway

	mu sync.Mutex
	ws *websocket.Conn // the latest
}

func newGateway(t *testing.T) *gateway {
	t.Helper()
	g := &gateway{t: t, got: make(chan toGateway, 100)}
	var up websocket.Upgrader
	up.Subprotocols = []string{protocol}
	g.http = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/ws" || !strings.Contains(r.Header.Get("Sec-WebSocket-Protocol"), protocol) {
			t.Errorf("%s with %q", r.URL, r.Header.Get("Sec-WebSocket-Protocol"))
		}
		ws, err := up.Upgrade(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		defer ws.Close()
		g.mu.Lock()
		g.ws = ws
		g.mu.Unlock()
		g.got <- toGateway{Type: "open"}
		for {
			var m toGateway
			if ws.ReadJSON(&m) != nil {
				return
			}
			g.got <- m
		}
	}))
	t.Cleanup(g.http.Close)
	return g
}

func (g *gateway) say(m fromGateway) {
	g.t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.ws.WriteJSON(m); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gateway) hangUp() {
	g.mu.Lock()
	defer g.mu.Unlock()
	_ = g.ws.Close()
}

// next returns the next message of a type, and skips others.
func (g *gateway) next(typ string) toGateway {
	g.t.Helper()
	patience := time.NewTimer(20 * time.Second)
	defer patience.Stop()
	for {
		select {
		case m := <-g.got:
			if m.Type == typ {
				return m
			}
		case <-patience.C:
			g.t.Fatalf("no %q", typ)
		}
	}
}

func TestFollowerTries(t *testing.T) {
	g := newGateway(t)
	f, err := NewFollower(FollowerConfig{Gateway: g.http.Listener.Addr().String(), Camera: "lobby"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	defer wg.Wait()
	defer cancel()

	g.next("open")
	g.say(fromGateway{Type: "welcome"})
	m := g.next("watch")
	if m.Camera != "lobby" || !strings.Contains(m.Offer, "H264") || m.Session == "" || !m.Viewport.Visible {
		t.Fatalf("watch %+v", m)
	}
	if c := g.next("candidate"); c.Session != m.Session || !strings.Contains(c.Candidate.Candidate, "127.0.0.1") {
		t.Errorf("candidate %+v", c)
	}
	// A session that the gateway ends is followed by another, not left.
	g.say(fromGateway{Type: "state", Session: m.Session, State: "ended", Reason: "node_stopping"})
	again := g.next("watch")
	if again.Session == m.Session {
		t.Error("the same session again")
	}
	// Told to move before there is a picture: another takes its place.
	g.say(fromGateway{Type: "move", Session: again.Session})
	if left := g.next("leave"); left.Session != again.Session {
		t.Errorf("left %q", left.Session)
	}
	moved := g.next("watch")
	// Words about sessions that are over change nothing.
	g.say(fromGateway{Type: "move", Session: m.Session})
	g.say(fromGateway{Type: "answer", Session: again.Session, SDP: "none"})
	// A lost websocket is opened again, and another session begun.
	g.hangUp()
	g.next("open")
	g.say(fromGateway{Type: "welcome"})
	back := g.next("watch")
	if back.Session == moved.Session {
		t.Error("the same session over another websocket")
	}
	// An answer that is none.
	g.say(fromGateway{Type: "answer", Session: back.Session, SDP: "none"})
	if left := g.next("leave"); left.Session != back.Session {
		t.Errorf("left %q", left.Session)
	}
	g.next("watch")
	if f.Settled() || f.Remote() != "" {
		t.Errorf("settled %v at %q without a picture", f.Settled(), f.Remote())
	}
	s := f.Summary(time.Now().Add(-time.Minute), time.Now())
	if !s.Lost || s.Frames != 0 || s.Reconnects != 1 || s.Swaps != 0 {
		t.Errorf("summary %+v", s)
	}
}

// Without a gateway a Follower goes on trying, and ends when it is told to.
func TestFollowerAlone(t *testing.T) {
	g := newGateway(t)
	g.http.Close()
	f, err := NewFollower(FollowerConfig{Gateway: g.http.Listener.Addr().String(), Camera: "lobby"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = f.Run(ctx) })
	began := time.Now()
	failures := func() (n int) {
		for _, e := range f.Events(began, time.Now()) {
			if e.Kind == EventGatewayLost {
				n++
			}
		}
		return n
	}
	for failures() < 2 && time.Since(began) < 20*time.Second {
		time.Sleep(10 * time.Millisecond)
	}
	if failures() < 2 {
		t.Error("it does not try again")
	}
	short, stop := context.WithTimeout(ctx, 10*time.Millisecond)
	defer stop()
	if err := f.AwaitFrame(short, time.Time{}); err == nil {
		t.Error("a frame of nobody")
	}
	cancel()
	wg.Wait()
}

func TestNewFollower(t *testing.T) {
	for _, cfg := range []FollowerConfig{{}, {Gateway: "127.0.0.1:1"}, {Camera: "lobby"}} {
		if _, err := NewFollower(cfg); err == nil {
			t.Errorf("%+v: no error", cfg)
		}
	}
}
