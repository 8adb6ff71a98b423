package session

import (
	"encoding/binary"
	"math/bits"
	"time"

	"github.com/pion/rtcp"

	"fanlight/medianode/stream"
)

// What a viewer may be sent again. A list of 30 pairs, 150 bytes, could ask for
// half a megabyte. With these, a camera of 2 Mbit/s costs at most half as much
// again besides, and a viewer that loses a quarter of its packets still gets
// them all.
const (
	// resendShare is how many bytes are sent for one more that may be sent again.
	resendShare = 4
	// resendFloor is how many bytes a second may be besides, for audio and for
	// cameras that send little.
	resendFloor = 50_000
	// resendBurst is how many bytes may be sent again at once: 2 s of 2 Mbit/s.
	resendBurst = 512_000
	// resendRepeats is what must be left of the budget for a packet that has been
	// sent again before. Some viewers, pion's among them, go on asking for what
	// has come over RTX; what is asked for the first time must not wait for that.
	resendRepeats = resendBurst / 2
	// resendPause is added to the round trip: so soon after a packet was sent
	// again, nobody can know that it was lost once more. Browsers that only receive
	// know no round trip, and ask again after resendMost at the latest: they are not
	// kept waiting for another turn.
	resendPause = 5 * time.Millisecond
	resendMost  = 80 * time.Millisecond
	// maxNacked is how many packets of one RTCP datagram's NACKs are looked for.
	maxNacked = 512
	// repeatSlots is how many packets are remembered as sent again.
	repeatSlots = 256
)

// resends is what a session may send again, and has. It is owned by the session's
// shard.
type resends struct {
	budget  float64   // bytes
	at      time.Time // when budget was that; zero: nothing has been sent again
	counted uint64    // bytes sent, then
	repeats *[repeatSlots]repeat
	spent   uint64 // packets for which there was no budget left
}

// repeat is one packet that was sent again.
type repeat struct {
	ssrc uint32
	own  uint32 // its number, modulo 2^32
	at   time.Duration
}

// pay takes a packet's bytes from the budget, if they are there. sent is how many
// bytes have been sent so far for the first time, clock a time that goes up.
func (r *resends) pay(ssrc uint32, own uint64, bytes int, sent uint64, now time.Time, clock, roundTrip time.Duration) bool {
	if r.at.IsZero() {
		r.budget = resendBurst
		r.repeats = new([repeatSlots]repeat)
	} else {
		r.budget += float64(sent-r.counted)/resendShare + resendFloor*now.Sub(r.at).Seconds()
		r.budget = min(r.budget, resendBurst)
	}
	r.at, r.counted = now, sent
	last := &r.repeats[own%repeatSlots]
	again := last.ssrc == ssrc && last.own == uint32(own)
	if r.budget < float64(bytes) {
		r.spent++
		return false
	}
	if again && (r.budget < resendRepeats || clock-last.at < min(roundTrip+resendPause, resendMost)) {
		return false
	}
	*last = repeat{ssrc: ssrc, own: uint32(own), at: clock}
	r.budget -= float64(bytes)
	return true
}

// more takes a packet's bytes from the budget for a second repeat, if enough is
// left for others' first.
func (r *resends) more(bytes int) bool {
	if r.budget < resendRepeats {
		return false
	}
	r.budget -= float64(bytes)
	return true
}

// asked returns how many packets a list is of.
func asked(pairs []rtcp.NackPair) (n uint64) {
	for _, p := range pairs {
		n += 1 + uint64(bits.OnesCount16(uint16(p.LostPackets)))
	}
	return n
}

// shorten cuts a list where it asks for more than left packets. It returns what
// is left then, how many packets are asked for and how many of them are not in
// the list any more.
func shorten(pairs []rtcp.NackPair, left int) (kept []rtcp.NackPair, rest, asked, refused int) {
	kept = pairs[:0]
	for _, pair := range pairs {
		n := 1 + bits.OnesCount16(uint16(pair.LostPackets))
		asked += n
		if n > left {
			left = 0
			refused += n
			continue
		}
		left -= n
		kept = append(kept, pair)
	}
	return kept, left, asked, refused
}

// resend sends what a viewer asks for again, as far as it is there.
func (v *viewer) resend(sh *shard, kind stream.Kind, pairs []rtcp.NackPair, now time.Time) {
	l := &v.lanes[kind]
	path := v.route.Load()
	if path == nil || l.payloads == nil {
		return
	}
	for _, pair := range pairs {
		pair.Range(func(seq uint16) bool {
			v.again(sh, l, path, seq, now)
			return true
		})
	}
}

// again sends one packet again: over RTX if that was negotiated, else as it was.
func (v *viewer) again(sh *shard, l *lane, path *path, seq uint16, now time.Time) {
	r, index, own := l.find(seq)
	if r == nil {
		v.session.counts.missed.Add(1)
		return
	}
	p := r.packet(l.kind, index)
	if p == nil {
		v.session.counts.missed.Add(1)
		return
	}
	if !v.resends.pay(l.ssrc, own, len(p.Payload), v.session.counts.bytes.Load(), now, now.Sub(sh.began), v.session.roundTrip()) {
		v.session.counts.refused.Add(1)
		v.session.counts.spent.Store(v.resends.spent)
		return
	}
	if v.repeat(sh, l, r, path, seq, own, p, now) {
		v.session.counts.resent.Add(1)
	}
	// A viewer that loses packets loses of these as many, and a repeat that is lost is
	// what the picture stands still for.
	if r.payload.rtx != 0 && v.session.feedback.cushion.delay.Load() != 0 && v.resends.more(len(p.Payload)) {
		v.repeat(sh, l, r, path, seq, own, p, now)
	}
}

// repeat sends one packet again, and tells whether there was room for it.
func (v *viewer) repeat(sh *shard, l *lane, r *run, path *path, seq uint16, own uint64, p *stream.Packet, now time.Time) bool {
	h := image{index: own, timestamp: r.shift.apply(p.Timestamp), ssrc: l.ssrc, payload: r.payload.media, marker: p.Marker}
	var original [2]byte
	before := original[:0]
	if r.payload.rtx != 0 {
		binary.BigEndian.PutUint16(original[:], seq)
		before = original[:]
		h.index, h.ssrc, h.payload = l.rtx.index, l.rtx.ssrc, r.payload.rtx
		l.rtx.index++
	}
	if l.extensions.sendTime != 0 && r.payload.rtx != 0 {
		h.extension = l.extensions.appendExtensions(v.header[:0], &extended{now: now})
	}
	n, err := v.cryptor.seal(sh.room(path), &h, before, p.Payload)
	if err != nil {
		v.session.counts.errors.Add(1)
		return false
	}
	return sh.commit(path, n, now)
}
