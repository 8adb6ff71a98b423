package medianode

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

const (
	connecting = mediav1.SessionState_STATE_CONNECTING
	live       = mediav1.SessionState_STATE_LIVE
	offline    = mediav1.SessionState_STATE_CAMERA_OFFLINE
)

func lobby() *mediav1.Open { return &mediav1.Open{Camera: "cameras/lobby"} }

// One RTSP session at the camera, however many watch, and each gets every packet.
func TestOneSourceForManyViewers(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	if err := r.node.Ready(); !errors.Is(err, fleet.Unavailable) && err != nil {
		t.Error(err)
	}
	r.control.want(r.desired("lobby", 1))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	if err := r.node.Ready(); err != nil {
		t.Error(err)
	}
	const viewers = 8
	var all []*watcher
	for i := range viewers {
		open := lobby()
		open.Session = fmt.Sprint("s", i)
		all = append(all, r.watch(t, open, viewertest.Config{}))
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, w := range all {
		if err := w.WaitFrames(ctx, 40); err != nil {
			t.Fatal(err)
		}
		w.waitState(t, live)
		if got := w.Report().Video; !got.Perfect() {
			t.Errorf("a viewer got %v", got)
		}
	}
	if plays, now := r.cameras.Plays("lobby"), r.cameras.Sessions("lobby"); plays != 1 || now != 1 {
		t.Errorf("the camera saw %d PLAY and has %d sessions", plays, now)
	}
	stats, err := r.sessions.GetStats(t.Context(), &mediav1.GetStatsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if len(stats.GetCameras()) != 1 {
		t.Fatalf("stats of %d cameras", len(stats.GetCameras()))
	}
	s := stats.GetCameras()[0]
	if s.GetCamera() != "cameras/lobby" || s.GetViewers() != viewers || s.GetWidth() == 0 || s.GetBitrateBps() == 0 || s.GetFramesPerSecond() < 5 ||
		s.GetPackets() == 0 || s.GetPacketsLost() != 0 || s.GetState().GetState() != live {
		t.Errorf("stats %v", s)
	}
	for _, w := range all {
		w.leave()
	}
	eventually(t, "all to have left", func() bool {
		stats, err := r.sessions.GetStats(t.Context(), &mediav1.GetStatsRequest{Cameras: []string{"cameras/lobby", "cameras/none"}})
		return err == nil && len(stats.GetCameras()) == 1 && stats.GetCameras()[0].GetViewers() == 0
	})
}

// A camera that goes and comes back is the same session with continuous
// numbers; the viewer is told.
func TestCameraLossKeepsSession(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.desired("lobby", 1))
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1}, viewertest.Config{})
	w.waitFrames(t, 10)
	r.cameras.SetFault("lobby", simcam.Stop)
	if s := w.waitState(t, offline); s.GetReason() == "" || s.GetMessage() == "" || strings.Contains(s.GetMessage(), "127.0.0.1") {
		t.Errorf("state %v", s)
	}
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_FAILED)
	r.cameras.SetFault("lobby", simcam.None)
	w.waitState(t, live)
	w.waitFrames(t, 10)
	r.cameras.SetFaultFor("lobby", simcam.SequenceJump, 500*time.Millisecond)
	w.waitFrames(t, 40)
	got := w.Report()
	if v := got.Video; got.State != "connected" || v.Backwards != 0 || v.MaxStep > 60*90_000 || v.Missing > 100 {
		t.Errorf("the viewer got %v", got)
	}
	if plays := r.cameras.Plays("lobby"); plays != 2 {
		t.Errorf("the camera saw %d PLAY, want 2", plays)
	}
}

// A session may be opened before the camera can be watched.
func TestSessionBeforeCamera(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.cameras.SetFault("lobby", simcam.NotFound)
	r.control.want(r.desired("lobby", 1))
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1}, viewertest.Config{})
	if s := w.waitState(t, offline); s.GetReason() != "stream_not_found" || s.GetRetryTime() == nil {
		t.Errorf("state %v", s)
	}
	r.cameras.SetFault("lobby", simcam.None)
	w.waitState(t, live)
	w.waitFrames(t, 5)
}

// What changes restarts no more than it must.
func TestReconcile(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby", "yard", "gate"}}, Config{})
	check := func(what string, plays map[string]int, errs ...controlv1.Reason) {
		t.Helper()
		applied := r.control.waitApplied(t)
		if len(applied.GetErrors()) != len(errs) {
			t.Fatalf("%s: errors %v, want %v", what, applied.GetErrors(), errs)
		}
		for i, e := range applied.GetErrors() {
			if e.GetReason() != errs[i] || e.GetMessage() == "" {
				t.Errorf("%s: error %v, want %v", what, e, errs[i])
			}
		}
		for camera, n := range plays {
			eventually(t, fmt.Sprintf("%s: %d PLAY at %s, not %d", what, n, camera, r.cameras.Plays(camera)), func() bool { return r.cameras.Plays(camera) == n })
		}
	}
	set := r.desired("lobby", 5)
	r.control.want(set, r.desired("yard", 5))
	check("first", map[string]int{"lobby": 1, "yard": 1})
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 5}, viewertest.Config{})
	w.waitFrames(t, 10)

	labelled := r.desired("lobby", 5)
	labelled.Camera.Labels = map[string]string{"floor": "1"}
	labelled.Camera.DisplayName = "Lobby"
	r.control.want(labelled, r.desired("yard", 5))
	check("label", map[string]int{"lobby": 1, "yard": 1})
	r.control.want(labelled, r.desired("yard", 5))
	check("the same again", map[string]int{"lobby": 1, "yard": 1})

	r.control.want(labelled, r.desired("yard", 4), &controlv1.DesiredCamera{Camera: &controlv1.Camera{Name: "cameras/Bad"}},
		&controlv1.DesiredCamera{Camera: &controlv1.Camera{Name: "cameras/empty"}}, r.desired("gate", 1))
	check("stale and malformed ones beside a good one", map[string]int{"lobby": 1, "yard": 1, "gate": 1},
		controlv1.Reason_REASON_MOVING, controlv1.Reason_REASON_PROTOCOL_ERROR, controlv1.Reason_REASON_PROTOCOL_ERROR)
	if now := r.cameras.Sessions("yard"); now != 1 {
		t.Errorf("a refused generation left %d RTSP sessions", now)
	}

	moved := r.desired("lobby", 6)
	moved.Camera.Profiles[0].Url = r.cameras.URL("gate")
	r.control.want(moved, r.desired("yard", 5))
	check("another URL", map[string]int{"gate": 2})
	eventually(t, "the old source to end", func() bool { return r.cameras.Sessions("lobby") == 0 && r.cameras.Sessions("gate") == 1 })
	w.waitFrames(t, 30)
	if got := w.Report(); got.State != "connected" || got.Video.Backwards != 0 {
		t.Errorf("after the change of URL the viewer has %v", got)
	}
	if o := r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE); o.GetGeneration() != 6 {
		t.Errorf("reported under generation %d", o.GetGeneration())
	}

	r.control.want(r.desired("yard", 5))
	check("removed", map[string]int{"yard": 1})
	if err := w.ended(t); !errors.Is(err, fleet.CameraMoved) {
		t.Errorf("the session of a removed camera ended with %v", err)
	}
	eventually(t, "its source to end", func() bool { return r.cameras.Sessions("gate") == 0 })

	r.control.want(moved, r.desired("yard", 5))
	check("back", map[string]int{"gate": 3, "yard": 1})
}

// A camera with other credentials is connected anew.
func TestCredentials(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}, Username: "admin", Password: "correct-horse"}, Config{})
	d := r.desired("lobby", 1)
	d.Camera.Username, d.Password = "admin", "wrong-battery"
	r.control.want(d)
	o := r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_FAILED)
	if o.GetStatus().GetReason() != controlv1.Reason_REASON_AUTHENTICATION_FAILED || o.GetStatus().GetRetryTime() == nil {
		t.Errorf("status %v", o.GetStatus())
	}
	d = r.desired("lobby", 1)
	d.Camera.Username, d.Password = "admin", "correct-horse"
	r.control.want(d)
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	r.stopNode()
	for _, secret := range []string{"correct-horse", "wrong-battery"} {
		if strings.Contains(r.log.String(), secret) {
			t.Error("a password is in the log")
		}
	}
}

// A camera on demand is pulled while there are sessions, and a little longer.
func TestOnDemand(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	d := r.desired("lobby", 1)
	d.Camera.PullPolicy, d.Camera.IdleTimeout = controlv1.Camera_PULL_POLICY_ON_DEMAND, durationpb.New(300*time.Millisecond)
	r.control.want(d)
	o := r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_IDLE)
	if o.GetStatus().GetReason() != controlv1.Reason_REASON_IDLE || r.cameras.Plays("lobby") != 0 {
		t.Errorf("status %v, %d PLAY", o.GetStatus(), r.cameras.Plays("lobby"))
	}
	w := r.watch(t, lobby(), viewertest.Config{})
	w.waitFrames(t, 5)
	w.leave()
	again := r.watch(t, lobby(), viewertest.Config{})
	again.waitFrames(t, 5)
	if plays := r.cameras.Plays("lobby"); plays != 1 {
		t.Errorf("%d PLAY for two viewers within the idle timeout", plays)
	}
	again.leave()
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_IDLE)
	eventually(t, "the source to end", func() bool { return r.cameras.Sessions("lobby") == 0 })
	r.watch(t, lobby(), viewertest.Config{}).waitFrames(t, 5)
	if plays := r.cameras.Plays("lobby"); plays != 2 {
		t.Errorf("%d PLAY, want 2", plays)
	}
}

// Without a control plane the node serves what it has; only a camera that takes
// a single RTSP session is let go when the lease has run out.
func TestControlPlaneAway(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby", "single", "yard", "attic"}}, Config{Labels: map[string]string{"site": "a"}, Version: "v1"})
	single := r.desired("single", 7)
	single.Camera.MaxSessions = 1
	quiet := r.desired("attic", 2) // of which there is never news
	quiet.Camera.PullPolicy = controlv1.Camera_PULL_POLICY_ON_DEMAND
	r.control.want(r.desired("lobby", 3), single, r.desired("yard", 4), quiet)
	r.control.waitState(t, "attic", controlv1.CameraStatus_STATE_IDLE)
	r.control.waitState(t, "yard", controlv1.CameraStatus_STATE_LIVE)
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	r.control.waitState(t, "single", controlv1.CameraStatus_STATE_LIVE)
	before := r.watch(t, lobby(), viewertest.Config{})
	before.waitFrames(t, 5)

	r.control.update(func() { r.control.down = true })
	eventually(t, "the single session to end", func() bool { return r.cameras.Sessions("single") == 0 })
	yard := r.node.list()[3]
	r.cameras.SetFault("yard", simcam.Stop) // which nobody hears now
	eventually(t, "the yard to fail", func() bool { return yard.board.Status().State == fleet.CameraFailed })
	before.waitFrames(t, 20)
	after := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Session: "after", Generation: 3}, viewertest.Config{})
	after.waitFrames(t, 5)
	if err := r.node.Ready(); err != nil {
		t.Error(err)
	}

	r.control.update(func() { r.control.down = false; clear(r.control.seen) })
	r.control.wait(t, "the node to come back", func() bool { return len(r.control.hellos) == 2 })
	hello := r.control.hellos[1]
	if hello.GetNode() != "nodes/node-1" || hello.GetBootId() == "" || hello.GetBootId() != r.control.hellos[0].GetBootId() || hello.GetVersion() != "v1" ||
		hello.GetLabels()["site"] != "a" || len(hello.GetMediaAddresses()) != 1 || hello.GetSessionAddress() != "127.0.0.1:2" {
		t.Errorf("hello %v", hello)
	}
	if running := hello.GetRunning(); len(running) != 4 || running[1].GetCamera() != "cameras/lobby" || running[1].GetGeneration() != 3 || running[2].GetGeneration() != 7 {
		t.Errorf("running %v", running)
	}
	if len(r.control.hellos[0].GetRunning()) != 0 {
		t.Errorf("running at first: %v", r.control.hellos[0].GetRunning())
	}
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE) // reported anew
	r.control.waitState(t, "single", controlv1.CameraStatus_STATE_LIVE)
	r.control.waitState(t, "yard", controlv1.CameraStatus_STATE_FAILED)
	r.control.waitState(t, "attic", controlv1.CameraStatus_STATE_IDLE)
	if plays := r.cameras.Plays("lobby"); plays != 1 {
		t.Errorf("the camera of all saw %d PLAY", plays)
	}
	before.waitFrames(t, 5)
}

// What gateways are refused, and why. Nobody else's picture stops.
func TestOpenSessionRefuses(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{Capacity: Capacity{Viewers: 1}})
	r.control.want(r.desired("lobby", 5))
	r.control.waitApplied(t)
	good := r.watch(t, lobby(), viewertest.Config{})
	good.waitFrames(t, 5)
	for _, c := range []struct {
		name string
		open *mediav1.Open
		want fleet.Error
	}{
		{"unknown camera", &mediav1.Open{Camera: "cameras/none"}, fleet.CameraNotFound},
		{"camera that the node never hears of", &mediav1.Open{Camera: "cameras/none", Generation: 9}, fleet.CameraNotFound},
		{"bad camera name", &mediav1.Open{Camera: "lobby"}, fleet.InvalidArgument},
		{"old route", &mediav1.Open{Camera: "cameras/lobby", Generation: 4}, fleet.StaleRoute},
		{"offer that is none", &mediav1.Open{Camera: "cameras/lobby", Offer: "v=1"}, fleet.BadOffer},
		{"offer too large", &mediav1.Open{Camera: "cameras/lobby", Offer: strings.Repeat("a", maxOffer+1)}, fleet.BadOffer},
		{"offer without video", &mediav1.Open{Camera: "cameras/lobby", Offer: "v=0\r\no=- 1 1 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\n"}, fleet.NoVideoSection},
		{"no room", lobby(), fleet.NodeFull},
		{"id too long", &mediav1.Open{Camera: "cameras/lobby", Session: strings.Repeat("a", maxSessionID+1)}, fleet.InvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := r.watch(t, c.open, viewertest.Config{}).ended(t); !errors.Is(err, c.want) {
				t.Errorf("error %v, want %v", err, c.want)
			}
		})
	}
	t.Run("no open", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		stream, err := r.sessions.OpenSession(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(&mediav1.OpenSessionRequest{}); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); !errors.Is(err, fleet.OutOfOrder) {
			t.Errorf("error %v", err)
		}
	})
	if _, err := r.sessions.GetStats(t.Context(), &mediav1.GetStatsRequest{Cameras: []string{"lobby"}}); !errors.Is(err, fleet.InvalidArgument) {
		t.Errorf("stats of a bad name: %v", err)
	}
	good.waitFrames(t, 5)
}

// A gateway may know of an assignment before the node does.
func TestRouteAheadOfAssignment(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want()
	r.control.waitApplied(t)
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 8}, viewertest.Config{})
	time.Sleep(50 * time.Millisecond) // so that it usually waits
	r.control.want(r.desired("lobby", 8))
	w.waitFrames(t, 5)
}

// Trickled candidates, rejected messages, an ICE restart, and the audit line.
func TestSessionMessages(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	open := lobby()
	open.Trickle, open.Viewer, open.RemoteAddress = true, "alice", "192.0.2.7"
	w := r.watch(t, open, viewertest.Config{})
	w.waitFrames(t, 5)
	send := func(m *mediav1.OpenSessionRequest) {
		t.Helper()
		if err := w.stream.Send(m); err != nil {
			t.Fatal(err)
		}
	}
	candidate := func(c string) *mediav1.OpenSessionRequest {
		mid := "0"
		return &mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Candidate{Candidate: &mediav1.Candidate{Candidate: c, SdpMid: &mid}}}
	}
	send(candidate("garbage"))
	send(&mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Restart{Restart: &mediav1.Restart{Offer: "garbage"}}})
	send(&mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Restart{Restart: &mediav1.Restart{Offer: strings.Repeat("a", maxOffer+1)}}})
	send(&mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Open{Open: open}})
	send(&mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Viewport{Viewport: &mediav1.Viewport{Width: 640}}})
	send(&mediav1.OpenSessionRequest{})
	w.wait(t, "four refusals", func() bool { return len(w.rejected) == 4 })
	for i, want := range []fleet.Error{fleet.BadCandidate, fleet.BadOffer, fleet.BadOffer, fleet.OutOfOrder} {
		if got := w.rejected[i]; got.GetReason() != string(want) || got.GetMessage() == "" {
			t.Errorf("refusal %d is %v, want %v", i, got, want)
		}
	}
	offer, err := w.Restart(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	send(&mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Restart{Restart: &mediav1.Restart{Offer: offer}}})
	w.wait(t, "the second answer", func() bool { return w.answers == 2 })
	w.waitFrames(t, 20)

	if err := w.stream.CloseSend(); err != nil {
		t.Fatal(err)
	}
	if err := w.ended(t); err == nil || err.Error() != "EOF" {
		t.Errorf("the session ended with %v", err)
	}
	eventually(t, "the audit line", func() bool { return strings.Contains(r.log.String(), `"msg":"session ended"`) })
	for _, want := range []string{`"camera":"lobby"`, `"viewer":"alice"`, `"remote_address":"192.0.2.7"`, `"duration":`, `"reason":"left"`} {
		if !strings.Contains(r.log.String(), want) {
			t.Errorf("the audit line lacks %s", want)
		}
	}
}

// Sessions of a node that stops are told so.
func TestNodeStops(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	w := r.watch(t, lobby(), viewertest.Config{})
	w.waitFrames(t, 5)
	if r.node.MediaAddress().Port() == 0 {
		t.Error("no media port")
	}
	r.stopNode()
	if err := w.ended(t); !errors.Is(err, fleet.NodeStopping) {
		t.Errorf("the session ended with %v", err)
	}
	if err := r.watch(t, lobby(), viewertest.Config{}).ended(t); !errors.Is(err, fleet.NodeStopping) {
		t.Errorf("a session after the end: %v", err)
	}
	if err := r.node.Ready(); !errors.Is(err, fleet.Unavailable) {
		t.Errorf("ready: %v", err)
	}
}

// Sessions are told so too when the server stops before the node, or beside it,
// as in a process that ends.
func TestServerStops(t *testing.T) {
	for name, stop := range map[string]func(*rig){
		"first": func(r *rig) { r.stopServer(); r.stopNode() },
		"beside": func(r *rig) {
			var wg sync.WaitGroup
			wg.Go(r.stopServer)
			wg.Go(r.stopNode)
			wg.Wait()
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
			r.control.want(r.desired("lobby", 1))
			r.control.waitApplied(t)
			w := r.watch(t, lobby(), viewertest.Config{})
			w.waitFrames(t, 5)
			stop(r)
			if err := w.ended(t); !errors.Is(err, fleet.NodeStopping) {
				t.Errorf("the session ended with %v", err)
			}
			if log := r.log.String(); !strings.Contains(log, `"reason":"NODE_STOPPING"`) {
				t.Error("the audit line does not say that the node stopped")
			}
		})
	}
}

// The stream of a gateway that does not read ends, and its session is an orphan.
func TestDeafGateway(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{OrphanTimeout: 100 * time.Millisecond})
	r.control.want(r.desired("lobby", 1))
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)
	v, err := viewertest.New(viewertest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = v.Close() }()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	open := lobby()
	open.Session = "deaf"
	if open.Offer, err = v.Offer(ctx); err != nil {
		t.Fatal(err)
	}
	stream, err := r.sessions.OpenSession(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&mediav1.OpenSessionRequest{Message: &mediav1.OpenSessionRequest_Open{Open: open}}); err != nil {
		t.Fatal(err)
	}
	lobby := r.node.list()[0]
	watched := func() bool { status, _ := lobby.status(); return status.Viewers > 0 }
	eventually(t, "the session", watched)
	i := 0
	eventually(t, "the session to end", func() bool {
		for range 50 { // what the gateway does not read, until no more fits
			i++
			lobby.board.SetStatus(fleet.CameraStatus{State: fleet.CameraFailed, Reason: fleet.ReasonTimeout, RetryTime: time.Unix(int64(i), 1)})
			time.Sleep(50 * time.Microsecond)
		}
		return !watched()
	})
	if got := r.node.engine.Stats().Sessions; got != 0 {
		t.Errorf("the engine has %d sessions", got)
	}
}

// 0.0.0.0 is all IPv4 addresses, for TCP as for UDP.
func TestListenFamily(t *testing.T) {
	for _, c := range []struct {
		media string
		v4    bool
		v6    bool
	}{
		{"0.0.0.0:0", true, false},
		{"127.0.0.1:0", true, false},
		{"[::]:0", true, true},
		{"[::1]:0", false, true},
	} {
		t.Run(c.media, func(t *testing.T) {
			if c.v6 {
				l, err := net.Listen("tcp6", "[::1]:0")
				if err != nil {
					t.Skipf("no IPv6 here: %v", err)
				}
				_ = l.Close()
			}
			n := &Node{log: slog.New(slog.DiscardHandler), cfg: Config{
				Media: netip.MustParseAddrPort(c.media), Advertise: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
			}}
			if !c.v4 {
				n.cfg.Advertise = nil
			}
			engine, media, err := n.listen(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = engine.Close() }()
			for host, want := range map[string]bool{"127.0.0.1": c.v4, "::1": c.v6} {
				conn, err := net.Dial("tcp", net.JoinHostPort(host, strconv.Itoa(int(media.Port()))))
				if got := err == nil; got != want {
					t.Errorf("TCP at %s: %v, want %v", host, got, want)
				}
				if err == nil {
					_ = conn.Close()
				}
			}
		})
	}
}

// A node without a limit says the one that its sessions have.
func TestViewersLimit(t *testing.T) {
	for given, want := range map[int]int32{0: session.DefaultMaxSessions, 7: 7} {
		r := newRig(t, simcam.Config{}, Config{Capacity: Capacity{Viewers: given}})
		r.control.wait(t, "a hello", func() bool { return len(r.control.hellos) > 0 })
		if got := r.control.hellos[0].GetCapacity(); got.GetViewers() != want || got.GetCameras() != 0 {
			t.Errorf("%d viewers are said as %v", given, got)
		}
	}
}

func TestRunRefusesMediaAddress(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	eventually(t, "the node to listen", func() bool { return r.node.MediaAddress().IsValid() })
	cfg := r.node.cfg
	cfg.Media = r.node.MediaAddress()
	second, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Run(t.Context()); err == nil || !strings.Contains(err.Error(), cfg.Media.String()) {
		t.Errorf("a second node on %v: %v", cfg.Media, err)
	}
}
