package session_test

import (
	"fmt"
	"testing"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
)

// BenchmarkOpen answers an offer, and ends the session.
func BenchmarkOpen(b *testing.B) {
	n := newNode(b, nil)
	n.cam.connect(h264Track(), pcmaTrack())
	offer := offerOf(b)
	b.ReportAllocs()
	for b.Loop() {
		s, _, err := n.Open(session.OpenConfig{Profiles: only(n.cam.stream), Offer: offer})
		if err != nil {
			b.Fatal(err)
		}
		s.Close()
	}
}

// BenchmarkJoin has viewers join until media can flow: SDP, ICE, DTLS. What it
// allocates is the viewer's share too, and most of it.
func BenchmarkJoin(b *testing.B) {
	n := newNode(b, nil)
	n.cam.connect(h264Track())
	for i := range b.N {
		b.StopTimer()
		v := newViewer(b, viewertest.Config{})
		b.StartTimer()
		r := n.watch(b, v, session.OpenConfig{ID: fleet.SessionID(fmt.Sprint("s", i))})
		for !r.Stats().Connected {
			time.Sleep(100 * time.Microsecond)
		}
		b.StopTimer()
		r.stop()
		_ = v.Close()
		b.StartTimer()
	}
}
