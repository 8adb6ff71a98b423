package placement

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"fanlight/internal/fleet"
)

// loads returns the loads of all nodes, the highest first.
func (p *Planner) loads() []float64 {
	out := make([]float64, 0, len(p.alive))
	for _, n := range p.alive {
		n.plan = planned{cameras: len(n.cameras), ingress: n.ingress}
		out = append(out, n.loadWith(0, 0))
	}
	slices.SortFunc(out, func(a, b float64) int { return cmp.Compare(b, a) })
	return out
}

// carryOut assigns what a plan says.
func carryOut(p *Planner, res Result) {
	for id, a := range res.Assignments {
		p.Assign(id, a.Node)
	}
}

// Whatever the fleet, moves for balance only ever lower the loads, sorted from
// the highest, and come to an end; then nothing moves any more.
func TestBalanceEnds(t *testing.T) {
	for seed := range uint64(60) {
		w, p := newWorld(seed), NewPlanner()
		for range 60 + w.r.IntN(60) {
			w.step(p)
		}
		for i := 0; len(p.Plan(Options{}).Assignments) > 0 && i < 3; i++ { // those that nobody takes remain
			carryOut(p, p.Plan(Options{}))
		}
		most := len(p.cameras) * len(p.alive)
		for moves := 0; ; moves++ {
			before := p.loads()
			res := p.Plan(Options{MaxMoves: 1 + w.r.IntN(3)})
			if res.Rebalanced == 0 {
				break
			}
			if moves > most {
				t.Fatalf("seed %d: still moving after %d plans of %d cameras on %d nodes", seed, moves, len(p.cameras), len(p.alive))
			}
			carryOut(p, res)
			if after := p.loads(); slices.Compare(after, before) >= 0 {
				t.Fatalf("seed %d: moved %v, and loads went from %v to %v", seed, res.Assignments, before, after)
			}
		}
	}
}

// A node that joins is filled with about its share, each camera moves once at
// most, and then all is quiet.
func TestJoiningNodeIsFilled(t *testing.T) {
	for _, tt := range []struct{ cameras, nodes int }{{20, 1}, {40, 3}, {1_000, 20}, {2_000, 20}} {
		for _, capacity := range []Capacity{{}, {Cameras: 2 * tt.cameras / tt.nodes, IngressBPS: 1_000_000 * mbit}} {
			t.Run(fmt.Sprintf("%d on %d, %+v", tt.cameras, tt.nodes, capacity), func(t *testing.T) {
				joinNode(t, tt.cameras, tt.nodes, capacity)
			})
		}
	}
}

func joinNode(t *testing.T, cameras, nodes int, capacity Capacity) {
	p := NewPlanner()
	for i := range nodes {
		p.PutNode(Node{ID: fleet.NodeID(fmt.Sprintf("node-%d", i)), Capacity: capacity})
	}
	for i := range cameras {
		p.PutCamera(Camera{ID: fleet.CameraID(fmt.Sprintf("camera-%d", i)), BitrateBPS: int64(1+i%8) * mbit})
	}
	carryOut(p, p.Plan(Options{}))
	if res := p.Plan(Options{MaxMoves: 8}); len(res.Assignments) > 0 {
		t.Fatalf("before anything joined, %d cameras move", len(res.Assignments))
	}
	p.PutNode(Node{ID: "new", Capacity: capacity})
	moved := make(map[fleet.CameraID]int)
	for range cameras {
		res := p.Plan(Options{MaxMoves: 8})
		for id, a := range res.Assignments {
			if moved[id]++; moved[id] > 1 || a.Node != "new" {
				t.Fatalf("camera %s moves for the %d. time, to %s", id, moved[id], a.Node)
			}
		}
		if carryOut(p, res); res.Rebalanced == 0 {
			break
		}
	}
	share := cameras / (nodes + 1)
	if got := len(p.nodes["new"].cameras); got == 0 || got > share || len(moved) != got {
		t.Errorf("the new node has %d cameras after %d moves; its share is %d", got, len(moved), share)
	}
	loads := p.loads()
	if high, low := loads[0], loads[len(loads)-1]; low < 0.7*high && high-low > 2.0/float64(max(capacity.Cameras, 1)) {
		t.Errorf("the most loaded node has %.3f, the least loaded %.3f", high, low)
	}
	if res := p.Plan(Options{MaxMoves: 8}); res.Rebalanced > 0 {
		t.Errorf("still moving: %v", res.Assignments)
	}
}

// The index must find what looking at each node finds.
func TestIndexFindsTheLeastLoaded(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	for range 300 {
		p := NewPlanner()
		for i := range 1 + r.IntN(40) {
			p.PutNode(Node{
				ID:        fleet.NodeID(fmt.Sprintf("node-%d", i)),
				Capacity:  Capacity{Cameras: 4 * r.IntN(3), IngressBPS: int64(r.IntN(3)) * 20 * mbit, EgressBPS: 10},
				Draining:  r.IntN(8) == 0,
				EgressBPS: int64(r.IntN(11)),
			})
		}
		g := p.join("", nil)
		var ix index
		ix.build(g.nodes)
		for i := range 60 {
			cam := &camera{hash: hash(fmt.Sprint("camera", i)), bitrate: int64(1+r.IntN(8)) * mbit}
			got, load := ix.best(cam.bitrate, cam.hash)
			if err := checkBest(g.nodes, cam, got, load); err != nil {
				t.Fatal(err)
			}
			if got == nil {
				continue
			}
			got.take(cam)
			ix.refresh(got)
			if n := g.nodes[r.IntN(len(g.nodes))]; n.plan.cameras > 0 && r.IntN(4) == 0 {
				n.plan = planned{}
				ix.refresh(n)
			}
		}
	}
}

// checkBest looks at one node after another: of each capacity one of the least
// loaded with room takes part, and the one chosen is loaded no more than any of
// these.
func checkBest(nodes []*node, cam *camera, got *node, load float64) error {
	least := make(map[Capacity]float64)
	for _, n := range nodes {
		if now, ok := least[n.Capacity]; hasRoom(n, cam) && (!ok || n.loadWith(0, 0) < now) {
			least[n.Capacity] = n.loadWith(0, 0)
		}
	}
	switch {
	case got == nil && len(least) == 0:
		return nil
	case got == nil:
		return fmt.Errorf("no node for a camera of %d bps, though there is room", cam.bitrate)
	case !hasRoom(got, cam) || got.loadWith(0, 0) != least[got.Capacity] || got.loadWith(1, cam.bitrate) != load:
		return fmt.Errorf("camera of %d bps: %s is loaded %v, with it %v; of its kind there is one with %v", cam.bitrate, got.ID, got.loadWith(0, 0), load, least[got.Capacity])
	}
	worst := make(map[Capacity]float64) // of those that may take part
	for _, n := range nodes {
		if hasRoom(n, cam) && n.loadWith(0, 0) == least[n.Capacity] {
			worst[n.Capacity] = max(worst[n.Capacity], n.loadWith(1, cam.bitrate))
		}
	}
	for kind, w := range worst {
		if load > w {
			return fmt.Errorf("camera of %d bps: %s would be loaded %v, one of %+v only %v", cam.bitrate, got.ID, load, kind, w)
		}
	}
	return nil
}

func hasRoom(n *node, cam *camera) bool {
	return !n.Draining && (n.Capacity.Cameras == 0 || n.plan.cameras < n.Capacity.Cameras) &&
		(n.Capacity.IngressBPS == 0 || n.plan.ingress+cam.bitrate <= n.Capacity.IngressBPS)
}
