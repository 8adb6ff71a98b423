package controlplane_test

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"fanlight/controlplane"
	"fanlight/controlplane/store"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wait is how long a test waits for what must happen.
const wait = 20 * time.Second

// logBuffer collects a log.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// replica is a control plane with its clients.
type replica struct {
	t      *testing.T
	log    *logBuffer
	store  *store.Store
	server *controlplane.Server
	conn   *grpc.ClientConn
	stop   func() // ends everything but the data; may be called twice
	cut    func() // as stop, without the store

	cameras controlv1.CameraServiceClient
	nodes   controlv1.NodeServiceClient
	agents  controlv1.AgentServiceClient
	routes  controlv1.RouteServiceClient
}

type options struct {
	store    store.Config
	config   controlplane.Config
	identity *rpc.Identity // of all callers; nil: any
}

// start starts a replica over a store; with an empty one, embedded in a new
// directory.
func start(t *testing.T, opt options) *replica {
	t.Helper()
	r := &replica{t: t, log: &logBuffer{}}
	logger := slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if opt.store.DataDir == "" && len(opt.store.Endpoints) == 0 {
		opt.store.DataDir = t.TempDir()
	}
	opt.store.Log = logger
	ctx, cancelOpen := context.WithTimeout(t.Context(), wait)
	defer cancelOpen()
	st, err := store.Open(ctx, opt.store)
	if err != nil {
		t.Fatal(err)
	}
	opt.config.Store, opt.config.Log = st, logger
	if opt.config.NodeGrace == 0 {
		opt.config.NodeGrace = 100 * time.Millisecond
	}
	srv, err := controlplane.New(opt.config)
	if err != nil {
		t.Fatal(err)
	}
	r.store, r.server = st, srv
	ctx, cancel := context.WithCancel(context.Background())
	pipe := rpc.NewPipe("controlplane.test:1")
	dialer := &rpc.Dialer{Pipe: pipe, Log: logger}
	var serve func(context.Context) error
	if opt.identity == nil {
		g := rpc.NewServer(rpc.ServerConfig{Log: logger, Services: controlplane.Services})
		srv.Register(g)
		serve = func(ctx context.Context) error { return g.Serve(ctx, pipe) }
	} else {
		serve = serveAs(*opt.identity, srv, pipe)
	}
	var running sync.WaitGroup
	running.Go(func() {
		if err := srv.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	})
	running.Go(func() {
		if err := serve(ctx); err != nil {
			t.Errorf("serve: %v", err)
		}
	})
	conn, err := dialer.Dial("controlplane.test:1")
	if err != nil {
		t.Fatal(err)
	}
	r.conn = conn
	r.cameras = controlv1.NewCameraServiceClient(conn)
	r.nodes = controlv1.NewNodeServiceClient(conn)
	r.agents = controlv1.NewAgentServiceClient(conn)
	r.routes = controlv1.NewRouteServiceClient(conn)
	r.cut = sync.OnceFunc(func() {
		cancel()
		_ = conn.Close()
		running.Wait()
	})
	r.stop = sync.OnceFunc(func() {
		r.cut()
		if err := st.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	t.Cleanup(r.stop)
	return r
}

// serveAs serves callers that all have one identity.
func serveAs(id rpc.Identity, srv *controlplane.Server, pipe *rpc.Pipe) func(context.Context) error {
	g := grpc.NewServer(grpc.WaitForHandlers(true), grpc.StreamInterceptor(
		func(s any, ss grpc.ServerStream, _ *grpc.StreamServerInfo, h grpc.StreamHandler) error {
			return rpc.Status(h(s, &identified{ss, rpc.WithIdentity(ss.Context(), id)}))
		}))
	srv.Register(g)
	return func(ctx context.Context) error {
		stop := context.AfterFunc(ctx, g.Stop)
		defer stop()
		return g.Serve(pipe)
	}
}

type identified struct {
	grpc.ServerStream
	ctx context.Context
}

func (s *identified) Context() context.Context { return s.ctx }

// ctx returns a context that ends before the test's patience does.
func (r *replica) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	r.t.Cleanup(cancel)
	return ctx
}

func camera(id string) *controlv1.Camera {
	return &controlv1.Camera{
		Name:     "cameras/" + id,
		Profiles: []*controlv1.Profile{{Url: "rtsp://192.0.2.1/" + id}},
	}
}

func (r *replica) create(c *controlv1.Camera) *controlv1.Camera {
	r.t.Helper()
	resp, err := r.cameras.CreateCamera(r.ctx(), &controlv1.CreateCameraRequest{Camera: c})
	if err != nil {
		r.t.Fatalf("create %s: %v", c.GetName(), err)
	}
	return resp.GetCamera()
}

func (r *replica) get(id string) *controlv1.Camera {
	r.t.Helper()
	resp, err := r.cameras.GetCamera(r.ctx(), &controlv1.GetCameraRequest{Name: "cameras/" + id})
	if err != nil {
		r.t.Fatalf("get %s: %v", id, err)
	}
	return resp.GetCamera()
}

// eventually waits until ok.
func (r *replica) eventually(what string, ok func() bool) {
	r.t.Helper()
	for end := time.Now().Add(wait); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	r.t.Fatalf("never: %s\n%s", what, r.log)
}

// node is a node's stream, driven by a test.
type node struct {
	r      *replica
	stream controlv1.AgentService_SyncClient
	cancel context.CancelFunc
	// welcome is the control plane's; nil before it.
	welcome *controlv1.Welcome
}

// connect connects a node and takes the welcome.
func (r *replica) connect(h *controlv1.Hello) *node {
	r.t.Helper()
	n := r.dial()
	if h.SessionAddress == "" {
		h.SessionAddress = r.listen().Addr().String()
	}
	if h.BootId == "" {
		h.BootId = "boot"
	}
	n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Hello{Hello: h}})
	resp, err := n.stream.Recv()
	if err != nil {
		r.t.Fatalf("welcome: %v", err)
	}
	if resp.GetWelcome().GetLeaseTtlMs() <= 0 {
		r.t.Fatalf("got %v, want a welcome", resp)
	}
	n.welcome = resp.GetWelcome()
	return n
}

// listen listens as a node's process does, until the test ends.
func (r *replica) listen() net.Listener {
	r.t.Helper()
	var lc net.ListenConfig
	l, err := lc.Listen(r.t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = l.Close() })
	return l
}

func (r *replica) dial() *node {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), wait)
	r.t.Cleanup(cancel)
	stream, err := r.agents.Sync(ctx)
	if err != nil {
		r.t.Fatal(err)
	}
	return &node{r: r, stream: stream, cancel: cancel}
}

func (n *node) send(req *controlv1.SyncRequest) {
	n.r.t.Helper()
	if err := n.stream.Send(req); err != nil {
		n.r.t.Fatalf("send: %v", err)
	}
}

// set returns the next desired set.
func (n *node) set() *controlv1.DesiredSet {
	n.r.t.Helper()
	resp, err := n.stream.Recv()
	if err != nil {
		n.r.t.Fatalf("desired set: %v\n%s", err, n.r.log)
	}
	if resp.GetDesiredSet() == nil {
		n.r.t.Fatalf("got %v, want a desired set", resp)
	}
	return resp.GetDesiredSet()
}

// until returns the first desired set that has exactly the cameras.
func (n *node) until(ids ...string) map[string]*controlv1.DesiredCamera {
	n.r.t.Helper()
	for last := int64(0); ; {
		set := n.set()
		if set.GetGeneration() <= last {
			n.r.t.Fatalf("generation %d after %d", set.GetGeneration(), last)
		}
		last = set.GetGeneration()
		got := make(map[string]*controlv1.DesiredCamera)
		for _, c := range set.GetCameras() {
			got[c.GetCamera().GetName()] = c
		}
		all := len(got) == len(ids)
		for _, id := range ids {
			all = all && got["cameras/"+id] != nil
		}
		if all {
			return got
		}
	}
}

func (n *node) report(id string, generation int64, st *controlv1.CameraStatus) {
	n.r.t.Helper()
	n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Report{Report: &controlv1.Report{
		Cameras: []*controlv1.ObservedCamera{{Camera: "cameras/" + id, Generation: generation, Status: st}},
	}}})
}
