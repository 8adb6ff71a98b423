//go:build e2e && linux

package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"fanlight/internal/fleettest"
	"fanlight/internal/viewertest"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// insideEnv has the binary under test when the tests run in a network of their
// own; see ownNetwork. Fanlight would take a FANLIGHT_… for a setting.
const insideEnv = "E2E_INSIDE"

// ownNetwork runs a test again, in a network namespace made for it, where it may
// do to the network what it likes. It returns true there, and false here, when
// that has ended.
func ownNetwork(t *testing.T) bool {
	t.Helper()
	return inOwnNetwork(t, 4*time.Minute, false)
}

// inOwnNetwork is ownNetwork for a test that may take so long, or that is of
// fanlight as users have it, without the race detector.
func inOwnNetwork(t *testing.T, limit time.Duration, asShipped bool) bool {
	t.Helper()
	if fleettest.Isolated() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("not root: network namespaces can't be made, and so no host can be cut off")
	}
	program := binary
	if asShipped {
		program = shipped
	}
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.v", "-test.timeout", limit.String())
	cmd.Env = append(os.Environ(), insideEnv+"="+program)
	fleettest.Isolate(cmd)
	out, err := cmd.CombinedOutput()
	t.Logf("in a network of its own:\n%s", out)
	switch {
	case err != nil:
		t.Fatal(err)
	case !strings.Contains(string(out), "--- PASS: "+t.Name()):
		t.Fatal("the test did not run there")
	}
	return false
}

// hosts is a fleet each of whose processes is a host, with viewers.
type hosts struct {
	*fleettest.Fleet
	net     *fleettest.Namespaces
	viewers []*viewertest.Follower
}

// newHosts starts three control planes, two nodes and two gateways, with cameras
// on the first node, of which the first accepts a single RTSP session, and a
// viewer of each.
func newHosts(ctx context.Context, t *testing.T, cameras int) *hosts {
	t.Helper()
	network, err := fleettest.NewNamespaces()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := filepath.Abs(artifact(t, "fleet"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := fleettest.New(fleettest.Config{
		Binary: binary, Dir: dir, Network: network, ControlPlanes: 3, Nodes: 2, Gateways: 2, Cameras: cameras,
	})
	if err != nil {
		t.Fatal(err)
	}
	h := &hosts{Fleet: f, net: network}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range f.Processes() {
				t.Logf("the end of what %s printed:\n%s", p.Name, p.Tail(30))
			}
		}
		for _, p := range f.Planes { // their state; the logs stay
			if err := os.RemoveAll(filepath.Join(dir, p.Name)); err != nil {
				t.Error(err)
			}
		}
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	if err := f.Start(ctx); err != nil {
		t.Fatal(err)
	}
	// The node that is to be cut off is the only one when the cameras come.
	if err := f.Drain(ctx, f.Nodes[1]); err != nil {
		t.Fatal(err)
	}
	if err := f.CreateCameras(ctx); err != nil {
		t.Fatal(err)
	}
	h.limit(ctx, t, fleettest.Camera(0))
	if err := f.Undrain(ctx, f.Nodes[1]); err != nil {
		t.Fatal(err)
	}
	h.watch(t, cameras)
	return h
}

// limit has a camera accept a single RTSP session.
func (h *hosts) limit(ctx context.Context, t *testing.T, camera string) {
	t.Helper()
	got, err := h.CameraService().GetCamera(ctx, &controlv1.GetCameraRequest{Name: "cameras/" + camera})
	if err != nil {
		t.Fatal(err)
	}
	c := got.GetCamera()
	c.MaxSessions = 1
	if _, err := h.CameraService().UpdateCamera(ctx, &controlv1.UpdateCameraRequest{Camera: c}); err != nil {
		t.Fatal(err)
	}
}

// watch starts a viewer of each camera and waits until all see it.
func (h *hosts) watch(t *testing.T, cameras int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	t.Cleanup(func() { cancel(); wg.Wait() })
	for i := range cameras {
		v, err := h.Follow(fleettest.Camera(i))
		if err != nil {
			t.Fatal(err)
		}
		h.viewers = append(h.viewers, v)
		wg.Go(func() {
			if err := v.Run(ctx); err != nil {
				t.Error(err)
			}
		})
	}
	h.settle(t)
}

// settle waits until every viewer sees its camera.
func (h *hosts) settle(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for i, v := range h.viewers {
		if err := v.AwaitFrame(ctx, time.Now()); err != nil {
			t.Fatalf("viewer of %s: %v; %v", fleettest.Camera(i), err, v.Events(time.Time{}, time.Now()))
		}
	}
}

// cut has packets vanish on links, each from one process to another, while do
// runs.
func (h *hosts) cut(t *testing.T, links [][2]string, do func()) {
	t.Helper()
	for _, l := range links {
		if err := h.net.Block(l[0], l[1]); err != nil {
			t.Fatal(err)
		}
	}
	do()
	for _, l := range links {
		if err := h.net.Unblock(l[0], l[1]); err != nil {
			t.Fatal(err)
		}
	}
}

// links returns the links from a process to others, or to it, or both ways.
func links(name string, out, in bool, others []*fleettest.Process, more ...string) [][2]string {
	var all [][2]string
	for _, o := range others {
		more = append(more, o.Name)
	}
	for _, o := range more {
		if out {
			all = append(all, [2]string{name, o})
		}
		if in {
			all = append(all, [2]string{o, name})
		}
	}
	return all
}

// gaps checks what the viewers saw since a time. Each must see its camera at the
// end, and none may have waited for longer than the limit, which says so by its
// index.
func (h *hosts) gaps(t *testing.T, what string, since time.Time, limit func(i int) time.Duration) {
	t.Helper()
	now := time.Now()
	for i, v := range h.viewers {
		s := v.Summary(since, now)
		t.Logf("%s: viewer of %s: %d frames, longest gap %v, %d swaps, lost %v", what, fleettest.Camera(i), s.Frames, s.Longest.Length.Round(time.Millisecond), s.Swaps, s.Lost)
		if s.Lost {
			t.Errorf("%s: the viewer of %s has lost its picture: %v", what, fleettest.Camera(i), v.Events(since, now))
		}
		if most := limit(i); s.Longest.Length > most {
			t.Errorf("%s: the viewer of %s saw no frame for %v, at most %v is allowed: %v", what, fleettest.Camera(i), s.Longest.Length, most, v.Events(since, now))
		}
	}
}

// Limits of a viewer's longest gap. A frame comes every 40 ms; the rest is what
// a machine of two cores with a dozen processes under the race detector adds.
const (
	noGap   = time.Second
	leaseUp = 15 * time.Second // a host's silence is noticed, its lease runs out, its cameras go elsewhere
	single  = 30 * time.Second // a camera with max_sessions 1 waits a lease and 6 s more
)

// A node that can't reach the control plane serves on; its cameras go to
// another, the viewers follow without a gap, and it lets go when it is back. A
// camera that accepts one session is never pulled twice.
func TestPartition(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const cameras = 4
	h := newHosts(ctx, t, cameras)
	at, other := h.Nodes[0], h.Nodes[1]
	for _, c := range []struct {
		name    string
		out, in bool // what is lost: the node's packets, or those to it
	}{
		{"both ways", true, true},
		{"the node is not heard", true, false},
		{"the node hears nothing", false, true},
	} {
		since := time.Now()
		h.cut(t, links(at.Name, c.out, c.in, h.Planes), func() {
			if err := h.AwaitLive(ctx, other); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
			h.settle(t)
		})
		// The node hears of it and lets go: each camera is pulled once again.
		for i := range cameras {
			eventually(t, 20*time.Second, fmt.Sprintf("%s: %s is pulled once", c.name, fleettest.Camera(i)), func() (bool, string) {
				n := h.Sim.Sessions(fleettest.Camera(i))
				return n == 1, fmt.Sprint(n)
			})
		}
		h.settle(t)
		h.gaps(t, c.name, since, func(i int) time.Duration {
			if i == 0 {
				return single
			}
			return noGap
		})
		if n := h.Sim.Peak(fleettest.Camera(0)); n != 1 {
			t.Errorf("%s: a camera that accepts one session was pulled by %d at once", c.name, n)
		}
		at, other = other, at
	}
}

// A host that vanishes: its cameras are elsewhere when its lease has run out,
// and the viewers follow. When it is back, it has lost what it had.
func TestVanished(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	const cameras = 4
	h := newHosts(ctx, t, cameras)
	at, other := h.Nodes[0], h.Nodes[1]
	others := append(append([]*fleettest.Process{other}, h.Planes...), h.Gateways...)
	since := time.Now()
	h.cut(t, links(at.Name, true, true, others, fleettest.Harness), func() {
		if err := h.AwaitLive(ctx, other); err != nil {
			t.Fatal(err)
		}
		h.settle(t)
		h.gaps(t, "vanished", since, func(i int) time.Duration {
			if i == 0 {
				return single
			}
			return leaseUp
		})
	})
	since = time.Now()
	if err := h.AwaitNode(ctx, at, "is back", func(n *controlv1.Node) bool { return n.GetState() == controlv1.Node_STATE_READY }); err != nil {
		t.Fatal(err)
	}
	for i := range cameras {
		eventually(t, 90*time.Second, fleettest.Camera(i)+" is pulled once", func() (bool, string) {
			n := h.Sim.Sessions(fleettest.Camera(i))
			return n == 1, fmt.Sprint(n)
		})
	}
	h.settle(t)
	h.gaps(t, "back", since, func(int) time.Duration { return noGap })
}

// A gateway's host that vanishes closes nothing: players miss its heartbeat, and
// come back through another gateway before their sessions' nodes give up.
func TestVanishedGateway(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	h := newHosts(ctx, t, 4)
	since := time.Now()
	if err := h.net.Cut(h.Gateways[0].Name); err != nil {
		t.Fatal(err)
	}
	// Half of the viewers came through it.
	const half = 2
	eventually(t, 30*time.Second, "viewers have come back through the other gateway", func() (bool, string) {
		reconnects := 0
		for _, v := range h.viewers {
			reconnects += v.Summary(since, time.Now()).Reconnects
		}
		return reconnects >= half, fmt.Sprint(reconnects)
	})
	select { // until the nodes have given up the sessions of the one that is gone
	case <-time.After(20 * time.Second):
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	h.gaps(t, "gateway vanished", since, func(int) time.Duration { return noGap })
	if err := h.net.Mend(h.Gateways[0].Name); err != nil {
		t.Fatal(err)
	}
}
