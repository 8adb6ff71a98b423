package session

import (
	"sync/atomic"
	"time"

	"fanlight/medianode/stream"
)

// viewer is a connected session's output. It is owned by its shard.
type viewer struct {
	// Static after newViewer.
	session *Session
	shard   *shard
	cryptor *cryptor
	route   *atomic.Pointer[path]
	counts  *counts // the session's

	// Owned by the shard.
	seat    seat    // the profile that it gets
	next    seat    // the one that it is to get from its next keyframe on; no outlet: none
	lanes   [2]lane // by stream.Kind
	resends resends
	dropped stream.Drops // not counted yet
	held    bool         // video waits for a keyframe
	resumed bool         // video was left out before the next burst
	paused  bool         // nobody looks
	thin    bool         // keyframes only
	key     bool         // thin: a keyframe has begun, and not ended
	mute    bool         // audio waits for the picture
	ended   bool         // the session is ending
	asked   time.Time    // when a keyframe was asked for, last
	report  time.Time    // when the latest sender report left

	catching bool      // it gets what is recent
	listed   bool      // it is one of shard.catching
	fresh    bool      // a keyframe is next then
	upTo     uint64    // Seq of the burst that is next then
	away     bool      // there was no way to the viewer
	caught   time.Time // when that ended; zero: nothing is remembered of it
	replay   time.Time // before, a wish for a keyframe is not answered from what is recent
	header   [maxExtensions]byte
	delay    uint32    // the playout delay, as it was said last
	said     time.Time // until when it is said with each picture
}

// seat is a viewer's place at an outlet.
type seat struct {
	outlet *outlet // nil: none
	index  int     // of outlet.seats
}

func newViewer(s *Session, sh *shard, c *cryptor) *viewer {
	v := &viewer{session: s, shard: sh, cryptor: c, route: s.transport.Route(), counts: &s.counts, held: true, mute: true}
	v.lanes = s.lanes
	return v
}

// deliver takes a burst of one of the viewer's outlets.
func (v *viewer) deliver(sh *shard, o *outlet, b *stream.Burst, now time.Time) {
	if o == v.next.outlet {
		if v.paused || !b.Keyframe {
			return
		}
		v.change(sh)
	}
	if v.lanes[b.Kind].payloads == nil || v.paused {
		return
	}
	if v.catching && b.Kind == stream.Video {
		return // it comes from what is recent, in its turn
	}
	to := v.route.Load()
	if !v.wants(sh, b, to, now) {
		if v.catching || v.thin && !v.held {
			return
		}
		if v.dropped.AwaitingKeyframe += int64(len(b.Packets)); v.dropped.AwaitingKeyframe >= accountAfter {
			v.account()
		}
		return
	}
	if v.dropped != (stream.Drops{}) {
		v.account()
	}
	if !v.caught.IsZero() && now.Sub(v.caught) > rememberRecent {
		v.caught = time.Time{}
		v.lanes[stream.Video].forget()
	}
	v.emit(sh, b, to, now)
}

// emit sends a burst: all of its packets, one after another. False: it could not
// be sent, or not all of it.
func (v *viewer) emit(sh *shard, b *stream.Burst, to *path, now time.Time) bool {
	l := &v.lanes[b.Kind]
	counts := v.counts
	if !l.take(b) {
		if b.Kind == stream.Video {
			v.held, v.resumed = true, true
			v.session.course.look() // is there another profile?
		}
		return false // the picture goes on without sound
	}
	if sub := v.seat.outlet.sub; l.runs[0].sub != sub {
		l.follow(sub, b.Packets[0].Timestamp, b.Arrival)
	}
	resumed := b.Kind == stream.Video && v.resumed
	sent, bytes := 0, 0
	plain := v.extend(l, b, now)
	for i := range b.Packets {
		p := &b.Packets[i]
		index := l.number(p, resumed)
		resumed = false
		r := &l.runs[0]
		h := image{index: index, timestamp: r.shift.apply(p.Timestamp), ssrc: l.ssrc, payload: l.payload.media, marker: p.Marker, extension: plain}
		if i == 0 && l.extensions.captureTime != 0 && now.Sub(l.captured) >= captureInterval {
			h.extension = v.capture(l, b, p, now)
		}
		n, err := v.cryptor.seal(sh.room(to), &h, nil, p.Payload)
		if err != nil {
			counts.errors.Add(1)
			l.sent(p, index, h.timestamp) // a gap that the viewer sees, and asks for
			continue
		}
		if !sh.commit(to, n, now) {
			v.dropped.NoRoom += int64(len(b.Packets) - i)
			v.hold(b)
			break
		}
		l.sent(p, index, h.timestamp)
		sent++
		bytes += len(p.Payload)
	}
	l.at = b.Arrival
	if b.Kind == stream.Video && sent > 0 {
		v.resumed = v.held
	}
	counts.packets.Add(uint64(sent))
	counts.bytes.Add(uint64(bytes))
	if sent > 0 && !v.catching && now.Sub(v.report) >= reportInterval {
		v.report = now
		v.sendReport(sh, b.Kind, to, now)
	}
	return sent == len(b.Packets)
}

// extend returns the header extensions of a burst's packets.
func (v *viewer) extend(l *lane, b *stream.Burst, now time.Time) []byte {
	if l.extensions == (extensions{}) {
		return nil
	}
	x := v.extended(l, b, now)
	return l.extensions.appendExtensions(v.header[:0], &x)
}

// extended returns what the header extensions of a burst are to say.
func (v *viewer) extended(l *lane, b *stream.Burst, now time.Time) extended {
	x := extended{now: now}
	if l.extensions.playoutDelay == 0 {
		return x
	}
	x.delay = v.session.feedback.cushion.delay.Load()
	if x.delay != v.delay {
		v.delay, v.said = x.delay, now.Add(cushionSaid)
	}
	x.says = b.Keyframe || now.Before(v.said)
	return x
}

// capture returns the header extensions of a packet that says when its picture
// was taken.
func (v *viewer) capture(l *lane, b *stream.Burst, p *stream.Packet, now time.Time) []byte {
	x := v.extended(l, b, now)
	if at, timestamp, ok := v.seat.outlet.stream.SenderClock(l.kind); ok {
		taken := at.Add(span(p.Timestamp-timestamp, l.clockRate))
		ahead := b.Arrival.Sub(taken)
		x.capture, x.taken = true, ntpTime(taken)
		x.clock = int64(ahead/time.Second)<<32 + int64(ahead%time.Second)<<32/int64(time.Second)
		l.captured = now
	}
	return l.extensions.appendExtensions(v.header[:0], &x)
}

// wants tells whether a burst is to be sent: video begins, and goes on after a
// loss of ours, with a keyframe, when there is a way for it and nothing waits
// there; audio begins with the picture, if there is one.
func (v *viewer) wants(sh *shard, b *stream.Burst, to *path, now time.Time) bool {
	if to == nil {
		v.hold(b)
		v.away = true
		return false
	}
	if v.away && to.Clear() && !b.Keyframe {
		v.away = false
		if v.held && v.catchUp(sh) {
			return false
		}
	}
	if b.Kind == stream.Audio {
		if v.mute && trackOf(v.seat.outlet.stream.Tracks(), stream.Video) == nil {
			v.mute = false
		}
		return !v.mute && !v.catching
	}
	if v.held && to.Clear() {
		switch {
		case b.Keyframe:
			v.held, v.mute = false, false
		case now.Sub(v.asked) >= keyframePause:
			// The camera's answer to the wish at the loss may have come while there was
			// no way for it.
			v.asked = now
			v.seat.outlet.sub.RequestKeyframe()
		}
	}
	return !v.held && (!v.thin || v.ofKeyframe(b))
}

// ofKeyframe tells whether a burst is a part of a keyframe.
func (v *viewer) ofKeyframe(b *stream.Burst) bool {
	of := v.key || b.Keyframe
	v.key = of && !b.Packets[len(b.Packets)-1].Marker
	if !of {
		v.resumed = true
	}
	return of
}

// change has the viewer go over to its next seat.
func (v *viewer) change(sh *shard) {
	v.account()
	sh.vacate(&v.seat)
	v.seat, v.next = v.next, seat{}
	v.stopCatching(time.Now())
	v.held, v.mute, v.key = false, false, false
	v.counts.switches.Add(1)
	v.session.took(v)
}

// accountAfter is how many packets are left out before they are counted.
const accountAfter = 100

// account counts what was left out: now and then, so that nothing is locked for
// each packet.
func (v *viewer) account() {
	d := v.dropped
	v.dropped = stream.Drops{}
	if v.seat.outlet != nil {
		v.seat.outlet.sub.Drop(d)
	}
	v.session.counts.held.Add(uint64(d.AwaitingKeyframe))
	v.session.counts.full.Add(uint64(d.NoRoom))
}

// hold makes video wait for a keyframe.
func (v *viewer) hold(b *stream.Burst) {
	if b.Kind == stream.Video && !v.held {
		v.held, v.resumed = true, true
		v.seat.outlet.sub.RequestKeyframe()
	}
}
