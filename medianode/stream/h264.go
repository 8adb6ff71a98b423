package stream

import "encoding/binary"

// NAL unit types (ITU-T H.264 table 7-1, RFC 6184 §5.2).
const (
	nalIDR   = 5
	nalSEI   = 6
	nalSPS   = 7
	nalPPS   = 8
	nalAUD   = 9
	nalSTAPA = 24
	nalFUA   = 28
)

// FU header bits (RFC 6184 §5.8) and the parts of a NAL unit header.
const (
	fuStart   = 0x80
	fuEnd     = 0x40
	nalType   = 0x1f
	nalRef    = 0x60 // nal_ref_idc
	nalBroken = 0x80 // forbidden_zero_bit
)

// isVCL tells whether a NAL unit type is a part of a picture.
func isVCL(typ byte) bool { return typ >= 1 && typ <= nalIDR }

// h264 normalizes one connection's H264. Guarded by Stream.mu.
type h264 struct {
	in   *input
	mtu  int
	sets parameterSets

	// The access unit under way.
	vcl     bool   // it has a part of a picture
	idr     bool   // its IDR picture has begun
	skip    bool   // it is a B-frame that no picture refers to, and is left out
	dirty   bool   // parameter sets were taken out and must go before the next part
	damaged bool   // packets of it may be missing before here
	before  prefix // of its first slice
	cut     cutting

	begun bool // there has been an access unit
	high  uint32
	keyed bool // there has been a keyframe, at timestamp high

	order bOrder
}

func newH264(in *input, mtu int, sets [][]byte) *h264 {
	h := &h264{in: in, mtu: mtu}
	for _, nal := range sets {
		h.keep(nal)
	}
	return h
}

// write takes one packet's payload. fresh says that its timestamp is new, lost
// that packets before it are missing.
func (h *h264) write(fresh, lost, marker bool, payload []byte) {
	if fresh {
		h.endUnit()
	}
	if lost {
		h.finish()
		h.damaged, h.before.part = true, nil
	}
	discards := &h.in.stream.meter.discards
	typ := payload[0] & nalType
	switch {
	case payload[0]&nalBroken != 0 || typ == 0 || typ > 29:
		discards.Malformed++
	case typ < nalSTAPA:
		h.unit(payload, marker)
	case typ == nalSTAPA:
		h.aggregate(payload, marker)
	case typ == nalFUA:
		h.fragment(payload, marker)
	default: // STAP-B, MTAP16, MTAP24, FU-B
		discards.UnsupportedFormat++
	}
}

func (h *h264) leavesOut() bool { return h.skip }

// endUnit flushes the access unit before. Its last packet gets the marker that
// the camera did not send.
func (h *h264) endUnit() {
	h.finish()
	out := h.in.out
	if n := len(out.pending); n > 0 && h.vcl {
		out.pending[n-1].Marker = true
	}
	h.flush()
	h.in.stream.meter.discards.Supplements += int64(len(h.before.units))
	h.before.reset()
	h.vcl, h.idr, h.skip = false, false, false
	h.damaged, h.begun = !h.begun, true // a connection may begin anywhere in a picture
}

// unit takes one whole NAL unit.
func (h *h264) unit(nal []byte, marker bool) {
	typ := nal[0] & nalType
	switch {
	case typ == nalSPS || typ == nalPPS:
		h.dirty = h.keep(nal) || h.dirty
	case typ == nalAUD: // no use in RTP (RFC 6184 §5.7)
	case isVCL(typ):
		h.picture(nal[0], nal[1:])
		h.emit(nal, marker)
	case !h.vcl:
		if !h.before.put(nal) {
			h.in.stream.meter.discards.Supplements++
		}
	case typ == nalSEI:
		h.emit(nal, false) // a slice follows
	default:
		h.emit(nal, marker)
	}
}

// aggregate takes a STAP-A packet (RFC 6184 §5.7.1). It stays as it is if it has
// a part of a picture, nothing that belongs before what is held, and nothing that
// may have to be left out.
func (h *h264) aggregate(payload []byte, marker bool) {
	whole := len(payload) <= h.mtu
	var part []byte // the first part of a picture, of an IDR picture if there is one
	n := 0
	for rest := payload[1:]; len(rest) > 0; n++ {
		nal, after, ok := cutUnit(rest)
		if !ok {
			n = 0
			break
		}
		switch t := nal[0] & nalType; {
		case t == nalSPS || t == nalPPS || t == nalAUD:
			whole = false
		case isVCL(t):
			whole = whole && (nal[0]&nalRef != 0 || t == nalIDR)
			if part == nil || t == nalIDR && part[0]&nalType != nalIDR {
				part = nal
			}
		}
		rest = after
	}
	switch {
	case n == 0:
		h.in.stream.meter.discards.Malformed++
	case whole && part != nil:
		h.picture(part[0], part[1:])
		h.emit(payload, marker)
	default:
		for rest := payload[1:]; len(rest) > 0; {
			nal, after, _ := cutUnit(rest)
			h.unit(nal, marker && len(after) == 0)
			rest = after
		}
	}
}

// cutUnit returns the first NAL unit of an aggregate's body, and what follows.
func cutUnit(body []byte) (nal, rest []byte, ok bool) {
	if len(body) < 3 {
		return nil, nil, false
	}
	size := int(binary.BigEndian.Uint16(body))
	if size == 0 || size > len(body)-2 {
		return nil, nil, false
	}
	nal, rest = body[2:2+size:2+size], body[2+size:]
	typ := nal[0] & nalType
	return nal, rest, nal[0]&nalBroken == 0 && typ != 0 && typ < nalSTAPA
}

// fragment takes an FU-A packet (RFC 6184 §5.8).
func (h *h264) fragment(payload []byte, marker bool) {
	if len(payload) < 3 {
		h.in.stream.meter.discards.Malformed++
		return
	}
	typ := payload[1] & nalType
	if typ == 0 || typ >= nalSTAPA {
		h.in.stream.meter.discards.Malformed++
		return
	}
	if payload[1]&fuStart != 0 {
		if payload[1]&fuEnd != 0 { // not allowed, and sent by some: a whole NAL unit
			payload[1] = payload[0]&nalRef | typ
			h.unit(payload[1:], marker)
			return
		}
		if isVCL(typ) {
			h.picture(payload[0]&nalRef|typ, payload[2:])
		}
	}
	if isVCL(typ) {
		h.beginFrame()
	} else if !h.vcl || typ >= nalSPS && typ <= nalAUD {
		h.collect(payload, marker)
		return
	}
	h.emit(payload, marker)
}

// collect takes a fragment of what does not leave as it came.
func (h *h264) collect(payload []byte, marker bool) {
	nal, ok := h.before.join(payload)
	if !ok {
		h.in.stream.meter.discards.Supplements++
	} else if nal != nil {
		h.unit(nal, marker)
	}
}

// picture is told that a slice begins, by its NAL unit header and the beginning of
// what follows, and lets go before it what the decoder needs.
func (h *h264) picture(header byte, body []byte) {
	h.finish()
	first, b := sliceHeader(header, body)
	h.judge(header, first, b)
	if h.skip {
		h.beginFrame()
		return
	}
	begins := header&nalType == nalIDR && !h.idr
	if begins {
		h.idr = true
		h.beginKeyframe(first)
	}
	if begins || h.dirty {
		h.dirty = false
		for _, p := range h.sets.packets(h.mtu) {
			h.emit(p, false)
		}
	}
	h.beginFrame()
}

// beginFrame counts the access unit when its picture begins, and lets go what
// was held for it.
func (h *h264) beginFrame() {
	if h.vcl {
		return
	}
	h.vcl = true
	h.in.stream.meter.frame(h.in.out.line.at)
	h.in.stream.keys.pictures = true
	h.order.picture(h.in.stream)
	for _, nal := range h.before.units {
		h.emit(nal, false)
	}
	h.before.reset()
}

// beginKeyframe begins a burst that a decoder can start with, unless the
// parameter sets are not known or the picture's beginning was lost.
func (h *h264) beginKeyframe(first bool) {
	out, m := h.in.out, &h.in.stream.meter
	if !h.sets.complete() {
		m.undecodable++
		return
	}
	if h.damaged && !first {
		return
	}
	h.flush()
	out.keyframe = true
	h.in.stream.keys.begun()
	m.keyframes++
	m.lastKeyframe = out.line.at
	ts := out.line.out
	if h.keyed {
		if d := out.line.duration(ts - h.high); d > 0 {
			m.keyframeInterval = d
		}
	}
	h.high, h.keyed = ts, true
}

// keep stores a parameter set, and tells whether it is another than before.
func (h *h264) keep(nal []byte) bool {
	m := &h.in.stream.meter
	changed, ok := h.sets.put(nal)
	if !ok {
		m.discards.ParameterSets++
		return false
	}
	if changed && nal[0]&nalType == nalSPS {
		if width, height, ok := pictureSize(nal); ok {
			m.width, m.height = width, height
		}
	}
	return changed
}

// emit appends a payload to the pending burst, cut to fit into the MTU.
//
// The pieces of a NAL unit that comes in fragments are cut across them: what is
// left of one leaves with the next, else every packet of the camera would be two,
// one of them small.
func (h *h264) emit(payload []byte, marker bool) {
	if h.skip {
		h.in.stream.meter.discards.BFrames++
		return
	}
	fragment := payload[0]&nalType == nalFUA
	goesOn := fragment && h.cut.part != nil && payload[1]&(fuStart|nalType) == h.cut.typ
	if !goesOn {
		h.finish()
	}
	switch {
	case !goesOn && len(payload) <= h.mtu:
		h.append(payload, marker)
	case fragment:
		h.split(payload[0], payload[1], payload[2:], marker)
	default:
		h.split(payload[0]&nalRef|nalFUA, payload[0]&nalType|fuStart|fuEnd, payload[1:], marker)
	}
}

// cutting is the cutting of what is too large for the MTU.
type cutting struct {
	slab []byte // room for packets to come

	// A packet that is not full yet, of a NAL unit that goes on.
	part      []byte // at the beginning of slab; nil: there is none
	typ       byte   // of the NAL unit
	timestamp uint32
}

// slabBytes is how much is allocated for packets at once.
const slabBytes = 32 << 10

// split appends the body of a NAL unit, or of a fragment of one, as fragments. If
// it is not the last, what does not fill a packet waits for more.
func (h *h264) split(indicator, header byte, body []byte, marker bool) {
	c := &h.cut
	for len(body) > 0 {
		if c.part == nil {
			if len(c.slab) < h.mtu {
				c.slab = make([]byte, max(slabBytes, h.mtu))
			}
			c.part = append(c.slab[:0:h.mtu], indicator, header&^fuEnd)
			c.typ, c.timestamp = header&nalType, h.in.out.line.out
			header &^= fuStart
		}
		n := min(len(body), h.mtu-len(c.part))
		c.part, body = append(c.part, body[:n]...), body[n:]
		last := len(body) == 0
		if last && header&fuEnd != 0 {
			c.part[1] |= fuEnd
		}
		if len(c.part) == h.mtu || last && (header&fuEnd != 0 || marker) {
			h.appendAt(c.timestamp, c.take(), marker && last)
		}
	}
}

// take returns the packet under way, and begins the next.
func (c *cutting) take() []byte {
	n := len(c.part)
	p := c.part[:n:n]
	c.slab, c.part = c.slab[n:], nil
	return p
}

// finish lets go what is left of a NAL unit that does not go on.
func (h *h264) finish() {
	if h.cut.part != nil {
		h.appendAt(h.cut.timestamp, h.cut.take(), false)
	}
}

func (h *h264) append(payload []byte, marker bool) { h.appendAt(h.in.out.line.out, payload, marker) }

func (h *h264) appendAt(timestamp uint32, payload []byte, marker bool) {
	out := h.in.out
	if len(out.pending) >= maxBurst {
		h.flush()
	}
	out.append(Packet{Timestamp: timestamp, Marker: marker, Payload: payload})
	if marker {
		h.flush()
	}
}

func (h *h264) flush() { h.in.stream.flush(h.in.out) }
