package controlplane_test

import (
	"errors"
	"testing"

	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// RetryCamera grows what the camera's node is told, and leaves alone what
// operators and placement see of the camera.
func TestRetryCamera(t *testing.T) {
	r := start(t, options{store: store.Config{DataDir: t.TempDir()}})
	created := r.create(camera("lobby"))
	r.create(camera("gate"))
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	set := n.until("lobby", "gate")
	before := set["cameras/lobby"]
	if before.GetRetry() != 0 {
		t.Errorf("nobody has retried, and the node is told %d", before.GetRetry())
	}
	retry := func(name string) (*controlv1.Camera, error) {
		resp, err := r.cameras.RetryCamera(r.ctx(), &controlv1.RetryCameraRequest{Name: name})
		return resp.GetCamera(), err
	}
	last := int64(0)
	for range 3 {
		c, err := retry("cameras/lobby")
		if err != nil {
			t.Fatal(err)
		}
		if c.GetEtag() != created.GetEtag() || !c.GetUpdateTime().AsTime().Equal(created.GetUpdateTime().AsTime()) {
			t.Errorf("the camera has changed: etag %s, updated %v", c.GetEtag(), c.GetUpdateTime())
		}
		set := n.until("lobby", "gate")
		if got := set["cameras/lobby"]; got.GetRetry() <= last || got.GetGeneration() != before.GetGeneration() {
			t.Errorf("after a retry: %d under generation %d, want more than %d under %d", got.GetRetry(), got.GetGeneration(), last, before.GetGeneration())
		}
		if got := set["cameras/gate"].GetRetry(); got != 0 {
			t.Errorf("the other camera: %d", got)
		}
		last = set["cameras/lobby"].GetRetry()
	}

	// What operators hold is good still.
	if _, err := r.cameras.UpdateCamera(r.ctx(), &controlv1.UpdateCameraRequest{
		Camera:     &controlv1.Camera{Name: "cameras/lobby", DisplayName: "x", Etag: created.GetEtag()},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}},
	}); err != nil {
		t.Errorf("update by the etag from before: %v", err)
	}
	if got := n.until("lobby", "gate")["cameras/lobby"].GetRetry(); got != last {
		t.Errorf("after an update: %d, want %d", got, last)
	}

	// A camera that is created anew has not been retried; a retry of it is one
	// more than any before.
	if _, err := r.cameras.DeleteCamera(r.ctx(), &controlv1.DeleteCameraRequest{Name: "cameras/lobby"}); err != nil {
		t.Fatal(err)
	}
	if _, err := retry("cameras/lobby"); !errors.Is(err, fleet.CameraNotFound) {
		t.Errorf("retry of a camera that was deleted: %v", err)
	}
	n.until("gate")
	r.create(camera("lobby"))
	if got := n.until("lobby", "gate")["cameras/lobby"].GetRetry(); got != 0 {
		t.Errorf("created anew: %d", got)
	}
	if _, err := retry("cameras/lobby"); err != nil {
		t.Fatal(err)
	}
	if got := n.until("lobby", "gate")["cameras/lobby"].GetRetry(); got <= last {
		t.Errorf("created anew and retried: %d after %d", got, last)
	}
	for _, name := range []string{"", "lobby", "cameras/", "cameras/A"} {
		if _, err := retry(name); !errors.Is(err, fleet.InvalidArgument) {
			t.Errorf("retry of %q: %v", name, err)
		}
	}
}

// A retry outlives the control plane.
func TestRetryIsDurable(t *testing.T) {
	dir := t.TempDir()
	r := start(t, options{store: store.Config{DataDir: dir}})
	r.create(camera("lobby"))
	if _, err := r.cameras.RetryCamera(r.ctx(), &controlv1.RetryCameraRequest{Name: "cameras/lobby"}); err != nil {
		t.Fatal(err)
	}
	got := r.connect(&controlv1.Hello{Node: "nodes/n1"}).until("lobby")["cameras/lobby"].GetRetry()
	r.stop()
	r = start(t, options{store: store.Config{DataDir: dir}})
	if after := r.connect(&controlv1.Hello{Node: "nodes/n1", BootId: "another"}).until("lobby")["cameras/lobby"].GetRetry(); got == 0 || after != got {
		t.Errorf("%d, then %d after a restart", got, after)
	}
}

// The stored password goes to no ONVIF service that it has not gone to before.
func TestONVIFURLAndThePassword(t *testing.T) {
	r := start(t, options{})
	c := camera("lobby")
	c.Username, c.Password = "admin", "open sesame"
	r.create(c)
	update := func(onvif, password string) error {
		req := &controlv1.UpdateCameraRequest{
			Camera:     &controlv1.Camera{Name: "cameras/lobby", OnvifUrl: onvif, Password: password},
			UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"onvif_url"}},
		}
		if password != "" {
			req.UpdateMask.Paths = append(req.UpdateMask.Paths, "password")
		}
		_, err := r.cameras.UpdateCamera(r.ctx(), req)
		return err
	}
	for _, tt := range []struct {
		onvif, password string
		want            error
	}{
		{"none", "", nil},
		{"http://192.0.2.1/onvif/other", "", nil}, // where it is looked for without a URL
		{"http://192.0.2.66/onvif/device_service", "", fleet.InvalidArgument},
		{"https://192.0.2.1/onvif/device_service", "", fleet.InvalidArgument},
		{"https://192.0.2.1/onvif/device_service", "open sesame", nil},
		{"https://192.0.2.1:443/onvif/x", "", nil},
		{"", "", nil},
		{"rtsp://192.0.2.1/", "", fleet.InvalidURL},
	} {
		if err := update(tt.onvif, tt.password); !errors.Is(err, tt.want) {
			t.Errorf("%q: %v, want %v", tt.onvif, err, tt.want)
		} else if got := r.get("lobby").GetOnvifUrl(); tt.want == nil && got != tt.onvif {
			t.Errorf("stored: %q, want %q", got, tt.onvif)
		}
	}
	if err := update("http://192.0.2.1:8080/onvif", "open sesame"); err != nil {
		t.Fatal(err)
	}
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	if got := n.until("lobby")["cameras/lobby"].GetCamera().GetOnvifUrl(); got != "http://192.0.2.1:8080/onvif" {
		t.Errorf("the node got %q", got)
	}
}
