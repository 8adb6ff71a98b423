package controlplane

import (
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
	anyNode    bool              // whether any node is connected
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

// status returns what is seen of the camera.
func (v cameraView) status() *controlv1.CameraStatus {
	a := v.assignment
	st := &controlv1.CameraStatus{State: controlv1.CameraStatus_STATE_UNASSIGNED, Generation: generationOf(a)}
	switch {
	case v.camera.Desired.GetDisabled():
		st.State = controlv1.CameraStatus_STATE_DISABLED
		st.Reason = controlv1.Reason_REASON_DISABLED
		st.Message = "the camera is disabled; enable it to have it pulled"
	case nodeOf(a) != "" && v.node == nil:
		st.Reason = controlv1.Reason_REASON_MOVING
		st.Message = "the node that had the camera is not connected; it or another will take it"
	case nodeOf(a) != "" && v.isObserved():
		return proto.CloneOf(v.observed.Status)
	case nodeOf(a) != "":
		st.State = controlv1.CameraStatus_STATE_CONNECTING
		st.Reason = controlv1.Reason_REASON_STARTING
		st.Message = "the camera's node has not said anything of it yet"
		st.Node = a.Node.Name()
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

// isObserved tells whether the observation is of the current assignment.
func (v cameraView) isObserved() bool {
	return v.observed != nil && v.assignment != nil && v.observed.Status.GetGeneration() == v.assignment.Generation
}

// route returns where the camera is served.
func (v cameraView) route() *controlv1.Route {
	a := v.assignment
	r := &controlv1.Route{Camera: v.camera.ID.Name(), State: controlv1.Route_STATE_UNASSIGNED}
	switch {
	case v.camera.Desired.GetDisabled():
		r.State = controlv1.Route_STATE_DISABLED
	case nodeOf(a) != "" && v.node != nil:
		r.State = controlv1.Route_STATE_ASSIGNED
		r.Node = a.Node.Name()
		r.SessionAddress = v.node.Registered.GetSessionAddress()
		r.Generation = a.Generation
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
	id      fleet.NodeID
	node    *store.Node  // nil: not connected
	drain   *store.Drain // nil: not being drained
	cameras int          // assigned to it
}

// message returns the node as operators see it.
func (v nodeView) message() *controlv1.Node {
	n := &controlv1.Node{State: controlv1.Node_STATE_GONE}
	if v.node != nil {
		n = proto.CloneOf(v.node.Registered)
		n.State = controlv1.Node_STATE_READY
	}
	n.Name = v.id.Name()
	n.AssignedCameras = int32(min(v.cameras, 1<<31-1))
	if v.drain != nil {
		n.Drain = proto.CloneOf(v.drain.Drain)
		n.Drain.CamerasLeft = n.AssignedCameras
		if v.node != nil {
			n.State = controlv1.Node_STATE_DRAINING
		}
	}
	return n
}
