package session_test

import (
	"fmt"
	"testing"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
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
	if v.Protocol() != "udp" {
		t.Errorf("media goes over %s", v.Protocol())
	}
	st := r.Stats()
	if !st.Connected || st.Packets < uint64(got.Video.Packets+got.Audio.Packets) || st.Bytes == 0 || st.WriteErrors != 0 {
		t.Errorf("stats are %+v after %v", st, got)
	}
	if s := n.conn.Stats(); s.Flushes == 0 || s.Flushes > st.Packets {
		t.Errorf("%d flushes for %d packets, want one a burst", s.Flushes, st.Packets)
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

// Every one of 50 viewers gets every packet once and in order, from a keyframe
// on.
func TestFiftyViewers(t *testing.T) {
	const viewers, frames = 50, 100
	n := newNode(t, nil)
	n.cam.connect(h264Track())
	var all []*viewertest.Viewer
	for i := range viewers {
		v := newViewer(t, viewertest.Config{})
		n.watch(t, v, session.OpenConfig{ID: fleet.SessionID(fmt.Sprint("s", i))})
		all = append(all, v)
	}
	for _, v := range all {
		wait(t, v, connected)
	}
	stop := n.cam.play(40*time.Millisecond, false)
	for i, v := range all {
		wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames >= frames })
		if got := v.Report().Video; !got.Perfect() || got.Keyframes < frames/25 {
			t.Errorf("viewer %d: %v", i, got)
		}
	}
	stop()
	if got := n.cam.stream.Stats().Viewers; got != viewers {
		t.Errorf("the stream has %d subscriptions, want %d", got, viewers)
	}
}
