package stream

import (
	"encoding/binary"
	"slices"
)

// The greatest ids of parameter sets (H.265 §7.4.3).
const (
	maxVPS = 15
	maxSPS = 15
	maxPPS = 63
)

// hevcSets are the latest video, sequence and picture parameter sets, by id.
type hevcSets struct {
	sets  [3][]parameterSet // by type, from hevcVPS on
	built [][]byte          // payloads that carry them all; nil: to be built
}

// put stores one, in place of the one of its type and id. ok is false if it is
// not one, is too large, or there are too many.
func (p *hevcSets) put(nal []byte) (changed, ok bool) {
	if len(nal) > maxParameterSet || !validUnit(nal) || hevcLayer(nal) != 0 {
		return false, false
	}
	var id uint32
	switch hevcType(nal) {
	case hevcVPS:
		id = uint32(nal[hevcHeader] >> 4)
	case hevcSPS:
		sps, ok := readHEVCSPS(nal)
		if !ok {
			return false, false
		}
		id = sps.id
	case hevcPPS:
		r := headerReader{buf: nal[hevcHeader:]}
		id = r.ue()
		if r.failed || id > maxPPS {
			return false, false
		}
	default:
		return false, false
	}
	changed, ok = putSet(&p.sets[hevcType(nal)-hevcVPS], id, nal)
	if changed {
		p.built = nil
	}
	return changed, ok
}

// complete tells whether there is one of each type.
func (p *hevcSets) complete() bool {
	return len(p.sets[0]) > 0 && len(p.sets[1]) > 0 && len(p.sets[2]) > 0
}

// packets returns payloads that carry all of them: one aggregation packet (RFC
// 7798 §4.4.2) if they fit, else one by one, each to be cut if it is too large.
// The result is shared.
func (p *hevcSets) packets(mtu int) [][]byte {
	if p.built != nil {
		return p.built
	}
	ap := []byte{hevcAP << 1, 1} // the base layer, TID 0: the least of all
	n := 0
	for _, sets := range p.sets {
		for _, s := range sets {
			p.built = append(p.built, s.nal)
			ap = append(binary.BigEndian.AppendUint16(ap, uint16(len(s.nal))), s.nal...)
			n++
		}
	}
	if n >= 2 && len(ap) <= mtu {
		p.built = [][]byte{slices.Clip(ap)}
	}
	return p.built
}

// sequenceSet is what is read of a sequence parameter set.
type sequenceSet struct {
	id            uint32
	width, height int // in pixels, within the conformance window
}

// readHEVCSPS reads the beginning of a sequence parameter set (H.265 §7.3.2.2).
func readHEVCSPS(nal []byte) (sps sequenceSet, ok bool) {
	if len(nal) <= hevcHeader {
		return sps, false
	}
	// The header, seven profiles with their levels, the size and the window.
	const most = 1 + 12 + 2 + 6*12 + 64
	var buf [most]byte
	r := headerReader{buf: withoutEmulation(buf[:0], nal[hevcHeader:])}
	r.skip(4) // sps_video_parameter_set_id
	layers := int(r.u(3))
	if layers > 6 {
		return sps, false
	}
	r.skip(1)
	r.profile(layers)
	sps.id = r.ue()
	chroma := r.ue()
	if sps.id > maxSPS || chroma > 3 {
		return sps, false
	}
	if chroma == 3 {
		r.skip(1) // separate_colour_plane_flag
	}
	width, height := int64(r.ue()), int64(r.ue())
	if r.flag() {
		unitX, unitY := int64(1), int64(1) // of the window (table 6-1)
		if chroma == 1 || chroma == 2 {
			unitX = 2
		}
		if chroma == 1 {
			unitY = 2
		}
		width -= unitX * (int64(r.ue()) + int64(r.ue()))
		height -= unitY * (int64(r.ue()) + int64(r.ue()))
	}
	sps.width, sps.height = int(width), int(height)
	return sps, !r.failed
}

// profile passes over a profile_tier_level (H.265 §7.3.3) with sub-layers below
// the highest.
func (r *headerReader) profile(layers int) {
	const profile, level = 88, 8 // bits
	r.skip(profile + level)
	if layers == 0 {
		return
	}
	present := r.u(16) // two flags for each of eight
	for i := range layers {
		if present>>(15-2*i)&1 == 1 {
			r.skip(profile)
		}
		if present>>(14-2*i)&1 == 1 {
			r.skip(level)
		}
	}
}
