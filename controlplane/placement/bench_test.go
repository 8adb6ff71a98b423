package placement

import (
	"fmt"
	"testing"

	"fanlight/internal/fleet"
)

const (
	benchCameras = 100_000
	benchNodes   = 1_000
)

func benchFleet() ([]Camera, []Node) {
	cameras, nodes := make([]Camera, benchCameras), make([]Node, benchNodes)
	for i := range nodes {
		nodes[i] = Node{
			ID:       fleet.NodeID(fmt.Sprintf("node-%d", i)),
			Labels:   map[string]string{"zone": fmt.Sprintf("z%d", i%10)},
			Capacity: Capacity{Cameras: 200, IngressBPS: 1_000 * mbit},
		}
	}
	for i := range cameras {
		cameras[i] = Camera{ID: fleet.CameraID(fmt.Sprintf("camera-%d", i)), BitrateBPS: int64(1+i%8) * mbit}
		if i%4 == 0 {
			cameras[i].Selector = map[string]string{"zone": fmt.Sprintf("z%d", i%10)}
		}
	}
	return cameras, nodes
}

// BenchmarkPlanFromNothing places 100,000 cameras on 1,000 empty nodes.
func BenchmarkPlanFromNothing(b *testing.B) {
	cameras, nodes := benchFleet()
	for b.Loop() {
		if got := Plan(cameras, nodes, nil, Options{}); len(got.Assignments) != benchCameras {
			b.Fatalf("%d assignments", len(got.Assignments))
		}
	}
}

func settledFleet(b *testing.B) ([]Camera, []Node, map[fleet.CameraID]fleet.NodeID) {
	b.Helper()
	cameras, nodes := benchFleet()
	current := make(map[fleet.CameraID]fleet.NodeID, len(cameras))
	for id, a := range Plan(cameras, nodes, nil, Options{}).Assignments {
		current[id] = a.Node
	}
	return cameras, nodes, current
}

// BenchmarkPlanAfterLoss plans after the loss of one node, from whole lists.
func BenchmarkPlanAfterLoss(b *testing.B) {
	cameras, nodes, current := settledFleet(b)
	b.ResetTimer()
	for b.Loop() {
		if got := Plan(cameras, nodes[1:], current, Options{}); len(got.Assignments) == 0 {
			b.Fatal("no assignments")
		}
	}
}

// BenchmarkPlannerAfterLoss does the same with a planner that is told of the
// loss, and of the node's return, which is measured too.
func BenchmarkPlannerAfterLoss(b *testing.B) {
	cameras, nodes, current := settledFleet(b)
	p := NewPlanner()
	for i := range nodes {
		p.PutNode(nodes[i])
	}
	for i := range cameras {
		p.PutCamera(cameras[i])
		p.Assign(cameras[i].ID, current[cameras[i].ID])
	}
	b.ResetTimer()
	for b.Loop() {
		p.DeleteNode(nodes[0].ID)
		if got := p.Plan(Options{}); len(got.Assignments) == 0 {
			b.Fatal("no assignments")
		}
		p.PutNode(nodes[0])
	}
}
