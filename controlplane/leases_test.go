package controlplane_test

import (
	"fmt"
	"testing"
	"time"

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
