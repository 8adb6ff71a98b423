package controlplane_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"fanlight/controlplane"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// Nodes share leases, and the end of one is not the end of the others; nor is
// that of an earlier stream the end of a node that has come back, however often.
func TestNodesShareLeases(t *testing.T) {
	r := start(t, options{})
	const count = 20
	nodes := make([]*node, count)
	for i := range nodes {
		nodes[i] = r.connect(&controlv1.Hello{Node: fmt.Sprintf("nodes/n%d", i)})
		nodes[i].until()
	}
	for range 10 {
		nodes[0].cancel()
		nodes[0] = r.connect(&controlv1.Hello{Node: "nodes/n0"})
		nodes[0].until()
	}
	for _, n := range nodes[10:] {
		n.cancel()
	}
	left := func() int {
		list, err := r.nodes.ListNodes(r.ctx(), &controlv1.ListNodesRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.GetNodes())
	}
	r.eventually("the nodes that ended are gone", func() bool { return left() == count-10 })
	time.Sleep(time.Second) // for the earlier streams to be over
	if n := left(); n != count-10 {
		t.Errorf("%d nodes are left, want %d", n, count-10)
	}
	entries, _, err := r.store.Load(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	leases := make(map[int64]bool)
	for _, e := range entries {
		if e.Node != nil {
			leases[e.Node.Lease] = true
		}
	}
	if len(leases) == 0 || len(leases) > 8 {
		t.Errorf("%d leases for %d nodes", len(leases), count-10)
	}
}

// A registration that nobody answers for does not stay, and takes no other along.
func TestRegistrationWithoutAStream(t *testing.T) {
	r := start(t, options{config: controlplane.Config{LeaseTTL: time.Second}})
	r.create(camera("lobby"))
	if err := r.server.LeaveBehind(r.ctx(), "n1", &controlv1.Node{Name: "nodes/n1", BootId: "boot", SessionAddress: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	n2.until("lobby")
	r.eventually("gone", func() bool {
		_, err := r.nodes.GetNode(r.ctx(), &controlv1.GetNodeRequest{Name: "nodes/n1"})
		return errors.Is(err, fleet.NodeNotFound)
	})
	if err := r.server.LeaveBehind(r.ctx(), "n3", &controlv1.Node{Name: "nodes/n3", BootId: "boot", SessionAddress: "127.0.0.1:1"}); err != nil {
		t.Fatal(err)
	}
	r.connect(&controlv1.Hello{Node: "nodes/n3"}).until()
	time.Sleep(3 * time.Second) // for what must not happen
	for _, name := range []string{"nodes/n2", "nodes/n3"} {
		n, err := r.nodes.GetNode(r.ctx(), &controlv1.GetNodeRequest{Name: name})
		if err != nil || n.GetNode().GetState() != controlv1.Node_STATE_READY {
			t.Errorf("%s is %v, %v", name, n.GetNode(), err)
		}
	}
}
