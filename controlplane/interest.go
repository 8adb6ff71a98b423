package controlplane

import (
	"fanlight/internal/fleet"
)

// subscriber is told which cameras and nodes have changed, not how: it looks
// when it has time. So what waits for it is never more than there are cameras
// and nodes, however slow it is.
type subscriber struct {
	// wake has room for one and is written when there is something to take.
	wake chan struct{}

	// Guarded by cache.mu.
	cameras map[fleet.CameraID]struct{}
	nodes   map[fleet.NodeID]struct{}
	dirty   bool
}

func newSubscriber() *subscriber {
	return &subscriber{
		wake:    make(chan struct{}, 1),
		cameras: make(map[fleet.CameraID]struct{}),
		nodes:   make(map[fleet.NodeID]struct{}),
	}
}

func (s *subscriber) poke() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// waiter waits for a revision.
type waiter struct {
	revision int64
	done     chan struct{} // closed when it is in
	index    int           // in waiters; -1: in none
}

// waiters is a heap, the lowest revision first: a change wakes those that have
// waited for it, not everybody.
type waiters []*waiter

func (w waiters) Len() int           { return len(w) }
func (w waiters) Less(i, j int) bool { return w[i].revision < w[j].revision }
func (w waiters) Swap(i, j int) {
	w[i], w[j] = w[j], w[i]
	w[i].index, w[j].index = i, j
}

func (w *waiters) Push(x any) {
	added, ok := x.(*waiter)
	if !ok {
		return // heap.Push gets nothing else
	}
	added.index = len(*w)
	*w = append(*w, added)
}

func (w *waiters) Pop() any {
	last := (*w)[len(*w)-1]
	(*w)[len(*w)-1] = nil
	*w = (*w)[:len(*w)-1]
	last.index = -1
	return last
}

type subscribers map[*subscriber]struct{}

// interest is who wants to know what. Guarded by cache.mu.
type interest struct {
	ofCameras subscribers                    // every camera
	ofNodes   subscribers                    // every node
	ofPlan    subscribers                    // what placement depends on
	routes    map[fleet.CameraID]subscribers // one camera's route
	agents    map[fleet.NodeID]subscribers   // one node's desired set
	woken     subscribers                    // have something since wake
}

func newInterest() interest {
	return interest{
		ofCameras: make(subscribers),
		ofNodes:   make(subscribers),
		ofPlan:    make(subscribers),
		routes:    make(map[fleet.CameraID]subscribers),
		agents:    make(map[fleet.NodeID]subscribers),
		woken:     make(subscribers),
	}
}

func (i *interest) camera(id fleet.CameraID) { i.mark(i.ofCameras, id) }
func (i *interest) route(id fleet.CameraID)  { i.mark(i.routes[id], id) }
func (i *interest) planCamera(id fleet.CameraID) {
	i.mark(i.ofPlan, id)
}

func (i *interest) mark(subs subscribers, id fleet.CameraID) {
	for s := range subs {
		s.cameras[id] = struct{}{}
		i.touch(s)
	}
}

func (i *interest) node(id fleet.NodeID)     { i.markNode(i.ofNodes, id) }
func (i *interest) planNode(id fleet.NodeID) { i.markNode(i.ofPlan, id) }

// planLoad has a node taken in with the next plan, whenever that is.
func (i *interest) planLoad(id fleet.NodeID) {
	for s := range i.ofPlan {
		s.nodes[id] = struct{}{}
		s.dirty = true
	}
}

func (i *interest) agent(id fleet.NodeID) { i.markNode(i.agents[id], id) }

func (i *interest) markNode(subs subscribers, id fleet.NodeID) {
	for s := range subs {
		s.nodes[id] = struct{}{}
		i.touch(s)
	}
}

func (i *interest) touch(s *subscriber) {
	s.dirty = true
	i.woken[s] = struct{}{}
}

// wake wakes everyone for whom there is something.
func (i *interest) wake() {
	for s := range i.woken {
		s.poke()
	}
	clear(i.woken)
}

// subscribe adds s to a set of subscribers and returns the revision that the
// cache is complete through: s is told of everything after it.
func (c *cache) subscribe(s *subscriber, set subscribers) (revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	set[s] = struct{}{}
	return c.revision
}

func (c *cache) unsubscribe(s *subscriber, set subscribers) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(set, s)
}

// subscribeAgent tells s whenever the desired set of a node may have changed.
func (c *cache) subscribeAgent(s *subscriber, id fleet.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interest.agents[id] == nil {
		c.interest.agents[id] = make(subscribers)
	}
	c.interest.agents[id][s] = struct{}{}
}

func (c *cache) unsubscribeAgent(s *subscriber, id fleet.NodeID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.interest.agents[id], s)
	if len(c.interest.agents[id]) == 0 {
		delete(c.interest.agents, id)
	}
}

// subscribeRoute tells s of changes of a camera's route, and at once of what
// it is.
func (c *cache) subscribeRoute(s *subscriber, id fleet.CameraID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.interest.routes[id] == nil {
		c.interest.routes[id] = make(subscribers)
	}
	c.interest.routes[id][s] = struct{}{}
	s.cameras[id] = struct{}{}
	s.dirty = true
	s.poke()
}

func (c *cache) unsubscribeRoute(s *subscriber, id fleet.CameraID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.interest.routes[id], s)
	if len(c.interest.routes[id]) == 0 {
		delete(c.interest.routes, id)
	}
	delete(s.cameras, id)
}

// take returns and forgets what a subscriber was told, with the revision that
// the cache is complete through.
func (c *cache) take(s *subscriber) (cameras map[fleet.CameraID]struct{}, nodes map[fleet.NodeID]struct{}, revision int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	cameras, nodes = s.cameras, s.nodes
	if s.dirty {
		s.cameras, s.nodes = make(map[fleet.CameraID]struct{}), make(map[fleet.NodeID]struct{})
		s.dirty = false
	} else {
		cameras, nodes = nil, nil
	}
	return cameras, nodes, c.revision
}

// markAll marks every camera for s, and every node that is connected or that
// cameras are assigned to.
func (c *cache) markAll(s *subscriber) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id := range c.cameras {
		s.cameras[id] = struct{}{}
	}
	for id := range c.nodes {
		s.nodes[id] = struct{}{}
	}
	for id := range c.byNode {
		s.nodes[id] = struct{}{}
	}
	s.dirty = true
	s.poke()
}
