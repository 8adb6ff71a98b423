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
	s.board.poke()
	if s.onBFrames != nil {
		s.onBFrames()
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
	var buf [maxSliceHeader]byte
	r := headerReader{buf: withoutEmulation(buf[:0], body)}
	mb := r.ue()
	if r.failed {
		return false, false
	}
	typ := r.ue()
	return mb == 0, !r.failed && header&nalType != nalIDR && (typ == 1 || typ == 6)
}

// maxSliceHeader is how many bytes are looked at: first_mb_in_slice has 35 bits at
// most and slice_type 7.
const maxSliceHeader = 6

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
