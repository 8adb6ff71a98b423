package viewertest

import (
	"context"
	"strings"
	"testing"
	"time"
)

// watching prepares a Watch at a gateway that has said welcome.
func watching(t *testing.T, g *gateway) *Watch {
	t.Helper()
	prepared := make(chan *Watch, 1)
	go func() {
		w, err := PrepareWatch(t.Context(), "ws://"+g.http.Listener.Addr().String()+"/v1/ws", "", "lobby", Config{})
		if err != nil {
			t.Error(err)
		}
		prepared <- w
	}()
	g.next("open")
	g.say(fromGateway{Type: "welcome"})
	w := <-prepared
	if w == nil {
		t.FailNow()
	}
	return w
}

// A Watch says nothing before Play, and tells why it has failed.
func TestWatchRefused(t *testing.T) {
	g := newGateway(t)
	w := watching(t, g)
	select {
	case m := <-g.got:
		t.Errorf("it said %+v before Play", m)
	case <-time.After(50 * time.Millisecond):
	}
	played := make(chan error, 1)
	go func() { played <- w.Play(t.Context()) }()
	m := g.next("watch")
	if m.Camera != "lobby" || m.Session == "" || !strings.Contains(m.Offer, "H264") {
		t.Errorf("watch %+v", m)
	}
	if c := g.next("candidate"); c.Session != m.Session || !strings.Contains(c.Candidate.Candidate, "127.0.0.1") {
		t.Errorf("candidate %+v", c)
	}
	g.say(fromGateway{Type: "error", Session: m.Session, Reason: "camera_not_found", Message: "there is no such camera"})
	g.say(fromGateway{Type: "state", Session: m.Session, State: "ended"})
	if err := <-played; err == nil || !strings.Contains(err.Error(), "camera_not_found") {
		t.Errorf("error %v", err)
	}
	if sent, answered := w.Times(); sent.IsZero() || !answered.IsZero() {
		t.Errorf("sent at %v, answered at %v", sent, answered)
	}
	if err := w.Delete(t.Context()); err != nil {
		t.Error(err)
	}
	g.next("leave")
}

// What goes wrong on the way ends it, and leaves nothing.
func TestWatchFails(t *testing.T) {
	g := newGateway(t)
	w := watching(t, g)
	played := make(chan error, 1)
	go func() { played <- w.Play(t.Context()) }()
	m := g.next("watch")
	g.say(fromGateway{Type: "answer", Session: m.Session, SDP: "none"})
	if err := <-played; err == nil || !strings.Contains(err.Error(), "set the answer") {
		t.Errorf("error %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}

	w = watching(t, g)
	go func() { played <- w.Play(t.Context()) }()
	g.next("watch")
	g.hangUp()
	if err := <-played; err == nil || !strings.Contains(err.Error(), "watch camera lobby") {
		t.Errorf("error %v", err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	endpoint := "ws://" + g.http.Listener.Addr().String() + "/v1/ws"
	if _, err := PrepareWatch(ctx, endpoint, "", "lobby", Config{}); err == nil || !strings.Contains(err.Error(), "welcome") {
		t.Errorf("without a welcome: %v", err)
	}
	g.http.CloseClientConnections()
	g.http.Close()
	if _, err := PrepareWatch(t.Context(), endpoint, "", "lobby", Config{}); err == nil {
		t.Error("no error without a gateway")
	}
}
