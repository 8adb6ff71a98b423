package session

import (
	"math/rand/v2"

	"fanlight/medianode/stream"
)

// maxGap is how many of the stream's packets may be missing for the viewer to
// see it: the stream shows no more than 32 at once of what the camera lost. What
// is beyond was left out for this viewer, who has no use for asking for it.
const maxGap = 64

// lane is one kind of media on its way to one viewer. It is owned by the
// session's shard, but for what is static.
type lane struct {
	// Static.
	kind     stream.Kind
	payloads map[string]uint8 // payload types by codec; nil: the viewer gets none of this kind
	ssrc     uint32
	nack     bool // the viewer may ask for packets again
	rtx      rtx

	// Of the latest burst.
	codec     string
	payload   uint8
	clockRate uint32
	changed   bool // another codec than that of the packet before

	// The viewer's numbers: the packet that the stream calls from is base here,
	// and so on. They go on without a gap where packets were left out.
	from     uint64
	base     uint64
	next     uint64 // ours, of the packet after the latest; 0: none was sent
	latest   uint64 // the stream's, of the latest
	complete bool   // the latest ended its access unit

	packets, octets uint32 // sent, modulo 2^32 (RFC 3550 §6.4.1)
	timestamp       uint32 // of the latest packet
}

// rtx is how packets are sent again (RFC 4588); payload 0: as they were.
type rtx struct {
	payload uint8
	ssrc    uint32
	index   uint64 // of the next packet
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
	// What was sent before is never sent again: with another payload type it would
	// be another packet under the same nonce.
	l.changed = true
	return true
}

// number returns the viewer's number of a packet. resumed: packets before it were
// left out.
func (l *lane) number(p *stream.Packet, resumed bool) uint64 {
	switch {
	case l.next == 0:
		l.from, l.base = p.Index, rand.Uint64N(1<<15) // RFC 3711 §3.3.1: below 2^15
	case resumed || l.changed || p.Index-l.latest > maxGap:
		l.from, l.base = p.Index, l.next
		if !l.complete {
			l.base++ // what was cut off must not look whole
		}
	}
	l.changed = false
	return l.base + p.Index - l.from
}

// sent accounts for a packet.
func (l *lane) sent(p *stream.Packet, index uint64) {
	l.latest, l.next, l.complete = p.Index, index+1, p.Marker
	l.packets++
	l.octets += uint32(len(p.Payload))
	l.timestamp = p.Timestamp
}

// find returns the stream's index of the latest packet with a sequence number of
// the viewer's, and the viewer's own. ok is false if there was none, or it was
// before packets were left out.
func (l *lane) find(seq uint16) (index, own uint64, ok bool) {
	if l.next == 0 {
		return 0, 0, false
	}
	latest := l.next - 1
	back := uint64(uint16(latest) - seq)
	if back > latest || latest-back < l.base {
		return 0, 0, false
	}
	own = latest - back
	return l.from + own - l.base, own, true
}
