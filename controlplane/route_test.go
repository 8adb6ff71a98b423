package controlplane_test

import (
	"strings"
	"testing"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// TestViewersAreToldReasonsAlone makes sure that what nodes and placement say
// for operators does not reach gateways.
func TestViewersAreToldReasonsAlone(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	picky := camera("picky")
	picky.NodeSelector = map[string]string{"rack": "secret-7"}
	r.create(picky)
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	d := n.until("lobby")["cameras/lobby"]
	n.report("lobby", d.GetGeneration(), &controlv1.CameraStatus{
		State: controlv1.CameraStatus_STATE_FAILED, Reason: controlv1.Reason_REASON_TIMEOUT, Message: "dial 192.0.2.7:554: no answer",
		Profiles: []*controlv1.ProfileStatus{{}},
	})
	browse := func() (byName map[string]*controlv1.ViewableCamera, all string) {
		t.Helper()
		resp, err := r.routes.BrowseCameras(r.ctx(), &controlv1.BrowseCamerasRequest{Patterns: []string{"*"}})
		if err != nil {
			t.Fatal(err)
		}
		byName = make(map[string]*controlv1.ViewableCamera)
		for _, c := range resp.GetCameras() {
			byName[c.GetName()] = c
		}
		return byName, resp.String()
	}
	r.eventually("failed", func() bool {
		byName, _ := browse()
		return byName["cameras/lobby"].GetStatus().GetReason() == controlv1.Reason_REASON_TIMEOUT &&
			byName["cameras/picky"].GetStatus().GetReason() == controlv1.Reason_REASON_NO_MATCHING_NODE
	})
	if msg := r.get("lobby").GetStatus().GetMessage(); !strings.Contains(msg, "192.0.2.7") {
		t.Errorf("the operator is told %q", msg)
	}
	if msg := r.get("picky").GetStatus().GetMessage(); !strings.Contains(msg, "secret-7") {
		t.Errorf("the operator is told %q", msg)
	}
	byName, all := browse()
	if strings.Contains(all, "192.0.2.7") || strings.Contains(all, "secret-7") {
		t.Errorf("viewers are told %s", all)
	}
	if st := byName["cameras/lobby"].GetStatus(); st.GetMessage() != fleet.ReasonTimeout.Sentence() || st.GetStateTime() == nil || len(st.GetProfiles()) > 0 {
		t.Errorf("lobby: %v", st)
	}
	if rt := byName["cameras/picky"].GetRoute(); rt.GetReason() != controlv1.Reason_REASON_NO_MATCHING_NODE || rt.GetMessage() == "" {
		t.Errorf("picky: %v", rt)
	}
	stream, err := r.routes.WatchRoutes(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&controlv1.WatchRoutesRequest{Add: []string{"cameras/picky"}}); err != nil {
		t.Fatal(err)
	}
	resp, err := stream.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if rt := resp.GetRoutes()[0]; rt.GetReason() != controlv1.Reason_REASON_NO_MATCHING_NODE || strings.Contains(rt.String(), "secret-7") {
		t.Errorf("route %v", rt)
	}
}
