package controlplane_test

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// cameraWatch follows a watch.
type cameraWatch struct {
	t       *testing.T
	stream  controlv1.CameraService_WatchCamerasClient
	have    map[string]*controlv1.Camera
	deleted map[string]bool
	token   string
}

func (r *replica) watch(t *testing.T, req *controlv1.WatchCamerasRequest) *cameraWatch {
	t.Helper()
	stream, err := r.cameras.WatchCameras(r.ctx(), req)
	if err != nil {
		t.Fatal(err)
	}
	return &cameraWatch{t: t, stream: stream, have: make(map[string]*controlv1.Camera), deleted: make(map[string]bool)}
}

// next takes a response in, and tells whether the snapshot is complete.
func (w *cameraWatch) next() bool {
	w.t.Helper()
	resp, err := w.stream.Recv()
	if err != nil {
		w.t.Fatalf("watch: %v", err)
	}
	for _, e := range resp.GetEvents() {
		name := e.GetCamera().GetName()
		switch e.GetType() {
		case controlv1.CameraEvent_TYPE_PUT:
			w.have[name] = e.GetCamera()
		case controlv1.CameraEvent_TYPE_DELETED:
			delete(w.have, name)
			w.deleted[name] = true
		default:
			w.t.Fatalf("event %v", e)
		}
	}
	w.token = resp.GetResumeToken()
	return resp.GetSnapshotComplete()
}

func (w *cameraWatch) snapshot() {
	w.t.Helper()
	for !w.next() {
	}
}

func (w *cameraWatch) until(ok func() bool) {
	w.t.Helper()
	for !ok() {
		w.next()
	}
}

func TestWatchCameras(t *testing.T) {
	r := start(t, options{})
	w := r.watch(t, &controlv1.WatchCamerasRequest{})
	if w.snapshot(); len(w.have) != 0 || w.token == "" {
		t.Errorf("the empty snapshot has %v, token %q", w.have, w.token)
	}
	for i := range 3 {
		r.create(camera(fmt.Sprint("c", i)))
	}
	w.until(func() bool { return len(w.have) == 3 })
	early := w.token
	if w := r.watch(t, &controlv1.WatchCamerasRequest{}); true {
		if w.snapshot(); len(w.have) != 3 {
			t.Errorf("the snapshot has %v", slices.Collect(maps.Keys(w.have)))
		}
	}
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	g := n.until("c0", "c1", "c2")["cameras/c0"].GetGeneration()
	n.report("c0", g, &controlv1.CameraStatus{State: live})
	w.until(func() bool { return w.have["cameras/c0"].GetStatus().GetState() == live })
	if _, err := r.cameras.DeleteCamera(r.ctx(), &controlv1.DeleteCameraRequest{Name: "cameras/c1"}); err != nil {
		t.Fatal(err)
	}
	w.until(func() bool { return w.deleted["cameras/c1"] })

	// Resumed from before, a watch is told of what has changed, without a snapshot.
	resumed := r.watch(t, &controlv1.WatchCamerasRequest{ResumeToken: early})
	resumed.until(func() bool {
		return resumed.deleted["cameras/c1"] && resumed.have["cameras/c0"].GetStatus().GetState() == live
	})
	// Resumed from now, it is told of what comes.
	late := r.watch(t, &controlv1.WatchCamerasRequest{ResumeToken: w.token})
	r.create(camera("c4"))
	late.until(func() bool { return late.have["cameras/c4"] != nil })
	if len(late.have) != 1 {
		t.Errorf("resumed from the end, it was told of %v", slices.Collect(maps.Keys(late.have)))
	}
}

func TestWatchFilter(t *testing.T) {
	r := start(t, options{})
	a := camera("a")
	a.Labels = map[string]string{"site": "x"}
	r.create(a)
	r.create(camera("b"))
	req := &controlv1.WatchCamerasRequest{Filter: &controlv1.CameraFilter{Labels: map[string]string{"site": "x"}}}
	w := r.watch(t, req)
	w.snapshot()
	if len(w.have) != 1 || w.have["cameras/a"] == nil {
		t.Errorf("the snapshot has %v", w.have)
	}
	token := w.token
	label := func(id, site string) {
		t.Helper()
		if _, err := r.cameras.UpdateCamera(r.ctx(), &controlv1.UpdateCameraRequest{
			Camera:     &controlv1.Camera{Name: "cameras/" + id, Labels: map[string]string{"site": site}},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"labels"}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	label("b", "y") // never matched: nothing to tell
	label("a", "y")
	label("b", "x")
	w.until(func() bool { return w.deleted["cameras/a"] && w.have["cameras/b"] != nil })
	if w.deleted["cameras/b"] {
		t.Error("told of the deletion of a camera that never matched")
	}
	req.ResumeToken = token
	resumed := r.watch(t, req)
	resumed.until(func() bool { return resumed.deleted["cameras/a"] && resumed.have["cameras/b"] != nil })
}

func TestWatchErrors(t *testing.T) {
	r := start(t, options{})
	r.create(camera("a"))
	w := r.watch(t, &controlv1.WatchCamerasRequest{})
	w.snapshot()
	nodes, err := r.nodes.WatchNodes(r.ctx(), &controlv1.WatchNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	first, err := nodes.Recv()
	if err != nil || !first.GetSnapshotComplete() {
		t.Fatalf("got %v, %v", first, err)
	}
	r.create(camera("b"))
	r.create(camera("c"))
	rev, err := r.store.Revision(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if err := r.store.Compact(r.ctx(), rev); err != nil {
		t.Fatal(err)
	}
	for token, want := range map[string]fleet.Error{
		w.token:      fleet.ResumeTokenTooOld,
		"garbage":    fleet.InvalidResumeToken,
		w.token[:10]: fleet.InvalidResumeToken,
	} {
		stream, err := r.cameras.WatchCameras(r.ctx(), &controlv1.WatchCamerasRequest{ResumeToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, want) {
			t.Errorf("resume token %q: %v, want %v", token, err, want)
		}
	}
	nodes, err = r.nodes.WatchNodes(r.ctx(), &controlv1.WatchNodesRequest{ResumeToken: first.GetResumeToken()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := nodes.Recv(); !errors.Is(err, fleet.ResumeTokenTooOld) {
		t.Errorf("nodes: %v", err)
	}
	// The replica itself goes on.
	w.until(func() bool { return w.have["cameras/c"] != nil })
	r.create(camera("d"))
	w.until(func() bool { return w.have["cameras/d"] != nil })
}

// A watcher that does not read keeps nobody from anything, and has everything
// once it reads.
func TestSlowWatcher(t *testing.T) {
	r := start(t, options{})
	w := r.watch(t, &controlv1.WatchCamerasRequest{})
	c := camera("busy")
	c.DisplayName = "0"
	r.create(c)
	const updates = 300
	for i := range updates {
		if _, err := r.cameras.UpdateCamera(r.ctx(), &controlv1.UpdateCameraRequest{
			Camera:     &controlv1.Camera{Name: "cameras/busy", DisplayName: fmt.Sprint(i + 1)},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}},
		}); err != nil {
			t.Fatal(err)
		}
	}
	w.until(func() bool { return w.have["cameras/busy"].GetDisplayName() == fmt.Sprint(updates) })
}

func TestNodes(t *testing.T) {
	r := start(t, options{})
	watch, err := r.nodes.WatchNodes(r.ctx(), &controlv1.WatchNodesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	have := make(map[string]*controlv1.Node)
	token := ""
	until := func(ok func() bool) {
		t.Helper()
		for !ok() {
			resp, err := watch.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range resp.GetEvents() {
				if e.GetType() == controlv1.NodeEvent_TYPE_DELETED {
					delete(have, e.GetNode().GetName())
				} else {
					have[e.GetNode().GetName()] = e.GetNode()
				}
			}
			token = resp.GetResumeToken()
		}
	}
	until(func() bool { return token != "" })
	var nodes []*node
	for i := range 5 {
		nodes = append(nodes, r.connect(&controlv1.Hello{
			Node: fmt.Sprintf("nodes/n%d", i), Version: "1", BootId: "b", MediaAddresses: []string{"127.0.0.1:8189"},
			Labels: map[string]string{"i": fmt.Sprint(i)}, Capacity: &controlv1.NodeCapacity{Viewers: 7},
		}))
	}
	until(func() bool { return len(have) == 5 })
	before := token
	nodes[0].send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Report{Report: &controlv1.Report{Load: &controlv1.NodeLoad{Viewers: 3}}}})
	until(func() bool { return have["nodes/n0"].GetLoad().GetViewers() == 3 })
	n := have["nodes/n0"]
	if n.GetState() != controlv1.Node_STATE_READY || !strings.HasPrefix(n.GetSessionAddress(), "127.0.0.1:") || n.GetMediaAddresses()[0] != "127.0.0.1:8189" ||
		n.GetLabels()["i"] != "0" || n.GetCapacity().GetViewers() != 7 || n.GetConnectTime() == nil || n.GetVersion() != "1" || n.GetBootId() != "b" {
		t.Errorf("got %v", n)
	}
	var names []string
	for req := (&controlv1.ListNodesRequest{PageSize: 2}); ; {
		resp, err := r.nodes.ListNodes(r.ctx(), req)
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range resp.GetNodes() {
			names = append(names, n.GetName())
		}
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			break
		}
	}
	if !slices.Equal(names, []string{"nodes/n0", "nodes/n1", "nodes/n2", "nodes/n3", "nodes/n4"}) {
		t.Errorf("listed %v", names)
	}
	nodes[1].cancel()
	until(func() bool { return len(have) == 4 })
	watch, err = r.nodes.WatchNodes(r.ctx(), &controlv1.WatchNodesRequest{ResumeToken: before})
	if err != nil {
		t.Fatal(err)
	}
	resp, err := watch.Recv()
	if err != nil || len(resp.GetEvents()) != 2 || resp.GetSnapshotComplete() {
		t.Errorf("resumed: %v, %v", resp, err)
	}
}

func TestRoutes(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	off := camera("off")
	off.Disabled = true
	r.create(off)
	stream, err := r.routes.WatchRoutes(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	send := func(req *controlv1.WatchRoutesRequest) {
		t.Helper()
		if err := stream.Send(req); err != nil {
			t.Fatal(err)
		}
	}
	routes := make(map[string]*controlv1.Route)
	until := func(ok func() bool) {
		t.Helper()
		for !ok() {
			resp, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for _, route := range resp.GetRoutes() {
				routes[route.GetCamera()] = route
			}
		}
	}
	send(&controlv1.WatchRoutesRequest{Add: []string{"cameras/lobby", "cameras/off", "cameras/later", "no name"}})
	until(func() bool { return len(routes) == 4 })
	if rt := routes["cameras/lobby"]; rt.GetState() != controlv1.Route_STATE_UNASSIGNED || rt.GetReason() != controlv1.Reason_REASON_NO_NODE || rt.GetMessage() == "" {
		t.Errorf("lobby: %v", rt)
	}
	if rt := routes["cameras/off"]; rt.GetState() != controlv1.Route_STATE_DISABLED || rt.GetReason() != controlv1.Reason_REASON_DISABLED {
		t.Errorf("off: %v", rt)
	}
	for _, name := range []string{"cameras/later", "no name"} {
		if rt := routes[name]; rt.GetState() != controlv1.Route_STATE_NOT_FOUND {
			t.Errorf("%s: %v", name, rt)
		}
	}
	n := r.connect(&controlv1.Hello{Node: "nodes/n1", SessionAddress: "192.0.2.7:9"})
	assigned := func(id string) bool { return routes["cameras/"+id].GetState() == controlv1.Route_STATE_ASSIGNED }
	until(func() bool { return assigned("lobby") })
	rt := routes["cameras/lobby"]
	if rt.GetNode() != "nodes/n1" || rt.GetSessionAddress() != "192.0.2.7:9" || rt.GetGeneration() <= 0 {
		t.Errorf("lobby: %v", rt)
	}
	r.create(camera("later"))
	until(func() bool { return assigned("later") })
	// A route that is asked for again is answered again.
	delete(routes, "cameras/lobby")
	send(&controlv1.WatchRoutesRequest{Add: []string{"cameras/lobby"}})
	until(func() bool { return assigned("lobby") })

	send(&controlv1.WatchRoutesRequest{Remove: []string{"cameras/later", "cameras/unknown", "no name"}, Add: []string{"cameras/barrier"}})
	until(func() bool { return routes["cameras/barrier"] != nil })
	n.cancel()
	until(func() bool { return routes["cameras/lobby"].GetState() == controlv1.Route_STATE_UNASSIGNED })
	if assigned("later"); routes["cameras/later"].GetState() != controlv1.Route_STATE_ASSIGNED {
		t.Error("told of a route that is not watched any more")
	}
	if _, err := r.cameras.DeleteCamera(r.ctx(), &controlv1.DeleteCameraRequest{Name: "cameras/lobby"}); err != nil {
		t.Fatal(err)
	}
	until(func() bool { return routes["cameras/lobby"].GetState() == controlv1.Route_STATE_NOT_FOUND })
	if err := stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if err.Error() != "EOF" {
		t.Errorf("the stream ended with %v", err)
	}
}

func TestBrowse(t *testing.T) {
	r := start(t, options{})
	for _, id := range []string{"lobby", "plant-1", "plant-2", "yard"} {
		c := camera(id)
		c.DisplayName, c.Labels, c.Username, c.Password = "The "+id, map[string]string{"a": "b"}, "admin", "hunter2"
		r.create(c)
	}
	r.connect(&controlv1.Hello{Node: "nodes/n1"}).until("lobby", "plant-1", "plant-2", "yard")
	browse := func(size int32, patterns ...string) (ids []string) {
		t.Helper()
		for req := (&controlv1.BrowseCamerasRequest{PageSize: size, Patterns: patterns}); ; {
			resp, err := r.routes.BrowseCameras(r.ctx(), req)
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range resp.GetCameras() {
				ids = append(ids, c.GetName())
				if c.GetStatus().GetNode() != "" || c.GetRoute().GetNode() != "nodes/n1" || c.GetDisplayName() == "" || c.GetLabels()["a"] != "b" {
					t.Errorf("got %v", c)
				}
			}
			if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
				return ids
			}
		}
	}
	for _, size := range []int32{0, 1, 2} {
		if got := browse(size); got != nil {
			t.Errorf("without patterns: %v", got)
		}
		if got := browse(size, "plant-*", "yard"); !slices.Equal(got, []string{"cameras/plant-1", "cameras/plant-2", "cameras/yard"}) {
			t.Errorf("got %v", got)
		}
		if got := browse(size, "*"); len(got) != 4 {
			t.Errorf("got %v", got)
		}
	}
	if _, err := r.routes.BrowseCameras(r.ctx(), &controlv1.BrowseCamerasRequest{PageSize: -1}); !errors.Is(err, fleet.InvalidArgument) {
		t.Errorf("negative size: %v", err)
	}
}
