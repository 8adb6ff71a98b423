package stream

import (
	"fmt"

	"fanlight/internal/fleet"
)

// ErrBFrames is why nobody can watch a stream whose BFrames are
// fleet.BFramesReferenced.
var ErrBFrames = fmt.Errorf("%w: the camera sends H264 with B-frames that other pictures refer to, which browsers cannot play: set its B-frames to 0 or its profile to baseline", fleet.CodecUnsupported)

// bOrderPictures is how many pictures without a B-frame tell that a camera sends
// none: several groups between two pictures that are no B-frames.
const bOrderPictures = 100

// bOrder follows whether a connection's pictures come in another order than they
// are shown in, as they do with B-frames.
type bOrder struct {
	pictures int           // that have begun; no further than bOrderPictures
	worst    fleet.BFrames // seen
}

// picture counts one that begins.
func (o *bOrder) picture(s *Stream) {
	if o.pictures == bOrderPictures {
		return
	}
	if o.pictures++; o.pictures == bOrderPictures {
		s.setBFrames(max(o.worst, fleet.BFramesNone))
	}
}

// found says that there are B-frames, of a status.
func (o *bOrder) found(s *Stream, b fleet.BFrames) {
	o.worst = max(o.worst, b)
	if b > s.bFrames {
		s.setBFrames(b)
	}
}

// setBFrames wakes the watches when nobody can watch any more. The caller holds mu.
func (s *Stream) setBFrames(b fleet.BFrames) {
	if s.bFrames == b {
		return
	}
	s.bFrames = b
	if b != fleet.BFramesReferenced {
		return
	}
	for w := range s.watches {
		signal(w.wake)
	}
}

// BFrames returns whether the H264 published has B-frames, as far as its pictures
// have told. Those that no picture refers to are left out. Watches are woken when
// it becomes fleet.BFramesReferenced. It outlives a connection when the next one
// has the same video track, until that has told otherwise.
func (s *Stream) BFrames() fleet.BFrames {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bFrames
}

// judge is told that a slice begins, and decides whether its picture is left out:
// a B-frame, unless others refer to it, which nal_ref_idc says alike for all of
// a picture (H.264 §7.4.1). Of a picture that has begun to leave nothing is left
// out: if a later slice is a B slice, it cannot be told what it is worth.
func (h *h264) judge(header byte, first, b bool) {
	ref := header&nalRef != 0
	switch {
	case b && !ref && (first || !h.vcl || h.skip || h.damaged):
		h.skip = true
		h.order.found(h.in.stream, fleet.BFramesDropped)
	case b:
		h.skip = false
		h.order.found(h.in.stream, fleet.BFramesReferenced)
	case ref || first:
		h.skip = false // another picture of the same timestamp
	}
}

// sliceHeader reads what a slice begins with (H.264 §7.3.3): first tells that it
// is its picture's first, with first_mb_in_slice 0; b that it is a B slice. They
// are false for what cannot be read. IDR pictures have no B slices.
func sliceHeader(header byte, body []byte) (first, b bool) {
	r := bitReader{rest: body[:min(len(body), maxSliceHeader)]}
	mb, ok := r.exponential()
	if !ok {
		return false, false
	}
	typ, ok := r.exponential()
	return mb == 0, ok && header&nalType != nalIDR && (typ == 1 || typ == 6)
}

// maxSliceHeader is how many bytes are looked at: first_mb_in_slice has 35 bits at
// most and slice_type 7, which is 6 bytes and what keeps them from looking like a
// start code.
const maxSliceHeader = 10

// bitReader reads a NAL unit's bits, without its emulation prevention bytes (H.264
// §7.4.1).
type bitReader struct {
	rest  []byte
	cur   byte
	left  int // bits of cur
	zeros int // bytes of 0 before rest
}

func (r *bitReader) bit() (bit uint32, ok bool) {
	if r.left == 0 {
		if r.zeros >= 2 && len(r.rest) > 0 && r.rest[0] == 3 {
			r.rest, r.zeros = r.rest[1:], 0
		}
		if len(r.rest) == 0 {
			return 0, false
		}
		r.cur, r.rest, r.left = r.rest[0], r.rest[1:], 8
		r.zeros++
		if r.cur != 0 {
			r.zeros = 0
		}
	}
	r.left--
	return uint32(r.cur>>r.left) & 1, true
}

// exponential reads a ue(v) (H.264 §9.1) below 2^24. ok is false if it is cut off
// or greater.
func (r *bitReader) exponential() (v uint32, ok bool) {
	n := 0
	for {
		bit, ok := r.bit()
		if !ok || n > 24 {
			return 0, false
		}
		if bit == 1 {
			break
		}
		n++
	}
	v = 1
	for range n {
		bit, ok := r.bit()
		if !ok {
			return 0, false
		}
		v = v<<1 | bit
	}
	return v - 1, true
}

// sameVideo tells whether two connections have the same video track.
func sameVideo(a, b []Track) bool {
	x, y := videoOf(a), videoOf(b)
	return x != nil && y != nil && x.Codec == y.Codec && x.FMTP == y.FMTP
}

func videoOf(tracks []Track) *Track {
	for i := range tracks {
		if tracks[i].Kind == Video {
			return &tracks[i]
		}
	}
	return nil
}
