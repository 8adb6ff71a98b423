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
	outlets map[*stream.Stream]*outlet
	frame   [udp.PacketRoom]byte // the packet under way, if it goes over TCP

	mu    sync.Mutex // guards the rest; taken after a stream's locks
	mail  []mail
	nacks int       // of mail
	ready []*outlet // with bursts to take
	load  int       // viewers, those on their way in the mail too
	quit  bool
}

// mail is something for a shard to do: join, leave (with done) or nack (with kind
// and pair) is set.
type mail struct {
	join  *viewer
	leave *viewer
	done  chan<- struct{} // closed when the viewer has left

	nack *viewer
	kind stream.Kind
	pair []rtcp.NackPair
}

// outlet is what one shard sends of one camera.
type outlet struct {
	stream  *stream.Stream
	sub     *stream.Subscription
	viewers []*viewer // each knows its index
	first   int       // of viewers, modulo their number: who gets the next burst first
	queued  bool      // in ready; guarded by shard.mu
}

func newShard(conn *udp.Conn) *shard {
	return &shard{batch: conn.NewBatch(), began: time.Now(), wake: make(chan struct{}, 1), outlets: make(map[*stream.Stream]*outlet)}
}

// run works until stop. The viewers should have left.
func (sh *shard) run() {
	for range sh.wake {
		for sh.turn() {
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
		sh.join(m.join)
	case m.leave != nil:
		sh.leave(m.leave)
		close(m.done)
	case m.nack != nil && m.nack.outlet != nil:
		if err := guard(func() error { m.nack.resend(sh, m.kind, m.pair, time.Now()); return nil }); err != nil {
			m.nack.session.fail(err)
		}
	}
}

func (sh *shard) join(v *viewer) {
	o := sh.outlets[v.session.stream]
	if o == nil {
		o = &outlet{stream: v.session.stream}
		o.sub = o.stream.Subscribe(stream.SubscribeOptions{Wake: func() { sh.called(o) }})
		sh.outlets[o.stream] = o
	}
	v.outlet, v.index = o, len(o.viewers)
	o.viewers = append(o.viewers, v)
	o.sub.SetViewers(len(o.viewers))
	v.session.outlet.Store(o)
	o.sub.RequestKeyframe()
}

func (sh *shard) leave(v *viewer) {
	o := v.outlet
	if o == nil {
		return
	}
	v.account()
	v.outlet = nil
	last := len(o.viewers) - 1
	o.viewers[v.index] = o.viewers[last]
	o.viewers[v.index].index = v.index
	o.viewers[last] = nil
	o.viewers = o.viewers[:last]
	if len(o.viewers) == 0 {
		o.sub.Close()
		delete(sh.outlets, o.stream)
		return
	}
	o.sub.SetViewers(len(o.viewers))
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

// admit gives the shard a viewer.
func (sh *shard) admit(v *viewer) {
	sh.mu.Lock()
	sh.load++
	sh.mu.Unlock()
	sh.post(mail{join: v})
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
		if err != nil || b == nil {
			return // the sessions hear of the stream's end by themselves
		}
		now := time.Now()
		for done := 0; done < len(o.viewers); {
			done = sh.fan(o, b, done, now)
		}
		o.first++
		if len(o.viewers) >= flushAfter {
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
	turn := func() *viewer { return o.viewers[(o.first+done)%len(o.viewers)] }
	defer func() {
		if r := recover(); r != nil {
			v := turn()
			v.session.fail(panicked(r))
			v.ended = true
			done++
		}
	}()
	for ; done < len(o.viewers); done++ {
		if v := turn(); !v.ended {
			v.deliver(sh, b, now)
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
