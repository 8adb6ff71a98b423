package session_test

import (
	"fmt"
	"runtime"
	"testing"

	"fanlight/internal/fleet"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
)

// BenchmarkBurst sends bursts of 16 packets to all viewers. What it allocates
// is the viewers' share too, for they run in this process; it ends when the
// last packet has been written, and the viewers may lose some.
func BenchmarkBurst(b *testing.B) {
	for _, viewers := range []int{1, 10, 50} {
		b.Run(fmt.Sprint(viewers), func(b *testing.B) {
			n := newNode(b, nil)
			n.cam.connect(h264Track())
			var sessions []*running
			for i := range viewers {
				v := newViewer(b, viewertest.Config{})
				sessions = append(sessions, n.watch(b, v, session.OpenConfig{ID: fleet.SessionID(fmt.Sprint("s", i))}))
				wait(b, v, connected)
			}
			const packets = 16
			n.cam.frame(true, packets)
			sent := func() (total uint64) {
				for _, s := range sessions {
					total += s.Stats().Packets
				}
				return total
			}
			for sent() < uint64(viewers*packets) { // all have begun
				n.cam.frame(true, packets)
			}
			b.ReportAllocs()
			b.SetBytes(int64(viewers * packets * 1000))
			for b.Loop() {
				before := sent()
				n.cam.frame(false, packets)
				for sent() < before+uint64(viewers*packets) {
					runtime.Gosched()
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*viewers*packets), "ns/packet")
		})
	}
}
