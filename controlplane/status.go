package controlplane

import (
	"fmt"
	"math"
	"strconv"

	"google.golang.org/protobuf/proto"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// cameraView is what is known of a camera at one moment.
type cameraView struct {
	camera     *store.Camera
	assignment *store.Assignment // nil: the leader has not looked yet
	observed   *store.Observed   // nil: nothing yet; it may be of an earlier assignment
	node       *store.Node       // that it is assigned to; nil: none, or gone
	from       *store.Node       // that has not let go of it yet; nil: none, or gone
	anyNode    bool              // whether any node is connected
	retry      int64             // grows when an operator wants the camera tried at once
}

// message returns the camera as operators see it.
func (v cameraView) message() *controlv1.Camera {
	c := proto.CloneOf(v.camera.Desired)
	c.Password = ""
	c.PasswordSet = len(v.camera.Sealed) > 0
	c.Etag = etag(v.camera.Revision)
	c.Status = v.status()
	return c
}

// etag is the etag of a camera at a revision of its key.
func etag(revision int64) string { return strconv.FormatInt(revision, 16) }

// status returns a copy of what is seen of the camera.
func (v cameraView) status() *controlv1.CameraStatus {
	if v.isSeen() {
		return proto.CloneOf(v.observed.Status)
	}
	return v.unseen()
}

// state returns the state that status has.
func (v cameraView) state() controlv1.CameraStatus_State {
	if v.isSeen() {
		return v.observed.Status.GetState()
	}
	return v.unseen().GetState()
}

// isSeen tells whether the camera's node is there and has said something of it.
func (v cameraView) isSeen() bool {
	return !v.camera.Desired.GetDisabled() && v.serving() != nil && v.isObserved()
}

// unseen returns the status of a camera that is not isSeen.
func (v cameraView) unseen() *controlv1.CameraStatus {
	a := v.assignment
	st := &controlv1.CameraStatus{State: controlv1.CameraStatus_STATE_UNASSIGNED, Generation: generationOf(a)}
	switch {
	case v.camera.Desired.GetDisabled():
		st.State = controlv1.CameraStatus_STATE_DISABLED
		st.Reason = controlv1.Reason_REASON_DISABLED
		st.Message = "the camera is disabled; enable it to have it pulled"
	case a != nil && a.Move == store.Releasing && nodeOf(a) != "":
		st.Reason = controlv1.Reason_REASON_MOVING
		st.Message = fmt.Sprintf("the camera accepts one RTSP session: node %s is to let go of it before node %s may pull it", a.From, a.Node)
		st.StateTime = a.MoveTime
	case nodeOf(a) != "" && v.serving() == nil:
		st.Reason = controlv1.Reason_REASON_MOVING
		st.Message = "the node that had the camera is not connected; it or another will take it"
	case nodeOf(a) != "":
		st.State = controlv1.CameraStatus_STATE_CONNECTING
		st.Reason = controlv1.Reason_REASON_STARTING
		st.Message = "the camera's node has not said anything of it yet"
		st.Node = v.serving().ID.Name()
		st.StateTime = a.Time
	case !v.anyNode:
		st.Reason = controlv1.Reason_REASON_NO_NODE
		st.Message = "no media node is connected"
	case a == nil || a.Reason == controlv1.Reason_REASON_DISABLED:
		st.Reason = controlv1.Reason_REASON_STARTING
		st.Message = "the camera is being assigned to a node"
	default:
		st.Reason = a.Reason
		st.Message = a.Message
		st.StateTime = a.Time
	}
	return st
}

// nodeOf returns the node of an assignment, which may be nil.
func nodeOf(a *store.Assignment) fleet.NodeID {
	if a == nil {
		return ""
	}
	return a.Node
}

// generationOf returns the generation of an assignment, which may be nil.
func generationOf(a *store.Assignment) int64 {
	if a == nil {
		return 0
	}
	return a.Generation
}

// serving returns the node that the camera's route leads to: while the camera is
// on its way, the one that it comes from for as long as that is connected. nil:
// there is none.
func (v cameraView) serving() *store.Node {
	switch {
	case v.assignment == nil || v.assignment.Move == store.Releasing:
		return nil
	case v.assignment.Move == store.Warming && v.from != nil:
		return v.from
	}
	return v.node
}

// isObserved tells whether the observation is of the current assignment, or,
// while the new node warms up, of the one before.
func (v cameraView) isObserved() bool {
	return v.observed != nil && v.assignment != nil &&
		(v.observedNew() || v.assignment.Move == store.Warming && v.from != nil && v.observed.Status.GetGeneration() == v.assignment.FromGeneration)
}

// observedNew tells whether the observation is of the current assignment.
func (v cameraView) observedNew() bool {
	return v.observed != nil && v.observed.Status.GetGeneration() == generationOf(v.assignment)
}

// isLive tells whether the camera was LIVE under a generation when last seen.
func (v cameraView) isLive(generation int64) bool {
	return v.observed != nil && v.observed.Status.GetGeneration() == generation &&
		v.observed.Status.GetState() == controlv1.CameraStatus_STATE_LIVE
}

// fits tells whether a node has the labels that the camera asks for.
func (v cameraView) fits(n *store.Node) bool {
	for key, want := range v.camera.Desired.GetNodeSelector() {
		if have, ok := n.Registered.GetLabels()[key]; !ok || have != want {
			return false
		}
	}
	return true
}

// verdict is what becomes of a node's report.
type verdict int

const (
	drop  verdict = iota // of an assignment that the node does not have
	later                // does not count yet
	keep
)

// judge returns what becomes of a report of a node. While a camera is on its
// way, the old node's reports count until the new one's says LIVE.
func (v cameraView) judge(node fleet.NodeID, generation int64, state controlv1.CameraStatus_State) verdict {
	a := v.assignment
	if a == nil || node == "" {
		return drop
	}
	isNew := a.Node == node && a.Generation == generation
	isOld := a.From == node && a.FromGeneration == generation
	switch {
	case a.Move == store.Warming && isNew:
		if state == controlv1.CameraStatus_STATE_LIVE {
			return keep
		}
		return later
	case a.Move == store.Warming && isOld && !v.isLive(a.Generation):
		return keep
	case isNew && a.Move != store.Releasing && a.Move != store.Warming:
		return keep
	}
	return drop
}

// part returns a node's part in the camera, and the generation under which it
// has it; ok is false if it is not to have it. A disabled camera that accepts one
// RTSP session stays until the leader waits for its node to let go: what the node
// says of that before would count for nothing.
func (v cameraView) part(node fleet.NodeID) (part controlv1.DesiredCamera_Part, generation int64, ok bool) {
	a := v.assignment
	switch {
	case a == nil, a.Move == store.Releasing,
		v.camera.Desired.GetDisabled() && (v.camera.Desired.GetMaxSessions() != 1 || a.Move != store.NoMove):
		return 0, 0, false
	case a.Node == node && a.Move == store.Warming:
		return controlv1.DesiredCamera_PART_TAKE_OVER, a.Generation, true
	case a.Node == node:
		return controlv1.DesiredCamera_PART_UNSPECIFIED, a.Generation, true
	case a.From == node && a.Move == store.Warming:
		return controlv1.DesiredCamera_PART_AWAIT_HAND_OVER, a.FromGeneration, true
	case a.From == node && a.Move == store.Serving:
		return controlv1.DesiredCamera_PART_HAND_OVER, a.FromGeneration, true
	}
	return 0, 0, false
}

// releases tells whether a node that has let go of the camera under a generation
// ends the camera's move by that.
func (v cameraView) releases(node fleet.NodeID, generation int64) bool {
	a := v.assignment
	return a != nil && node != "" && a.From == node && a.FromGeneration == generation &&
		(a.Move == store.Serving || a.Move == store.Releasing)
}

// route returns where the camera is served.
func (v cameraView) route() *controlv1.Route {
	r := &controlv1.Route{Camera: v.camera.ID.Name(), State: controlv1.Route_STATE_UNASSIGNED}
	at := v.serving()
	switch {
	case v.camera.Desired.GetDisabled():
		r.State = controlv1.Route_STATE_DISABLED
	case at != nil:
		r.State = controlv1.Route_STATE_ASSIGNED
		r.Node = at.ID.Name()
		r.SessionAddress = at.Registered.GetSessionAddress()
		r.Generation = v.assignment.Generation
		if at == v.from {
			r.Generation = v.assignment.FromGeneration
		}
		return r
	}
	st := v.status()
	r.Reason, r.Message = st.GetReason(), st.GetMessage()
	return r
}

// noRoute is the route of a camera that does not exist. name may be anything.
func noRoute(name string) *controlv1.Route {
	return &controlv1.Route{
		Camera:  name,
		State:   controlv1.Route_STATE_NOT_FOUND,
		Message: fleet.CameraNotFound.Error(),
	}
}

// nodeView is what is known of a node at one moment.
type nodeView struct {
	id    fleet.NodeID
	node  *store.Node  // nil: not connected
	drain *store.Drain // nil: not being drained
	// cameras are those assigned to it, and those that it has not let go of yet.
	cameras int
	// Counted only if the node is being drained.
	moving          int    // on their way, or handed over and not let go of
	stranded        int    // should leave, and can't
	strandedMessage string // of one of them
}

// leaves tells whether the node's cameras are to go elsewhere.
func (v nodeView) leaves() bool {
	return v.drain != nil || v.node != nil && v.node.Registered.GetLeaving()
}

// message returns the node as operators see it.
func (v nodeView) message() *controlv1.Node {
	n := &controlv1.Node{State: controlv1.Node_STATE_GONE}
	if v.node != nil {
		n = proto.CloneOf(v.node.Registered)
		n.State = controlv1.Node_STATE_READY
		if v.leaves() {
			n.State = controlv1.Node_STATE_DRAINING
		}
	}
	n.Name = v.id.Name()
	n.AssignedCameras = count32(v.cameras)
	if v.drain != nil {
		n.Drain = proto.CloneOf(v.drain.Drain)
		n.Drain.CamerasLeft = n.AssignedCameras
		n.Drain.CamerasMoving = count32(v.moving)
		n.Drain.CamerasStranded = count32(v.stranded)
		n.Drain.StrandedMessage = v.strandedMessage
	}
	return n
}

func count32(n int) int32 { return int32(min(n, math.MaxInt32)) }
