// Package placement decides which node takes which camera. It is pure: no
// clock, no I/O, no randomness; the same input gives the same plan on every
// replica, in whatever order the input comes.
//
// # What it decides
//
// A node may take a camera if it has the labels that the camera asks for, is
// not being drained, and has room for one more camera and for its bit rate.
// Among these the camera goes to the node that is least loaded after taking it.
// Load is the fullest of a node's dimensions: cameras and ingress, which follow
// from what it was given, and viewers and egress, which it reports. Nodes that
// are equally loaded are told apart by the camera's hash, so that a fleet that
// loses a node spreads its cameras over all the others; docs/adr/0005 says how.
// It takes the logarithm of the number of nodes, per camera and per kind of
// node: those of one capacity are a kind.
//
// # Capacity
//
// No camera is ever put on a node beyond its capacity in cameras or ingress.
// Viewers and egress are demand, not supply, and come after the camera has its
// place: they weigh in the load, and a node that has reached its capacity in
// them is given cameras only when no other can take them. They do not keep a
// camera from the only node that could pull it, and no camera is taken from a
// node for them: its viewers would come along.
//
// So is a node that says that it is overloaded, because its processors are too
// busy: it is given cameras only when no other can take them, and loses none.
// A move would cost it more than it saves: until the last viewer has left, the
// camera is pulled and served twice.
//
// # What it leaves alone
//
// A plan is sticky: a camera stays where it is unless it must leave (its node
// is gone, lacks a label that the camera asks for, or the camera is disabled),
// should leave (its node is being drained or over its capacity) and another
// node can take it, or balance asks for it.
// A camera that should leave but that nobody can take stays and is listed in
// [Result.Stranded]: a picture is worth more than a limit.
//
// # Balance
//
// A plan that was allowed moves, and has nothing more urgent to place, moves
// cameras from the most loaded nodes to the least loaded, as when a node has
// joined. A move must leave its new node loaded at least a fifth less than its
// old one was. So every move makes the higher of two loads lower, nothing moves
// back, and moves come to an end: once the most loaded node is ahead of the
// least loaded by no more than a quarter and one camera.
//
// # Two ways in
//
// [Plan] takes everything and returns what should change. A [Planner] keeps
// what it was told and plans from what changed since, for fleets where reading
// 100,000 cameras for the loss of one node would take too long. Both give the
// same result for the same state.
package placement

import (
	"fanlight/internal/fleet"
)

// The reasons for a camera to have no node, beside fleet's.
const (
	NoNode         fleet.Reason = "no_node"          // no node is ready to take it
	NoMatchingNode fleet.Reason = "no_matching_node" // no node has the labels
	NoCapacity     fleet.Reason = "no_capacity"      // every node that might take it is full
	Disabled       fleet.Reason = "disabled"         // it is to have none
)

// What is assumed where nothing is known.
const (
	// AssumedBitrateBPS is a camera's bit rate if it is unknown, in bits per
	// second: a common setting for 1080p H264.
	AssumedBitrateBPS = 4_000_000
	// AssumedCameras is what counts as a full node if it has no limit.
	AssumedCameras = 1_000
	// AssumedIngressBPS counts as a full node if it has no limit, in bits per
	// second.
	AssumedIngressBPS = AssumedCameras * AssumedBitrateBPS
)

// What bounds and weighs.
const (
	// maxBitrateBPS is what a higher bit rate counts as, so that no sum of them
	// overflows.
	maxBitrateBPS = 1 << 40
	// lastResort is added to the load of a node that has as many viewers as it
	// may, or sends them as much, or is overloaded.
	lastResort = 1_000
	// rebalanceShare is how much less than the old node, as a share of the old
	// node's load, the new one must be loaded after a move to be worth a viewer's
	// change of connection.
	rebalanceShare = 0.2
)

// Camera is what placement knows of a camera.
type Camera struct {
	ID       fleet.CameraID
	Selector map[string]string // labels that its node must have; empty: any node
	// BitrateBPS is the bit rate of all its profiles together, in bits per
	// second. 0: unknown, counts as AssumedBitrateBPS.
	BitrateBPS int64
	Disabled   bool // to have no node
	// MaxSessions is how many RTSP sessions the camera accepts; 0: unlimited.
	// A camera that accepts one is never moved for balance alone: the new node
	// could not pull before the old one has let go.
	MaxSessions int
	Moving      bool // on its way already: not to be moved again for balance alone
}

// Node is what placement knows of a node that is alive.
type Node struct {
	ID       fleet.NodeID
	Labels   map[string]string
	Capacity Capacity
	Draining bool // to be given nothing, and to lose what it has
	// Overloaded says that its processors are too busy, as it has found itself: it
	// is given cameras only when no other can take them, and loses none for that.
	Overloaded bool
	Viewers    int   // observed; coarse
	EgressBPS  int64 // observed; coarse, bits per second
}

// Capacity is what a node may be given. 0 in a field: no limit.
type Capacity struct {
	Cameras    int
	IngressBPS int64 // from cameras, bits per second
	EgressBPS  int64 // to viewers, bits per second
	Viewers    int
}

// Assignment is a camera's place.
type Assignment struct {
	Node    fleet.NodeID // empty: none, for Reason
	Reason  fleet.Reason // why there is none; empty if there is one
	Message string       // Reason in a sentence that says what to change
}

// Options change how a plan is made. The zero value is the default.
type Options struct {
	// MaxMoves is how many cameras this plan may move for balance alone, if it
	// places no other. 0: none. Callers subtract the moves still in flight.
	MaxMoves int
}

// Result is what a plan would change.
type Result struct {
	// Assignments has the cameras whose node is to change, and every camera
	// that has none, with the reason; a camera that is not in it stays where
	// it is.
	Assignments map[fleet.CameraID]Assignment
	// Stranded has the cameras that stay on a node they should leave, because
	// no other can take them, with the reason why not.
	Stranded map[fleet.CameraID]fleet.Reason
	// Rebalanced is how many of Assignments are moves for balance alone.
	Rebalanced int
}

// Plan decides where each camera goes. current is where they are: an empty node
// means nowhere, a node that is not in nodes is gone, and entries of cameras
// that are not in cameras count for nothing. It keeps none of its arguments.
//
// If a camera or node is listed twice, the last one counts.
func Plan(cameras []Camera, nodes []Node, current map[fleet.CameraID]fleet.NodeID, opt Options) Result {
	p := newPlanner(len(cameras), len(nodes))
	for i := range nodes {
		p.PutNode(nodes[i])
	}
	for i := range cameras {
		p.PutCamera(cameras[i])
		if at := current[cameras[i].ID]; at != "" {
			p.Assign(cameras[i].ID, at)
		}
	}
	return p.Plan(opt)
}
