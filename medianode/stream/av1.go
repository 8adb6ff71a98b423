package stream

import "bytes"

// The bits of an AV1 aggregation header (RTP Payload Format For AV1 §4.4).
const (
	av1Continues = 0x80 // Z: the first element goes on with the last of the packet before
	av1GoesOn    = 0x40 // Y: the last element goes on in the next packet
	av1Sequence  = 0x08 // N: a coded video sequence begins
)

// OBU types (AV1 bitstream specification §6.2.2).
const (
	obuSequence  = 1
	obuDelimiter = 2
	obuHeader    = 3
	obuTiles     = 4
	obuFrame     = 6
	obuRedundant = 7
	obuTileList  = 8
	obuPadding   = 15
)

// The bits of an OBU header (AV1 bitstream specification §5.3.2).
const (
	obuForbidden = 0x80
	obuExtension = 0x04
	obuSized     = 0x02
	obuSpatial   = 0x18 // spatial_id, of the extension
)

func obuType(obu []byte) byte { return obu[0] >> 3 & 0x0f }

// obuPayload returns what follows an OBU's header and size; ok is false if
// nothing does.
func obuPayload(obu []byte) (payload []byte, ok bool) {
	n := 1
	if obu[0]&obuExtension != 0 {
		n++
	}
	if n >= len(obu) {
		return nil, false
	}
	payload = obu[n:]
	if obu[0]&obuSized != 0 {
		if _, payload, ok = leb128(payload); !ok {
			return nil, false
		}
	}
	return payload, len(payload) > 0
}

// leb128 reads a number (AV1 bitstream specification §4.10.5), and returns what
// follows it. ok is false if it is cut off or has more than four octets: no
// packet is as large.
func leb128(b []byte) (v int, rest []byte, ok bool) {
	for i := range min(4, len(b)) {
		v |= int(b[i]&0x7f) << (7 * i)
		if b[i]&0x80 == 0 {
			return v, b[i+1:], true
		}
	}
	return 0, nil, false
}

// elements takes a payload apart, without its aggregation header.
type elements struct {
	rest  []byte
	count int  // W; 0: each element has its length before it
	bad   bool // the payload is not well formed
}

func elementsOf(payload []byte) elements {
	return elements{rest: payload[1:], count: int(payload[0] >> 4 & 3)}
}

// next returns the next element, which is not empty, and whether it is the last.
// ok is false at the end.
func (e *elements) next() (element []byte, last, ok bool) {
	if len(e.rest) == 0 || e.bad {
		return nil, false, false
	}
	size := len(e.rest)
	if e.count != 1 {
		if size, e.rest, ok = leb128(e.rest); !ok || size > len(e.rest) {
			e.bad = true
			return nil, false, false
		}
	}
	element, e.rest = e.rest[:size:size], e.rest[size:]
	last = len(e.rest) == 0
	e.bad = size == 0 || e.count > 0 && last != (e.count == 1)
	e.count = max(0, e.count-1)
	return element, last, !e.bad
}

// place is what becomes of an OBU.
type place int

const (
	placeNone    place = iota
	placePicture       // it goes out as it comes
	placeHeld          // it goes out before the picture, or is kept: the sequence header
	placeDropped
)

// av1 normalizes one connection's AV1 (RTP Payload Format For AV1). What is
// written here of parameter sets and slices holds for sequence headers and
// frames. Guarded by Stream.mu.
type av1 struct {
	framing
	sequence []byte // the latest sequence header; nil: none
	still    bool   // its pictures have no frame type: all are keyframes

	before prefix // of the frame
	open   place  // of the OBU that goes on in the next packet

	pack av1Pack
}

func (a *av1) write(fresh, lost, marker bool, payload []byte) {
	if fresh {
		a.endUnit(lost)
	}
	if lost {
		a.finish()
		a.gap()
		a.before.part, a.open = nil, placeNone
	}
	plain, key, ok := a.look(payload)
	if !ok {
		a.discards().Malformed++
		a.open = placeNone
		return
	}
	continues := payload[0]&av1Continues != 0
	if !continues {
		a.finish()
	}
	if plain && !key && a.cut.part == nil && len(a.before.units) == 0 && len(payload) <= a.mtu {
		a.beginFrame()
		a.open = placeNone
		if payload[0]&av1GoesOn != 0 {
			a.open = placePicture
		}
		a.append(payload, marker)
		return
	}
	a.pack.flags = payload[0] & av1Sequence
	a.rewrite(payload, marker)
}

// endUnit flushes the temporal unit before.
func (a *av1) endUnit(lost bool) {
	a.finish()
	a.framing.endUnit(lost)
	a.discards().Supplements += int64(len(a.before.units))
	a.before.reset()
	a.open = placeNone
}

// look checks a payload. plain says that all of it goes out as it comes, key that
// a keyframe begins in it. ok is false if it is not well formed.
func (a *av1) look(payload []byte) (plain, key, ok bool) {
	plain = len(payload) > 1
	continues := payload[0]&av1Continues != 0
	all := elementsOf(payload)
	for {
		obu, _, ok := all.next()
		if !ok {
			return plain, key, !all.bad && len(payload) > 1
		}
		switch {
		case continues:
			plain = plain && a.goneOn() == placePicture
		case obu[0]&obuForbidden != 0:
			return false, false, false
		default:
			plain = plain && a.place(obu) == placePicture
			key = key || a.begins(obu)
		}
		continues = false
	}
}

// goneOn returns the place of an OBU that goes on. What its beginning was lost
// of is taken for a part of a picture, as most is.
func (a *av1) goneOn() place {
	if a.open == placeNone {
		return placePicture
	}
	return a.open
}

// place returns the place of an OBU that begins.
func (a *av1) place(obu []byte) place {
	switch obuType(obu) {
	case obuHeader, obuTiles, obuFrame, obuRedundant:
		return placePicture
	case obuSequence:
		return placeHeld
	case obuDelimiter, obuTileList, obuPadding: // no use in RTP (RTP Payload Format For AV1 §5)
		return placeDropped
	default: // metadata
		if a.picture {
			return placePicture
		}
		return placeHeld
	}
}

// begins tells whether a keyframe begins with an OBU: a shown frame of which the
// header (AV1 bitstream specification §5.9.2) says so, in the lowest layer.
func (a *av1) begins(obu []byte) bool {
	if typ := obuType(obu); a.picture || typ != obuFrame && typ != obuHeader {
		return false
	}
	header, ok := obuPayload(obu)
	if !ok || obu[0]&obuExtension != 0 && obu[1]&obuSpatial != 0 {
		return false
	}
	const existing, frameType, shown = 0x80, 0x60, 0x10
	return a.still || header[0]&(existing|frameType|shown) == shown // KEY_FRAME is 0
}

// rewrite appends the elements of a payload as packets that fit, with the
// sequence header before a keyframe.
func (a *av1) rewrite(payload []byte, marker bool) {
	continues, goesOn := payload[0]&av1Continues != 0, payload[0]&av1GoesOn != 0
	all := elementsOf(payload)
	for {
		obu, last, ok := all.next()
		if !ok {
			break
		}
		open := last && goesOn
		where := a.goneOn()
		if !continues {
			where = a.place(obu)
		}
		switch where {
		case placePicture:
			if !continues {
				a.frame(a.begins(obu))
			}
			a.beginFrame()
			a.put(obu, continues, open)
		case placeHeld:
			a.hold(obu, !continues, !open)
		default: // dropped
		}
		a.open = placeNone
		if open {
			a.open = where
		}
		continues = false
	}
	if c := &a.cut; c.part != nil && (!a.pack.open || marker || len(c.part) == a.mtu) {
		a.let(marker)
	}
}

// frame is told that a part of a picture begins, and lets go before it what the
// decoder needs.
func (a *av1) frame(key bool) {
	if a.picture {
		return
	}
	if key && a.sequence == nil {
		a.in.stream.meter.undecodable++
	} else if key {
		a.finish()
		a.beginKeyframe()
		a.pack.flags = av1Sequence
		a.put(a.sequence, false, false)
	}
	a.beginFrame()
	for _, obu := range a.before.units {
		a.put(obu, false, false)
	}
	a.before.reset()
}

// hold takes an OBU, or a fragment of one, that does not leave as it came.
func (a *av1) hold(obu []byte, start, end bool) {
	if !start || !end {
		var ok bool
		if obu, ok = a.before.gather(start, end, obu); !ok {
			a.discards().Supplements++
			return
		}
	}
	switch {
	case obu == nil: // not complete yet
	case obuType(obu) == obuSequence:
		a.keep(obu)
	case !a.before.put(obu):
		a.discards().Supplements++
	}
}

// keep stores a sequence header.
func (a *av1) keep(obu []byte) {
	if bytes.Equal(obu, a.sequence) {
		return
	}
	seq, ok := readAV1Sequence(obu)
	if !ok || len(obu) > maxParameterSet {
		a.discards().ParameterSets++
		return
	}
	a.sequence, a.still = bytes.Clone(obu), seq.still // it outlives its packet by far
	a.size(seq.width, seq.height)
}

// av1Pack is what is known of the packet that is packed, in framing.cut.
type av1Pack struct {
	flags    byte // of the next packet
	elements int
	last     int  // where the last element begins
	open     bool // the last element is not complete
}

// maxElements is how many elements an aggregation header can count. The last of
// them needs no length.
const maxElements = 3

// put packs an OBU, or a fragment of one. continues says that it goes on with the
// one before, goesOn that the next goes on with it.
func (a *av1) put(obu []byte, continues, goesOn bool) {
	c, p := &a.cut, &a.pack
	if c.part != nil && !(continues && p.open) && !a.another() {
		a.let(false)
	}
	for {
		if c.part == nil {
			header := p.flags
			if continues {
				header |= av1Continues
			}
			a.begin(header)
			p.flags, p.elements, p.last = 0, 1, 1
		}
		n := min(len(obu), a.mtu-len(c.part))
		c.part, obu = append(c.part, obu[:n]...), obu[n:]
		p.open = goesOn || len(obu) > 0
		if len(obu) == 0 {
			return
		}
		a.let(false)
		continues = true
	}
}

// another begins another element in the packet under way, and tells whether there
// is room: the last one gets the length that it had no need of.
func (a *av1) another() bool {
	c, p := &a.cut, &a.pack
	size := len(c.part) - p.last
	var length [3]byte
	n := 0
	for v := size; ; v >>= 7 {
		length[n] = byte(v & 0x7f)
		if n++; v < 0x80 {
			break
		}
		length[n-1] |= 0x80
	}
	if p.elements == maxElements || p.open || len(c.part)+n >= a.mtu {
		return false
	}
	c.part = c.part[:len(c.part)+n]
	copy(c.part[p.last+n:], c.part[p.last:])
	copy(c.part[p.last:], length[:n])
	p.elements++
	p.last = len(c.part)
	return true
}

// let lets the packet under way go.
func (a *av1) let(marker bool) {
	c, p := &a.cut, &a.pack
	c.part[0] |= byte(p.elements) << 4
	if p.open {
		c.part[0] |= av1GoesOn
	}
	a.appendAt(c.timestamp, c.take(), marker)
}

func (a *av1) finish() {
	if a.cut.part != nil {
		a.let(false)
	}
}

// av1SequenceHeader is what is read of a sequence header.
type av1SequenceHeader struct {
	still         bool // reduced_still_picture_header
	width, height int  // in pixels, of the greatest frame
}

// readAV1Sequence reads the beginning of a sequence header OBU (AV1 bitstream
// specification §5.5).
func readAV1Sequence(obu []byte) (h av1SequenceHeader, ok bool) {
	payload, ok := obuPayload(obu)
	if !ok || obuType(obu) != obuSequence {
		return h, false
	}
	r := headerReader{buf: payload}
	r.skip(3 + 1) // seq_profile, still_picture
	if h.still = r.flag(); h.still {
		r.skip(5) // seq_level_idx
	} else {
		r.operatingPoints()
	}
	widthBits, heightBits := int(r.u(4))+1, int(r.u(4))+1
	h.width, h.height = int(r.u(widthBits))+1, int(r.u(heightBits))+1
	return h, !r.failed
}

// operatingPoints passes over the timing and the operating points of a sequence
// header.
func (r *headerReader) operatingPoints() {
	delayBits := 0 // of a decoder model; 0: there is none
	if r.flag() {  // timing_info
		r.skip(32 + 32)
		if r.flag() {
			r.ue()
		}
		if r.flag() { // decoder_model_info
			delayBits = int(r.u(5)) + 1
			r.skip(32 + 5 + 5)
		}
	}
	displayDelay := r.flag()
	for range r.u(5) + 1 {
		r.skip(12) // operating_point_idc
		if r.u(5) > 7 {
			r.skip(1) // seq_tier
		}
		if delayBits > 0 && r.flag() {
			r.skip(2*delayBits + 1)
		}
		if displayDelay && r.flag() {
			r.skip(4)
		}
	}
}
