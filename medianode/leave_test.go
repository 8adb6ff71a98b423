package medianode

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// leave calls Leave.
func (r *rig) leave(ctx context.Context) <-chan error {
	done := make(chan error, 1)
	go func() { done <- r.node.Leave(ctx) }()
	return done
}

func awaitLeave(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(patience):
		t.Fatal("the node does not leave")
		return nil
	}
}

// A node that leaves serves, and says so on each stream, until the last camera
// has been handed over.
func TestLeave(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby", "yard"}}, Config{})
	r.control.want(r.desired("lobby", 1), r.desired("yard", 1))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	r.control.waitState(t, "yard", controlv1.CameraStatus_STATE_LIVE)
	left := r.leave(t.Context())
	r.control.wait(t, "Leave", func() bool { return r.control.leaves == 1 })
	if err := r.node.Ready(); !errors.Is(err, fleet.Unavailable) || !strings.Contains(err.Error(), "leaving") {
		t.Errorf("ready: %v", err)
	}
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1}, viewertest.Config{})
	w.waitFrames(t, 5)

	r.control.update(func() { r.control.down = true })
	eventually(t, "the node to notice", func() bool { return !r.node.departure().connected })
	r.control.update(func() { r.control.down = false })
	r.control.wait(t, "Leave on the new stream", func() bool { return r.control.leaves == 2 })

	r.control.want(r.moving("lobby", 1, partHandOver), r.moving("yard", 1, partAwaitHandOver))
	r.control.waitApplied(t)
	w.waitFrames(t, 30)
	select {
	case err := <-left:
		t.Fatalf("the node left its viewers: %v", err)
	default:
	}
	w.leave()
	r.control.waitReleased(t, "cameras/lobby 1")
	r.control.want(r.moving("yard", 1, partHandOver))
	r.control.waitReleased(t, "cameras/yard 1")
	if err := awaitLeave(t, left); err != nil {
		t.Error(err)
	}
	if err := awaitLeave(t, r.leave(t.Context())); err != nil {
		t.Errorf("a second time: %v", err)
	}
}

// A node whose cameras nobody takes, or whose control plane is away, does not
// wait for ever. What is on its way is waited for.
func TestLeaveInVain(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.moving("lobby", 1, partAwaitHandOver))
	r.control.waitApplied(t)
	began := time.Now()
	left := r.leave(t.Context())
	ended, cancel := context.WithTimeoutCause(t.Context(), leaveStall+500*time.Millisecond, errors.New("it has taken too long"))
	defer cancel()
	if err := awaitLeave(t, r.leave(ended)); err == nil || !strings.HasSuffix(err.Error(), "it has taken too long") {
		t.Errorf("the end of the context: %v", err)
	}
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	if err := awaitLeave(t, left); !errors.Is(err, fleet.Unavailable) || !strings.Contains(err.Error(), "no other node takes them") {
		t.Errorf("nobody takes the camera: %v", err)
	}
	if took := time.Since(began); took < 2*leaveStall {
		t.Errorf("it took %v, though for %v a move was under way", took, leaveStall)
	}

	r.control.update(func() { r.control.down = true })
	eventually(t, "the node to notice", func() bool { return !r.node.departure().connected })
	if err := awaitLeave(t, r.leave(t.Context())); !errors.Is(err, fleet.Unavailable) || !strings.Contains(err.Error(), "no control plane can be reached") {
		t.Errorf("no control plane: %v", err)
	}
	again := time.Now()
	if err := awaitLeave(t, r.leave(t.Context())); !errors.Is(err, fleet.Unavailable) || time.Since(again) > leaveStall/2 {
		t.Errorf("no control plane for long: %v after %v", err, time.Since(again))
	}
	r.stopNode()
	if err := awaitLeave(t, r.leave(t.Context())); err != nil {
		t.Errorf("after the end: %v", err)
	}
}
