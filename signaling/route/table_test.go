package route_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
	"fanlight/signaling/route"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// control is a RouteService whose routes the test sets.
type control struct {
	controlv1.UnimplementedRouteServiceServer

	mu      sync.Mutex // guards the rest
	routes  map[string]*controlv1.Route
	streams map[controlv1.RouteService_WatchRoutesServer]map[string]bool
	heard   []string // "+cameras/a", "-cameras/a", in order
	refuse  error    // of every call
	calls   int
	cut     chan struct{} // closed: streams end
}

func newControl() *control {
	return &control{
		routes:  make(map[string]*controlv1.Route),
		streams: make(map[controlv1.RouteService_WatchRoutesServer]map[string]bool),
		cut:     make(chan struct{}),
	}
}

func (c *control) BrowseCameras(context.Context, *controlv1.BrowseCamerasRequest) (*controlv1.BrowseCamerasResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.calls++
	return &controlv1.BrowseCamerasResponse{}, c.refuse
}

func (c *control) WatchRoutes(stream controlv1.RouteService_WatchRoutesServer) error {
	c.mu.Lock()
	c.streams[stream] = make(map[string]bool)
	cut := c.cut
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		delete(c.streams, stream)
	}()
	failed := make(chan error, 1)
	go func() { failed <- c.listen(stream) }()
	select {
	case err := <-failed:
		return err
	case <-cut:
		return fmt.Errorf("replica stopping: %w", fleet.Unavailable)
	}
}

// listen takes what the gateway says.
func (c *control) listen(stream controlv1.RouteService_WatchRoutesServer) error {
	for {
		req, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := c.hear(stream, req); err != nil {
			return err
		}
	}
}

func (c *control) hear(stream controlv1.RouteService_WatchRoutesServer, req *controlv1.WatchRoutesRequest) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, camera := range req.GetRemove() {
		c.heard = append(c.heard, "-"+camera)
		delete(c.streams[stream], camera)
	}
	resp := &controlv1.WatchRoutesResponse{}
	for _, camera := range req.GetAdd() {
		c.heard = append(c.heard, "+"+camera)
		c.streams[stream][camera] = true
		r := c.routes[camera]
		if r == nil {
			r = &controlv1.Route{Camera: camera, State: controlv1.Route_STATE_NOT_FOUND}
		}
		resp.Routes = append(resp.Routes, r)
	}
	return stream.Send(resp)
}

// set changes a camera's route and tells those who watch it.
func (c *control) set(camera, addr string, generation int64) {
	c.tell(&controlv1.Route{
		Camera: "cameras/" + camera, State: controlv1.Route_STATE_ASSIGNED, Node: "nodes/n1", SessionAddress: addr, Generation: generation,
	})
}

// unassign takes a camera from its node.
func (c *control) unassign(camera string, why controlv1.Reason) {
	c.tell(&controlv1.Route{Camera: "cameras/" + camera, State: controlv1.Route_STATE_UNASSIGNED, Reason: why})
}

func (c *control) tell(r *controlv1.Route) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.routes[r.GetCamera()] = r
	for stream, watched := range c.streams {
		if watched[r.GetCamera()] {
			_ = stream.Send(&controlv1.WatchRoutesResponse{Routes: []*controlv1.Route{r}})
		}
	}
}

func (c *control) took() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	heard := c.heard
	c.heard = nil
	slices.Sort(heard)
	return heard
}

// lose ends the streams and refuses what comes; regain lets it in again.
func (c *control) lose() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = fleet.Unavailable
	close(c.cut)
	c.cut = make(chan struct{})
}

func (c *control) regain() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.refuse = nil
}

// bubble is a table and a control plane on a fake clock.
type bubble struct {
	*testing.T
	table   *route.Table
	control *control
}

// inBubble runs a test in one.
func inBubble(t *testing.T, cfg route.Config, test func(b bubble)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newControl()
		pipe := rpc.NewPipe("control:1")
		srv := rpc.NewServer(rpc.ServerConfig{Services: map[string]rpc.Role{controlv1.RouteService_ServiceDesc.ServiceName: rpc.RoleGateway}})
		controlv1.RegisterRouteServiceServer(srv, c)
		conn, err := (&rpc.Dialer{Pipe: pipe}).Dial("control:1")
		if err != nil {
			t.Fatal(err)
		}
		cfg.Client = controlv1.NewRouteServiceClient(conn)
		table := route.New(cfg)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		serving, stop := context.WithCancel(t.Context())
		wg.Go(func() { _ = srv.Serve(serving, pipe) })
		running := make(chan error, 1)
		go func() { running <- table.Run(ctx) }()
		test(bubble{t, table, c})
		cancel()
		if err := <-running; err != nil {
			t.Errorf("run: %v", err)
		}
		_ = conn.Close()
		stop()
		wg.Wait()
	})
}

// address returns where a watch leads, or what else there is to say.
func address(w *route.Watch) string {
	r, known, _ := w.Route()
	switch {
	case !known:
		return "unknown"
	case r.State == route.NotFound:
		return "not found"
	case r.State == route.Unassigned:
		return string(r.Reason)
	}
	return fmt.Sprintf("%s@%d", r.Address, r.Generation)
}

func want(t *testing.T, w *route.Watch, addr string) {
	t.Helper()
	synctest.Wait()
	if got := address(w); got != addr {
		t.Errorf("route %s, want %s", got, addr)
	}
}

func wantHeard(t *testing.T, c *control, heard ...string) {
	t.Helper()
	synctest.Wait()
	if got := c.took(); !slices.Equal(got, heard) {
		t.Errorf("the control plane heard %v, want %v", got, heard)
	}
}

func TestWatch(t *testing.T) {
	inBubble(t, route.Config{}, func(b bubble) {
		t, table, c := b.T, b.table, b.control
		c.set("lobby", "a:1", 1)
		c.set("yard", "b:1", 1)
		lobby := table.Watch("lobby")
		want(t, lobby, "a:1@1")
		wantHeard(t, c, "+cameras/lobby") // and nothing of the yard
		if err := table.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}
		_, _, changed := lobby.Route()
		c.set("lobby", "a:1", 1) // the same again
		synctest.Wait()
		select {
		case <-changed:
			t.Error("told of a change that is none")
		default:
		}
		c.set("lobby", "b:1", 2)
		<-changed
		want(t, lobby, "b:1@2")

		again := table.Watch("lobby")
		want(t, again, "b:1@2")
		lobby.Close()
		lobby.Close()
		c.set("lobby", "c:1", 3)
		want(t, again, "c:1@3")
		again.Close()
		wantHeard(t, c) // kept, for the next viewer

		nowhere := table.Watch("nowhere")
		want(t, nowhere, "not found")
		nowhere.Close()
		wantHeard(t, c, "+cameras/nowhere", "-cameras/nowhere")
	})
}

// TestOnItsWay keeps the old route of a camera that moves, and no other.
func TestOnItsWay(t *testing.T) {
	inBubble(t, route.Config{}, func(b bubble) {
		t, table, c := b.T, b.table, b.control
		c.set("lobby", "a:1", 1)
		lobby := table.Watch("lobby")
		defer lobby.Close()
		want(t, lobby, "a:1@1")
		_, _, changed := lobby.Route()
		c.unassign("lobby", controlv1.Reason_REASON_MOVING)
		want(t, lobby, "a:1@1")
		select {
		case <-changed:
			t.Error("told of a change that is none")
		default:
		}
		c.set("lobby", "b:1", 2)
		want(t, lobby, "b:1@2")
		c.unassign("lobby", controlv1.Reason_REASON_NO_NODE)
		want(t, lobby, "no_node")
		c.unassign("lobby", controlv1.Reason_REASON_MOVING)
		want(t, lobby, "moving")
		c.unassign("yard", controlv1.Reason_REASON_MOVING)
		yard := table.Watch("yard")
		defer yard.Close()
		want(t, yard, "moving")
	})
}

func TestLinger(t *testing.T) {
	inBubble(t, route.Config{Linger: time.Minute, MaxIdle: 2}, func(b bubble) {
		t, table, c := b.T, b.table, b.control
		for i := range 4 {
			camera := fmt.Sprintf("c%d", i)
			c.set(camera, "a:1", 1)
			w := table.Watch(fleet.CameraID(camera))
			want(t, w, "a:1@1")
			w.Close()
			time.Sleep(time.Second)
		}
		if n := table.Len(); n != 2 {
			t.Errorf("%d routes are kept, want 2", n)
		}
		wantHeard(t, c, "+cameras/c0", "+cameras/c1", "+cameras/c2", "+cameras/c3", "-cameras/c0", "-cameras/c1")
		w := table.Watch("c3")
		time.Sleep(2 * time.Minute)
		wantHeard(t, c, "-cameras/c2")
		want(t, w, "a:1@1")
		w.Close()
		time.Sleep(2 * time.Minute)
		wantHeard(t, c, "-cameras/c3")
		if n := table.Len(); n != 0 {
			t.Errorf("%d routes are left", n)
		}
	})
}

// TestAddedAgainAtOnce is a camera that is forgotten and watched again before
// the control plane has heard of either: its route must come anew.
func TestAddedAgainAtOnce(t *testing.T) {
	inBubble(t, route.Config{}, func(b bubble) {
		t, table, c := b.T, b.table, b.control
		w := table.Watch("lobby")
		want(t, w, "not found")
		c.took()
		for range 20 {
			w.Close()
			w = table.Watch("lobby")
		}
		want(t, w, "not found")
	})
}

func TestControlPlaneAway(t *testing.T) {
	inBubble(t, route.Config{Linger: time.Minute}, func(b bubble) {
		t, table, c := b.T, b.table, b.control
		c.set("lobby", "a:1", 1)
		c.set("yard", "a:1", 1)
		lobby, yard := table.Watch("lobby"), table.Watch("yard")
		want(t, lobby, "a:1@1")
		want(t, yard, "a:1@1")
		yard.Close()
		c.took()
		c.lose()
		synctest.Wait()
		if err := table.Trouble(); !errors.Is(err, fleet.Unavailable) {
			t.Errorf("trouble: %v", err)
		}
		c.mu.Lock()
		before := c.calls
		c.mu.Unlock()
		time.Sleep(10 * time.Minute)
		c.mu.Lock()
		// Full jitter up to 5 s: 2.5 s on average.
		if n := c.calls - before; n < 120 || n > 600 {
			t.Errorf("%d attempts in ten minutes", n)
		}
		c.mu.Unlock()
		want(t, lobby, "a:1@1")
		yard = table.Watch("yard")
		want(t, yard, "a:1@1") // kept, though its time is over
		other := table.Watch("garden")
		want(t, other, "unknown")
		if err := table.Ready(); err != nil {
			t.Errorf("not ready: %v", err)
		}

		c.set("lobby", "b:1", 2)
		c.regain()
		time.Sleep(10 * time.Second)
		want(t, lobby, "b:1@2")
		want(t, other, "not found")
		wantHeard(t, c, "+cameras/garden", "+cameras/lobby", "+cameras/yard")
		if err := table.Trouble(); err != nil {
			t.Errorf("trouble: %v", err)
		}
	})
}

func TestNotReadyBefore(t *testing.T) {
	c := newControl()
	c.refuse = fleet.Unavailable
	table := route.New(route.Config{})
	if err := table.Ready(); !errors.Is(err, fleet.Unavailable) {
		t.Errorf("ready: %v", err)
	}
}

func TestManyCamerasAreNamedInPieces(t *testing.T) {
	inBubble(t, route.Config{}, func(b bubble) {
		t, table, c := b.T, b.table, b.control
		const n = 1200
		var watches []*route.Watch
		for i := range n {
			watches = append(watches, table.Watch(fleet.CameraID(fmt.Sprintf("c%d", i))))
		}
		synctest.Wait()
		if got := len(c.took()); got != n {
			t.Errorf("%d cameras were named", got)
		}
		for _, w := range watches {
			want(t, w, "not found")
			w.Close()
		}
	})
}

func TestFromProto(t *testing.T) {
	for name, m := range map[string]*controlv1.Route{
		"no state":   {},
		"no node":    {State: controlv1.Route_STATE_ASSIGNED, SessionAddress: "a:1"},
		"no address": {State: controlv1.Route_STATE_ASSIGNED, Node: "nodes/n1"},
		"unknown":    {State: 99},
	} {
		if r, err := route.FromProto(m); err == nil {
			t.Errorf("%s: %+v", name, r)
		}
	}
	r, err := route.FromProto(&controlv1.Route{State: controlv1.Route_STATE_UNASSIGNED, Reason: controlv1.Reason_REASON_NO_CAPACITY})
	if err != nil || r.State != route.Unassigned || r.Reason != "no_capacity" {
		t.Errorf("%+v, %v", r, err)
	}
	if r := route.Reason(controlv1.Reason_REASON_UNSPECIFIED); r != "" {
		t.Errorf("no reason is %q", r)
	}
}
