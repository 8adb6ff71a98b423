package fleettest

import (
	"context"
	"os"
	"os/exec"
	"testing"
	"time"

	controlv1 "fanlight/proto/fanlight/control/v1"
)

// isolated has a test run in a network namespace of its own, in another process.
// It returns true in that one.
func isolated(t *testing.T) bool {
	t.Helper()
	if Isolated() {
		return true
	}
	if os.Geteuid() != 0 {
		t.Skip("network namespaces take root")
	}
	for _, name := range []string{"ip", "nsenter", "iptables"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
	cmd.Env = append(os.Environ(), binaryVariable+"="+binary)
	Isolate(cmd)
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Fatal(err)
	}
	return false
}

// A node whose host vanishes loses its camera to another, and its viewer
// follows; when it is back it is a node again.
func TestNamespaces(t *testing.T) {
	if !isolated(t) {
		return
	}
	network, err := NewNamespaces()
	if err != nil {
		t.Fatal(err)
	}
	ctx, f := start(t, Config{Nodes: 2, Cameras: 1, Network: network})
	if err := f.CreateCameras(ctx); err != nil {
		t.Fatal(err)
	}
	if err := f.Gather(ctx, f.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	v := follow(t, f, Camera(0))
	if err := v.AwaitFrame(ctx, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	if got := v.Remote(); got != f.Nodes[0].Media {
		t.Errorf("the picture comes from %s, want %s", got, f.Nodes[0].Media)
	}
	if err := network.Cut("node-1"); err != nil {
		t.Fatal(err)
	}
	cut := time.Now()
	if err := f.AwaitLive(ctx, f.Nodes[1]); err != nil {
		t.Fatal(err)
	}
	for v.Remote() != f.Nodes[1].Media {
		if err := v.AwaitFrame(ctx, time.Now()); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("a gap of %v", v.Summary(cut, time.Now()).Longest.Length)
	if err := network.Mend("node-1"); err != nil {
		t.Fatal(err)
	}
	ready := func(n *controlv1.Node) bool { return n.GetState() == controlv1.Node_STATE_READY }
	if err := f.AwaitNode(ctx, f.Nodes[0], "is ready", ready); err != nil {
		t.Fatal(err)
	}

	// One direction: what the node says does not arrive, what it is told does.
	if err := network.Block("node-2", "plane-1"); err != nil {
		t.Fatal(err)
	}
	if err := f.AwaitLive(ctx, f.Nodes[0]); err != nil {
		t.Fatal(err)
	}
	if err := network.Unblock("node-2", "plane-1"); err != nil {
		t.Fatal(err)
	}
	if err := f.AwaitNode(ctx, f.Nodes[1], "is ready", ready); err != nil {
		t.Fatal(err)
	}
	if err := network.Unblock("node-2", "plane-1"); err == nil {
		t.Error("unblocked what was not blocked")
	}
	if err := network.Block("node-2", "nowhere"); err == nil {
		t.Error("blocked nowhere")
	}
}

func TestNotIsolated(t *testing.T) {
	if _, err := NewNamespaces(); err == nil {
		t.Error("the machine's network was changed")
	}
}
