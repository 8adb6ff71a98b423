package stream

import "bytes"

// The bounds of what is held of an access unit before its first slice. Cameras
// send a few SEI NAL units, of some hundred bytes together.
const (
	maxPrefixUnits = 32
	maxPrefixBytes = 16 << 10
)

// prefix holds what an access unit has before its first slice and beside its
// parameter sets: SEI and the like. It goes out behind the sets (H.264
// §7.4.1.2.3), and not at all without a slice.
type prefix struct {
	units [][]byte // whole NAL units
	bytes int
	part  []byte // a NAL unit of which fragments have come; nil: none
}

// put holds a NAL unit, and tells whether there was room.
func (p *prefix) put(nal []byte) bool {
	if len(p.units) == maxPrefixUnits || p.bytes+len(nal) > maxPrefixBytes {
		return false
	}
	p.units = append(p.units, nal)
	p.bytes += len(nal)
	return true
}

// join adds an FU-A payload to the NAL unit under way, which it returns when it
// is complete. ok is false if its beginning is missing, or it is too large.
func (p *prefix) join(payload []byte) (nal []byte, ok bool) {
	header := payload[1]
	return p.gather(header&fuStart != 0, header&fuEnd != 0, payload[2:], payload[0]&nalRef|header&nalType)
}

// gather adds a fragment to the unit under way, which has the header given. It
// returns the unit when it is complete. ok is false if its beginning is missing,
// or it is too large.
func (p *prefix) gather(start, end bool, body []byte, header ...byte) (unit []byte, ok bool) {
	switch {
	case start:
		p.part = append([]byte(nil), header...)
	case p.part == nil || !bytes.HasPrefix(p.part, header):
		return nil, false
	}
	if len(p.part)+len(body) > maxPrefixBytes {
		p.part = nil
		return nil, false
	}
	p.part = append(p.part, body...)
	if end {
		unit, p.part = p.part, nil
	}
	return unit, true
}

// reset drops what is held.
func (p *prefix) reset() {
	clear(p.units) // the packets that they are parts of
	p.units, p.bytes, p.part = p.units[:0], 0, nil
}
