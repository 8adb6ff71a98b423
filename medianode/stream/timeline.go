package stream

import (
	"math/rand/v2"
	"time"
)

const (
	// maxGap is how many sequence numbers viewers see missing at once, at most:
	// enough to know that pictures are damaged, without asking for each again.
	maxGap = 32
	// maxDropout is how far a sequence may leap ahead and be the same sequence,
	// and maxMisorder how far a packet may be late (RFC 3550 appendix A.1).
	maxDropout  = 3000
	maxMisorder = 100

	// maxBack is how far timestamps may go back from packet to packet: B-frames
	// are sent after the pictures they come before.
	maxBack = 500 * time.Millisecond
	// maxLead is how far a timestamp may leap ahead of the time that has passed.
	maxLead = 3 * time.Second
	// maxLag is how far a timestamp may fall behind the time that has passed. It
	// is wider than maxLead: after a stall TCP delivers what it held back, which
	// must not be dated into the future.
	maxLag = 10 * time.Second
	// maxStep bounds what a rebase adds, so that serial number arithmetic holds.
	maxStep = time.Hour
	// maxReportAge is how far a sender report may be from the latest packet.
	maxReportAge = 10 * time.Second
)

// sequence follows a camera's sequence numbers within a connection.
type sequence struct {
	started bool
	want    uint16
}

// next says how many packets are missing before this one: gap is what viewers
// see of it, lost is how many there were. ok is false if the packet comes late
// or again. A leap beyond maxDropout or back beyond maxMisorder is a sequence
// begun anew: one packet is missing, for whatever was under way is not complete.
func (q *sequence) next(seq uint16) (gap uint16, lost int64, ok bool) {
	d := int(int16(seq - q.want))
	switch {
	case !q.started || d == 0:
	case d > 0 && d <= maxDropout:
		gap, lost = uint16(min(d, maxGap)), int64(d)
	case d < 0 && d >= -maxMisorder:
		return 0, 0, false
	default:
		gap, lost = 1, 1
	}
	q.started, q.want = true, seq+1
	return gap, lost, true
}

// timeline translates a camera's timestamps to the stream's, which go on over
// connections and over leaps of the camera's clock.
type timeline struct {
	rate      uint32 // Hz
	started   bool   // there has been a packet, ever
	connected bool   // there has been a packet in this connection
	leapt     bool   // the latest call of next had to rebase

	in, out uint32    // the latest timestamp: the camera's and the stream's
	at      time.Time // when its first packet came
	high    uint32    // the stream's greatest timestamp
	highAt  time.Time
}

// connect begins a new connection.
func (l *timeline) connect(rate uint32) { l.rate, l.connected = rate, false }

// next takes the timestamp of a packet that came now, and returns whether it is
// another than the one before.
func (l *timeline) next(in uint32, now time.Time) (fresh bool) {
	l.leapt = false
	switch {
	case !l.started:
		l.out = rand.Uint32() // RFC 3550 §5.1: random
		l.high, l.highAt, l.started = l.out, now, true
	case l.connected && in == l.in:
		return false
	case l.connected && !l.leaps(in, now):
		l.out += in - l.in
	default:
		l.leapt = true
		l.out = l.high + max(1, uint32(l.ticks(min(now.Sub(l.highAt), maxStep))))
	}
	l.in, l.at, l.connected = in, now, true
	if l.leapt || int32(l.out-l.high) > 0 {
		l.high, l.highAt = l.out, now
	}
	return true
}

// leaps tells whether a timestamp does not follow from the one before.
func (l *timeline) leaps(in uint32, now time.Time) bool {
	step, passed := l.duration(in-l.in), now.Sub(l.at)
	return step < -maxBack || step-passed > maxLead || passed-step > maxLag
}

// translate returns the stream's timestamp for one of the camera's, in the
// clock of the latest packet. ok is false if there is none, or it is far off.
func (l *timeline) translate(in uint32) (out uint32, ok bool) {
	if d := l.duration(in - l.in); !l.connected || d < -maxReportAge || d > maxReportAge {
		return 0, false
	}
	return l.out + in - l.in, true
}

// duration returns the time of a difference of timestamps.
func (l *timeline) duration(diff uint32) time.Duration {
	return time.Duration(int64(int32(diff)) * int64(time.Second) / int64(l.rate))
}

// ticks returns the timestamps of a time; of one below zero, none.
func (l *timeline) ticks(d time.Duration) int64 {
	return max(0, int64(d/time.Microsecond)*int64(l.rate)/1e6)
}
