package medianode

import (
	"log/slog"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/pion/rtp"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
	"fanlight/medianode/stream"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// idle is the usage of a process that does nothing, however busy tests keep it.
func idle() usage { return usage{at: time.Now(), cores: 1} }

// waitVerdict waits until the viewer has been told what is to blame.
func (w *watcher) waitVerdict(t *testing.T, cause string) *mediav1.SessionState {
	t.Helper()
	var last *mediav1.SessionState
	w.wait(t, "verdict "+cause, func() bool {
		if len(w.states) > 0 {
			last = w.states[len(w.states)-1]
		}
		return last.GetState() == mediav1.SessionState_STATE_LIVE && last.GetVerdict() == cause
	})
	return last
}

// figures returns what the node says of a camera and its sessions.
func (r *rig) figures(t *testing.T) *mediav1.CameraStats {
	t.Helper()
	resp, err := r.sessions.GetStats(t.Context(), &mediav1.GetStatsRequest{Sessions: true})
	if err != nil || len(resp.GetCameras()) != 1 {
		t.Fatalf("stats %v, %v", resp, err)
	}
	return resp.GetCameras()[0]
}

// A camera that loses a tenth of its packets is to blame: in its status, for its
// viewers and in the metrics; and is not any more when it is well.
func TestCameraIsToBlame(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{judgeEvery: 100 * time.Millisecond, usage: idle})
	r.control.want(r.desired("lobby", 1))
	w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Generation: 1, Trickle: true}, viewertest.Config{Reports: true})
	w.waitFrames(t, 5)
	if s := w.waitState(t, mediav1.SessionState_STATE_LIVE); s.GetVerdict() != "" || s.GetVerdictMessage() != "" {
		t.Errorf("a camera that is well: %v", s)
	}
	r.exports(t, `fanlight_node_sessions_by_verdict{cause="none",node="node-1"} 1`)
	if strings.Contains(r.scrape(t), "fanlight_camera_verdict{") {
		t.Error("a verdict on a camera that is well")
	}

	r.cameras.SetFault("lobby", simcam.Lossy)
	s := w.waitVerdict(t, "camera")
	if !strings.Contains(s.GetVerdictMessage(), "the camera lost") || s.GetProfile() != "main" {
		t.Errorf("told %v", s)
	}
	r.control.wait(t, "the camera's verdict", func() bool {
		all := r.control.seen["cameras/lobby"]
		v := all[len(all)-1].GetStatus().GetVerdict()
		return v.GetCause() == controlv1.Verdict_CAUSE_CAMERA && strings.Contains(v.GetMessage(), " % of its packets")
	})
	r.exports(t, `fanlight_camera_verdict{camera="lobby",cause="camera",node="node-1"} 1`, `fanlight_node_sessions_by_verdict{cause="camera",node="node-1"} 1`)
	eventually(t, "a loss of some 10 %", func() bool {
		status, _ := r.node.list()[0].status()
		return status.Profiles[0].Loss > 0.05 && status.Profiles[0].Loss < 0.15
	})
	if f := r.figures(t); f.GetLoss() < 0.03 || f.GetVerdict() != "camera" || len(f.GetSessions()) != 1 || f.GetSessions()[0].GetVerdict() != "camera" || f.GetSessions()[0].GetPackets() == 0 {
		t.Errorf("figures %v", f)
	}
	resp, err := r.sessions.GetStats(t.Context(), &mediav1.GetStatsRequest{})
	if err != nil || len(resp.GetCameras()) != 1 || len(resp.GetCameras()[0].GetSessions()) != 0 {
		t.Errorf("sessions that nobody asked for: %v, %v", resp, err)
	}

	r.cameras.SetFault("lobby", simcam.None)
	w.waitVerdict(t, "")
	eventually(t, "no verdict", func() bool { return !strings.Contains(r.scrape(t), "fanlight_camera_verdict{") })

	r.cameras.SetFault("lobby", simcam.Stop)
	if s := w.waitState(t, mediav1.SessionState_STATE_CAMERA_OFFLINE); s.GetVerdict() != "camera" || s.GetVerdictMessage() == "" {
		t.Errorf("a camera that is away: %v", s)
	}
}

// A viewer who loses packets has a verdict of its own; that most of the viewers do
// is the camera's.
func TestViewersNetworkIsToBlame(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}, Bitrate: 1_000_000}, Config{judgeEvery: 100 * time.Millisecond, usage: idle})
	r.control.want(r.desired("lobby", 1))
	watch := func(id string, loss float64) *watcher {
		w := r.watch(t, &mediav1.Open{Session: id, Camera: "cameras/lobby", Generation: 1, Trickle: true}, viewertest.Config{
			Reports: true, NACK: true, Drop: func(*rtp.Header) bool { return rand.Float64() < loss },
		})
		w.waitFrames(t, 5)
		return w
	}
	good, bad := watch("good", 0), watch("bad", 0.2)
	if s := bad.waitVerdict(t, "viewer_network"); !strings.Contains(s.GetVerdictMessage(), "this viewer loses") {
		t.Errorf("told %v", s)
	}
	r.exports(t, `fanlight_node_sessions_by_verdict{cause="viewer_network",node="node-1"} 1`, `fanlight_node_sessions_by_verdict{cause="none",node="node-1"} 1`)
	f := r.figures(t)
	if s := f.GetSessions(); f.GetVerdict() != "" || len(s) != 2 || s[0].GetSession() != "bad" || s[0].GetVerdict() != "viewer_network" || s[0].GetPacketsResent() == 0 ||
		s[1].GetVerdict() != "" || s[1].GetLoss() != 0 {
		t.Errorf("one viewer of two: %v", f)
	}

	third := watch("another", 0.2)
	third.waitVerdict(t, "viewer_network")
	r.exports(t, `fanlight_camera_verdict{camera="lobby",cause="viewer_network",node="node-1"} 1`)
	if s := r.figures(t).GetSessions(); len(s) != 3 || s[2].GetVerdict() != "" {
		t.Errorf("the viewer who is fine, of a camera whose others are not: %v", s)
	}
	good.mu.Lock()
	for _, s := range good.states {
		if s.GetVerdict() != "" {
			t.Errorf("a viewer who is fine was told %v", s)
		}
	}
	good.mu.Unlock()
}

// Packets that no queue has room for are the node's fault, whoever watches, for as
// long as there are any.
func TestNodeIsToBlame(t *testing.T) {
	n := &Node{log: slog.New(slog.DiscardHandler), changes: newChanges()}
	c := newCamera(n, desired{Camera: fleet.Camera{ID: "lobby", Profiles: []fleet.Profile{{ID: "main"}}}, generation: 1})
	w, err := c.feeds[0].stream.Publish([]stream.Track{{Kind: stream.Audio, Codec: "PCMA", ClockRate: 8000, Channels: 1}})
	if err != nil {
		t.Fatal(err)
	}
	c.feeds[0].stream.Subscribe(stream.SubscribeOptions{QueueBytes: 1000}) // and nobody takes anything
	c.saw(c.feeds[0], fleet.CameraStatus{State: fleet.CameraLive, Profiles: []fleet.ProfileStatus{{ID: "main"}}}, true)
	var seq uint16
	now := time.Now()
	look := func(packets int) fleet.CameraStatus {
		for range packets {
			w.WriteRTP(0, &rtp.Packet{Header: rtp.Header{SequenceNumber: seq, Timestamp: uint32(seq) * 160}, Payload: make([]byte, 160)})
			seq++
		}
		now = now.Add(judgeEvery)
		c.judge(now, nodeFigures{cpu: 0.4}, new(tally))
		return c.board.Status()
	}
	for i, want := range []fleet.Cause{fleet.CauseNone, fleet.CauseNode} {
		if got := look(100).Verdict; got.Cause != want {
			t.Errorf("look %d: %+v, want %v", i, got, want)
		}
	}
	if got := c.upstream("main"); got.Cause != fleet.CauseNode || !strings.Contains(got.Message, "40 % busy") {
		t.Errorf("a session has %+v", got)
	}
	for i, want := range []fleet.Cause{fleet.CauseNode, fleet.CauseNode, fleet.CauseNone} {
		if got := look(0).Verdict; got.Cause != want {
			t.Errorf("look %d without drops: %+v, want %v", i, got, want)
		}
	}
	// Most of the viewers' networks are no business of a viewer who is fine.
	c.trial.viewers.verdict = fleet.Verdict{Cause: fleet.CauseViewerNetwork, Message: "3 of 4"}
	c.pronounce(c.feeds)
	if got, whole := c.upstream("main"), c.board.Status().Verdict; got.Cause != fleet.CauseNone || whole.Cause != fleet.CauseViewerNetwork {
		t.Errorf("a session has %+v, the camera %+v", got, whole)
	}
}

// seat is a viewer's session, as Node.judge sees it, of a camera whose main profile
// has 4 Mbit/s and whose sub profile has 500 kbit/s.
type seat struct {
	t      *testing.T
	trial  viewerTrial
	now    time.Time
	camera map[string]int64 // bytes of each profile
	stats  session.Stats
	path   session.Path
}

func newSeat(t *testing.T) *seat {
	return &seat{t: t, now: time.Now(), camera: make(map[string]int64)}
}

// look lets a time between two looks pass in which the viewer was sent packets of
// a profile, and others had no room. want is what the verdict's message has then;
// empty: there is none.
func (s *seat) look(profile string, packets, full uint64, want string) {
	s.t.Helper()
	s.now = s.now.Add(judgeEvery)
	s.camera["main"] += int64(4e6 / 8 * judgeEvery.Seconds())
	s.camera["sub"] += int64(5e5 / 8 * judgeEvery.Seconds())
	s.stats.Packets += packets
	s.stats.Full += full
	// Of the second that has a keyframe, which is not what the picture needs.
	last := stream.Stats{Bytes: s.camera[profile], BitrateBPS: 20e6}
	if got := s.trial.look(s.now, profile, last, s.stats, s.path); got != float64(packets) {
		s.t.Errorf("%v packets since the look before, want %d", got, packets)
	}
	if got := s.trial.own.verdict.Message; (want == "") != (got == "") || !strings.Contains(got, want) {
		s.t.Errorf("told %q, want %q", got, want)
	}
}

// Who was blamed for loss is not blamed for a round trip that nobody would be
// blamed for.
func TestJudgeByTheFigureThatDecided(t *testing.T) {
	s := newSeat(t)
	s.path = session.Path{Loss: 0.1, RoundTrip: 300 * time.Millisecond}
	s.look("main", 100, 0, "")
	s.look("main", 100, 0, "loses")
	s.path.Loss = 0
	s.look("main", 100, 0, "loses") // 3.7 % of some seconds
	s.look("main", 100, 0, "loses") // 2.5 %
	s.look("main", 100, 0, "loses") // 1.6 %
	for range acquitAt - 1 {
		s.look("main", 100, 0, "loses")
	}
	s.look("main", 100, 0, "")
}

// One report of a bad second is none of a bad network, and several are.
func TestJudgeOneBadSecond(t *testing.T) {
	s := newSeat(t)
	for range 5 {
		s.path.Loss = 0.135
		s.look("main", 100, 0, "")
		s.path.Loss = 0
		for range 5 {
			s.look("main", 100, 0, "")
		}
	}
	s.path.Loss = 0.135
	s.look("main", 100, 0, "")
	s.look("main", 100, 0, "loses")
}

// A browser's estimate begins with what it was sent before, and grows: that is no
// narrow path. One that stays is.
func TestJudgeEstimateAfterASwitch(t *testing.T) {
	s := newSeat(t)
	for range 5 {
		s.path.Estimate = 760_000 // half as much again
		s.look("sub", 100, 0, "")
	}
	for s.path.Estimate < 4_000_000 {
		s.look("main", 400, 0, "")
		s.path.Estimate = int64(float64(s.path.Estimate) * 1.08 * 1.08)
	}
	s.look("main", 400, 0, "")
	s.path.Estimate = 2_000_000
	s.look("main", 400, 0, "")
	s.look("main", 400, 0, "the path to this viewer carries some 2.0 Mbit/s, the picture needs 4.0 Mbit/s")
	s.path.Estimate = 2_050_000 // to and fro
	s.look("main", 400, 0, "carries")
	s.look("sub", 100, 0, "carries")
	s.look("sub", 100, 0, "carries")
	s.look("sub", 100, 0, "")
}

// That nothing came for a viewer acquits nobody; that nothing of it had room
// convicts; and when nobody looks, there is nothing to blame.
func TestJudgeWhoIsSentNothing(t *testing.T) {
	s := newSeat(t)
	s.path.RoundTrip = 500 * time.Millisecond
	s.look("main", 100, 0, "")
	s.look("main", 0, 0, "")
	s.look("main", 100, 0, "round trip 500 ms")
	s.path.RoundTrip = 0
	for range 2 * acquitAt {
		s.look("main", 0, 0, "round trip 500 ms")
	}
	s.look("main", 0, 50, "round trip 500 ms")
	s.look("main", 0, 50, "no room for 100.0 %")
	for range 2 * acquitAt {
		s.look("main", 0, 50, "no room for 100.0 %")
		s.look("main", 0, 0, "no room for 100.0 %")
	}
	for range acquitAt - 1 {
		s.look("", 0, 0, "no room")
	}
	s.look("", 0, 0, "")
}
