package viewertest

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"time"

	"github.com/gorilla/websocket"
)

// fromGateway is a message of the gateway (docs/signaling.md).
type fromGateway struct {
	Type      string     `json:"type"`
	Session   string     `json:"session"`
	SDP       string     `json:"sdp"`
	Candidate *Candidate `json:"candidate"`
	State     string     `json:"state"`
	Reason    string     `json:"reason"`
	Message   string     `json:"message"`
	Heartbeat int64      `json:"heartbeat_ms"`
}

// toGateway is a message to it.
type toGateway struct {
	Type         string     `json:"type"`
	Session      string     `json:"session"`
	Camera       string     `json:"camera,omitempty"`
	Offer        string     `json:"offer,omitempty"`
	Viewport     *viewport  `json:"viewport,omitempty"`
	Codecs       []string   `json:"codecs,omitempty"`
	Candidate    *Candidate `json:"candidate,omitempty"`
	FirstFrameMS *float64   `json:"first_frame_ms,omitempty"`
}

// resized is the message that a picture's box has changed.
type resized struct {
	Type    string `json:"type"`
	Session string `json:"session"`
	viewport
}

// viewport is the picture's box in device pixels.
type viewport struct {
	Width   int  `json:"width"`
	Height  int  `json:"height"`
	Visible bool `json:"visible"`
}

const protocol = "fanlight.v1"

// connect opens a websocket, without waiting for it.
func (f *Follower) connect(ctx context.Context) {
	f.attempt++
	attempt := f.attempt
	f.cancel(f.socketAlarm)
	f.socketAlarm = f.after(welcomeTimeout, func() { f.socketLost(ctx, attempt, errors.New("no welcome")) })
	f.workers.Go(func() {
		ws, err := f.dial(ctx)
		if err != nil {
			f.post(func() { f.socketLost(ctx, attempt, err) })
			return
		}
		taken := make(chan struct{})
		f.post(func() {
			close(taken)
			if attempt != f.attempt {
				_ = ws.Close()
				return
			}
			f.socket = ws
		})
		select {
		case <-taken:
			f.readSocket(ctx, ws, attempt)
		case <-f.done:
		}
		_ = ws.Close()
	})
}

func (f *Follower) dial(ctx context.Context) (*websocket.Conn, error) {
	return dialGateway(ctx, "ws://"+f.cfg.Gateway+"/v1/ws", f.cfg.Token)
}

// dialGateway opens a websocket; an empty token is none.
func dialGateway(ctx context.Context, endpoint, token string) (*websocket.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, welcomeTimeout)
	defer cancel()
	protocols := []string{protocol}
	if token != "" {
		protocols = append(protocols, "fanlight.token."+token)
	}
	d := websocket.Dialer{NetDialContext: new(net.Dialer).DialContext, Subprotocols: protocols, HandshakeTimeout: welcomeTimeout}
	ws, resp, err := d.DialContext(ctx, endpoint, nil)
	if resp != nil {
		_ = resp.Body.Close()
	}
	if err != nil {
		return nil, err
	}
	return ws, nil
}

// readSocket passes on what comes until the websocket ends.
func (f *Follower) readSocket(ctx context.Context, ws *websocket.Conn, attempt int) {
	for {
		_, data, err := ws.ReadMessage()
		if err != nil {
			f.post(func() { f.socketLost(ctx, attempt, err) })
			return
		}
		var m fromGateway
		if json.Unmarshal(data, &m) != nil {
			continue
		}
		f.post(func() {
			if attempt == f.attempt {
				f.received(ctx, m)
			}
		})
	}
}

// received takes a message of the gateway.
func (f *Follower) received(ctx context.Context, m fromGateway) {
	if m.Heartbeat > 0 {
		f.heartbeat = time.Duration(m.Heartbeat) * time.Millisecond
	}
	if f.heartbeat > 0 {
		attempt := f.attempt
		f.cancel(f.silenceAlarm)
		f.silenceAlarm = f.after(f.heartbeat*5/2, func() { f.socketLost(ctx, attempt, errors.New("silence")) })
	}
	if m.Type == "welcome" {
		if !f.welcomed {
			f.cancel(f.socketAlarm)
			f.welcomed, f.welcomedAt = true, time.Now()
			f.note(EventWelcome, "", "")
			f.watch(ctx)
		}
		return
	}
	t := f.takes[m.Session]
	if t == nil {
		return
	}
	if !t.heard && m.Type != "answer" {
		f.cancel(t.timer)
	}
	t.heard = true
	switch m.Type {
	case "answer":
		f.note(EventAnswer, t.id, "")
		f.answered(ctx, t, m.SDP)
	case "candidate":
		if m.Candidate != nil && m.Candidate.Candidate != "" {
			f.candidate(t, *m.Candidate)
		}
	case "state":
		f.note(EventState, t.id, detail(m.State, m.Reason))
		if m.State == "ended" {
			t.offered = false // nothing is left there to leave
			f.failed(ctx, t, m.Reason)
		} else {
			f.state(t, m.State)
		}
	case "move":
		f.note(EventMove, t.id, "")
		if shown, pending := f.both(); t == pending || pending == nil && t == shown {
			f.watch(ctx)
		}
	case "error":
		f.note(EventState, t.id, detail("error", m.Reason))
		if t.restarting {
			f.failed(ctx, t, m.Reason)
		}
	}
}

func detail(state, reason string) string {
	if reason == "" {
		return state
	}
	return state + " " + reason
}

// send writes a message; false: there is no websocket, and it is lost.
func (f *Follower) send(m any) bool {
	if !f.welcomed {
		return false
	}
	_ = f.socket.SetWriteDeadline(time.Now().Add(sendTimeout))
	return f.socket.WriteJSON(m) == nil // the reader hears of an error too
}

// socketLost forgets the websocket and connects again after a wait. The
// picture stays as long as its node sends it.
func (f *Follower) socketLost(ctx context.Context, attempt int, err error) {
	if attempt != f.attempt || ctx.Err() != nil {
		return
	}
	f.attempt++ // what it still brings is ignored
	f.note(EventGatewayLost, "", err.Error())
	if f.welcomed && time.Since(f.welcomedAt) >= stableSocket {
		f.socketPause.reset()
	}
	if f.socket != nil {
		_ = f.socket.Close()
	}
	f.socket, f.welcomed = nil, false
	f.cancel(f.socketAlarm)
	f.cancel(f.retryAlarm)
	f.cancel(f.silenceAlarm)
	f.heartbeat = 0
	f.mu.Lock()
	pending := f.pending
	f.pending = nil
	if f.shown != nil {
		f.shown.orphaned = true
	}
	f.mu.Unlock()
	f.discard(pending)
	clear(f.takes)
	f.socketAlarm = f.after(f.socketPause.next(jitter), func() { f.connect(ctx) })
}

// jitter returns anything from 0 to d.
func jitter(d time.Duration) time.Duration { return rand.N(d + 1) }
