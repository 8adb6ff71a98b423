package signaling

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gorilla/websocket"
	"golang.org/x/time/rate"

	"fanlight/internal/fleet"
	mediav1 "fanlight/proto/fanlight/media/v1"
	"fanlight/signaling/viewer"
)

const (
	// closeWait is how long a connection that was shut still lives: for what is
	// queued, the close frame, and the browser's answer. What the browser sends
	// is read and dropped meanwhile: closing a socket with unread data would
	// reset it and lose the frame.
	closeWait = time.Second
	// bytesPerToken makes large messages count for more than one.
	bytesPerToken = 4 << 10
	// refusedKept is how many messages above the rate a connection survives
	// without a pause that fills its bucket again.
	refusedKept = 1000
	// endedKept is how many ids of sessions that have ended a connection
	// remembers, to tell late messages from those out of order.
	endedKept = 256
	// tokenGrace is how long a connection whose token has expired waits for a
	// new one.
	tokenGrace = time.Minute
	// A gateway that stops spreads the ends of its connections over stopSpread
	// each, and stopSpreadMost in all, so that browsers don't come to the others
	// at the same moment.
	stopSpread     = time.Millisecond
	stopSpreadMost = time.Second
)

// conn is one browser's websocket with all its sessions.
type conn struct {
	// Static.
	gateway *Gateway
	ws      *websocket.Conn
	creds   *credentials
	remote  string
	log     *slog.Logger
	out     *outbox
	closing chan struct{} // closed by shut

	// Owned by read.
	limiter    *rate.Limiter
	refused    int       // messages above the rate since the bucket was full
	complained time.Time // when the browser was last told of them

	sessions sync.WaitGroup

	mu       sync.Mutex // guards the rest
	live     map[string]*live
	ended    []string  // ids, oldest first
	closeMsg []byte    // what shut was given; nil: it was not called
	why      error     // the same; nil: the connection broke
	until    time.Time // when a connection that was shut is closed
}

// live is a session of a connection that has not ended.
type live struct {
	session *session
	cancel  context.CancelCauseFunc
}

// serveWebsocket is the handler of /v1/ws. It returns when the connection and
// all its sessions have ended.
func (g *Gateway) serveWebsocket(w http.ResponseWriter, r *http.Request) {
	offered := websocket.Subprotocols(r)
	if !websocket.IsWebSocketUpgrade(r) || !slices.Contains(offered, Protocol) {
		g.problem(w, r, fmt.Errorf("open a websocket with the subprotocol %q: %w", Protocol, fleet.ProtocolUnsupported))
		return
	}
	remote := g.remote(r)
	release, ok := g.connections.add(remote, g.limits.ConnectionsPerAddress)
	if !ok {
		g.problem(w, r, fmt.Errorf("%d connections from one address are the limit, close some or share one: %w", g.limits.ConnectionsPerAddress, fleet.TooManyConnections))
		return
	}
	defer release()
	upgrader := websocket.Upgrader{
		HandshakeTimeout: g.limits.WriteTimeout,
		Subprotocols:     []string{Protocol},
		CheckOrigin:      func(*http.Request) bool { return true }, // checked before, for every path
	}
	ws, err := upgrader.Upgrade(w, r, nil)
	if err != nil {
		return // Upgrade has answered
	}
	defer func() { _ = ws.Close() }()
	c := &conn{
		gateway: g, ws: ws, remote: remote,
		log:     g.log.With("remote_address", remote),
		out:     newOutbox(g.limits.QueuedMessages, g.limits.QueuedBytes),
		closing: make(chan struct{}),
		limiter: rate.NewLimiter(rate.Limit(g.limits.MessageRate), g.limits.MessageBurst),
		live:    make(map[string]*live),
	}
	// The browser cannot read why a handshake was refused, so a bad token is
	// told on the open connection.
	v, err := g.authenticate(r.Context(), websocketToken(offered))
	c.creds = newCredentials(v)
	if err == nil && v.Subject != "" {
		releaseViewer, ok := g.connections.add(who(v, remote), g.limits.ConnectionsPerViewer)
		if ok {
			defer releaseViewer()
		} else {
			err = fmt.Errorf("%d connections of one viewer are the limit, close some or share one: %w", g.limits.ConnectionsPerViewer, fleet.TooManyConnections)
		}
	}
	c.serve(context.WithoutCancel(r.Context()), err)
}

// websocketToken returns the token among the subprotocols; empty: none.
func websocketToken(offered []string) string {
	for _, p := range offered {
		if t, ok := strings.CutPrefix(p, tokenProtocol); ok {
			return t
		}
	}
	return ""
}

// serve runs the connection; refusal is why it must not go on.
func (c *conn) serve(ctx context.Context, refusal error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.gateway.websockets.Add(1)
	defer c.gateway.websockets.Add(-1)
	var writer sync.WaitGroup
	writer.Go(c.write)
	// Not the writer's task: it may be stuck in a write.
	writer.Go(c.stopWithGateway)
	if refusal != nil {
		c.gateway.metrics.told(refusal)
		c.send(errorMessage("", refusal))
		c.shut(websocket.ClosePolicyViolation, refusal)
	} else {
		c.welcome()
	}
	err := c.read(ctx)
	why := c.whySessionsEnd(err)
	c.shut(websocket.CloseNormalClosure, nil)
	// Also of a write that began at the moment of shut, with a later deadline.
	_ = c.ws.NetConn().SetWriteDeadline(c.end())
	cancel(why)
	c.sessions.Wait()
	writer.Wait()
}

// stopWithGateway closes the connection when the gateway stops.
func (c *conn) stopWithGateway() {
	select {
	case <-c.gateway.stopping:
	case <-c.closing:
		return
	}
	spread := min(stopSpreadMost, time.Duration(c.gateway.websockets.Load())*stopSpread)
	t := time.NewTimer(rand.N(spread + 1))
	defer t.Stop()
	select {
	case <-t.C:
	case <-c.closing:
	}
	c.shut(websocket.CloseServiceRestart, fmt.Errorf("connect again: %w", fleet.GatewayStopping))
}

// whySessionsEnd returns errLeft if the end of the connection is the end of its
// sessions, because the browser has said so or was refused; errLost if the
// browser will come back for them. read is what reading ended with.
func (c *conn) whySessionsEnd(read error) error {
	c.mu.Lock()
	why := c.why
	c.mu.Unlock()
	switch {
	case errors.Is(why, fleet.GatewayStopping), errors.Is(why, fleet.SlowReader):
		return errLost
	case why != nil, websocket.IsCloseError(read, websocket.CloseNormalClosure, websocket.CloseGoingAway, websocket.CloseNoStatusReceived):
		return errLeft
	}
	return errLost
}

func (c *conn) welcome() {
	v, _ := c.creds.get()
	c.send(outbound{
		Type: typeWelcome, Protocol: Protocol, ICEServers: c.gateway.ice.servers(v.Subject, time.Now()),
		Heartbeat: c.gateway.limits.HeartbeatEvery.Milliseconds(),
	})
}

// send queues a message. A full queue ends the connection.
func (c *conn) send(m outbound) {
	if c.out.put(m.encode()) {
		return
	}
	c.log.Info("websocket closed", "reason", "slow_reader")
	c.shut(websocket.ClosePolicyViolation, fmt.Errorf("read messages as they come: %w", fleet.SlowReader))
}

// shut makes the writer say what is queued, then why, and close, and ends all
// reading and writing closeWait from now, whatever the browser does; the first
// call counts.
func (c *conn) shut(code int, why error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closeMsg != nil {
		return
	}
	text := ""
	if why != nil {
		// A close frame has room for 123 bytes of text (RFC 6455 §5.5).
		text = clip(wireReason(why)+": "+sentence(why), 120)
	}
	c.closeMsg, c.why = websocket.FormatCloseMessage(code, text), why
	c.until = time.Now().Add(closeWait)
	_ = c.ws.NetConn().SetDeadline(c.until)
	c.out.close()
	close(c.closing)
}

// end is when a connection that was shut is closed; zero: it was not.
func (c *conn) end() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.until
}

// write sends what is queued, pings, and closes.
func (c *conn) write() {
	ping := time.NewTicker(c.gateway.limits.PingEvery)
	defer ping.Stop()
	// Browsers can't see pings. What they can see tells them that a gateway is
	// there, whose host may have vanished without closing the connection.
	heartbeat := time.NewTicker(c.gateway.limits.HeartbeatEvery)
	defer heartbeat.Stop()
	fresh := time.NewTicker(max(c.gateway.ice.lifetime()*3/4, time.Second))
	defer fresh.Stop()
	for {
		var err error
		select {
		case <-c.out.wake:
			err = c.flush()
		case <-ping.C:
			if v, _ := c.creds.get(); v.Expired(time.Now().Add(-tokenGrace)) {
				c.shut(websocket.ClosePolicyViolation, fmt.Errorf("no new token came in time: %w", fleet.TokenExpired))
			}
			err = c.ws.WriteControl(websocket.PingMessage, nil, time.Now().Add(c.gateway.limits.WriteTimeout))
		case <-heartbeat.C:
			c.send(outbound{Type: typeHeartbeat})
		case <-fresh.C:
			c.welcome()
		case <-c.closing:
			_ = c.flush()
			c.mu.Lock()
			msg, until := c.closeMsg, c.until
			c.mu.Unlock()
			_ = c.ws.WriteControl(websocket.CloseMessage, msg, until)
			return
		}
		if err != nil {
			c.shut(websocket.CloseAbnormalClosure, nil)
			_ = c.ws.NetConn().Close() // wakes the reader
			return
		}
	}
}

// flush writes what is queued.
func (c *conn) flush() error {
	for _, msg := range c.out.take() {
		deadline := time.Now().Add(c.gateway.limits.WriteTimeout)
		if end := c.end(); !end.IsZero() {
			deadline = end
		}
		if err := c.ws.SetWriteDeadline(deadline); err != nil {
			return err
		}
		if err := c.ws.WriteMessage(websocket.TextMessage, msg); err != nil {
			return err
		}
	}
	return nil
}

// read takes messages until the connection fails, or closeWait after it was
// shut. The error is never nil.
func (c *conn) read(ctx context.Context) error {
	c.ws.SetPongHandler(func(string) error { c.alive(); return nil })
	for {
		c.alive()
		kind, r, err := c.ws.NextReader()
		if err != nil {
			return err
		}
		data, err := io.ReadAll(io.LimitReader(r, int64(c.gateway.limits.MessageBytes)+1))
		if err != nil {
			return err
		}
		switch {
		case c.isShut():
			// Dropped: the answer would come after the close frame.
		case len(data) > c.gateway.limits.MessageBytes:
			c.shut(websocket.CloseMessageTooBig, fmt.Errorf("a message has at most %d bytes: %w", c.gateway.limits.MessageBytes, fleet.MessageTooLarge))
		case !c.admit(len(data)):
		case kind != websocket.TextMessage:
			c.send(errorMessage("", fmt.Errorf("send text frames, not binary ones: %w", fleet.BadMessage)))
		default:
			c.take(ctx, data)
		}
	}
}

// alive puts the time off at which a silent connection is given up. That of
// one that was shut is not put off.
func (c *conn) alive() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closeMsg == nil {
		_ = c.ws.SetReadDeadline(time.Now().Add(c.gateway.limits.PingEvery*2 + c.gateway.limits.WriteTimeout))
	}
}

func (c *conn) isShut() bool {
	select {
	case <-c.closing:
		return true
	default:
		return false
	}
}

// admit tells whether a message is within the rate. The browser is told of
// refused ones once a second, and given up if it does not slow down.
func (c *conn) admit(size int) bool {
	if c.limiter.AllowN(time.Now(), 1+size/bytesPerToken) {
		if c.limiter.Tokens() >= float64(c.gateway.limits.MessageBurst)-1 {
			c.refused = 0
		}
		return true
	}
	err := fmt.Errorf("%d messages a second are the limit, the message was dropped: %w", c.gateway.limits.MessageRate, fleet.RateLimited)
	c.refused++
	if c.refused > refusedKept {
		c.shut(websocket.ClosePolicyViolation, err)
	} else if now := time.Now(); now.Sub(c.complained) >= time.Second {
		c.complained = now
		c.send(errorMessage("", err))
	}
	return false
}

// take acts on a message. What is wrong with it is told, and ends nothing.
func (c *conn) take(ctx context.Context, data []byte) {
	m, err := decode(data)
	if err != nil {
		c.failed(m, err)
		return
	}
	switch m.Type {
	case typeToken:
		err = c.renew(ctx, m.Token)
	case typeWatch:
		err = c.watch(ctx, m)
	default:
		err = c.forSession(m)
	}
	if err != nil {
		c.failed(m, err)
	}
}

// failed tells what is wrong with a message. A watch that failed has ended,
// unless the id is that of another session that has not.
func (c *conn) failed(m inbound, err error) {
	c.gateway.metrics.told(err)
	c.send(errorMessage(m.Session, err))
	if m.Type != typeWatch || m.Session == "" {
		return
	}
	if _, ok := c.session(m.Session); !ok {
		ended := stateMessage(stateEnded, fleet.Reason(wireReason(err)), sentence(err), time.Time{})
		ended.Session = m.Session
		c.send(ended)
	}
}

// session returns the session of that id that has not ended.
func (c *conn) session(id string) (*live, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	l, ok := c.live[id]
	return l, ok
}

// renew takes a refreshed token.
func (c *conn) renew(ctx context.Context, token string) error {
	v, err := c.gateway.authenticate(ctx, token)
	if err != nil {
		return err
	}
	if err := c.creds.renew(v); err != nil {
		return err
	}
	c.welcome()
	return nil
}

// watch begins a session.
func (c *conn) watch(ctx context.Context, m inbound) error {
	c.mu.Lock()
	_, exists := c.live[m.Session]
	count := 0
	for _, l := range c.live {
		if !l.session.hasMoved.Load() {
			count++
		}
	}
	all := len(c.live)
	c.mu.Unlock()
	limit := c.gateway.limits.SessionsPerConnection
	switch {
	case exists:
		return fmt.Errorf("session %q exists on this connection, choose another id: %w", m.Session, fleet.SessionExists)
	case count >= limit || all >= 2*limit:
		return fmt.Errorf("%d sessions on one connection are the limit, leave one: %w", limit, fleet.TooManySessions)
	}
	open := &mediav1.Open{Offer: m.Offer, RemoteAddress: c.remote, Trickle: true, Codecs: m.Codecs}
	if m.Viewport != nil {
		open.Viewport = m.Viewport.proto()
	}
	s, err := c.gateway.newSession(sessionConfig{
		id: m.Session, camera: fleet.CameraID(m.Camera), open: open, creds: c.creds, remote: c.remote,
		via: "websocket", mayMove: true, send: c.send,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	l := &live{session: s, cancel: cancel}
	s.onEnd = func() { c.forget(m.Session, l) }
	c.mu.Lock()
	c.live[m.Session] = l
	c.ended = slices.DeleteFunc(c.ended, func(id string) bool { return id == m.Session })
	c.mu.Unlock()
	c.sessions.Go(func() {
		defer cancel(nil)
		_ = c.gateway.runSession(ctx, s) // the browser has been told
	})
	return nil
}

// forget notes that a session has ended, if it has not been left before.
func (c *conn) forget(id string, l *live) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.live[id] != l {
		return
	}
	delete(c.live, id)
	c.ended = append(c.ended, id)
	if len(c.ended) > endedKept {
		c.ended = slices.Delete(c.ended, 0, 1)
	}
}

// forSession passes a message on to its session.
func (c *conn) forSession(m inbound) error {
	l, ok := c.session(m.Session)
	if !ok {
		return c.noSession(m)
	}
	req := &mediav1.OpenSessionRequest{}
	switch m.Type {
	case typeLeave:
		c.forget(m.Session, l)
		l.cancel(errLeft)
		return nil
	case typeStats:
		if l.session.viewing.firstFrame.Swap(int64(m.FirstFrameMS)) == 0 {
			c.gateway.metrics.firstFrame(m.FirstFrameMS)
		}
		return nil
	case typeCandidate:
		req.Message = &mediav1.OpenSessionRequest_Candidate{Candidate: m.candidate}
	case typeRestart:
		req.Message = &mediav1.OpenSessionRequest_Restart{Restart: &mediav1.Restart{Offer: m.Offer}}
	case typeViewport:
		req.Message = &mediav1.OpenSessionRequest_Viewport{Viewport: viewport{m.Width, m.Height, m.Visible}.proto()}
	}
	select {
	case l.session.requests <- req:
		return nil
	default:
		return fmt.Errorf("messages for session %q come faster than its node takes them, this one was dropped: %w", m.Session, fleet.RateLimited)
	}
}

// noSession is what is wrong with a message for a session that is not there.
func (c *conn) noSession(m inbound) error {
	c.mu.Lock()
	known := slices.Contains(c.ended, m.Session)
	c.mu.Unlock()
	switch {
	case known && m.Type == typeStats:
		return nil // a last word is no mistake
	case known || m.Type == typeLeave:
		return fmt.Errorf("session %q has ended or never was: %w", m.Session, fleet.SessionNotFound)
	}
	return fmt.Errorf("%s comes before watch, send watch for session %q first: %w", m.Type, m.Session, fleet.OutOfOrder)
}

// authenticate returns whom a token speaks for.
func (g *Gateway) authenticate(ctx context.Context, token string) (viewer.Viewer, error) {
	if g.auth == nil {
		return viewer.Anyone(), nil
	}
	v, err := g.auth.Verify(ctx, token)
	if err == nil && v.Expired(time.Now()) {
		err = fmt.Errorf("the token has expired, get a new one: %w", fleet.TokenExpired)
	}
	return v, err
}
