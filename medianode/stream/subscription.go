package stream

import (
	"context"
	"fmt"
	"io"
	"sync"
)

// SubscribeOptions bounds a subscription's queue. The zero value is good.
type SubscribeOptions struct {
	QueueBursts int // 0: 512
	QueueBytes  int // of payload; 0: 4 MiB

	// CatchUp says that the subscriber begins with Recent: video is not held back
	// until the next keyframe if there is something recent, and audio is not held
	// back at all, but by the subscriber.
	CatchUp bool

	// Wake is called when there may be something for Poll after there was
	// nothing, by whoever writes to the stream, with its lock held: it must not
	// block, and call nothing of the stream. nil: nobody is told.
	Wake func()
}

// The defaults hold a second of video at 32 Mbit/s, 500 packets a second with
// audio, or the largest keyframes that cameras send.
const (
	defaultQueueBursts = 512
	defaultQueueBytes  = 4 << 20
)

// Subscription is what takes a stream's bursts, for one viewer or for many. Next
// and Poll have one caller at a time; the other methods may be called from any
// goroutine.
type Subscription struct {
	// Static after Subscribe.
	stream    *Stream
	maxBursts int
	maxBytes  int
	notify    func()
	kept      [kinds]*retained // nil on a closed stream
	begin     uint64
	wake      chan struct{} // holds a token while there may be something for Next; never closed
	index     int           // guarded by stream.mu; -1: no longer in stream.subs

	mu      sync.Mutex // guards the rest; taken after stream.mu
	queue   ring
	bytes   int
	held    bool // video waits for a keyframe
	mute    bool // audio waits for the first keyframe
	ended   error
	dropped Drops
	viewers int // who share it: what it does not get is counted for each
}

// Subscribe adds a subscription. Its first burst is the next keyframe. Audio is
// held until then, unless the tracks published have no video. With
// SubscribeOptions.CatchUp it is the next one, after those in Recent. On a closed
// stream, Next returns the error.
//
// The camera is not asked for a keyframe: a session that is not connected yet has
// no use for one, and asking now would keep the camera from being asked again
// when it has. That is what RequestKeyframe is for. When a subscription has to
// wait again, after an overflow or for a new connection, the camera is asked.
func (s *Stream) Subscribe(opt SubscribeOptions) *Subscription {
	sub := &Subscription{stream: s, maxBursts: opt.QueueBursts, maxBytes: opt.QueueBytes, notify: opt.Wake, wake: make(chan struct{}, 1), index: -1, viewers: 1}
	if sub.maxBursts <= 0 {
		sub.maxBursts = defaultQueueBursts
	}
	if sub.maxBytes <= 0 {
		sub.maxBytes = defaultQueueBytes
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed != nil {
		sub.end(s.closed)
		return sub
	}
	for k := range s.outputs {
		if s.outputs[k].kept == nil {
			s.outputs[k].kept = newRetained(Kind(k))
		}
		sub.kept[k] = s.outputs[k].kept
	}
	sub.gate(len(s.tracks) == 0 || s.hasVideo())
	sub.mute = sub.held
	if opt.CatchUp {
		sub.held, sub.mute = sub.held && len(s.cache.bursts) == 0, false
	}
	sub.begin = s.outputs[Video].bursts + 1
	sub.index = len(s.subs)
	s.subs = append(s.subs, sub)
	return sub
}

func (s *Stream) hasVideo() bool {
	for _, t := range s.tracks {
		if t.Kind == Video {
			return true
		}
	}
	return false
}

// Next returns the next burst. It blocks until there is one. The error is ctx's,
// the one that the stream was closed with, or io.EOF after Close of the stream
// without one or of the subscription.
func (sub *Subscription) Next(ctx context.Context) (*Burst, error) {
	for {
		b, err := sub.Poll()
		if b != nil || err != nil {
			return b, err
		}
		select {
		case <-sub.wake:
		case <-ctx.Done():
			return nil, fmt.Errorf("next burst: %w", context.Cause(ctx))
		}
	}
}

// Poll is Next without waiting: if there is nothing yet, it returns neither burst
// nor error.
func (sub *Subscription) Poll() (*Burst, error) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	switch {
	case sub.ended != nil:
		return nil, sub.ended
	case sub.queue.len() > 0:
		b := sub.queue.pop()
		sub.bytes -= b.bytes
		return b, nil
	}
	return nil, nil
}

// SetViewers says how many viewers share the subscription: what it does not get
// is counted for each of them. It is one at first.
func (sub *Subscription) SetViewers(n int) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	sub.viewers = n
}

// Drop counts packets that the subscription got and that a viewer was not sent.
func (sub *Subscription) Drop(d Drops) {
	sub.stream.mu.Lock()
	defer sub.stream.mu.Unlock()
	sub.mu.Lock()
	defer sub.mu.Unlock()
	sub.dropped.add(d)
	sub.stream.meter.drops.add(d)
}

// Dropped returns how many packets this subscription did not get, by reason.
func (sub *Subscription) Dropped() Drops {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	return sub.dropped
}

// Close ends the subscription; Next returns io.EOF. A second Close has no
// effect.
func (sub *Subscription) Close() {
	s := sub.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := sub.index; i >= 0 {
		last := len(s.subs) - 1
		s.subs[i] = s.subs[last]
		s.subs[i].index = i
		s.subs[last] = nil
		s.subs = s.subs[:last]
		sub.index = -1
	}
	if len(s.subs) == 0 {
		for k := range s.outputs { // nobody will ask for what was sent
			s.outputs[k].kept = nil
		}
	}
	sub.end(io.EOF)
}

// push queues a burst. When the queue is full it drops the oldest: up to the
// newest keyframe that is queued, or all, and then waits for the next one.
// The caller holds stream.mu.
func (sub *Subscription) push(b *Burst) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if b.Keyframe {
		sub.held, sub.mute = false, false
	}
	if (b.Kind == Video && sub.held) || (b.Kind == Audio && sub.mute) {
		sub.drop(b, &sub.dropped.AwaitingKeyframe, &sub.stream.meter.drops.AwaitingKeyframe)
		return
	}
	if sub.full(b) && sub.queue.len() > 0 {
		sub.skip(b.Keyframe)
	}
	if (b.Kind == Video && sub.held) || sub.full(b) {
		if b.Kind == Video {
			sub.hold()
		}
		sub.drop(b, &sub.dropped.Overflow, &sub.stream.meter.drops.Overflow)
		return
	}
	sub.queue.push(b)
	sub.bytes += b.bytes
	sub.signal()
}

// full tells whether the burst has no room.
func (sub *Subscription) full(b *Burst) bool {
	return sub.queue.len() >= sub.maxBursts || sub.bytes+b.bytes > sub.maxBytes
}

// skip drops what is queued up to the newest keyframe, if that is not the
// oldest burst anyway; otherwise all. next tells that a keyframe is about to be
// queued.
func (sub *Subscription) skip(next bool) {
	keep := 0
	if !next {
		for i := sub.queue.len() - 1; i > 0 && keep == 0; i-- {
			if sub.queue.at(i).Keyframe {
				keep = sub.queue.len() - i
			}
		}
	}
	video := false
	for sub.queue.len() > keep {
		b := sub.queue.pop()
		sub.bytes -= b.bytes
		video = video || b.Kind == Video
		sub.drop(b, &sub.dropped.Overflow, &sub.stream.meter.drops.Overflow)
	}
	if video && keep == 0 && !next {
		sub.hold()
	}
}

// hold makes video wait for a keyframe, which the camera is asked for. The caller
// holds stream.mu.
func (sub *Subscription) hold() {
	sub.held = true
	sub.stream.keys.wanted()
}

// drop counts a burst that the subscription does not get, in its own counter
// and in the stream's.
func (sub *Subscription) drop(b *Burst, own, total *int64) {
	n := int64(len(b.Packets) * sub.viewers)
	*own += n
	*total += n
}

// gate makes video wait for a keyframe. If there is no video at all, nothing
// waits.
func (sub *Subscription) gate(video bool) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	sub.held = video
	sub.mute = sub.mute && video
}

func (sub *Subscription) end(err error) {
	sub.mu.Lock()
	defer sub.mu.Unlock()
	if sub.ended == nil {
		sub.ended = err
	}
	sub.queue, sub.bytes = ring{}, 0
	sub.signal()
}

// signal says that there is something to take.
func (sub *Subscription) signal() {
	signal(sub.wake)
	if sub.notify != nil {
		sub.notify()
	}
}

// ring is a queue of bursts that grows as needed.
type ring struct {
	buf         []*Burst // its length is a power of two
	head, count int
}

func (r *ring) len() int { return r.count }

// at returns the burst that i others are before.
func (r *ring) at(i int) *Burst { return r.buf[(r.head+i)&(len(r.buf)-1)] }

func (r *ring) push(b *Burst) {
	if r.count == len(r.buf) {
		grown := make([]*Burst, max(8, 2*len(r.buf)))
		for i := range r.count {
			grown[i] = r.at(i)
		}
		r.buf, r.head = grown, 0
	}
	r.buf[(r.head+r.count)&(len(r.buf)-1)] = b
	r.count++
}

func (r *ring) pop() *Burst {
	b := r.buf[r.head]
	r.buf[r.head] = nil
	r.head = (r.head + 1) & (len(r.buf) - 1)
	r.count--
	return b
}
