package placement

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"fanlight/internal/fleet"
)

// Planner holds a fleet's state and plans from what changed: its plan takes
// time in proportion to the nodes and to the cameras without a settled place,
// not to all cameras.
//
// It does not carry out its own plans: a caller that has stored an assignment
// says so with Assign, and until then every plan decides it anew, alike. It is
// not safe for concurrent use.
type Planner struct {
	cameras map[fleet.CameraID]*camera
	nodes   map[fleet.NodeID]*node // those alive or awaited, and those gone that cameras are still assigned to
	alive   []*node                // by id
	groups  map[string]*group      // by selector
	pending map[*camera]struct{}   // the cameras that are not settled
	index   index                  // its memory, for the next group of a plan
}

// camera is a Camera and where it is.
type camera struct {
	id       fleet.CameraID
	hash     uint64
	bitrate  int64 // never 0
	disabled bool
	fixed    bool // not to be moved for balance
	group    *group
	at       *node // nil: nowhere
}

// node is a node and what it has.
type node struct {
	Node
	hash    uint64
	alive   bool
	awaited bool // not alive as far as is known, and may be: keeps what it has
	cameras map[*camera]struct{}
	ingress int64   // of cameras, bits per second
	demand  float64 // the load by viewers and egress, as a share of full
	perCam  float64 // the load of one camera
	perBit  float64 // the load of one bit per second
	plan    planned
}

// planned is a node's state while a plan is made.
type planned struct {
	cameras int
	ingress int64
	closed  bool // over its capacity: takes nothing
}

// group is the cameras with one selector, and the nodes that fit it.
type group struct {
	key      string // the selector in words, "rack=3,zone=a"; empty: any node
	selector map[string]string
	cameras  int
	nodes    []*node // alive, by capacity and hash
}

// NewPlanner returns a planner of an empty fleet.
func NewPlanner() *Planner { return newPlanner(0, 0) }

func newPlanner(cameras, nodes int) *Planner {
	return &Planner{
		cameras: make(map[fleet.CameraID]*camera, cameras),
		nodes:   make(map[fleet.NodeID]*node, nodes),
		groups:  make(map[string]*group),
		pending: make(map[*camera]struct{}),
	}
}

// PutCamera adds a camera or changes it; where it is assigned stays.
func (p *Planner) PutCamera(c Camera) {
	bitrate := min(c.BitrateBPS, maxBitrateBPS)
	if bitrate <= 0 {
		bitrate = AssumedBitrateBPS
	}
	cam, ok := p.cameras[c.ID]
	if !ok {
		cam = &camera{id: c.ID, hash: hash(string(c.ID))}
		p.cameras[c.ID] = cam
	}
	if cam.at != nil {
		cam.at.ingress += bitrate - cam.bitrate
	}
	cam.bitrate, cam.disabled, cam.fixed = bitrate, c.Disabled, c.MaxSessions == 1 || c.Moving
	if key := selectorKey(c.Selector); cam.group == nil || cam.group.key != key {
		p.leave(cam.group)
		cam.group = p.join(key, c.Selector)
	}
	p.refresh(cam)
}

// DeleteCamera forgets a camera and its assignment.
func (p *Planner) DeleteCamera(id fleet.CameraID) {
	cam, ok := p.cameras[id]
	if !ok {
		return
	}
	p.move(cam, nil)
	p.leave(cam.group)
	delete(p.pending, cam)
	delete(p.cameras, id)
}

// Assign says where a camera is; an empty node means nowhere. A camera that is
// not known is ignored. The node need not be alive.
func (p *Planner) Assign(id fleet.CameraID, at fleet.NodeID) {
	cam, ok := p.cameras[id]
	if !ok {
		return
	}
	var to *node
	if at != "" {
		to = p.node(at)
	}
	p.move(cam, to)
	p.refresh(cam)
}

// PutNode says that a node is alive, or that something of it changed.
func (p *Planner) PutNode(nd Node) {
	n := p.node(nd.ID)
	n.awaited = false
	settled := n.alive && n.Draining == nd.Draining && maps.Equal(n.Labels, nd.Labels)
	regroup := !n.alive || n.Capacity.Cameras != nd.Capacity.Cameras || n.Capacity.IngressBPS != nd.Capacity.IngressBPS ||
		!maps.Equal(n.Labels, nd.Labels)
	if regroup && n.alive {
		p.ungroup(n)
	}
	nd.Labels = maps.Clone(nd.Labels)
	n.Node = nd
	n.perCam = 1 / limit(float64(nd.Capacity.Cameras), AssumedCameras)
	n.perBit = 1 / limit(float64(nd.Capacity.IngressBPS), AssumedIngressBPS)
	n.demand = max(share(float64(nd.Viewers), float64(nd.Capacity.Viewers)), share(float64(nd.EgressBPS), float64(nd.Capacity.EgressBPS)))
	if n.demand >= 1 || nd.Overloaded {
		n.demand += lastResort
	}
	if !n.alive {
		n.alive = true
		p.alive = insert(p.alive, n, byID)
	}
	if regroup {
		for _, g := range p.groups {
			if matches(g.selector, n.Labels) {
				g.nodes = insert(g.nodes, n, byCapacity)
			}
		}
	}
	if !settled {
		for cam := range n.cameras {
			p.refresh(cam)
		}
	}
}

// DeleteNode says that a node is gone. Its cameras stay assigned to it until
// Assign says otherwise, so that nothing moves if it is back before a plan.
func (p *Planner) DeleteNode(id fleet.NodeID) {
	n, ok := p.nodes[id]
	if !ok || !n.alive && !n.awaited {
		return
	}
	p.lay(n, false)
	p.forget(n)
}

// AwaitNode says that a node is not known to be alive, but may well be: it is
// given nothing, and what it has stays, whatever its labels were, until PutNode
// or DeleteNode says what has become of it. If draining, cameras that others
// can take leave it.
func (p *Planner) AwaitNode(id fleet.NodeID, draining bool) {
	n := p.node(id)
	n.Draining = draining
	p.lay(n, true)
}

// lay takes a node from those alive.
func (p *Planner) lay(n *node, awaited bool) {
	if n.alive {
		p.alive = remove(p.alive, n, byID)
		p.ungroup(n)
	}
	n.alive, n.awaited = false, awaited
	for cam := range n.cameras {
		p.refresh(cam)
	}
}

// node returns a node's entry, and makes one of a node that is not alive.
func (p *Planner) node(id fleet.NodeID) *node {
	n, ok := p.nodes[id]
	if !ok {
		n = &node{Node: Node{ID: id}, hash: hash(string(id)), cameras: make(map[*camera]struct{})}
		p.nodes[id] = n
	}
	return n
}

// forget drops a node that nobody needs any more.
func (p *Planner) forget(n *node) {
	if !n.alive && !n.awaited && len(n.cameras) == 0 {
		delete(p.nodes, n.ID)
	}
}

// move takes a camera from its node to another; nil: nowhere.
func (p *Planner) move(cam *camera, to *node) {
	if from := cam.at; from != nil {
		delete(from.cameras, cam)
		from.ingress -= cam.bitrate
		if from != to {
			p.forget(from)
		}
	}
	cam.at = to
	if to != nil {
		to.cameras[cam] = struct{}{}
		to.ingress += cam.bitrate
	}
}

// refresh sorts a camera in with the settled or the pending ones.
func (p *Planner) refresh(cam *camera) {
	if cam.mustLeave() || cam.at.Draining {
		p.pending[cam] = struct{}{}
	} else {
		delete(p.pending, cam)
	}
}

// mustLeave tells whether a camera cannot be where it is, even if no other node
// can take it.
func (c *camera) mustLeave() bool {
	if c.at == nil || c.disabled {
		return true
	}
	return !c.at.awaited && (!c.at.alive || !matches(c.group.selector, c.at.Labels))
}

// join returns the group of a selector, with one camera more.
func (p *Planner) join(key string, selector map[string]string) *group {
	g, ok := p.groups[key]
	if !ok {
		g = &group{key: key, selector: maps.Clone(selector)}
		for _, n := range p.alive {
			if matches(selector, n.Labels) {
				g.nodes = append(g.nodes, n)
			}
		}
		slices.SortFunc(g.nodes, byCapacity)
		p.groups[key] = g
	}
	g.cameras++
	return g
}

// leave takes a camera out of a group, which may be nil.
func (p *Planner) leave(g *group) {
	if g == nil {
		return
	}
	if g.cameras--; g.cameras == 0 {
		delete(p.groups, g.key)
	}
}

// ungroup takes a node out of every group.
func (p *Planner) ungroup(n *node) {
	for _, g := range p.groups {
		g.nodes = remove(g.nodes, n, byCapacity)
	}
}

// matches tells whether labels have all of a selector.
func matches(selector, labels map[string]string) bool {
	for k, v := range selector {
		if have, ok := labels[k]; !ok || have != v {
			return false
		}
	}
	return true
}

// selectorKey writes a selector so that equal ones have equal keys. Keys and
// values have neither "=" nor ",", see camera.proto.
func selectorKey(selector map[string]string) string {
	if len(selector) == 0 {
		return ""
	}
	pairs := make([]string, 0, len(selector))
	for k, v := range selector {
		pairs = append(pairs, k+"="+v)
	}
	slices.Sort(pairs)
	return strings.Join(pairs, ",")
}

// limit returns a capacity, or what is assumed if there is none.
func limit(capacity, assumed float64) float64 {
	if capacity <= 0 {
		return assumed
	}
	return capacity
}

// share returns how much of a capacity is used; 0 if it has no limit.
func share(used, capacity float64) float64 {
	if capacity <= 0 {
		return 0
	}
	return used / capacity
}

func byID(a, b *node) int { return cmp.Compare(a.ID, b.ID) }

// insert puts a node into a sorted list.
func insert(list []*node, n *node, by func(a, b *node) int) []*node {
	i, found := slices.BinarySearchFunc(list, n, by)
	if found {
		return list
	}
	return slices.Insert(list, i, n)
}

// remove takes a node out of a sorted list.
func remove(list []*node, n *node, by func(a, b *node) int) []*node {
	i, found := slices.BinarySearchFunc(list, n, by)
	if !found {
		return list
	}
	return slices.Delete(list, i, i+1)
}

// hash is FNV-1a, 64 bits (draft-eastlake-fnv), with its bits mixed. It must
// never change: plans of different versions must agree.
func hash(s string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(s) {
		h = (h ^ uint64(s[i])) * 1099511628211
	}
	return mix(h)
}

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood 2014): every bit of
// its result depends on every bit of its argument.
func mix(h uint64) uint64 {
	h = (h ^ h>>30) * 0xbf58476d1ce4e5b9
	h = (h ^ h>>27) * 0x94d049bb133111eb
	return h ^ h>>31
}
