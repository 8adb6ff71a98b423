package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"fanlight/controlplane/placement"
	"fanlight/internal/fleet"
)

// PlacementResult is what planning alone takes, in this process.
type PlacementResult struct {
	Cameras     int     `json:"cameras"`
	Nodes       int     `json:"nodes"`
	Plan        float64 `json:"plan_s"`           // all cameras on empty nodes
	NodeLossP50 float64 `json:"node_loss_p50_ms"` // the cameras of one node that is gone
	NodeLossP99 float64 `json:"node_loss_p99_ms"`
	LostCameras int     `json:"lost_cameras"` // that such a node had, at the most
	Balanced    float64 `json:"balanced_ms"`  // a look for moves in a fleet that is in balance
	Moves       int     `json:"moves_on_join"`
}

// maxLosses is how many nodes are lost, but no more than a tenth.
const maxLosses = 20

// Placement measures the planning for a fleet of two kinds of nodes in ten
// zones, in which every fourth camera asks for a zone.
func Placement(ctx context.Context, cameras, nodes int) (PlacementResult, error) {
	res := PlacementResult{Cameras: cameras, Nodes: nodes}
	if cameras < 1 || nodes < 20 {
		return res, errors.New("bench placement: at least one camera and twenty nodes are needed")
	}
	p := placement.NewPlanner()
	for i := range nodes {
		p.PutNode(placementNode(i, cameras, nodes))
	}
	for i := range cameras {
		c := placement.Camera{ID: fleet.CameraID(fmt.Sprintf("cam-%07d", i)), BitrateBPS: int64(1+i%8) * 1_000_000}
		if i%4 == 0 {
			c.Selector = map[string]string{"zone": zone(i / 4)}
		}
		p.PutCamera(c)
	}
	began := time.Now()
	plan := p.Plan(placement.Options{})
	res.Plan = seconds(time.Since(began))
	for id, a := range plan.Assignments {
		if a.Node == "" {
			return res, fmt.Errorf("bench placement: camera %s has no node: %s", id, a.Message)
		}
		p.Assign(id, a.Node)
	}
	if err := res.lose(ctx, p); err != nil {
		return res, err
	}
	return res, res.join(ctx, p)
}

func placementNode(i, cameras, nodes int) placement.Node {
	share := (cameras + nodes - 1) / nodes
	n := placement.Node{
		ID:       fleet.NodeID(fmt.Sprintf("node-%05d", i)),
		Labels:   map[string]string{"zone": zone(i)},
		Capacity: placement.Capacity{Cameras: 2*share + 8, IngressBPS: int64(2*share+8) * 8_000_000},
	}
	if i%3 == 0 {
		n.Capacity.IngressBPS *= 2
	}
	return n
}

func zone(i int) string { return fmt.Sprintf("zone-%d", i%10) }

// lose takes nodes away, one after another, and places their cameras.
func (r *PlacementResult) lose(ctx context.Context, p *placement.Planner) error {
	var times []time.Duration
	losses := min(maxLosses, r.Nodes/10)
	for i := range losses {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		began := time.Now()
		p.DeleteNode(placementNode(i*(r.Nodes/losses)+i%10, r.Cameras, r.Nodes).ID)
		plan := p.Plan(placement.Options{})
		times = append(times, time.Since(began))
		r.LostCameras = max(r.LostCameras, len(plan.Assignments))
		for id, a := range plan.Assignments {
			if a.Node == "" {
				return fmt.Errorf("bench placement: camera %s has no node any more: %s", id, a.Message)
			}
			p.Assign(id, a.Node)
		}
	}
	slices.Sort(times)
	r.NodeLossP50, r.NodeLossP99 = milliseconds(percentile(times, 50)), milliseconds(percentile(times, 99))
	return nil
}

// join adds a node, and plans as the leader does, eight moves at a time, until
// none is left.
func (r *PlacementResult) join(ctx context.Context, p *placement.Planner) error {
	move := func() int {
		plan := p.Plan(placement.Options{MaxMoves: 8})
		for id, a := range plan.Assignments {
			p.Assign(id, a.Node)
		}
		return plan.Rebalanced
	}
	for move() > 0 { // what the losses have left uneven
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	began := time.Now()
	move()
	r.Balanced = milliseconds(time.Since(began))
	p.PutNode(placementNode(r.Nodes, r.Cameras, r.Nodes))
	for {
		n := move()
		if n == 0 {
			return nil
		}
		if r.Moves += n; r.Moves > r.Cameras || ctx.Err() != nil {
			return errors.Join(ctx.Err(), fmt.Errorf("bench placement: still moving after %d moves", r.Moves))
		}
	}
}
