package stream

import "time"

// Burst is up to 16 consecutive packets of one access unit or audio frame,
// ready to be sent back to back. It is shared by all subscriptions and must not
// be changed.
type Burst struct {
	Track    int       // index into Stream.Tracks
	Kind     Kind      // the track's
	Codec    string    // the track's
	Keyframe bool      // an IDR picture begins here, with its parameter sets: a decoder can start
	Damaged  bool      // packets are missing before or within this burst
	Arrival  time.Time // when the first packet of the access unit came from the camera
	Packets  []Packet  // one at least
	Seq      uint64    // counts the bursts of the kind, from 1
	bytes    int       // of payload
}

// Bytes returns how many bytes of RTP payload the burst has.
func (b *Burst) Bytes() int { return b.bytes }

// Packet is one RTP packet. Its SSRC and payload type are the session's, and so
// is its sequence number, for which Index is what it goes by.
type Packet struct {
	Index     uint64 // counts up, with gaps where the camera lost packets; its low 16 bits begin anywhere
	Timestamp uint32
	Marker    bool
	Payload   []byte // shared: must not be changed
}

// maxBurst is how many packets of an access unit leave together, so that a
// keyframe of hundreds of packets does not swamp a viewer: the bursts of others
// are the pacing.
const maxBurst = 16

// output is the way of one kind's packets out of the stream; it lives as long
// as the stream. Guarded by Stream.mu.
type output struct {
	kind         Kind
	index        int // of the track
	track        Track
	next         uint64 // Index of the next packet
	line         timeline
	senderReport clockPoint // the camera's; zero: none

	kept   *retained // nil: nobody watches
	bursts uint64    // that were handed out

	// The pending burst. It is the end of slab, which is for many bursts: packets
	// are not moved once they are handed out.
	slab     []Packet
	pending  []Packet
	bytes    int
	keyframe bool
	gap      bool
}

// slabPackets is how many packets are allocated at once.
const slabPackets = 256

// clockPoint says that a timestamp was at a time.
type clockPoint struct {
	at  time.Time
	rtp uint32
}

// connect begins a new connection's track.
func (o *output) connect(index int, t Track) {
	o.index, o.track = index, t
	o.line.connect(t.ClockRate)
}

// append gives the packet its index and adds it to the pending burst.
func (o *output) append(p Packet) {
	p.Index = o.next
	o.next++
	if len(o.pending) == cap(o.pending) { // never within a burst of maxBurst
		o.reserve()
	}
	o.pending = append(o.pending, p)
	o.bytes += len(p.Payload)
}

// reserve gives the pending burst, of which nobody has been told, room for more.
func (o *output) reserve() {
	if len(o.slab) < maxBurst+len(o.pending) {
		o.slab = make([]Packet, slabPackets)
	}
	n := copy(o.slab, o.pending)
	o.pending = o.slab[:n:max(maxBurst, n+1)]
}

// take returns the pending burst, and begins the next.
func (o *output) take() *Burst {
	o.bursts++
	b := &Burst{
		Seq:   o.bursts,
		Track: o.index, Kind: o.kind, Codec: o.track.Codec,
		Keyframe: o.keyframe, Damaged: o.gap, Arrival: o.line.at,
		Packets: o.pending[:len(o.pending):len(o.pending)], bytes: o.bytes,
	}
	o.slab, o.pending = o.slab[len(o.pending):], nil
	o.bytes, o.keyframe, o.gap = 0, false, false
	return b
}

// discard drops the pending burst, of which nobody has been told.
func (o *output) discard() {
	clear(o.pending)
	o.pending = o.pending[:0]
	o.bytes, o.keyframe, o.gap = 0, false, false
}
