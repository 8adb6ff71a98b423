package stream

import "sync/atomic"

// How many packets are kept for those who missed them, a power of two each: 4 s
// of video at 2 Mbit/s, 1 s at 8 Mbit/s, and 2.5 s of audio in packets of 20 ms.
// They are kept once for all viewers, while there are any.
const (
	retainedVideo = 1024
	retainedAudio = 128
)

// retained is the latest packets of one kind, by index.
type retained struct {
	slots []atomic.Pointer[Packet]
}

func newRetained(k Kind) *retained {
	if k == Audio {
		return &retained{slots: make([]atomic.Pointer[Packet], retainedAudio)}
	}
	return &retained{slots: make([]atomic.Pointer[Packet], retainedVideo)}
}

func (r *retained) put(b *Burst) {
	if r == nil {
		return
	}
	for i := range b.Packets {
		p := &b.Packets[i]
		r.slots[p.Index&uint64(len(r.slots)-1)].Store(p)
	}
}

func (r *retained) get(index uint64) *Packet {
	if p := r.slots[index&uint64(len(r.slots)-1)].Load(); p != nil && p.Index == index {
		return p
	}
	return nil
}

// Retained is the latest packets of a kind: what viewers may be sent again. It
// is read without a lock.
func (sub *Subscription) Retained(k Kind, index uint64) *Packet {
	if k < 0 || k >= kinds || sub.kept[k] == nil {
		return nil
	}
	return sub.kept[k].get(index)
}

// RetainedPackets returns how many packets of a kind are kept.
func RetainedPackets(k Kind) int {
	if k == Audio {
		return retainedAudio
	}
	return retainedVideo
}
