package stream

import (
	"testing"

	"github.com/pion/rtp"
)

// damageCases are losses on the camera's side.
func damageCases() []h264Case {
	sets := stap(sps, pps)
	long := idr(62*20 + 1)
	var cut []inPacket // a keyframe of 20 fragments, of which the 19th is lost
	out := []outPacket{{payload: sets}}
	for i := range 20 {
		p := inPacket{payload: fu(long, 62*i, 62*(i+1)), marker: i == 19}
		if i == 18 {
			continue
		}
		if i == 19 {
			p.skip = 1
		}
		cut = append(cut, p)
		if i < 15 {
			out = append(out, outPacket{payload: p.payload})
		}
	}
	return []h264Case{
		{
			name: "lost packets between pictures", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: idr(20)},
				{skip: 3, step: frame, marker: true, payload: inter(20)},
				{skip: 1000, step: frame, marker: true, payload: inter(21)},
				{step: frame, marker: true, payload: inter(22)},
				{step: frame, marker: true, payload: idr(23)},
				{step: frame, marker: true, payload: inter(24)},
			},
			out: []outPacket{
				{payload: sets},
				{marker: true, payload: idr(20)},
				{step: 4 * frame, payload: sets},
				{marker: true, payload: idr(23)},
				{step: frame, marker: true, payload: inter(24)},
			}, keyframes: 2,
			discards: Discards{Damaged: 3},
		},
		{
			name: "a picture whose end is lost", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: idr(20)},
				{step: frame, payload: inter(20)},
				{skip: 1, step: frame, marker: true, payload: inter(21)},
				{step: frame, marker: true, payload: idr(22)},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: 3 * frame, payload: sets}, {marker: true, payload: idr(22)}}, keyframes: 2,
			discards: Discards{Damaged: 2},
		},
		{
			name: "a picture whose middle is lost when a part of it has left", sets: [][]byte{sps, pps},
			in:  append(cut, inPacket{step: frame, marker: true, payload: inter(20)}, inPacket{step: frame, marker: true, payload: idr(20)}),
			out: append(out, outPacket{gap: 1, step: 2 * frame, payload: sets}, outPacket{marker: true, payload: idr(20)}), keyframes: 2,
			discards: Discards{Damaged: 3 + 1 + 1},
		},
		{
			name: "the next keyframe is damaged too", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: idr(20)},
				{skip: 1, step: frame, marker: true, payload: inter(20)},
				{step: frame, payload: idr(21)},
				{skip: 1, marker: true, payload: idr(22)},
				{step: frame, marker: true, payload: inter(23)},
				{step: frame, marker: true, payload: idr(24)},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: 4 * frame, payload: sets}, {marker: true, payload: idr(24)}}, keyframes: 3,
			discards: Discards{Damaged: 1 + 2 + 1 + 1},
		},
		{
			name: "a keyframe right after the loss", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: idr(20)},
				{step: frame, payload: inter(20)},
				{skip: 1, step: frame, payload: sei},
				{payload: idr(21)},
				{marker: true, payload: idr(22)},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: 2 * frame, payload: sets}, {payload: sei}, {payload: idr(21)}, {marker: true, payload: idr(22)}}, keyframes: 2,
			discards: Discards{Damaged: 1},
		},
		{
			name: "an empty packet after the loss hides nothing", sets: [][]byte{sps, pps},
			in: []inPacket{
				{marker: true, payload: idr(20)},
				{skip: 1, step: frame},
				{marker: true, payload: append([]byte{0x65, 0x48}, make([]byte, 9)...)}, // first_mb_in_slice is 1
				{step: frame, marker: true, payload: idr(21)},
			},
			out: []outPacket{{payload: sets}, {marker: true, payload: idr(20)}, {step: 2 * frame, payload: sets}, {marker: true, payload: idr(21)}}, keyframes: 2,
			discards: Discards{Malformed: 1, Damaged: 2},
		},
	}
}

// The camera is asked for a keyframe as soon as a loss is seen, and again after
// the loss of that keyframe.
func TestDamageAsks(t *testing.T) {
	for name, viewers := range map[string]int{"watched": 1, "not watched": 0} {
		t.Run(name, func(t *testing.T) {
			c := newClock()
			s := New(Config{Clock: c.time})
			for range viewers {
				defer s.Subscribe(SubscribeOptions{}).Close()
			}
			cam := publish(t, s)
			asked := 0
			cam.w.OnKeyframeRequest(func() { asked++ })
			check := func(want int) {
				t.Helper()
				if asked != want*viewers {
					t.Errorf("asked %d times, want %d", asked, want*viewers)
				}
			}
			cam.unit(sps, pps, idr(20))
			cam.unit(inter(20))
			check(0)
			cam.seq++
			cam.packet(0, false, inter(20))
			check(1)
			c.now = c.now.Add(keyframeRequestInterval)
			cam.packet(0, true, inter(20))
			check(2) // there was none
			cam.ts += frame
			c.now = c.now.Add(keyframeRequestSpacing)
			cam.packet(0, false, idr(20))
			cam.seq++
			cam.packet(0, true, idr(20))
			check(3)
			c.now = c.now.Add(keyframeRequestInterval)
			cam.ts += frame
			cam.unit(idr(20))
			cam.unit(inter(20))
			check(3)
		})
	}
}

// Sound goes on after a loss, with the numbers missing that are.
func TestDamageOfAudio(t *testing.T) {
	s := New(Config{})
	sub := s.Subscribe(SubscribeOptions{})
	cam := publish(t, s, audioTrack)
	sub.Close()
	sub = s.Subscribe(SubscribeOptions{})
	write := func(seq uint16) {
		cam.w.WriteRTP(0, &rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: seq, Timestamp: uint32(seq) * 160}, Payload: []byte{1}})
	}
	for _, seq := range []uint16{1, 2, 5, 6, 500} {
		write(seq)
	}
	bursts := drain(t, sub)
	want := []struct {
		gap     uint64
		damaged bool
	}{{0, false}, {0, false}, {2, true}, {0, false}, {maxGap, true}}
	if len(bursts) != len(want) {
		t.Fatalf("%d bursts, want %d", len(bursts), len(want))
	}
	for i, b := range bursts {
		gap := uint64(0)
		if i > 0 {
			gap = b.Packets[0].Index - bursts[i-1].Packets[0].Index - 1
		}
		if gap != want[i].gap || b.Damaged != want[i].damaged {
			t.Errorf("burst %d: %d missing, damaged %v; want %+v", i, gap, b.Damaged, want[i])
		}
	}
	if got := s.Stats().Discards; got != (Discards{}) {
		t.Errorf("discards %+v", got)
	}
}

// A new connection's keyframe is a place to start with, whatever the one before
// lost.
func TestDamageEndsWithTheConnection(t *testing.T) {
	s := New(Config{})
	sub := s.Subscribe(SubscribeOptions{})
	cam := publish(t, s)
	cam.unit(sps, pps, idr(20))
	cam.seq++
	cam.unit(inter(20))
	cam = publish(t, s)
	cam.unit(sps, pps, idr(21))
	cam.unit(inter(22))
	bursts := drain(t, sub)
	if len(bursts) != 3 || !bursts[1].Keyframe || bursts[2].Packets[0].Index != bursts[1].Packets[1].Index+1 {
		t.Errorf("%d bursts: %+v", len(bursts), bursts)
	}
}
