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
	// catchUpTurn is how many packets all of them together are sent at once, so that
	// those who watch do not wait.
	catchUpTurn = 256
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
	recent := o.seen(o.sub.Recent())
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
	if !v.catching {
		v.catching = true
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

// catchUp sends something to those who catch up, and tells whether there are any.
func (sh *shard) catchUp(now time.Time) bool {
	share := max(1, min(catchUpPackets, catchUpTurn/max(1, len(sh.catching))))
	left := sh.catching[:0]
	for _, v := range sh.catching {
		n := share
		if v.fresh {
			n, v.fresh = catchUpFirst, false
		}
		if v.catching && v.advance(sh, n, now) {
			left = append(left, v)
		}
	}
	clear(sh.catching[len(left):])
	sh.catching = left
	return len(left) > 0
}

// advance sends the next packets, and tells whether the viewer has still to catch
// up.
func (v *viewer) advance(sh *shard, packets int, now time.Time) bool {
	to := v.route.Load()
	if v.ended || v.paused || v.seat.outlet == nil {
		v.catching = false
		return false
	}
	if to == nil {
		v.catching, v.held, v.resumed, v.away = false, true, true, true
		return false
	}
	if !to.Clear() {
		return true
	}
	l, o := &v.lanes[stream.Video], v.seat.outlet
	recent := o.seen(o.sub.Recent())
	if len(recent) == 0 || recent[len(recent)-1].Seq < v.upTo {
		// The stream has let go of it: what there is of the run must do.
		recent = l.runs[0].recent
	}
	if first := recent[0].Seq; first > v.upTo { // another keyframe: nobody needs what is before
		v.upTo, v.fresh = first, true
		l.begin(run{sub: l.runs[0].sub, shift: l.runs[0].shift})
	}
	l.runs[0].recent = recent
	for packets > 0 {
		i := sort.Search(len(recent), func(i int) bool { return recent[i].Seq >= v.upTo })
		if i == len(recent) {
			v.catching, v.caught = false, now
			if v.upTo < o.next { // what is missing has been dropped
				v.held, v.resumed = true, true
				o.sub.RequestKeyframe()
			}
			return false
		}
		b := recent[i]
		if !v.emit(sh, b, to, now) {
			v.catching = false
			return false
		}
		if r := &l.runs[0]; l.at.Before(r.shift.arrival) {
			l.at = r.shift.arrival // that is what its timestamp says
		}
		v.upTo = b.Seq + 1
		packets -= len(b.Packets)
	}
	return true
}

// refresh answers the viewer's wish for a keyframe: from what is recent, and by
// asking the camera, which may have another sooner than the viewer can be helped so.
func (v *viewer) refresh(sh *shard, now time.Time) {
	o := v.seat.outlet
	o.sub.RequestKeyframe()
	if v.paused || v.catching || now.Before(v.replay) {
		return
	}
	recent := o.seen(o.sub.Recent())
	if len(recent) == 0 || v.held && !v.route.Load().Clear() {
		return
	}
	// What is long would not come through any better than what has not.
	age := recent[len(recent)-1].Arrival.Sub(recent[0].Arrival)
	v.replay = now.Add(max(replayPause, age))
	if v.catchUp(sh) {
		v.counts.replays.Add(1)
	}
}
