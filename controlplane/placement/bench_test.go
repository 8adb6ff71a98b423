package placement

import (
	"fmt"
	"testing"

	"fanlight/internal/fleet"
)

// sizes are the fleets that are measured.
var sizes = []struct {
	name           string
	cameras, nodes int
}{
	{"100k-1k", 100_000, 1_000},
	{"1M-10k", 1_000_000, 10_000},
}

// benchFleet makes a fleet of ten zones and two kinds of nodes, in which every
// fourth camera asks for a zone.
func benchFleet(cameras, nodes int) ([]Camera, []Node) {
	cs, ns := make([]Camera, cameras), make([]Node, nodes)
	for i := range ns {
		ns[i] = Node{
			ID:       fleet.NodeID(fmt.Sprintf("node-%d", i)),
			Labels:   map[string]string{"zone": fmt.Sprintf("z%d", i%10)},
			Capacity: Capacity{Cameras: 200, IngressBPS: 1_000 * mbit},
		}
		if i%3 == 0 {
			ns[i].Capacity.IngressBPS = 2_000 * mbit
		}
	}
	for i := range cs {
		cs[i] = Camera{ID: fleet.CameraID(fmt.Sprintf("camera-%d", i)), BitrateBPS: int64(1+i%8) * mbit}
		if i%4 == 0 {
			cs[i].Selector = map[string]string{"zone": fmt.Sprintf("z%d", i%10)}
		}
	}
	return cs, ns
}

// settledFleet returns a planner whose cameras are all where it would have them.
func settledFleet(tb testing.TB, cameras, nodes int) (*Planner, []Node) {
	tb.Helper()
	p := NewPlanner()
	cs, ns := benchFleet(cameras, nodes)
	for i := range ns {
		p.PutNode(ns[i])
	}
	for i := range cs {
		p.PutCamera(cs[i])
	}
	for id, a := range p.Plan(Options{}).Assignments {
		if a.Node == "" {
			tb.Fatalf("camera %s: %s", id, a.Message)
		}
		p.Assign(id, a.Node)
	}
	return p, ns
}

// BenchmarkPlanFromNothing places all cameras on empty nodes.
func BenchmarkPlanFromNothing(b *testing.B) {
	for _, s := range sizes {
		b.Run(s.name, func(b *testing.B) {
			cameras, nodes := benchFleet(s.cameras, s.nodes)
			for b.Loop() {
				if got := Plan(cameras, nodes, nil, Options{}); len(got.Assignments) != s.cameras {
					b.Fatalf("%d assignments", len(got.Assignments))
				}
			}
		})
	}
}

// BenchmarkPlanAfterLoss tells a planner of the loss of a node and plans, and
// tells it of the node's return, which is measured too.
func BenchmarkPlanAfterLoss(b *testing.B) {
	for _, s := range sizes {
		b.Run(s.name, func(b *testing.B) {
			p, nodes := settledFleet(b, s.cameras, s.nodes)
			b.ResetTimer()
			for i := 0; b.Loop(); i++ {
				n := nodes[i%len(nodes)]
				p.DeleteNode(n.ID)
				if got := p.Plan(Options{}); len(got.Assignments) == 0 {
					b.Fatal("no assignments")
				}
				p.PutNode(n)
			}
		})
	}
}

// BenchmarkRebalance plans with moves allowed: in a fleet that is in balance, in
// one that an empty node has joined, and in one where labels keep what is out of
// balance from moving, and where each plan looks for a way in vain.
func BenchmarkRebalance(b *testing.B) {
	for _, s := range sizes {
		measure := func(name string, p *Planner, want int) {
			b.Run(s.name+"/"+name, func(b *testing.B) {
				for b.Loop() {
					if got := p.Plan(Options{MaxMoves: 8}); got.Rebalanced != want {
						b.Fatalf("%d moves, want %d", got.Rebalanced, want)
					}
				}
			})
		}
		p, _ := settledFleet(b, s.cameras, s.nodes)
		measure("settled", p, 0)
		p.PutNode(Node{ID: "other", Labels: map[string]string{"zone": "none"}, Capacity: Capacity{Cameras: 1, IngressBPS: mbit / 2}})
		measure("stuck", p, 0)
		p.PutNode(Node{ID: "other", Labels: map[string]string{"zone": "z1"}, Capacity: Capacity{Cameras: 200, IngressBPS: 1_000 * mbit}})
		measure("joined", p, 8)
	}
}
