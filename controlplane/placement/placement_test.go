package placement

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"

	"fanlight/internal/fleet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type places map[fleet.CameraID]fleet.NodeID

const mbit = 1_000_000

func TestPlan(t *testing.T) {
	zoneA, zoneB := map[string]string{"zone": "a"}, map[string]string{"zone": "b"}
	tests := []struct {
		name     string
		cameras  []Camera
		nodes    []Node
		current  places
		opt      Options
		want     map[fleet.CameraID]Assignment // messages not compared
		stranded map[fleet.CameraID]fleet.Reason
	}{
		{name: "nothing"},
		{
			name:    "no node is alive",
			cameras: []Camera{{ID: "c"}},
			want:    map[fleet.CameraID]Assignment{"c": {Reason: NoNode}},
		},
		{
			name:    "no node has the labels",
			cameras: []Camera{{ID: "c", Selector: zoneA}},
			nodes:   []Node{{ID: "n", Labels: zoneB}},
			want:    map[fleet.CameraID]Assignment{"c": {Reason: NoMatchingNode}},
		},
		{
			name:    "the node that has the labels is chosen",
			cameras: []Camera{{ID: "c", Selector: zoneB}},
			nodes:   []Node{{ID: "m", Labels: zoneA}, {ID: "n", Labels: map[string]string{"zone": "b", "gpu": "no"}}},
			want:    map[fleet.CameraID]Assignment{"c": {Node: "n"}},
		},
		{
			name:    "an empty value is not a missing label",
			cameras: []Camera{{ID: "c", Selector: map[string]string{"gpu": ""}}},
			nodes:   []Node{{ID: "n"}},
			want:    map[fleet.CameraID]Assignment{"c": {Reason: NoMatchingNode}},
		},
		{
			name:    "full of cameras",
			cameras: []Camera{{ID: "a"}, {ID: "b"}},
			nodes:   []Node{{ID: "n", Capacity: Capacity{Cameras: 1}}},
			current: places{"a": "n"},
			want:    map[fleet.CameraID]Assignment{"b": {Reason: NoCapacity}},
		},
		{
			name:    "full of bits",
			cameras: []Camera{{ID: "a", BitrateBPS: 6 * mbit}, {ID: "b", BitrateBPS: 5 * mbit}, {ID: "c", BitrateBPS: 4 * mbit}},
			nodes:   []Node{{ID: "n", Capacity: Capacity{IngressBPS: 10 * mbit}}},
			current: places{"a": "n"},
			want:    map[fleet.CameraID]Assignment{"b": {Reason: NoCapacity}, "c": {Node: "n"}},
		},
		{
			name:    "an unknown bit rate is assumed",
			cameras: []Camera{{ID: "a"}},
			nodes:   []Node{{ID: "n", Capacity: Capacity{IngressBPS: AssumedBitrateBPS - 1}}},
			want:    map[fleet.CameraID]Assignment{"a": {Reason: NoCapacity}},
		},
		{
			name:    "a disabled camera loses its node",
			cameras: []Camera{{ID: "a", Disabled: true}, {ID: "b", Disabled: true}},
			nodes:   []Node{{ID: "n"}},
			current: places{"a": "n"},
			want:    map[fleet.CameraID]Assignment{"a": {Reason: Disabled}, "b": {Reason: Disabled}},
		},
		{
			name:    "settled cameras stay, whatever the imbalance",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}},
			nodes:   []Node{{ID: "m"}, {ID: "n"}},
			current: places{"a": "m", "b": "m", "c": "m"},
		},
		{
			name:    "a new camera goes to the less loaded node",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}},
			nodes:   []Node{{ID: "m"}, {ID: "n"}},
			current: places{"a": "m", "b": "m"},
			want:    map[fleet.CameraID]Assignment{"c": {Node: "n"}},
		},
		{
			name:    "load is a share of the capacity",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 10}}, {ID: "n", Capacity: Capacity{Cameras: 2}}},
			current: places{"a": "m", "b": "m"},
			want:    map[fleet.CameraID]Assignment{"c": {Node: "m"}},
		},
		{
			name:    "viewers weigh",
			cameras: []Camera{{ID: "a"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Viewers: 10}, Viewers: 9}, {ID: "n", Capacity: Capacity{EgressBPS: 100 * mbit}, EgressBPS: 50 * mbit}},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}},
		},
		{
			name:    "viewers alone refuse no camera",
			cameras: []Camera{{ID: "a"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Viewers: 10}, Viewers: 11}},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "m"}},
		},
		{
			name:    "the cameras of a lost node move, no other",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}},
			nodes:   []Node{{ID: "n"}, {ID: "o"}},
			current: places{"a": "lost", "b": "n", "c": "n"},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "o"}},
		},
		{
			name:    "a draining node loses its cameras and takes none",
			cameras: []Camera{{ID: "a"}, {ID: "b"}},
			nodes:   []Node{{ID: "m", Draining: true}, {ID: "n"}},
			current: places{"a": "m"},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}, "b": {Node: "n"}},
		},
		{
			name:     "a draining node keeps what nobody can take",
			cameras:  []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}},
			nodes:    []Node{{ID: "m", Draining: true}, {ID: "n", Capacity: Capacity{Cameras: 1}}},
			current:  places{"a": "m", "b": "m"},
			want:     map[fleet.CameraID]Assignment{"a": {Node: "n"}, "c": {Reason: NoCapacity}},
			stranded: map[fleet.CameraID]fleet.Reason{"b": NoCapacity},
		},
		{
			name:    "only a draining node",
			cameras: []Camera{{ID: "a"}},
			nodes:   []Node{{ID: "m", Draining: true}},
			want:    map[fleet.CameraID]Assignment{"a": {Reason: NoNode}},
		},
		{
			name:    "a changed selector moves the camera",
			cameras: []Camera{{ID: "a", Selector: zoneB}, {ID: "b", Selector: map[string]string{"zone": "c"}}},
			nodes:   []Node{{ID: "m", Labels: zoneA}, {ID: "n", Labels: zoneB}},
			current: places{"a": "m", "b": "m"},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}, "b": {Reason: NoMatchingNode}},
		},
		{
			name:    "a lowered capacity moves the largest",
			cameras: []Camera{{ID: "a", BitrateBPS: 2 * mbit}, {ID: "b", BitrateBPS: 8 * mbit}, {ID: "c", BitrateBPS: 1 * mbit}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{IngressBPS: 10 * mbit}}, {ID: "n"}},
			current: places{"a": "m", "b": "m", "c": "m"},
			want:    map[fleet.CameraID]Assignment{"b": {Node: "n"}},
		},
		{
			name:     "a node over its capacity keeps what nobody can take",
			cameras:  []Camera{{ID: "a"}, {ID: "b"}},
			nodes:    []Node{{ID: "m", Capacity: Capacity{Cameras: 1}}},
			current:  places{"a": "m", "b": "m"},
			stranded: map[fleet.CameraID]fleet.Reason{"a": NoCapacity},
		},
		{
			name:    "cameras that few nodes fit go first",
			cameras: []Camera{{ID: "a", BitrateBPS: 9 * mbit}, {ID: "b", Selector: zoneA, BitrateBPS: 1 * mbit}},
			nodes:   []Node{{ID: "m", Labels: zoneA, Capacity: Capacity{Cameras: 1}}, {ID: "n", Capacity: Capacity{Cameras: 1}}},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}, "b": {Node: "m"}},
		},
		{
			name:    "current entries of unknown cameras count for nothing",
			cameras: []Camera{{ID: "a"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 1}}},
			current: places{"deleted": "m"},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "m"}},
		},
		{
			name:    "rebalancing moves no more than it may",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 4}}, {ID: "n", Capacity: Capacity{Cameras: 4}}},
			current: places{"a": "m", "b": "m", "c": "m", "d": "m"},
			opt:     Options{MaxMoves: 1},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}},
		},
		{
			name:    "rebalancing moves no more than it gains",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 4}}, {ID: "n", Capacity: Capacity{Cameras: 4}}},
			current: places{"a": "m", "b": "m", "c": "m", "d": "m"},
			opt:     Options{MaxMoves: 10},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}, "b": {Node: "n"}},
		},
		{
			name:    "rebalancing leaves cameras with one session",
			cameras: []Camera{{ID: "a", MaxSessions: 1}, {ID: "b", MaxSessions: 1}, {ID: "c", MaxSessions: 2}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 4}}, {ID: "n", Capacity: Capacity{Cameras: 4}}},
			current: places{"a": "m", "b": "m", "c": "m"},
			opt:     Options{MaxMoves: 10},
			want:    map[fleet.CameraID]Assignment{"c": {Node: "n"}},
		},
		{
			name:    "a camera that is on its way stays on it",
			cameras: []Camera{{ID: "a", Moving: true}, {ID: "b", Moving: true}, {ID: "c"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 4}}, {ID: "n", Capacity: Capacity{Cameras: 4}}},
			current: places{"a": "m", "b": "m", "c": "m"},
			opt:     Options{MaxMoves: 10},
			want:    map[fleet.CameraID]Assignment{"c": {Node: "n"}},
		},
		{
			name:    "rebalancing waits while there is something to place",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d"}},
			nodes:   []Node{{ID: "m"}, {ID: "n"}},
			current: places{"a": "m", "b": "m", "c": "m"},
			opt:     Options{MaxMoves: 10},
			want:    map[fleet.CameraID]Assignment{"d": {Node: "n"}},
		},
		{
			name:    "rebalancing does not wait for what nobody can take",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d", Selector: zoneA}},
			nodes:   []Node{{ID: "m"}, {ID: "n"}},
			current: places{"a": "m", "b": "m", "c": "m"},
			opt:     Options{MaxMoves: 10},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}, "d": {Reason: NoMatchingNode}},
		},
		{
			name:    "nodes without limits are balanced too",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}, {ID: "d"}},
			nodes:   []Node{{ID: "m"}, {ID: "n"}},
			current: places{"a": "m", "b": "m", "c": "m", "d": "m"},
			opt:     Options{MaxMoves: 10},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}, "b": {Node: "n"}},
		},
		{
			name:    "a camera less is no reason to move one",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}},
			nodes:   []Node{{ID: "m"}, {ID: "n"}},
			current: places{"a": "m", "b": "m", "c": "n"},
			opt:     Options{MaxMoves: 10},
		},
		{
			name:    "a node with all its viewers is the last resort",
			cameras: []Camera{{ID: "a"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 10, EgressBPS: mbit}, EgressBPS: mbit}, {ID: "n", Capacity: Capacity{Cameras: 1}}},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}},
		},
		{
			name:    "an overloaded node is the last resort",
			cameras: []Camera{{ID: "a"}, {ID: "b"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 10}, Overloaded: true}, {ID: "n", Capacity: Capacity{Cameras: 1}}},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}, "b": {Node: "m"}},
		},
		{
			name:    "an overloaded node is the last resort within the labels",
			cameras: []Camera{{ID: "a", Selector: zoneA}},
			nodes:   []Node{{ID: "m", Labels: zoneA, Overloaded: true}, {ID: "n"}},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "m"}},
		},
		{
			name:    "an overloaded node loses nothing",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 4}, Overloaded: true}, {ID: "n", Capacity: Capacity{Cameras: 4}}},
			current: places{"a": "m", "b": "m", "c": "m"},
			opt:     Options{MaxMoves: 10},
		},
		{
			name:    "an overloaded node gets nothing for balance",
			cameras: []Camera{{ID: "a"}, {ID: "b"}, {ID: "c"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Cameras: 4}}, {ID: "n", Capacity: Capacity{Cameras: 4}, Overloaded: true}},
			current: places{"a": "m", "b": "m", "c": "m"},
			opt:     Options{MaxMoves: 10},
		},
		{
			name:    "an overloaded node that is drained is emptied",
			cameras: []Camera{{ID: "a"}},
			nodes:   []Node{{ID: "m", Draining: true, Overloaded: true}, {ID: "n"}},
			current: places{"a": "m"},
			want:    map[fleet.CameraID]Assignment{"a": {Node: "n"}},
		},
		{
			name:    "rebalancing cannot move viewers away from a camera",
			cameras: []Camera{{ID: "a"}, {ID: "b"}},
			nodes:   []Node{{ID: "m", Capacity: Capacity{Viewers: 10}, Viewers: 9}, {ID: "n"}},
			current: places{"a": "m", "b": "m"},
			opt:     Options{MaxMoves: 10},
		},
		{
			name:    "rebalancing moves over the labels",
			cameras: []Camera{{ID: "a", Selector: zoneA}, {ID: "b", Selector: zoneA}, {ID: "c", Selector: zoneA}},
			nodes:   []Node{{ID: "m", Labels: zoneA, Capacity: Capacity{Cameras: 4}}, {ID: "n", Labels: zoneB, Capacity: Capacity{Cameras: 4}}},
			current: places{"a": "m", "b": "m", "c": "m"},
			opt:     Options{MaxMoves: 10},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Plan(tt.cameras, tt.nodes, tt.current, tt.opt)
			for id, a := range got.Assignments {
				if (a.Node == "") != (a.Message != "") {
					t.Errorf("camera %s: node %q with message %q", id, a.Node, a.Message)
				}
				a.Message = ""
				got.Assignments[id] = a
			}
			if tt.want == nil {
				tt.want = map[fleet.CameraID]Assignment{}
			}
			if tt.stranded == nil {
				tt.stranded = map[fleet.CameraID]fleet.Reason{}
			}
			if diff := cmp.Diff(tt.want, got.Assignments); diff != "" {
				t.Errorf("assignments (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.stranded, got.Stranded); diff != "" {
				t.Errorf("stranded (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRefusalsSayWhatToChange(t *testing.T) {
	zoneA := map[string]string{"zone": "a", "rack": "3"}
	full := Capacity{IngressBPS: 1}
	tests := []struct {
		nodes []Node
		want  string
	}{
		{nil, "no media node is connected"},
		{[]Node{{ID: "m"}}, "no ready node matches rack=3,zone=a; give a node these labels"},
		{[]Node{{ID: "m", Labels: zoneA, Draining: true}}, "every node that matches rack=3,zone=a is being drained; undrain one"},
		{[]Node{{ID: "m", Labels: zoneA, Capacity: full}}, "no ready node that matches rack=3,zone=a has 4.0 Mbit/s of ingress left; add a node"},
		{[]Node{{ID: "m", Labels: zoneA, Capacity: Capacity{Cameras: 1}}, {ID: "n", Labels: zoneA, Draining: true}}, "every ready node that matches rack=3,zone=a is full; add a node"},
	}
	for _, tt := range tests {
		got := Plan([]Camera{{ID: "b", Selector: zoneA}, {ID: "c", Selector: zoneA}}, tt.nodes, nil, Options{}).Assignments["c"].Message
		if !strings.HasPrefix(got, tt.want) {
			t.Errorf("got %q, want %q…", got, tt.want)
		}
	}
}

// A lost node's cameras must go to all the others, not to one of them.
func TestLostNodeSpreads(t *testing.T) {
	p, cameras := steadyPlanner(1_000, 20)
	p.DeleteNode("node-3")
	got := make(map[fleet.NodeID]int)
	for id, a := range p.Plan(Options{}).Assignments {
		if cameras[id] != "node-3" {
			t.Errorf("camera %s moved from %s, which is alive", id, cameras[id])
		}
		got[a.Node]++
	}
	if len(got) != 19 {
		t.Fatalf("50 cameras went to %d of 19 nodes: %v", len(got), got)
	}
	for id, n := range got {
		if n < 2 || n > 3 {
			t.Errorf("%s got %d cameras, want 2 or 3", id, n)
		}
	}
}

// Where a camera goes among equally loaded nodes is part of what replicas of
// different versions must agree on.
func TestTiesNeverChange(t *testing.T) {
	var got []fleet.NodeID
	nodes := []Node{{ID: "node-0"}, {ID: "node-1"}, {ID: "node-2"}, {ID: "node-3"}}
	for i := range 8 {
		id := fleet.CameraID(fmt.Sprintf("camera-%d", i))
		got = append(got, Plan([]Camera{{ID: id}}, nodes, nil, Options{}).Assignments[id].Node)
	}
	want := []fleet.NodeID{"node-3", "node-3", "node-3", "node-0", "node-2", "node-1", "node-3", "node-1"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// steadyPlanner returns a planner whose cameras are all placed and settled.
func steadyPlanner(cameras, nodes int) (*Planner, map[fleet.CameraID]fleet.NodeID) {
	p := NewPlanner()
	for i := range nodes {
		p.PutNode(Node{ID: fleet.NodeID(fmt.Sprintf("node-%d", i)), Capacity: Capacity{Cameras: 2 * cameras / nodes}})
	}
	for i := range cameras {
		p.PutCamera(Camera{ID: fleet.CameraID(fmt.Sprintf("camera-%d", i)), BitrateBPS: int64(1+i%8) * mbit})
	}
	at := make(map[fleet.CameraID]fleet.NodeID, cameras)
	for id, a := range p.Plan(Options{}).Assignments {
		at[id] = a.Node
		p.Assign(id, a.Node)
	}
	return p, at
}

// A node that may be on its way back keeps what it has and is given nothing.
func TestAwaitedNode(t *testing.T) {
	p := NewPlanner()
	p.PutNode(Node{ID: "a", Labels: map[string]string{"site": "x"}})
	p.PutNode(Node{ID: "b"})
	p.PutCamera(Camera{ID: "c", Selector: map[string]string{"site": "x"}})
	p.PutCamera(Camera{ID: "d"})
	p.Assign("c", "a")
	p.Assign("d", "a")
	placed := func(what string, want map[fleet.CameraID]fleet.NodeID) {
		t.Helper()
		got := make(map[fleet.CameraID]fleet.NodeID)
		for id, a := range p.Plan(Options{}).Assignments {
			got[id] = a.Node
		}
		if !maps.Equal(got, want) {
			t.Errorf("%s: planned %v, want %v", what, got, want)
		}
	}
	type plan = map[fleet.CameraID]fleet.NodeID
	p.AwaitNode("a", false)
	placed("awaited", plan{})
	p.PutCamera(Camera{ID: "e"})
	placed("a new camera", plan{"e": "b"})
	p.DeleteCamera("e")
	p.AwaitNode("a", true)
	placed("awaited and drained", plan{"d": "b"})
	p.AwaitNode("a", false)
	p.PutCamera(Camera{ID: "d", Disabled: true})
	placed("disabled", plan{"d": ""})
	p.PutCamera(Camera{ID: "d"})
	placed("enabled again", plan{})
	p.DeleteNode("a")
	placed("gone", plan{"c": "", "d": "b"})
	p.AwaitNode("a", false)
	p.PutNode(Node{ID: "a", Labels: map[string]string{"site": "x"}})
	placed("back", plan{})
	// One that was never seen alive: its labels are unknown.
	p = NewPlanner()
	p.AwaitNode("a", false)
	p.PutNode(Node{ID: "b"})
	p.PutCamera(Camera{ID: "c", Selector: map[string]string{"site": "x"}})
	p.Assign("c", "a")
	placed("unknown", plan{})
	p.PutNode(Node{ID: "a"})
	placed("back without the label", plan{"c": ""})
}
