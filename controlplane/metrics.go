package controlplane

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/metrics"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// camerasAtOnce is how many cameras a scrape counts before it lets others use
// the cache.
const camerasAtOnce = 500

// Buckets, in seconds.
var (
	planBuckets     = []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}
	failoverBuckets = []float64{.005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60}
)

// Causes of a decision, as they are counted.
const (
	causeNew        = "new"
	causeNodeLost   = "node_lost"
	causeDrain      = "drain"
	causeRebalance  = "rebalance"
	causeUnassigned = "unassigned"
	causeDisabled   = "disabled"
)

// planeMetrics is what a replica tells Prometheus. It counts cameras; series of
// each are their node's.
type planeMetrics struct {
	// Static after newPlaneMetrics.
	server *Server
	set    *metrics.Set

	elections, decisions, nodesLost, leaseLosses *metrics.Counter
	planTime, failoverTime                       *metrics.Histogram

	cluster clusterMetrics
	cameras fleetMetrics

	leading atomic.Bool

	counting sync.Mutex // guards counted; taken before cache.mu
	counted  counted

	mu   sync.Mutex                 // guards the rest
	gone map[fleet.NodeID]time.Time // nodes whose cameras are being given to others, since when
}

// clusterMetrics are of the replica and its store.
type clusterMetrics struct {
	leader, ready, store, outages *metrics.Sampled
	agents, routes                *metrics.Sampled
}

// fleetMetrics are of what the fleet has.
type fleetMetrics struct {
	cameras, nodes, moves, oldest   *metrics.Sampled
	node, assigned                  *metrics.Sampled
	drainLeft, stranded, drainUntil *metrics.Sampled
}

func newPlaneMetrics(s *Server) *planeMetrics {
	set := metrics.NewSet()
	m := &planeMetrics{
		server: s, set: set, gone: make(map[fleet.NodeID]time.Time),
		elections:    set.Counter("fanlight_controlplane_elections_total", "Elections that this replica has won."),
		decisions:    set.Counter("fanlight_controlplane_assignments_total", "Decisions of this replica, as the leader, to give a camera to a node or to none: new, node_lost, drain (also of a node that stops), rebalance (also of a node that is no longer admissible), unassigned, disabled.", "cause"),
		nodesLost:    set.Counter("fanlight_controlplane_nodes_lost_total", "Nodes that were gone while they had cameras, as this replica saw it when it led."),
		leaseLosses:  set.Counter("fanlight_controlplane_lease_losses_total", "Leases that ran out under a node that was connected to this replica: the store was too slow to renew them."),
		planTime:     set.Histogram("fanlight_controlplane_plan_duration_seconds", "Time that a plan took, without storing it.", planBuckets),
		failoverTime: set.Histogram("fanlight_controlplane_failover_duration_seconds", "Time from the end of a lost node's registration until the last of its cameras was given to another, as the leader saw it. The node's grace or lease comes before.", failoverBuckets),
	}
	for _, cause := range []string{causeNew, causeNodeLost, causeDrain, causeRebalance, causeUnassigned, causeDisabled} {
		m.decisions.Zero(cause)
	}
	m.cluster = clusterMetrics{
		leader:  set.Sampled(metrics.KindGauge, "fanlight_controlplane_leader", "1 on the replica that leads: one of them all."),
		ready:   set.Sampled(metrics.KindGauge, "fanlight_controlplane_ready", "1 while the replica serves."),
		store:   set.Sampled(metrics.KindGauge, "fanlight_controlplane_store_connected", "1 while the replica follows the store, which takes a majority of its members."),
		outages: set.Sampled(metrics.KindCounter, "fanlight_controlplane_store_outages_total", "How often the replica has lost the store."),
		agents:  set.Sampled(metrics.KindGauge, "fanlight_controlplane_agents", "Media nodes that have their control stream at this replica."),
		routes:  set.Sampled(metrics.KindGauge, "fanlight_controlplane_watched_routes", "Cameras whose route some gateway watches at this replica."),
	}
	m.cameras = fleetMetrics{
		cameras:    set.Sampled(metrics.KindGauge, "fanlight_controlplane_cameras", "Cameras by state and the reason of docs/errors.md for it, both in lower case. Every replica counts all.", "state", "reason"),
		nodes:      set.Sampled(metrics.KindGauge, "fanlight_controlplane_nodes", "Media nodes: ready, draining (also those that stop), or gone while they are drained or cameras are still assigned to them.", "state"),
		moves:      set.Sampled(metrics.KindGauge, "fanlight_controlplane_moves", "Cameras on their way from one node to another: warming, serving or releasing.", "phase"),
		oldest:     set.Sampled(metrics.KindGauge, "fanlight_controlplane_move_oldest_seconds", "How long the camera that has been longest in the phase has been in it; 0: there is none.", "phase"),
		node:       set.Sampled(metrics.KindGauge, "fanlight_controlplane_node_state", "1 for the state that a node is in: ready, draining or gone.", "node", "state"),
		assigned:   set.Sampled(metrics.KindGauge, "fanlight_controlplane_node_cameras", "Cameras that are assigned to a node, or that it has not let go of.", "node"),
		drainLeft:  set.Sampled(metrics.KindGauge, "fanlight_controlplane_drain_cameras", "Cameras still on a node that an operator drains.", "node"),
		stranded:   set.Sampled(metrics.KindGauge, "fanlight_controlplane_drain_stranded_cameras", "Of these, those that no other node can take.", "node"),
		drainUntil: set.Sampled(metrics.KindGauge, "fanlight_controlplane_drain_deadline_timestamp_seconds", "When the node must be empty, in seconds since 1970.", "node"),
	}
	set.OnScrape(m.sampleCluster)
	set.OnScrape(m.sampleCameras)
	set.OnScrape(m.sampleNodes)
	return m
}

// Metrics returns the replica's metrics, to be registered with those of its
// process.
func (s *Server) Metrics() *metrics.Set { return s.metrics.set }

// led notes that the replica leads until done is called.
func (m *planeMetrics) led() (done func()) {
	m.elections.Inc()
	m.leading.Store(true)
	return func() {
		m.leading.Store(false)
		m.mu.Lock()
		defer m.mu.Unlock()
		clear(m.gone) // the next leader's to measure
	}
}

// planned measures a plan, which began at a time.
func (m *planeMetrics) planned(began time.Time) { m.planTime.Observe(time.Since(began).Seconds()) }

// nodeGone notes that a node is gone, if it had cameras of its own.
func (m *planeMetrics) nodeGone(id fleet.NodeID, now time.Time) {
	if m.server.cache.assignedCount(id) == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, known := m.gone[id]; !known {
		m.gone[id] = now
		m.nodesLost.Inc()
	}
}

// nodeBack notes that a node is there again: it keeps what nobody else has been
// given.
func (m *planeMetrics) nodeBack(id fleet.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.gone, id)
}

// stored counts decisions, of the causes given, and measures the failover of
// nodes whose last camera was among them.
func (m *planeMetrics) stored(causes []string, now time.Time) {
	for _, c := range causes {
		if c != "" {
			m.decisions.Inc(c)
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, since := range m.gone {
		if m.server.cache.assignedCount(id) == 0 {
			m.failoverTime.Observe(now.Sub(since).Seconds())
			delete(m.gone, id)
		}
	}
}

// causes says why decisions are made, in their order, as long as they are not
// stored; "" for one that changes no more than a reason, or how far a move is.
func (c *cache) causes(decisions []store.Decision) []string {
	c.mu.RLock()
	defer c.mu.RUnlock()
	out := make([]string, len(decisions))
	for i := range decisions {
		d := &decisions[i]
		old := nodeOf(c.assignments[d.Camera])
		switch node := c.nodes[old]; {
		case d.Reason == controlv1.Reason_REASON_DISABLED:
			out[i] = causeDisabled
		case d.Node == "":
			out[i] = causeUnassigned
		case d.Node == old:
		case old == "":
			out[i] = causeNew
		case node == nil:
			out[i] = causeNodeLost
		case c.drains[old] != nil || node.Registered.GetLeaving():
			out[i] = causeDrain
		default:
			out[i] = causeRebalance
		}
	}
	return out
}

// assignedCount returns how many cameras are assigned to a node.
func (c *cache) assignedCount(id fleet.NodeID) int {
	c.mu.RLock()
	defer c.mu.RUnlock()
	n := 0
	for camera := range c.byNode[id] {
		if nodeOf(c.assignments[camera]) == id {
			n++
		}
	}
	return n
}

func (m *planeMetrics) sampleCluster(k metrics.Sink) {
	s, cm := m.server, &m.cluster
	k.Bool(cm.leader, m.leading.Load())
	k.Bool(cm.ready, s.Ready() == nil)
	s.mu.Lock()
	agents := len(s.agents)
	s.mu.Unlock()
	k.Put(cm.agents, float64(agents))
	c := s.cache
	c.mu.RLock()
	outages, following, routes := c.outages, c.following, len(c.interest.routes)
	c.mu.RUnlock()
	k.Bool(cm.store, following)
	k.Put(cm.outages, float64(outages))
	k.Put(cm.routes, float64(routes))
}

// stateReason is what cameras are counted by.
type stateReason struct {
	state  controlv1.CameraStatus_State
	reason controlv1.Reason
}

// moveAge is what moves of a phase are counted by.
type moveAge struct {
	count  int
	oldest time.Time
}

// count counts the cameras, some at a time, and their moves.
func (c *cache) count() (map[stateReason]int, map[store.Move]moveAge) {
	c.mu.RLock()
	ids := make([]fleet.CameraID, 0, len(c.cameras))
	for id := range c.cameras {
		ids = append(ids, id)
	}
	c.mu.RUnlock()
	states, moves := make(map[stateReason]int), make(map[store.Move]moveAge)
	for part := range slices.Chunk(ids, camerasAtOnce) {
		c.mu.RLock()
		for _, id := range part {
			v, ok := c.cameraLocked(id)
			if !ok {
				continue
			}
			state, reason := v.summary()
			states[stateReason{state, reason}]++
			if a := v.assignment; a != nil && a.Move != store.NoMove {
				m := moves[a.Move]
				m.count++
				if t := a.MoveTime.AsTime(); m.oldest.IsZero() || t.Before(m.oldest) {
					m.oldest = t
				}
				moves[a.Move] = m
			}
		}
		c.mu.RUnlock()
	}
	return states, moves
}

// lowerEnum returns an enum's name as a label: in lower case, without its
// prefix; "" for its zero.
func lowerEnum(name, prefix string) string {
	if name = strings.ToLower(strings.TrimPrefix(name, prefix)); name == "unspecified" {
		return ""
	}
	return name
}

// counted is what there was at a revision: while nothing changes, a scrape costs
// nothing.
type counted struct {
	revision int64
	states   map[stateReason]int // nil: not counted yet
	moves    map[store.Move]moveAge
}

// count returns what there is now.
func (m *planeMetrics) count() counted {
	m.counting.Lock()
	defer m.counting.Unlock()
	c := m.server.cache
	c.mu.RLock()
	revision := c.revision
	c.mu.RUnlock()
	if m.counted.states == nil || m.counted.revision != revision {
		states, moves := c.count()
		m.counted = counted{revision, states, moves} // or later; then it is counted again
	}
	return m.counted
}

func (m *planeMetrics) sampleCameras(k metrics.Sink) {
	now := m.count()
	for s, n := range now.states {
		k.Put(m.cameras.cameras, float64(n), lowerEnum(s.state.String(), "STATE_"), lowerEnum(s.reason.String(), "REASON_"))
	}
	for _, phase := range []store.Move{store.Warming, store.Serving, store.Releasing} {
		move, age := now.moves[phase], 0.0
		if move.count > 0 {
			age = max(0, time.Since(move.oldest).Seconds())
		}
		k.Put(m.cameras.moves, float64(move.count), phase.String())
		k.Put(m.cameras.oldest, age, phase.String())
	}
}

// Node states, as they are counted.
const (
	nodeReady    = "ready"
	nodeDraining = "draining"
	nodeGone     = "gone"
)

func (m *planeMetrics) sampleNodes(k metrics.Sink) {
	c, fm := m.server.cache, &m.cameras
	counts := map[string]int{nodeReady: 0, nodeDraining: 0, nodeGone: 0}
	for _, id := range c.everyNode() {
		v, _ := c.node(id)
		state := nodeReady
		switch {
		case v.node == nil:
			state = nodeGone
		case v.drain != nil || v.node.Registered.GetLeaving():
			state = nodeDraining
		}
		counts[state]++
		k.Put(fm.node, 1, string(id), state)
		k.Put(fm.assigned, float64(v.cameras), string(id))
		if v.drain == nil {
			continue
		}
		drain := v.message().GetDrain()
		k.Put(fm.drainLeft, float64(drain.GetCamerasLeft()), string(id))
		k.Put(fm.stranded, float64(drain.GetCamerasStranded()), string(id))
		k.Put(fm.drainUntil, float64(drain.GetDeadline().AsTime().Unix()), string(id))
	}
	for state, n := range counts {
		k.Put(fm.nodes, float64(n), state)
	}
}

// everyNode returns the nodes that are connected, being drained, or gone with
// cameras that nobody else has been given.
func (c *cache) everyNode() []fleet.NodeID {
	ids := c.nodeIDs()
	c.mu.RLock()
	for id := range c.byNode {
		ids = append(ids, id)
	}
	c.mu.RUnlock()
	slices.Sort(ids)
	return slices.Compact(ids)
}

// summary returns the state and the reason that status has.
func (v cameraView) summary() (controlv1.CameraStatus_State, controlv1.Reason) {
	st := v.observedOrUnseen()
	return st.GetState(), st.GetReason()
}

// observedOrUnseen is status without the copy.
func (v cameraView) observedOrUnseen() *controlv1.CameraStatus {
	if v.isSeen() {
		return v.observed.Status
	}
	return v.unseen()
}
