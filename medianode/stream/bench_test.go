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

// One packet of each codec to one subscription, of a camera whose packets fit,
// and of one whose packets are a little too large, so that all are cut anew.
func BenchmarkCodecs(b *testing.B) {
	for _, c := range []struct {
		codec string
		start func(*camera)
		// inter returns the i-th of n payloads of a picture.
		inter func(i, n, size int) []byte
	}{
		{"H264", func(c *camera) { c.unit(sps, pps, idr(1000)) }, func(i, n, size int) []byte {
			return fu(inter(n*size+1), i*size, (i+1)*size)
		}},
		{"H265", func(c *camera) { c.unit(vps5, sps5, pps5, hevc(19, 1000)) }, func(i, n, size int) []byte {
			return fu5(hevc(1, n*size+2), i*size, (i+1)*size)
		}},
		{"VP8", func(c *camera) { c.unit(join([]byte{0x10}, vp8Frame(0, 1000, true))) }, func(i, _, size int) []byte {
			return join([]byte{0x90 &^ byte(min(i, 1)<<4), 0x80, 1}, vp8Frame(i, size, false))
		}},
		{"VP9", func(c *camera) { c.unit(join([]byte{0x8c, 1}, vp9Frame(0, 1000, true))) }, func(i, n, size int) []byte {
			return join([]byte{0xc0 | vp9Begin&^byte(min(i, 1)<<3) | byte(i+1)/byte(n)<<2, 1}, vp9Frame(i, size, false))
		}},
		{"AV1", func(c *camera) { c.unit(av1Packet(av1Sequence, testSequence(640, 360), keyOBU(1000))) }, func(i, n, size int) []byte {
			return av1Packet(av1Continues&byte(-min(i, 1))|av1GoesOn&^(byte(i+1)/byte(n)<<6), interOBU(size))
		}},
	} {
		for _, size := range []int{1000, 1400} {
			b.Run(fmt.Sprintf("%s/size=%d", c.codec, size), func(b *testing.B) {
				const n = 10
				s := New(Config{})
				sub := s.Subscribe(SubscribeOptions{})
				cam := publish(b, s, Track{Kind: Video, Codec: c.codec, ClockRate: 90_000})
				c.start(cam)
				var payloads [n][]byte
				for i := range payloads {
					payloads[i] = c.inter(i, n, size)
				}
				first := payloads[0][0] // VP9's last bits are taken from a packet that is cut
				last := payloads[n-1][0]
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					payloads[0][0], payloads[n-1][0] = first, last
					cam.w.WriteRTP(0, &rtp.Packet{Header: rtp.Header{SequenceNumber: cam.seq, Timestamp: cam.ts, Marker: i%n == n-1}, Payload: payloads[i%n]})
					cam.seq++
					if i%n == n-1 {
						cam.ts += frame
						for p, _ := sub.Poll(); p != nil; p, _ = sub.Poll() {
							continue
						}
					}
				}
				if st := s.Stats(); st.Keyframes != 1 || st.Discards != (Discards{}) {
					b.Errorf("%d keyframes, discards %+v", st.Keyframes, st.Discards)
				}
			})
		}
	}
}
