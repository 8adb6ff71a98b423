package session

import (
	"sync"
	"time"

	"github.com/pion/rtcp"

	"fanlight/medianode/stream"
	"fanlight/medianode/transport"
	"fanlight/medianode/udp"
)

type path = transport.Path

const (
	// maxTurn is how many bursts of one camera a shard sends before it looks for
	// what else there is.
	maxTurn = 8
	// flushAfter is for how many viewers a burst leaves at once, and does not wait for
	// those of other cameras.
	flushAfter = 8
	// maxMail bounds the NACKs that wait for a shard. One too many is lost, and the
	// viewer asks again.
	maxMail = 4096
)

// shard is one goroutine's share of a node's output: media, retransmissions and
// sender reports of its viewers. There is one for each core, and the viewers of a
// camera are spread over all of them. Nothing of a viewer's output is touched by
// anybody else, so that sealing needs no lock; and all that is sent in a row
// leaves in one batch.
type shard struct {
	// Static after newShard.
	batch *udp.Batch // owned by run
	began time.Time
	wake  chan struct{} // holds a token while there may be something to do; never closed

	// Owned by run.
	outlets  map[*stream.Stream]*outlet
	catching []*viewer            // those that catch up
	paced    time.Time            // when they are sent something again
	frame    [udp.PacketRoom]byte // the packet under way, if it goes over TCP

	mu    sync.Mutex // guards the rest; taken after a stream's locks
	mail  []mail
	nacks int       // of mail
	ready []*outlet // with bursts to take
	load  int       // viewers, those on their way in the mail too
	quit  bool
}

// mail is something for a shard to do, one of them.
type mail struct {
	join  *viewer
	from  *stream.Stream // with join
	leave *viewer
	done  chan<- struct{} // closed when the viewer has left

	nack *viewer
	kind stream.Kind
	pair []rtcp.NackPair

	change *viewer
	do     func(*shard, *viewer) // with change, unless that has left
}

// outlet is what one shard sends of one stream.
type outlet struct {
	stream *stream.Stream
	sub    *stream.Subscription
	seats  []*viewer // each knows its index
	first  int       // of seats, modulo their number: who gets the next burst first
	next   uint64    // Seq of the next burst of video
	queued bool      // in ready; guarded by shard.mu
}

func newShard(conn *udp.Conn) *shard {
	return &shard{batch: conn.NewBatch(), began: time.Now(), wake: make(chan struct{}, 1), outlets: make(map[*stream.Stream]*outlet)}
}

// run works until stop. The viewers should have left.
func (sh *shard) run() {
	pace := time.NewTimer(time.Hour)
	defer pace.Stop()
	for {
		select {
		case <-sh.wake:
			for sh.turn() {
				sh.catchUp(time.Now())
			}
		case <-pace.C:
		}
		if next := sh.catchUp(time.Now()); !next.IsZero() {
			pace.Reset(max(time.Until(next), 0))
		}
		sh.mu.Lock()
		quit := sh.quit
		sh.mu.Unlock()
		if quit {
			return
		}
	}
}

func (sh *shard) stop() {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	sh.quit = true
	signal(sh.wake)
}

// turn does what there is to do now, and tells whether there was anything.
func (sh *shard) turn() bool {
	sh.mu.Lock()
	letters, ready := sh.mail, sh.ready
	sh.mail, sh.ready, sh.nacks = nil, nil, 0
	for _, o := range ready {
		o.queued = false
	}
	sh.mu.Unlock()
	for _, m := range letters {
		sh.open(m)
	}
	for _, o := range ready {
		sh.serve(o)
	}
	sh.batch.Flush()
	return len(letters)+len(ready) > 0
}

func (sh *shard) open(m mail) {
	switch {
	case m.join != nil:
		if err := guard(func() error { sh.join(m.join, m.from); return nil }); err != nil {
			m.join.session.fail(err)
		}
	case m.leave != nil:
		sh.leave(m.leave)
		close(m.done)
	case m.nack != nil && m.nack.seat.outlet != nil:
		if err := guard(func() error { m.nack.resend(sh, m.kind, m.pair, time.Now()); return nil }); err != nil {
			m.nack.session.fail(err)
		}
	case m.change != nil && m.change.seat.outlet != nil:
		if err := guard(func() error { m.do(sh, m.change); return nil }); err != nil {
			m.change.session.fail(err)
		}
	}
}

// join gives a viewer its first seat, and what there is to begin with.
func (sh *shard) join(v *viewer, from *stream.Stream) {
	sh.sit(v, &v.seat, from)
	v.session.took(v)
	v.replay = time.Now().Add(replayPause)
	if !v.paused && !v.catchUp(sh) {
		v.seat.outlet.sub.RequestKeyframe()
	}
}

// sit gives a viewer a seat at a stream's outlet.
func (sh *shard) sit(v *viewer, at *seat, from *stream.Stream) {
	o := sh.outlets[from]
	if o == nil {
		o = &outlet{stream: from}
		o.sub = from.Subscribe(stream.SubscribeOptions{Wake: func() { sh.called(o) }, CatchUp: true})
		o.next = o.sub.Begin()
		sh.outlets[from] = o
	}
	*at = seat{outlet: o, index: len(o.seats)}
	o.seats = append(o.seats, v)
	o.sub.SetViewers(len(o.seats))
}

func (sh *shard) leave(v *viewer) {
	if v.seat.outlet == nil {
		return
	}
	v.account()
	sh.vacate(&v.next)
	sh.vacate(&v.seat)
	v.catching = false // and catchUp takes it from its list
}

// vacate takes a seat back.
func (sh *shard) vacate(s *seat) {
	o, i := s.outlet, s.index
	if *s = (seat{}); o == nil {
		return
	}
	last := len(o.seats) - 1
	if moved := o.seats[last]; i != last {
		o.seats[i] = moved
		moved.at(o).index = i
	}
	o.seats[last] = nil
	o.seats = o.seats[:last]
	if last == 0 {
		o.sub.Close()
		delete(sh.outlets, o.stream)
		return
	}
	o.sub.SetViewers(last)
}

// at returns the viewer's seat at an outlet.
func (v *viewer) at(o *outlet) *seat {
	if v.next.outlet == o {
		return &v.next
	}
	return &v.seat
}

// called is told by a stream that an outlet has bursts to take.
func (sh *shard) called(o *outlet) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if !o.queued {
		o.queued = true
		sh.ready = append(sh.ready, o)
	}
	signal(sh.wake)
}

// post gives the shard something to do.
func (sh *shard) post(m mail) {
	sh.mu.Lock()
	defer sh.mu.Unlock()
	if m.nack != nil {
		if sh.nacks >= maxMail {
			m.nack.session.counts.refused.Add(asked(m.pair))
			return
		}
		sh.nacks++
	}
	sh.mail = append(sh.mail, m)
	signal(sh.wake)
}

// admit gives the shard a viewer of a stream.
func (sh *shard) admit(v *viewer, from *stream.Stream) {
	sh.mu.Lock()
	sh.load++
	sh.mu.Unlock()
	sh.post(mail{join: v, from: from})
}

// dismiss takes a viewer from the shard, and waits until it is no longer
// touched.
func (sh *shard) dismiss(v *viewer) {
	done := make(chan struct{})
	sh.post(mail{leave: v, done: done})
	<-done
	sh.mu.Lock()
	sh.load--
	sh.mu.Unlock()
}

// serve sends what a camera has sent, some bursts at a time.
func (sh *shard) serve(o *outlet) {
	for range maxTurn {
		b, err := o.sub.Poll()
		if err != nil {
			for _, v := range o.seats { // those too that are about to get it
				v.session.fail(err)
			}
		}
		if err != nil || b == nil {
			return
		}
		now := time.Now()
		if b.Kind == stream.Video {
			o.next = b.Seq + 1
		}
		for done := 0; done < len(o.seats); {
			done = sh.fan(o, b, done, now)
		}
		o.first++
		if len(o.seats) >= flushAfter {
			sh.batch.Flush() // each burst has its own patience with a full socket
		}
	}
	sh.called(o)
}

// fan sends a burst to the viewers but the first so many, and returns how many
// have had it. Another one is the first each time: when the socket is full, it is
// the last who lose. A panic ends one viewer's session, and leaves the others.
func (sh *shard) fan(o *outlet, b *stream.Burst, from int, now time.Time) (done int) {
	done = from
	turn := func() *viewer { return o.seats[(o.first+done)%len(o.seats)] }
	defer func() {
		if r := recover(); r != nil {
			v := turn()
			v.session.fail(panicked(r))
			v.ended = true
			done++
		}
	}()
	for ; done < len(o.seats); done++ {
		if v := turn(); !v.ended {
			v.deliver(sh, o, b, now)
		}
	}
	return done
}

// room returns where a packet is to be written that goes over a path.
func (sh *shard) room(to *path) []byte {
	if to.Dest() == nil {
		return sh.frame[:]
	}
	return sh.batch.Room()
}

// commit sends the first n bytes of room. False: there is no room on the way.
func (sh *shard) commit(to *path, n int, now time.Time) bool {
	dest := to.Dest()
	if dest == nil {
		return to.Send(sh.frame[:n], now)
	}
	sh.batch.Commit(n, dest)
	return true
}
