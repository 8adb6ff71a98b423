package controlplane

import (
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// desired is the desired set of a stream. Owned by agent.run.
type desired struct {
	agent   *agent
	sent    *controlv1.DesiredSet // the last one; nil: none
	cameras map[fleet.CameraID]desiredCamera
}

// desiredCamera is a camera of the set that was sent last.
type desiredCamera struct {
	message  *controlv1.DesiredCamera
	revision int64 // of the camera
}

// send sends the desired set, if it is not the one sent last. What has not
// changed of it is not made anew.
func (d *desired) send() error {
	a := d.agent
	views, node := a.server.cache.assignedTo(a.id)
	if a.replaced(node) {
		return errReplaced
	}
	set := &controlv1.DesiredSet{Generation: 1, Cameras: make([]*controlv1.DesiredCamera, 0, len(views))}
	cameras := make(map[fleet.CameraID]desiredCamera, len(views))
	same := d.sent != nil
	for _, v := range views {
		part, generation, ok := v.part(a.id)
		if !ok {
			continue
		}
		c := d.cameras[v.camera.ID]
		if c.message == nil || c.revision != v.camera.Revision || c.message.GetGeneration() != generation || c.message.GetPart() != part ||
			c.message.GetRetry() != v.retry {
			c, same = d.camera(v, part, generation), false
		}
		cameras[v.camera.ID] = c
		set.Cameras = append(set.Cameras, c.message)
	}
	if same && len(cameras) == len(d.cameras) {
		return nil
	}
	if d.sent != nil {
		set.Generation = d.sent.GetGeneration() + 1
	}
	if err := a.stream.Send(&controlv1.SyncResponse{Message: &controlv1.SyncResponse_DesiredSet{DesiredSet: set}}); err != nil {
		return fmt.Errorf("send: %w", err)
	}
	d.sent, d.cameras = set, cameras
	return nil
}

// camera makes what the node is told of a camera.
func (d *desired) camera(v cameraView, part controlv1.DesiredCamera_Part, generation int64) desiredCamera {
	a := d.agent
	password, err := a.server.store.Unseal(v.camera.ID, v.camera.Sealed)
	if err != nil {
		a.log.Error("camera left without its password", "camera", v.camera.ID, "error", err)
	}
	c := proto.CloneOf(v.camera.Desired)
	c.PasswordSet = len(v.camera.Sealed) > 0
	c.Etag = etag(v.camera.Revision)
	return desiredCamera{
		message: &controlv1.DesiredCamera{
			Camera: c, Password: password, Generation: generation, Part: part, LastTransport: v.lastTransport(), Retry: v.retry,
		},
		revision: v.camera.Revision,
	}
}

// lastTransport returns how the camera's RTP came when that was last seen.
func (v cameraView) lastTransport() controlv1.Profile_Transport {
	if v.observed == nil || len(v.observed.Status.GetProfiles()) == 0 {
		return controlv1.Profile_TRANSPORT_UNSPECIFIED
	}
	return v.observed.Status.GetProfiles()[0].GetTransport()
}

// pause returns how long to wait before the next set.
func (d *desired) pause() time.Duration {
	return setEvery + time.Duration(len(d.cameras))*setEveryCamera
}

// generation returns the assignment's generation of a camera in the set sent
// last; 0: it is not in it.
func (d *desired) generation(id fleet.CameraID) int64 {
	return d.cameras[id].message.GetGeneration()
}
