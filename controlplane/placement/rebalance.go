package placement

import (
	"cmp"
	"math"
	"slices"
)

// balance is the search for moves of one plan.
type balance struct {
	res     *Result
	sources []*node // that may lose a camera, the most loaded first
	lowest  float64 // no node is loaded less once it has taken a camera
	indexes map[*group]*index
	targets map[kind]target
}

// kind is cameras that are alike for balance.
type kind struct {
	group *group
	bps   int64
}

// target is the node that would be the least loaded with a camera of a kind,
// and that load. nil: none can take it.
type target struct {
	node *node
	load float64
}

// rebalance moves at most so many settled cameras from loaded nodes to others,
// each time the one move that gains most from the most loaded node that has
// one. It moves nothing that is fixed, and nothing for too little: see
// rebalanceShare.
//
// Each move makes the higher load of two nodes lower, so that the loads of all
// nodes, sorted, only ever go down, and moves end.
func (p *Planner) rebalance(moves int, res *Result) {
	if moves <= 0 {
		return
	}
	b := balance{res: res, lowest: math.Inf(1), indexes: make(map[*group]*index), targets: make(map[kind]target)}
	highest := 0.0
	for _, n := range p.alive {
		if n.Draining || n.plan.closed {
			continue
		}
		b.reach(n)
		if len(n.cameras) > 0 {
			highest = max(highest, n.loadWith(0, 0))
			b.sources = append(b.sources, n)
		}
	}
	if b.lowest > worth(highest) {
		return // as in every fleet that is in balance
	}
	for res.Rebalanced < moves {
		cam, to := b.next()
		if cam == nil {
			return
		}
		b.move(cam, to)
	}
}

// reach takes in how little a node may be loaded with a camera more.
func (b *balance) reach(n *node) {
	if n.leaf() != closed {
		b.lowest = min(b.lowest, n.loadWith(1, 0))
	}
}

// worth returns how much a node may be loaded after it has taken a camera from
// one with a load before.
func worth(before float64) float64 { return before * (1 - rebalanceShare) }

// next returns the next move; nil if there is none. Nodes that have none are
// not asked again in this plan.
func (b *balance) next() (*camera, *node) {
	slices.SortFunc(b.sources, func(x, y *node) int {
		if c := cmp.Compare(y.loadWith(0, 0), x.loadWith(0, 0)); c != 0 {
			return c
		}
		return cmp.Compare(x.ID, y.ID)
	})
	for len(b.sources) > 0 {
		n := b.sources[0]
		if b.lowest > worth(n.loadWith(0, 0)) {
			return nil, nil
		}
		if cam, to := b.from(n); cam != nil {
			return cam, to
		}
		b.sources = b.sources[1:]
	}
	return nil, nil
}

// from returns the move from a node that lowers the higher load of two nodes
// most; nil if none is worth it.
func (b *balance) from(n *node) (*camera, *node) {
	var (
		best   *camera
		to     *node
		gained float64
	)
	before := n.loadWith(0, 0)
	for cam := range n.cameras {
		if cam.fixed || cam.disabled {
			continue
		}
		t := b.target(cam)
		if t.node == nil || t.load > worth(before) {
			continue
		}
		gain := before - max(t.load, n.loadWith(-1, -cam.bitrate))
		if gain <= 0 || best != nil && (gain < gained || gain == gained && cam.id > best.id) {
			continue
		}
		if _, moved := b.res.Assignments[cam.id]; moved {
			continue
		}
		best, to, gained = cam, t.node, gain
	}
	return best, to
}

// target returns where a camera would go. It may be where the camera is, but
// not so that it would gain.
func (b *balance) target(cam *camera) target {
	k := kind{cam.group, cam.bitrate}
	t, ok := b.targets[k]
	if !ok {
		ix := b.indexes[cam.group]
		if ix == nil {
			ix = new(index)
			ix.build(cam.group.nodes)
			b.indexes[cam.group] = ix
		}
		t.node, t.load = ix.best(cam.bitrate, 0)
		b.targets[k] = t
	}
	return t
}

// move carries out a move in the plan.
func (b *balance) move(cam *camera, to *node) {
	cam.at.release(cam)
	to.take(cam)
	b.res.Assignments[cam.id] = Assignment{Node: to.ID}
	b.res.Rebalanced++
	b.reach(cam.at)
	clear(b.targets)
	for _, ix := range b.indexes {
		ix.refresh(cam.at)
		ix.refresh(to)
	}
}
