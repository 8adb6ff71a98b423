package placement

import (
	"cmp"
	"math"
	"math/bits"
	"slices"
)

// index finds, among the nodes of a group, the one to take a camera, without
// looking at each. It is made for one plan, and told of each node that the plan
// changes.
//
// Nodes of equal capacity form a class. Of a class the least loaded node that
// the camera fits takes part, which a tree of the least load and the least
// ingress below each of its knots finds; of these, the one that would be the
// least loaded with the camera is chosen.
type index struct {
	nodes   []*node // the group's: by capacity, then by hash
	classes []class
	knots   []knot // of all classes
}

// class is the nodes of one capacity. Its tree is in an array: the children of
// knot i are 2i and 2i+1, the root is 1, the leaves begin at size.
type class struct {
	nodes   []*node
	tree    []knot
	size    int   // a power of two, of the leaves; those beyond the nodes are closed
	from    int   // where the nodes begin in the index
	ingress int64 // the most that a node may have, bits per second
}

// knot bounds what is below it; a leaf is exact.
type knot struct {
	load    float64 // the least, as a share of full
	ingress int64   // the least, bits per second
}

// closed is the leaf of a node that takes nothing.
var closed = knot{load: math.Inf(1), ingress: maxIngress}

// maxIngress is more than any sum of bit rates, and far from overflowing.
const maxIngress = math.MaxInt64 / 4

// build makes the index of a group's nodes as the plan has them now.
func (ix *index) build(nodes []*node) {
	ix.nodes, ix.classes = nodes, ix.classes[:0]
	total := 0
	for from := 0; from < len(nodes); {
		to := from + 1
		for to < len(nodes) && sameCapacity(nodes[from], nodes[to]) {
			to++
		}
		size := 1 << bits.Len(uint(to-from-1))
		c := class{nodes: nodes[from:to], size: size, from: from, ingress: maxIngress - 1}
		if most := nodes[from].Capacity.IngressBPS; most > 0 {
			c.ingress = min(most, maxIngress-1)
		}
		ix.classes = append(ix.classes, c)
		total += 2 * size
		from = to
	}
	ix.knots = slices.Grow(ix.knots[:0], total)[:total]
	rest := ix.knots
	for i := range ix.classes {
		c := &ix.classes[i]
		c.tree, rest = rest[:2*c.size], rest[2*c.size:]
		c.fill()
	}
}

// fill computes the tree.
func (c *class) fill() {
	for i := range c.size {
		if i < len(c.nodes) {
			c.tree[c.size+i] = c.nodes[i].leaf()
		} else {
			c.tree[c.size+i] = closed
		}
	}
	for i := c.size - 1; i > 0; i-- {
		c.tree[i] = c.tree[2*i].least(c.tree[2*i+1])
	}
}

func (k knot) least(other knot) knot {
	return knot{load: min(k.load, other.load), ingress: min(k.ingress, other.ingress)}
}

// leaf returns a node's leaf as the plan has it now.
func (n *node) leaf() knot {
	if n.Draining || n.plan.closed || n.Capacity.Cameras > 0 && n.plan.cameras >= n.Capacity.Cameras {
		return closed
	}
	return knot{load: n.loadWith(0, 0), ingress: n.plan.ingress}
}

// refresh takes in that a plan has changed a node, which may be of another
// group.
func (ix *index) refresh(n *node) {
	pos, found := slices.BinarySearchFunc(ix.nodes, n, byCapacity)
	if !found {
		return
	}
	at, found := slices.BinarySearchFunc(ix.classes, pos, func(c class, pos int) int { return cmp.Compare(c.from, pos) })
	if !found {
		at--
	}
	ix.classes[at].refresh(pos - ix.classes[at].from)
}

func (c *class) refresh(pos int) {
	i := c.size + pos
	c.tree[i] = c.nodes[pos].leaf()
	for i >>= 1; i > 0; i >>= 1 {
		k := c.tree[2*i].least(c.tree[2*i+1])
		if k == c.tree[i] {
			return
		}
		c.tree[i] = k
	}
}

// best returns the node to take a camera of a bit rate, and how much it is
// loaded then; nil if none can. Of equally loaded nodes of a class the first
// counts from where the search starts: at the share of its nodes that start, the
// camera's hash, is of all hashes. So equal nodes are given equal shares of the
// cameras, and a camera alone among equal nodes has its own.
func (ix *index) best(bps int64, start uint64) (*node, float64) {
	var best *node
	least := math.Inf(1)
	for i := range ix.classes {
		c := &ix.classes[i]
		low := c.load(1, bps)
		if low >= least {
			continue
		}
		pos := c.find(start, bps, low)
		if pos < 0 { // the camera does not fit the least loaded
			if low = c.lowest(1, bps, least); low >= least {
				continue
			}
			pos = c.find(start, bps, low)
		}
		if load := c.nodes[pos].loadWith(1, bps); load < least {
			best, least = c.nodes[pos], load
		}
	}
	return best, least
}

// load returns the load of a leaf's node, or a lower bound of that of all nodes
// below a knot; infinity if a camera of the bit rate fits none.
func (c *class) load(i int, bps int64) float64 {
	k := &c.tree[i]
	if k.ingress+bps > c.ingress {
		return math.Inf(1)
	}
	return k.load
}

// find returns the first position around the class, from a start on, whose node
// has room for the camera and is loaded no more than so much; -1 if there is
// none.
func (c *class) find(start uint64, bps int64, most float64) int {
	from, _ := bits.Mul64(start, uint64(len(c.nodes)))
	if pos := c.first(1, 0, c.size, int(from), bps, most); pos >= 0 || from == 0 {
		return pos
	}
	return c.first(1, 0, c.size, 0, bps, most)
}

// first returns the first position from a start on whose node has room
// and is loaded no more than so much; -1 if there is none. Knot i is that of the
// positions from low on, so many.
func (c *class) first(i, low, width, from int, bps int64, most float64) int {
	if low+width <= from || c.load(i, bps) > most {
		return -1
	}
	if width == 1 {
		return low
	}
	if pos := c.first(2*i, low, width/2, from, bps, most); pos >= 0 {
		return pos
	}
	return c.first(2*i+1, low+width/2, width/2, from, bps, most)
}

// lowest returns the lowest load of a node with room below a knot, or least if
// that is no higher.
func (c *class) lowest(i int, bps int64, least float64) float64 {
	load := c.load(i, bps)
	if load >= least || i >= c.size {
		return min(load, least)
	}
	a, b := 2*i, 2*i+1
	if c.load(b, bps) < c.load(a, bps) {
		a, b = b, a
	}
	return c.lowest(b, bps, c.lowest(a, bps, least))
}

func sameCapacity(a, b *node) bool {
	return a.Capacity.Cameras == b.Capacity.Cameras && a.Capacity.IngressBPS == b.Capacity.IngressBPS
}

// byCapacity orders a group's nodes.
func byCapacity(a, b *node) int {
	if c := cmp.Compare(a.Capacity.Cameras, b.Capacity.Cameras); c != 0 {
		return c
	}
	if c := cmp.Compare(a.Capacity.IngressBPS, b.Capacity.IngressBPS); c != 0 {
		return c
	}
	if c := cmp.Compare(a.hash, b.hash); c != 0 {
		return c
	}
	return cmp.Compare(a.ID, b.ID)
}
