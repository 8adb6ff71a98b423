package placement

import (
	"cmp"
	"fmt"
	"slices"

	"fanlight/internal/fleet"
)

// Plan decides where each camera that is not settled goes. If it places none,
// it moves at most opt.MaxMoves of the others for balance. It changes nothing in
// the planner.
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

	res := Result{Assignments: make(map[fleet.CameraID]Assignment, len(todo)), Stranded: make(map[fleet.CameraID]fleet.Reason)}
	placed := 0
	for _, cameras := range byGroup(todo) {
		placed += p.settle(cameras, &res)
	}
	if placed == 0 {
		p.rebalance(opt.MaxMoves, &res)
	}
	return res
}

// byGroup sorts cameras by how hard they are to place: those that few nodes fit
// first, group by group, of which each has the large ones first.
func byGroup(cameras []*camera) [][]*camera {
	lists := make(map[*group][]*camera)
	for _, cam := range cameras {
		lists[cam.group] = append(lists[cam.group], cam)
	}
	out := make([][]*camera, 0, len(lists))
	for _, list := range lists {
		slices.SortFunc(list, largestFirst)
		out = append(out, list)
	}
	slices.SortFunc(out, func(a, b []*camera) int {
		x, y := a[0].group, b[0].group
		return cmp.Or(cmp.Compare(len(x.nodes), len(y.nodes)), cmp.Compare(x.key, y.key))
	})
	return out
}

// settle finds places for cameras of one group, and returns for how many.
func (p *Planner) settle(cameras []*camera, res *Result) int {
	g := cameras[0].group
	p.index.build(g.nodes)
	placed := 0
	var refused Assignment
	var least int64 // the lowest bit rate that was refused; 0: none
	for _, cam := range cameras {
		if cam.disabled {
			res.Assignments[cam.id] = Assignment{Reason: Disabled, Message: "the camera is disabled"}
			continue
		}
		if cam.bitrate != least {
			if to, _ := p.index.best(cam.bitrate, cam.hash); to != nil {
				to.take(cam)
				p.index.refresh(to)
				res.Assignments[cam.id] = Assignment{Node: to.ID}
				placed++
				continue
			}
			// Thousands may be refused alike.
			least, refused = cam.bitrate, p.refusal(cam)
		}
		if cam.mustLeave() {
			res.Assignments[cam.id] = refused
			continue
		}
		if cam.at.plan.closed {
			cam.at.take(cam) // evicted for capacity: back again
		}
		res.Stranded[cam.id] = refused.Reason
	}
	return placed
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

// refusal says why no node takes a camera. It says the same for as long as the
// same is to be done: what is said is stored for each camera, and a number in it
// that changes with each node that joins would have all of them stored anew.
func (p *Planner) refusal(cam *camera) Assignment {
	g, which := cam.group, ""
	if g.key != "" {
		which = " that matches " + g.key
	}
	ready, room := false, false
	for _, n := range g.nodes {
		ready = ready || !n.Draining
		if room = n.leaf() != closed; room {
			break
		}
	}
	switch {
	case len(p.alive) == 0:
		return Assignment{Reason: NoNode, Message: "no media node is connected; start one"}
	case len(g.nodes) == 0:
		return Assignment{Reason: NoMatchingNode, Message: "no ready node matches " + g.key + "; give a node these labels, or change the camera's node selector"}
	case !ready:
		return Assignment{Reason: NoNode, Message: "every node" + which + " is being drained; undrain one, or add another"}
	case room:
		return Assignment{Reason: NoCapacity, Message: fmt.Sprintf("no ready node%s has %.1f Mbit/s of ingress left; add a node, or raise their capacity", which, float64(cam.bitrate)/1e6)}
	default:
		return Assignment{Reason: NoCapacity, Message: "every ready node" + which + " is full; add a node, or raise their capacity"}
	}
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

func largestFirst(a, b *camera) int {
	if a.bitrate != b.bitrate {
		return cmp.Compare(b.bitrate, a.bitrate)
	}
	return cmp.Compare(a.id, b.id)
}
