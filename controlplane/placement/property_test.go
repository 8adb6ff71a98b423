package placement

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"fanlight/internal/fleet"
)

// world is a fleet that a test changes at random, as plain values.
type world struct {
	r       *rand.Rand
	cameras map[fleet.CameraID]Camera
	nodes   map[fleet.NodeID]Node
	current map[fleet.CameraID]fleet.NodeID
}

func newWorld(seed uint64) *world {
	return &world{
		r:       rand.New(rand.NewPCG(seed, 1)),
		cameras: make(map[fleet.CameraID]Camera),
		nodes:   make(map[fleet.NodeID]Node),
		current: make(map[fleet.CameraID]fleet.NodeID),
	}
}

func (w *world) camera() Camera {
	c := Camera{
		ID:          fleet.CameraID(fmt.Sprintf("c%d", w.r.IntN(40))),
		BitrateBPS:  int64(w.r.IntN(8)) * mbit,
		Disabled:    w.r.IntN(10) == 0,
		MaxSessions: w.r.IntN(3),
	}
	if w.r.IntN(3) == 0 {
		c.Selector = map[string]string{"zone": string(rune('a' + w.r.IntN(3)))}
	}
	return c
}

func (w *world) node() Node {
	n := Node{
		ID:       fleet.NodeID(fmt.Sprintf("n%d", w.r.IntN(6))),
		Labels:   map[string]string{"zone": string(rune('a' + w.r.IntN(2)))},
		Draining: w.r.IntN(8) == 0,
		Viewers:  w.r.IntN(20),
		Capacity: Capacity{Viewers: w.r.IntN(2) * 15},

		Overloaded: w.r.IntN(6) == 0,
	}
	if w.r.IntN(4) != 0 {
		n.Capacity.Cameras = w.r.IntN(14)
		n.Capacity.IngressBPS = int64(w.r.IntN(40)) * mbit
	}
	return n
}

// step changes one thing, in the world and in the planner.
func (w *world) step(p *Planner) {
	switch k := w.r.IntN(20); {
	case k < 9:
		c := w.camera()
		w.cameras[c.ID] = c
		p.PutCamera(c)
	case k < 11:
		id := w.camera().ID
		delete(w.cameras, id)
		delete(w.current, id)
		p.DeleteCamera(id)
	case k < 15:
		n := w.node()
		w.nodes[n.ID] = n
		p.PutNode(n)
	case k < 17:
		id := w.node().ID
		delete(w.nodes, id)
		p.DeleteNode(id)
	default:
		for id, a := range p.Plan(Options{MaxMoves: w.r.IntN(3)}).Assignments {
			w.current[id] = a.Node
			p.Assign(id, a.Node)
		}
	}
}

// plan plans from the plain values, in a random order.
func (w *world) plan(opt Options) Result {
	cameras, nodes := slices.Collect(maps.Values(w.cameras)), slices.Collect(maps.Values(w.nodes))
	w.r.Shuffle(len(cameras), func(i, j int) { cameras[i], cameras[j] = cameras[j], cameras[i] })
	w.r.Shuffle(len(nodes), func(i, j int) { nodes[i], nodes[j] = nodes[j], nodes[i] })
	return Plan(cameras, nodes, w.current, opt)
}

func TestPlanProperties(t *testing.T) {
	for seed := range uint64(40) {
		w, p := newWorld(seed), NewPlanner()
		for i := range 120 {
			w.step(p)
			opt := Options{MaxMoves: w.r.IntN(4)}
			got := w.plan(opt)
			if diff := cmp.Diff(got, w.plan(opt)); diff != "" {
				t.Fatalf("seed %d step %d: another order, another plan:\n%s", seed, i, diff)
			}
			if diff := cmp.Diff(got, p.Plan(opt)); diff != "" {
				t.Fatalf("seed %d step %d: the planner differs from Plan (-Plan +planner):\n%s", seed, i, diff)
			}
			if err := w.check(got, opt); err != nil {
				t.Fatalf("seed %d step %d: %v", seed, i, err)
			}
		}
	}
}

// check tells whether a plan keeps what the package promises.
func (w *world) check(res Result, opt Options) error {
	balance := 0
	for id, a := range res.Assignments {
		from, why := w.current[id], w.mayLeave(id)
		switch {
		case a.Node == "" && a.Reason == "":
			return fmt.Errorf("camera %s has neither node nor reason", id)
		case a.Node != "" && a.Node == from:
			return fmt.Errorf("camera %s is moved to where it is", id)
		case a.Node != "" && !w.admits(a.Node, w.cameras[id]):
			return fmt.Errorf("camera %s is put on %s, which does not fit it", id, a.Node)
		case a.Node == "" && why == "" || a.Node == "" && why == "soft":
			return fmt.Errorf("camera %s loses its place on %s", id, from)
		case why == "" && w.nodes[from].Overloaded:
			return fmt.Errorf("camera %s leaves %s, which is overloaded and keeps what it has", id, from)
		case why == "":
			balance++
		}
	}
	if balance > opt.MaxMoves || balance != res.Rebalanced {
		return fmt.Errorf("%d cameras moved for no reason, %d said to be for balance, %d allowed", balance, res.Rebalanced, opt.MaxMoves)
	}
	before, after := w.used(nil), w.used(res.Assignments)
	for id, n := range w.nodes {
		if c := n.Capacity.Cameras; c > 0 && after[id].cameras > max(c, before[id].cameras) {
			return fmt.Errorf("node %s gets %d cameras, may have %d", id, after[id].cameras, c)
		}
		if c := n.Capacity.IngressBPS; c > 0 && after[id].ingress > max(c, before[id].ingress) {
			return fmt.Errorf("node %s gets %d bps, may have %d", id, after[id].ingress, c)
		}
	}
	return w.checkRefusals(res, after)
}

// checkRefusals tells whether a camera that was refused would have fitted
// after all.
func (w *world) checkRefusals(res Result, after map[fleet.NodeID]planned) error {
	refused := maps.Clone(res.Stranded)
	for id, a := range res.Assignments {
		if a.Node == "" && a.Reason != Disabled {
			refused[id] = a.Reason
		}
	}
	closed := w.used(w.gone())
	for id := range refused {
		c := w.cameras[id]
		for to, n := range w.nodes {
			over := n.Capacity.Cameras > 0 && closed[to].cameras > n.Capacity.Cameras ||
				n.Capacity.IngressBPS > 0 && closed[to].ingress > n.Capacity.IngressBPS
			if over || to == w.current[id] || !w.admits(to, c) || res.Rebalanced > 0 {
				continue
			}
			if (n.Capacity.Cameras == 0 || after[to].cameras < n.Capacity.Cameras) &&
				(n.Capacity.IngressBPS == 0 || after[to].ingress+bitrate(c) <= n.Capacity.IngressBPS) {
				return fmt.Errorf("camera %s is refused for %s, but %s has room", id, refused[id], to)
			}
		}
	}
	return nil
}

// mayLeave says whether a camera has a reason to leave: "hard", "soft" or "".
func (w *world) mayLeave(id fleet.CameraID) string {
	at := w.current[id]
	n := w.nodes[at]
	if w.mustLeave(id) {
		return "hard"
	}
	used := w.used(w.gone())[at]
	if n.Draining || n.Capacity.Cameras > 0 && used.cameras > n.Capacity.Cameras || n.Capacity.IngressBPS > 0 && used.ingress > n.Capacity.IngressBPS {
		return "soft"
	}
	return ""
}

func (w *world) mustLeave(id fleet.CameraID) bool {
	c, at := w.cameras[id], w.current[id]
	n, alive := w.nodes[at]
	return at == "" || !alive || c.Disabled || !matches(c.Selector, n.Labels)
}

// gone is the plan that does nothing but what is unavoidable.
func (w *world) gone() map[fleet.CameraID]Assignment {
	out := make(map[fleet.CameraID]Assignment)
	for id := range w.cameras {
		if w.mustLeave(id) {
			out[id] = Assignment{}
		}
	}
	return out
}

// admits tells whether a node may take a camera, its capacity aside.
func (w *world) admits(at fleet.NodeID, c Camera) bool {
	n, ok := w.nodes[at]
	return ok && !n.Draining && !c.Disabled && matches(c.Selector, n.Labels)
}

// used counts what each node has, after a plan if there is one.
func (w *world) used(plan map[fleet.CameraID]Assignment) map[fleet.NodeID]planned {
	out := make(map[fleet.NodeID]planned)
	for id, c := range w.cameras {
		at := w.current[id]
		if a, ok := plan[id]; ok {
			at = a.Node
		}
		u := out[at]
		u.cameras++
		u.ingress += bitrate(c)
		out[at] = u
	}
	return out
}

func bitrate(c Camera) int64 {
	if c.BitrateBPS == 0 {
		return AssumedBitrateBPS
	}
	return c.BitrateBPS
}
