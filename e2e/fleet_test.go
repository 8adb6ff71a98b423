//go:build e2e

package e2e

import (
	"testing"

	"fanlight/internal/simcam"
)

// TestFleet runs the parts as processes: every gateway shows the cameras of
// every node.
func TestFleet(t *testing.T) {
	s := separate(t)
	cameras := map[string]*rtspCamera{
		"simulated": simCamera(startSimcam(t, simcam.Config{Cameras: []string{"cam"}}), "cam"),
		"gst":       gstCamera(t, "udp", "digest"),
		"vlc":       vlcCamera(t),
	}
	on := map[string]string{"simulated": "node-a", "gst": "node-b", "vlc": "node-a"}
	for name, c := range cameras {
		s.add(t, name, c, "--node-selector", "name="+on[name])
	}
	for name := range cameras {
		s.awaitCamera(t, name, "STATE_LIVE", "")
		if got, want := s.camera(t, name).Status.Node, "nodes/"+on[name]; got != want {
			t.Errorf("camera %s is on %s, want %s", name, got, want)
		}
	}
	for i, gateway := range s.gateways {
		page := open(t, gateway+"/")
		for name := range cameras {
			page.awaitMoving(t, name)
			if got, want := s.stats(t, i, name).Node, on[name]; got != want {
				t.Errorf("gateway %d says that %s is on %q, want %q", i+1, name, got, want)
			}
		}
		page.screenshot(t, "wall.png")
	}
	if t.Failed() {
		return
	}
	// A camera that anyone may take, seen through both gateways' pages at once.
	s.stop(t)
}

// TestSpread lets placement choose: two cameras, two nodes, one each.
func TestSpread(t *testing.T) {
	s := separate(t)
	srv := startSimcam(t, simcam.Config{Cameras: []string{"cam-0", "cam-1"}})
	nodes := make(map[string]bool)
	for _, name := range []string{"cam-0", "cam-1"} {
		s.add(t, name, simCamera(srv, name))
		s.awaitCamera(t, name, "STATE_LIVE", "")
		nodes[s.camera(t, name).Status.Node] = true
		if got := srv.Sessions(name); got != 1 {
			t.Errorf("%d RTSP sessions at %s, want 1", got, name)
		}
	}
	if len(nodes) != 2 {
		t.Errorf("two cameras went to %v, want one to each node", nodes)
	}
}
