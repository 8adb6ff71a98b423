package viewertest

import (
	"encoding/binary"
	"time"
)

// How long a missing packet is waited for, and how many come meanwhile at most.
const (
	repairWait = 300 * time.Millisecond
	repairHeld = 1024
)

// piece is what an assembler needs to know of a packet.
type piece struct {
	timestamp uint32
	marker    bool
	key       bool      // begins, or goes on with, an IDR picture
	sps, pps  bool      // has a parameter set
	sent      time.Time // by the camera, from an SEI NAL unit; zero: not in this packet
}

// picture is a frame that a decoder could show.
type picture struct {
	time    uint32 // RTP timestamp
	sent    time.Time
	key     bool
	sps     bool // brings its own parameter sets
	pps     bool
	skipped int // frames that should have come between the one before and this, by RTP timestamps
}

// assembler makes frames of one session's packets: a frame counts when all its
// packets are there, to the marker, and so are those of all frames back to the
// last keyframe.
type assembler struct {
	begun bool
	next  uint16           // the first sequence number that has not been used
	held  map[uint16]piece // come before next has
	since time.Time        // next is missing; zero: it is not

	decodable bool // a keyframe has come, and all since
	open      bool // a frame has begun and its marker not come
	frame     picture
	intact    bool
	cut       bool   // packets were given up since the last marker: what comes before the next is not known to be whole
	time      uint32 // of the frame

	last  uint32 // timestamp of the last frame
	shown bool   // there is one
	steps map[uint32]int
	lost  int // packets that were given up
}

func newAssembler() *assembler {
	return &assembler{held: make(map[uint16]piece), steps: make(map[uint32]int)}
}

// add takes a packet. It returns the frames that are complete with it; what
// packets are missing now that were not before; and whether the picture needs
// a keyframe because packets were given up.
func (a *assembler) add(seq uint16, p piece, now time.Time) (done []picture, missing []uint16, broken bool) {
	if !a.begun {
		a.begun, a.next = true, seq
	}
	ahead := int16(seq - a.next)
	switch {
	case ahead < 0:
		return nil, nil, false // again, or too late
	case ahead > 0:
		if _, again := a.held[seq]; again {
			return nil, nil, false
		}
		if a.since.IsZero() {
			a.since = now
			for n := a.next; n != seq && len(missing) < repairHeld; n++ {
				missing = append(missing, n)
			}
		}
		a.held[seq] = p
		if len(a.held) < repairHeld && now.Sub(a.since) < repairWait {
			return nil, missing, false
		}
		a.giveUp()
		broken = true
	default:
		done = a.use(p, done)
	}
	for {
		p, ok := a.held[a.next]
		if !ok {
			break
		}
		delete(a.held, a.next)
		done = a.use(p, done)
	}
	a.since = time.Time{}
	if len(a.held) > 0 {
		a.since = now
	}
	return done, missing, broken
}

// giveUp goes on without the packets that are missing before the first that is
// held.
func (a *assembler) giveUp() {
	least := uint16(1<<16 - 1)
	for seq := range a.held {
		least = min(least, seq-a.next)
	}
	a.lost += int(least)
	a.next += least
	a.decodable, a.intact, a.cut = false, false, true
}

// use takes the next packet in order.
func (a *assembler) use(p piece, done []picture) []picture {
	a.next++
	if !a.open || p.timestamp != a.time {
		a.open, a.intact, a.frame, a.time = true, !a.cut, picture{time: p.timestamp}, p.timestamp
	}
	a.frame.key = a.frame.key || p.key
	a.frame.sps, a.frame.pps = a.frame.sps || p.sps, a.frame.pps || p.pps
	if !p.sent.IsZero() {
		a.frame.sent = p.sent
	}
	if !p.marker {
		return done
	}
	a.open, a.cut = false, false
	if a.intact && a.frame.key {
		a.decodable = true
	}
	if !a.decodable {
		return done
	}
	a.frame.skipped = a.step(p.timestamp)
	return append(done, a.frame)
}

// step returns how many frames are missing before one. The usual step between
// timestamps is the one seen most often.
func (a *assembler) step(timestamp uint32) int {
	if !a.shown {
		a.shown, a.last = true, timestamp
		return 0
	}
	d := timestamp - a.last
	a.last = timestamp
	var usual uint32
	for s, n := range a.steps {
		if n >= 10 && n > a.steps[usual] {
			usual = s
		}
	}
	if len(a.steps) < 64 || a.steps[d] > 0 {
		a.steps[d]++
	}
	if usual == 0 || int32(d) <= 0 {
		return 0
	}
	return max(0, int((d+usual/2)/usual)-1)
}

// h264Piece reads what an assembler needs of an H264 packet (RFC 6184 §5).
func h264Piece(b []byte, stamp func([]byte) (time.Time, bool)) piece {
	var p piece
	eachNAL(b, func(kind byte, nal []byte, whole bool) {
		switch {
		case kind == nalIDR:
			p.key = true
		case kind == nalSPS:
			p.sps = true
		case kind == nalPPS:
			p.pps = true
		case kind == nalSEI && whole && stamp != nil:
			if at, ok := stamp(nal); ok {
				p.sent = at
			}
		}
	})
	return p
}

// eachNAL calls f for each NAL unit that begins in a payload; whole tells
// whether it also ends there.
func eachNAL(b []byte, f func(kind byte, nal []byte, whole bool)) {
	if len(b) < 2 {
		return
	}
	switch kind := b[0] & 0x1f; kind {
	case nalSTAPA:
		for b = b[1:]; len(b) > 2; {
			n := int(binary.BigEndian.Uint16(b))
			if b = b[2:]; n == 0 || n > len(b) {
				return
			}
			f(b[0]&0x1f, b[:n], true)
			b = b[n:]
		}
	case nalFUA:
		if b[1]&0x80 != 0 { // the first fragment
			f(b[1]&0x1f, b, false)
		}
	default:
		f(kind, b, true)
	}
}
