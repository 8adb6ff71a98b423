package stream

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/pion/rtp"
)

// One packet of 2 Mbit/s video to a number of subscriptions: "queue" is the
// writer's cost and that of taking bursts out, "wake" has a goroutine for each
// subscription. An operation is one packet from the camera.
func BenchmarkWrite(b *testing.B) {
	for _, viewers := range []int{1, 100, 1000} {
		b.Run(fmt.Sprintf("queue/viewers=%d", viewers), func(b *testing.B) {
			s := New(Config{})
			subs := subscribe(s, viewers)
			benchmarkWrite(b, s, func() {
				for _, sub := range subs {
					for b, _ := sub.Poll(); b != nil; b, _ = sub.Poll() {
						continue
					}
				}
			})
		})
		b.Run(fmt.Sprintf("wake/viewers=%d", viewers), func(b *testing.B) {
			s := New(Config{})
			var wg sync.WaitGroup
			defer wg.Wait()
			defer s.Close(nil)
			for _, sub := range subscribe(s, viewers) {
				wg.Go(func() {
					for {
						if _, err := sub.Next(context.Background()); err != nil {
							return
						}
					}
				})
			}
			benchmarkWrite(b, s, func() {})
		})
	}
}

func subscribe(s *Stream, n int) []*Subscription {
	subs := make([]*Subscription, n)
	for i := range subs {
		subs[i] = s.Subscribe(SubscribeOptions{})
	}
	return subs
}

// benchmarkWrite writes access units of ten packets.
func benchmarkWrite(b *testing.B, s *Stream, read func()) {
	b.Helper()
	cam := publish(b, s)
	cam.unit(sps, pps, idr(1000))
	payload := inter(1000)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		last := i%10 == 9
		cam.w.WriteRTP(0, &rtp.Packet{Header: rtp.Header{SequenceNumber: cam.seq, Timestamp: cam.ts, Marker: last}, Payload: payload})
		cam.seq++
		if last {
			cam.ts += frame
			read()
		}
	}
}
