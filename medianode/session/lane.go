package session

import (
	"math/rand/v2"
	"sort"
	"time"

	"fanlight/medianode/stream"
)

// maxGap is how many of the stream's packets may be missing for the viewer to
// see it: the stream shows no more than 32 at once of what the camera lost. What
// is beyond was left out for this viewer, who has no use for asking for it.
const maxGap = 64

// lane is one kind of media on its way to one viewer. It is owned by the
// session's shard, but for what is static.
//
// A viewer gets one sequence of numbers and timestamps that go on, whatever they
// are made of: what a stream has kept and then what it sends, the pictures after
// some that were left out, another profile. Each such part is a run.
type lane struct {
	// Static.
	kind       stream.Kind
	payloads   map[string]payloadType // by codec; nil: the viewer gets none of this kind
	ssrc       uint32
	nack       bool // the viewer may ask for packets again
	rtx        rtx
	extensions extensions

	// Of the latest burst.
	codec     string
	payload   payloadType
	clockRate uint32

	runs [maxRuns]run // the latest first; its end is next
	next uint64       // our number of the packet after the latest; 0: none was sent

	latest   uint64    // the stream's number of the latest packet
	complete bool      // the latest ended its access unit
	at       time.Time // when the latest came from the camera

	packets, octets uint32 // sent, modulo 2^32 (RFC 3550 §6.4.1)
	timestamp       uint32 // of the latest packet, as sent
	captured        time.Time
}

// maxRuns is how many runs a viewer can ask for packets of.
const maxRuns = 4

// run is a part of what was sent in which our numbers and the stream's go along:
// the packet that the stream calls from is base here, and so on, below end. The
// same number stands for the same packet for ever: with a repeated one two packets
// would be sealed with one nonce.
type run struct {
	sub    *stream.Subscription // whose packets they are
	shift  shift
	recent []*stream.Burst // those that the stream may not retain any longer

	goesOn          bool // where the run before ended: nothing was left out
	open            bool // a packet has a number; the rest is set then
	from, base, end uint64
	payload         payloadType
}

// payloadType is what a codec's packets and their retransmissions are marked
// with; rtx 0: they are sent again as they were.
type payloadType struct{ media, rtx uint8 }

// rtx is how packets are sent again (RFC 4588), all codecs of a lane under one
// SSRC; 0: as they were.
type rtx struct {
	ssrc  uint32
	index uint64 // of the next packet
}

// shift is how a stream's timestamps become a viewer's. What the viewer gets at
// once of the past is squeezed into a hundredth of a second, so that it is not
// played one picture after another.
type shift struct {
	offset uint32 // what is added

	// Of what is squeezed: from first to first+span becomes from begin to
	// begin+width. span 0: nothing is.
	first, span  uint32
	begin, width uint32
	arrival      time.Time // of the last of it
}

// squeezed is how long the past lasts for a viewer, in ticks of 90 kHz: less than
// the time between two pictures, so that it ends before the next.
const squeezed = 900

// apply returns the viewer's timestamp.
func (s *shift) apply(timestamp uint32) uint32 {
	if d := timestamp - s.first; s.span > 0 && d <= s.span {
		return s.begin + uint32(uint64(d)*uint64(s.width)/uint64(s.span))
	}
	return timestamp + s.offset
}

// squeeze has the past, from first to last, end where last is now; or right after
// what the viewer has had, if there was some and that is later.
func (s *shift) squeeze(first, last, had uint32, some bool) {
	span := last - first
	if span >= 1<<31 {
		span = 0 // of nothing that makes sense
	}
	width := min(span, squeezed)
	begin := last + s.offset - width
	if some && int32(begin-had) <= 0 {
		begin = had + 1
	}
	s.first, s.span, s.begin, s.width = first, max(span, 1), begin, width
}

// take readies the lane for a burst. ok is false if its codec was not
// negotiated.
func (l *lane) take(b *stream.Burst) (ok bool) {
	if b.Codec == l.codec {
		return true
	}
	payload, ok := l.payloads[b.Codec]
	if !ok {
		return false
	}
	known, _ := findCodec(b.Codec)
	l.codec, l.payload, l.clockRate = b.Codec, payload, known.clockRate
	return true
}

// follow has the lane go on with another stream's packets, of which the next
// comes from the camera at a time: as much later than the latest as it came
// later.
func (l *lane) follow(sub *stream.Subscription, timestamp uint32, arrival time.Time) {
	s := shift{}
	if l.next > 0 {
		step := uint32(1)
		if passed := arrival.Sub(l.at); passed > 0 && l.clockRate > 0 {
			step += ticks(passed, l.clockRate)
		}
		if l.kind == stream.Video {
			step = max(step, squeezed+1) // room for what is recent
		}
		s.offset = l.timestamp + step - timestamp
	}
	l.begin(run{sub: sub, shift: s})
}

// begin has the next packet begin a run.
func (l *lane) begin(r run) {
	if l.runs[0].open {
		l.runs[0].end = l.next
		copy(l.runs[1:], l.runs[:])
	}
	l.runs[0] = r
}

// number returns the viewer's number of a packet. resumed: packets before it were
// left out.
func (l *lane) number(p *stream.Packet, resumed bool) uint64 {
	r := &l.runs[0]
	if r.open && (resumed || r.payload != l.payload || p.Index-l.latest > maxGap) {
		l.begin(run{sub: r.sub, shift: r.shift, recent: r.recent})
	}
	if !r.open {
		r.open, r.from, r.base, r.payload = true, p.Index, l.next, l.payload
		switch {
		case r.goesOn && !resumed && l.next > 0 && p.Index-l.latest-1 < maxGap:
			r.base += p.Index - l.latest - 1
		case l.next == 0:
			r.base = rand.Uint64N(1 << 15) // RFC 3711 §3.3.1: below 2^15
		case !l.complete:
			r.base++ // what was cut off must not look whole
		}
	}
	return r.base + p.Index - r.from
}

// sent accounts for a packet.
func (l *lane) sent(p *stream.Packet, index uint64, timestamp uint32) {
	l.latest, l.next, l.complete = p.Index, index+1, p.Marker || l.kind == stream.Audio
	l.packets++
	l.octets += uint32(len(p.Payload))
	l.timestamp = timestamp
}

// find returns the run of the latest packet with a sequence number of the
// viewer's, the stream's number of it, and the viewer's own; nil if there was
// none, or it is too long ago.
func (l *lane) find(seq uint16) (of *run, index, own uint64) {
	if l.next == 0 {
		return nil, 0, 0
	}
	latest := l.next - 1
	back := uint64(uint16(latest) - seq)
	if back > latest {
		return nil, 0, 0
	}
	own = latest - back
	for i := range l.runs {
		r := &l.runs[i]
		if !r.open || i > 0 && own >= r.end {
			return nil, 0, 0 // of none: it was not sent
		}
		if own >= r.base {
			return r, r.from + own - r.base, own
		}
	}
	return nil, 0, 0
}

// packet returns a packet of a run, or nil.
func (r *run) packet(kind stream.Kind, index uint64) *stream.Packet {
	if p := r.sub.Retained(kind, index); p != nil {
		return p
	}
	i := sort.Search(len(r.recent), func(i int) bool { return r.recent[i].Packets[0].Index > index }) - 1
	if i < 0 {
		return nil
	}
	b := r.recent[i]
	if n := index - b.Packets[0].Index; n < uint64(len(b.Packets)) && b.Packets[n].Index == index {
		return &b.Packets[n]
	}
	return nil
}

// forget lets go of what the stream does not retain any longer, and of what was
// squeezed: timestamps come round, after half a day.
func (l *lane) forget() {
	if r := l.runs[0]; r.shift.span > 0 {
		l.begin(run{sub: r.sub, shift: shift{offset: r.shift.offset}, goesOn: r.open})
	}
	for i := range l.runs {
		l.runs[i].recent = nil
	}
}
