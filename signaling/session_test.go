package signaling

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/time/rate"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// TestMove is a drain: the browser keeps the old session until the new one
// shows a picture.
func TestMove(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Limits.SessionsPerConnection = 1; c.Limits.SessionsPerViewer = 1 })
	n1, n2 := h.node("n1"), h.node("n2")
	h.control.assign("lobby", n1, 1)
	b := h.welcomed("")
	old := b.live("a", "lobby", n1)
	h.control.assign("lobby", n2, 2)
	if m := b.untilState("a", stateMoving); m.Reason != "moving" {
		t.Errorf("state %+v", m)
	}
	b.untilType("a", typeMove)
	// The limits count a session that is being moved once.
	fresh := b.live("b", "lobby", n2)
	if g := fresh.open.GetGeneration(); g != 2 {
		t.Errorf("generation %d", g)
	}
	// The old one is still served, until it is left.
	mid := "0"
	old.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_Candidate{Candidate: &mediav1.Candidate{SdpMid: &mid}}})
	b.untilType("a", typeCandidate)
	b.send(map[string]any{"type": "leave", "session": "a"})
	old.left()
	b.works("b", fresh)
}

// TestMovedSessionEndsWithItsNode is a drain whose deadline comes before the
// browser has left.
func TestMovedSessionEndsWithItsNode(t *testing.T) {
	h := newHarness(t, nil)
	n1, n2 := h.node("n1"), h.node("n2")
	h.control.assign("lobby", n1, 1)
	b := h.welcomed("")
	old := b.live("a", "lobby", n1)
	h.control.assign("lobby", n2, 2)
	b.untilType("a", typeMove)
	old.end <- fmt.Errorf("drained: %w", fleet.CameraMoved)
	m := b.until("ended without an error", func(m outbound) bool { return m.Type == typeError || m.State == stateEnded })
	if m.Type != typeState || m.Reason != "camera_moved" {
		t.Errorf("got %+v", m)
	}
}

// TestNewGenerationOnTheSameNode is no move as long as the node serves.
func TestNewGenerationOnTheSameNode(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	s := b.live("a", "lobby", n)
	h.moved("lobby", n, 2)
	s.state(mediav1.SessionState_STATE_CAMERA_OFFLINE, "timeout")
	b.until("offline, and no move", func(m outbound) bool {
		if m.Type == typeMove {
			t.Error("told to move to the node that serves")
		}
		return m.State == stateCameraOffline
	})
	// The node knows of the new generation, and ends what began under the old.
	s.end <- fmt.Errorf("begun anew: %w", fleet.CameraMoved)
	b.untilType("a", typeMove)

	// One that has not yet been answered is opened under the new generation.
	b.watch("b", "lobby")
	waiting := n.next()
	h.control.assign("lobby", n, 3)
	waiting.left()
	if g := n.next().open.GetGeneration(); g != 3 {
		t.Errorf("generation %d", g)
	}
}

// TestMovesArePaced drains a node: browsers are told one by one, but for those
// whose session on it has died.
func TestMovesArePaced(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Limits.MoveRate = 1 })
	n1, n2 := h.node("n1"), h.node("n2")
	h.control.assign("lobby", n1, 1)
	b := h.welcomed("")
	sessions := make(map[string]*nodeSession)
	for _, id := range []string{"a", "b", "c", "d"} {
		sessions[id] = b.live(id, "lobby", n1)
	}
	began := time.Now()
	h.moved("lobby", n2, 2)
	told := make(map[string]time.Duration)
	next := func() string {
		m := b.until("move", func(m outbound) bool { return m.Type == typeMove })
		told[m.Session] = time.Since(began)
		return m.Session
	}
	first := next()
	for id, s := range sessions {
		if id != first {
			s.end <- fmt.Errorf("drained: %w", fleet.CameraMoved)
			break
		}
	}
	second := next() // the one that was ended
	if told[second] > 900*time.Millisecond {
		t.Errorf("a session whose node is gone was told to move after %v", told[second])
	}
	third := next()
	if told[third] < 900*time.Millisecond {
		t.Errorf("the second turn came after %v, want a second", told[third])
	}
	// Back on the old node, the last one has no reason to move any more.
	h.moved("lobby", n1, 3)
	for id, s := range sessions {
		if _, ok := told[id]; !ok {
			b.works(id, s)
		}
	}
}

// TestLongestTurn is a drain with more viewers than are told to move while the
// old node keeps the camera.
func TestLongestTurn(t *testing.T) {
	g := &Gateway{moves: rate.NewLimiter(1, 1)}
	now := time.Now()
	for range 100 {
		g.moves.ReserveN(now, 1)
	}
	var turns []time.Duration
	for range 100 {
		s := &session{gateway: g, sessionConfig: sessionConfig{mayMove: true}}
		s.movePaced(now)
		turns = append(turns, s.next.Sub(now))
	}
	slices.Sort(turns)
	if most := turns[99]; most > longestTurn {
		t.Errorf("a turn comes in %v", most)
	}
	if together := turns[60] - turns[40]; together <= 0 {
		t.Errorf("turns come together: %v", turns)
	}
}

// TestOnItsWay is a camera that the control plane has on no node because it
// moves: the old route counts until there is another.
func TestOnItsWay(t *testing.T) {
	h := newHarness(t, nil)
	n1, n2 := h.node("n1"), h.node("n2")
	h.control.assign("lobby", n1, 1)
	h.control.assign("yard", n1, 1)
	b := h.welcomed("")
	s := b.live("a", "lobby", n1)
	h.control.set(&controlv1.Route{Camera: "cameras/lobby", State: controlv1.Route_STATE_UNASSIGNED, Reason: controlv1.Reason_REASON_MOVING})
	b.live("mark", "yard", n1) // later than the route
	b.works("a", s)
	b.live("b", "lobby", n1)
	// The node is gone: both wait for the new route, and have it at once.
	n1.stop()
	b.untilState("a", stateMoving)
	b.watch("c", "lobby")
	b.until("waiting", func(m outbound) bool {
		return m.Session == "c" && m.State == stateConnecting && m.Reason == "node_unreachable"
	})
	time.Sleep(time.Second) // the attempts have become rare
	began := time.Now()
	h.control.assign("lobby", n2, 2)
	n2.next().answer("there")
	moved, answered := false, false
	for !moved || !answered {
		m := b.next()
		moved = moved || (m.Type == typeMove && m.Session == "a")
		answered = answered || (m.Type == typeAnswer && m.Session == "c")
	}
	if took := time.Since(began); took > 500*time.Millisecond {
		t.Errorf("the new route took %v", took)
	}
}

// TestNodeBackInPlace is a node that is started again before the control plane
// has given its cameras away.
func TestNodeBackInPlace(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	b.live("a", "lobby", n)
	n.stop()
	b.untilState("a", stateMoving)
	time.Sleep(3 * time.Second) // every backoff is at its longest
	began := time.Now()
	n.start()
	t.Cleanup(func() { n.stop() })
	b.untilType("a", typeMove)
	if took := time.Since(began); took > 2*time.Second {
		t.Errorf("told to move %v after the node came back", took)
	}
}

// TestDeafNode does not end what was left: the gateway waits no longer than it
// must.
func TestDeafNode(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	n.deaf = true
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	s := b.live("a", "lobby", n)
	began := time.Now()
	b.send(map[string]any{"type": "leave", "session": "a"})
	s.left()
	if took := time.Since(began); took < leaveWait/2 || took > 3*leaveWait {
		t.Errorf("the stream was given up after %v, want %v", took, leaveWait)
	}
}

func TestNodeEndsTheSession(t *testing.T) {
	h := newHarness(t, nil)
	n1, n2 := h.node("n1"), h.node("n2")
	b := h.welcomed("")
	for i, reason := range []fleet.Error{fleet.CameraMoved, fleet.NodeStopping} {
		id := fmt.Sprintf("s%d", i)
		h.moved("lobby", n1, int64(10*i+1))
		s := b.live(id, "lobby", n1)
		s.end <- fmt.Errorf("node: %w", reason)
		if m := b.untilState(id, stateMoving); m.Reason != strings.ToLower(string(reason)) {
			t.Errorf("%s: state %+v", string(reason), m)
		}
		h.control.assign("lobby", n2, int64(10*i+2))
		b.untilType(id, typeMove)
	}
	for i, reason := range []fleet.Error{fleet.CameraDeleted, fleet.PeerConnectionFailed, fleet.Internal} {
		id := fmt.Sprintf("e%d", i)
		h.moved("lobby", n1, int64(100+i))
		s := b.live(id, "lobby", n1)
		s.end <- fmt.Errorf("secret of the node: %w", reason)
		want := strings.ToLower(string(reason))
		m := b.untilType(id, typeError)
		if m.Reason != want || (reason == fleet.Internal && strings.Contains(m.Message, "secret")) {
			t.Errorf("%s: error %+v", string(reason), m)
		}
		if m := b.untilState(id, stateEnded); m.Reason != want {
			t.Errorf("%s: ended %+v", string(reason), m)
		}
	}
}

// TestRefusedOffer is what a node says of an offer it cannot use.
func TestRefusedOffer(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	for i, reason := range []fleet.Error{fleet.CodecUnsupported, fleet.BadOffer, fleet.NoVideoSection, fleet.NodeFull} {
		id := fmt.Sprintf("s%d", i)
		b.watch(id, "lobby")
		n.next().end <- fmt.Errorf("camera sends H265, browser offers H264: %w", reason)
		m := b.untilType(id, typeError)
		if m.Reason != strings.ToLower(string(reason)) || !strings.Contains(m.Message, "camera sends H265") {
			t.Errorf("error %+v", m)
		}
		b.untilState(id, stateEnded)
	}
}

// TestNodeDies loses the node's process; it comes back at the same address
// with the same route, as after a crash within the grace.
func TestNodeDies(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	s := b.live("a", "lobby", n)
	n.stop()
	s.orphaned()
	if m := b.untilState("a", stateMoving); m.Reason != "node_unreachable" || strings.Contains(m.Message, "127.0.0.1") {
		t.Errorf("state %+v", m)
	}
	// Meanwhile a new session waits, and keeps its offer and candidates.
	b.watch("b", "lobby")
	b.send(map[string]any{"type": "candidate", "session": "b", "candidate": map[string]any{"candidate": testCandidate}})
	b.until("connecting with a reason", func(m outbound) bool {
		return m.Session == "b" && m.State == stateConnecting && m.Reason == "node_unreachable"
	})
	n.start()
	t.Cleanup(func() { n.stop() })
	pending := n.next()
	if c := pending.request().GetCandidate(); c.GetCandidate() != testCandidate {
		t.Errorf("candidate %+v", c)
	}
	pending.answer("at last")
	moved, answered := false, false
	for !moved || !answered {
		m := b.next()
		moved = moved || (m.Type == typeMove && m.Session == "a")
		answered = answered || (m.Type == typeAnswer && m.Session == "b" && m.SDP == "at last")
	}
}

// TestPendingWatch goes through all that can be in the way of an answer.
func TestPendingWatch(t *testing.T) {
	h := newHarness(t, nil)
	n1, n2 := h.node("n1"), h.node("n2")
	h.control.set(&controlv1.Route{
		Camera: "cameras/lobby", State: controlv1.Route_STATE_UNASSIGNED,
		Reason: controlv1.Reason_REASON_NO_CAPACITY, Message: operatorsOnly,
	})
	b := h.welcomed("")
	b.watch("a", "lobby")
	if m := b.untilState("a", stateCameraOffline); m.Reason != "no_capacity" || m.Message != "every media node is full" {
		t.Errorf("state %+v", m)
	}
	b.send(map[string]any{"type": "candidate", "session": "a", "candidate": map[string]any{"candidate": testCandidate}})
	b.send(map[string]any{"type": "viewport", "session": "a", "width": 5, "height": 6, "visible": true})
	// A node that does not have the camera yet.
	h.control.assign("lobby", n1, 1)
	b.untilState("a", stateConnecting)
	for range 2 {
		n1.next().end <- fmt.Errorf("not yet: %w", fleet.CameraNotFound)
	}
	b.until("camera_not_found", func(m outbound) bool { return m.State == stateConnecting && m.Reason == "camera_not_found" })
	// One that has it no more.
	n1.next().end <- fmt.Errorf("moved: %w", fleet.StaleRoute)
	// One that never answers, from which the camera is taken.
	stuck := n1.next()
	h.control.assign("lobby", n2, 2)
	stuck.left()
	s := n2.next()
	if c := s.request().GetCandidate(); c.GetCandidate() != testCandidate || s.open.GetViewport().GetWidth() != 5 || s.open.GetGeneration() != 2 {
		t.Errorf("open %+v, candidate %+v", s.open, c)
	}
	s.answer("done")
	if m := b.untilType("a", typeAnswer); m.SDP != "done" {
		t.Errorf("answer %+v", m)
	}
}

func TestNodeThatDoesNotAnswer(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Limits.AnswerTimeout = 50 * time.Millisecond })
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	b.watch("a", "lobby")
	n.next().left()
	b.until("a reason", func(m outbound) bool { return m.State == stateConnecting && m.Reason == "node_unreachable" })
	n.next() // tried again
}

func TestCameraTakenAway(t *testing.T) {
	for _, test := range []struct {
		state  controlv1.Route_State
		reason string
	}{
		{controlv1.Route_STATE_NOT_FOUND, "camera_deleted"},
		{controlv1.Route_STATE_DISABLED, "camera_disabled"},
	} {
		t.Run(test.reason, func(t *testing.T) {
			h := newHarness(t, nil)
			n := h.node("n1")
			h.control.assign("lobby", n, 1)
			b := h.welcomed("")
			s := b.live("a", "lobby", n)
			h.control.set(&controlv1.Route{Camera: "cameras/lobby", State: test.state})
			if m := b.untilType("a", typeError); m.Reason != test.reason {
				t.Errorf("error %+v", m)
			}
			b.untilState("a", stateEnded)
			s.left()
		})
	}
}

// TestUnassignedWhileServed is a node that has lost the assignment and still
// sends: nobody is better off without it.
func TestUnassignedWhileServed(t *testing.T) {
	h := newHarness(t, nil)
	n1, n2 := h.node("n1"), h.node("n2")
	h.control.assign("lobby", n1, 1)
	b := h.welcomed("")
	s := b.live("a", "lobby", n1)
	h.control.set(&controlv1.Route{Camera: "cameras/lobby", State: controlv1.Route_STATE_UNASSIGNED, Reason: controlv1.Reason_REASON_NO_NODE})
	b.works("a", s)
	s.end <- fmt.Errorf("gone: %w", fleet.NodeStopping)
	if m := b.untilState("a", stateCameraOffline); m.Reason != "no_node" {
		t.Errorf("state %+v", m)
	}
	h.control.assign("lobby", n2, 2)
	b.untilType("a", typeMove)
}

func TestControlPlaneAway(t *testing.T) {
	h := newHarness(t, func(c *Config) { c.Limits.RouteTimeout = 200 * time.Millisecond })
	n1, n2 := h.node("n1"), h.node("n2")
	h.control.assign("lobby", n1, 1)
	h.control.assign("yard", n1, 1)
	b := h.welcomed("")
	s := b.live("a", "lobby", n1)
	b.live("gone", "yard", n1)
	b.send(map[string]any{"type": "leave", "session": "gone"})

	h.control.stop()
	eventually(t, "the gateway has noticed", func() bool { return h.gateway.routes.Trouble() != nil })
	b.works("a", s)
	b.live("b", "lobby", n1) // known because it is watched
	b.live("c", "yard", n1)  // known because it was
	b.watch("d", "garden")   // not known
	if m := b.untilType("d", typeError); m.Reason != "unavailable" {
		t.Errorf("error %+v", m)
	}
	b.untilState("d", stateEnded)
	if err := h.gateway.Ready(); err != nil {
		t.Errorf("not ready: %v", err)
	}

	// It comes back, with news.
	h.control.assign("lobby", n2, 2)
	h.control.start()
	b.untilType("a", typeMove)
	s.answer("still there")
	b.untilType("a", typeAnswer)
}

// TestNeverReady is a gateway whose control plane never was there.
func TestNeverReady(t *testing.T) {
	h := newHarness(t, nil)
	h.control.stop()
	other, err := New(Config{ControlPlane: unreachable{}, DialNode: h.gateway.nodes.dial})
	if err != nil {
		t.Fatal(err)
	}
	if err := other.Ready(); err == nil {
		t.Error("ready before Run")
	}
	resp, body := h.do("GET", "/readyz", "", "")
	if resp.StatusCode != http.StatusOK {
		t.Errorf("a gateway that was ready is not any more: %s", body)
	}
}

// TestVerdicts relays what is to blame for a bad picture, and which profile the
// viewer gets, whenever one of them changes.
func TestVerdicts(t *testing.T) {
	h := newHarness(t, nil)
	n := h.node("n1")
	h.control.assign("lobby", n, 1)
	b := h.welcomed("")
	s := b.live("a", "lobby", n)
	say := func(state *mediav1.SessionState) {
		state.State = mediav1.SessionState_STATE_LIVE
		s.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_State{State: state}})
	}
	for _, state := range []*mediav1.SessionState{
		{Profile: "main"},
		{Profile: "main", Verdict: "viewer_network", VerdictMessage: "this viewer loses 8.0 % of its packets"},
		{Profile: "main", Verdict: "viewer_network", VerdictMessage: "this viewer loses 12.0 % of its packets"},
		{Profile: "sub", Verdict: "viewer_network", VerdictMessage: "this viewer loses 12.0 % of its packets"},
		{Profile: "sub"},
	} {
		say(state)
		say(state) // again: the browser is told once
		m := b.next()
		want := outbound{
			Type: typeState, Session: "a", State: stateLive, Profile: state.GetProfile(), Verdict: state.GetVerdict(), VerdictMessage: state.GetVerdictMessage(),
		}
		if diff := cmp.Diff(want, m, cmpopts.IgnoreUnexported(outbound{})); diff != "" {
			t.Errorf("told (-want +got):\n%s", diff)
		}
	}
	say(&mediav1.SessionState{Verdict: strings.Repeat("x", 1000), VerdictMessage: strings.Repeat("y", 1000)})
	if m := b.next(); len(m.Verdict) > maxNamed+len("…") || len(m.VerdictMessage) > maxVerdict+len("…") {
		t.Errorf("a node that says too much: %d and %d bytes", len(m.Verdict), len(m.VerdictMessage))
	}
}
