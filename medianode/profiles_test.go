package medianode

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"
	"google.golang.org/protobuf/types/known/durationpb"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	"fanlight/medianode/stream"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// twoProfiles are the cameras of a rig whose lobby has a main and a sub profile.
func twoProfiles() simcam.Config {
	return simcam.Config{Cameras: []string{"lobby"}, Small: []string{"lobby-sub"}, Audio: true}
}

// both returns the lobby with two profiles.
func (r *rig) both(policy controlv1.Camera_PullPolicy, idle time.Duration) *controlv1.DesiredCamera {
	d := r.desired("lobby", 1)
	d.Camera.PullPolicy, d.Camera.IdleTimeout = policy, durationpb.New(idle)
	d.Camera.Profiles = append(d.Camera.Profiles, &controlv1.Profile{Id: "sub", Url: r.cameras.URL("lobby-sub"), Transport: controlv1.Profile_TRANSPORT_TCP})
	return d
}

const (
	always   = controlv1.Camera_PULL_POLICY_ALWAYS
	onDemand = controlv1.Camera_PULL_POLICY_ON_DEMAND
)

func box(width int32, visible bool) *mediav1.Viewport {
	return &mediav1.Viewport{Width: width, Height: width * 9 / 16, Visible: visible}
}

// lobbyAs opens the lobby for a box.
func lobbyAs(session string, v *mediav1.Viewport) *mediav1.Open {
	return &mediav1.Open{Camera: "cameras/lobby", Session: session, Viewport: v}
}

// show tells the node how the picture is shown.
func (w *watcher) show(t *testing.T, v *mediav1.Viewport) {
	t.Helper()
	if err := w.stream.Send(&mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Viewport{Viewport: v}}); err != nil {
		t.Fatal(err)
	}
}

// waitProfile waits until the viewer is told that it gets a profile.
func (w *watcher) waitProfile(t *testing.T, profile string) {
	t.Helper()
	w.wait(t, "profile "+profile, func() bool {
		return len(w.states) > 0 && w.states[len(w.states)-1].GetProfile() == profile
	})
}

// pulls waits until the camera's profiles are pulled, or not.
func (r *rig) pulls(t *testing.T, main, sub int) {
	t.Helper()
	eventually(t, "what is pulled", func() bool {
		return r.cameras.Sessions("lobby") == main && r.cameras.Sessions("lobby-sub") == sub
	})
}

// tape keeps what a viewer received.
type tape struct {
	mu      sync.Mutex // guards the rest
	sets    map[string][]byte
	profile string
	packets []taped
}

// taped is one packet.
type taped struct {
	kind      string
	ssrc      uint32
	seq       uint16
	timestamp uint32
	marker    bool
	arrival   time.Time
	profile   string // of video: which one's parameter sets came last
}

func (t *tape) add(kind string, p *rtp.Packet, arrival time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if kind == "video" {
		for profile, sps := range t.sets {
			if bytes.Contains(p.Payload, sps) {
				t.profile = profile
			}
		}
	}
	t.packets = append(t.packets, taped{kind, p.SSRC, p.SequenceNumber, p.Timestamp, p.Marker, arrival, t.profile})
}

// from returns the packets of a kind that arrived after a time.
func (t *tape) from(kind string, after time.Time) (out []taped) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.packets {
		if p.kind == kind && p.arrival.After(after) {
			out = append(out, p)
		}
	}
	return out
}

// await waits for a packet of video of a profile after a time, and returns it.
func (t *tape) await(tb *testing.T, profile string, after time.Time) (first taped) {
	tb.Helper()
	eventually(tb, "a picture of profile "+profile, func() bool {
		all := t.from("video", after)
		i := slices.IndexFunc(all, func(p taped) bool { return p.profile == profile })
		if i >= 0 {
			first = all[i]
		}
		return i >= 0
	})
	return first
}

// sets learns the profiles' SPS, by which pictures are told apart.
func (r *rig) spsOf(t *testing.T) map[string][]byte {
	t.Helper()
	out := make(map[string][]byte)
	c := r.node.list()[0]
	for _, p := range c.profiles() {
		release := c.hold(p.ID)
		eventually(t, "profile "+p.ID+" to say what it sends", func() bool {
			i := slices.IndexFunc(p.Stream.Tracks(), func(track stream.Track) bool { return len(track.ParameterSets) > 0 })
			if i >= 0 {
				out[p.ID] = p.Stream.Tracks()[i].ParameterSets[0]
			}
			return i >= 0
		})
		release()
	}
	if bytes.Equal(out["main"], out["sub"]) {
		t.Fatal("the profiles cannot be told apart")
	}
	return out
}

// The viewer gets the profile that fits its box, in one sequence of packets, and
// nothing while it does not look.
func TestProfileFollowsTheBox(t *testing.T) {
	const idle = 300 * time.Millisecond
	r := newRig(t, twoProfiles(), Config{})
	r.control.want(r.both(always, idle))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	r.pulls(t, 1, 0)
	tape := &tape{sets: r.spsOf(t)}
	r.pulls(t, 1, 0)

	w := r.watch(t, lobbyAs("s", box(320, true)), viewertest.Config{Audio: true, OnPacket: tape.add})
	w.waitProfile(t, "sub")
	r.pulls(t, 1, 1)
	w.waitFrames(t, 50)

	grown := time.Now()
	w.show(t, box(640, true))
	up := tape.await(t, "main", grown)
	if d := up.arrival.Sub(grown); d > 2*time.Second {
		t.Errorf("the main profile came after %v", d)
	}
	w.waitProfile(t, "main")
	r.pulls(t, 1, 0) // nobody watches the sub profile
	w.waitFrames(t, 50)

	// What was sent before the switch can still be asked for.
	asked := up.seq - 5
	if err := w.SendNACK(asked); err != nil {
		t.Fatal(err)
	}
	repaired := func() (n int, same bool) {
		all := slices.DeleteFunc(tape.from("video", time.Time{}), func(p taped) bool { return p.seq != asked })
		return len(all), len(all) > 1 && all[0].timestamp == all[1].timestamp && all[0].marker == all[1].marker
	}
	eventually(t, "the packet that was asked for again", func() bool { n, _ := repaired(); return n == 2 })
	if n, same := repaired(); n != 2 || !same {
		t.Errorf("packet %d came %d times, as the same: %v", asked, n, same)
	}

	shrunk := time.Now()
	w.show(t, box(320, true))
	down := tape.await(t, "sub", shrunk)
	if d := down.arrival.Sub(shrunk); d < 2900*time.Millisecond || d > 6*time.Second {
		t.Errorf("the sub profile came after %v", d)
	}
	w.waitFrames(t, 50)
	if v := w.Report().Video; v.Missing != 0 || v.Late != 0 || v.Duplicates != 1 || v.Backwards != 0 {
		t.Errorf("over two switches: %v", v)
	}
	tape.check(t, up, down)

	// Nobody looks.
	hidden := time.Now()
	w.show(t, box(320, false))
	r.pulls(t, 1, 0)
	if d := time.Since(hidden); d < time.Second+idle-50*time.Millisecond {
		t.Errorf("the sub profile was let go %v after it was hidden", d)
	}
	quiet := time.Now()
	time.Sleep(500 * time.Millisecond)
	if n := len(tape.from("video", quiet)) + len(tape.from("audio", quiet)); n != 0 {
		t.Errorf("%d packets came while nobody looked", n)
	}
	shown := time.Now()
	w.show(t, box(640, true))
	if d := tape.await(t, "main", shown).arrival.Sub(shown); d > 300*time.Millisecond {
		t.Errorf("the picture was there %v after it was shown again", d)
	}
	w.waitFrames(t, 25)
	if v := w.Report().Video; v.Missing != 0 || v.Late != 0 || v.Backwards != 0 {
		t.Errorf("after a pause: %v", v)
	}
	w.waitState(t, live)
	w.leave()
	r.pulls(t, 1, 0)
}

// check looks at a recording of two switches: one source of packets, timestamps
// in step with time, and sound throughout.
func (t *tape) check(tb *testing.T, switches ...taped) {
	tb.Helper()
	video, audio := t.from("video", time.Time{}), t.from("audio", time.Time{})
	if len(audio) == 0 {
		tb.Fatal("there is no sound")
	}
	for _, all := range [][]taped{video, audio} {
		if i := slices.IndexFunc(all, func(p taped) bool { return p.ssrc != all[0].ssrc }); i >= 0 {
			tb.Errorf("packet %d has another SSRC", i)
		}
	}
	for i := 1; i < len(audio); i++ {
		if d := audio[i].arrival.Sub(audio[i-1].arrival); d > 500*time.Millisecond {
			tb.Errorf("no sound for %v", d)
		}
		if int16(audio[i].seq-audio[i-1].seq) != 1 || int32(audio[i].timestamp-audio[i-1].timestamp) <= 0 {
			tb.Errorf("sound: packet %d at %d after %d at %d", audio[i].seq, audio[i].timestamp, audio[i-1].seq, audio[i-1].timestamp)
		}
	}
	// How far the timestamps are ahead of arrival, by the median of the frames of a
	// second: single ones are late on a busy machine.
	ahead := func(from, to time.Time) time.Duration {
		var all []time.Duration
		for _, p := range video {
			if p.marker && p.arrival.After(from) && p.arrival.Before(to) {
				all = append(all, time.Duration(int32(p.timestamp-video[0].timestamp))*time.Second/90_000-p.arrival.Sub(video[0].arrival))
			}
		}
		if len(all) < 10 {
			tb.Errorf("only %d frames in %v", len(all), to.Sub(from))
			return 0
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	for _, s := range switches {
		before, after := ahead(s.arrival.Add(-time.Second), s.arrival), ahead(s.arrival.Add(100*time.Millisecond), s.arrival.Add(1100*time.Millisecond))
		if d := (after - before).Abs(); d > 50*time.Millisecond {
			tb.Errorf("timestamps went off by %v at the switch to %s", d, s.profile)
		}
	}
}

// A camera on demand is pulled from the moment that somebody asks for it, though
// nobody is connected yet; only what is watched is pulled; and not for long
// after.
func TestProfilesOnDemand(t *testing.T) {
	const idle = 400 * time.Millisecond
	r := newRig(t, twoProfiles(), Config{})
	r.control.want(r.both(onDemand, idle))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_IDLE)
	if n := r.cameras.Plays("lobby") + r.cameras.Plays("lobby-sub"); n != 0 {
		t.Fatalf("pulled %d times before anybody watched", n)
	}

	// With an offer that is another's it never connects.
	other, err := viewertest.New(viewertest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	open := lobbyAs("stranger", box(320, true))
	if open.Offer, err = other.Offer(t.Context()); err != nil {
		t.Fatal(err)
	}
	stranger := r.watch(t, open, viewertest.Config{})
	r.pulls(t, 0, 1)
	if state := stranger.Report().State; state == "connected" {
		t.Error("the viewer is connected")
	}
	left := time.Now()
	stranger.leave()
	r.pulls(t, 0, 0)
	if d := time.Since(left); d < idle-50*time.Millisecond {
		t.Errorf("let go after %v", d)
	}
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_IDLE)

	w := r.watch(t, lobbyAs("hidden", box(320, false)), viewertest.Config{})
	if err := w.WaitState(t.Context(), "connected"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(idle)
	if main, sub := r.cameras.Plays("lobby"), r.cameras.Plays("lobby-sub"); main != 0 || sub != 1 {
		t.Errorf("a viewer who does not look has the camera pulled: %d, %d PLAY", main, sub)
	}
	w.show(t, box(640, true))
	w.waitFrames(t, 10)
	r.pulls(t, 1, 0)
	w.show(t, box(320, true))
	w.waitProfile(t, "sub")
	r.pulls(t, 0, 1)
	w.waitFrames(t, 10)
	w.show(t, box(320, false))
	r.pulls(t, 0, 0)
	w.show(t, box(320, true))
	w.waitFrames(t, 10)
	if v := w.Report().Video; v.Missing != 0 || v.Late != 0 || v.Backwards != 0 {
		t.Errorf("the viewer got %v", v)
	}
	w.leave()
	r.pulls(t, 0, 0)
}

// A main profile that fails is replaced by the sub profile, and comes back.
func TestProfileFails(t *testing.T) {
	r := newRig(t, twoProfiles(), Config{})
	r.control.want(r.both(always, 300*time.Millisecond))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	w := r.watch(t, lobbyAs("s", nil), viewertest.Config{})
	w.waitProfile(t, "main")
	w.waitFrames(t, 10)
	r.cameras.SetFault("lobby", simcam.Stop)
	w.waitProfile(t, "sub")
	w.waitFrames(t, 10)
	w.waitState(t, live)
	r.cameras.SetFault("lobby", simcam.None)
	w.waitProfile(t, "main")
	w.waitFrames(t, 10)
	r.pulls(t, 1, 0)
	if v := w.Report().Video; v.Missing > 1 || v.Late != 0 || v.Backwards != 0 { // a picture may have been cut off
		t.Errorf("the viewer got %v", v)
	}
}

// Who watches a profile that the camera no longer has must come again; who does
// not goes on. New sessions have what profiles there are.
func TestProfilesChange(t *testing.T) {
	r := newRig(t, twoProfiles(), Config{})
	both, one := r.both(always, 300*time.Millisecond), r.desired("lobby", 1)
	few := r.both(always, 300*time.Millisecond)
	few.Camera.MaxSessions = 1
	for _, less := range []*controlv1.DesiredCamera{one, few} {
		r.control.want(both)
		r.control.waitApplied(t)
		small := r.watch(t, lobbyAs("small", box(320, true)), viewertest.Config{})
		large := r.watch(t, lobbyAs("large", box(640, true)), viewertest.Config{})
		small.waitProfile(t, "sub")
		small.waitFrames(t, 5)
		large.waitFrames(t, 5)
		r.control.want(less)
		if err := small.ended(t); !errors.Is(err, fleet.CameraMoved) {
			t.Errorf("the session of the profile that is gone ended with %v", err)
		}
		r.pulls(t, 1, 0)
		large.waitFrames(t, 10)
		again := r.watch(t, lobbyAs("again", box(320, true)), viewertest.Config{})
		again.waitProfile(t, "main")
		again.waitFrames(t, 5)
		if d := again.Report().Video; !d.Perfect() {
			t.Errorf("the viewer that came again got %v", d)
		}
		// A session goes on with the profiles that it began with.
		r.control.want(both)
		r.control.waitApplied(t)
		again.waitFrames(t, 10)
		r.pulls(t, 1, 0)
		if v := large.Report().Video; v.Missing != 0 || v.Late != 0 {
			t.Errorf("the other viewer got %v", v)
		}
		again.leave()
		large.leave()
	}
	if plays := r.cameras.Plays("lobby"); plays > 3 { // max_sessions is not a source's matter but for fallback URLs
		t.Errorf("the main profile was pulled %d times", plays)
	}
}
