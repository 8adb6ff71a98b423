package controlplane_test

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"fanlight/internal/metrics"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// has tells whether a scrape of a replica has a line.
func (r *replica) exports(line string) bool {
	r.t.Helper()
	registry, err := metrics.NewRegistry("test")
	if err != nil {
		r.t.Fatal(err)
	}
	if err := registry.Register(r.server.Metrics()); err != nil {
		r.t.Fatal(err)
	}
	w := httptest.NewRecorder()
	registry.Handler(nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	return strings.Contains(w.Body.String(), line+"\n")
}

// TestMetricsOfAFailover follows two cameras from a node that ends to another.
func TestMetricsOfAFailover(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	r.create(camera("yard"))
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n1.until("lobby", "yard")
	for _, line := range []string{
		`fanlight_controlplane_leader 1`,
		`fanlight_controlplane_elections_total 1`,
		`fanlight_controlplane_ready 1`,
		`fanlight_controlplane_store_connected 1`,
		`fanlight_controlplane_agents 1`,
		`fanlight_controlplane_assignments_total{cause="new"} 2`,
		`fanlight_controlplane_cameras{reason="starting",state="connecting"} 2`,
		`fanlight_controlplane_failover_duration_seconds_count 0`,
	} {
		r.eventually(line, func() bool { return r.exports(line) })
	}
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	n2.until()
	n1.cancel()
	n2.until("lobby", "yard")
	for _, line := range []string{
		`fanlight_controlplane_nodes_lost_total 1`,
		`fanlight_controlplane_assignments_total{cause="node_lost"} 2`,
		`fanlight_controlplane_failover_duration_seconds_count 1`,
		`fanlight_controlplane_agents 1`,
		`fanlight_controlplane_nodes{state="ready"} 1`,
		`fanlight_controlplane_nodes{state="gone"} 0`,
	} {
		r.eventually(line, func() bool { return r.exports(line) })
	}
}

// TestMetricsOfADrain finds a drain that nobody can end.
func TestMetricsOfADrain(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n1.until("lobby")
	r.drain("n1", wait)
	for _, line := range []string{
		`fanlight_controlplane_nodes{state="draining"} 1`,
		`fanlight_controlplane_drain_cameras{node="n1"} 1`,
		`fanlight_controlplane_drain_stranded_cameras{node="n1"} 1`,
	} {
		r.eventually(line, func() bool { return r.exports(line) })
	}
	r.undrain("n1")
	r.eventually("no drain", func() bool { return r.exports(`fanlight_controlplane_nodes{state="draining"} 0`) })
	if r.exports(`fanlight_controlplane_drain_cameras{node="n1"} 1`) {
		t.Error("the drain has ended and is still exported")
	}
}
