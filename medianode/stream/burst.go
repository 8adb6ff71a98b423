package stream

import (
	"time"

	"fanlight/internal/fleet"
)

// Event is what Subscription.Next returns: a *Burst or a StatusChange.
type Event interface{ event() }

// StatusChange says what is seen of the camera from now on.
type StatusChange struct{ Status fleet.CameraStatus }

func (StatusChange) event() {}

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
	bytes    int       // of payload
}

func (*Burst) event() {}

// Bytes returns how many bytes of RTP payload the burst has.
func (b *Burst) Bytes() int { return b.bytes }

// Packet is one RTP packet. Its SSRC and payload type are the session's.
type Packet struct {
	SequenceNumber uint16
	Marker         bool
	Timestamp      uint32
	Payload        []byte // shared: must not be changed
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
	seq          uint16 // of the next packet
	line         timeline
	senderReport clockPoint // the camera's; zero: none

	// The pending burst.
	pending  []Packet
	bytes    int
	keyframe bool
	gap      bool
}

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

// append gives the packet its sequence number and adds it to the pending burst.
func (o *output) append(p Packet) {
	p.SequenceNumber = o.seq
	o.seq++
	o.pending = append(o.pending, p)
	o.bytes += len(p.Payload)
}

// take returns the pending burst, and begins the next.
func (o *output) take() *Burst {
	b := &Burst{
		Track: o.index, Kind: o.kind, Codec: o.track.Codec,
		Keyframe: o.keyframe, Damaged: o.gap, Arrival: o.line.at,
		Packets: o.pending, bytes: o.bytes,
	}
	o.pending = make([]Packet, 0, maxBurst)
	o.bytes, o.keyframe, o.gap = 0, false, false
	return b
}

// discard drops the pending burst, of which nobody has been told.
func (o *output) discard() {
	clear(o.pending)
	o.pending = o.pending[:0]
	o.bytes, o.keyframe, o.gap = 0, false, false
}
