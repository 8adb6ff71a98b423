package medianode

import (
	"errors"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// refused opens a session that the node must refuse.
func (r *rig) refused(t *testing.T, open *mediav1.Open, want fleet.Error) {
	t.Helper()
	if err := r.watch(t, open, viewertest.Config{}).ended(t); !errors.Is(err, want) {
		t.Errorf("a session under generation %d: %v, want %v", open.GetGeneration(), err, want)
	}
}

// A camera that is handed over goes on for those who watch it, takes nobody new,
// and is released when the last has left.
func TestHandOver(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby", "yard"}}, Config{})
	r.control.want(r.desired("lobby", 1), r.desired("yard", 1))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	r.control.waitState(t, "yard", controlv1.CameraStatus_STATE_LIVE)
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1}, viewertest.Config{})
	w.waitFrames(t, 5)

	r.control.want(r.moving("lobby", 1, partHandOver), r.moving("yard", 1, partHandOver))
	r.control.waitApplied(t)
	r.control.waitReleased(t, "cameras/yard 1") // which nobody watches
	r.refused(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1}, fleet.StaleRoute)
	r.refused(t, &mediav1.Open{Camera: "cameras/lobby"}, fleet.StaleRoute)
	w.waitFrames(t, 40)
	if v := w.Report().Video; !v.Perfect() || r.cameras.Plays("lobby") != 1 {
		t.Errorf("the viewer got %v, and the camera saw %d PLAY", v, r.cameras.Plays("lobby"))
	}
	w.leave()
	r.control.waitReleased(t, "cameras/lobby 1")
	eventually(t, "the cameras to be let go", func() bool { return r.cameras.Sessions("lobby")+r.cameras.Sessions("yard") == 0 })
	r.refused(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1}, fleet.StaleRoute)

	// What was not heard is said again; nothing is pulled for it.
	r.control.want(r.moving("lobby", 1, partHandOver))
	r.control.waitReleased(t, "cameras/lobby 1")
	r.control.want(r.desired("lobby", 2))
	back := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 2}, viewertest.Config{})
	back.waitFrames(t, 5)
	if plays := r.cameras.Plays("lobby"); plays != 2 {
		t.Errorf("the camera saw %d PLAY, want 2", plays)
	}
}

// Viewers who do not follow don't keep a camera for ever.
func TestHandOverTimeout(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{HandOverTimeout: 500 * time.Millisecond})
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	w := r.watch(t, lobby(), viewertest.Config{})
	w.waitFrames(t, 5)
	r.control.want(r.moving("lobby", 1, partHandOver))
	if err := w.ended(t); !errors.Is(err, fleet.CameraMoved) {
		t.Errorf("the session ended with %v", err)
	}
	r.control.waitReleased(t, "cameras/lobby 1")
	eventually(t, "the camera to be let go", func() bool { return r.cameras.Sessions("lobby") == 0 })
}

// A process that was restarted has nothing to hand over.
func TestHandOverOfUnknown(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.moving("lobby", 3, partHandOver))
	r.control.waitReleased(t, "cameras/lobby 3")
	if r.cameras.Plays("lobby") != 0 || len(r.node.list()) != 0 {
		t.Error("it was pulled")
	}
}

// A camera on demand that is taken over is pulled before anybody watches, and
// its viewers have the idle timeout to arrive.
func TestTakeOverOnDemand(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	desired := func(p part, idle time.Duration) *controlv1.DesiredCamera {
		d := r.moving("lobby", 1, p)
		d.Camera.PullPolicy, d.Camera.IdleTimeout = controlv1.Camera_PULL_POLICY_ON_DEMAND, durationpb.New(idle)
		return d
	}
	r.control.want(desired(partTakeOver, time.Hour))
	if o := r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE); o.GetGeneration() != 1 {
		t.Errorf("reported under generation %d", o.GetGeneration())
	}
	r.control.want(desired(0, time.Hour))
	r.control.waitApplied(t)
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1}, viewertest.Config{})
	w.waitFrames(t, 5)
	if plays := r.cameras.Plays("lobby"); plays != 1 {
		t.Errorf("the camera saw %d PLAY", plays)
	}
	w.leave()
	r.control.want(desired(0, 100*time.Millisecond))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_IDLE)

	r.control.want(desired(partTakeOver, 100*time.Millisecond)) // and nobody comes
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	r.control.want(desired(0, 100*time.Millisecond))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_IDLE)
	eventually(t, "the source to end", func() bool { return r.cameras.Sessions("lobby") == 0 })
}

// Neither a part nor a generation restarts a source or ends a session, also when
// a hand-over is taken back.
func TestPartsRestartNothing(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.moving("lobby", 1, partTakeOver))
	r.control.waitApplied(t)
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1}, viewertest.Config{})
	w.waitFrames(t, 5)
	for i, p := range []part{0, partAwaitHandOver, 0, partHandOver, 0, partHandOver, partAwaitHandOver, partTakeOver, 77, 0} {
		r.control.want(r.moving("lobby", int64(1+i/2), p))
		r.control.waitApplied(t)
		w.waitFrames(t, 3)
	}
	if v := w.Report().Video; !v.Perfect() || r.cameras.Plays("lobby") != 1 {
		t.Errorf("the viewer got %v, and the camera saw %d PLAY", v, r.cameras.Plays("lobby"))
	}
	r.control.update(func() {
		if len(r.control.gone) != 0 {
			t.Errorf("released: %v", r.control.gone)
		}
	})
	r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Session: "late", Generation: 5}, viewertest.Config{}).waitFrames(t, 5)
}

// What leaves the desired set is released, and again on the next stream; not if
// it is back.
func TestReleased(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby", "yard"}}, Config{})
	r.control.want(r.desired("lobby", 1), r.desired("yard", 4))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	r.control.waitState(t, "yard", controlv1.CameraStatus_STATE_LIVE)
	r.control.want(r.desired("yard", 4))
	r.control.waitReleased(t, "cameras/lobby 1")
	eventually(t, "the source to end", func() bool { return r.cameras.Sessions("lobby") == 0 })
	r.control.want()
	r.control.waitReleased(t, "cameras/yard 4")
	r.control.want(r.desired("yard", 4))
	r.control.waitApplied(t)

	r.control.update(func() { r.control.down = true })
	eventually(t, "the node to notice", func() bool { return !r.node.departure().connected })
	r.control.update(func() { r.control.down = false })
	r.control.wait(t, "the node to come back", func() bool { return len(r.control.hellos) == 2 })
	r.control.waitReleased(t, "cameras/lobby 1")
}

// A camera that is let go, pulled again and let go again is released when the
// last source has ended, though the goroutine that saw the first end may be late.
func TestReleasedTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, err := New(Config{Node: "node-1", ControlPlane: &grpc.ClientConn{}, SessionAddress: "127.0.0.1:1"})
		if err != nil {
			t.Fatal(err)
		}
		pulled := func(generation int64) *camera {
			c := newCamera(n, desired{Camera: fleet.Camera{ID: "lobby"}, generation: generation})
			c.cancel = func() {}
			n.seen[c.id] = generation
			return c
		}
		first, second := pulled(1), pulled(2)
		n.mu.Lock()
		n.letGo(first, fleet.CameraMoved)
		n.letGo(second, fleet.CameraMoved)
		n.mu.Unlock()
		close(first.done)
		synctest.Wait()
		if n.released.unsaid() != 0 {
			t.Errorf("released while it is pulled: %v", n.released.cameras)
		}
		close(second.done)
		n.running.Wait()
		if r := n.released.cameras["lobby"]; r.generation != 2 || len(n.ending) != 0 {
			t.Errorf("released %v, ending %v", n.released.cameras, n.ending)
		}
	})
}

// A node whose last camera has been released stays until that can be stored.
func TestReleaseIsStored(t *testing.T) {
	now := time.Now()
	var r releases
	r.add("lobby", 1)
	for _, c := range []struct {
		what      string
		connected bool
		after     time.Duration
		done      bool
	}{
		{"unsaid", true, time.Hour, false},
		{"unsaid, and nobody to say it to", false, 0, true},
		{"just said", true, leaveStore / 2, false},
		{"just said, and the stream has ended", false, leaveStore / 2, true},
		{"stored", true, leaveStore, true},
	} {
		if c.what == "just said" {
			r.take(now)
		}
		d := departure{connected: c.connected, unsaid: r.unsaid(), said: r.said}
		if d.done(now.Add(c.after)) != c.done {
			t.Errorf("%s: done is %v", c.what, !c.done)
		}
	}
}

// Releases are repeated for as long as a replica may not have stored them.
func TestReleases(t *testing.T) {
	var r releases
	now := time.Now()
	check := func(what string, after time.Duration, want ...int64) {
		t.Helper()
		now = now.Add(after)
		var got []int64
		for _, a := range r.take(now) {
			got = append(got, a.GetGeneration())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	check("empty", 0)
	r.remove("a", 1)
	r.add("a", 1)
	r.add("b", 2)
	check("two", time.Hour, 1, 2) // however long there was no stream
	check("said", 0)
	r.again(now)
	r.remove("b", 1)
	check("on another stream", time.Minute, 1, 2)
	r.add("a", 3)
	check("superseded", 0, 3)
	r.remove("b", 2)
	r.again(now)
	check("taken back", 0, 3)
	check("nothing new", releaseMemory+time.Second)
	r.again(now)
	check("old", 0)
	if len(r.cameras) != 0 {
		t.Errorf("kept: %v", r.cameras)
	}
}
