package session

import (
	"testing"
	"time"

	"fanlight/medianode/stream"
)

// late adds a viewer to a rig.
func (r *rig) late(t *testing.T) *viewer {
	t.Helper()
	first := r.outlet.seats[0]
	s := &Session{cfg: OpenConfig{Profiles: []Profile{{ID: "main", Stream: r.stream}}}}
	s.lanes[stream.Video] = first.session.lanes[stream.Video]
	v := &viewer{session: s, shard: r.shard, cryptor: first.cryptor, route: first.route, counts: &s.counts, held: true, mute: true, lanes: s.lanes, report: r.far}
	r.shard.join(v, r.stream)
	return v
}

// A viewer who comes in the middle of a long keyframe interval gets what it needs
// at once, in order, squeezed, and then what is live, and can ask for all of it
// again.
func TestCatchUp(t *testing.T) {
	r := newRig(t, 1)
	old := r.outlet.seats[0]
	for range 200 {
		r.frame(false)
		r.send()
	}
	v := r.late(t)
	if !v.catching {
		t.Fatal("there is nothing to begin with")
	}
	turns := 0
	for r.catchUp() {
		if turns++; turns%10 == 0 { // what comes meanwhile has its turn too
			r.frame(false)
			for r.shard.turn() {
			}
		}
	}
	r.frame(false)
	r.send()
	l, known := &v.lanes[stream.Video], &old.lanes[stream.Video]
	if v.catching || v.held || l.latest != known.latest || l.timestamp != known.timestamp {
		t.Errorf("after %d turns: catching up %v, held %v, at packet %d of %d, timestamp %d of %d", turns, v.catching, v.held, l.latest, known.latest, l.timestamp, known.timestamp)
	}
	if packets := l.packets; packets < 200*framePackets || packets > 250*framePackets {
		t.Errorf("%d packets were sent", packets)
	}
	if n := v.counts.errors.Load() + v.counts.held.Load(); n != 0 {
		t.Errorf("%d packets were left out", n)
	}
	// All of them can be asked for again, with the timestamps that they had.
	var before uint32
	for own := l.runs[0].base; own < l.next; own++ {
		run, index, got := l.find(uint16(own))
		if run == nil || got != own {
			t.Fatalf("packet %d of %d to %d is not found", own, l.runs[0].base, l.next)
		}
		p := run.packet(stream.Video, index)
		if p == nil {
			t.Fatalf("packet %d is not kept", index)
		}
		timestamp := run.shift.apply(p.Timestamp)
		if own > l.runs[0].base && int32(timestamp-before) < 0 {
			t.Fatalf("timestamp %d after %d", timestamp, before)
		}
		before = timestamp
	}
	if first := l.runs[0].shift.apply(l.runs[0].recent[0].Packets[0].Timestamp); l.timestamp-first > 25*3600 {
		t.Errorf("what was past lasts %d ticks", l.timestamp-first)
	}
}

// A wish for a keyframe is answered from what is recent, with timestamps after
// those that the viewer has had, and not again too soon.
func TestRefresh(t *testing.T) {
	r := newRig(t, 1)
	v := r.outlet.seats[0]
	for range 50 {
		r.frame(false)
		r.send()
	}
	l := &v.lanes[stream.Video]
	had, packets, next := l.timestamp, l.packets, l.next
	now := time.Now().Add(time.Minute)
	v.refresh(r.shard, now)
	if !v.catching {
		t.Fatal("nothing is sent again")
	}
	r.send()
	const sets = 1 // packet of parameter sets
	if n := l.packets - packets; n != 51*framePackets+sets {
		t.Errorf("%d packets were sent, want 51 pictures of %d", n, framePackets)
	}
	if l.runs[0].base != next || int32(l.timestamp-had) <= 0 || l.timestamp-had > 3600 {
		t.Errorf("numbers go on with %d after %d, timestamps with %d after %d", l.runs[0].base, next-1, l.timestamp, had)
	}
	after := l.timestamp
	r.frame(false)
	r.send()
	if d := int32(l.timestamp - after); d <= 0 {
		t.Errorf("the live picture is %d ticks after those before it", d)
	}
	v.refresh(r.shard, now.Add(replayPause/2))
	if v.catching {
		t.Error("it is all sent once more at once")
	}
}

// What is squeezed stays in order, ends where it should, and never goes back.
func TestSqueeze(t *testing.T) {
	for _, tt := range []struct {
		name        string
		first, last uint32
		had         uint32
		any         bool
	}{
		{"first", 1000, 1000 + 900_000, 0, false},
		{"one picture", 5000, 5000, 0, false},
		{"around zero", 1<<32 - 450_000, 450_000, 0, false},
		{"again", 1000, 901_000, 901_000, true},
		{"after a pause", 1000, 901_000, 900, true},
		{"two pictures", 1000, 4600, 4600, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var s shift
			s.squeeze(tt.first, tt.last, tt.had, tt.any)
			begin, end := s.apply(tt.first), s.apply(tt.last)
			if tt.any && int32(begin-tt.had) <= 0 {
				t.Errorf("begins at %d, not after %d", begin, tt.had)
			}
			if int32(end-begin) < 0 || end-begin > squeezed {
				t.Errorf("from %d to %d", begin, end)
			}
			if live := s.apply(tt.last + 3600); int32(live-end) <= 0 {
				t.Errorf("the next picture is at %d, not after %d", live, end)
			}
			if !tt.any && end != tt.last {
				t.Errorf("ends at %d, want %d", end, tt.last)
			}
		})
	}
}

// Who goes over to another profile while catching up does not have its time leap
// by what it has not seen yet.
func TestSwitchWhileCatchingUp(t *testing.T) {
	clock := time.Now()
	r := newRigOf(t, 1, stream.Config{Clock: func() time.Time { return clock }})
	other := newRigOf(t, 1, stream.Config{Clock: func() time.Time { return clock }})
	for range 200 {
		clock = clock.Add(40 * time.Millisecond)
		r.frame(false)
		r.send()
	}
	other.frame(true)
	v := r.late(t)
	if !r.catchUp() {
		t.Fatal("there is nothing left to catch up with")
	}
	had := v.lanes[stream.Video].timestamp
	v.session.cfg.Profiles = append(v.session.cfg.Profiles, Profile{ID: "sub", Stream: other.stream})
	v.steered(r.shard, other.stream, choice{profile: 1})
	if v.seat.outlet.stream != other.stream {
		t.Fatal("it has not gone over")
	}
	r.send()
	if d := int32(v.lanes[stream.Video].timestamp - had); d <= 0 || d > 9000 {
		t.Errorf("the picture of the other profile is %d ticks after the one before", d)
	}
}

// What is squeezed is forgotten once it has been caught up: timestamps come round
// after half a day, and would be squeezed again.
func TestSqueezeIsForgotten(t *testing.T) {
	r := newRig(t, 1)
	for range 100 {
		r.frame(false)
		r.send()
	}
	v := r.late(t)
	r.send()
	l := &v.lanes[stream.Video]
	if v.catching || l.runs[0].shift.span == 0 || l.runs[0].recent == nil {
		t.Fatalf("nothing was caught up: %+v", l.runs[0].shift)
	}
	v.caught = time.Now().Add(-2 * rememberRecent)
	next := l.next
	for range 3 {
		r.frame(false)
		r.send()
	}
	if l.runs[0].shift.span != 0 || l.runs[0].base != next || l.next != next+3*framePackets {
		t.Errorf("the run is %+v, numbers went from %d to %d", l.runs[0], next, l.next)
	}
	for _, run := range l.runs {
		if run.recent != nil {
			t.Error("a keyframe interval is kept")
		}
	}
	for own := next - 20; own < l.next; own++ {
		if run, _, found := l.find(uint16(own)); run == nil || found != own {
			t.Errorf("packet %d is not found", own)
		}
	}
}

// Many who catch up at once are sent no more in a turn than leaves room for those
// who watch, and all of them arrive.
func TestCatchUpTogether(t *testing.T) {
	const viewers = 200
	r := newRig(t, 1)
	for range 50 {
		r.frame(false)
		r.send()
	}
	var late []*viewer
	for range viewers {
		late = append(late, r.late(t))
	}
	sent := func() (n uint64) {
		for _, v := range late {
			n += v.counts.packets.Load()
		}
		return n
	}
	now := time.Now()
	r.shard.paced = now.Add(time.Hour)
	if next := r.shard.catchUp(now); sent() != 0 || !next.Equal(now.Add(time.Hour)) {
		t.Errorf("%d packets were sent before their time; the next at %v", sent(), next)
	}
	turns := 0
	for before := uint64(0); r.catchUp(); turns++ {
		const most = max(2*catchUpTurn, viewers*2*16) // a burst has 16 packets at most
		if n := sent() - before; n > most {
			t.Fatalf("%d packets in one turn", n)
		}
		before = sent()
	}
	for i, v := range late {
		if v.catching || v.listed || v.lanes[stream.Video].latest != r.outlet.seats[0].lanes[stream.Video].latest {
			t.Fatalf("viewer %d has not arrived after %d turns", i, turns)
		}
	}
}

// A viewer who gets keyframes only is sent the last one, and no more, when it asks
// for one.
func TestRefreshThin(t *testing.T) {
	r := newRig(t, 1)
	v := r.outlet.seats[0]
	for range 50 {
		r.frame(false)
		r.send()
	}
	v.thin = true
	l := &v.lanes[stream.Video]
	before := l.packets
	v.refresh(r.shard, time.Now().Add(time.Minute))
	r.send()
	if n := l.packets - before; n < framePackets || n > framePackets+1 {
		t.Errorf("%d packets were sent, want the keyframe's %d", n, framePackets+1)
	}
	r.frame(false)
	r.send()
	if n := l.packets - before; n > framePackets+1 {
		t.Error("more than keyframes are sent")
	}
	r.frame(true)
	r.send()
	if n := l.packets - before; n < 2*framePackets {
		t.Error("the next keyframe is not sent")
	}
}

// A viewer whose first picture comes by a switch has sound with it.
func TestChangeStartsAudio(t *testing.T) {
	r := newRig(t, 1)
	v := r.late(t)
	v.stopCatching(time.Now())
	v.held, v.mute = true, true
	other := newRig(t, 1)
	r.shard.sit(v, &v.next, other.stream)
	t.Cleanup(func() { r.shard.leave(v) })
	other.frame(true)
	r.send()
	if v.next.outlet != nil || v.held || v.mute {
		t.Errorf("after the first keyframe: next %v, held %v, mute %v", v.next.outlet != nil, v.held, v.mute)
	}
}
