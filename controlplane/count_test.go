package controlplane

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	"fanlight/internal/metrics"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// exported returns what a scrape of a set gives.
func exported(t testing.TB, set *metrics.Set) string {
	t.Helper()
	r, err := metrics.NewRegistry("test")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Register(set); err != nil {
		t.Fatal(err)
	}
	w := httptest.NewRecorder()
	r.Handler(nil).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	if w.Code != http.StatusOK {
		t.Fatalf("scrape: %d %s", w.Code, w.Body)
	}
	return w.Body.String()
}

// filled is a server whose copy of the state has cameras on nodes: every tenth
// has none, every eleventh has failed, every hundredth is on its way.
func filled(cameras, nodes int) *Server {
	s := &Server{cache: newCache(nil, nil), agents: make(map[fleet.NodeID]*agent)}
	s.metrics = newPlaneMetrics(s)
	node := func(i int) fleet.NodeID { return fleet.NodeID(fmt.Sprintf("n%d", i%nodes)) }
	var events []store.Event
	for i := range nodes {
		events = append(events, store.Event{Entry: store.Entry{Node: &store.Node{ID: node(i), Registered: &controlv1.Node{SessionAddress: "192.0.2.1:1"}, Revision: 1}}})
	}
	for i := range cameras {
		id := fleet.CameraID(fmt.Sprintf("c%d", i))
		a := &store.Assignment{Camera: id, Node: node(i), Generation: 1, Revision: 1}
		status := &controlv1.CameraStatus{State: controlv1.CameraStatus_STATE_LIVE, Generation: 1}
		switch {
		case i%10 == 0:
			a.Node, a.Reason = "", controlv1.Reason_REASON_NO_CAPACITY
		case i%11 == 0:
			status.State, status.Reason = controlv1.CameraStatus_STATE_FAILED, controlv1.Reason_REASON_TIMEOUT
		case i%100 == 1:
			a.From, a.FromGeneration, a.Move, a.MoveTime = node(i+1), 1, store.Serving, timestamppb.New(time.Now().Add(-time.Minute))
		}
		events = append(events,
			store.Event{Entry: store.Entry{Camera: &store.Camera{ID: id, Desired: &controlv1.Camera{Name: id.Name()}, Revision: 1}}},
			store.Event{Entry: store.Entry{Assignment: a}},
			store.Event{Entry: store.Entry{Observed: &store.Observed{Camera: id, Status: status, Revision: 1}}})
	}
	s.cache.apply(1, events)
	return s
}

func TestCamerasAreCounted(t *testing.T) {
	s := filled(1100, 2)
	text := exported(t, s.Metrics())
	for _, want := range []string{
		`fanlight_controlplane_cameras{reason="",state="live"} 900`,
		`fanlight_controlplane_cameras{reason="timeout",state="failed"} 90`,
		`fanlight_controlplane_cameras{reason="no_capacity",state="unassigned"} 110`,
		`fanlight_controlplane_moves{phase="serving"} 10`,
		`fanlight_controlplane_moves{phase="warming"} 0`,
		`fanlight_controlplane_nodes{state="ready"} 2`,
		`fanlight_controlplane_node_state{node="n0",state="ready"} 1`,
		`fanlight_controlplane_leader 0`,
	} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("not exported: %s", want)
		}
	}
	if strings.Contains(text, "c17") {
		t.Error("there is a series of a camera")
	}
	_, moves := s.cache.count()
	if age := time.Since(moves[store.Serving].oldest); age < time.Minute || age > 2*time.Minute {
		t.Errorf("the oldest move is %v old, want a minute", age)
	}
}

// What is counted is what operators see.
func TestSummaryIsStatus(t *testing.T) {
	s := filled(1100, 3)
	s.cache.apply(2, []store.Event{{Entry: store.Entry{Node: &store.Node{ID: "n1"}}, Deleted: true}})
	seen := map[controlv1.CameraStatus_State]int{}
	for id, v := range s.cache.camerasAfter("") {
		state, reason := v.summary()
		if st := v.status(); st.GetState() != state || st.GetReason() != reason {
			t.Errorf("%s is counted as %v %v, and seen as %v", id, state, reason, st)
		}
		seen[state]++
	}
	total := 0
	s.metrics.count()
	s.cache.apply(3, []store.Event{{Entry: store.Entry{Camera: &store.Camera{ID: "c5"}}, Deleted: true}})
	for _, n := range s.metrics.count().states {
		total += n
	}
	if total != 1099 {
		t.Errorf("%d cameras are counted after one of 1,100 was deleted", total)
	}
	if len(seen) < 3 {
		t.Errorf("only the states %v", seen)
	}
}

func TestCausesOfDecisions(t *testing.T) {
	s := filled(0, 3)
	assigned := func(id, node string) store.Event {
		return store.Event{Entry: store.Entry{Assignment: &store.Assignment{Camera: fleet.CameraID(id), Node: fleet.NodeID(node), Revision: 2}}}
	}
	s.cache.apply(2, []store.Event{
		assigned("stays", "n0"), assigned("lost", "n9"), assigned("drained", "n1"), assigned("leaving", "n2"), assigned("better", "n0"), assigned("off", "n0"), assigned("nowhere", "n0"),
		{Entry: store.Entry{Drain: &store.Drain{Node: "n1", Drain: &controlv1.Drain{}, Revision: 2}}},
		{Entry: store.Entry{Node: &store.Node{ID: "n2", Registered: &controlv1.Node{Leaving: true}, Revision: 2}}},
	})
	for id, want := range map[string]string{
		"fresh": causeNew, "stays": "", "lost": causeNodeLost, "drained": causeDrain, "leaving": causeDrain, "better": causeRebalance,
		"off": causeDisabled, "nowhere": causeUnassigned,
	} {
		d := store.Decision{Assignment: store.Assignment{Camera: fleet.CameraID(id), Node: "n3"}}
		switch id {
		case "stays":
			d.Node = "n0"
		case "off":
			d.Node, d.Reason = "", controlv1.Reason_REASON_DISABLED
		case "nowhere":
			d.Node, d.Reason = "", controlv1.Reason_REASON_NO_CAPACITY
		}
		if got := s.cache.causes([]store.Decision{d}); got[0] != want {
			t.Errorf("%s: cause %q, want %q", id, got[0], want)
		}
	}
}

// The series of a replica are as many for a hundred thousand cameras as for
// one, and a scrape lets others at the cache.
func BenchmarkScrape(b *testing.B) {
	for name, change := range map[string]int64{"changed": 1, "unchanged": 0} {
		b.Run(name, func(b *testing.B) {
			s := filled(100_000, 1000)
			b.ReportAllocs()
			for b.Loop() {
				s.cache.apply(s.cache.revision+change, nil)
				exported(b, s.Metrics())
			}
		})
	}
}
