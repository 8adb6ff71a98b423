package signaling

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gorilla/websocket"
	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
	"fanlight/signaling/viewer"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// testOffer is as much of an offer as the gateway looks at.
const testOffer = "v=0\r\no=- 1 2 IN IP4 127.0.0.1\r\ns=-\r\nt=0 0\r\na=group:BUNDLE 0\r\n" +
	"m=video 9 UDP/TLS/RTP/SAVPF 102\r\nc=IN IP4 0.0.0.0\r\na=mid:0\r\na=ice-ufrag:old1\r\na=ice-pwd:oldpassword0123456789ab\r\na=recvonly\r\n"

// operatorsOnly is a message as nodes and placement write them for operators.
const operatorsOnly = "dial 192.0.2.7:554: n1 lacks the label rack=7"

const testCandidate = "candidate:1 1 udp 2130706431 127.0.0.1 50000 typ host"

// server is a gRPC server on loopback that can go away and come back.
type server struct {
	t        *testing.T
	addr     string
	services map[string]rpc.Role
	register func(grpc.ServiceRegistrar)
	stop     func()
}

func (s *server) start() {
	s.t.Helper()
	addr := s.addr
	if addr == "" {
		addr = "127.0.0.1:0"
	}
	var lis net.Listener
	eventually(s.t, "listen again", func() bool {
		l, err := net.Listen("tcp", addr)
		lis = l
		return err == nil
	})
	s.addr = lis.Addr().String()
	srv := rpc.NewServer(rpc.ServerConfig{AllowAny: true, Services: s.services})
	s.register(srv)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(ctx, lis); err != nil {
			s.t.Errorf("serve: %v", err)
		}
	}()
	s.stop = sync.OnceFunc(func() { cancel(); <-done })
}

// fakeControl is a RouteService whose routes the test sets.
type fakeControl struct {
	controlv1.UnimplementedRouteServiceServer
	server

	mu      sync.Mutex // guards the rest
	routes  map[string]*controlv1.Route
	changed chan struct{}
	added   map[string]int // how often each camera was named
	browses int
	refuse  error // of BrowseCameras
}

func newFakeControl(t *testing.T) *fakeControl {
	t.Helper()
	c := &fakeControl{routes: make(map[string]*controlv1.Route), changed: make(chan struct{}), added: make(map[string]int)}
	c.server = server{
		t: t, services: map[string]rpc.Role{controlv1.RouteService_ServiceDesc.ServiceName: rpc.RoleGateway},
		register: func(r grpc.ServiceRegistrar) { controlv1.RegisterRouteServiceServer(r, c) },
	}
	return c
}

// set changes a camera's route.
func (c *fakeControl) set(r *controlv1.Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.routes[r.GetCamera()] = r
	close(c.changed)
	c.changed = make(chan struct{})
}

// assign gives a camera to a node.
func (c *fakeControl) assign(camera string, n *fakeNode, generation int64) {
	c.set(&controlv1.Route{
		Camera: "cameras/" + camera, State: controlv1.Route_STATE_ASSIGNED,
		Node: "nodes/" + n.name, SessionAddress: n.addr, Generation: generation,
	})
}

func (c *fakeControl) route(camera string) *controlv1.Route {
	if r := c.routes[camera]; r != nil {
		return r
	}
	return &controlv1.Route{Camera: camera, State: controlv1.Route_STATE_NOT_FOUND}
}

func (c *fakeControl) WatchRoutes(stream controlv1.RouteService_WatchRoutesServer) error {
	watched := make(map[string]*controlv1.Route)
	reqs := make(chan *controlv1.WatchRoutesRequest)
	go func() {
		defer close(reqs)
		for {
			req, err := stream.Recv()
			if err != nil {
				return
			}
			select {
			case reqs <- req:
			case <-stream.Context().Done():
				return
			}
		}
	}()
	for {
		c.mu.Lock()
		resp := &controlv1.WatchRoutesResponse{}
		for camera, last := range watched {
			if r := c.route(camera); last == nil || (r != last && r.GetState() != controlv1.Route_STATE_NOT_FOUND) || r.GetState() != last.GetState() {
				watched[camera] = r
				resp.Routes = append(resp.Routes, r)
			}
		}
		changed := c.changed
		c.mu.Unlock()
		if len(resp.GetRoutes()) > 0 {
			if err := stream.Send(resp); err != nil {
				return err
			}
		}
		select {
		case <-stream.Context().Done():
			return stream.Context().Err()
		case <-changed:
		case req, ok := <-reqs:
			if !ok {
				return nil
			}
			c.mu.Lock()
			for _, camera := range req.GetRemove() {
				delete(watched, camera)
			}
			for _, camera := range req.GetAdd() {
				watched[camera] = nil
				c.added[camera]++
			}
			c.mu.Unlock()
		}
	}
}

func (c *fakeControl) BrowseCameras(_ context.Context, req *controlv1.BrowseCamerasRequest) (*controlv1.BrowseCamerasResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(req.GetPatterns()) > 0 {
		c.browses++
	}
	if c.refuse != nil {
		return nil, c.refuse
	}
	// The control plane gives tokens of its own alone.
	if req.GetPageToken() != "" {
		return nil, fleet.InvalidPageToken
	}
	resp := &controlv1.BrowseCamerasResponse{}
	for name, r := range c.routes {
		v := viewer.Viewer{Cameras: req.GetPatterns()}
		if v.MayWatch(fleet.CameraID(strings.TrimPrefix(name, "cameras/"))) {
			resp.Cameras = append(resp.Cameras, &controlv1.ViewableCamera{
				Name: name, DisplayName: "The " + name, Labels: map[string]string{"site": "a"}, Route: r,
				Status: &controlv1.CameraStatus{State: controlv1.CameraStatus_STATE_FAILED, Reason: controlv1.Reason_REASON_TIMEOUT, Message: "dial 192.0.2.7:554: no answer"},
			})
		}
	}
	return resp, nil
}

// fakeNode is a SessionService whose sessions the test plays.
type fakeNode struct {
	mediav1.UnimplementedSessionServiceServer
	server
	name     string
	sessions chan *nodeSession

	mu    sync.Mutex // guards the rest
	deaf  bool       // it ends no session that the gateway has left
	stats int        // calls of GetStats
	rate  float64    // packets per second; 0: 236
}

func newFakeNode(t *testing.T, name string) *fakeNode {
	t.Helper()
	n := &fakeNode{name: name, sessions: make(chan *nodeSession, 100)}
	n.server = server{
		t: t, services: map[string]rpc.Role{mediav1.SessionService_ServiceDesc.ServiceName: rpc.RoleGateway},
		register: func(r grpc.ServiceRegistrar) { mediav1.RegisterSessionServiceServer(r, n) },
	}
	return n
}

// nodeSession is a session as the node sees it.
type nodeSession struct {
	t      *testing.T
	open   *mediav1.Open
	stream mediav1.SessionService_OpenSessionServer
	reqs   chan *mediav1.OpenSessionRequest // closed when the stream has ended
	end    chan error
	half   chan struct{} // closed when the gateway has half-closed the stream
}

func (n *fakeNode) OpenSession(stream mediav1.SessionService_OpenSessionServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	s := &nodeSession{t: n.t, open: first.GetOpen(), stream: stream, reqs: make(chan *mediav1.OpenSessionRequest, 1000), end: make(chan error, 1), half: make(chan struct{})}
	n.sessions <- s
	go func() {
		defer close(s.reqs)
		for {
			req, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				close(s.half)
			}
			if err != nil {
				return
			}
			s.reqs <- req
		}
	}()
	select {
	case err := <-s.end:
		return err
	case <-s.half:
		n.mu.Lock()
		deaf := n.deaf
		n.mu.Unlock()
		if deaf {
			<-stream.Context().Done()
		}
		return nil
	case <-stream.Context().Done():
		return stream.Context().Err()
	}
}

func (n *fakeNode) GetStats(context.Context, *mediav1.GetStatsRequest) (*mediav1.GetStatsResponse, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats++
	rate := 236.0
	if n.rate != 0 {
		rate = n.rate
	}
	return &mediav1.GetStatsResponse{Cameras: []*mediav1.CameraStats{{
		Camera: "cameras/lobby", BitrateBps: 2_000_000, PacketsPerSecond: rate, FramesPerSecond: 25, Viewers: 3, Packets: 10, Bytes: 20, PacketsLost: 1,
		Width: 640, Height: 360, State: &mediav1.SessionState{State: mediav1.SessionState_STATE_LIVE},
		Loss: 0.125, JitterMs: 7.5, PacketsDropped: 4, Verdict: "camera", VerdictMessage: "the camera lost 12.5 % of its packets",
	}}}, nil
}

// next returns the next session that a gateway opens.
func (n *fakeNode) next() *nodeSession {
	n.t.Helper()
	select {
	case s := <-n.sessions:
		return s
	case <-time.After(patience):
		n.t.Fatalf("node %s: no session was opened", n.name)
		return nil
	}
}

func (s *nodeSession) send(m *mediav1.OpenSessionResponse) {
	s.t.Helper()
	if err := s.stream.Send(m); err != nil {
		s.t.Errorf("node: send: %v", err)
	}
}

func (s *nodeSession) answer(sdp string) {
	s.t.Helper()
	s.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Answer{Answer: &mediav1.Answer{Sdp: sdp}}})
}

func (s *nodeSession) state(state mediav1.SessionState_State, reason string) {
	s.t.Helper()
	s.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_State{State: &mediav1.SessionState{State: state, Reason: reason, Message: operatorsOnly}}})
}

// request returns the next message from the gateway.
func (s *nodeSession) request() *mediav1.OpenSessionRequest {
	s.t.Helper()
	select {
	case req, ok := <-s.reqs:
		if !ok {
			s.t.Fatal("node: the gateway has left")
		}
		return req
	case <-time.After(patience):
		s.t.Fatal("node: no message")
		return nil
	}
}

// left waits until the gateway has half-closed the stream: the session is to
// end.
func (s *nodeSession) left() {
	s.t.Helper()
	s.over()
	select {
	case <-s.half:
	default:
		s.t.Error("node: the stream broke, which makes the session an orphan; the gateway was to leave it")
	}
}

// orphaned waits until the stream has broken: the session is to go on.
func (s *nodeSession) orphaned() {
	s.t.Helper()
	s.over()
	select {
	case <-s.half:
		s.t.Error("node: the gateway has left the session, which was to become an orphan")
	default:
	}
}

// over waits until the stream has ended.
func (s *nodeSession) over() {
	s.t.Helper()
	select {
	case <-s.stream.Context().Done():
	case <-time.After(patience):
		s.t.Fatal("node: the stream has not ended")
	}
}

// harness is a gateway with a control plane and nodes around it.
type harness struct {
	t       *testing.T
	control *fakeControl
	gateway *Gateway
	http    *httptest.Server
	stop    func() // ends the gateway
	logs    *logBuffer
}

// logBuffer keeps what is logged.
type logBuffer struct {
	mu  sync.Mutex // guards the rest
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// newHarness starts a gateway; change may be nil.
func newHarness(t *testing.T, change func(*Config)) *harness {
	t.Helper()
	h := &harness{t: t, control: newFakeControl(t), logs: &logBuffer{}}
	h.control.start()
	t.Cleanup(func() { h.control.stop() })
	dialer := &rpc.Dialer{}
	conn, err := dialer.Dial(h.control.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	cfg := Config{
		Log:          slog.New(slog.NewJSONHandler(h.logs, &slog.HandlerOptions{Level: slog.LevelDebug})),
		ControlPlane: conn,
		DialNode:     func(addr string) (*grpc.ClientConn, error) { return dialer.Dial(addr) },
	}
	if change != nil {
		change(&cfg)
	}
	h.gateway, err = New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := h.gateway.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	h.stop = sync.OnceFunc(func() { cancel(); <-done })
	h.http = httptest.NewServer(h.gateway.Handler())
	h.http.Client().Timeout = 2 * patience
	t.Cleanup(func() { h.stop(); h.http.Close() })
	eventually(t, "gateway ready", func() bool { return h.gateway.Ready() == nil })
	return h
}

func (h *harness) node(name string) *fakeNode {
	h.t.Helper()
	n := newFakeNode(h.t, name)
	n.start()
	h.t.Cleanup(func() { n.stop() })
	return n
}

// moved gives a camera to a node and waits until the gateway knows.
func (h *harness) moved(camera string, n *fakeNode, generation int64) {
	h.t.Helper()
	h.control.assign(camera, n, generation)
	w := h.gateway.routes.Watch(fleet.CameraID(camera))
	defer w.Close()
	eventually(h.t, "the gateway knows the new route", func() bool {
		r, _, _ := w.Route()
		return r.Generation == generation && r.Address == n.addr
	})
}

// eventually waits until something is so.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatalf("never happened: %s", what)
}

// browser is a websocket client.
type browser struct {
	t  *testing.T
	ws *websocket.Conn
}

// connect opens a websocket with a token, if there is one.
func (h *harness) connect(token string) *browser {
	h.t.Helper()
	protocols := []string{Protocol}
	if token != "" {
		protocols = append(protocols, tokenProtocol+token)
	}
	d := websocket.Dialer{Subprotocols: protocols, HandshakeTimeout: patience}
	ws, resp, err := d.Dial("ws"+strings.TrimPrefix(h.http.URL, "http")+"/v1/ws", nil)
	if err != nil {
		h.t.Fatalf("connect: %v", err)
	}
	_ = resp.Body.Close()
	h.t.Cleanup(func() { _ = ws.Close() })
	if ws.Subprotocol() != Protocol {
		h.t.Errorf("subprotocol %q", ws.Subprotocol())
	}
	return &browser{t: h.t, ws: ws}
}

// welcomed opens a websocket and takes the welcome.
func (h *harness) welcomed(token string) *browser {
	h.t.Helper()
	b := h.connect(token)
	if m := b.next(); m.Type != typeWelcome || m.Protocol != Protocol {
		h.t.Fatalf("first message %+v, want welcome", m)
	}
	return b
}

func (b *browser) send(fields map[string]any) {
	b.t.Helper()
	if err := b.ws.WriteJSON(fields); err != nil {
		b.t.Fatalf("send: %v", err)
	}
}

func (b *browser) text(s string) {
	b.t.Helper()
	if err := b.ws.WriteMessage(websocket.TextMessage, []byte(s)); err != nil {
		b.t.Fatalf("send: %v", err)
	}
}

func (b *browser) watch(session, camera string) {
	b.t.Helper()
	b.send(map[string]any{"type": "watch", "session": session, "camera": camera, "offer": testOffer})
}

// next returns the next message that is no heartbeat.
func (b *browser) next() outbound {
	b.t.Helper()
	for {
		if m := b.any(); m.Type != typeHeartbeat {
			return m
		}
	}
}

// any returns the next message.
func (b *browser) any() outbound {
	b.t.Helper()
	_ = b.ws.SetReadDeadline(time.Now().Add(patience))
	kind, data, err := b.ws.ReadMessage()
	if err != nil {
		b.t.Fatalf("receive: %v", err)
	}
	if strings.Contains(string(data), "192.0.2.7") {
		b.t.Errorf("the browser is told what is the operator's business: %s", data)
	}
	var m outbound
	if err := json.Unmarshal(data, &m); err != nil || kind != websocket.TextMessage {
		b.t.Fatalf("message %q is not JSON text: %v", data, err)
	}
	return m
}

// until skips messages until one that fits.
func (b *browser) until(what string, fits func(outbound) bool) outbound {
	b.t.Helper()
	var seen []outbound
	for range 200 {
		m := b.next()
		if fits(m) {
			return m
		}
		seen = append(seen, m)
	}
	b.t.Fatalf("never came: %s; got %+v", what, seen)
	return outbound{}
}

func (b *browser) untilType(session, typ string) outbound {
	b.t.Helper()
	return b.until(typ+" of "+session, func(m outbound) bool { return m.Type == typ && m.Session == session })
}

func (b *browser) untilState(session, state string) outbound {
	b.t.Helper()
	return b.until("state "+state+" of "+session, func(m outbound) bool {
		return m.Type == typeState && m.Session == session && m.State == state
	})
}

// closed waits for the close frame.
func (b *browser) closed() *websocket.CloseError {
	b.t.Helper()
	for range 5000 {
		_ = b.ws.SetReadDeadline(time.Now().Add(patience))
		_, _, err := b.ws.ReadMessage()
		var ce *websocket.CloseError
		switch {
		case err == nil:
			continue
		case errors.As(err, &ce):
			return ce
		default:
			b.t.Fatalf("closed without a frame: %v", err)
		}
	}
	b.t.Fatal("never closed")
	return nil
}

// live brings a session up to a picture.
func (b *browser) live(session, camera string, n *fakeNode) *nodeSession {
	b.t.Helper()
	b.watch(session, camera)
	s := n.next()
	s.answer("answer of " + session)
	s.state(mediav1.SessionState_STATE_LIVE, "")
	if m := b.untilType(session, typeAnswer); m.SDP != "answer of "+session {
		b.t.Fatalf("answer %+v", m)
	}
	b.untilState(session, stateLive)
	return s
}

// works makes sure that a session that is live still gets messages.
func (b *browser) works(session string, s *nodeSession) {
	b.t.Helper()
	s.state(mediav1.SessionState_STATE_CAMERA_OFFLINE, "timeout")
	b.untilState(session, stateCameraOffline)
	s.state(mediav1.SessionState_STATE_LIVE, "")
	b.untilState(session, stateLive)
}

// reply is an HTTP response whose body has been read.
type reply struct {
	StatusCode int
	Header     http.Header
}

// do makes an HTTP request and returns the response with its body.
func (h *harness) do(method, path, contentType, body string, headers ...string) (reply, string) {
	h.t.Helper()
	req, err := http.NewRequest(method, h.http.URL+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		if headers[i] == "Host" {
			req.Host = headers[i+1]
			continue
		}
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := h.http.Client().Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		h.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header}, string(data)
}

// wantProblem checks an error over HTTP.
func (h *harness) wantProblem(resp reply, body string, status int, reason string) {
	h.t.Helper()
	var p struct {
		Status         int
		Reason, Detail string
	}
	if err := json.Unmarshal([]byte(body), &p); err != nil {
		h.t.Errorf("%d, body %q is no problem: %v", resp.StatusCode, body, err)
		return
	}
	if resp.StatusCode != status || p.Status != status || p.Reason != reason || p.Detail == "" ||
		resp.Header.Get("Content-Type") != "application/problem+json" || resp.Header.Get("Cache-Control") != "no-store" {
		h.t.Errorf("got %d %s %v, want %d %s", resp.StatusCode, body, resp.Header, status, reason)
	}
}
