package controlplane_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"fanlight/controlplane"
	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	connecting = controlv1.CameraStatus_STATE_CONNECTING
	live       = controlv1.CameraStatus_STATE_LIVE
	failed     = controlv1.CameraStatus_STATE_FAILED
	unassigned = controlv1.CameraStatus_STATE_UNASSIGNED
	disabled   = controlv1.CameraStatus_STATE_DISABLED
)

// A camera goes from its creation to its node and back as its state.
func TestCameraReachesItsNode(t *testing.T) {
	r := start(t, options{})
	c := camera("lobby")
	c.Username, c.Password = "admin", "open sesame"
	if got := r.create(c).GetStatus(); got.GetState() != unassigned || got.GetReason() != controlv1.Reason_REASON_NO_NODE {
		t.Errorf("without nodes the status is %v", got)
	}
	n := r.connect(&controlv1.Hello{Node: "nodes/n1", Labels: map[string]string{"site": "a"}})
	d := n.until("lobby")["cameras/lobby"]
	if d.GetPassword() != "open sesame" || d.GetCamera().GetPassword() != "" || !d.GetCamera().GetPasswordSet() {
		t.Errorf("the node got %v", d)
	}
	if d.GetGeneration() <= 0 {
		t.Errorf("generation %d", d.GetGeneration())
	}
	st := r.get("lobby").GetStatus()
	if st.GetState() != connecting || st.GetReason() != controlv1.Reason_REASON_STARTING || st.GetNode() != "nodes/n1" || st.GetGeneration() != d.GetGeneration() {
		t.Errorf("assigned, the status is %v", st)
	}
	n.report("lobby", d.GetGeneration(), &controlv1.CameraStatus{State: live, Viewers: 3, Message: "all\nwell"})
	r.eventually("live", func() bool { return r.get("lobby").GetStatus().GetState() == live })
	st = r.get("lobby").GetStatus()
	if st.GetNode() != "nodes/n1" || st.GetGeneration() != d.GetGeneration() || st.GetViewers() != 3 || st.GetStateTime() == nil || st.GetMessage() != "all well" {
		t.Errorf("live, the status is %v", st)
	}

	// An error of applying is a failure.
	n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Applied{Applied: &controlv1.Applied{
		Generation: 1, Errors: []*controlv1.ApplyError{{Camera: "cameras/lobby", Reason: controlv1.Reason_REASON_NETWORK_FORBIDDEN, Message: "no"}},
	}}})
	// A second camera, created while the node is there, comes within the test's
	// patience; how fast is measured below.
	r.create(camera("yard"))
	n.until("lobby", "yard")
	if _, err := r.cameras.DeleteCamera(r.ctx(), &controlv1.DeleteCameraRequest{Name: "cameras/lobby"}); err != nil {
		t.Fatal(err)
	}
	n.until("yard")
	if _, err := r.cameras.UpdateCamera(r.ctx(), &controlv1.UpdateCameraRequest{
		Camera: &controlv1.Camera{Name: "cameras/yard", Disabled: true}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"disabled"}},
	}); err != nil {
		t.Fatal(err)
	}
	n.until()
	if st := r.get("yard").GetStatus(); st.GetState() != disabled || st.GetReason() != controlv1.Reason_REASON_DISABLED {
		t.Errorf("disabled, the status is %v", st)
	}
}

func TestApplyErrorIsAFailure(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	var set *controlv1.DesiredSet
	for set = n.set(); len(set.GetCameras()) == 0; set = n.set() {
	}
	apply := func(generation int64, message string) {
		n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Applied{Applied: &controlv1.Applied{
			Generation: generation,
			Errors:     []*controlv1.ApplyError{{Camera: "cameras/lobby", Reason: controlv1.Reason_REASON_NETWORK_FORBIDDEN, Message: message}},
		}}})
	}
	apply(set.GetGeneration()+1, "of a set that never was")
	apply(set.GetGeneration(), "not there")
	r.eventually("failed", func() bool { return r.get("lobby").GetStatus().GetState() == failed })
	if st := r.get("lobby").GetStatus(); st.GetReason() != controlv1.Reason_REASON_NETWORK_FORBIDDEN || st.GetMessage() != "not there" {
		t.Errorf("the status is %v", st)
	}
}

// Figures alone are stored only now and then, but not lost.
func TestFiguresAreStoredLater(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	g := n.until("lobby")["cameras/lobby"].GetGeneration()
	status := func(i int32) *controlv1.CameraStatus {
		return &controlv1.CameraStatus{
			State: live, Viewers: 1 + i,
			Verdict: &controlv1.Verdict{Cause: controlv1.Verdict_CAUSE_CAMERA, Message: fmt.Sprintf("%d %% lost", i)},
			Profiles: []*controlv1.ProfileStatus{{
				Id: "main", BitrateBps: int64(i), Loss: float64(i) / 1000, Jitter: durationpb.New(time.Duration(i) * time.Millisecond), Viewers: i, PacketsLost: int64(i),
			}},
		}
	}
	n.report("lobby", g, status(0))
	r.eventually("live", func() bool { return r.get("lobby").GetStatus().GetState() == live })
	before, err := r.store.Revision(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	for i := range int32(200) {
		n.report("lobby", g, status(1+i))
		time.Sleep(time.Millisecond) // or they would be stored together anyway
	}
	r.eventually("the last figure", func() bool { return r.get("lobby").GetStatus().GetViewers() == 201 })
	if p := r.get("lobby").GetStatus().GetProfiles()[0]; p.GetLoss() != 0.2 || p.GetJitter().AsDuration() != 200*time.Millisecond || p.GetViewers() != 200 {
		t.Errorf("the last figures are %v", p)
	}
	after, err := r.store.Revision(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if after-before > 2 {
		t.Errorf("200 reports of figures made %d writes", after-before)
	}
}

func TestStaleReportsAreDropped(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	g := n.until("lobby")["cameras/lobby"].GetGeneration()
	other := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	other.report("lobby", g, &controlv1.CameraStatus{State: failed, Message: "of a node that does not have it"})
	n.report("lobby", g-1, &controlv1.CameraStatus{State: failed, Message: "stale"})
	n.report("lobby", g+1, &controlv1.CameraStatus{State: failed, Message: "invented"})
	n.report("lobby", g, &controlv1.CameraStatus{State: disabled, Message: "not a node's to say"})
	n.report("nobody", g, &controlv1.CameraStatus{State: failed})
	n.report("not a name", g, &controlv1.CameraStatus{State: failed})
	r.eventually("drops", func() bool {
		return r.get("lobby").GetStatus().GetState() == connecting
	})
	n.report("lobby", g, &controlv1.CameraStatus{State: live})
	r.eventually("live", func() bool {
		st := r.get("lobby").GetStatus()
		if st.GetState() == failed || st.GetState() == disabled {
			t.Fatalf("a report that should have been dropped counted: %v", st)
		}
		return st.GetState() == live
	})
}

// A stale observation that slipped past the cache is refused by the store.
func TestObservationOfAnotherAssignment(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	r.connect(&controlv1.Hello{Node: "nodes/n1"}).until("lobby")
	revs, err := r.store.Observe(r.ctx(), []store.Observation{{Camera: "lobby", Status: &controlv1.CameraStatus{State: failed}, Assignment: 1}})
	if err != nil || revs[0] != 0 {
		t.Errorf("got revision %v, %v; want 0", revs, err)
	}
}

// A node that is gone loses its cameras after the grace; one that returns
// within it keeps them under the same generation.
func TestNodeLoss(t *testing.T) {
	r := start(t, options{config: controlplane.Config{NodeGrace: 2 * time.Second}})
	r.create(camera("lobby"))
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	g := n.until("lobby")["cameras/lobby"].GetGeneration()
	n.cancel()
	n = r.connect(&controlv1.Hello{Node: "nodes/n1"})
	if got := n.until("lobby")["cameras/lobby"].GetGeneration(); got != g {
		t.Errorf("after a short break the generation is %d, was %d", got, g)
	}
	// The first stream's lease is revoked meanwhile; the node must stay.
	time.Sleep(2500 * time.Millisecond)
	if st := r.get("lobby").GetStatus(); st.GetNode() != "nodes/n1" {
		t.Fatalf("the node lost its camera with its old lease: %v", st)
	}

	other := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	n.cancel()
	d := other.until("lobby")["cameras/lobby"]
	if d.GetGeneration() <= g {
		t.Errorf("the generation went from %d to %d", g, d.GetGeneration())
	}
	if _, err := r.nodes.GetNode(r.ctx(), &controlv1.GetNodeRequest{Name: "nodes/n1"}); !errors.Is(err, fleet.NodeNotFound) {
		t.Errorf("the lost node: %v", err)
	}
}

// A camera that accepts one session waits for the old node's lease.
func TestSingleSessionCameraWaits(t *testing.T) {
	const ttl = 2 * time.Second
	r := start(t, options{config: controlplane.Config{LeaseTTL: ttl}})
	single := camera("single")
	single.MaxSessions = 1
	r.create(single)
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n.until("single")
	r.create(camera("many"))
	n.until("many", "single")
	other := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	other.until()
	from := time.Now()
	n.cancel()
	other.until("many")
	other.until("many", "single")
	if d := time.Since(from); d < ttl+controlplane.AfterLease {
		t.Errorf("the single-session camera moved after %v, before the lease's %v and %v", d, ttl, controlplane.AfterLease)
	}
}

func TestSecondStreamReplacesTheFirst(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	first := r.connect(&controlv1.Hello{Node: "nodes/n1", BootId: "b"})
	g := first.until("lobby")["cameras/lobby"].GetGeneration()
	second := r.connect(&controlv1.Hello{Node: "nodes/n1", BootId: "b"})
	if got := second.until("lobby")["cameras/lobby"].GetGeneration(); got != g {
		t.Errorf("generation %d, was %d", got, g)
	}
	for {
		if _, err := first.stream.Recv(); err != nil {
			if !errors.Is(err, fleet.Unavailable) {
				t.Errorf("the first stream ended with %v", err)
			}
			break
		}
	}
	n, err := r.nodes.GetNode(r.ctx(), &controlv1.GetNodeRequest{Name: "nodes/n1"})
	if err != nil || n.GetNode().GetBootId() != "b" || n.GetNode().GetState() != controlv1.Node_STATE_READY || n.GetNode().GetAssignedCameras() != 1 {
		t.Errorf("got %v, %v", n, err)
	}
}

// Another process may not take the name of one that is connected, and may once
// that is gone.
func TestNodeNameTaken(t *testing.T) {
	r := start(t, options{config: controlplane.Config{NodeGrace: wait}})
	r.create(camera("lobby"))
	first := r.connect(&controlv1.Hello{Node: "nodes/n1", BootId: "a"})
	g := first.until("lobby")["cameras/lobby"].GetGeneration()
	hello := &controlv1.Hello{Node: "nodes/n1", BootId: "b", SessionAddress: "a:1"}
	for range 3 {
		n := r.dial()
		n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Hello{Hello: hello}})
		if _, err := n.stream.Recv(); !errors.Is(err, fleet.NodeNameTaken) || !strings.Contains(err.Error(), "--node") {
			t.Fatalf("another process got %v", err)
		}
	}
	r.create(camera("yard"))
	first.until("lobby", "yard") // its stream goes on

	first.cancel()
	r.eventually("the restarted process is let in", func() bool {
		n := r.dial()
		n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Hello{Hello: hello}})
		resp, err := n.stream.Recv()
		if err != nil {
			return false
		}
		if resp.GetWelcome() == nil {
			t.Fatalf("got %v, want a welcome", resp)
		}
		if got := n.until("lobby", "yard")["cameras/lobby"].GetGeneration(); got != g {
			t.Errorf("generation %d, was %d", got, g)
		}
		return true
	})
}

// A node's load, which changes all the time, weighs when a camera is placed.
func TestLoadIsPlacedBy(t *testing.T) {
	r := start(t, options{})
	busy := r.connect(&controlv1.Hello{Node: "nodes/n1", Capacity: &controlv1.NodeCapacity{Viewers: 100}})
	r.connect(&controlv1.Hello{Node: "nodes/n2", Capacity: &controlv1.NodeCapacity{Viewers: 100}})
	r.create(camera("first")) // both nodes are known to the planner
	r.eventually("placed", func() bool { return r.get("first").GetStatus().GetNode() != "" })
	busy.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Report{Report: &controlv1.Report{Load: &controlv1.NodeLoad{Viewers: 90}}}})
	r.eventually("the load is known", func() bool {
		n, err := r.nodes.GetNode(r.ctx(), &controlv1.GetNodeRequest{Name: "nodes/n1"})
		return err == nil && n.GetNode().GetLoad().GetViewers() == 90
	})
	for i := range 8 {
		id := fmt.Sprintf("c-%d", i)
		r.create(camera(id))
		r.eventually("placed", func() bool { return r.get(id).GetStatus().GetNode() != "" })
		if at := r.get(id).GetStatus().GetNode(); at != "nodes/n2" {
			t.Errorf("%s was given to the busy node", id)
		}
	}
}

// A node whose processors are too busy keeps its cameras and is given no other
// while another node fits, until it says that it is not any more.
func TestOverloadedNodeIsPlacedLast(t *testing.T) {
	r := start(t, options{config: controlplane.Config{RebalanceMoves: -1}}) // n1 would take what n2 has once it is calm
	capacity := &controlv1.NodeCapacity{Cameras: 20, CpuUtilization: 0.85}
	busy := r.connect(&controlv1.Hello{Node: "nodes/n1", Capacity: capacity})
	r.create(camera("first"))
	r.eventually("placed", func() bool { return r.get("first").GetStatus().GetNode() == "nodes/n1" })
	r.connect(&controlv1.Hello{Node: "nodes/n2", Capacity: &controlv1.NodeCapacity{Cameras: 4}})
	report := func(load *controlv1.NodeLoad) {
		busy.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Report{Report: &controlv1.Report{Load: load}}})
		r.eventually("the load is known", func() bool { return proto.Equal(r.getNode("n1").GetLoad(), load) })
	}
	place := func(id, want string) {
		t.Helper()
		r.create(camera(id))
		r.eventually("placed", func() bool { return r.get(id).GetStatus().GetNode() != "" })
		if at := r.get(id).GetStatus().GetNode(); at != "nodes/"+want {
			t.Errorf("%s was given to %s, want %s", id, at, want)
		}
	}
	report(&controlv1.NodeLoad{Cameras: 1, CpuUtilization: 0.91, Overloaded: true})
	for i := range 3 { // n1 has more room
		place(fmt.Sprintf("c-%d", i), "n2")
	}
	if got := r.getNode("n1"); got.GetCapacity().GetCpuUtilization() != 0.85 || got.GetAssignedCameras() != 1 {
		t.Errorf("the overloaded node is %v", got)
	}
	report(&controlv1.NodeLoad{Cameras: 1, CpuUtilization: 0.5})
	place("after", "n1")
	report(&controlv1.NodeLoad{Cameras: 1, CpuUtilization: 0.9, Overloaded: true})
	place("last-of-n2", "n2")
	place("nobody-else", "n1")
}

func TestHello(t *testing.T) {
	r := start(t, options{})
	first := r.dial()
	first.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Report{Report: &controlv1.Report{}}})
	if _, err := first.stream.Recv(); !errors.Is(err, fleet.HelloFirst) {
		t.Errorf("without hello: %v", err)
	}
	good := &controlv1.Hello{Node: "nodes/n1", BootId: "b", SessionAddress: "a:1"}
	for name, spoil := range map[string]func(*controlv1.Hello){
		"name":     func(h *controlv1.Hello) { h.Node = "cameras/x" },
		"boot":     func(h *controlv1.Hello) { h.BootId = "" },
		"address":  func(h *controlv1.Hello) { h.SessionAddress = "" },
		"control":  func(h *controlv1.Hello) { h.SessionAddress = "a\n:1" },
		"labels":   func(h *controlv1.Hello) { h.Labels = map[string]string{"ä": ""} },
		"capacity": func(h *controlv1.Hello) { h.Capacity = &controlv1.NodeCapacity{Viewers: -1} },
		"media":    func(h *controlv1.Hello) { h.MediaAddresses = make([]string, 33) },
	} {
		h := &controlv1.Hello{Node: good.GetNode(), BootId: good.GetBootId(), SessionAddress: good.GetSessionAddress()}
		spoil(h)
		n := r.dial()
		n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Hello{Hello: h}})
		if _, err := n.stream.Recv(); !errors.Is(err, fleet.InvalidArgument) {
			t.Errorf("%s: %v", name, err)
		}
	}
	n := r.connect(good)
	n.set()
	n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Hello{Hello: good}})
	if _, err := n.stream.Recv(); !errors.Is(err, fleet.OutOfOrder) {
		t.Errorf("a second hello: %v", err)
	}
}

func TestNodeSpeaksForItself(t *testing.T) {
	r := start(t, options{identity: &rpc.Identity{Role: rpc.RoleNode, Name: "n1"}})
	n := r.dial()
	n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Hello{Hello: &controlv1.Hello{Node: "nodes/n2", BootId: "b", SessionAddress: "a:1"}}})
	if _, err := n.stream.Recv(); !errors.Is(err, fleet.NodeIdentity) {
		t.Errorf("another's name: %v", err)
	}
	r.connect(&controlv1.Hello{Node: "nodes/n1"}).set()
}

func TestDrain(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n1.until("lobby")
	drain := func(node string, timeout time.Duration) (*controlv1.Node, error) {
		req := &controlv1.DrainNodeRequest{Name: "nodes/" + node}
		if timeout != 0 {
			req.Timeout = durationpb.New(timeout)
		}
		resp, err := r.nodes.DrainNode(r.ctx(), req)
		return resp.GetNode(), err
	}
	if _, err := drain("nobody", 0); !errors.Is(err, fleet.NodeNotFound) {
		t.Errorf("drain of nobody: %v", err)
	}
	if _, err := drain("n1", -time.Second); !errors.Is(err, fleet.InvalidArgument) {
		t.Errorf("negative timeout: %v", err)
	}
	got, err := drain("n1", 0)
	if err != nil {
		t.Fatal(err)
	}
	d := got.GetDrain()
	if got.GetState() != controlv1.Node_STATE_DRAINING || d.GetCamerasLeft() != 1 || d.GetDeadline().AsTime().Sub(d.GetStartTime().AsTime()) != 10*time.Minute {
		t.Errorf("draining: %v", got)
	}
	// Nobody else can take the camera: it stays until there is somebody.
	if st := r.get("lobby").GetStatus(); st.GetNode() != "nodes/n1" {
		t.Errorf("the camera left a draining node for nowhere: %v", st)
	}
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	n2.until("lobby")
	n1.until()

	// The drain survives the node, and a camera does not return to it.
	n1.cancel()
	r.eventually("gone", func() bool {
		n, err := r.nodes.GetNode(r.ctx(), &controlv1.GetNodeRequest{Name: "nodes/n1"})
		return err == nil && n.GetNode().GetState() == controlv1.Node_STATE_GONE
	})
	n1 = r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n1.until()
	n2.cancel()
	r.eventually("nobody has it", func() bool { return r.get("lobby").GetStatus().GetState() == unassigned })
	if _, err := r.nodes.UndrainNode(r.ctx(), &controlv1.UndrainNodeRequest{Name: "nodes/n1"}); err != nil {
		t.Fatal(err)
	}
	n1.until("lobby")

	// At its deadline a node is emptied at any price.
	if _, err := drain("n1", time.Millisecond); err != nil {
		t.Fatal(err)
	}
	n1.until()
	r.eventually("unassigned", func() bool { return r.get("lobby").GetStatus().GetState() == unassigned })
}

func TestSelectorAndCapacity(t *testing.T) {
	r := start(t, options{})
	r.connect(&controlv1.Hello{Node: "nodes/n1", Labels: map[string]string{"site": "a"}, Capacity: &controlv1.NodeCapacity{Cameras: 1}})
	c := camera("elsewhere")
	c.NodeSelector = map[string]string{"site": "b"}
	r.create(c)
	r.create(camera("first"))
	r.eventually("first assigned", func() bool { return r.get("first").GetStatus().GetNode() == "nodes/n1" })
	r.create(camera("second"))
	for id, want := range map[string]controlv1.Reason{
		"elsewhere": controlv1.Reason_REASON_NO_MATCHING_NODE,
		"second":    controlv1.Reason_REASON_NO_CAPACITY,
	} {
		r.eventually(id, func() bool {
			st := r.get(id).GetStatus()
			return st.GetState() == unassigned && st.GetReason() == want && st.GetMessage() != ""
		})
	}
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2", Labels: map[string]string{"site": "b"}})
	n2.until("elsewhere", "second")
}

// A camera reaches a connected node about as fast as the store writes. The
// limit is far above the milliseconds it takes, for machines that are busy.
func TestCreationIsEventDriven(t *testing.T) {
	r := start(t, options{})
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n.until()
	best := wait
	var ids []string
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		from := time.Now()
		r.create(camera(id))
		ids = append(ids, id)
		n.until(ids...)
		best = min(best, time.Since(from))
	}
	t.Logf("creation to desired set: %v at best", best)
	if best > time.Second {
		t.Errorf("took %v at best", best)
	}
}
