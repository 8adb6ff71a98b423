package session

import (
	"sort"
	"time"

	"fanlight/medianode/stream"
)

// A viewer who begins to watch between two keyframes gets at once what the stream
// has kept since the last one, and then what is live. So the picture is there
// with the first packets, whatever the camera's keyframe interval. How it stays
// without a visible fast-forward, lane.squeeze says. Audio waits until it is live.
const (
	// catchUpInterval is how often those who catch up are sent something, and
	// catchUpPackets how many packets each of them: 115 Mbit/s. More at once would be
	// lost on the way to many; ten seconds of 2 Mbit/s take a fifth of a second.
	catchUpInterval = 2 * time.Millisecond
	catchUpPackets  = 24
	// catchUpFirst is how many packets leave with the first turn: the usual keyframe.
	catchUpFirst = 64
	// catchUpTurn is how many packets all of them together are sent at once, if that
	// is catchUpLeast for each, and catchUpTime how long a turn may take: those who
	// watch do not wait for longer. Who had no turn is the first in the next.
	catchUpTurn  = 256
	catchUpLeast = 4
	catchUpTime  = 2 * time.Millisecond
	// rememberRecent is how long after it has caught up a viewer can ask for any of it
	// again.
	rememberRecent = 2 * time.Second
	// replayPause is the least time between two answers to a viewer's wishes for a
	// keyframe.
	replayPause = time.Second
	// replayMost is how many bytes a switch of profiles may cost; where there is more
	// since the last keyframe, the next one is waited for.
	replayMost = 512 << 10
)

// catchUp begins to send what is recent. False: there is nothing that the viewer
// could begin with.
func (v *viewer) catchUp(sh *shard) bool {
	o := v.seat.outlet
	recent := v.recent()
	if len(recent) == 0 {
		return false
	}
	l := &v.lanes[stream.Video]
	if l.payloads == nil || !l.take(recent[0]) {
		return false // what is live will say so
	}
	newest := recent[len(recent)-1]
	first, last := recent[0].Packets[0].Timestamp, newest.Packets[0].Timestamp
	if l.runs[0].sub != o.sub {
		l.follow(o.sub, last, newest.Arrival)
	}
	s := l.runs[0].shift
	s.squeeze(first, last, l.timestamp, l.next > 0)
	s.arrival = newest.Arrival
	l.begin(run{sub: o.sub, shift: s, recent: recent})
	v.held, v.mute, v.resumed, v.key = false, false, false, false
	v.upTo, v.fresh = recent[0].Seq, true
	v.catching = true
	if !v.listed {
		v.listed = true
		sh.catching = append(sh.catching, v)
	}
	return true
}

// seen returns those bursts that the shard has taken from the subscription, or
// that came before it: the others are still to come.
func (o *outlet) seen(recent []*stream.Burst) []*stream.Burst {
	n := sort.Search(len(recent), func(i int) bool { return recent[i].Seq >= o.next })
	return recent[:n]
}

// catchUp sends something to those who catch up, if it is time, and returns when it
// will be again; zero: there are none.
func (sh *shard) catchUp(now time.Time) time.Time {
	if len(sh.catching) == 0 {
		return time.Time{}
	}
	if now.Before(sh.paced) {
		return sh.paced
	}
	sh.paced = now.Add(catchUpInterval)
	budget := catchUpTurn
	share := max(catchUpLeast, min(catchUpPackets, catchUpTurn/len(sh.catching)))
	had := 0
	for _, v := range sh.catching {
		n := share
		if v.fresh && budget >= catchUpFirst {
			n, v.fresh = catchUpFirst, false
		}
		budget -= n
		if v.catching {
			sh.advance(v, n, now)
		}
		if had++; budget <= 0 {
			sh.batch.Flush()
			budget = catchUpTurn
			if time.Since(now) > catchUpTime {
				break
			}
		}
	}
	sh.batch.Flush()
	left := make([]*viewer, 0, len(sh.catching)) // those who had no turn first
	for _, part := range [][]*viewer{sh.catching[had:], sh.catching[:had]} {
		for _, v := range part {
			if v.listed = v.catching; v.listed {
				left = append(left, v)
			}
		}
	}
	if sh.catching = left; len(left) == 0 {
		return time.Time{}
	}
	return sh.paced
}

// advance is viewer.advance. A panic ends one viewer's session, and leaves the
// others.
func (sh *shard) advance(v *viewer, packets int, now time.Time) {
	if err := guard(func() error { v.advance(sh, packets, now); return nil }); err != nil {
		v.session.fail(err)
		v.ended, v.catching = true, false
	}
}

// stopCatching ends the catching up. What was sent can be asked for again for a
// while.
func (v *viewer) stopCatching(now time.Time) {
	if v.catching {
		v.catching, v.caught = false, now
	}
}

// recent returns what there is to begin with: what the shard has seen of the
// stream since the last keyframe; of the keyframe alone, for a viewer who gets no
// more.
func (v *viewer) recent() []*stream.Burst {
	o := v.seat.outlet
	recent := o.seen(o.sub.Recent())
	if !v.thin {
		return recent
	}
	for i, b := range recent {
		if b.Packets[len(b.Packets)-1].Marker {
			return recent[:i+1]
		}
	}
	return nil // it is not whole yet
}

// advance sends the next packets of what is recent.
func (v *viewer) advance(sh *shard, packets int, now time.Time) {
	to := v.route.Load()
	switch {
	case v.ended || v.paused || v.seat.outlet == nil:
		v.stopCatching(now)
		return
	case to == nil:
		v.stopCatching(now)
		v.held, v.resumed, v.away = true, true, true
		return
	case !to.Clear():
		return
	}
	l, o := &v.lanes[stream.Video], v.seat.outlet
	recent := v.recent()
	if len(recent) == 0 || recent[len(recent)-1].Seq < v.upTo {
		// The stream has let go of it: what there is of the run must do.
		recent = l.runs[0].recent
	}
	if len(recent) > 0 && recent[0].Seq > v.upTo { // another keyframe: nobody needs what is before
		v.upTo, v.fresh = recent[0].Seq, true
		l.begin(run{sub: l.runs[0].sub, shift: l.runs[0].shift})
	}
	l.runs[0].recent = recent
	for packets > 0 {
		i := sort.Search(len(recent), func(i int) bool { return recent[i].Seq >= v.upTo })
		if i == len(recent) {
			v.stopCatching(now)
			switch {
			case v.thin:
				v.resumed = true
			case v.upTo < o.next: // what is missing has been dropped
				v.held, v.resumed = true, true
				o.sub.RequestKeyframe()
			}
			return
		}
		b := recent[i]
		if !v.emit(sh, b, to, now) {
			v.stopCatching(now)
			return
		}
		if r := &l.runs[0]; l.at.Before(r.shift.arrival) {
			l.at = r.shift.arrival // that is what its timestamp says
		}
		v.upTo = b.Seq + 1
		packets -= len(b.Packets)
	}
}

// refresh answers the viewer's wish for a keyframe: from what is recent, and by
// asking the camera, which may have another sooner than the viewer can be helped so.
func (v *viewer) refresh(sh *shard, now time.Time) {
	o := v.seat.outlet
	o.sub.RequestKeyframe()
	if v.paused || v.catching || now.Before(v.replay) {
		return
	}
	recent, to := v.recent(), v.route.Load()
	if len(recent) == 0 || to == nil || v.held && !to.Clear() {
		return
	}
	// What is long would not come through any better than what has not.
	age := recent[len(recent)-1].Arrival.Sub(recent[0].Arrival)
	v.replay = now.Add(max(replayPause, age))
	if v.catchUp(sh) {
		v.counts.replays.Add(1)
	}
}
