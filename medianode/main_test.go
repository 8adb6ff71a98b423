package medianode

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	"fanlight/medianode/source"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// patience is how long tests wait for what must happen.
const patience = 20 * time.Second

// controlPlane is a control plane with one node and a script: it says what the
// test tells it to, and keeps what the node says.
type controlPlane struct {
	controlv1.UnimplementedAgentServiceServer
	ttl time.Duration

	mu      sync.Mutex // guards the rest
	changed chan struct{}
	set     *controlv1.DesiredSet
	hellos  []*controlv1.Hello
	applied []*controlv1.Applied
	loads   []*controlv1.NodeLoad
	seen    map[string][]*controlv1.ObservedCamera
	gone    []string // "camera generation", as released
	leaves  int
	down    bool // streams end, and new ones are refused
}

func (p *controlPlane) update(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
	close(p.changed)
	p.changed = make(chan struct{})
}

// want sets the desired cameras.
func (p *controlPlane) want(cameras ...*controlv1.DesiredCamera) {
	p.update(func() { p.set = &controlv1.DesiredSet{Generation: p.set.GetGeneration() + 1, Cameras: cameras} })
}

// wait waits until a condition of what the node said holds.
func (p *controlPlane) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		p.mu.Lock()
		done, changed := ok(), p.changed
		p.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// waitApplied waits for the answer to the current set.
func (p *controlPlane) waitApplied(t *testing.T) *controlv1.Applied {
	t.Helper()
	var last *controlv1.Applied
	p.wait(t, "the desired set to be applied", func() bool {
		if len(p.applied) > 0 {
			last = p.applied[len(p.applied)-1]
		}
		return last.GetGeneration() == p.set.GetGeneration()
	})
	return last
}

// waitState waits until the last report of a camera has a state.
func (p *controlPlane) waitState(t *testing.T, camera string, state controlv1.CameraStatus_State) *controlv1.ObservedCamera {
	t.Helper()
	var last *controlv1.ObservedCamera
	p.wait(t, fmt.Sprintf("camera %s in %v", camera, state), func() bool {
		if all := p.seen["cameras/"+camera]; len(all) > 0 {
			last = all[len(all)-1]
		}
		return last.GetStatus().GetState() == state
	})
	return last
}

// waitReleased waits until exactly these assignments have been released, in
// order, since the last such wait.
func (p *controlPlane) waitReleased(t *testing.T, want ...string) {
	t.Helper()
	p.wait(t, fmt.Sprintf("%v to be released", want), func() bool { return len(p.gone) >= len(want) })
	p.update(func() {
		if !slices.Equal(p.gone, want) {
			t.Errorf("released: %v, want %v", p.gone, want)
		}
		p.gone = nil
	})
}

func (p *controlPlane) Sync(stream controlv1.AgentService_SyncServer) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	p.mu.Lock()
	down := p.down
	p.mu.Unlock()
	if down {
		return fleet.Unavailable
	}
	p.update(func() { p.hellos = append(p.hellos, first.GetHello()) })
	if err := stream.Send(&controlv1.SyncResponse{Message: &controlv1.SyncResponse_Welcome{
		Welcome: &controlv1.Welcome{LeaseTtlMs: p.ttl.Milliseconds()},
	}}); err != nil {
		return err
	}
	go func() { // ends with the call
		for {
			m, err := stream.Recv()
			if err != nil {
				return
			}
			p.update(func() {
				if m.GetApplied() != nil {
					p.applied = append(p.applied, m.GetApplied())
				}
				if m.GetLeave() != nil {
					p.leaves++
				}
				for _, a := range m.GetReport().GetReleased() {
					p.gone = append(p.gone, fmt.Sprintf("%s %d", a.GetCamera(), a.GetGeneration()))
				}
				if m.GetReport().GetLoad() != nil {
					p.loads = append(p.loads, m.GetReport().GetLoad())
				}
				for _, o := range m.GetReport().GetCameras() {
					p.seen[o.GetCamera()] = append(p.seen[o.GetCamera()], o)
				}
			})
		}
	}()
	var sent *controlv1.DesiredSet
	for {
		p.mu.Lock()
		set, changed, down := p.set, p.changed, p.down
		p.mu.Unlock()
		if down {
			return fleet.Unavailable
		}
		if set != nil && set != sent {
			sent = set
			if err := stream.Send(&controlv1.SyncResponse{Message: &controlv1.SyncResponse_DesiredSet{DesiredSet: set}}); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-stream.Context().Done():
			return stream.Context().Err()
		}
	}
}

// rig is a node with a control plane double, cameras, and a gateway's client.
type rig struct {
	control    *controlPlane
	cameras    *simcam.Server
	node       *Node
	sessions   mediav1.SessionServiceClient
	log        *logBuffer
	stopNode   func() // and waits
	stopServer func() // of the sessions, and waits
}

type logBuffer struct {
	mu  sync.Mutex
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

// newLog logs everything to a buffer.
func newLog(b *logBuffer) *slog.Logger {
	return slog.New(slog.NewJSONHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// newRig starts everything; cameras are in cams, the node as in cfg.
func newRig(t *testing.T, cams simcam.Config, cfg Config) *rig {
	t.Helper()
	r := &rig{log: &logBuffer{}}
	start := func(run func(context.Context) error) (stop func()) {
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- run(ctx) }()
		return sync.OnceFunc(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(patience):
				t.Error("something does not stop")
			}
		})
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	dial := func(p *rpc.Pipe) *grpc.ClientConn {
		conn, err := (&rpc.Dialer{Pipe: p}).Dial(p.Addr().String())
		must(err)
		t.Cleanup(func() { must(conn.Close()) })
		return conn
	}
	var err error
	r.cameras, err = simcam.New(cams)
	must(err)
	t.Cleanup(start(r.cameras.Run))

	r.control = &controlPlane{ttl: 300 * time.Millisecond, changed: make(chan struct{}), seen: make(map[string][]*controlv1.ObservedCamera)}
	controlPipe := rpc.NewPipe("127.0.0.1:1")
	server := rpc.NewServer(rpc.ServerConfig{Services: map[string]rpc.Role{controlv1.AgentService_ServiceDesc.ServiceName: rpc.RoleNode}})
	controlv1.RegisterAgentServiceServer(server, r.control)
	t.Cleanup(start(func(ctx context.Context) error { return server.Serve(ctx, controlPipe) }))

	cfg.Log = newLog(r.log)
	if cfg.Capacity.CPU == 0 {
		cfg.Capacity.CPU = 1 // how busy the tests keep the machine must refuse nobody
	}
	cfg.Node, cfg.SessionAddress, cfg.ControlPlane = "node-1", "127.0.0.1:2", dial(controlPipe)
	if cfg.SourceRetry == (source.Retry{}) {
		cfg.SourceRetry = source.Retry{Min: 100 * time.Millisecond, Max: 500 * time.Millisecond, Hold: 500 * time.Millisecond}
	}
	r.node, err = New(cfg)
	must(err)
	sessionPipe := rpc.NewPipe(cfg.SessionAddress)
	nodeServer := rpc.NewServer(rpc.ServerConfig{Services: Services})
	r.node.Register(nodeServer)
	r.stopServer = start(func(ctx context.Context) error { return nodeServer.Serve(ctx, sessionPipe) })
	t.Cleanup(r.stopServer)
	r.sessions = mediav1.NewSessionServiceClient(dial(sessionPipe))
	r.stopNode = start(r.node.Run)
	t.Cleanup(r.stopNode)
	eventually(t, "the node to listen", func() bool { return r.node.MediaAddress().IsValid() })
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(r.log.String())
		}
	})
	return r
}

// desired returns a camera of the rig as the control plane would have it.
func (r *rig) desired(camera string, generation int64) *controlv1.DesiredCamera {
	return &controlv1.DesiredCamera{Generation: generation, Camera: &controlv1.Camera{
		Name: "cameras/" + camera, Profiles: []*controlv1.Profile{{Id: "main", Url: r.cameras.URL(camera), Transport: controlv1.Profile_TRANSPORT_TCP}},
	}}
}

// moving is desired with a part in a move.
func (r *rig) moving(camera string, generation int64, p part) *controlv1.DesiredCamera {
	d := r.desired(camera, generation)
	d.Part = p
	return d
}

// watcher is a viewer with its session, as a gateway would have it.
type watcher struct {
	*viewertest.Viewer
	stream mediav1.SessionService_OpenSessionClient
	cancel context.CancelFunc
	done   chan struct{} // closed when the stream has ended

	mu       sync.Mutex // guards the rest
	changed  chan struct{}
	states   []*mediav1.SessionState
	rejected []*mediav1.Rejected
	answers  int
	err      error // why the stream ended
}

// watch opens a session of a camera.
func (r *rig) watch(t *testing.T, open *mediav1.Open, cfg viewertest.Config) *watcher {
	t.Helper()
	v, err := viewertest.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &watcher{Viewer: v, cancel: cancel, done: make(chan struct{}), changed: make(chan struct{})}
	offer, err := v.Offer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if open.Offer == "" {
		open.Offer = offer
	}
	if open.Session == "" {
		open.Session = "s-" + t.Name()
	}
	if w.stream, err = r.sessions.OpenSession(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.stream.Send(&mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Open{Open: open}}); err != nil {
		t.Fatal(err)
	}
	go w.receive()
	t.Cleanup(func() {
		w.leave()
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *watcher) receive() {
	defer close(w.done)
	for {
		m, err := w.stream.Recv()
		if sdp := m.GetAnswer().GetSdp(); sdp != "" {
			err = w.Answer(sdp)
		}
		if c := m.GetCandidate(); c != nil {
			err = w.AddCandidate(viewertest.Candidate{Candidate: c.GetCandidate(), SDPMid: c.SdpMid})
		}
		w.mu.Lock()
		switch {
		case err != nil:
			w.err = err
		case m.GetAnswer() != nil:
			w.answers++
		case m.GetState() != nil:
			w.states = append(w.states, m.GetState())
		case m.GetRejected() != nil:
			w.rejected = append(w.rejected, m.GetRejected())
		}
		close(w.changed)
		w.changed = make(chan struct{})
		w.mu.Unlock()
		if err != nil {
			w.cancel()
			return
		}
	}
}

// leave ends the session as a gateway does.
func (w *watcher) leave() {
	_ = w.stream.CloseSend() // never fails
	select {
	case <-w.done:
	case <-time.After(patience): // what the test then waits for will tell
	}
	w.cancel()
	<-w.done
}

// vanish breaks the stream as a gateway does that dies.
func (w *watcher) vanish() {
	w.cancel()
	<-w.done
}

// wait waits until a condition of what the node said holds.
func (w *watcher) wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	timeout := time.After(patience)
	for {
		w.mu.Lock()
		done, changed, err := ok(), w.changed, w.err
		w.mu.Unlock()
		if done {
			return
		}
		if err != nil {
			t.Fatalf("waited for %s: the session ended: %v", what, err)
		}
		select {
		case <-changed:
		case <-timeout:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func (w *watcher) waitState(t *testing.T, state mediav1.SessionState_State) *mediav1.SessionState {
	t.Helper()
	var last *mediav1.SessionState
	w.wait(t, state.String(), func() bool {
		if len(w.states) > 0 {
			last = w.states[len(w.states)-1]
		}
		return last.GetState() == state
	})
	return last
}

// waitFrames waits until n more frames have come.
func (w *watcher) waitFrames(t *testing.T, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := w.WaitFrames(ctx, w.Report().Video.Frames+n); err != nil {
		t.Fatalf("%v; %v", err, w.Report())
	}
}

// ended waits for the end of the stream, and returns why.
func (w *watcher) ended(t *testing.T) error {
	t.Helper()
	select {
	case <-w.done:
		return w.err
	case <-time.After(patience):
		t.Fatal("the session does not end")
		return nil
	}
}

// eventually waits until a condition holds that nothing tells of.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
