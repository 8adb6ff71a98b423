package session_test

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"fanlight/internal/fleet"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
	"fanlight/medianode/stream"
)

func TestOneViewer(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track(), pcmaTrack())
	n.cam.play(10*time.Millisecond, true)
	v := newViewer(t, viewertest.Config{Audio: true})
	r := n.watch(t, v, session.OpenConfig{})
	wait(t, v, func(r viewertest.Report) bool {
		return r.Video.Frames >= 60 && r.Audio.Packets >= 30 && len(r.Video.Reports) > 0 && len(r.Audio.Reports) > 0
	})
	got := v.Report()
	if !got.Video.Perfect() || !got.Audio.Perfect() {
		t.Errorf("packets were lost on loopback: %v", got)
	}
	if got.Video.Codec != "video/H264" || got.Audio.Codec != "audio/PCMA" {
		t.Errorf("codecs are %s and %s", got.Video.Codec, got.Audio.Codec)
	}
	checkReports(t, got.Video, 90000)
	checkReports(t, got.Audio, 8000)
	if v.Protocol() != "udp" {
		t.Errorf("media goes over %s", v.Protocol())
	}
	st := r.Stats()
	if !st.Connected || st.Packets < uint64(got.Video.Packets+got.Audio.Packets) || st.Bytes == 0 || st.WriteErrors != 0 {
		t.Errorf("stats are %+v after %v", st, got)
	}
	if s := n.conn.Stats(); s.Batches == 0 || s.Batches > st.Packets/2 {
		t.Errorf("%d batches for %d packets", s.Batches, st.Packets)
	}
	r.cancel()
	if err := r.wait(t); err != nil {
		t.Errorf("Run returned %v at its context's end", err)
	}
	if err := v.WaitState(testContext(t), "closed"); err != nil {
		t.Errorf("the viewer did not hear the goodbye: %v", err)
	}
	if got := n.Stats().Sessions; got != 0 {
		t.Errorf("%d sessions are left", got)
	}
}

// checkReports tests that sender reports are of now and of the packets sent.
func checkReports(t *testing.T, got viewertest.Track, rate int32) {
	t.Helper()
	for _, r := range got.Reports {
		if off := time.Since(r.Time).Abs(); off > 30*time.Second {
			t.Errorf("%s: a sender report is of %v ago", got.Codec, off)
		}
		if off := int32(r.RTPTime - got.FirstTimestamp); off < -rate || int32(r.RTPTime-got.LastTimestamp) > rate {
			t.Errorf("%s: a sender report's timestamp is %d, the packets' are %d to %d", got.Codec, r.RTPTime, got.FirstTimestamp, got.LastTimestamp)
		}
		if r.Packets == 0 || int(r.Packets) > got.Packets+100 {
			t.Errorf("%s: a sender report says %d packets of %d", got.Codec, r.Packets, got.Packets)
		}
	}
}

// Every one of 50 viewers gets every packet once and in order, from a keyframe
// on.
func TestFiftyViewers(t *testing.T) {
	const viewers, frames = 50, 100
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	var all []*viewertest.Viewer
	var sessions []*running
	for i := range viewers {
		v := newViewer(t, viewertest.Config{})
		sessions = append(sessions, n.watch(t, v, session.OpenConfig{ID: fleet.SessionID(fmt.Sprint("s", i))}))
		all = append(all, v)
	}
	for _, v := range all {
		wait(t, v, connected)
	}
	// As fast as the slowest session, so that it is loss that is tested and not
	// this machine's speed.
	sent := func(least uint64) bool {
		return !slices.ContainsFunc(sessions, func(s *running) bool { return s.Stats().Packets < least })
	}
	for begun := time.Now(); !sent(1); time.Sleep(20 * time.Millisecond) {
		if time.Since(begun) > time.Minute {
			t.Fatal("not all sessions have begun")
		}
		n.cam.frame(true, 20)
	}
	for i := range frames {
		before := make([]uint64, viewers)
		for j, s := range sessions {
			before[j] = s.Stats().Packets
		}
		n.cam.frame(i%25 == 0, 3)
		for j, s := range sessions {
			for begun := time.Now(); s.Stats().Packets < before[j]+3; time.Sleep(time.Millisecond) {
				if time.Since(begun) > time.Minute {
					t.Fatalf("session %d is stuck: %+v", j, s.Stats())
				}
			}
		}
	}
	for i, v := range all {
		wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames >= frames })
		if got := v.Report().Video; !got.Perfect() || got.Keyframes < frames/25 {
			t.Errorf("viewer %d: %v; session %+v; stream's drops %+v; socket %+v", i, got, sessions[i].Stats(), n.cam.stream.Stats().Drops, n.conn.Stats())
		}
	}
	if got := n.cam.stream.Stats().Subscriptions; got > runtime.GOMAXPROCS(0) {
		t.Errorf("the stream has %d subscriptions, want one for each shard at most", got)
	}
}

func TestNACK(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	n.cam.play(10*time.Millisecond, false)
	dropped := map[uint16]bool{}
	v := newViewer(t, viewertest.Config{NACK: true, Drop: func(h *rtp.Header) bool {
		// Only the first packet of the video's own payload type, and only once:
		// what is sent again, over RTX, gets through.
		if h.PayloadType != videoPT || h.SequenceNumber%7 != 0 || dropped[h.SequenceNumber] {
			return false
		}
		dropped[h.SequenceNumber] = true
		return true
	}})
	r := n.watch(t, v, session.OpenConfig{})
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Late >= 50 && r.Video.Missing == 0 })
	got := v.Report().Video
	if got.PayloadType != videoPT {
		t.Fatalf("the video's payload type is %d, the test assumes %d", got.PayloadType, videoPT)
	}
	if st := r.Stats(); st.Nacked < 50 {
		t.Errorf("the session was asked for %d packets, want 50 at least", st.Nacked)
	}
}

// A viewer that asks for everything again and again gets its share and no more.
func TestNACKFlood(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	n.cam.play(40*time.Millisecond, false)
	var last atomic.Uint32
	v := newViewer(t, viewertest.Config{OnPacket: func(_ string, p *rtp.Packet, _ time.Time) { last.Store(uint32(p.SequenceNumber)) }})
	r := n.watch(t, v, session.OpenConfig{})
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Packets > 200 })
	begun, session, socket := time.Now(), r.Stats(), n.conn.Stats()
	for time.Since(begun) < 2*time.Second {
		nack := &rtcp.TransportLayerNack{MediaSSRC: v.Report().Video.SSRC}
		for i := range 30 {
			nack.Nacks = append(nack.Nacks, rtcp.NackPair{PacketID: uint16(last.Load()) - uint16(17*(i+1)), LostPackets: 0xffff})
		}
		if err := v.SendRTCP(nack); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
	out := n.conn.Stats().PacketsOut - socket.PacketsOut
	now, took := r.Stats(), time.Since(begun).Seconds()
	sent := now.Packets - session.Packets
	// What is kept, a quarter of what was sent, and the floor; and 100 packets of
	// RTCP and ICE.
	if most := sent + 512 + sent/4 + uint64(50*took) + 100; out > most {
		t.Errorf("%d packets went out in %.1f s for %d of the camera, %d at most should", out, took, sent, most)
	}
	if now.Nacked < 30*17 || now.NackRefused == 0 {
		t.Errorf("%d packets were asked for, %d of them refused", now.Nacked, now.NackRefused)
	}
}

// videoPT is the payload type of H264 42e01f in the viewer's offers, which is
// what the camera sends.
const videoPT = 102

func TestPLI(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	n.cam.play(10*time.Millisecond, false)
	v := newViewer(t, viewertest.Config{})
	r := n.watch(t, v, session.OpenConfig{})
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 0 })
	before := n.cam.keyframeRequests()
	deadline := time.Now().Add(20 * time.Second)
	for n.cam.keyframeRequests() == before {
		if time.Now().After(deadline) {
			t.Fatal("the camera was not asked for a keyframe")
		}
		if err := v.SendPLI(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	if r.Stats().KeyframeRequests == 0 {
		t.Error("the viewer's wish was not counted")
	}
}

func TestTCP(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	n.cam.play(10*time.Millisecond, false)
	v := newViewer(t, viewertest.Config{TCP: true})
	n.watch(t, v, session.OpenConfig{})
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames >= 50 })
	if got := v.Report().Video; !got.Perfect() || v.Protocol() != "tcp" {
		t.Errorf("over %s: %v", v.Protocol(), got)
	}
}

func TestTrickle(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	n.cam.play(10*time.Millisecond, false)
	toNode := make(chan viewertest.Candidate, 100)
	v := newViewer(t, viewertest.Config{Trickle: true, OnCandidate: func(c viewertest.Candidate) { toNode <- c }})
	var fromNode []session.Candidate // written by Run, read after it
	r := n.watch(t, v, session.OpenConfig{Trickle: true, OnCandidate: func(c session.Candidate) {
		fromNode = append(fromNode, c)
		if err := v.AddCandidate(viewertest.Candidate(c)); err != nil {
			t.Error(err)
		}
	}})
	for c := range toNode {
		if err := r.AddCandidate(session.Candidate(c)); err != nil {
			t.Error(err)
		}
		if c.Candidate == "" {
			break
		}
	}
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 5 })
	r.stop()
	if len(fromNode) != 3 {
		t.Fatalf("the node sent %d candidates, want UDP, TCP and the end: %+v", len(fromNode), fromNode)
	}
	if end := fromNode[2]; end.Candidate != "" {
		t.Errorf("the last candidate is %+v, want the end", end)
	}
}

func TestRestart(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track(), pcmaTrack())
	n.cam.play(10*time.Millisecond, true)
	v := newViewer(t, viewertest.Config{Audio: true, NACK: true})
	r := n.watch(t, v, session.OpenConfig{})
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 5 })
	ssrc := v.Report().Video.SSRC
	for range 2 {
		offer, err := v.Restart(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		answer, err := r.Restart(offer)
		if err != nil {
			t.Fatal(err)
		}
		if strings.Count(answer, "a=candidate:") == 0 {
			t.Error("the answer has no candidates")
		}
		if err := v.Answer(answer); err != nil {
			t.Fatal(err)
		}
		from := v.Report().Video.Frames
		wait(t, v, func(r viewertest.Report) bool { return connected(r) && r.Video.Frames > from+50 })
	}
	// Between the paths packets are lost, and asked for again.
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Missing == 0 })
	if got := v.Report().Video; got.SSRC != ssrc || got.Backwards > 0 {
		t.Errorf("after the restarts: %v, SSRC %d, before %d", got, got.SSRC, ssrc)
	}
}

func TestRestartRefused(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	n.cam.play(10*time.Millisecond, false)
	v := newViewer(t, viewertest.Config{})
	r := n.watch(t, v, session.OpenConfig{})
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 5 })

	again, err := newViewer(t, viewertest.Config{}).Offer(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	more, err := newViewer(t, viewertest.Config{Audio: true}).Offer(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	for name, offer := range map[string]string{
		"not SDP": "hello", "another certificate": again, "another section": more,
	} {
		if _, err := r.Restart(offer); !errors.Is(err, fleet.BadOffer) {
			t.Errorf("%s: the error is %v, want BAD_OFFER", name, err)
		}
	}
	from := v.Report().Video.Frames
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > from+10 })
}

// A camera that goes away and comes back is seen again in the same peer
// connection, and the viewer is told in between.
func TestCameraReturns(t *testing.T) {
	n := newNode(t, nil)
	n.cam.stream.SetStatus(fleet.CameraStatus{State: fleet.CameraLive})
	n.cam.connect(h264Track(), pcmaTrack())
	stop := n.cam.play(10*time.Millisecond, true)
	v := newViewer(t, viewertest.Config{Audio: true})
	var mu sync.Mutex
	var states []fleet.CameraState
	n.watch(t, v, session.OpenConfig{OnStatus: func(s fleet.CameraStatus) {
		mu.Lock()
		defer mu.Unlock()
		states = append(states, s.State)
	}})
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames >= 30 })
	stop()
	n.cam.stream.SetStatus(fleet.CameraStatus{State: fleet.CameraFailed, Reason: fleet.ReasonConnectionRefused})
	time.Sleep(300 * time.Millisecond) // media pauses
	n.cam.connect(h264Track(), pcmaTrack())
	n.cam.stream.SetStatus(fleet.CameraStatus{State: fleet.CameraLive})
	from := v.Report().Video
	n.cam.play(10*time.Millisecond, true)
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames >= from.Frames+30 })
	got := v.Report()
	if !got.Video.Perfect() || got.Video.Backwards > 0 || got.Video.SSRC != from.SSRC || !connected(got) {
		t.Errorf("after the camera's return: %v", got)
	}
	if !got.Audio.Perfect() {
		t.Errorf("after the camera's return: audio %v", got.Audio)
	}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff([]fleet.CameraState{fleet.CameraLive, fleet.CameraFailed, fleet.CameraLive}, states); diff != "" {
		t.Errorf("the viewer was told (-want +got):\n%s", diff)
	}
}

// A viewer may come before the camera.
func TestCameraComesLater(t *testing.T) {
	n := newNode(t, nil)
	n.cam.stream.SetStatus(fleet.CameraStatus{State: fleet.CameraFailed, Reason: fleet.ReasonTimeout})
	v := newViewer(t, viewertest.Config{Audio: true})
	status := make(chan fleet.CameraStatus, 10)
	n.watch(t, v, session.OpenConfig{OnStatus: func(s fleet.CameraStatus) { status <- s }})
	if s := <-status; s.Reason != fleet.ReasonTimeout {
		t.Errorf("the viewer was told %+v first", s)
	}
	wait(t, v, connected)
	n.cam.connect(h264Track(), stream.Track{Kind: stream.Audio, Codec: "OPUS", ClockRate: 48000, Channels: 2})
	n.cam.play(10*time.Millisecond, true)
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 20 && r.Audio.Packets > 20 })
	if got := v.Report(); !got.Video.Perfect() || !got.Audio.Perfect() || got.Audio.Codec != "audio/opus" {
		t.Errorf("%v", got)
	}
}

// A camera without audio leaves the viewer's audio section off.
func TestNoAudio(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	n.cam.play(10*time.Millisecond, false)
	v := newViewer(t, viewertest.Config{Audio: true})
	ctx := testContext(t)
	offer, err := v.Offer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, answer, err := n.Open(session.OpenConfig{Stream: n.cam.stream, Offer: offer})
	if err != nil {
		t.Fatal(err)
	}
	_, audio, ok := strings.Cut(answer, "m=audio")
	if !ok || !strings.Contains(audio, "a=inactive") || strings.Contains(audio, "a=ssrc") {
		t.Errorf("the audio section is not inactive:\n%s", answer)
	}
	run(t, s)
	if err := v.Answer(answer); err != nil {
		t.Fatal(err)
	}
	wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 5 })
}

// A viewer that vanishes is given up; one that says goodbye ends at once.
func TestViewerLeaves(t *testing.T) {
	n := newNode(t, func(c *session.Config) {
		c.Timeouts.Silence = 2 * time.Second
	})
	n.cam.connect(h264Track())
	n.cam.play(10*time.Millisecond, false)
	for _, leave := range []struct {
		name string
		do   func(*viewertest.Viewer)
	}{
		{"vanishes", (*viewertest.Viewer).Unplug},
		{"says goodbye", func(v *viewertest.Viewer) { _ = v.Close() }},
	} {
		t.Run(leave.name, func(t *testing.T) {
			v := newViewer(t, viewertest.Config{})
			r := n.watch(t, v, session.OpenConfig{})
			wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 0 })
			leave.do(v)
			want(t, r.wait(t), fleet.PeerConnectionFailed)
			if got := n.Stats().Sessions; got != 0 {
				t.Errorf("%d sessions are left", got)
			}
		})
	}
}

func TestNeverConnects(t *testing.T) {
	n := newNode(t, func(c *session.Config) { c.Timeouts.Connect = 300 * time.Millisecond })
	v := newViewer(t, viewertest.Config{Trickle: true}) // whose candidates nobody passes on
	v.Unplug()
	r := n.watch(t, v, session.OpenConfig{Trickle: true})
	want(t, r.wait(t), fleet.PeerConnectionFailed)
}

func TestStreamCloses(t *testing.T) {
	n := newNode(t, nil)
	v := newViewer(t, viewertest.Config{})
	r := n.watch(t, v, session.OpenConfig{})
	wait(t, v, connected)
	n.cam.stream.Close(fleet.CameraMoved)
	want(t, r.wait(t), fleet.CameraMoved)
}

func TestNodeFull(t *testing.T) {
	n := newNode(t, func(c *session.Config) { c.MaxSessions = 1 })
	offer := offerOf(t)
	open := func() (*session.Session, error) {
		s, _, err := n.Open(session.OpenConfig{Stream: n.cam.stream, Offer: offer})
		return s, err
	}
	s, err := open()
	if err != nil {
		t.Fatal(err)
	}
	_, err = open()
	want(t, err, fleet.NodeFull)
	s.Close()
	s.Close()
	if s, err = open(); err != nil {
		t.Fatalf("after a session has ended: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := s.Run(t.Context()); err != nil {
		t.Errorf("Run of a closed session returned %v", err)
	}
	_, err = open()
	want(t, err, fleet.NodeStopping)
	want(t, s.AddCandidate(session.Candidate{}), fleet.BadCandidate)
	_, err = s.Restart(offer)
	want(t, err, fleet.PeerConnectionFailed)
}

// A session may be closed at any moment of its connecting.
func TestCloseAnytime(t *testing.T) {
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	n.cam.play(10*time.Millisecond, false)
	for _, after := range []time.Duration{0, time.Millisecond, 3 * time.Millisecond, 10 * time.Millisecond, 30 * time.Millisecond, 100 * time.Millisecond} {
		v := newViewer(t, viewertest.Config{})
		r := n.watch(t, v, session.OpenConfig{})
		time.Sleep(after)
		r.Close()
		if err := r.wait(t); err != nil {
			t.Errorf("closed after %v, Run returned %v", after, err)
		}
	}
}

// An engine may be closed at any moment of a session's opening.
func TestCloseWhileOpening(t *testing.T) {
	offer := offerOf(t)
	for i := range 20 {
		n := newNode(t, nil)
		n.cam.connect(h264Track())
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				s, _, err := n.Open(session.OpenConfig{Stream: n.cam.stream, Offer: offer, Trickle: true})
				if err != nil {
					want(t, err, fleet.NodeStopping)
					return
				}
				s.Close()
			})
		}
		time.Sleep(time.Duration(i) * 200 * time.Microsecond)
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		if got := n.Stats().Sessions; got != 0 {
			t.Errorf("%d sessions are left", got)
		}
		wg.Wait()
	}
}

func TestRunTwice(t *testing.T) {
	n := newNode(t, nil)
	v := newViewer(t, viewertest.Config{})
	r := n.watch(t, v, session.OpenConfig{})
	wait(t, v, connected)
	want(t, r.Run(t.Context()), fleet.Internal)
}

func offerOf(t testing.TB) string {
	t.Helper()
	offer, err := newViewer(t, viewertest.Config{Audio: true}).Offer(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	return offer
}
