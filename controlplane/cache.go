package controlplane

import (
	"context"
	"fmt"
	"iter"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
)

// cache is everything that is in the store, kept up to date by a watch. What
// it hands out is shared and never changed.
type cache struct {
	// Static after newCache.
	log   *slog.Logger
	store *store.Store
	ready chan struct{} // closed by run when everything has been loaded

	mu          sync.RWMutex // guards the rest
	revision    int64        // everything up to here is in
	moved       chan struct{}
	outages     int  // how often the watch was interrupted
	following   bool // the store\'s watch goes on
	cameras     map[fleet.CameraID]*store.Camera
	assignments map[fleet.CameraID]*store.Assignment
	observed    map[fleet.CameraID]*store.Observed
	nodes       map[fleet.NodeID]*store.Node
	drains      map[fleet.NodeID]*store.Drain
	byNode      map[fleet.NodeID]map[fleet.CameraID]struct{} // from assignments
	sorted      []fleet.CameraID                             // keys of cameras; nil: to be made
	interest    interest
}

func newCache(log *slog.Logger, st *store.Store) *cache {
	return &cache{
		log:         log,
		store:       st,
		ready:       make(chan struct{}),
		moved:       make(chan struct{}),
		cameras:     make(map[fleet.CameraID]*store.Camera),
		assignments: make(map[fleet.CameraID]*store.Assignment),
		observed:    make(map[fleet.CameraID]*store.Observed),
		nodes:       make(map[fleet.NodeID]*store.Node),
		drains:      make(map[fleet.NodeID]*store.Drain),
		byNode:      make(map[fleet.NodeID]map[fleet.CameraID]struct{}),
		interest:    newInterest(),
	}
}

// run keeps the cache up to date until ctx ends. While etcd can't be reached,
// the cache stays as it is.
func (c *cache) run(ctx context.Context) {
	backoff := rpc.Backoff{Min: 20 * time.Millisecond, Max: 2 * time.Second}
	loaded := false
	for ctx.Err() == nil {
		err := c.follow(ctx, &loaded)
		if ctx.Err() != nil {
			return
		}
		c.log.Warn("watch of the store interrupted", "error", err)
		c.mu.Lock()
		c.outages++
		c.following = false
		c.mu.Unlock()
		if backoff.Sleep(ctx) != nil {
			return
		}
	}
}

// follow loads everything and applies what changes, until that fails.
func (c *cache) follow(ctx context.Context, loaded *bool) error {
	entries, rev, err := c.store.Load(ctx)
	if err != nil {
		return err
	}
	c.replace(entries, rev)
	c.mu.Lock()
	c.following = true
	c.mu.Unlock()
	if !*loaded {
		*loaded = true
		close(c.ready)
	}
	return c.store.Watch(ctx, rev, c.apply)
}

// interruptions returns how often the watch was interrupted. What was missed
// comes after it has been counted.
func (c *cache) interruptions() int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.outages
}

// waitReady waits until everything has been loaded once.
func (c *cache) waitReady(ctx context.Context) error {
	select {
	case <-c.ready:
		return nil
	default:
	}
	t := time.NewTimer(readyWait)
	defer t.Stop()
	select {
	case <-c.ready:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return fmt.Errorf("the control plane has not read its state yet: %w", fleet.Unavailable)
	}
}

// wait waits until everything up to a revision is in.
func (c *cache) wait(ctx context.Context, revision int64) error {
	t := time.NewTimer(readyWait)
	defer t.Stop()
	for {
		c.mu.RLock()
		done, moved := c.revision >= revision, c.moved
		c.mu.RUnlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-t.C:
			return fmt.Errorf("the change is stored, but not yet seen by this replica: %w", fleet.Unavailable)
		}
	}
}

// replace makes the cache what was loaded, as changes from what it was.
func (c *cache) replace(entries []store.Entry, revision int64) {
	var events []store.Event
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := struct {
		cameras, assignments, observed map[fleet.CameraID]bool
		nodes, drains                  map[fleet.NodeID]bool
	}{
		make(map[fleet.CameraID]bool), make(map[fleet.CameraID]bool), make(map[fleet.CameraID]bool),
		make(map[fleet.NodeID]bool), make(map[fleet.NodeID]bool),
	}
	for _, e := range entries {
		switch {
		case e.Camera != nil:
			kept.cameras[e.Camera.ID] = true
		case e.Assignment != nil:
			kept.assignments[e.Assignment.Camera] = true
		case e.Observed != nil:
			kept.observed[e.Observed.Camera] = true
		case e.Node != nil:
			kept.nodes[e.Node.ID] = true
		case e.Drain != nil:
			kept.drains[e.Drain.Node] = true
		}
		events = append(events, store.Event{Entry: e, Revision: revision})
	}
	gone := func(e store.Entry) {
		events = append(events, store.Event{Entry: e, Deleted: true, Revision: revision})
	}
	for id, v := range c.cameras {
		if !kept.cameras[id] {
			gone(store.Entry{Camera: v})
		}
	}
	for id, v := range c.assignments {
		if !kept.assignments[id] {
			gone(store.Entry{Assignment: v})
		}
	}
	for id, v := range c.observed {
		if !kept.observed[id] {
			gone(store.Entry{Observed: v})
		}
	}
	for id, v := range c.nodes {
		if !kept.nodes[id] {
			gone(store.Entry{Node: v})
		}
	}
	for id, v := range c.drains {
		if !kept.drains[id] {
			gone(store.Entry{Drain: v})
		}
	}
	c.applyLocked(revision, events)
}

// apply takes changes in.
func (c *cache) apply(revision int64, events []store.Event) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.applyLocked(revision, events)
}

func (c *cache) applyLocked(revision int64, events []store.Event) {
	for _, e := range events {
		switch {
		case e.Camera != nil:
			c.applyCamera(e)
		case e.Assignment != nil:
			c.applyAssignment(e)
		case e.Observed != nil:
			if !put(c.observed, e.Observed.Camera, e.Observed, e.Deleted, func(a, b *store.Observed) bool { return a.Revision == b.Revision }) {
				continue
			}
			c.interest.camera(e.Observed.Camera)
		case e.Node != nil:
			c.applyNode(e)
		case e.Drain != nil:
			if put(c.drains, e.Drain.Node, e.Drain, e.Deleted, func(a, b *store.Drain) bool { return a.Revision == b.Revision }) {
				c.interest.node(e.Drain.Node)
				c.interest.planNode(e.Drain.Node)
			}
		}
	}
	c.revision = max(c.revision, revision)
	close(c.moved)
	c.moved = make(chan struct{})
	c.interest.wake()
}

// put stores or deletes a value, and tells whether that changed anything.
func put[K comparable, V any](m map[K]V, k K, v V, deleted bool, same func(a, b V) bool) bool {
	old, ok := m[k]
	switch {
	case deleted && ok:
		delete(m, k)
		return true
	case deleted, ok && same(old, v):
		return false
	}
	m[k] = v
	return true
}

func (c *cache) applyCamera(e store.Event) {
	id := e.Camera.ID
	_, existed := c.cameras[id]
	if !put(c.cameras, id, e.Camera, e.Deleted, func(a, b *store.Camera) bool { return a.Revision == b.Revision }) {
		return
	}
	if existed == e.Deleted {
		c.sorted = nil
	}
	c.interest.camera(id)
	c.interest.route(id)
	c.interest.planCamera(id)
	if a := c.assignments[id]; a != nil {
		c.interest.agent(a.Node)
	}
}

func (c *cache) applyAssignment(e store.Event) {
	id := e.Assignment.Camera
	old := c.assignments[id]
	if !put(c.assignments, id, e.Assignment, e.Deleted, func(a, b *store.Assignment) bool { return a.Revision == b.Revision }) {
		return
	}
	if old != nil && old.Node != "" {
		delete(c.byNode[old.Node], id)
		if len(c.byNode[old.Node]) == 0 {
			delete(c.byNode, old.Node)
		}
		c.interest.agent(old.Node)
		c.interest.node(old.Node)
	}
	if a := c.assignments[id]; a != nil && a.Node != "" {
		if c.byNode[a.Node] == nil {
			c.byNode[a.Node] = make(map[fleet.CameraID]struct{})
		}
		c.byNode[a.Node][id] = struct{}{}
		c.interest.agent(a.Node)
		c.interest.node(a.Node)
	}
	c.interest.camera(id)
	c.interest.route(id)
	c.interest.planCamera(id)
}

func (c *cache) applyNode(e store.Event) {
	id := e.Node.ID
	old := c.nodes[id]
	if !put(c.nodes, id, e.Node, e.Deleted, func(a, b *store.Node) bool { return a.Revision == b.Revision }) {
		return
	}
	c.interest.node(id)
	c.interest.agent(id) // whose lease may be another's now
	now := c.nodes[id]
	if old != nil && now != nil && samePlace(old, now) {
		c.interest.planLoad(id) // which moves nothing, but weighs when something is placed
		return
	}
	c.interest.planNode(id)
	for camera := range c.byNode[id] {
		c.interest.camera(camera)
		c.interest.route(camera)
	}
}

// samePlace tells whether two states of a node are alike for placement and
// routes.
func samePlace(a, b *store.Node) bool {
	x, y := a.Registered, b.Registered
	return x.GetSessionAddress() == y.GetSessionAddress() &&
		maps.Equal(x.GetLabels(), y.GetLabels()) &&
		x.GetCapacity().GetCameras() == y.GetCapacity().GetCameras() &&
		x.GetCapacity().GetIngressBps() == y.GetCapacity().GetIngressBps() &&
		x.GetCapacity().GetEgressBps() == y.GetCapacity().GetEgressBps() &&
		x.GetCapacity().GetViewers() == y.GetCapacity().GetViewers()
}

// cameraIDs returns the ids of all cameras, in order. The slice is shared.
func (c *cache) cameraIDs() []fleet.CameraID {
	c.mu.RLock()
	ids := c.sorted
	c.mu.RUnlock()
	if ids != nil {
		return ids
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sorted == nil {
		c.sorted = slices.Sorted(maps.Keys(c.cameras))
		if c.sorted == nil {
			c.sorted = []fleet.CameraID{}
		}
	}
	return c.sorted
}

// nodeIDs returns the ids of all nodes that are connected or being drained, in
// order.
func (c *cache) nodeIDs() []fleet.NodeID {
	c.mu.RLock()
	defer c.mu.RUnlock()
	ids := slices.AppendSeq(slices.Collect(maps.Keys(c.nodes)), maps.Keys(c.drains))
	slices.Sort(ids)
	return slices.Compact(ids)
}

// camera returns what is known of a camera. ok is false if there is none.
func (c *cache) camera(id fleet.CameraID) (v cameraView, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return c.cameraLocked(id)
}

func (c *cache) cameraLocked(id fleet.CameraID) (v cameraView, ok bool) {
	v = cameraView{camera: c.cameras[id], assignment: c.assignments[id], observed: c.observed[id], anyNode: len(c.nodes) > 0}
	if v.assignment != nil {
		v.node = c.nodes[v.assignment.Node]
	}
	return v, v.camera != nil
}

// node returns what is known of a node. ok is false if it is neither connected
// nor being drained.
func (c *cache) node(id fleet.NodeID) (v nodeView, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v = nodeView{id: id, node: c.nodes[id], drain: c.drains[id], cameras: len(c.byNode[id])}
	return v, v.node != nil || v.drain != nil
}

// assignedTo returns what is known of a node's cameras, by id, and of the node
// itself; nil: it is not connected.
func (c *cache) assignedTo(id fleet.NodeID) (views []cameraView, node *store.Node) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	for _, camera := range slices.Sorted(maps.Keys(c.byNode[id])) {
		if v, ok := c.cameraLocked(camera); ok {
			views = append(views, v)
		}
	}
	return views, c.nodes[id]
}

// camerasAfter iterates over the cameras whose ids come after one, in order,
// each as it is when its turn comes.
func (c *cache) camerasAfter(after fleet.CameraID) iter.Seq2[fleet.CameraID, cameraView] {
	return func(yield func(fleet.CameraID, cameraView) bool) {
		ids := c.cameraIDs()
		from, found := slices.BinarySearch(ids, after)
		if found {
			from++
		}
		for _, id := range ids[from:] {
			if v, ok := c.camera(id); ok && !yield(id, v) {
				return
			}
		}
	}
}
