package stream

import "bytes"

// The bits of a VP8 payload descriptor (RFC 7741 §4.2).
const (
	vp8Extended  = 0x80 // X: an octet of extensions follows
	vp8Start     = 0x10 // S: a partition begins
	vp8Partition = 0x07 // PID

	vp8PictureID = 0x80 // I, of the extensions
	vp8LongID    = 0x80 // M, of a picture id of two octets
	vp8TL0PICIDX = 0x40 // L
	vp8Layer     = 0x30 // T, K: one octet for both
)

// vp8Descriptor returns the size of the descriptor that a payload begins with;
// zero if it is cut off, or nothing follows it.
func vp8Descriptor(payload []byte) int {
	n := 1
	if payload[0]&vp8Extended != 0 {
		if len(payload) < 3 {
			return 0
		}
		extensions := payload[1]
		n++
		if extensions&vp8PictureID != 0 {
			if payload[n]&vp8LongID != 0 {
				n++
			}
			n++
		}
		if extensions&vp8TL0PICIDX != 0 {
			n++
		}
		if extensions&vp8Layer != 0 {
			n++
		}
	}
	if n >= len(payload) {
		return 0
	}
	return n
}

// vp8 normalizes one connection's VP8 (RFC 7741). Guarded by Stream.mu.
type vp8 struct {
	framing
	next []byte // the descriptor of the packets that go on with the one under way
}

func (v *vp8) write(fresh, lost, marker bool, payload []byte) {
	if fresh {
		v.finish()
		v.endUnit(lost)
	}
	if lost {
		v.finish()
		v.gap()
	}
	n := vp8Descriptor(payload)
	if n == 0 {
		v.discards().Malformed++
		return
	}
	if payload[0]&vp8Start != 0 {
		v.finish()
		if payload[0]&vp8Partition == 0 {
			v.begins(payload[n:])
		}
	}
	v.beginFrame()
	v.emit(payload, n, marker)
}

// begins is told how a frame's first partition begins (RFC 7741 §4.3). A keyframe
// says so, and its size (RFC 6386 §9.1).
func (v *vp8) begins(frame []byte) {
	if frame[0]&1 != 0 || v.picture {
		return
	}
	v.beginKeyframe()
	if len(frame) >= 10 && bytes.Equal(frame[3:6], []byte{0x9d, 0x01, 0x2a}) {
		const low = 0x3f // the upper bits ask the player to scale
		v.size(int(frame[7]&low)<<8|int(frame[6]), int(frame[9]&low)<<8|int(frame[8]))
	}
}

// emit appends a payload with a descriptor of n bytes to the pending burst, cut
// to fit into the MTU. The pieces of a partition are cut across its packets.
func (v *vp8) emit(payload []byte, n int, marker bool) {
	if v.cut.part != nil && !bytes.Equal(v.next, payload[:n]) {
		v.finish()
	}
	if v.cut.part == nil && len(payload) <= v.mtu {
		v.append(payload, marker)
		return
	}
	v.next = append(v.next[:0], payload[:n]...)
	v.next[0] &^= vp8Start
	v.split(payload[:n], v.next, payload[n:], 0, !marker, marker)
}
