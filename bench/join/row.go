package join

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"fanlight/internal/viewertest"
)

// When a viewer that stays is compared with one that has watched for long.
const (
	compareAfter = 10 * time.Second
	compareFor   = 2 * time.Second
)

// outcome is one join.
type outcome struct {
	err error // there was no picture, for this reason

	answer, connect, packet, keyframe time.Duration // each from the one before; the first from the offer
	total                             time.Duration // from the offer to the whole keyframe

	stamped bool          // whether the picture was live is known
	live    time.Duration // from the offer; 0: it was not in time
	catchUp int           // pictures before the first that is live

	compared     bool
	later, shift time.Duration
}

// place is a camera and the viewer who has watched it for long.
type place struct {
	at        address
	reference *viewer
}

// row has viewers join cameras with one interval between keyframes.
func (b *bench) row(ctx context.Context, round int, interval time.Duration) (list []outcome, err error) {
	addresses, end, err := b.site.cameras(ctx, round, interval)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, end()) }()
	places, err := b.places(ctx, addresses)
	defer func() {
		for _, p := range places {
			if p.reference != nil {
				err = errors.Join(err, p.reference.leave(ctx))
			}
		}
	}()
	if err != nil {
		return nil, err
	}
	list = make([]outcome, b.cfg.Joins)
	turns := make(chan int)
	var workers, stayers sync.WaitGroup
	for range b.cfg.Parallel {
		workers.Go(func() {
			for i := range turns {
				b.one(ctx, places[rand.N(len(places))], interval, &list[i], b.stays(i), &stayers)
			}
		})
	}
	for i := range b.cfg.Joins {
		select {
		case turns <- i:
		case <-ctx.Done():
		}
	}
	close(turns)
	workers.Wait()
	stayers.Wait()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return list, nil
}

// stays tells whether a join is one of those that stay, which are spread evenly.
func (b *bench) stays(i int) bool {
	return b.cfg.Watch > 0 && i*b.cfg.Watch/b.cfg.Joins != (i+1)*b.cfg.Watch/b.cfg.Joins
}

// places gives each camera a viewer who watches it from a keyframe on.
func (b *bench) places(ctx context.Context, addresses []address) ([]place, error) {
	b.say("%d cameras are live; a viewer of each comes at a keyframe", len(addresses))
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	places, errs := make([]place, len(addresses)), make([]error, len(addresses))
	var work sync.WaitGroup
	for i, at := range addresses {
		work.Go(func() {
			places[i].at = at
			places[i].reference, errs[i] = b.reference(ctx, at)
		})
	}
	work.Wait()
	return places, errors.Join(errs...)
}

// reference returns a viewer that has joined right after a keyframe was sent,
// and has watched for a second: another tells it when.
func (b *bench) reference(ctx context.Context, at address) (_ *viewer, err error) {
	scout, err := newViewer(ctx, b.site, at, false)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, scout.leave(ctx)) }()
	v, err := newViewer(ctx, b.site, at, false)
	if err != nil {
		return nil, err
	}
	if err := scout.Play(ctx); err != nil {
		return v, err
	}
	// The first keyframe may be an old one, the next is not.
	fresh := func() bool {
		n := len(scout.pictures)
		return n > 1 && scout.pictures[n-1].Key
	}
	if err := scout.await(ctx, "a fresh keyframe", fresh); err != nil {
		return v, err
	}
	if err := v.Play(ctx); err != nil {
		return v, err
	}
	first, err := v.awaitPicture(ctx)
	if err != nil {
		return v, err
	}
	return v, sleep(ctx, time.Until(first.Arrival.Add(1100*time.Millisecond)))
}

// one is one join: it waits for a moment of its own, and writes what came of it
// before it returns; one that stays does later, in stayers.
func (b *bench) one(ctx context.Context, p place, interval time.Duration, o *outcome, stays bool, stayers *sync.WaitGroup) {
	ctx, cancel := context.WithTimeout(ctx, joinLimit+2*interval+compareAfter+compareFor)
	end := func(v *viewer) {
		if err := v.leave(ctx); err != nil && o.err == nil {
			o.err = err
		}
		cancel()
	}
	v, err := newViewer(ctx, b.site, p.at, b.cfg.Websocket)
	if err != nil {
		o.err = err
		cancel()
		return
	}
	if o.err = b.measure(ctx, v, p.reference, interval, o); o.err != nil || !stays {
		end(v)
		return
	}
	stayers.Go(func() {
		defer end(v)
		sent, _ := v.Times()
		from := sent.Add(compareAfter)
		to := from.Add(compareFor)
		if err := sleep(ctx, time.Until(to)); err != nil {
			return // it is not compared
		}
		pictures := v.snapshot()
		reference := p.reference.snapshot()
		o.later, o.compared = later(pictures, reference, from, to)
		if o.compared {
			o.shift = shift(pictures, reference, from)
		}
	})
}

// measure joins, and waits until the picture is live.
func (b *bench) measure(ctx context.Context, v, reference *viewer, interval time.Duration, o *outcome) error {
	if err := sleep(ctx, rand.N(time.Second)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, joinLimit+2*interval)
	defer cancel()
	if err := v.Play(ctx); err != nil {
		return err
	}
	first, err := v.awaitPicture(ctx)
	if err != nil {
		return err
	}
	sent, answered := v.Times()
	v.mu.Lock()
	o.split(sent, answered, v.connected, v.packet, first.Arrival)
	v.mu.Unlock()

	latency, period, ok := usual(reference.snapshot(), sent)
	if o.stamped = ok; !ok {
		return nil
	}
	var newest viewertest.Picture
	err = v.await(ctx, "the newest picture", func() (ok bool) {
		newest, o.catchUp, ok = live(v.pictures, latency+period)
		return ok
	})
	if err == nil {
		o.live = newest.Arrival.Sub(sent)
	}
	return nil // a picture that is late is a figure
}

// split notes the parts of a join. That the peer connection is up is told after
// it, and perhaps after the first packet.
func (o *outcome) split(sent, answered, connected, packet, keyframe time.Time) {
	if connected.IsZero() || connected.After(packet) {
		connected = packet
	}
	o.answer, o.connect = answered.Sub(sent), max(0, connected.Sub(answered))
	o.packet, o.keyframe = packet.Sub(connected), keyframe.Sub(packet)
	o.total = keyframe.Sub(sent)
}
