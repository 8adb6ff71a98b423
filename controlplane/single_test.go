package controlplane_test

import (
	"strings"
	"testing"
	"time"

	"fanlight/controlplane"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// A camera that accepts one RTSP session is pulled by nobody until its old node
// has let go.
func TestSingleSessionMove(t *testing.T) {
	r := start(t, options{config: controlplane.Config{LeaseTTL: time.Second}})
	single := camera("single")
	single.MaxSessions = 1
	r.create(single)
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	g := n1.until("single")["cameras/single"].GetGeneration()
	r.live(n1, "single", g)
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	n2.until()
	r.drain("n1", wait)
	n1.until()
	r.leads("single", "", 0)
	if st := r.get("single").GetStatus(); st.GetState() != unassigned || st.GetReason() != controlv1.Reason_REASON_MOVING || !strings.Contains(st.GetMessage(), "n1") {
		t.Errorf("releasing, the status is %v", st)
	}
	if d := r.getNode("n1").GetDrain(); d.GetCamerasLeft() != 1 || d.GetCamerasMoving() != 1 {
		t.Errorf("releasing, the drain is %v", d)
	}
	marker := camera("marker") // a set that is sent meanwhile
	marker.NodeSelector = map[string]string{"a": "b"}
	r.create(marker)
	n3 := r.connect(&controlv1.Hello{Node: "nodes/n3", Labels: map[string]string{"a": "b"}})
	n3.until("marker")
	n1.released("single", g)
	got := n2.until("single")["cameras/single"]
	if got.GetGeneration() <= g || got.GetPart() != noPart {
		t.Errorf("the new node got %v", got)
	}
	r.leads("single", "n2", got.GetGeneration())

	// A node that is gone before it has let go may still pull: until it can't.
	r.drain("n2", wait)
	n2.until()
	from := time.Now()
	n2.cancel()
	n3.until("marker", "single")
	if d := time.Since(from); d < time.Second+controlplane.AfterLease {
		t.Errorf("the camera was given to another node after %v", d)
	}
}

// Taken from its node and given to another one, a camera that accepts one
// session is let go of first.
func TestSingleSessionDisabledAndEnabled(t *testing.T) {
	r := start(t, options{})
	single := camera("single")
	single.MaxSessions = 1
	r.create(single)
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	g := n1.until("single")["cameras/single"].GetGeneration()
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	n2.until()
	r.update(&controlv1.Camera{Name: "cameras/single", Disabled: true}, "disabled")
	n1.until()
	r.drain("n1", wait) // it is to go elsewhere
	r.update(&controlv1.Camera{Name: "cameras/single"}, "disabled")
	r.eventually("on its way", func() bool { return r.get("single").GetStatus().GetReason() == controlv1.Reason_REASON_MOVING })
	time.Sleep(100 * time.Millisecond) // for what must not happen
	r.leads("single", "", 0)
	n1.released("single", g)
	n2.until("single")
}

// What a node lets go of as soon as its camera is disabled counts, whatever comes
// first: enabled again, the camera does not wait for what was said already.
func TestSingleSessionLetGoAtOnce(t *testing.T) {
	r := start(t, options{})
	single := camera("single")
	single.MaxSessions = 1
	r.create(single)
	from, to := r.connect(&controlv1.Hello{Node: "nodes/n1"}), "n2"
	g := from.until("single")["cameras/single"].GetGeneration()
	other := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	other.until()
	for range 6 {
		r.update(&controlv1.Camera{Name: "cameras/single", Disabled: true}, "disabled")
		from.until()
		from.released("single", g)
		leaves := "n1"
		if to == "n1" {
			leaves = "n2"
		}
		r.drain(leaves, wait)
		r.update(&controlv1.Camera{Name: "cameras/single"}, "disabled")
		g = other.until("single")["cameras/single"].GetGeneration()
		r.undrain(leaves)
		from, other, to = other, from, leaves
	}
}

// A process that has ended lets go of everything, even if its node was gone for
// a while before the next one came.
func TestSingleSessionLetGoByRestart(t *testing.T) {
	r := start(t, options{config: controlplane.Config{LeaseTTL: 3 * wait}})
	single := camera("single")
	single.MaxSessions = 1
	r.create(single)
	n1 := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n1.until("single")
	n2 := r.connect(&controlv1.Hello{Node: "nodes/n2"})
	n2.until()
	r.drain("n1", wait)
	n1.until()
	n1.cancel()
	r.eventually("gone", func() bool { return r.getNode("n1").GetState() == controlv1.Node_STATE_GONE })
	r.connect(&controlv1.Hello{Node: "nodes/n1", BootId: "again"})
	n2.until("single")
}
