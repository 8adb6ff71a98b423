package controlplane_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"fanlight/controlplane"
	"fanlight/controlplane/store"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	noPart   = controlv1.DesiredCamera_PART_UNSPECIFIED
	takeOver = controlv1.DesiredCamera_PART_TAKE_OVER
	await    = controlv1.DesiredCamera_PART_AWAIT_HAND_OVER
	handOver = controlv1.DesiredCamera_PART_HAND_OVER
)

// has returns the first desired set that has a camera in a part.
func (n *node) has(id string, part controlv1.DesiredCamera_Part) *controlv1.DesiredCamera {
	n.r.t.Helper()
	for {
		for _, c := range n.set().GetCameras() {
			if c.GetCamera().GetName() == "cameras/"+id && c.GetPart() == part {
				return c
			}
		}
	}
}

func (n *node) released(id string, generation int64) {
	n.r.t.Helper()
	n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Report{Report: &controlv1.Report{
		Released: []*controlv1.RunningAssignment{{Camera: "cameras/" + id, Generation: generation}},
	}}})
}

// route returns a camera's route.
func (r *replica) route(id string) *controlv1.Route {
	r.t.Helper()
	resp, err := r.routes.BrowseCameras(r.ctx(), &controlv1.BrowseCamerasRequest{Patterns: []string{id}})
	if err != nil || len(resp.GetCameras()) != 1 {
		r.t.Fatalf("route of %s: %v, %v", id, resp, err)
	}
	return resp.GetCameras()[0].GetRoute()
}

// leads waits until a camera's route leads to a node; "": nowhere.
func (r *replica) leads(id, node string, generation int64) {
	r.t.Helper()
	if node != "" {
		node = "nodes/" + node
	}
	r.eventually(fmt.Sprintf("%s is routed to %q, generation %d", id, node, generation), func() bool {
		rt := r.route(id)
		return rt.GetNode() == node && (node == "" || rt.GetGeneration() == generation)
	})
}

func (r *replica) getNode(id string) *controlv1.Node {
	r.t.Helper()
	resp, err := r.nodes.GetNode(r.ctx(), &controlv1.GetNodeRequest{Name: "nodes/" + id})
	if err != nil {
		r.t.Fatalf("node %s: %v", id, err)
	}
	return resp.GetNode()
}

func (r *replica) drain(id string, timeout time.Duration) {
	r.t.Helper()
	if _, err := r.nodes.DrainNode(r.ctx(), &controlv1.DrainNodeRequest{Name: "nodes/" + id, Timeout: durationpb.New(timeout)}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *replica) undrain(id string) {
	r.t.Helper()
	if _, err := r.nodes.UndrainNode(r.ctx(), &controlv1.UndrainNodeRequest{Name: "nodes/" + id}); err != nil {
		r.t.Fatal(err)
	}
}

func (r *replica) update(c *controlv1.Camera, path string) {
	r.t.Helper()
	req := &controlv1.UpdateCameraRequest{Camera: c, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{path}}}
	if _, err := r.cameras.UpdateCamera(r.ctx(), req); err != nil {
		r.t.Fatal(err)
	}
}

// moving is a camera that is LIVE on n1, which is being drained, and that n2 is
// to take over.
type moving struct {
	*replica
	n1, n2 *node
	g1, g2 int64
	dir    string
}

// warming returns one.
func warming(t *testing.T, opt options) *moving {
	t.Helper()
	m := &moving{dir: t.TempDir()}
	opt.store.DataDir = m.dir
	m.replica = start(t, opt)
	c := camera("lobby")
	c.Username, c.Password = "admin", "hunter2"
	m.create(c)
	m.n1 = m.connect(&controlv1.Hello{Node: "nodes/n1"})
	m.g1 = m.n1.until("lobby")["cameras/lobby"].GetGeneration()
	m.live(m.n1, "lobby", m.g1)
	m.n2 = m.connect(&controlv1.Hello{Node: "nodes/n2"})
	m.n2.until()
	m.drain("n1", wait)
	d := m.n2.has("lobby", takeOver)
	m.g2 = d.GetGeneration()
	if d.GetPassword() != "hunter2" || m.g2 <= m.g1 {
		t.Errorf("the new node got %v after generation %d", d, m.g1)
	}
	if got := d.GetLastTransport(); got != controlv1.Profile_TRANSPORT_TCP {
		t.Errorf("the new node was told of %v; the old one has it by TCP", got)
	}
	if d := m.n1.has("lobby", await); d.GetPassword() != "hunter2" || d.GetGeneration() != m.g1 {
		t.Errorf("the old node got %v", d)
	}
	m.leads("lobby", "n1", m.g1)
	return m
}

// live has a node report a camera LIVE, and waits until that is seen.
func (r *replica) live(n *node, id string, generation int64) {
	r.t.Helper()
	n.report(id, generation, &controlv1.CameraStatus{
		State: live, Profiles: []*controlv1.ProfileStatus{{Id: "main", Transport: controlv1.Profile_TRANSPORT_TCP}},
	})
	r.eventually(id+" is live", func() bool {
		st := r.get(id).GetStatus()
		return st.GetState() == live && st.GetGeneration() == generation
	})
}

// A drain makes before it breaks: the old node serves until the new one has the
// camera LIVE, and has it until it has let go.
func TestDrainMakesBeforeItBreaks(t *testing.T) {
	m := warming(t, options{})
	// Until then, what the old node says is what operators see.
	m.n2.report("lobby", m.g2, &controlv1.CameraStatus{State: failed, Message: "not yet"})
	m.n1.report("lobby", m.g1, &controlv1.CameraStatus{State: live, Viewers: 7, Message: "old"})
	m.eventually("the old node's status is seen", func() bool {
		st := m.get("lobby").GetStatus()
		if st.GetState() == failed {
			t.Fatal("the new node's failure is seen before it has taken over")
		}
		return st.GetMessage() == "old"
	})
	if d := m.getNode("n1").GetDrain(); d.GetCamerasLeft() != 1 || d.GetCamerasMoving() != 1 || d.GetCamerasStranded() != 0 {
		t.Errorf("warming, the drain is %v", d)
	}

	m.n2.report("lobby", m.g2, &controlv1.CameraStatus{State: live, Message: "new"})
	m.leads("lobby", "n2", m.g2)
	if d := m.n1.has("lobby", handOver); d.GetGeneration() != m.g1 {
		t.Errorf("the old node is to hand over generation %d, has %d", d.GetGeneration(), m.g1)
	}
	if d := m.n2.has("lobby", noPart); d.GetGeneration() != m.g2 {
		t.Errorf("serving, the new node has generation %d, had %d", d.GetGeneration(), m.g2)
	}
	m.n1.report("lobby", m.g1, &controlv1.CameraStatus{State: failed, Message: "stale"})
	if d := m.getNode("n1").GetDrain(); d.GetCamerasLeft() != 1 || d.GetCamerasMoving() != 1 {
		t.Errorf("handing over, the drain is %v", d)
	}
	m.n1.released("lobby", m.g1+1) // of nothing it has
	m.n1.released("lobby", m.g1)
	m.n1.until()
	m.eventually("the old node is empty", func() bool { return m.getNode("n1").GetDrain().GetCamerasLeft() == 0 })
	if st := m.get("lobby").GetStatus(); st.GetState() != live || st.GetMessage() != "new" || st.GetNode() != "nodes/n2" {
		t.Errorf("moved, the status is %v", st)
	}
	m.leads("lobby", "n2", m.g2)
}

// What happens to a camera on its way.
func TestMoveInterrupted(t *testing.T) {
	for name, test := range map[string]func(t *testing.T, m *moving){
		"old node dies while the new one warms up": func(_ *testing.T, m *moving) {
			m.n1.cancel()
			m.leads("lobby", "n2", m.g2)
			m.n2.has("lobby", noPart)
		},
		"new node dies while it warms up": func(t *testing.T, m *moving) {
			n3 := m.connect(&controlv1.Hello{Node: "nodes/n3"})
			m.n2.cancel()
			d := n3.has("lobby", takeOver)
			if d.GetGeneration() <= m.g2 {
				t.Errorf("the third node has generation %d after %d", d.GetGeneration(), m.g2)
			}
			m.leads("lobby", "n1", m.g1)
			n3.report("lobby", d.GetGeneration(), &controlv1.CameraStatus{State: live})
			m.leads("lobby", "n3", d.GetGeneration())
		},
		"new node dies and nobody else can": func(t *testing.T, m *moving) {
			m.n2.cancel()
			m.n1.has("lobby", noPart)
			m.leads("lobby", "n1", m.g1) // under the generation that it has: no viewer notices
			m.eventually("stranded", func() bool { return m.getNode("n1").GetDrain().GetCamerasStranded() == 1 })
			d := m.getNode("n1").GetDrain()
			if !strings.HasPrefix(d.GetStrandedMessage(), "camera lobby: ") || d.GetCamerasMoving() != 0 {
				t.Errorf("the drain is %v", d)
			}
			if st := m.get("lobby").GetStatus(); st.GetState() != live {
				t.Errorf("stranded, the status is %v", st)
			}
			n2 := m.connect(&controlv1.Hello{Node: "nodes/n2", BootId: "again"})
			n2.has("lobby", takeOver)
			m.eventually("not stranded", func() bool { return m.getNode("n1").GetDrain().GetCamerasStranded() == 0 })
		},
		"undrained": func(_ *testing.T, m *moving) { // the move goes on
			m.undrain("n1")
			m.n2.report("lobby", m.g2, &controlv1.CameraStatus{State: live})
			m.leads("lobby", "n2", m.g2)
			m.n1.has("lobby", handOver)
		},
		"camera deleted": func(t *testing.T, m *moving) {
			if _, err := m.cameras.DeleteCamera(m.ctx(), &controlv1.DeleteCameraRequest{Name: "cameras/lobby"}); err != nil {
				t.Fatal(err)
			}
			m.n1.until()
			m.n2.until()
		},
		"camera disabled": func(_ *testing.T, m *moving) {
			m.update(&controlv1.Camera{Name: "cameras/lobby", Disabled: true}, "disabled")
			m.n1.until()
			m.n2.until()
			m.eventually("disabled", func() bool { return m.get("lobby").GetStatus().GetState() == disabled })
		},
		"camera updated": func(_ *testing.T, m *moving) { // both are told
			m.update(&controlv1.Camera{Name: "cameras/lobby", DisplayName: "new"}, "display_name")
			for n, part := range map[*node]controlv1.DesiredCamera_Part{m.n1: await, m.n2: takeOver} {
				for n.has("lobby", part).GetCamera().GetDisplayName() != "new" {
				}
			}
		},
		"camera accepts one session from now on": func(_ *testing.T, m *moving) {
			m.update(&controlv1.Camera{Name: "cameras/lobby", MaxSessions: 1}, "max_sessions")
			m.n2.until() // not two at a time
			m.n1.until()
			m.n1.released("lobby", m.g1)
			m.n2.has("lobby", noPart)
		},
		"deadline passes": func(_ *testing.T, m *moving) {
			m.drain("n1", time.Millisecond)
			m.n1.until()
			m.leads("lobby", "n2", m.g2)
		},
		"leader changes": func(_ *testing.T, m *moving) {
			m.stop()
			m.replica = start(m.t, options{store: store.Config{DataDir: m.dir}})
			m.n1 = m.connect(&controlv1.Hello{Node: "nodes/n1"})
			m.n2 = m.connect(&controlv1.Hello{Node: "nodes/n2"})
			m.n1.has("lobby", await)
			m.n2.has("lobby", takeOver)
			m.leads("lobby", "n1", m.g1)
			m.n2.report("lobby", m.g2, &controlv1.CameraStatus{State: live})
			m.leads("lobby", "n2", m.g2)
		},
		"new node dies when it serves": func(_ *testing.T, m *moving) {
			m.n2.report("lobby", m.g2, &controlv1.CameraStatus{State: live})
			m.n1.has("lobby", handOver)
			n3 := m.connect(&controlv1.Hello{Node: "nodes/n3"})
			m.n2.cancel()
			d := n3.has("lobby", noPart)
			m.leads("lobby", "n3", d.GetGeneration())
			m.n1.released("lobby", m.g1) // whose viewers were told nothing of that
			m.n1.until()
		},
		"old node dies when it hands over": func(_ *testing.T, m *moving) {
			m.n2.report("lobby", m.g2, &controlv1.CameraStatus{State: live})
			m.n1.has("lobby", handOver)
			m.n1.cancel()
			m.eventually("the move is done", func() bool { return m.getNode("n1").GetAssignedCameras() == 0 })
			m.leads("lobby", "n2", m.g2)
		},
		"old node is restarted when it hands over": func(_ *testing.T, m *moving) {
			m.n2.report("lobby", m.g2, &controlv1.CameraStatus{State: live})
			m.n1.has("lobby", handOver)
			m.n1.cancel()
			m.eventually("let in", func() bool {
				n := m.dial()
				n.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Hello{Hello: &controlv1.Hello{Node: "nodes/n1", BootId: "again", SessionAddress: "127.0.0.1:1"}}})
				_, err := n.stream.Recv()
				return err == nil
			})
			m.eventually("the move is done", func() bool { return m.getNode("n1").GetAssignedCameras() == 0 })
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			test(t, warming(t, options{}))
		})
	}
}

// A camera that nobody has LIVE moves at once: there is no picture to keep.
func TestMoveWithoutPicture(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	g := n1.until("lobby")["cameras/lobby"].GetGeneration()
	n1.report("lobby", g, &controlv1.CameraStatus{State: controlv1.CameraStatus_STATE_IDLE})
	r.eventually("idle", func() bool { return r.get("lobby").GetStatus().GetState() == controlv1.CameraStatus_STATE_IDLE })
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	r.drain("n1", wait)
	if d := n2.until("lobby")["cameras/lobby"]; d.GetPart() != noPart {
		t.Errorf("the new node got %v", d)
	}
	n1.until()
}

// At most 32 cameras are on their way from a node at a time.
func TestMovesAreBounded(t *testing.T) {
	const cameras, most = 40, 32
	r := start(t, options{})
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	var ids []string
	for i := range cameras {
		ids = append(ids, fmt.Sprintf("c-%02d", i))
		r.create(camera(ids[i]))
	}
	for id, d := range n1.until(ids...) {
		n1.report(strings.TrimPrefix(id, "cameras/"), d.GetGeneration(), &controlv1.CameraStatus{State: live})
	}
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	n2.until()
	r.eventually("all are live", func() bool {
		for _, id := range ids {
			if r.get(id).GetStatus().GetState() != live {
				return false
			}
		}
		return true
	})
	r.drain("n1", time.Minute)
	var running sync.WaitGroup
	running.Go(n1.letGo)
	defer running.Wait()
	defer n1.cancel()
	had, waiting, peak := make(map[string]bool), make(map[string]int64), 0
	for len(had) < cameras {
		flying := 0
		for _, c := range n2.set().GetCameras() {
			if c.GetPart() != takeOver {
				continue
			}
			flying++
			waiting[strings.TrimPrefix(c.GetCamera().GetName(), "cameras/")] = c.GetGeneration()
		}
		if peak = max(peak, flying); peak > most {
			t.Fatalf("%d cameras are warming up at a time", peak)
		}
		if peak < most {
			continue // none is LIVE before as many as may be are on their way
		}
		for id, g := range waiting {
			if !had[id] {
				had[id] = true
				n2.report(id, g, &controlv1.CameraStatus{State: live})
			}
		}
	}
	r.eventually("empty", func() bool { return r.getNode("n1").GetAssignedCameras() == 0 })
}

// letGo lets go of the cameras that the node is to hand over, until its stream
// ends.
func (n *node) letGo() {
	done := make(map[string]bool)
	for {
		resp, err := n.stream.Recv()
		if err != nil {
			return
		}
		for _, c := range resp.GetDesiredSet().GetCameras() {
			if name := c.GetCamera().GetName(); c.GetPart() == handOver && !done[name] {
				done[name] = true
				n.released(strings.TrimPrefix(name, "cameras/"), c.GetGeneration())
			}
		}
	}
}

// A node that is about to stop is treated as one that is being drained, until
// its process ends.
func TestLeave(t *testing.T) {
	r := start(t, options{config: controlplane.Config{NodeGrace: wait}})
	r.create(camera("lobby"))
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	g := n1.until("lobby")["cameras/lobby"].GetGeneration()
	r.live(n1, "lobby", g)
	n1.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Leave{Leave: &controlv1.Leave{}}})
	r.eventually("draining", func() bool {
		n := r.getNode("n1")
		return n.GetState() == controlv1.Node_STATE_DRAINING && n.GetLeaving() && n.GetDrain() == nil
	})
	// The same process at another stream still leaves.
	n1 = r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n1.until("lobby")
	if !r.getNode("n1").GetLeaving() {
		t.Error("a node that reconnects leaves no more")
	}
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	d := n2.has("lobby", takeOver)
	n2.report("lobby", d.GetGeneration(), &controlv1.CameraStatus{State: live})
	n1.has("lobby", handOver)
	n1.released("lobby", g)
	n1.until()
	if err := n1.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	r.eventually("unregistered without the grace", func() bool {
		_, err := r.nodes.GetNode(r.ctx(), &controlv1.GetNodeRequest{Name: "nodes/n1"})
		return err != nil
	})
}

// A node that joins is given cameras of those that are loaded, a few at a time,
// and never ones that accept a single session.
func TestRebalance(t *testing.T) {
	r := start(t, options{config: controlplane.Config{RebalanceMoves: 2, RebalanceAfter: 100 * time.Millisecond}})
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1", Capacity: &controlv1.NodeCapacity{Cameras: 10}})
	ids := []string{"single"}
	single := camera("single")
	single.MaxSessions = 1
	r.create(single)
	for i := range 7 {
		ids = append(ids, fmt.Sprintf("c-%d", i))
		r.create(camera(ids[i+1]))
	}
	generations := make(map[string]int64)
	for name, d := range n1.until(ids...) {
		id := strings.TrimPrefix(name, "cameras/")
		generations[id] = d.GetGeneration()
		r.live(n1, id, d.GetGeneration())
	}
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2", Capacity: &controlv1.NodeCapacity{Cameras: 10}})
	moved := make(map[string]bool)
	for len(moved) < 3 {
		flying := 0
		for _, c := range n2.set().GetCameras() {
			if c.GetPart() == takeOver {
				flying++
				id := strings.TrimPrefix(c.GetCamera().GetName(), "cameras/")
				if !moved[id] {
					moved[id] = true
					n2.report(id, c.GetGeneration(), &controlv1.CameraStatus{State: live})
					n1.has(id, handOver)
					n1.released(id, generations[id])
				}
			}
		}
		if flying > 2 {
			t.Fatalf("%d moves at a time", flying)
		}
	}
	if moved["single"] {
		t.Error("a camera that accepts one session was moved for balance")
	}
}

// Balance that has to wait for something more urgent is not forgotten.
func TestBalanceComesAfterWhatIsUrgent(t *testing.T) {
	r := start(t, options{config: controlplane.Config{LeaseTTL: time.Second, RebalanceAfter: 100 * time.Millisecond}})
	single := camera("single")
	single.MaxSessions, single.NodeSelector = 1, map[string]string{"for": "single"}
	r.create(single)
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1", Labels: single.GetNodeSelector()})
	n1.until("single")
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2", Labels: single.GetNodeSelector()})
	n2.until()
	n3 := r.connect(&controlv1.Hello{Node: "nodes/n3", Labels: map[string]string{"for": "others"}})
	ids := make([]string, 4)
	for i := range ids {
		ids[i] = fmt.Sprintf("c-%d", i)
		c := camera(ids[i])
		c.NodeSelector = map[string]string{"for": "others"}
		r.create(c)
	}
	n3.until(ids...)
	time.Sleep(500 * time.Millisecond) // there is nothing to balance yet
	n1.cancel()
	r.eventually("gone", func() bool { return r.get("single").GetStatus().GetState() == unassigned })
	n4 := r.connect(&controlv1.Hello{Node: "nodes/n4", Labels: map[string]string{"for": "others"}})
	for len(n4.set().GetCameras()) < 2 {
	}
	if n := r.getNode("n3"); n.GetState() != controlv1.Node_STATE_READY || n.GetAssignedCameras() != 2 {
		t.Errorf("the node that had all is %v", n)
	}
}

// With the address of its sessions refused, a node's process is dead: nobody
// waits for the grace.
func TestDeadProcessIsNotWaitedFor(t *testing.T) {
	r := start(t, options{config: controlplane.Config{NodeGrace: wait, LeaseTTL: wait}})
	r.create(camera("lobby"))
	l := r.listen()
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1", SessionAddress: l.Addr().String()})
	n1.until("lobby")
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	n2.until()
	conn, err := l.Accept() // it is reached
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	from := time.Now()
	_ = l.Close()
	n1.cancel()
	n2.until("lobby")
	t.Logf("the other node was told after %v", time.Since(from))
	if d := time.Since(from); d > wait/2 {
		t.Errorf("the camera moved after %v", d)
	}
}

// An address that was refused from the beginning says nothing of the process: a
// node whose stream breaks has its grace.
func TestRefusedAddressIsNoDeath(t *testing.T) {
	r := start(t, options{config: controlplane.Config{NodeGrace: 2 * time.Second}})
	r.create(camera("lobby"))
	l := r.listen()
	_ = l.Close()
	hello := &controlv1.Hello{Node: "nodes/n1", SessionAddress: l.Addr().String()}
	n1 := r.connect(hello)
	g := n1.until("lobby")["cameras/lobby"].GetGeneration()
	r.connect(&controlv1.Hello{Node: "nodes/n2"}).until()
	n1.cancel()
	time.Sleep(500 * time.Millisecond) // for what must not happen
	if again := r.connect(hello).until("lobby")["cameras/lobby"].GetGeneration(); again != g {
		t.Errorf("the camera was taken from a node that came back: generation %d after %d", again, g)
	}
}

// Under a new leader, a node that connected replicas have vouched for is known
// to be alive, and loses its cameras at once when it goes.
func TestNewLeaderKnowsWhoIsAlive(t *testing.T) {
	dir := t.TempDir()
	config := func(name string) controlplane.Config {
		return controlplane.Config{ReplicaName: name, SettleTime: 10 * wait, NodeGrace: 100 * time.Millisecond}
	}
	first := start(t, options{store: store.Config{DataDir: dir}, config: config("one")})
	first.eventually("the first one leads", func() bool { return strings.Contains(first.log.String(), "msg=leading") })
	other := func(name string) *replica {
		return start(t, options{
			store:  store.Config{Endpoints: []string{first.store.Endpoint()}, KeyFile: dir + "/secret.key"},
			config: config(name),
		})
	}
	second, third := other("two"), other("three")
	second.create(camera("lobby"))
	// At a replica each, whichever leads next.
	n1 := second.connect(&controlv1.Hello{Node: "nodes/n1"})
	n1.until("lobby")
	n2 := third.connect(&controlv1.Hello{Node: "nodes/n2"})
	n2.until()
	first.cut()
	second.eventually("another one leads", func() bool {
		return strings.Contains(second.log.String(), "msg=leading") || strings.Contains(third.log.String(), "msg=leading")
	})
	n1.cancel()
	n2.until("lobby")
	second.stop() // before the first, whose etcd they use
	third.stop()
}
