package stream

import "encoding/binary"

// NAL unit types (ITU-T H.265 table 7-1, RFC 7798 §4.4).
const (
	hevcIRAP    = 16 // the first of the pictures that a decoder can start with
	hevcLastRAP = 21 // the last that is in use
	hevcLastVCL = 31
	hevcVPS     = 32
	hevcSPS     = 33
	hevcPPS     = 34
	hevcAUD     = 35
	hevcEOS     = 36
	hevcEOB     = 37
	hevcAP      = 48
	hevcFU      = 49
)

// hevcHeader is the size of a NAL unit header (RFC 7798 §1.1.4) and of an
// RTP payload header; with an FU header it is one more.
const hevcHeader = 2

// hevcFirst is first_slice_segment_in_pic_flag, the first bit of a slice
// (H.265 §7.3.6.1).
const hevcFirst = 0x80

// hevcType returns the type of a NAL unit or payload.
func hevcType(nal []byte) byte { return nal[0] >> 1 & 0x3f }

// hevcLayer returns nuh_layer_id.
func hevcLayer(nal []byte) byte { return nal[0]&1<<5 | nal[1]>>3 }

// withType returns the header of a NAL unit with another type.
func withType(nal []byte, typ byte) (byte, byte) { return nal[0]&0x81 | typ<<1, nal[1] }

// h265 normalizes one connection's H265 (RFC 7798), as h264 does H264. Only the
// base layer is taken. Guarded by Stream.mu.
type h265 struct {
	framing
	sets hevcSets

	// The access unit under way.
	irap   bool   // its IRAP picture has begun
	dirty  bool   // parameter sets were taken out and must go before the next part
	before prefix // of its first slice
}

func newH265(in *input, mtu int, sets [][]byte) *h265 {
	h := &h265{framing: framing{in: in, mtu: mtu}}
	for _, nal := range sets {
		h.keep(nal)
	}
	return h
}

func (h *h265) write(fresh, lost, marker bool, payload []byte) {
	if fresh {
		h.endUnit(lost)
	}
	if lost {
		h.finish()
		h.gap()
		h.before.part = nil
	}
	switch {
	case !validUnit(payload):
		h.discards().Malformed++
	case hevcLayer(payload) != 0:
		h.discards().UnsupportedFormat++
	case hevcType(payload) < hevcAP:
		h.unit(payload, marker)
	case hevcType(payload) == hevcAP:
		h.aggregate(payload, marker)
	case hevcType(payload) == hevcFU:
		h.fragment(payload, marker)
	default: // PACI, and what is reserved
		h.discards().UnsupportedFormat++
	}
}

// validUnit tells whether a NAL unit has a header that may be (H.265 §7.4.2.2),
// and something after it, if it is not the mark of an end.
func validUnit(nal []byte) bool {
	if len(nal) < hevcHeader || nal[0]&nalBroken != 0 || nal[1]&7 == 0 {
		return false
	}
	typ := hevcType(nal)
	return len(nal) > hevcHeader || typ == hevcEOS || typ == hevcEOB
}

// endUnit flushes the access unit before.
func (h *h265) endUnit(lost bool) {
	h.finish()
	h.framing.endUnit(lost)
	h.discards().Supplements += int64(len(h.before.units))
	h.before.reset()
	h.irap = false
}

// unit takes one whole NAL unit.
func (h *h265) unit(nal []byte, marker bool) {
	typ := hevcType(nal)
	switch {
	case hevcLayer(nal) != 0:
		h.discards().UnsupportedFormat++
	case typ >= hevcVPS && typ <= hevcPPS:
		h.dirty = h.keep(nal) || h.dirty
	case typ == hevcAUD: // the timestamp says it
	case typ <= hevcLastVCL:
		h.slice(typ, nal[hevcHeader]&hevcFirst != 0)
		h.emit(nal, marker)
	case h.picture:
		h.emit(nal, marker)
	case !h.before.put(nal):
		h.discards().Supplements++
	}
}

// aggregate takes an aggregation packet (RFC 7798 §4.4.2). It stays as it is if
// it has a part of a picture and nothing that belongs before what is held.
func (h *h265) aggregate(payload []byte, marker bool) {
	whole, vcl, first := len(payload) <= h.mtu, false, false
	var typ byte // of the first part of a picture
	n := 0
	for rest := payload[hevcHeader:]; len(rest) > 0; n++ {
		nal, after, ok := cutHEVC(rest)
		if !ok {
			n = 0
			break
		}
		switch t := hevcType(nal); {
		case t >= hevcVPS && t <= hevcAUD || hevcLayer(nal) != 0:
			whole = false
		case t <= hevcLastVCL && (!vcl || isIRAP(t) && !isIRAP(typ)):
			vcl, typ, first = true, t, nal[hevcHeader]&hevcFirst != 0
		}
		rest = after
	}
	switch {
	case n == 0:
		h.discards().Malformed++
	case whole && vcl:
		h.slice(typ, first)
		h.emit(payload, marker)
	default:
		for rest := payload[hevcHeader:]; len(rest) > 0; {
			nal, after, _ := cutHEVC(rest)
			h.unit(nal, marker && len(after) == 0)
			rest = after
		}
	}
}

// cutHEVC returns the first NAL unit of an aggregate's body, and what follows.
func cutHEVC(body []byte) (nal, rest []byte, ok bool) {
	if len(body) < 2 {
		return nil, nil, false
	}
	size := int(binary.BigEndian.Uint16(body))
	if size > len(body)-2 {
		return nil, nil, false
	}
	nal, rest = body[2:2+size:2+size], body[2+size:]
	return nal, rest, validUnit(nal) && hevcType(nal) < hevcAP
}

// fragment takes a fragmentation unit (RFC 7798 §4.4.3).
func (h *h265) fragment(payload []byte, marker bool) {
	if len(payload) < hevcHeader+2 {
		h.discards().Malformed++
		return
	}
	header := payload[hevcHeader]
	typ := header &^ (fuStart | fuEnd)
	if typ >= hevcAP {
		h.discards().Malformed++
		return
	}
	vcl := typ <= hevcLastVCL
	if header&fuStart != 0 {
		if header&fuEnd != 0 { // not allowed, and sent by some: a whole NAL unit
			payload[1], payload[2] = withType(payload, typ)
			h.unit(payload[1:], marker)
			return
		}
		if vcl {
			h.slice(typ, payload[hevcHeader+1]&hevcFirst != 0)
		}
	}
	if vcl {
		h.beginFrame()
	} else if !h.picture || typ >= hevcVPS && typ <= hevcAUD {
		h.collect(typ, payload, marker)
		return
	}
	h.emit(payload, marker)
}

// collect takes a fragment of what does not leave as it came.
func (h *h265) collect(typ byte, payload []byte, marker bool) {
	first, second := withType(payload, typ)
	header := payload[hevcHeader]
	nal, ok := h.before.gather(header&fuStart != 0, header&fuEnd != 0, payload[hevcHeader+1:], first, second)
	if !ok {
		h.discards().Supplements++
	} else if nal != nil {
		h.unit(nal, marker)
	}
}

// isIRAP tells whether a decoder can start with a picture of a type.
func isIRAP(typ byte) bool { return typ >= hevcIRAP && typ <= hevcLastRAP }

// slice is told that one begins, and lets go before it what the decoder needs.
// first says that it is the first of its picture.
func (h *h265) slice(typ byte, first bool) {
	h.finish()
	begins := isIRAP(typ) && !h.irap
	if begins {
		h.irap = true
		if !h.sets.complete() {
			h.in.stream.meter.undecodable++
		} else if first || !h.damaged {
			h.beginKeyframe()
		}
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
func (h *h265) beginFrame() {
	if !h.framing.beginFrame() {
		return
	}
	for _, nal := range h.before.units {
		h.emit(nal, false)
	}
	h.before.reset()
}

// keep stores a parameter set, and tells whether it is another than before.
func (h *h265) keep(nal []byte) bool {
	changed, ok := h.sets.put(nal)
	if !ok {
		h.discards().ParameterSets++
		return false
	}
	if changed && hevcType(nal) == hevcSPS {
		sps, _ := readHEVCSPS(nal)
		h.size(sps.width, sps.height)
	}
	return changed
}

// emit appends a payload to the pending burst, cut to fit into the MTU: the
// pieces of a NAL unit that comes in fragments are cut across them.
func (h *h265) emit(payload []byte, marker bool) {
	fragment := hevcType(payload) == hevcFU
	goesOn := fragment && h.cut.part != nil && payload[hevcHeader]&^fuEnd == h.cut.typ
	if !goesOn {
		h.finish()
	}
	switch {
	case !goesOn && len(payload) <= h.mtu:
		h.append(payload, marker)
	case fragment:
		h.divide([hevcHeader]byte(payload), payload[hevcHeader], payload[hevcHeader+1:], marker)
	default:
		var header [hevcHeader]byte
		header[0], header[1] = withType(payload, hevcFU)
		h.divide(header, hevcType(payload)|fuStart|fuEnd, payload[hevcHeader:], marker)
	}
}

// divide appends the body of a NAL unit, or of a fragment of one, as fragments.
// If it is not the last, what does not fill a packet waits for more.
func (h *h265) divide(header [hevcHeader]byte, fu byte, body []byte, marker bool) {
	c := &h.cut
	for len(body) > 0 {
		if c.part == nil {
			h.begin(header[0], header[1], fu&^fuEnd)
			c.typ = fu &^ (fuStart | fuEnd)
			fu &^= fuStart
		}
		n := min(len(body), h.mtu-len(c.part))
		c.part, body = append(c.part, body[:n]...), body[n:]
		last := len(body) == 0
		if last && fu&fuEnd != 0 {
			c.part[hevcHeader] |= fuEnd
		}
		if len(c.part) == h.mtu || last && (fu&fuEnd != 0 || marker) {
			h.appendAt(c.timestamp, c.take(), marker && last)
		}
	}
}
