package placement

import (
	"cmp"
	"slices"
)

// rebalance moves at most so many settled cameras from loaded nodes to others,
// each time the one move that gains most from the most loaded node that has
// one. It moves nothing that this plan has placed already, nothing that accepts
// a single RTSP session, and nothing for a gain below rebalanceGain.
func (p *Planner) rebalance(moves int, res *Result) {
	for res.Rebalanced < moves {
		cam, to := p.bestMove(res)
		if cam == nil {
			return
		}
		cam.at.release(cam)
		to.take(cam)
		res.Assignments[cam.id] = Assignment{Node: to.ID}
		res.Rebalanced++
	}
}

// bestMove returns the next move for balance; nil if there is none.
func (p *Planner) bestMove(res *Result) (*camera, *node) {
	from := slices.Clone(p.alive)
	slices.SortStableFunc(from, func(a, b *node) int { return cmp.Compare(b.loadWith(0, 0), a.loadWith(0, 0)) })
	floors := make(map[*group]float64, len(p.groups))
	for key := range p.groups {
		floors[p.groups[key]] = p.groups[key].floor()
	}
	for _, n := range from {
		if n.Draining || n.plan.closed {
			continue
		}
		if cam, to := n.bestMove(floors, res); cam != nil {
			return cam, to
		}
	}
	return nil, nil
}

// bestMove returns the move from this node that lowers the higher load of the
// two nodes most; nil if none gains enough. floors is a bound that spares most
// cameras the search: no node of their group is loaded less.
func (n *node) bestMove(floors map[*group]float64, res *Result) (*camera, *node) {
	var (
		best   *camera
		target *node
		gained float64
	)
	before := n.loadWith(0, 0)
	for cam := range n.cameras {
		if cam.maxSessions == 1 || before-floors[cam.group] < rebalanceGain {
			continue
		}
		if _, moved := res.Assignments[cam.id]; moved {
			continue
		}
		to, after := cam.group.best(cam)
		if to == nil {
			continue
		}
		gain := before - max(after, n.loadWith(-1, -cam.bitrate))
		if before-after < rebalanceGain || gain <= 0 {
			continue
		}
		if best == nil || gain > gained || gain == gained && cam.id < best.id {
			best, target, gained = cam, to, gain
		}
	}
	return best, target
}

// floor returns the load of the group's least loaded node.
func (g *group) floor() float64 {
	lowest := 0.0
	for i, n := range g.nodes {
		if load := n.loadWith(0, 0); i == 0 || load < lowest {
			lowest = load
		}
	}
	return lowest
}
