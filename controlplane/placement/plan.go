package placement

import (
	"cmp"
	"fmt"
	"slices"

	"fanlight/internal/fleet"
)

// Plan decides where each camera that is not settled goes, and moves at most
// opt.MaxMoves of the others for balance. It changes nothing in the planner.
func (p *Planner) Plan(opt Options) Result {
	for _, n := range p.alive {
		n.plan = planned{cameras: len(n.cameras), ingress: n.ingress}
	}
	todo := make([]*camera, 0, len(p.pending))
	for cam := range p.pending {
		if cam.at != nil && cam.mustLeave() {
			cam.at.release(cam)
		}
		todo = append(todo, cam)
	}
	todo = append(todo, p.evict()...)
	slices.SortFunc(todo, hardestFirst)

	res := Result{Assignments: make(map[fleet.CameraID]Assignment, len(todo)), Stranded: make(map[fleet.CameraID]fleet.Reason)}
	refusals := make(map[*group]Assignment)
	for _, cam := range todo {
		p.settle(cam, refusals, &res)
	}
	p.rebalance(opt.MaxMoves, &res)
	return res
}

// settle finds a place for one camera. refusals has what refusal said before:
// thousands of cameras may be refused alike.
func (p *Planner) settle(cam *camera, refusals map[*group]Assignment, res *Result) {
	if cam.disabled {
		res.Assignments[cam.id] = Assignment{Reason: Disabled, Message: "the camera is disabled"}
		return
	}
	if to, _ := cam.group.best(cam); to != nil {
		to.take(cam)
		res.Assignments[cam.id] = Assignment{Node: to.ID}
		return
	}
	refused, ok := refusals[cam.group]
	if !ok {
		refused = p.refusal(cam.group)
		refusals[cam.group] = refused
	}
	if cam.mustLeave() {
		res.Assignments[cam.id] = refused
		return
	}
	if cam.at.plan.closed {
		cam.at.take(cam) // evicted for capacity: back again
	}
	res.Stranded[cam.id] = refused.Reason
}

// evict chooses the cameras that should leave nodes that are over their
// capacity, the largest first, so that few of them move. Such nodes take
// nothing in this plan.
func (p *Planner) evict() []*camera {
	var out []*camera
	for _, n := range p.alive {
		if n.Draining || !n.over() {
			continue
		}
		n.plan.closed = true
		var list []*camera
		for cam := range n.cameras {
			if _, ok := p.pending[cam]; !ok {
				list = append(list, cam)
			}
		}
		slices.SortFunc(list, largestFirst)
		for _, cam := range list {
			if !n.over() {
				break
			}
			n.release(cam)
			out = append(out, cam)
		}
	}
	return out
}

// refusal says why no node takes a camera of a group.
func (p *Planner) refusal(g *group) Assignment {
	with := ""
	if g.key != "" {
		with = " with the labels " + g.key
	}
	ready := 0
	for _, n := range g.nodes {
		if !n.Draining {
			ready++
		}
	}
	switch {
	case len(p.alive) == 0:
		return Assignment{Reason: NoNode, Message: "no media node is connected; start one"}
	case len(g.nodes) == 0:
		return Assignment{Reason: NoMatchingNode, Message: "no node has the labels " + g.key + "; label a node so, or change the camera's selector"}
	case ready == 0:
		return Assignment{Reason: NoNode, Message: "every node" + with + " is being drained; start another or end a drain"}
	case ready == 1:
		return Assignment{Reason: NoCapacity, Message: "the only node" + with + " is full; add a node or raise its capacity"}
	default:
		return Assignment{Reason: NoCapacity, Message: fmt.Sprintf("all %d nodes%s are full; add a node or raise their capacity", ready, with)}
	}
}

// best returns the node that is least loaded once it has taken the camera, and
// that load; nil if none can. The camera's own node is not considered.
func (g *group) best(cam *camera) (*node, float64) {
	var (
		to     *node
		lowest float64
		rank   uint64
		ranked bool // whether rank has been computed for to
	)
	for _, n := range g.nodes {
		if n == cam.at || !n.fits(cam) {
			continue
		}
		load := n.loadWith(1, cam.bitrate)
		switch {
		case to == nil || load < lowest:
			to, lowest, ranked = n, load, false
		case load == lowest:
			if !ranked {
				rank, ranked = to.rank(cam), true
			}
			if r := n.rank(cam); r > rank {
				to, rank = n, r
			}
		}
	}
	return to, lowest
}

// rank orders the nodes for a camera: rendezvous hashing (Thaler, Ravishankar
// 1998).
func (n *node) rank(cam *camera) uint64 { return mix(n.hash ^ cam.hash) }

// fits tells whether a node may be given a camera.
func (n *node) fits(cam *camera) bool {
	return !n.Draining && !n.plan.closed &&
		(n.Capacity.Cameras <= 0 || n.plan.cameras < n.Capacity.Cameras) &&
		(n.Capacity.IngressBPS <= 0 || n.plan.ingress+cam.bitrate <= n.Capacity.IngressBPS)
}

// over tells whether a node has more than its capacity.
func (n *node) over() bool {
	return n.Capacity.Cameras > 0 && n.plan.cameras > n.Capacity.Cameras ||
		n.Capacity.IngressBPS > 0 && n.plan.ingress > n.Capacity.IngressBPS
}

// loadWith returns a node's load, as a share of full, with so many cameras and
// bits per second more than it has. Sums come before products, so that no
// compiler may fuse them and replicas on other processors get other ties.
func (n *node) loadWith(cameras int, bps int64) float64 {
	return max(float64(n.plan.cameras+cameras)*n.perCam, float64(n.plan.ingress+bps)*n.perBit, n.demand)
}

func (n *node) take(cam *camera) {
	n.plan.cameras++
	n.plan.ingress += cam.bitrate
}

func (n *node) release(cam *camera) {
	n.plan.cameras--
	n.plan.ingress -= cam.bitrate
}

// hardestFirst orders cameras by how hard they are to place: those that few
// nodes fit, then the large ones.
func hardestFirst(a, b *camera) int {
	return cmp.Or(cmp.Compare(len(a.group.nodes), len(b.group.nodes)), largestFirst(a, b))
}

func largestFirst(a, b *camera) int {
	return cmp.Or(cmp.Compare(b.bitrate, a.bitrate), cmp.Compare(a.id, b.id))
}
