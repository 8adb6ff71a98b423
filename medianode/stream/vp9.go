package stream

import "bytes"

// The bits of a VP9 payload descriptor (RFC 9628 §4.2).
const (
	vp9PictureID = 0x80 // I
	vp9Inter     = 0x40 // P: predicted from other pictures
	vp9Layers    = 0x20 // L
	vp9Flexible  = 0x10 // F
	vp9Begin     = 0x08 // B: a frame begins
	vp9End       = 0x04 // E: it ends
	vp9Structure = 0x02 // V: the scalability structure is there

	vp9LongID  = 0x80 // M, of a picture id of two octets
	vp9Spatial = 0x0e // SID, of the layers
	vp9More    = 0x01 // N, of a reference: another follows

	vp9Sizes  = 0x10 // Y, of the scalability structure
	vp9Groups = 0x08 // G
)

// maxVP9References is how many pictures one may be predicted from.
const maxVP9References = 3

// vp9Descriptor is what is read of the descriptor that a payload begins with.
type vp9Descriptor struct {
	size      int // in bytes
	structure int // where the scalability structure begins; size if there is none
	spatial   byte
}

// readVP9Descriptor reads one. ok is false if it is cut off, nothing follows it,
// or it is not well formed.
func readVP9Descriptor(payload []byte) (d vp9Descriptor, ok bool) {
	flags, n := payload[0], 1
	at := func(i int) byte {
		if i < len(payload) {
			return payload[i]
		}
		return 0
	}
	if flags&vp9PictureID != 0 {
		if at(n)&vp9LongID != 0 {
			n++
		}
		n++
	}
	if flags&vp9Layers != 0 {
		d.spatial = at(n) & vp9Spatial >> 1
		n++
		if flags&vp9Flexible == 0 {
			n++ // TL0PICIDX
		}
	}
	if flags&vp9Flexible != 0 && flags&vp9Inter != 0 {
		for i := 1; ; i++ {
			more := at(n)&vp9More != 0
			n++
			if !more {
				break
			}
			if i == maxVP9References {
				return d, false
			}
		}
	}
	d.structure = n
	if flags&vp9Structure != 0 {
		head := at(n)
		n++
		if head&vp9Sizes != 0 {
			n += 4 * (int(head>>5) + 1)
		}
		if head&vp9Groups != 0 {
			pictures := int(at(n))
			n++
			for range pictures {
				n += 1 + int(at(n)>>2&3)
			}
		}
	}
	d.size = n
	return d, n < len(payload)
}

// vp9 normalizes one connection's VP9 (RFC 9628), in flexible mode or not.
// Guarded by Stream.mu.
type vp9 struct {
	framing
	next []byte // the descriptor of the packets that go on with the one under way
}

func (v *vp9) write(fresh, lost, marker bool, payload []byte) {
	if fresh {
		v.finish()
		v.endUnit(lost)
	}
	if lost {
		v.finish()
		v.gap()
	}
	d, ok := readVP9Descriptor(payload)
	if !ok {
		v.discards().Malformed++
		return
	}
	if len(payload) > v.mtu && d.size >= v.mtu { // a structure of hundreds of pictures, and a small MTU
		v.discards().Oversized++
		return
	}
	if payload[0]&vp9Begin != 0 {
		v.finish()
		if payload[0]&vp9Inter == 0 && d.spatial == 0 && !v.picture {
			v.begins(payload[d.size:])
		}
	}
	v.beginFrame()
	v.emit(payload, d, marker)
}

// begins is told how a picture begins that says it is not predicted from others:
// it may be a keyframe, or of a camera that says so of all.
func (v *vp9) begins(frame []byte) {
	if width, height, ok := readVP9Keyframe(frame); ok {
		v.beginKeyframe()
		v.size(width, height)
	}
}

// readVP9Keyframe reads the beginning of a frame (VP9 bitstream specification
// §6.2). ok is false if it is no keyframe.
func readVP9Keyframe(frame []byte) (width, height int, ok bool) {
	r := headerReader{buf: frame}
	if r.u(2) != 2 { // frame_marker
		return 0, 0, false
	}
	profile := r.u(1) | r.u(1)<<1
	if profile == 3 {
		r.skip(1)
	}
	if r.u(2) != 0 { // show_existing_frame, frame_type
		return 0, 0, false
	}
	r.skip(2)                  // show_frame, error_resilient_mode
	if r.u(24) != 0x49_83_42 { // frame_sync_code
		return 0, 0, false
	}
	if profile >= 2 {
		r.skip(1) // ten_or_twelve_bit
	}
	const rgb = 7
	switch space := r.u(3); {
	case space != rgb && profile&1 == 1:
		r.skip(4) // color_range, the subsampling, reserved
	case space != rgb || profile&1 == 1:
		r.skip(1) // color_range or reserved
	}
	width, height = int(r.u(16))+1, int(r.u(16))+1
	return width, height, !r.failed
}

// emit appends a payload to the pending burst, cut to fit into the MTU. The
// pieces of a frame are cut across its packets. The scalability structure stays
// with the first.
func (v *vp9) emit(payload []byte, d vp9Descriptor, marker bool) {
	const ends = vp9Begin | vp9End | vp9Structure
	flags := payload[0]
	goesOn := v.cut.part != nil && flags&^vp9End == v.next[0] && bytes.Equal(v.next[1:], payload[1:d.size])
	if v.cut.part != nil && !goesOn {
		v.finish()
	}
	if !goesOn && len(payload) <= v.mtu {
		v.append(payload, marker)
		return
	}
	v.next = append(v.next[:0], payload[:d.structure]...)
	v.next[0] &^= ends
	payload[0] &^= vp9End
	v.split(payload[:d.size], v.next, payload[d.size:], flags&vp9End, flags&vp9End == 0 && !marker, marker)
}
