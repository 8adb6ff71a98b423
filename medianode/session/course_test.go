package session_test

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
	"fanlight/medianode/stream"
)

// holds counts who needs which profile.
type holds struct {
	t testing.TB

	mu    sync.Mutex // guards the rest
	users []int
	taken int
}

func newHolds(t testing.TB, profiles int) *holds { return &holds{t: t, users: make([]int, profiles)} }

func (h *holds) hold(profile int) (release func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.users[profile]++
	h.taken++
	released := false
	return func() {
		h.mu.Lock()
		defer h.mu.Unlock()
		if released {
			h.t.Errorf("profile %d is released twice", profile)
		}
		released = true
		h.users[profile]--
	}
}

// of returns how many hold a profile.
func (h *holds) of(profile int) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.users[profile]
}

func (h *holds) balanced() {
	h.t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, n := range h.users {
		if n != 0 {
			h.t.Errorf("%d hold profile %d still", n, i)
		}
	}
	if h.taken == 0 {
		h.t.Error("nobody held anything")
	}
}

// pair is a camera with two profiles that are both live.
func pair(t testing.TB) (main, sub *camera, profiles []session.Profile, board *stream.Board) {
	t.Helper()
	main, sub = newCamera(t), newCamera(t)
	for _, c := range []*camera{main, sub} {
		c.connect(h264Track())
	}
	board = stream.NewBoard()
	t.Cleanup(func() { board.Close(nil) })
	board.SetStatus(pairStatus(fleet.CameraLive))
	return main, sub, []session.Profile{{ID: "main", Stream: main.stream}, {ID: "sub", Stream: sub.stream}}, board
}

// pairStatus is a camera's of which the main profile is in a state.
func pairStatus(state fleet.CameraState) fleet.CameraStatus {
	return fleet.CameraStatus{State: fleet.CameraLive, Profiles: []fleet.ProfileStatus{{ID: "main", State: state}, {ID: "sub", State: fleet.CameraLive}}}
}

// Whatever happens in whatever order, what was held is let go, once.
func TestHoldsAreBalanced(t *testing.T) {
	n := newNode(t, nil)
	main, sub, profiles, board := pair(t)
	main.play(20*time.Millisecond, false)
	sub.play(20*time.Millisecond, false)
	h := newHolds(t, 2)
	cfg := session.OpenConfig{Profiles: profiles, Board: board, Hold: h.hold, Codecs: nil}
	stop := make(chan struct{})
	var steering, watching sync.WaitGroup
	steering.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(30 * time.Millisecond):
				board.SetStatus(pairStatus([]fleet.CameraState{fleet.CameraLive, fleet.CameraFailed, fleet.CameraConnecting}[i%3]))
			}
		}
	})
	offers := make(chan string, 4)
	for range cap(offers) {
		o, err := newViewer(t, viewertest.Config{}).Offer(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		offers <- o
	}
	end := time.Now().Add(4 * time.Second)
	for who := range cap(offers) { // sessions that never connect
		offer := <-offers
		watching.Go(func() {
			for i := 0; time.Now().Before(end); i++ {
				own := cfg
				own.ID, own.Camera, own.Offer = fleet.SessionID(fmt.Sprint(who, "-", i)), "lobby", offer
				own.Viewport = &session.Viewport{Width: 100 + rand.IntN(2000), Visible: rand.IntN(3) > 0}
				if i%5 == 4 {
					own.Offer = offer[:len(offer)/2] // may or may not be good
				}
				s, _, err := n.Open(own)
				if err != nil {
					continue
				}
				if i%3 == 0 {
					s.Close() // it was never run
					continue
				}
				r := run(t, s)
				for range rand.IntN(8) {
					s.SetViewport(session.Viewport{Width: 100 + rand.IntN(2000), Visible: rand.IntN(3) > 0})
					time.Sleep(time.Duration(rand.IntN(10)) * time.Millisecond)
				}
				switch i % 2 {
				case 0:
					s.Close()
				default:
					r.stop()
				}
				s.Close()
			}
		})
	}
	v := newViewer(t, viewertest.Config{}) // and one that does
	r := n.watch(t, v, cfg)
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 10 })
	for time.Now().Before(end) {
		r.SetViewport(session.Viewport{Width: 100 + rand.IntN(2000), Visible: rand.IntN(4) > 0})
		time.Sleep(time.Duration(rand.IntN(700)) * time.Millisecond)
	}
	close(stop)
	steering.Wait()
	watching.Wait()
	r.stop()
	h.balanced()
	if s := r.Stats(); s.Switches == 0 || s.WriteErrors != 0 {
		t.Errorf("the viewer's session: %+v", s)
	}
	if got := v.Report().Video; got.Missing > int(r.Stats().Switches) || got.Backwards != 0 || got.Duplicates != 0 {
		t.Errorf("after %d switches: %v", r.Stats().Switches, got)
	}
}

// A profile is held from Open on, the one before until the next one's picture is
// there, and none while nobody looks.
func TestHolds(t *testing.T) {
	n := newNode(t, nil)
	main, sub, profiles, board := pair(t)
	main.play(20*time.Millisecond, false)
	h := newHolds(t, 2)
	v := newViewer(t, viewertest.Config{})
	offer, err := v.Offer(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	s, answer, err := n.Open(session.OpenConfig{ID: "s1", Camera: "lobby", Profiles: profiles, Board: board, Hold: h.hold, Offer: offer, Viewport: &session.Viewport{Width: 1920, Visible: true}})
	if err != nil {
		t.Fatal(err)
	}
	if h.of(0) != 1 || h.of(1) != 0 {
		t.Errorf("after Open %d hold main and %d sub", h.of(0), h.of(1))
	}
	r := run(t, s)
	if err := v.Answer(answer); err != nil {
		t.Fatal(err)
	}
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 5 })
	s.SetViewport(session.Viewport{Width: 100, Visible: true})
	eventually := func(what string, main, sub int) {
		t.Helper()
		for end := time.Now().Add(20 * time.Second); h.of(0) != main || h.of(1) != sub; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("%s: %d hold main and %d sub, want %d and %d", what, h.of(0), h.of(1), main, sub)
			}
		}
	}
	eventually("there is no picture of the sub profile yet", 1, 1)
	before := v.Report().Video.Frames
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > before+20 }) // main goes on
	if h.of(0) != 1 || h.of(1) != 1 {
		t.Errorf("while the next is waited for %d hold main and %d sub", h.of(0), h.of(1))
	}
	sub.play(20*time.Millisecond, false)
	eventually("the sub profile is there", 0, 1)
	s.SetViewport(session.Viewport{Width: 100})
	eventually("hidden", 0, 0)
	s.SetViewport(session.Viewport{Width: 100, Visible: true})
	eventually("shown", 0, 1)
	r.stop()
	s.Close()
	h.balanced()
	if got := v.Report().Video; got.Missing != 0 || got.Backwards != 0 {
		t.Errorf("the viewer got %v", got)
	}
}

// A profile that is closed is left alone by who does not wait for it; the session
// of who does ends, as one that has it.
func TestNextProfileClosed(t *testing.T) {
	for _, waits := range []bool{false, true} {
		n := newNode(t, nil)
		main, sub, profiles, board := pair(t)
		main.play(20*time.Millisecond, false)
		v, h := newViewer(t, viewertest.Config{}), newHolds(t, 2)
		r := n.watch(t, v, session.OpenConfig{Profiles: profiles, Board: board, Hold: h.hold, Viewport: &session.Viewport{Width: 1920, Visible: true}})
		wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 5 })
		if !waits {
			sub.stream.Close(fleet.CameraMoved)
		}
		r.SetViewport(session.Viewport{Width: 100, Visible: true})
		before := v.Report().Video.Frames
		wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > before+200 }) // 4 s
		if !waits {
			if h.of(1) != 0 || h.of(0) != 1 {
				t.Errorf("%d hold the profile that is closed, %d the other", h.of(1), h.of(0))
			}
			r.stop()
			continue
		}
		if h.of(1) != 1 {
			t.Error("the sub profile is not waited for")
		}
		sub.stream.Close(fleet.CameraMoved)
		want(t, r.wait(t), fleet.CameraMoved)
	}
}
