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
	outlet  *outlet // nil: not there
	index   int     // of outlet.viewers
	lanes   [2]lane // by stream.Kind
	resends resends
	dropped stream.Drops // not counted yet
	held    bool         // video waits for a keyframe
	resumed bool         // video was left out before the next burst
	asked   time.Time    // when a keyframe was asked for, last
	mute    bool         // audio waits for the picture
	ended   bool         // the session is ending
	report  time.Time    // when the latest sender report left
}

func newViewer(s *Session, sh *shard, c *cryptor) *viewer {
	v := &viewer{session: s, shard: sh, cryptor: c, route: s.transport.Route(), counts: &s.counts, held: true, mute: true}
	v.lanes = s.lanes
	return v
}

// deliver sends a burst: all of its packets, one after another, or nothing of it.
func (v *viewer) deliver(sh *shard, b *stream.Burst, now time.Time) {
	l := &v.lanes[b.Kind]
	if l.payloads == nil {
		return
	}
	counts, to := v.counts, v.route.Load()
	if !v.wants(b, to, now) {
		if v.dropped.AwaitingKeyframe += int64(len(b.Packets)); v.dropped.AwaitingKeyframe >= accountAfter {
			v.account()
		}
		return
	}
	if v.dropped != (stream.Drops{}) {
		v.account()
	}
	if !l.take(b) {
		if b.Kind == stream.Video {
			v.ended = true
			v.session.fail(v.session.unsupported(b.Codec))
		}
		return // the picture goes on without sound
	}
	resumed := b.Kind == stream.Video && v.resumed
	sent, bytes := 0, 0
	for i := range b.Packets {
		p := &b.Packets[i]
		index := l.number(p, resumed)
		resumed = false
		h := image{index: index, timestamp: p.Timestamp, ssrc: l.ssrc, payload: l.payload, marker: p.Marker}
		n, err := v.cryptor.seal(sh.room(to), &h, nil, p.Payload)
		if err != nil {
			counts.errors.Add(1)
			l.sent(p, index) // a gap that the viewer sees, and asks for
			continue
		}
		if !sh.commit(to, n, now) {
			v.dropped.NoRoom += int64(len(b.Packets) - i)
			v.hold(b)
			break
		}
		l.sent(p, index)
		sent++
		bytes += len(p.Payload)
	}
	if b.Kind == stream.Video && sent > 0 {
		v.resumed = v.held
	}
	counts.packets.Add(uint64(sent))
	counts.bytes.Add(uint64(bytes))
	if sent > 0 && now.Sub(v.report) >= reportInterval {
		v.report = now
		v.sendReport(sh, b.Kind, to, now)
	}
}

// wants tells whether a burst is to be sent: video begins, and goes on after a
// loss of ours, with a keyframe, when there is a way for it and nothing waits
// there; audio begins with the picture, if there is one.
func (v *viewer) wants(b *stream.Burst, to *path, now time.Time) bool {
	if to == nil {
		v.hold(b)
		return false
	}
	if b.Kind == stream.Audio {
		if v.mute && trackOf(v.outlet.stream.Tracks(), stream.Video) == nil {
			v.mute = false
		}
		return !v.mute
	}
	if v.held && to.Clear() {
		switch {
		case b.Keyframe:
			v.held, v.mute = false, false
		case now.Sub(v.asked) >= keyframePause:
			// The camera's answer to the wish at the loss may have come while there was
			// no way for it.
			v.asked = now
			v.outlet.sub.RequestKeyframe()
		}
	}
	return !v.held
}

// accountAfter is how many packets are left out before they are counted.
const accountAfter = 100

// account counts what was left out: now and then, so that nothing is locked for
// each packet.
func (v *viewer) account() {
	d := v.dropped
	v.dropped = stream.Drops{}
	v.outlet.sub.Drop(d)
	v.session.counts.held.Add(uint64(d.AwaitingKeyframe))
	v.session.counts.full.Add(uint64(d.NoRoom))
}

// hold makes video wait for a keyframe.
func (v *viewer) hold(b *stream.Burst) {
	if b.Kind == stream.Video && !v.held {
		v.held, v.resumed = true, true
		v.outlet.sub.RequestKeyframe()
	}
}
