package controlplane

import (
	"time"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	// warmTime is how long a new node has to get a camera LIVE before its move
	// counts as stuck.
	warmTime = 15 * time.Second
	// letGoTime is how long the leader waits for a node to say that it has let go
	// of a camera: twice what it may take. A node of an older version never says.
	letGoTime = time.Minute
	// maxMoves is how many moves away from a node may be under way.
	maxMoves = 32
)

// presence is what is known of a node.
type presence int

const (
	gone    presence = iota // not connected
	awaited                 // not connected, and may be on its way back
	here
	closing // connected, and to be empty by now: its drain's deadline has passed
)

// scene is what the leader knows of a camera when it decides on its move.
type scene struct {
	node, from presence // of the assignment's nodes
	live       bool     // LIVE at Node when last seen
	fromLive   bool     // LIVE at From when last seen
	single     bool     // accepts one RTSP session
	draining   bool     // From is to be emptied, or has not the labels any more
	full       bool     // as many moves away from Node as may be are under way
	age        time.Duration
	// holding is how long a node that is gone may still pull a camera that
	// accepts one RTSP session.
	holding time.Duration
}

// place is where a plan wants a camera; without a node, why there is none.
type place struct {
	node    fleet.NodeID
	reason  controlv1.Reason
	message string
}

// relocate returns the assignment that brings a camera to a place. Its
// generation is 0 if it is to be a new one. ok is false if the camera has to
// stay as it is for now, and moves when what it waits for has happened.
func relocate(old store.Assignment, to place, s scene) (next store.Assignment, ok bool) {
	old, s = simplify(old, s)
	next = old.Settle()
	next.Node, next.Reason, next.Message = to.node, to.reason, to.message
	next.Generation, next.Previous = 0, old.Node
	from := func(node fleet.NodeID, generation int64, m store.Move) (store.Assignment, bool) {
		next.From, next.FromGeneration, next.Move = node, generation, m
		return next, true
	}
	switch old.Move {
	case store.Warming:
		disabled := to.reason == controlv1.Reason_REASON_DISABLED
		switch {
		case s.from == closing || disabled:
			return next, true
		case to.node == old.From || to.node == "" || s.single:
			// Its old node still serves it: better there than nowhere, and no
			// viewer notices.
			return giveUp(old, to), true
		}
		return from(old.From, old.FromGeneration, store.Warming)
	case store.Serving:
		switch {
		case s.node == gone && to.node != "" && to.node != old.From:
			return from(old.From, old.FromGeneration, store.Serving)
		case (s.node == here || s.node == awaited) && to.node != "" && to.node != old.From:
			return old, false // one move at a time
		}
		return next, true
	case store.Releasing:
		if to.node == old.From {
			return next, true // it need not let go first
		}
		return from(old.From, old.FromGeneration, store.Releasing)
	case store.NoMove:
	}
	switch {
	case old.Node == "":
		return next, true
	case s.single && to.node == "":
		return from(old.Node, old.Generation, store.Releasing)
	case s.single && (s.node == gone || s.node == awaited):
		return next, s.holding <= 0
	case s.single && s.full:
		return old, false
	case s.single:
		return from(old.Node, old.Generation, store.Releasing)
	case s.node == awaited && to.node != "":
		return old, false // it is drained, but may have viewers
	case to.node == "" || !s.live || s.node != here:
		return next, true
	case s.full:
		return old, false
	}
	return from(old.Node, old.Generation, store.Warming)
}

// countedOut returns the node that a decision takes to pull a camera no more
// because it is gone; empty: none. For a camera that accepts one RTSP session it
// must still be gone when that is stored, which the leader sees a moment later.
func countedOut(old *store.Assignment, next store.Assignment, v cameraView) fleet.NodeID {
	switch {
	case old == nil, next.From != "":
	case old.Move == store.Releasing && v.from == nil:
		return old.From
	case old.Move == store.NoMove && v.camera.Desired.GetMaxSessions() == 1 && v.node == nil:
		return old.Node
	}
	return ""
}

// simplify takes a node that is gone out of a move which did not depend on its
// letting go.
func simplify(old store.Assignment, s scene) (store.Assignment, scene) {
	if (old.Move == store.Warming || old.Move == store.Serving) && s.from == gone {
		return old.Settle(), s
	}
	return old, s
}

// giveUp returns the assignment by which a camera that was Warming stays where
// it is, under the generation that it has there.
func giveUp(a store.Assignment, to place) store.Assignment {
	back := a.Settle()
	back.Node, back.Generation, back.Previous = a.From, a.FromGeneration, a.Node
	back.Reason, back.Message = controlv1.Reason_REASON_UNSPECIFIED, ""
	if to.node == "" {
		back.Reason, back.Message = to.reason, to.message
	}
	return back
}

// step is what a move does next.
type step int

const (
	stay   step = iota
	serve       // the new node takes over
	settle      // the old node has no part in it any more
	back        // the camera stays where it is
	stuck       // it goes on, and operators are told
)

// advance returns what a move does next, and how long until that may be another;
// 0: only when something happens.
//
// A move that is stuck, because the new node does not get LIVE what the old one
// has LIVE, never costs viewers their picture: for balance it is given up; from a
// node that is being emptied, or that the camera does not fit any more, it goes on
// until the new node is LIVE, the old one is gone, or the drain's deadline has
// passed, and makes room for other moves.
func advance(a *store.Assignment, s scene) (step, time.Duration) {
	switch a.Move {
	case store.Warming:
		switch {
		case s.from == gone || s.from == closing:
			return settle, 0
		case s.single:
			return back, 0
		case s.node == gone || s.node == awaited:
			return stay, 0 // the next plan gives it another, or it is back
		case s.live:
			return serve, 0
		case s.age < warmTime:
			return stay, warmTime - s.age
		case !s.fromLive:
			return serve, 0 // no worse there
		case !s.draining:
			return back, 0
		case a.Reason == controlv1.Reason_REASON_UNSPECIFIED:
			return stuck, 0
		}
	case store.Serving:
		if s.from == gone || s.from == closing || s.single || s.age >= letGoTime {
			return settle, 0
		}
		return stay, letGoTime - s.age
	case store.Releasing:
		switch {
		case s.from == gone || s.from == awaited:
			if s.holding <= 0 {
				return settle, 0
			}
			return stay, s.holding
		case s.age >= letGoTime:
			return settle, 0
		}
		return stay, letGoTime - s.age
	case store.NoMove:
	}
	return stay, 0
}

// apply returns an assignment after a step.
func (st step) apply(a *store.Assignment) store.Assignment {
	next := *a
	switch st {
	case serve:
		next.Move = store.Serving
	case settle:
		next = a.Settle()
	case back:
		return giveUp(*a, place{node: a.From})
	case stuck:
		next.Reason = controlv1.Reason_REASON_MOVING
		next.Message = "node " + string(a.Node) + " has not got it LIVE yet; it goes on trying, and takes over when it has, or at the deadline of a drain"
		return next
	case stay:
	}
	if next.Node != "" {
		next.Reason, next.Message = controlv1.Reason_REASON_UNSPECIFIED, ""
	}
	return next
}
