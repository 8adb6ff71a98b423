package session

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"

	"fanlight/medianode/stream"
	"fanlight/medianode/transport"
	"fanlight/medianode/udp"
)

// rig is one shard with viewers that nobody is behind: what they are sent goes to
// a socket that is not read. It is used by one goroutine, for the shard's does
// not run.
type rig struct {
	shard  *shard
	outlet *outlet
	stream *stream.Stream
	writer *stream.Writer
	seq    uint16
	ts     uint32
	far    time.Time // when sender reports are due again
}

func newRig(t testing.TB, viewers int) *rig { return newRigOf(t, viewers, stream.Config{}) }

func newRigOf(t testing.TB, viewers int, cfg stream.Config) *rig {
	t.Helper()
	listen := func(cfg udp.Config) *udp.Conn {
		c, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), cfg)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	conn, sink := listen(udp.Config{}), listen(udp.Config{ReadBuffer: 4096})
	r := &rig{shard: newShard(conn), stream: stream.New(cfg), far: time.Now().Add(24 * time.Hour)}
	t.Cleanup(func() { r.stream.Close(nil) })
	var err error
	if r.writer, err = r.stream.Publish([]stream.Track{{Kind: stream.Video, Codec: "H264", ClockRate: 90000, ParameterSets: [][]byte{{0x67, 66, 0xc0, 30, 0x80}, {0x68, 0xce}}}}); err != nil {
		t.Fatal(err)
	}
	for i := range viewers {
		to := sink.AddrPort()
		path, err := transport.NewPath(conn, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, byte(i >> 8), byte(i)}), to.Port()))
		if err != nil {
			t.Fatal(err)
		}
		c, err := newCryptor(&transport.Keys{Profile: srtp.ProtectionProfileAeadAes128Gcm, Key: randomBytes(16), Salt: randomBytes(12)})
		if err != nil {
			t.Fatal(err)
		}
		s := &Session{cfg: OpenConfig{Profiles: []Profile{{ID: "main", Stream: r.stream}}}}
		s.lanes[stream.Video] = lane{kind: stream.Video, ssrc: uint32(i + 1), payloads: map[string]payloadType{"H264": {102, 103}}, rtx: rtx{ssrc: uint32(i + 1e6)}}
		route := new(atomic.Pointer[transport.Path])
		route.Store(path)
		v := &viewer{session: s, shard: r.shard, cryptor: c, route: route, counts: &s.counts, held: true, mute: true, lanes: s.lanes, report: r.far}
		r.shard.join(v, r.stream)
	}
	r.outlet = r.shard.outlets[r.stream]
	r.frame(true)
	r.send()
	return r
}

const framePackets, framePayload = 10, 1200

// frame writes one picture of ten packets.
func (r *rig) frame(key bool) {
	kind := byte(1)
	if key {
		kind = 5
	}
	for i := range framePackets {
		p := make([]byte, framePayload)
		p[0], p[1] = 0x60|28, kind // FU-A (RFC 6184 §5.8)
		if i == 0 {
			p[1] |= 0x80
			p[2] = 0x80 // the picture's first slice
		}
		if i == framePackets-1 {
			p[1] |= 0x40
		}
		r.writer.WriteRTP(0, &rtp.Packet{Header: rtp.Header{Version: 2, SequenceNumber: r.seq, Timestamp: r.ts, Marker: i == framePackets-1}, Payload: p})
		r.seq++
	}
	r.ts += 3600
}

// send sends what there is, as the shard's goroutine would.
func (r *rig) send() {
	for r.shard.turn() {
	}
	for r.catchUp() {
	}
	r.shard.batch.Flush()
}

// catchUp sends the next of what is recent, without waiting for its time.
func (r *rig) catchUp() bool {
	r.shard.paced = time.Time{}
	return !r.shard.catchUp(time.Now()).IsZero()
}

// burst returns a burst that is sent again and again, with new numbers.
func (r *rig) burst(t testing.TB) *stream.Burst {
	t.Helper()
	r.frame(false)
	b, err := r.outlet.sub.Poll()
	if err != nil || b == nil {
		t.Fatalf("no burst: %v", err)
	}
	own := *b
	own.Packets = append([]stream.Packet(nil), b.Packets...)
	return &own
}

func (r *rig) deliver(b *stream.Burst) {
	r.shard.fan(r.outlet, b, 0, time.Now())
	r.shard.batch.Flush()
	for i := range b.Packets {
		b.Packets[i].Index += uint64(len(b.Packets))
	}
}

// A packet's way to a viewer allocates nothing: not for the first time, and not
// again.
func TestDeliverAllocatesNothing(t *testing.T) {
	const viewers = 50
	r := newRig(t, viewers)
	b := r.burst(t)
	if n := testing.AllocsPerRun(50, func() { r.deliver(b) }); n != 0 {
		t.Errorf("%v allocations for a burst to %d viewers", n, viewers)
	}
	v := r.outlet.seats[0]
	nack := r.nack(v)
	v.resend(r.shard, stream.Video, nack, time.Now()) // the memory of what was sent again is made once
	if n := testing.AllocsPerRun(50, func() {
		v.resends.budget, v.resends.at = resendBurst, time.Now()
		clear(v.resends.repeats[:])
		v.resend(r.shard, stream.Video, nack, time.Now())
		r.shard.batch.Flush()
	}); n != 0 {
		t.Errorf("%v allocations for %d packets sent again", n, framePackets)
	}
	if got := v.session.counts.resent.Load(); got == 0 {
		t.Error("nothing was sent again")
	}
}

// nack asks for the stream's latest picture again.
func (r *rig) nack(v *viewer) []rtcp.NackPair {
	r.frame(false)
	r.send()
	l := &v.lanes[stream.Video]
	return []rtcp.NackPair{{PacketID: uint16(l.next) - framePackets, LostPackets: 1<<(framePackets-1) - 1}}
}

// BenchmarkDeliver is a packet's way to a viewer: sealed and sent. An operation is
// one packet to one viewer. It fails if one allocates.
func BenchmarkDeliver(b *testing.B) {
	for _, viewers := range []int{1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("viewers=%d", viewers), func(b *testing.B) {
			r := newRig(b, viewers)
			burst := r.burst(b)
			if n := testing.AllocsPerRun(10, func() { r.deliver(burst) }); n != 0 {
				b.Fatalf("%v allocations for a burst", n)
			}
			b.ReportAllocs()
			b.SetBytes(framePayload)
			b.ResetTimer()
			for i := 0; i < b.N; i += framePackets * viewers {
				r.deliver(burst)
			}
		})
	}
}

// BenchmarkEstimate is BenchmarkDeliver to 100 viewers with and without the time at
// which each packet leaves, from which viewers estimate what their path carries.
func BenchmarkEstimate(b *testing.B) {
	for name, id := range map[string]uint8{"none": 0, "send_time": 2} {
		b.Run(name, func(b *testing.B) {
			const viewers = 100
			r := newRig(b, viewers)
			for _, v := range r.outlet.seats {
				v.lanes[stream.Video].extensions.sendTime = id
			}
			burst := r.burst(b)
			b.ReportAllocs()
			b.SetBytes(framePayload)
			b.ResetTimer()
			for i := 0; i < b.N; i += framePackets * viewers {
				r.deliver(burst)
			}
		})
	}
}

// BenchmarkWrite is a camera's packet from the source to all viewers. An
// operation is one packet of the camera.
func BenchmarkWrite(b *testing.B) {
	for _, viewers := range []int{1, 100} {
		b.Run(fmt.Sprintf("viewers=%d", viewers), func(b *testing.B) {
			r := newRig(b, viewers)
			b.ReportAllocs()
			b.SetBytes(framePayload)
			b.ResetTimer()
			for i := 0; i < b.N; i += framePackets {
				r.frame(i%(25*framePackets) == 0)
				r.send()
			}
		})
	}
}

// BenchmarkResend answers a NACK. An operation is one packet sent again.
func BenchmarkResend(b *testing.B) {
	r := newRig(b, 1)
	v := r.outlet.seats[0]
	nack := r.nack(v)
	v.resend(r.shard, stream.Video, nack, time.Now())
	b.ReportAllocs()
	b.SetBytes(framePayload)
	b.ResetTimer()
	for i := 0; i < b.N; i += framePackets {
		v.resends.budget, v.resends.at = resendBurst, time.Now()
		clear(v.resends.repeats[:])
		v.resend(r.shard, stream.Video, nack, time.Now())
		r.shard.batch.Flush()
	}
}

// BenchmarkHear reads a viewer's reports. An operation is one compound packet.
func BenchmarkHear(b *testing.B) {
	r := newRig(b, 1)
	s := r.outlet.seats[0].session
	report := binary.BigEndian.AppendUint32([]byte{0x81, 201, 0, 7}, 1)
	report = binary.BigEndian.AppendUint32(report, s.lanes[stream.Video].ssrc)
	report = append(report, make([]byte, 20)...)
	b.ReportAllocs()
	for b.Loop() {
		s.hearAll(report)
	}
}
