package stream

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
)

// videoCase is what a camera sends of a codec, and what leaves; as h264Case.
type videoCase struct {
	name      string
	sets      [][]byte // of the SDP
	in        []inPacket
	out       []outPacket // from the first keyframe's first packet
	keyframes int64
	frames    int64 // 0: not checked
	size      [2]int
	discards  Discards
}

func testCases(t *testing.T, codec string, cases []videoCase, check func([]*Burst) error) {
	t.Helper()
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			s := New(Config{MTU: testMTU})
			sub := s.Subscribe(SubscribeOptions{})
			cam := publish(t, s, Track{Kind: Video, Codec: codec, ClockRate: 90_000, ParameterSets: c.sets})
			for _, p := range c.in {
				cam.seq += p.skip
				cam.ts += p.step
				cam.packet(0, p.marker, p.payload)
			}
			bursts := drain(t, sub)
			if diff := cmp.Diff(c.out, relative(packets(bursts)), cmp.AllowUnexported(outPacket{})); diff != "" {
				t.Errorf("packets (-want +got):\n%s", diff)
			}
			st := s.Stats()
			if st.Keyframes != c.keyframes {
				t.Errorf("%d keyframes, want %d", st.Keyframes, c.keyframes)
			}
			if c.frames != 0 && st.Frames != c.frames {
				t.Errorf("%d frames, want %d", st.Frames, c.frames)
			}
			if size := [2]int{st.Width, st.Height}; c.size != [2]int{} && size != c.size {
				t.Errorf("size %v, want %v", size, c.size)
			}
			if st.Discards != c.discards {
				t.Errorf("discards %+v, want %+v", st.Discards, c.discards)
			}
			if err := checkVideo(bursts, check); err != nil {
				t.Error(err)
			}
		})
	}
}

// fuzzVideo writes packets of any payload, as FuzzH264 does, and checks what
// leaves. Marked bytes are the camera's: what leaves is made of them.
func fuzzVideo(f *testing.F, codec string, cases []videoCase, check func([]*Burst) error) {
	f.Helper()
	for _, c := range cases {
		var in []byte
		for _, s := range c.sets {
			in = append(append(in, byte(len(s)), 0), s...)
		}
		for _, p := range c.in {
			var flags byte
			if p.marker {
				flags |= 1
			}
			if p.step > 0 {
				flags |= 2
			}
			if p.skip > 0 {
				flags |= 4
			}
			n := min(len(p.payload), 255)
			in = append(append(in, byte(n), flags), p.payload[:n]...)
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := New(Config{MTU: testMTU})
		sub := s.Subscribe(SubscribeOptions{})
		cam := publish(t, s, Track{Kind: Video, Codec: codec, ClockRate: 90_000})
		for len(in) >= 2 {
			n, flags := min(int(in[0]), len(in)-2), in[1]
			if flags&2 != 0 {
				cam.ts += frame
			}
			if flags&4 != 0 {
				cam.seq++
			}
			cam.packet(0, flags&1 != 0, in[2:2+n])
			in = in[2+n:]
		}
		cam.w.Close()
		if err := checkVideo(drain(t, sub), check); err != nil {
			t.Fatal(err)
		}
	})
}

// checkVideo checks what holds for whatever a camera sends, of any codec.
func checkVideo(bursts []*Burst, check func([]*Burst) error) error {
	var last *Packet
	for i, b := range bursts {
		if i == 0 && !b.Keyframe {
			return fmt.Errorf("burst 0 is no keyframe")
		}
		if len(b.Packets) == 0 || len(b.Packets) > maxBurst {
			return fmt.Errorf("burst %d has %d packets", i, len(b.Packets))
		}
		for j := range b.Packets {
			p := &b.Packets[j]
			switch {
			case len(p.Payload) == 0 || len(p.Payload) > testMTU:
				return fmt.Errorf("packet of %d bytes", len(p.Payload))
			case p.Timestamp != b.Packets[0].Timestamp:
				return fmt.Errorf("burst %d has two timestamps", i)
			case p.Marker && j != len(b.Packets)-1:
				return fmt.Errorf("a marker within burst %d", i)
			case last != nil && (p.Index <= last.Index || p.Index-last.Index-1 > maxGap*255):
				return fmt.Errorf("index %d after %d", p.Index, last.Index)
			}
			last = p
		}
	}
	return check(bursts)
}

// assembled returns what an independent depacketizer makes of packets, one item
// for each timestamp.
func assembled(t *testing.T, d rtp.Depacketizer, ps []Packet) (out [][]byte) {
	t.Helper()
	for i, p := range ps {
		if i == 0 || p.Timestamp != ps[i-1].Timestamp {
			out = append(out, nil)
		}
		b, err := d.Unmarshal(p.Payload)
		if err != nil {
			t.Fatalf("packet %d (% x…): %v", i, p.Payload[:min(8, len(p.Payload))], err)
		}
		out[len(out)-1] = append(out[len(out)-1], b...)
		if end := i == len(ps)-1 || p.Timestamp != ps[i+1].Timestamp; end != p.Marker {
			t.Errorf("packet %d of %d: marker %v, end of its access unit %v", i, len(ps), p.Marker, end)
		}
	}
	return out
}

// pass writes frames, one after the other, through a stream with an MTU, as a
// payloader makes packets of them, and returns what leaves. The camera marks no
// ends, so that the last frame must be one to be left out.
func pass(t *testing.T, codec string, mtu, cameraMTU int, payloader rtp.Payloader, frames [][]byte) ([]Packet, Stats) {
	t.Helper()
	s := New(Config{MTU: mtu})
	sub := s.Subscribe(SubscribeOptions{QueueBursts: 1 << 12})
	cam := publish(t, s, Track{Kind: Video, Codec: codec, ClockRate: 90_000})
	for _, frame := range frames {
		for _, p := range payloader.Payload(uint16(cameraMTU), frame) {
			cam.packet(0, false, p)
		}
		cam.ts += 3600
	}
	ps := packets(drain(t, sub))
	for _, p := range ps {
		if len(p.Payload) > mtu {
			t.Fatalf("packet of %d bytes, with an MTU of %d", len(p.Payload), mtu)
		}
	}
	return ps, s.Stats()
}

// noise returns bytes that look random and have no start codes.
func noise(seed, size int) []byte {
	r := rand.New(rand.NewPCG(uint64(seed), 1))
	b := make([]byte, size)
	for i := range b {
		b[i] = byte(1 + r.IntN(255))
	}
	return b
}

// payloaders make packets of frames as cameras do: pion's, with the options that
// they have.
var payloaders = []struct {
	name, codec string
	payloader   func() rtp.Payloader
	assembler   func() rtp.Depacketizer
	frame       func(i, size int, key bool) []byte
}{
	{"H265", "H265", func() rtp.Payloader { return &codecs.H265Payloader{} }, func() rtp.Depacketizer { return &codecs.H265Depacketizer{} }, annexB},
	{"VP8", "VP8", func() rtp.Payloader { return &codecs.VP8Payloader{} }, func() rtp.Depacketizer { return &codecs.VP8Packet{} }, vp8Frame},
	{"VP8 with picture ids", "VP8", func() rtp.Payloader { return &codecs.VP8Payloader{EnablePictureID: true} }, func() rtp.Depacketizer { return &codecs.VP8Packet{} }, vp8Frame},
	{"VP9, not flexible", "VP9", func() rtp.Payloader { return &codecs.VP9Payloader{InitialPictureIDFn: picture} }, func() rtp.Depacketizer { return &codecs.VP9Packet{} }, vp9Frame},
	{"VP9, flexible", "VP9", func() rtp.Payloader { return &codecs.VP9Payloader{FlexibleMode: true, InitialPictureIDFn: picture} }, func() rtp.Depacketizer { return &codecs.VP9Packet{} }, vp9Frame},
	{"AV1", "AV1", func() rtp.Payloader { return &codecs.AV1Payloader{} }, func() rtp.Depacketizer { return &codecs.AV1Depacketizer{} }, av1Unit},
}

func picture() uint16 { return 0x7ffe }

// What leaves is what came, whatever packets it came in, by pion's word: those
// that fit, those that are a little too large, and those that are much too large.
func TestReassembly(t *testing.T) {
	for _, c := range payloaders {
		for _, mtus := range [][2]int{{64, 60}, {64, 70}, {64, 1200}, {300, 320}, {1200, 1100}, {1200, 1400}, {1200, 9000}} {
			t.Run(fmt.Sprintf("%s/%d to %d", c.name, mtus[1], mtus[0]), func(t *testing.T) {
				var frames [][]byte
				for i := range 9 {
					frames = append(frames, c.frame(i, 10+i*i*60, i%4 == 0))
				}
				ps, stats := pass(t, c.codec, mtus[0], mtus[1], c.payloader(), frames)
				want := frames[:8] // the last waits for its end
				got := assembled(t, c.assembler(), ps[:whole(ps)])
				if diff := cmp.Diff(want[:len(got)], got); diff != "" || len(got) < 7 {
					t.Errorf("%d frames of %d (-want +got):\n%.2000s", len(got), len(want), diff)
				}
				if stats.Keyframes != 3 || stats.Frames != 9 || stats.Width != 640 || stats.Height != 360 {
					t.Errorf("%d keyframes, %d frames, %d x %d; want 3, 9 and 640 x 360", stats.Keyframes, stats.Frames, stats.Width, stats.Height)
				}
				if stats.Discards != (Discards{}) {
					t.Errorf("discards %+v", stats.Discards)
				}
			})
		}
	}
}

// whole returns how many packets there are up to the last frame's end.
func whole(ps []Packet) int {
	for n := len(ps); n > 0; n-- {
		if ps[n-1].Marker {
			return n
		}
	}
	return 0
}

// What has been handed out stays as it is, whatever comes after.
func TestHandedOutStays(t *testing.T) {
	for _, c := range payloaders {
		t.Run(c.name, func(t *testing.T) {
			s := New(Config{MTU: testMTU})
			sub := s.Subscribe(SubscribeOptions{QueueBursts: 1 << 12})
			cam := publish(t, s, Track{Kind: Video, Codec: c.codec, ClockRate: 90_000})
			var taken []Packet
			var copies [][]byte
			p := c.payloader()
			for i := range 20 {
				payloads := p.Payload(200, c.frame(i, 700, i%5 == 0))
				for j, payload := range payloads {
					cam.packet(0, j == len(payloads)-1, payload)
					for _, p := range packets(drain(t, sub)) {
						taken, copies = append(taken, p), append(copies, bytes.Clone(p.Payload))
					}
				}
				cam.ts += frame
			}
			for i, p := range taken {
				if !bytes.Equal(p.Payload, copies[i]) {
					t.Errorf("packet %d of %d has changed", i, len(taken))
				}
			}
			if len(taken) < 20*700/testMTU {
				t.Errorf("only %d packets", len(taken))
			}
		})
	}
}

// When a packet is lost within a frame, the frame's end and what follows stay
// here; the next keyframe leaves whole, and says that there is a gap before it.
func TestLossWithinFrame(t *testing.T) {
	for _, c := range payloaders {
		t.Run(c.name, func(t *testing.T) {
			s := New(Config{MTU: testMTU})
			sub := s.Subscribe(SubscribeOptions{QueueBursts: 1 << 12})
			cam := publish(t, s, Track{Kind: Video, Codec: c.codec, ClockRate: 90_000})
			p := c.payloader()
			write := func(i int, lose, key bool) []*Burst {
				payloads := p.Payload(200, c.frame(i, 900, key))
				for j, payload := range payloads {
					if lose && j == 2 {
						cam.seq++
						continue
					}
					cam.packet(0, j == len(payloads)-1, payload)
				}
				cam.ts += frame
				return drain(t, sub)
			}
			write(0, false, true)
			if left := packets(write(1, true, false)); len(left) > 0 && left[len(left)-1].Marker {
				t.Error("a frame with a gap left as if it were whole")
			}
			if left := write(2, false, false); len(left) > 0 {
				t.Errorf("%d bursts left that refer to what is lost", len(left))
			}
			again := write(3, false, true)
			if len(again) == 0 || !again[0].Keyframe || !again[0].Damaged {
				t.Fatal("the next keyframe does not begin anew")
			}
			got := assembled(t, c.assembler(), packets(again))
			if diff := cmp.Diff([][]byte{c.frame(3, 900, true)}, got); diff != "" {
				t.Errorf("the next keyframe (-want +got):\n%.1000s", diff)
			}
			if stats := s.Stats(); stats.PacketsLost != 1 || stats.Keyframes != 2 || stats.Discards.Damaged == 0 {
				t.Errorf("%d lost, %d keyframes, discards %+v; want 1, 2 and some that are damaged", stats.PacketsLost, stats.Keyframes, stats.Discards)
			}
		})
	}
}

// FuzzReassembly puts frames of any size into packets of any size, and out of
// what leaves by pion's word.
func FuzzReassembly(f *testing.F) {
	for i := range payloaders {
		f.Add(uint8(i), uint16(70), uint16(64), []byte{1, 9, 200})
		f.Add(uint8(i), uint16(1400), uint16(1200), []byte{255, 0, 30})
	}
	f.Fuzz(func(t *testing.T, codec uint8, cameraMTU, mtu uint16, sizes []byte) {
		c := payloaders[int(codec)%len(payloaders)]
		if len(sizes) > 20 {
			sizes = sizes[:20]
		}
		var frames [][]byte
		for i, size := range sizes {
			frames = append(frames, c.frame(i, 10+11*int(size), i%4 == 0))
		}
		// pion's payloaders need room for a parameter set each.
		ps, stats := pass(t, c.codec, max(64, int(mtu%1500)), max(60, int(cameraMTU%2000)), c.payloader(), frames)
		got := assembled(t, c.assembler(), ps[:whole(ps)])
		if len(got) > len(frames) || len(got)+1 < len(frames) {
			t.Fatalf("%d frames of %d", len(got), len(frames))
		}
		if diff := cmp.Diff(frames[:len(got)], got, cmpopts.EquateEmpty()); diff != "" || stats.Discards != (Discards{}) {
			t.Errorf("%d frames of %d, discards %+v (-want +got):\n%.2000s", len(got), len(frames), stats.Discards, diff)
		}
	})
}
