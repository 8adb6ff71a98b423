package stream

import (
	"bytes"
	"encoding/binary"
	"slices"

	mch264 "github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
)

// The bounds of what is kept of a camera's parameter sets. H.264 allows 32
// sequence and 256 picture parameter sets, H.265 16 and 64; cameras send one of
// each.
const (
	maxParameterSet  = 4096 // bytes
	maxParameterSets = 32   // of each type
	// maxSetBytes is how large those of a type may be together: they go before each
	// keyframe, and before each picture that comes with another.
	maxSetBytes = 8 << 10
)

// parameterSets are the latest sequence and picture parameter sets, by id.
type parameterSets struct {
	sps, pps []parameterSet // by id, ascending
	built    [][]byte       // payloads that carry them all; nil: to be built
}

type parameterSet struct {
	id  uint32
	nal []byte
}

// put stores one, in place of the one of its id. ok is false if it is not one,
// is too large, or there are too many.
func (p *parameterSets) put(nal []byte) (changed, ok bool) {
	if len(nal) < 2 || len(nal) > maxParameterSet || nal[0]&nalBroken != 0 {
		return false, false
	}
	list, skip := &p.pps, 1
	switch nal[0] & nalType {
	case nalSPS:
		list, skip = &p.sps, 4 // profile_idc, constraint flags, level_idc
	case nalPPS:
	default:
		return false, false
	}
	id, ok := exponential(nal[min(skip, len(nal)):])
	if !ok {
		return false, false
	}
	changed, ok = putSet(list, id, nal)
	if changed {
		p.built = nil
	}
	return changed, ok
}

// putSet stores a parameter set in a list, in place of the one of its id. ok is
// false if there are too many.
func putSet(list *[]parameterSet, id uint32, nal []byte) (changed, ok bool) {
	i, found := slices.BinarySearchFunc(*list, id, func(s parameterSet, id uint32) int { return int(s.id) - int(id) })
	if found && bytes.Equal((*list)[i].nal, nal) {
		return false, true
	}
	bytesKept := len(nal)
	for k, s := range *list {
		if !found || k != i {
			bytesKept += len(s.nal)
		}
	}
	nal = bytes.Clone(nal) // it outlives its packet by far
	switch {
	case bytesKept > maxSetBytes:
		return false, false
	case found:
		(*list)[i].nal = nal
	case len(*list) == maxParameterSets:
		return false, false
	default:
		*list = slices.Insert(*list, i, parameterSet{id: id, nal: nal})
	}
	return true, true
}

// complete tells whether there is one of each type.
func (p *parameterSets) complete() bool { return len(p.sps) > 0 && len(p.pps) > 0 }

// packets returns payloads that carry all of them: one STAP-A if they fit, else
// one by one, each to be cut if it is too large. The result is shared.
func (p *parameterSets) packets(mtu int) [][]byte {
	if p.built != nil {
		return p.built
	}
	size, ref := 1, byte(0)
	all := slices.Concat(p.sps, p.pps)
	for _, s := range all {
		p.built = append(p.built, s.nal)
		size += 2 + len(s.nal)
		ref = max(ref, s.nal[0]&nalRef) // RFC 6184 §5.7: the greatest of all
	}
	if len(all) < 2 || size > mtu {
		return p.built
	}
	stap := make([]byte, 0, size)
	stap = append(stap, ref|nalSTAPA)
	for _, s := range all {
		stap = binary.BigEndian.AppendUint16(stap, uint16(len(s.nal)))
		stap = append(stap, s.nal...)
	}
	p.built = [][]byte{stap}
	return p.built
}

// maxExponential is the greatest id of a parameter set (H.264 §7.4.2).
const maxExponential = 255

// exponential reads the ue(v) that b begins with (H.264 §9.1). ok is false if
// it is cut off or greater than 255.
func exponential(b []byte) (v uint32, ok bool) {
	r := headerReader{buf: b}
	v = r.ue()
	return v, !r.failed && v <= maxExponential
}

// pictureSize reads the size of the picture from a sequence parameter set.
func pictureSize(nal []byte) (width, height int, ok bool) {
	var sps mch264.SPS
	if err := sps.Unmarshal(nal); err != nil {
		return 0, 0, false
	}
	width, height = sps.Width(), sps.Height()
	return width, height, width > 0 && height > 0 && width <= maxPicture && height <= maxPicture
}

// maxPicture is the greatest side of a picture that is believed, in pixels:
// level 6.2 allows no more (H.264 annex A.3.1, H.265 annex A.4.1).
const maxPicture = 16_880
