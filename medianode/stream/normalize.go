package stream

// normalizer brings one connection's video, of one codec, into the form that
// package stream promises. Guarded by Stream.mu.
type normalizer interface {
	// write takes one packet's payload, of a byte at least. fresh says that its
	// timestamp is new, lost that packets before it are missing.
	write(fresh, lost, marker bool, payload []byte)
	// leavesOut tells whether the access unit under way does not leave.
	leavesOut() bool
}

// newNormalizer returns the normalizer of a codec; nil for audio.
func newNormalizer(in *input, mtu int, t Track) normalizer {
	switch t.Codec {
	case "H264":
		return newH264(in, mtu, t.ParameterSets)
	case "H265":
		return newH265(in, mtu, t.ParameterSets)
	case "VP8":
		return &vp8{framing: framing{in: in, mtu: mtu}}
	case "VP9":
		return &vp9{framing: framing{in: in, mtu: mtu}}
	case "AV1":
		return &av1{framing: framing{in: in, mtu: mtu}}
	default:
		return nil
	}
}

// framing is what the normalizers of H265, VP8, VP9 and AV1 have in common: the
// access unit under way (a frame of VP8, a picture of VP9, a temporal unit of
// AV1: what has one timestamp), and the way out.
type framing struct {
	in  *input
	mtu int
	cut cutting

	picture bool // the access unit has a part of a picture
	damaged bool // packets of it may be missing before here

	begun bool // there has been an access unit
	high  uint32
	keyed bool // there has been a keyframe, at timestamp high
}

// endUnit flushes the access unit before. Its last packet gets the marker that
// the camera did not send, unless the last packet may be lost. What was held in
// part must have been let go.
func (f *framing) endUnit(lost bool) {
	out := f.in.out
	if n := len(out.pending); n > 0 && f.picture && !lost {
		out.pending[n-1].Marker = true
	}
	f.flush()
	f.picture = false
	f.damaged, f.begun = !f.begun, true // a connection may begin anywhere in a picture
}

// gap says that packets of the access unit are missing.
func (f *framing) gap() { f.in.out.gap, f.damaged = true, true }

// beginFrame counts the access unit when its picture begins, and tells whether
// it does.
func (f *framing) beginFrame() bool {
	if f.picture {
		return false
	}
	f.picture = true
	f.in.stream.meter.frame(f.in.out.line.at)
	f.in.stream.keys.pictures = true
	return true
}

// beginKeyframe begins a burst that a decoder can start with.
func (f *framing) beginKeyframe() {
	out, m := f.in.out, &f.in.stream.meter
	f.flush()
	out.keyframe = true
	f.in.stream.keys.begun()
	m.keyframes++
	ts := out.line.out
	if f.keyed {
		if d := out.line.duration(ts - f.high); d > 0 {
			m.keyframeInterval = d
		}
	}
	f.high, f.keyed = ts, true
}

// size tells the meter the picture's size in pixels, if it can be believed.
func (f *framing) size(width, height int) {
	if width > 0 && height > 0 && width <= maxPicture && height <= maxPicture {
		f.in.stream.meter.width, f.in.stream.meter.height = width, height
	}
}

// leavesOut is the normalizer's: every access unit leaves.
func (f *framing) leavesOut() bool { return false }

func (f *framing) discards() *Discards { return &f.in.stream.meter.discards }

// begin begins a packet that is cut, with what it begins with.
func (f *framing) begin(header ...byte) {
	c := &f.cut
	if len(c.slab) < f.mtu {
		c.slab = make([]byte, max(slabBytes, f.mtu))
	}
	c.part = append(c.slab[:0:f.mtu], header...)
	c.timestamp = f.in.out.line.out
}

// split appends the body of a payload as packets that fit: what goes on with the
// packet under way, or one that begins with first, then those that begin with
// next; both are shorter than the MTU. The packet that ends the body gets the
// bits of last in its first byte. goesOn says that more of the same may come:
// then what does not fill a packet waits for it.
func (f *framing) split(first, next, body []byte, last byte, goesOn, marker bool) {
	c := &f.cut
	for len(body) > 0 {
		if c.part == nil {
			f.begin(first...)
			first = next
		}
		n := min(len(body), f.mtu-len(c.part))
		c.part, body = append(c.part, body[:n]...), body[n:]
		switch {
		case len(body) > 0:
			f.appendAt(c.timestamp, c.take(), false)
		case !goesOn || marker || len(c.part) == f.mtu:
			c.part[0] |= last
			f.appendAt(c.timestamp, c.take(), marker)
		}
	}
}

// finish is the normalizer's, for payloads that can end anywhere.
func (f *framing) finish() {
	if f.cut.part != nil {
		f.appendAt(f.cut.timestamp, f.cut.take(), false)
	}
}

func (f *framing) append(payload []byte, marker bool) {
	f.appendAt(f.in.out.line.out, payload, marker)
}

func (f *framing) appendAt(timestamp uint32, payload []byte, marker bool) {
	out := f.in.out
	if len(out.pending) >= maxBurst {
		f.flush()
	}
	out.append(Packet{Timestamp: timestamp, Marker: marker, Payload: payload})
	if marker {
		f.flush()
	}
}

func (f *framing) flush() { f.in.stream.flush(f.in.out) }
