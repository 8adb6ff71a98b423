package medianode

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"fanlight/internal/metrics"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// scrape returns what a scrape of the node gives.
func (r *rig) scrape(t *testing.T) string {
	t.Helper()
	registry, err := metrics.NewRegistry("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := registry.Register(r.node.Metrics()); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	registry.Handler(nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	if w.Code != http.StatusOK {
		t.Fatalf("scrape: %d", w.Code)
	}
	return w.Body.String()
}

// exports waits until a scrape has all the lines.
func (r *rig) exports(t *testing.T, lines ...string) {
	t.Helper()
	for _, line := range lines {
		eventually(t, line, func() bool { return strings.Contains(r.scrape(t), line+"\n") })
	}
}

// TestMetricsOfACamera follows a camera through its life on a node, with a
// viewer.
func TestMetricsOfACamera(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{Capacity: Capacity{Cameras: 7, IngressBPS: 8000}})
	r.exports(t, `fanlight_node_control_connected{node="node-1"} 1`, `fanlight_node_cameras{node="node-1"} 0`, `fanlight_node_stopping{node="node-1"} 0`,
		`fanlight_node_capacity_cameras{node="node-1"} 7`, `fanlight_node_capacity_sessions{node="node-1"} 1000`, `fanlight_node_capacity_ingress_bytes_per_second{node="node-1"} 1000`)
	if strings.Contains(r.scrape(t), "fanlight_node_capacity_egress_bytes_per_second{") {
		t.Error("a capacity without a limit")
	}
	r.control.want(r.desired("lobby", 1))
	r.exports(t, `fanlight_camera_up{camera="lobby",node="node-1"} 1`, `fanlight_camera_state{camera="lobby",node="node-1",reason="",state="live"} 1`,
		`fanlight_camera_info{audio_codec="",camera="lobby",height="360",node="node-1",transport="tcp",video_codec="h264",width="640"} 1`, `fanlight_node_cameras{node="node-1"} 1`)

	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1, Trickle: true}, viewertest.Config{})
	w.waitFrames(t, 10)
	r.exports(t, `fanlight_node_sessions{node="node-1"} 1`, `fanlight_camera_viewers{camera="lobby",node="node-1"} 1`,
		`fanlight_node_session_opens_total{node="node-1",result="ok"} 1`, `fanlight_node_session_ends_total{node="node-1",reason="left"} 0`)
	w.leave()
	r.exports(t, `fanlight_node_sessions{node="node-1"} 0`, `fanlight_node_session_ends_total{node="node-1",reason="left"} 1`)

	stranger := r.watch(t, &mediav1.Open{Camera: "cameras/yard", Generation: 0}, viewertest.Config{})
	_ = stranger.ended(t)
	r.exports(t, `fanlight_node_session_opens_total{node="node-1",result="camera_not_found"} 1`)

	r.control.want()
	eventually(t, "no series of the camera", func() bool { return !strings.Contains(r.scrape(t), `camera="lobby"`) })
	r.exports(t, `fanlight_node_cameras{node="node-1"} 0`)
}

// TestMetricsOfFailures counts why a camera is not there.
func TestMetricsOfFailures(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	d := r.desired("lobby", 1)
	d.Camera.Profiles[0].Url = strings.Replace(d.Camera.Profiles[0].Url, "/lobby", "/nothing-here", 1)
	r.control.want(d)
	r.exports(t, `fanlight_camera_up{camera="lobby",node="node-1"} 0`)
	eventually(t, "a failure", func() bool {
		return strings.Contains(r.scrape(t), `fanlight_camera_failures_total{camera="lobby",node="node-1",reason="stream_not_found"}`)
	})
}

// TestOrphansAreCounted counts a session whose gateway dies.
func TestOrphansAreCounted(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.desired("lobby", 1))
	r.exports(t, `fanlight_camera_up{camera="lobby",node="node-1"} 1`)
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1, Trickle: true}, viewertest.Config{})
	w.waitFrames(t, 1)
	w.vanish()
	r.exports(t, `fanlight_node_orphaned_sessions{node="node-1"} 1`, `fanlight_node_sessions{node="node-1"} 1`)
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	r.exports(t, `fanlight_node_orphaned_sessions{node="node-1"} 0`, `fanlight_node_sessions{node="node-1"} 0`)
}

// What cameras' streams have counted stays counted when they are gone.
func TestSumsOutliveCameras(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.desired("lobby", 1))
	r.exports(t, `fanlight_camera_up{camera="lobby",node="node-1"} 1`)
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1, Trickle: true}, viewertest.Config{})
	w.waitFrames(t, 5)
	before, engine := r.node.metrics.lost(), r.node.engine.Stats()
	r.control.want()
	_ = w.ended(t)
	eventually(t, "no camera", func() bool {
		r.node.metrics.mu.Lock()
		defer r.node.metrics.mu.Unlock()
		return len(r.node.metrics.cameras) == 0
	})
	after := r.node.metrics.lost()
	if after.drops.AwaitingKeyframe < before.drops.AwaitingKeyframe || after.discards != before.discards {
		t.Errorf("sums were %+v, and are %+v when the camera is gone", before, after)
	}
	if now := r.node.engine.Stats(); now.Total.Packets < engine.Total.Packets || engine.Total.Packets == 0 || now.Sessions != 0 {
		t.Errorf("sessions had sent %+v, and when they are gone %+v", engine, now)
	}
}
