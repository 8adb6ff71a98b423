package controlplane

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"google.golang.org/protobuf/testing/protocmp"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

func id(s string) fleet.NodeID { return fleet.NodeID(s) }

// What becomes of a camera that a plan wants elsewhere, in every phase.
func TestRelocate(t *testing.T) {
	full := place{reason: controlv1.Reason_REASON_NO_CAPACITY, message: "full"}
	off := place{reason: controlv1.Reason_REASON_DISABLED, message: "off"}
	var (
		none      = store.Assignment{Generation: 1}
		settled   = store.Assignment{Node: "a", Generation: 1}
		warming   = store.Assignment{Node: "b", Generation: 2, From: "a", FromGeneration: 1, Move: store.Warming}
		serving   = store.Assignment{Node: "b", Generation: 2, From: "a", FromGeneration: 1, Move: store.Serving}
		releasing = store.Assignment{Node: "b", Generation: 2, From: "a", FromGeneration: 1, Move: store.Releasing}
	)
	from := func(node, from string, generation int64, m store.Move) *store.Assignment {
		a := &store.Assignment{Node: id(node), Previous: id("b"), Move: m}
		if from != "" {
			a.From, a.FromGeneration = id(from), generation
		}
		return a
	}
	refused := func(a *store.Assignment, p place) *store.Assignment {
		a.Reason, a.Message = p.reason, p.message
		return a
	}
	ofA := func(a *store.Assignment) *store.Assignment { a.Previous = "a"; return a }
	stays := func() *store.Assignment { return &store.Assignment{Node: "a", Generation: 1, Previous: "b"} }
	for name, test := range map[string]struct {
		old  store.Assignment
		to   place
		s    scene
		want *store.Assignment // nil: not now
	}{
		"new":                            {none, place{node: "b"}, scene{}, &store.Assignment{Node: "b"}},
		"new, nowhere":                   {none, full, scene{}, refused(&store.Assignment{}, full)},
		"live":                           {settled, place{node: "b"}, scene{node: here, live: true}, ofA(from("b", "a", 1, store.Warming))},
		"live, too many":                 {settled, place{node: "b"}, scene{node: here, live: true, full: true}, nil},
		"not live":                       {settled, place{node: "b"}, scene{node: here, full: true}, ofA(from("b", "", 0, store.NoMove))},
		"deadline":                       {settled, place{node: "b"}, scene{node: closing, live: true, full: true}, ofA(from("b", "", 0, store.NoMove))},
		"gone":                           {settled, place{node: "b"}, scene{node: gone, live: true}, ofA(from("b", "", 0, store.NoMove))},
		"away":                           {settled, place{node: "b"}, scene{node: awaited, live: true}, nil},
		"away, nowhere":                  {settled, off, scene{node: awaited, live: true}, refused(ofA(from("", "", 0, store.NoMove)), off)},
		"nowhere":                        {settled, full, scene{node: here, live: true}, refused(ofA(from("", "", 0, store.NoMove)), full)},
		"single":                         {settled, place{node: "b"}, scene{node: here, single: true}, ofA(from("b", "a", 1, store.Releasing))},
		"single, too many":               {settled, place{node: "b"}, scene{node: here, single: true, full: true}, nil},
		"single, gone, may pull":         {settled, place{node: "b"}, scene{node: gone, single: true, holding: 1}, nil},
		"single, away, may pull":         {settled, place{node: "b"}, scene{node: awaited, single: true, holding: 1}, nil},
		"single, gone":                   {settled, place{node: "b"}, scene{node: gone, single: true}, ofA(from("b", "", 0, store.NoMove))},
		"single, gone, nowhere":          {settled, full, scene{node: gone, single: true, holding: 1}, refused(ofA(from("", "a", 1, store.Releasing)), full)},
		"single, disabled":               {settled, off, scene{node: here, single: true, full: true}, refused(ofA(from("", "a", 1, store.Releasing)), off)},
		"warming, elsewhere":             {warming, place{node: "c"}, scene{from: here, fromLive: true, full: true}, from("c", "a", 1, store.Warming)},
		"warming, old is awaited":        {warming, place{node: "c"}, scene{from: awaited}, from("c", "a", 1, store.Warming)},
		"warming, elsewhere, old gone":   {warming, place{node: "c"}, scene{node: here}, from("c", "", 0, store.NoMove)},
		"warming, live, old gone":        {warming, place{node: "c"}, scene{node: here, live: true}, from("c", "b", 2, store.Warming)},
		"warming, elsewhere, deadline":   {warming, place{node: "c"}, scene{from: closing}, from("c", "", 0, store.NoMove)},
		"warming, back":                  {warming, place{node: "a"}, scene{from: here}, stays()},
		"warming, nowhere":               {warming, full, scene{from: here}, refused(stays(), full)},
		"warming, nowhere, old gone":     {warming, full, scene{}, refused(from("", "", 0, store.NoMove), full)},
		"warming, disabled":              {warming, off, scene{from: here}, refused(from("", "", 0, store.NoMove), off)},
		"serving, new gone":              {serving, place{node: "c"}, scene{from: here}, from("c", "a", 1, store.Serving)},
		"serving, new gone, back":        {serving, place{node: "a"}, scene{from: here}, from("a", "", 0, store.NoMove)},
		"serving, elsewhere":             {serving, place{node: "c"}, scene{node: here, from: here, live: true}, nil},
		"serving, elsewhere, old gone":   {serving, place{node: "c"}, scene{node: here, live: true}, from("c", "b", 2, store.Warming)},
		"serving, new away":              {serving, place{node: "c"}, scene{node: awaited, from: here}, nil},
		"serving, nowhere":               {serving, full, scene{from: here}, refused(from("", "", 0, store.NoMove), full)},
		"releasing, elsewhere":           {releasing, place{node: "c"}, scene{node: gone, from: here, single: true}, from("c", "a", 1, store.Releasing)},
		"releasing, elsewhere, old gone": {releasing, place{node: "c"}, scene{single: true}, from("c", "a", 1, store.Releasing)},
		"releasing, back":                {releasing, place{node: "a"}, scene{from: here, single: true}, from("a", "", 0, store.NoMove)},
		"releasing, nowhere":             {releasing, full, scene{from: here, single: true}, refused(from("", "a", 1, store.Releasing), full)},
	} {
		got, ok := relocate(test.old, test.to, test.s)
		if !ok {
			if test.want != nil {
				t.Errorf("%s: not now, want %v", name, test.want)
			}
			continue
		}
		if test.want == nil {
			t.Errorf("%s: got %v, want not now", name, got)
			continue
		}
		if diff := cmp.Diff(*test.want, got, protocmp.Transform(), cmpopts.EquateEmpty()); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

// What a move does next.
func TestAdvance(t *testing.T) {
	marked := controlv1.Reason_REASON_MOVING
	for name, test := range map[string]struct {
		phase store.Move
		s     scene
		said  controlv1.Reason
		want  step
		wait  time.Duration
	}{
		"none":                        {store.NoMove, scene{}, 0, stay, 0},
		"warming":                     {store.Warming, scene{node: here, from: here, fromLive: true, age: time.Second}, 0, stay, warmTime - time.Second},
		"warming, live":               {store.Warming, scene{node: here, from: here, fromLive: true, live: true}, 0, serve, 0},
		"warming, live, old away":     {store.Warming, scene{node: here, from: awaited, live: true}, 0, serve, 0},
		"warming, old gone":           {store.Warming, scene{node: here}, 0, settle, 0},
		"warming, both gone":          {store.Warming, scene{}, 0, settle, 0},
		"warming, deadline":           {store.Warming, scene{node: here, from: closing, fromLive: true}, 0, settle, 0},
		"warming, new gone":           {store.Warming, scene{from: here, fromLive: true, age: time.Hour}, 0, stay, 0},
		"warming, live, new away":     {store.Warming, scene{node: awaited, from: here, fromLive: true, live: true, age: time.Hour}, 0, stay, 0},
		"warming, single":             {store.Warming, scene{node: here, from: here, live: true, single: true}, 0, back, 0},
		"warming, late, no picture":   {store.Warming, scene{node: here, from: here, age: warmTime}, 0, serve, 0},
		"warming, late, for balance":  {store.Warming, scene{node: here, from: here, fromLive: true, age: warmTime}, 0, back, 0},
		"warming, late, draining":     {store.Warming, scene{node: here, from: here, fromLive: true, draining: true, age: warmTime}, 0, stuck, 0},
		"warming, stuck":              {store.Warming, scene{node: here, from: here, fromLive: true, draining: true, age: time.Hour}, marked, stay, 0},
		"warming, stuck, live":        {store.Warming, scene{node: here, from: here, fromLive: true, live: true, age: time.Hour}, marked, serve, 0},
		"serving":                     {store.Serving, scene{node: here, from: here, age: time.Second}, 0, stay, letGoTime - time.Second},
		"serving, old gone":           {store.Serving, scene{node: here}, 0, settle, 0},
		"serving, deadline":           {store.Serving, scene{node: here, from: closing}, 0, settle, 0},
		"serving, single":             {store.Serving, scene{node: here, from: here, single: true}, 0, settle, 0},
		"serving, never let go":       {store.Serving, scene{node: here, from: here, age: letGoTime}, 0, settle, 0},
		"releasing":                   {store.Releasing, scene{node: here, from: here}, 0, stay, letGoTime},
		"releasing, deadline":         {store.Releasing, scene{node: here, from: closing}, 0, stay, letGoTime},
		"releasing, gone, may pull":   {store.Releasing, scene{node: here, age: time.Hour, holding: 7}, 0, stay, 7},
		"releasing, gone":             {store.Releasing, scene{node: here}, 0, settle, 0},
		"releasing, away, may pull":   {store.Releasing, scene{node: here, from: awaited, holding: 7}, 0, stay, 7},
		"releasing, never let go":     {store.Releasing, scene{node: here, from: here, age: letGoTime}, 0, settle, 0},
		"releasing to nowhere, gone":  {store.Releasing, scene{}, 0, settle, 0},
		"releasing, not single (any)": {store.Releasing, scene{node: here, from: here, live: true}, 0, stay, letGoTime},
	} {
		a := &store.Assignment{Node: "b", Generation: 2, From: "a", FromGeneration: 1, Move: test.phase, Reason: test.said}
		if got, wait := advance(a, test.s); got != test.want || wait != test.wait {
			t.Errorf("%s: step %d after %v, want %d after %v", name, got, wait, test.want, test.wait)
		}
	}
}

// What is stored after a step.
func TestApplyStep(t *testing.T) {
	a := &store.Assignment{
		Node: "b", Generation: 2, From: "a", FromGeneration: 1, Move: store.Warming, Previous: "a",
		Reason: controlv1.Reason_REASON_MOVING, Message: "slow",
	}
	for st, want := range map[step]store.Assignment{
		serve:  {Node: "b", Generation: 2, From: "a", FromGeneration: 1, Move: store.Serving, Previous: "a"},
		settle: {Node: "b", Generation: 2, Previous: "a"},
		back:   {Node: "a", Generation: 1, Previous: "b"},
	} {
		if diff := cmp.Diff(want, st.apply(a), protocmp.Transform()); diff != "" {
			t.Errorf("step %d (-want +got):\n%s", st, diff)
		}
	}
	if got := stuck.apply(a); got.Move != store.Warming || got.Reason == 0 || got.Message == "" || got.From != "a" {
		t.Errorf("stuck: %v", got)
	}
	// Without a node, the reason why there is none stays.
	lost := &store.Assignment{From: "a", FromGeneration: 1, Move: store.Releasing, Reason: controlv1.Reason_REASON_DISABLED, Message: "off"}
	if got := settle.apply(lost); got.From != "" || got.Reason != controlv1.Reason_REASON_DISABLED {
		t.Errorf("settled: %v", got)
	}
}

// A node that lacks a label of the selector does not fit.
func TestFits(t *testing.T) {
	v := cameraView{camera: &store.Camera{Desired: &controlv1.Camera{NodeSelector: map[string]string{"site": "a", "rack": "1"}}}}
	for name, labels := range map[string]map[string]string{
		"other": {"site": "b", "rack": "1"}, "lacks one": {"site": "a"}, "none": nil, "empty": {"site": "a", "rack": ""},
	} {
		if v.fits(&store.Node{Registered: &controlv1.Node{Labels: labels}}) {
			t.Errorf("%s: it fits", name)
		}
	}
	if !v.fits(&store.Node{Registered: &controlv1.Node{Labels: map[string]string{"site": "a", "rack": "1", "more": "x"}}}) {
		t.Error("with all labels and more, it does not fit")
	}
}

// Whose report counts while a camera moves, and what each node is told.
func TestPartsAndReports(t *testing.T) {
	const live, failed = controlv1.CameraStatus_STATE_LIVE, controlv1.CameraStatus_STATE_FAILED
	cam := &store.Camera{ID: "c", Desired: &controlv1.Camera{}}
	seen := func(generation int64, st controlv1.CameraStatus_State) *store.Observed {
		return &store.Observed{Status: &controlv1.CameraStatus{Generation: generation, State: st}}
	}
	nodeA := &store.Node{ID: "a", Registered: &controlv1.Node{}}
	nodeB := &store.Node{ID: "b", Registered: &controlv1.Node{}}
	for name, test := range map[string]struct {
		phase                                 store.Move
		observed                              *store.Observed
		oldLive, oldFailed, newLive, newFails verdict
		oldPart, newPart                      controlv1.DesiredCamera_Part
		oldHas, newHas                        bool
		route                                 string
		released                              bool
	}{
		"warming": {
			store.Warming, seen(1, live), keep, keep, keep, later,
			controlv1.DesiredCamera_PART_AWAIT_HAND_OVER, controlv1.DesiredCamera_PART_TAKE_OVER, true, true, "a", false,
		},
		"warming, live": {
			store.Warming, seen(2, live), drop, drop, keep, later,
			controlv1.DesiredCamera_PART_AWAIT_HAND_OVER, controlv1.DesiredCamera_PART_TAKE_OVER, true, true, "a", false,
		},
		"serving": {
			store.Serving, seen(2, live), drop, drop, keep, keep,
			controlv1.DesiredCamera_PART_HAND_OVER, 0, true, true, "b", true,
		},
		"releasing": {
			store.Releasing, seen(1, live), drop, drop, drop, drop,
			0, 0, false, false, "", true,
		},
	} {
		v := cameraView{
			camera: cam, observed: test.observed, node: nodeB, from: nodeA, anyNode: true,
			assignment: &store.Assignment{Camera: "c", Node: "b", Generation: 2, From: "a", FromGeneration: 1, Move: test.phase},
		}
		for _, r := range []struct {
			node       string
			generation int64
			state      controlv1.CameraStatus_State
			want       verdict
		}{
			{"a", 1, live, test.oldLive},
			{"a", 1, failed, test.oldFailed},
			{"b", 2, live, test.newLive},
			{"b", 2, failed, test.newFails},
			{"a", 2, live, drop},
			{"b", 1, live, drop},
			{"c", 2, live, drop},
			{"", 0, live, drop},
		} {
			if got := v.judge(id(r.node), r.generation, r.state); got != r.want {
				t.Errorf("%s: %v of node %q, generation %d, is judged %d, want %d", name, r.state, r.node, r.generation, got, r.want)
			}
		}
		part, generation, ok := v.part("a")
		if part != test.oldPart || ok != test.oldHas || ok && generation != 1 {
			t.Errorf("%s: the old node's part is %v, %d, %t", name, part, generation, ok)
		}
		part, generation, ok = v.part("b")
		if part != test.newPart || ok != test.newHas || ok && generation != 2 {
			t.Errorf("%s: the new node's part is %v, %d, %t", name, part, generation, ok)
		}
		if _, _, ok := v.part("c"); ok {
			t.Errorf("%s: another node has a part", name)
		}
		if r := v.route(); r.GetNode() != "" && r.GetNode() != "nodes/"+test.route || r.GetNode() == "" && test.route != "" {
			t.Errorf("%s: the route is %v", name, r)
		}
		if got := v.releases("a", 1); got != test.released {
			t.Errorf("%s: releasing counts: %t", name, got)
		}
		if v.releases("a", 2) || v.releases("b", 2) || v.releases("", 0) {
			t.Errorf("%s: others may release it", name)
		}
	}
}
