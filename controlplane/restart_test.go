package controlplane_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fanlight/controlplane"
	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// TestMain's child: TestKill runs this test binary as a control plane.
const childDir = "FANLIGHT_TEST_CHILD_DIR"

func TestRestart(t *testing.T) {
	dir := t.TempDir()
	r := start(t, options{store: store.Config{DataDir: dir}, config: controlplane.Config{LeaseTTL: 30 * time.Second}})
	c := camera("lobby")
	c.Username, c.Password = "admin", "hunter2"
	etag := r.create(c).GetEtag()
	r.create(camera("yard"))
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	m := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	r.eventually("both are assigned", func() bool {
		return r.get("lobby").GetStatus().GetNode() != "" && r.get("yard").GetStatus().GetNode() != ""
	})
	before := map[string]*controlv1.CameraStatus{"lobby": r.get("lobby").GetStatus(), "yard": r.get("yard").GetStatus()}
	w := r.watch(t, &controlv1.WatchCamerasRequest{})
	w.snapshot()
	r.stop()
	for _, s := range []*node{n, m} {
		for err := error(nil); err == nil; { // until the stream has ended
			_, err = s.stream.Recv()
		}
	}

	r = start(t, options{store: store.Config{DataDir: dir}, config: controlplane.Config{LeaseTTL: 30 * time.Second}})
	from := time.Now()
	if got := r.get("lobby"); got.GetEtag() != etag || !got.GetPasswordSet() {
		t.Errorf("after a restart: %v", got)
	}
	t.Logf("there after %v", time.Since(from))
	n = r.connect(&controlv1.Hello{Node: "nodes/n1"})
	m = r.connect(&controlv1.Hello{Node: "nodes/n2"})
	got := make(map[string]*controlv1.DesiredCamera)
	for _, s := range []*node{n, m} {
		set := s.set()
		for len(got)+len(set.GetCameras()) == 0 {
			set = s.set()
		}
		for _, c := range set.GetCameras() {
			got[strings.TrimPrefix(c.GetCamera().GetName(), "cameras/")] = c
		}
	}
	for id, st := range before {
		if now := r.get(id).GetStatus(); now.GetNode() != st.GetNode() || now.GetGeneration() != st.GetGeneration() {
			t.Errorf("%s was %v, is %v", id, st, now)
		}
		if got[id].GetGeneration() != st.GetGeneration() {
			t.Errorf("%s: the node got %v", id, got[id])
		}
	}
	if got["lobby"].GetPassword() != "hunter2" {
		t.Error("the password is lost")
	}
	// It leads at once, not after its former self's lease.
	from = time.Now()
	r.create(camera("new"))
	r.eventually("assigned", func() bool { return r.get("new").GetStatus().GetNode() != "" })
	if d := time.Since(from); d > 10*time.Second {
		t.Errorf("a new camera was assigned after %v", d)
	}
	// A watch of before goes on.
	late := r.watch(t, &controlv1.WatchCamerasRequest{ResumeToken: w.token})
	late.until(func() bool { return late.have["cameras/new"] != nil })
}

// outage is a control plane that was away for so long that all leases ran out,
// with cameras that were on two nodes before.
type outage struct {
	*replica
	on map[string]map[string]int64 // node → camera → generation
}

// afterOutage returns one that is there again, and no node yet.
func afterOutage(t *testing.T, settle time.Duration) outage {
	t.Helper()
	opt := options{store: store.Config{DataDir: t.TempDir()}, config: controlplane.Config{LeaseTTL: time.Second, SettleTime: settle}}
	r := start(t, opt)
	r.connect(&controlv1.Hello{Node: "nodes/n1"})
	r.connect(&controlv1.Hello{Node: "nodes/n2"})
	o := outage{on: make(map[string]map[string]int64)}
	for i := range 8 {
		id := fmt.Sprintf("c-%d", i)
		r.create(camera(id))
		r.eventually("assigned", func() bool { return r.get(id).GetStatus().GetNode() != "" })
		st := r.get(id).GetStatus()
		if o.on[st.GetNode()] == nil {
			o.on[st.GetNode()] = make(map[string]int64)
		}
		o.on[st.GetNode()][id] = st.GetGeneration()
	}
	if len(o.on["nodes/n1"]) == 0 || len(o.on["nodes/n2"]) == 0 {
		t.Fatalf("one node has all: %v", o.on)
	}
	r.stop()
	o.replica = start(t, opt)
	return o
}

// gone waits until a node's lease has run out.
func (o outage) gone(node string) {
	o.t.Helper()
	o.eventually(node+"'s lease has run out", func() bool {
		n, err := o.nodes.GetNode(o.ctx(), &controlv1.GetNodeRequest{Name: node})
		return errors.Is(err, fleet.NodeNotFound) || n.GetNode().GetState() != controlv1.Node_STATE_READY
	})
}

// keeps checks that a node has the assignments that it had. The status names no
// node that is not connected.
func (o outage) keeps(node string) {
	o.t.Helper()
	for id, g := range o.on[node] {
		st := o.get(id).GetStatus()
		if at := st.GetNode(); at != node && at != "" || st.GetGeneration() != g {
			o.t.Errorf("%s was at %s, generation %d, and is %v", id, node, g, st)
		}
	}
}

// A node that comes back later than the others, and than its lease lived, keeps
// its cameras. One that goes afterwards loses them at once.
func TestOutageTakesNothing(t *testing.T) {
	o := afterOutage(t, 2*wait)
	first := o.connect(&controlv1.Hello{Node: "nodes/n1"})
	o.create(camera("new")) // waits for nobody
	o.eventually("the new camera is placed", func() bool { return o.get("new").GetStatus().GetNode() == "nodes/n1" })
	o.gone("nodes/n2")
	time.Sleep(time.Second) // for what must not happen
	o.keeps("nodes/n1")
	o.keeps("nodes/n2")
	late := o.connect(&controlv1.Hello{Node: "nodes/n2"})
	if got := late.set(); len(got.GetCameras()) != len(o.on["nodes/n2"]) {
		t.Errorf("the late node is to run %v", got)
	}
	o.keeps("nodes/n1")
	o.keeps("nodes/n2")

	first.cancel()
	o.eventually("a node that is lost under this leader loses its cameras", func() bool {
		for id := range o.on["nodes/n1"] {
			if o.get(id).GetStatus().GetNode() != "nodes/n2" {
				return false
			}
		}
		return true
	})
}

// A node that does not come back loses its cameras in the end.
func TestOutageEnds(t *testing.T) {
	const settle = 5 * time.Second
	from := time.Now()
	o := afterOutage(t, settle)
	o.connect(&controlv1.Hello{Node: "nodes/n1"})
	o.eventually("the cameras of the node that is gone move", func() bool {
		for id := range o.on["nodes/n2"] {
			if o.get(id).GetStatus().GetNode() != "nodes/n1" {
				return false
			}
		}
		return true
	})
	if d := time.Since(from); d < settle {
		t.Errorf("they moved after %v, before the nodes' %v", d, settle)
	}
	o.keeps("nodes/n1")
}

// Nodes are told which etcd their generations come from.
func TestWelcomeNamesTheCluster(t *testing.T) {
	clusters := make(map[string]bool)
	for range 2 {
		dir := t.TempDir()
		for range 2 {
			r := start(t, options{store: store.Config{DataDir: dir}})
			clusters[r.connect(&controlv1.Hello{Node: "nodes/n1"}).welcome.GetCluster()] = true
			r.stop()
		}
	}
	if len(clusters) != 2 || clusters[""] {
		t.Errorf("two clusters, each started twice, were called %v", clusters)
	}
}

// TestKill kills a control plane without a warning, twice.
func TestKill(t *testing.T) {
	if dir := os.Getenv(childDir); dir != "" {
		child(t, dir)
		return
	}
	dir := t.TempDir()
	for round := range 3 {
		ctx, cancel := context.WithTimeout(t.Context(), wait)
		cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^TestKill$", "-test.v")
		cmd.Env = append(os.Environ(), childDir+"="+dir)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var said []string
		for lines := bufio.NewScanner(out); lines.Scan(); {
			said = append(said, lines.Text())
			if strings.HasPrefix(lines.Text(), "ready ") {
				break
			}
		}
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // killed
		cancel()
		want := fmt.Sprintf("ready %d", round*20)
		if len(said) == 0 || said[len(said)-1] != want {
			t.Fatalf("round %d: the child said %q, want %q at last", round, said, want)
		}
	}
}

// child says how many cameras it has, each with its password, creates 20 more
// and waits to be killed.
func child(t *testing.T, dir string) {
	t.Helper()
	st, err := store.Open(t.Context(), store.Config{DataDir: dir})
	if err != nil {
		t.Fatal(err)
	}
	entries, _, err := st.Load(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	had := 0
	for _, e := range entries {
		if e.Camera == nil {
			continue
		}
		if p, err := st.Unseal(e.Camera.ID, e.Camera.Sealed); err != nil || p != "hunter2" {
			t.Fatalf("password %q, %v", p, err)
		}
		had++
	}
	if err := st.Close(); err != nil {
		t.Fatal(err)
	}
	r := start(t, options{store: store.Config{DataDir: dir}})
	for i := range 20 {
		c := camera(fmt.Sprintf("c-%d", had+i))
		c.Username, c.Password = "admin", "hunter2"
		r.create(c)
	}
	fmt.Printf("ready %d\n", had)
	select {}
}

// A password appears nowhere but at the camera's node.
func TestPasswordsStaySecret(t *testing.T) {
	const secret = "S3cr3t-correct-horse"
	dir := t.TempDir()
	r := start(t, options{store: store.Config{DataDir: dir}})
	var said []string
	say := func(v any, err error) { said = append(said, fmt.Sprintf("%v %v", v, err)) }
	c := camera("lobby")
	c.Username, c.Password = "admin", secret
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	w := r.watch(t, &controlv1.WatchCamerasRequest{})
	ctx := r.ctx()
	created, err := r.cameras.CreateCamera(ctx, &controlv1.CreateCameraRequest{Camera: c})
	say(created, err)
	if got := n.until("lobby")["cameras/lobby"]; got.GetPassword() != secret || got.GetCamera().GetPassword() != "" {
		t.Fatal("the node did not get the password in its own field")
	}
	w.until(func() bool { return w.have["cameras/lobby"] != nil })
	say(w.have, nil)
	got, err := r.cameras.GetCamera(ctx, &controlv1.GetCameraRequest{Name: c.GetName()})
	say(got, err)
	listed, err := r.cameras.ListCameras(ctx, &controlv1.ListCamerasRequest{})
	say(listed, err)
	updated, err := r.cameras.UpdateCamera(ctx, &controlv1.UpdateCameraRequest{Camera: c})
	say(updated, err)
	browsed, err := r.routes.BrowseCameras(ctx, &controlv1.BrowseCamerasRequest{Patterns: []string{"*"}})
	say(browsed, err)
	for _, spoil := range []func(*controlv1.Camera){
		func(c *controlv1.Camera) { c.Password += "\n" },
		func(c *controlv1.Camera) { c.Password = strings.Repeat(secret, 20) },
		func(c *controlv1.Camera) { c.Username = "" },
		func(c *controlv1.Camera) { c.Name = "x" },
		func(c *controlv1.Camera) { c.Profiles[0].Url = "rtsp://admin:" + secret + "@192.0.2.1/" },
		func(c *controlv1.Camera) { c.Profiles[0].Url = "rtsp://admin:" + secret + "/x@192.0.2.1/" },
		func(c *controlv1.Camera) { c.Profiles[0].Url = "rtsp://h/#" + secret },
	} {
		bad := camera("bad")
		bad.Username, bad.Password = "admin", secret
		spoil(bad)
		resp, err := r.cameras.CreateCamera(ctx, &controlv1.CreateCameraRequest{Camera: bad})
		if err == nil {
			t.Errorf("taken: %v", bad.GetName())
		}
		say(resp, err)
	}
	n.cancel()
	r.stop()
	for _, s := range append(said, r.log.String()) {
		if strings.Contains(s, secret) {
			t.Errorf("the password is in %q", s)
		}
	}
	if !strings.Contains(r.log.String(), "node connected") {
		t.Error("the log that was searched is not the log")
	}
	found := 0
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if strings.Contains(string(b), "rtsp://192.0.2.1/lobby") {
			found++
		}
		if strings.Contains(string(b), secret) {
			t.Errorf("the password is in %s", path)
		}
		return nil
	})
	if err != nil || found == 0 {
		t.Errorf("the data that was searched is not the data: %v", err)
	}
}

// A second replica uses the first one's etcd as an external one.
func TestReplicas(t *testing.T) {
	dir := t.TempDir()
	first := start(t, options{store: store.Config{DataDir: dir}, config: controlplane.Config{ReplicaName: "one"}})
	second := start(t, options{
		store:  store.Config{Endpoints: []string{first.store.Endpoint()}, KeyFile: filepath.Join(dir, "secret.key")},
		config: controlplane.Config{ReplicaName: "two"},
	})
	c := camera("lobby")
	c.Username, c.Password = "admin", "hunter2"
	first.create(c)
	n := second.connect(&controlv1.Hello{Node: "nodes/n1", BootId: "b"})
	d := n.until("lobby")["cameras/lobby"]
	if d.GetPassword() != "hunter2" {
		t.Error("the other replica can't unseal the password")
	}
	n.report("lobby", d.GetGeneration(), &controlv1.CameraStatus{State: live})
	first.eventually("live at the other replica", func() bool { return first.get("lobby").GetStatus().GetState() == live })

	// A resume token of one replica is good at the other.
	w := second.watch(t, &controlv1.WatchCamerasRequest{})
	w.snapshot()
	first.create(camera("yard"))
	resumed := first.watch(t, &controlv1.WatchCamerasRequest{ResumeToken: w.token})
	resumed.until(func() bool { return resumed.have["cameras/yard"] != nil })
	n.until("lobby", "yard")

	// The node goes to the other replica; its old stream learns of it, and its
	// camera stays.
	moved := first.connect(&controlv1.Hello{Node: "nodes/n1", BootId: "b"})
	if got := moved.until("lobby", "yard")["cameras/lobby"].GetGeneration(); got != d.GetGeneration() {
		t.Errorf("generation %d, was %d", got, d.GetGeneration())
	}
	var err error
	for err == nil {
		_, err = n.stream.Recv()
	}
	if !errors.Is(err, fleet.Unavailable) || !strings.Contains(err.Error(), "taken its place") {
		t.Errorf("the old stream ended with %v", err)
	}

	// When the leader goes, the other one leads.
	leader, other := first, second
	if strings.Contains(second.log.String(), "msg=leading") {
		leader, other = second, first
	}
	if strings.Contains(other.log.String(), "msg=leading") {
		t.Fatal("both led")
	}
	leader.cut()
	on := other.connect(&controlv1.Hello{Node: "nodes/n1", BootId: "b"})
	other.create(camera("new"))
	if got := on.until("lobby", "yard", "new")["cameras/lobby"].GetGeneration(); got != d.GetGeneration() {
		t.Errorf("generation %d, was %d", got, d.GetGeneration())
	}
	second.stop() // before the first, whose etcd it uses
}

// A replica that is cut off from the state ends its nodes' streams: they must
// not believe themselves connected when their leases have run out.
func TestCutOffReplicaEndsStreams(t *testing.T) {
	dir := t.TempDir()
	first := start(t, options{store: store.Config{DataDir: dir}, config: controlplane.Config{ReplicaName: "one"}})
	second := start(t, options{
		store:  store.Config{Endpoints: []string{first.store.Endpoint()}, KeyFile: filepath.Join(dir, "secret.key")},
		config: controlplane.Config{ReplicaName: "two", LeaseTTL: time.Second},
	})
	n := second.connect(&controlv1.Hello{Node: "nodes/n1"})
	first.stop()
	var err error
	for err == nil {
		_, err = n.stream.Recv()
	}
	if !errors.Is(err, fleet.Unavailable) {
		t.Errorf("the stream ended with %v, want %v", err, fleet.Unavailable)
	}
}

// A node that keeps its stream keeps its cameras when its lease is lost.
func TestLostLeaseIsRenewed(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n.until("lobby")
	if err := r.server.RevokeLease(r.ctx(), "n1"); err != nil {
		t.Fatal(err)
	}
	r.create(camera("yard"))
	n.until("lobby", "yard")
	r.eventually("registered anew", func() bool { return strings.Contains(r.log.String(), "registering it anew") })
	r.eventually("both are assigned", func() bool {
		return r.get("lobby").GetStatus().GetNode() != "" && r.get("yard").GetStatus().GetNode() != ""
	})
}

func TestReady(t *testing.T) {
	r := start(t, options{})
	r.eventually("ready", func() bool { return r.server.Ready() == nil })
	r.cut()
	if r.server.Ready() == nil {
		t.Error("ready after its end")
	}
	if _, err := controlplane.New(controlplane.Config{}); err == nil {
		t.Error("made without a store")
	}
	for name := range controlplane.Services {
		if role := controlplane.Services[name]; !role.Valid() || role == rpc.RoleControlPlane {
			t.Errorf("%s may be called by %q", name, role)
		}
	}
}

// Nodes whose lease ends under them are there, and keep their cameras.
func TestLostLeaseMovesNothing(t *testing.T) {
	r := start(t, options{})
	// More nodes than leases: two of them share one.
	var nodes []*node
	for i := range 10 {
		nodes = append(nodes, r.connect(&controlv1.Hello{Node: fmt.Sprintf("nodes/n%d", i)}))
	}
	const cameras = 20
	generations := make(map[string]int64)
	for i := range cameras {
		r.create(camera(fmt.Sprintf("cam-%d", i)))
	}
	for i := range cameras {
		id := fmt.Sprintf("cam-%d", i)
		r.eventually(id+" is assigned", func() bool { return r.get(id).GetStatus().GetNode() != "" })
		generations[id] = r.get(id).GetStatus().GetGeneration()
	}
	shared := r.server.SharedLease()
	if len(shared) < 2 {
		t.Fatalf("%d nodes have no lease in common: %v", len(nodes), shared)
	}
	if err := r.server.RevokeLease(r.ctx(), shared[0]); err != nil {
		t.Fatal(err)
	}
	for _, id := range shared {
		r.eventually(string(id)+" is registered anew", func() bool {
			_, err := r.nodes.GetNode(r.ctx(), &controlv1.GetNodeRequest{Name: "nodes/" + string(id)})
			return strings.Contains(r.log.String(), "registering it anew") && err == nil
		})
	}
	for id, g := range generations {
		if got := r.get(id).GetStatus().GetGeneration(); got != g {
			t.Errorf("%s was placed anew: generation %d, was %d", id, got, g)
		}
	}
}
