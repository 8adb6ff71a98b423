package stream

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/rtp"
	"github.com/pion/rtp/codecs"
)

// inPacket is a packet from a camera; outPacket one to a viewer.
type inPacket struct {
	skip    uint16 // sequence numbers that are missing before
	step    uint32 // added to the timestamp before
	marker  bool
	payload []byte
}

type outPacket struct {
	gap     uint16 // sequence numbers that are missing before
	step    uint32 // from the timestamp before
	marker  bool
	payload []byte
}

type h264Case struct {
	name      string
	sets      [][]byte // of the SDP
	in        []inPacket
	out       []outPacket // from the first packet to the last; its subscription started before
	keyframes int64
	discards  Discards
}

const frame = 3600 // 40 ms

// h264Cases drives the tests of both directions and seeds the fuzz target.
// Every case begins with a keyframe unless it says otherwise.
func h264Cases() []h264Case {
	big := idr(150) // MTU 64: body of 149 bytes in fragments of 62, 62, 25
	sets := stap(sps, pps)
	long := slice(nalSEI, 100)
	filler := slice(12, 150)
	other := func(typ byte) []byte { return []byte{typ, 1, 2} }
	var many []inPacket
	var manyOut []outPacket
	manyOut = append(manyOut, outPacket{payload: sets})
	for i := range 40 {
		many = append(many, inPacket{payload: idr(50), marker: i == 39})
		manyOut = append(manyOut, outPacket{payload: idr(50), marker: i == 39})
	}
	return append(slices.Concat(damageCases(), bFrameCases()), []h264Case{
		{
			name: "sets from the SDP before an IDR", sets: [][]byte{sps, pps},
			in:  []inPacket{{marker: true, payload: idr(20)}, {step: frame, marker: true, payload: inter(20)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: frame, marker: true, payload: inter(20)}}, keyframes: 1,
		},
		{
			name: "sets in band, one by one, with an AUD and an SEI",
			in:   []inPacket{{payload: aud}, {payload: sps}, {payload: pps}, {payload: sei}, {marker: true, payload: idr(20)}},
			out:  []outPacket{{payload: sets}, {payload: sei}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "sets in band, aggregated",
			in:   []inPacket{{payload: stap(aud, sps, pps, sei)}, {marker: true, payload: idr(20)}},
			out:  []outPacket{{payload: sets}, {payload: sei}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "sets with a marker and a timestamp of their own",
			in:   []inPacket{{marker: true, payload: sps}, {marker: true, payload: pps}, {step: frame, marker: true, payload: idr(20)}},
			out:  []outPacket{{payload: sets}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "sets of an earlier access unit", sets: [][]byte{sps},
			in:  []inPacket{{payload: pps}, {marker: true, payload: idr(20)}, {step: frame, marker: true, payload: idr(21)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: frame, payload: sets}, {marker: true, payload: idr(21)}}, keyframes: 2,
		},
		{
			name: "an aggregate with sets and a picture", in: []inPacket{{marker: true, payload: stap(aud, sei, sps, pps, idr(20))}},
			out: []outPacket{{payload: sets}, {payload: sei}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "an aggregate with an AUD and a picture", sets: [][]byte{sps, pps}, in: []inPacket{{marker: true, payload: stap(aud, idr(20))}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "an aggregate with a picture and no sets stays", sets: [][]byte{sps, pps}, in: []inPacket{{marker: true, payload: stap(sei, idr(20))}},
			out: []outPacket{{payload: sets}, {marker: true, payload: stap(sei, idr(20))}}, keyframes: 1,
		},
		{
			name: "an aggregate that is too large", in: []inPacket{{marker: true, payload: stap(sps, pps, sei, idr(70), idr(10))}},
			out: []outPacket{{payload: sets}, {payload: sei}, {payload: fu(idr(70), 0, 62)}, {payload: fu(idr(70), 62, 69)}, {marker: true, payload: idr(10)}}, keyframes: 1,
		},
		{
			name: "an SEI of its own access unit", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: idr(20)},
				{step: frame, marker: true, payload: sei},
				{step: frame, marker: true, payload: stap(aud, sei)},
				{step: frame, marker: true, payload: inter(20)},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: 3 * frame, marker: true, payload: inter(20)}}, keyframes: 1,
			discards: Discards{Supplements: 2},
		},
		{
			name: "an SEI between pictures that are told apart by marker bits only", sets: [][]byte{sps, pps},
			in:  []inPacket{{payload: sei}, {marker: true, payload: idr(20)}, {marker: true, payload: sei}, {marker: true, payload: inter(20)}},
			out: []outPacket{{payload: sets}, {payload: sei}, {marker: true, payload: idr(20)}, {payload: sei}, {marker: true, payload: inter(20)}}, keyframes: 1,
		},
		{
			name: "other units before a picture", sets: [][]byte{sps, pps},
			in:  []inPacket{{payload: sei}, {payload: other(15)}, {payload: other(14)}, {payload: idr(20)}, {marker: true, payload: other(12)}},
			out: []outPacket{{payload: sets}, {payload: sei}, {payload: other(15)}, {payload: other(14)}, {payload: idr(20)}, {marker: true, payload: other(12)}}, keyframes: 1,
		},
		{
			name: "filler in fragments after a picture", sets: [][]byte{sps, pps},
			in: []inPacket{
				{payload: stap(sei, idr(20))},
				{payload: fu(filler, 0, 62)},
				{payload: fu(filler, 62, 149), marker: true},
				{step: frame, payload: stap(sei, inter(20))},
				{payload: filler[:20], marker: true},
			},
			out: []outPacket{
				{payload: sets},
				{payload: stap(sei, idr(20))},
				{payload: fu(filler, 0, 62)},
				{payload: fu(filler, 62, 124)},
				{payload: fu(filler, 124, 149), marker: true},
				{step: frame, payload: stap(sei, inter(20))},
				{payload: filler[:20], marker: true},
			}, keyframes: 1,
		},
		{
			name: "sets and an SEI in fragments",
			in: []inPacket{
				{payload: fu(sps, 0, 4)},
				{payload: fu(sps, 4, len(sps)-1)},
				{payload: fu(pps, 0, len(pps)-1)},
				{payload: fu(long, 0, 40)},
				{payload: fu(long, 40, 60)},
				{payload: fu(long, 60, 99)},
				{marker: true, payload: idr(20)},
			},
			out: []outPacket{{payload: sets}, {payload: fu(long, 0, 62)}, {payload: fu(long, 62, 99)}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "an SEI of which a fragment is lost", sets: [][]byte{sps, pps},
			in:  []inPacket{{payload: sei}, {payload: fu(long, 0, 40)}, {skip: 1, payload: fu(long, 60, 99)}, {marker: true, payload: idr(20)}},
			out: []outPacket{{payload: sets}, {payload: sei}, {marker: true, payload: idr(20)}}, keyframes: 1,
			discards: Discards{Supplements: 1},
		},
		{
			name: "a NAL unit that is too large", sets: [][]byte{sps, pps}, in: []inPacket{{marker: true, payload: big}},
			out: []outPacket{{payload: sets}, {payload: fu(big, 0, 62)}, {payload: fu(big, 62, 124)}, {marker: true, payload: fu(big, 124, 149)}}, keyframes: 1,
		},
		{
			name: "a NAL unit that just fits", sets: [][]byte{sps, pps}, in: []inPacket{{marker: true, payload: idr(testMTU)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(testMTU)}}, keyframes: 1,
		},
		{
			name: "fragments that fit", sets: [][]byte{sps, pps}, in: []inPacket{{payload: fu(big, 0, 60)}, {payload: fu(big, 60, 120)}, {marker: true, payload: fu(big, 120, 149)}},
			out: []outPacket{{payload: sets}, {payload: fu(big, 0, 60)}, {payload: fu(big, 60, 120)}, {marker: true, payload: fu(big, 120, 149)}}, keyframes: 1,
		},
		{
			name: "fragments that are too large", sets: [][]byte{sps, pps}, in: []inPacket{{payload: fu(big, 0, 100)}, {marker: true, payload: fu(big, 100, 149)}},
			out: []outPacket{{payload: sets}, {payload: fu(big, 0, 62)}, {payload: fu(big, 62, 124)}, {marker: true, payload: fu(big, 124, 149)}}, keyframes: 1,
		},
		{
			name: "fragments that are too large, with no marker", sets: [][]byte{sps, pps}, in: []inPacket{{payload: fu(big, 0, 100)}, {payload: fu(big, 100, 149)}, {step: frame, marker: true, payload: inter(20)}},
			out: []outPacket{{payload: sets}, {payload: fu(big, 0, 62)}, {payload: fu(big, 62, 124)}, {marker: true, payload: fu(big, 124, 149)}, {step: frame, marker: true, payload: inter(20)}}, keyframes: 1,
		},
		{
			name: "fragments that are too large, of which the last is missing, and nobody says so", sets: [][]byte{sps, pps},
			in:  []inPacket{{payload: fu(big, 0, 100)}, {step: frame, payload: fu(big, 0, 80)}, {payload: idr(20)}, {marker: true, payload: idr(21)}},
			out: []outPacket{{payload: sets}, {payload: fu(big, 0, 62)}, {marker: true, payload: fu(big, 62, 100)}, {step: frame, payload: sets}, {payload: fu(big, 0, 62)}, {payload: fu(big, 62, 80)}, {payload: idr(20)}, {marker: true, payload: idr(21)}}, keyframes: 2,
		},
		{
			name: "fragments that are too large, of which one is lost", sets: [][]byte{sps, pps},
			in:  []inPacket{{payload: fu(big, 0, 70)}, {skip: 1, payload: fu(big, 100, 140)}, {marker: true, payload: fu(big, 140, 149)}, {step: frame, marker: true, payload: idr(20)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}}, keyframes: 2,
			discards: Discards{Damaged: 5},
		},
		{
			name: "one fragment that is everything", sets: [][]byte{sps, pps}, in: []inPacket{{marker: true, payload: fu(idr(20), 0, 19)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "slices of one picture", sets: [][]byte{sps, pps}, in: []inPacket{{payload: idr(20)}, {payload: idr(21)}, {marker: true, payload: idr(22)}},
			out: []outPacket{{payload: sets}, {payload: idr(20)}, {payload: idr(21)}, {marker: true, payload: idr(22)}}, keyframes: 1,
		},
		{name: "more packets than a burst has", sets: [][]byte{sps, pps}, in: many, out: manyOut, keyframes: 1},
		{
			name: "no marker bits", sets: [][]byte{sps, pps}, in: []inPacket{{payload: idr(20)}, {step: frame, payload: inter(20)}, {step: frame, marker: true, payload: inter(21)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: frame, marker: true, payload: inter(20)}, {step: frame, marker: true, payload: inter(21)}}, keyframes: 1,
		},
		{
			name: "late and repeated packets", sets: [][]byte{sps, pps}, in: []inPacket{{marker: true, payload: idr(20)}, {skip: 65535, marker: true, payload: idr(20)}, {step: frame, marker: true, payload: inter(20)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: frame, marker: true, payload: inter(20)}}, keyframes: 1, discards: Discards{Late: 1},
		},
		{
			name: "a sequence begun anew", sets: [][]byte{sps, pps}, in: []inPacket{{marker: true, payload: idr(20)}, {skip: 20_000, step: frame, marker: true, payload: inter(20)}, {step: frame, marker: true, payload: idr(21)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: 2 * frame, payload: sets}, {marker: true, payload: idr(21)}}, keyframes: 2,
			discards: Discards{Damaged: 1},
		},
		{
			name: "new sets in the middle", sets: [][]byte{sps, pps}, in: []inPacket{{marker: true, payload: idr(20)}, {step: frame, payload: testSPS(0, 320, 180)}, {marker: true, payload: idr(20)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: frame, payload: stap(testSPS(0, 320, 180), pps)}, {marker: true, payload: idr(20)}}, keyframes: 2,
		},
		{
			name: "sets with other ids are all kept", sets: [][]byte{sps, pps}, in: []inPacket{{payload: testPPS(1)}, {marker: true, payload: idr(20)}},
			out: []outPacket{{payload: stap(sps, pps, testPPS(1))}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "sets too large for one packet", sets: [][]byte{sps, testPPS(0, make([]byte, 60)...)}, in: []inPacket{{marker: true, payload: idr(20)}},
			out: []outPacket{{payload: sps}, {payload: testPPS(0, make([]byte, 60)...)}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{name: "no sets at all", in: []inPacket{{marker: true, payload: idr(20)}, {step: frame, marker: true, payload: inter(20)}}},
		{
			name: "begins between keyframes", sets: [][]byte{sps, pps}, in: []inPacket{{marker: true, payload: inter(20)}, {step: frame, marker: true, payload: idr(20)}},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}}, keyframes: 1,
		},
		{
			name: "malformed packets", sets: [][]byte{sps, pps}, in: []inPacket{
				{payload: nil},
				{payload: []byte{0x1f}},
				{payload: []byte{0}},
				{payload: []byte{0xe5, 0x88}},
				{payload: []byte{0x7c}},
				{payload: []byte{0x7c, 0x80, 1}},
				{payload: []byte{0x7c, 0x9c, 1}},
				{payload: []byte{0x78}},
				{payload: []byte{0x78, 0, 9, 0x65}},
				{payload: append(stap(idr(20)), 0)},
				{payload: stap(stap(idr(9)))},
				{payload: []byte{0x79, 1, 2, 3}},
				{payload: []byte{0x7a, 1, 2, 3}},
				{payload: []byte{0x7b, 1, 2, 3}},
				{payload: []byte{0x7d, 1, 2, 3}},
				{payload: []byte{0x67, 1}},
				{payload: []byte{0x68}},
				{payload: []byte{0x68, 0}},
				{marker: true, payload: idr(20)},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}}, keyframes: 1,
			discards: Discards{Malformed: 11, UnsupportedFormat: 4, ParameterSets: 3},
		},
	}...)
}

func TestH264(t *testing.T) {
	for _, c := range h264Cases() {
		t.Run(c.name, func(t *testing.T) {
			s := New(Config{MTU: testMTU})
			sub := s.Subscribe(SubscribeOptions{})
			cam := publish(t, s, Track{Kind: Video, Codec: "h264", ClockRate: 90_000, ParameterSets: c.sets})
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
			if st.Discards != c.discards {
				t.Errorf("discards %+v, want %+v", st.Discards, c.discards)
			}
			if err := checkBursts(bursts); err != nil {
				t.Error(err)
			}
		})
	}
}

// relative returns packets with differences for sequence numbers and timestamps.
func relative(ps []Packet) []outPacket {
	var out []outPacket
	for i, p := range ps {
		o := outPacket{marker: p.Marker, payload: p.Payload}
		if i > 0 {
			o.gap = uint16(p.Index - ps[i-1].Index - 1)
			o.step = p.Timestamp - ps[i-1].Timestamp
		}
		out = append(out, o)
	}
	return out
}

// What leaves has the NAL units that came, but for AUDs and parameter sets,
// however they were packed; read by a depacketizer that is not ours.
func TestH264KeepsUnits(t *testing.T) {
	for _, c := range h264Cases() {
		if c.discards != (Discards{}) || len(c.out) == 0 {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			var in, out [][]byte
			for _, p := range c.in {
				in = append(in, p.payload)
			}
			for _, p := range c.out {
				out = append(out, p.payload)
			}
			want, got := pictureUnits(t, in), pictureUnits(t, out)
			if c.name == "begins between keyframes" {
				want = want[1:]
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("NAL units (-want +got):\n%s", diff)
			}
		})
	}
}

func pictureUnits(t *testing.T, payloads [][]byte) (units [][]byte) {
	t.Helper()
	var d codecs.H264Packet
	for _, p := range payloads {
		stream, err := d.Unmarshal(p)
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range bytes.Split(stream, []byte{0, 0, 0, 1}) {
			if len(u) > 0 && !slices.Contains([]byte{nalSPS, nalPPS, nalAUD}, u[0]&nalType) {
				units = append(units, u)
			}
		}
	}
	return units
}

// A picture whose first slice is lost is no keyframe, however much of it comes.
func TestDamagedKeyframe(t *testing.T) {
	second := idr(30)
	second[1] = 0x48 // first_mb_in_slice is 1
	for _, c := range []struct {
		name      string
		write     func(*camera)
		keyframes int64
	}{
		{"a few fragments come", func(c *camera) { fragments(c, 1, 5); c.packet(0, true, second) }, 0},
		{"more fragments come than a burst has", func(c *camera) { fragments(c, 1, 20); c.packet(0, true, second) }, 0},
		{"only the last slice comes", func(c *camera) { c.seq++; c.packet(0, true, second) }, 0},
		{"a later fragment is lost", func(c *camera) { fragments(c, 0, 3); c.seq++; c.packet(0, true, second) }, 1},
		{"packets before the first slice are lost", func(c *camera) { c.seq++; c.packet(0, false, idr(20)); c.packet(0, true, second) }, 1},
		{"the next is whole", func(c *camera) {
			c.seq++
			c.packet(0, true, second)
			c.ts += frame
			c.packet(0, false, idr(20))
			c.packet(0, true, second)
		}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(Config{MTU: testMTU})
			sub := s.Subscribe(SubscribeOptions{})
			cam := publish(t, s, Track{Kind: Video, Codec: "H264", ClockRate: 90_000, ParameterSets: [][]byte{sps, pps}})
			cam.unit(inter(20))
			c.write(cam)
			bursts := drain(t, sub)
			if got := s.Stats().Keyframes; got != c.keyframes || got == 0 && len(bursts) > 0 {
				t.Errorf("%d keyframes and %d bursts, want %d keyframes", got, len(bursts), c.keyframes)
			}
			if err := checkBursts(bursts); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("a connection begins within a picture", func(t *testing.T) {
		s := New(Config{MTU: testMTU})
		publish(t, s, Track{Kind: Video, Codec: "H264", ClockRate: 90_000, ParameterSets: [][]byte{sps, pps}}).packet(0, true, second)
		if got := s.Stats().Keyframes; got != 0 {
			t.Errorf("%d keyframes, want none", got)
		}
	})
}

// fragments writes n fragments of a slice of an IDR picture, of which those
// before from are lost.
func fragments(c *camera, from, n int) {
	big := idr(62*(n+2) + 1)
	c.seq += uint16(from)
	for i := from; i < n; i++ {
		c.packet(0, false, fu(big, 62*i, 62*(i+1)))
	}
}

// What is held for a picture that never comes is bounded.
func TestSupplementFlood(t *testing.T) {
	for name, c := range map[string]struct {
		payloads func(i int) []byte
		discards int64 // of 10,000
		packets  int
	}{
		"small units":       {func(int) []byte { return sei }, 10_000 - maxPrefixUnits, maxPrefixUnits},
		"large units":       {func(int) []byte { return slice(nalSEI, 5000) }, 10_000 - 3, 3 * 81},
		"endless fragments": {func(i int) []byte { return fu(slice(nalSEI, 20_002), min(i, 1), 10_000) }, 10_000 - 1, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Config{MTU: testMTU})
			sub := s.Subscribe(SubscribeOptions{})
			cam := publish(t, s, Track{Kind: Video, Codec: "H264", ClockRate: 90_000, ParameterSets: [][]byte{sps, pps}})
			for i := range 10_000 {
				cam.packet(0, true, c.payloads(i))
			}
			held := &cam.w.inputs[0].video.(*h264).before
			if n := held.bytes + len(held.part); n > 2*maxPrefixBytes || len(held.units) > maxPrefixUnits {
				t.Errorf("%d bytes in %d units are held", n, len(held.units))
			}
			if got := s.Stats().Discards; got != (Discards{Supplements: c.discards}) {
				t.Errorf("discards %+v, want %d supplements", got, c.discards)
			}
			cam.packet(0, true, idr(20))
			bursts := drain(t, sub)
			if got := len(packets(bursts)); got != 2+c.packets {
				t.Errorf("%d packets, want the sets, %d of supplements and the picture", got, c.packets)
			}
			if err := checkBursts(bursts); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestPictureSize(t *testing.T) {
	for _, size := range [][2]uint32{{640, 360}, {1920, 1080}, {352, 288}, {3840, 2160}} {
		s := New(Config{})
		publish(t, s, Track{Kind: Video, Codec: "H264", ClockRate: 90_000, ParameterSets: [][]byte{testSPS(0, size[0], size[1])}})
		if st := s.Stats(); st.Width != int(size[0]) || st.Height != int(size[1]) {
			t.Errorf("size %d × %d, want %v", st.Width, st.Height, size)
		}
	}
}

func TestExponential(t *testing.T) {
	for v := range uint32(300) {
		b := &bits{}
		b.ue(v)
		got, ok := exponential(b.buf)
		if ok != (v <= maxExponential) || ok && got != v {
			t.Errorf("ue(%d) read as %d, %v", v, got, ok)
		}
	}
	for _, bad := range [][]byte{nil, {}, {0}, {0, 0}, {0, 0x80}, {0x01}, {0, 1, 0xff, 0xff}} {
		if v, ok := exponential(bad); ok {
			t.Errorf("% x read as %d", bad, v)
		}
	}
}

// FuzzH264 writes packets of any payload: an input is packets of a length byte,
// a flag byte (1: marker, 2: new timestamp, 4: one packet lost) and the payload.
func FuzzH264(f *testing.F) {
	for _, c := range h264Cases() {
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
			in = append(append(in, byte(len(p.payload)), flags), p.payload...)
		}
		f.Add(in)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := New(Config{MTU: testMTU})
		sub := s.Subscribe(SubscribeOptions{QueueBursts: 1 << 20, QueueBytes: 1 << 30})
		cam := publish(t, s)
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
		if err := checkBursts(drain(t, sub)); err != nil {
			t.Fatal(err)
		}
	})
}

// checkBursts checks what holds for whatever a camera sends.
func checkBursts(bursts []*Burst) error {
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
			typ := p.Payload[0] & nalType
			switch {
			case len(p.Payload) > testMTU:
				return fmt.Errorf("packet of %d bytes", len(p.Payload))
			case typ == 0 || typ > nalSTAPA && typ != nalFUA:
				return fmt.Errorf("packet of type %d", typ)
			case j == 0 && b.Keyframe && firstUnit(p.Payload) != nalSPS:
				return fmt.Errorf("keyframe burst %d begins with type %d, not with a sequence parameter set", i, firstUnit(p.Payload))
			case firstUnit(p.Payload) == nalAUD:
				return fmt.Errorf("access unit delimiter in burst %d", i)
			case p.Timestamp != b.Packets[0].Timestamp:
				return fmt.Errorf("burst %d has two timestamps", i)
			case leavesBFrame(p.Payload):
				return fmt.Errorf("burst %d has a B-frame that no picture refers to", i)
			case b.Damaged && !b.Keyframe:
				return fmt.Errorf("burst %d follows a loss and is no keyframe", i)
			case last != nil && p.Index-last.Index-1 > 1:
				return fmt.Errorf("index %d after %d", p.Index, last.Index)
			case last != nil && p.Index-last.Index > 1 && (j > 0 || !b.Damaged || last.Marker):
				return fmt.Errorf("index %d after %d, within burst %d or without a loss", p.Index, last.Index, i)
			case last != nil && j == 0 && b.Damaged && p.Index-last.Index == 1 && !last.Marker:
				return fmt.Errorf("the picture before burst %d was cut off and looks whole", i)
			}
			last = p
		}
	}
	return nil
}

// firstUnit returns the type of the NAL unit that a payload begins with.
func firstUnit(payload []byte) byte {
	switch typ := payload[0] & nalType; typ {
	case nalSTAPA:
		return payload[3] & nalType
	case nalFUA:
		return payload[1] & nalType
	default:
		return typ
	}
}

// FuzzPacket takes a whole RTP packet, as the network has it.
func FuzzPacket(f *testing.F) {
	for _, c := range h264Cases() {
		for _, p := range c.in {
			raw, err := (&rtp.Packet{Header: rtp.Header{Version: 2, Marker: p.marker}, Payload: p.payload}).Marshal()
			if err != nil {
				f.Fatal(err)
			}
			f.Add(raw)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		var pkt rtp.Packet
		if pkt.Unmarshal(raw) != nil {
			return
		}
		s := New(Config{MTU: testMTU})
		sub := s.Subscribe(SubscribeOptions{})
		cam := publish(t, s, videoTrack, audioTrack)
		cam.w.WriteRTP(1, pkt.Clone())
		cam.w.WriteRTP(0, pkt.Clone())
		cam.unit(sps, pps, idr(20))
		cam.w.WriteRTP(0, &pkt)
		cam.w.Close()
		var video []*Burst
		for _, b := range drain(t, sub) {
			if b.Kind == Video {
				video = append(video, b)
			}
		}
		if err := checkBursts(video); err != nil {
			t.Fatal(err)
		}
	})
}
