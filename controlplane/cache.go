package controlplane

import (
	"container/heap"
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
	controlv1 "fanlight/proto/fanlight/control/v1"
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
	waiting     waiters      // for later revisions
	outages     int          // how often the watch was interrupted
	following   bool         // the store's watch goes on
	cameras     map[fleet.CameraID]*store.Camera
	assignments map[fleet.CameraID]*store.Assignment
	observed    map[fleet.CameraID]*store.Observed
	nodes       map[fleet.NodeID]*store.Node
	retries     map[fleet.CameraID]*store.Retry
	drains      map[fleet.NodeID]*store.Drain
	// byNode has the cameras that are assigned to a node, and those that it has
	// not let go of yet.
	byNode map[fleet.NodeID]map[fleet.CameraID]struct{}
	// written has the revision at which a node was registered last, of those that
	// are connected or in byNode, and boots the boot id that it had.
	written map[fleet.NodeID]int64
	// expired has when a node's registration went together with others': their
	// lease had ended, which is the replica's, not that any of them had. Of nodes
	// that have not registered anew.
	expired  map[fleet.NodeID]time.Time
	boots    map[fleet.NodeID]string
	sorted   []fleet.CameraID // keys of cameras; nil: to be made
	interest interest
}

func newCache(log *slog.Logger, st *store.Store) *cache {
	return &cache{
		log:         log,
		store:       st,
		ready:       make(chan struct{}),
		cameras:     make(map[fleet.CameraID]*store.Camera),
		assignments: make(map[fleet.CameraID]*store.Assignment),
		observed:    make(map[fleet.CameraID]*store.Observed),
		nodes:       make(map[fleet.NodeID]*store.Node),
		retries:     make(map[fleet.CameraID]*store.Retry),
		drains:      make(map[fleet.NodeID]*store.Drain),
		byNode:      make(map[fleet.NodeID]map[fleet.CameraID]struct{}),
		written:     make(map[fleet.NodeID]int64),
		expired:     make(map[fleet.NodeID]time.Time),
		boots:       make(map[fleet.NodeID]string),
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
	c.mu.Lock()
	if c.revision >= revision {
		c.mu.Unlock()
		return nil
	}
	w := &waiter{revision: revision, done: make(chan struct{})}
	heap.Push(&c.waiting, w)
	c.mu.Unlock()
	t := time.NewTimer(readyWait)
	defer t.Stop()
	var err error
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		err = context.Cause(ctx)
	case <-t.C:
		err = fmt.Errorf("the change is stored, but not yet seen by this replica: %w", fleet.Unavailable)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w.index >= 0 {
		heap.Remove(&c.waiting, w.index)
	}
	return err
}

// replace makes the cache what was loaded, as changes from what it was.
func (c *cache) replace(entries []store.Entry, revision int64) {
	var events []store.Event
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := struct {
		cameras, assignments, observed, retries map[fleet.CameraID]bool
		nodes, drains                           map[fleet.NodeID]bool
	}{
		make(map[fleet.CameraID]bool), make(map[fleet.CameraID]bool), make(map[fleet.CameraID]bool), make(map[fleet.CameraID]bool),
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
		case e.Retry != nil:
			kept.retries[e.Retry.Camera] = true
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
	for id, v := range c.retries {
		if !kept.retries[id] {
			gone(store.Entry{Retry: v})
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
	c.noteExpired(events)
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
			if a := c.assignments[e.Observed.Camera]; a != nil && a.From != "" {
				c.interest.planCamera(a.Camera) // whose move may go on
			}
		case e.Retry != nil:
			c.applyRetry(e)
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
	for len(c.waiting) > 0 && c.waiting[0].revision <= c.revision {
		w := c.waiting[0]
		heap.Pop(&c.waiting)
		close(w.done)
	}
	c.interest.wake()
}

// noteExpired notes the nodes that go at the same revision as another: a node
// that has ended is removed alone, etcd removes all of a lease at once.
func (c *cache) noteExpired(events []store.Event) {
	first := make(map[int64]fleet.NodeID) // by revision
	now := time.Now()
	for _, e := range events {
		if e.Node == nil {
			continue
		}
		if !e.Deleted {
			delete(c.expired, e.Node.ID)
			continue
		}
		if other, ok := first[e.Revision]; ok {
			c.expired[other], c.expired[e.Node.ID] = now, now
		} else {
			first[e.Revision] = e.Node.ID
		}
	}
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
		c.interest.agent(a.From)
	}
}

func (c *cache) applyRetry(e store.Event) {
	id := e.Retry.Camera
	if !put(c.retries, id, e.Retry, e.Deleted, func(a, b *store.Retry) bool { return a.Revision == b.Revision }) {
		return
	}
	for _, n := range nodesOf(c.assignments[id]) {
		c.interest.agent(n)
	}
}

func (c *cache) applyAssignment(e store.Event) {
	id := e.Assignment.Camera
	old := c.assignments[id]
	if !put(c.assignments, id, e.Assignment, e.Deleted, func(a, b *store.Assignment) bool { return a.Revision == b.Revision }) {
		return
	}
	for _, n := range nodesOf(old) {
		delete(c.byNode[n], id)
		if len(c.byNode[n]) == 0 {
			delete(c.byNode, n)
		}
	}
	now := c.assignments[id]
	for _, n := range nodesOf(now) {
		if c.byNode[n] == nil {
			c.byNode[n] = make(map[fleet.CameraID]struct{})
		}
		c.byNode[n][id] = struct{}{}
	}
	for _, n := range append(nodesOf(old), nodesOf(now)...) {
		c.forgetNode(n)
		c.interest.agent(n)
		c.interest.node(n)
	}
	c.interest.camera(id)
	c.interest.route(id)
	c.interest.planCamera(id)
}

// nodesOf returns the nodes that have to do with an assignment, which may be
// nil: the one that the camera is assigned to and the one that has not let go.
func nodesOf(a *store.Assignment) []fleet.NodeID {
	if a == nil {
		return nil
	}
	nodes := make([]fleet.NodeID, 0, 4)
	if a.Node != "" {
		nodes = append(nodes, a.Node)
	}
	if a.From != "" && a.From != a.Node {
		nodes = append(nodes, a.From)
	}
	return nodes
}

// forgetNode forgets what a node was registered with last if nobody needs it.
func (c *cache) forgetNode(id fleet.NodeID) {
	if c.nodes[id] == nil && c.byNode[id] == nil {
		delete(c.written, id)
		delete(c.boots, id)
		delete(c.expired, id)
	}
}

func (c *cache) applyNode(e store.Event) {
	id := e.Node.ID
	old := c.nodes[id]
	if !e.Deleted {
		c.written[id] = max(c.written[id], e.Node.Revision)
		c.boots[id] = e.Node.Registered.GetBootId()
	}
	defer c.forgetNode(id)
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
		x.GetLeaving() == y.GetLeaving() &&
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
	if r := c.retries[id]; r != nil {
		v.retry = r.Revision
	}
	if v.assignment != nil {
		v.node, v.from = c.nodes[v.assignment.Node], c.nodes[v.assignment.From]
	}
	return v, v.camera != nil
}

// node returns what is known of a node. ok is false if it is neither connected
// nor being drained.
func (c *cache) node(id fleet.NodeID) (v nodeView, ok bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	v = nodeView{id: id, node: c.nodes[id], drain: c.drains[id], cameras: len(c.byNode[id])}
	if v.drain != nil {
		c.countLocked(&v)
	}
	return v, v.node != nil || v.drain != nil
}

// countLocked counts what becomes of a drained node's cameras.
func (c *cache) countLocked(v *nodeView) {
	var told fleet.CameraID // the one that strandedMessage is of
	for id := range c.byNode[v.id] {
		a := c.assignments[id]
		stranded := a.Node == v.id && a.From == "" || a.From == v.id && a.Move == store.Warming
		if stranded && a.Reason != controlv1.Reason_REASON_UNSPECIFIED {
			v.stranded++
			if told == "" || id < told {
				told, v.strandedMessage = id, fmt.Sprintf("camera %s: %s", id, a.Message)
			}
			continue
		}
		if a.From == v.id {
			v.moving++
		}
	}
}

// nodeBrief returns what placement needs of a node: whether it is connected,
// has cameras, the revision at which it was registered last, and when its lease
// expired, zero unless it did.
func (c *cache) nodeBrief(id fleet.NodeID) (v nodeView, written int64, expired time.Time) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	return nodeView{id: id, node: c.nodes[id], drain: c.drains[id], cameras: len(c.byNode[id])}, c.written[id], c.expired[id]
}

// assignedTo returns what is known of the cameras that are assigned to a node or
// that it has not let go of, by id, and of the node itself; nil: it is not
// connected.
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

// isLeaving tells whether a process of a node has said that it is about to stop.
func (c *cache) isLeaving(id fleet.NodeID, bootID string) bool {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n := c.nodes[id]
	return n != nil && n.Registered.GetLeaving() && n.Registered.GetBootId() == bootID
}

// releasedBy returns the cameras, with their generations, that a node is still
// to let go of, and that have ended with its process: another one says hello. The
// node may have been gone meanwhile.
func (c *cache) releasedBy(id fleet.NodeID, h *controlv1.Hello) map[fleet.CameraID]int64 {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if boot := c.boots[id]; boot == "" || boot == h.GetBootId() {
		return nil
	}
	running := make(map[string]bool, len(h.GetRunning()))
	for _, r := range h.GetRunning() {
		running[r.GetCamera()] = true
	}
	released := make(map[fleet.CameraID]int64)
	for camera := range c.byNode[id] {
		v := cameraView{assignment: c.assignments[camera]}
		if !running[camera.Name()] && v.releases(id, v.assignment.FromGeneration) {
			released[camera] = v.assignment.FromGeneration
		}
	}
	return released
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
