package medianode

import (
	"testing"
	"time"

	"fanlight/internal/simcam"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// A camera that has refused its credentials is left alone, whatever else the
// control plane says, until the operator's retries have grown.
func TestRetry(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.cameras.SetFault("lobby", simcam.Unauthorized)
	r.control.want(r.desired("lobby", 1))
	stopped := func() bool {
		all := r.control.seen["cameras/lobby"]
		if len(all) == 0 {
			return false
		}
		s := all[len(all)-1].GetStatus()
		p := s.GetProfiles()
		return s.GetReason() == controlv1.Reason_REASON_AUTHENTICATION_FAILED && s.GetRetryTime() == nil && len(p) == 1 &&
			p[0].GetState() == s.GetState() && p[0].GetReason() == s.GetReason() && p[0].GetMessage() == s.GetMessage() && p[0].GetRetryTime() == nil
	}
	r.control.wait(t, "the camera to be given up", stopped)
	r.cameras.SetFault("lobby", simcam.None)

	d := r.desired("lobby", 1)
	d.Camera.DisplayName = "something else"
	r.control.want(d)
	r.control.waitApplied(t)
	time.Sleep(time.Second) // twice the longest wait of this rig
	if plays := r.cameras.Plays("lobby"); plays != 0 {
		t.Fatalf("%d PLAY requests before the retry", plays)
	}
	d = r.desired("lobby", 1)
	d.Retry = 7
	r.control.want(d)
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)

	// While it is live, a retry changes nothing.
	d = r.desired("lobby", 1)
	d.Retry = 8
	r.control.want(d)
	r.control.waitApplied(t)
	time.Sleep(200 * time.Millisecond)
	if plays := r.cameras.Plays("lobby"); plays != 1 {
		t.Errorf("%d PLAY requests, want 1", plays)
	}
}
