package rpc

import (
	"context"
	"math/rand/v2"
	"time"
)

// Backoff spaces retries: exponential with full jitter, so that many callers
// that failed together do not come back together. The zero value is ready to
// use. Not for concurrent use.
type Backoff struct {
	Min time.Duration // upper bound of the first wait; 0: 100 ms
	Max time.Duration // upper bound of every wait; 0: 5 s

	next time.Duration // upper bound of the next wait; 0: Min
}

// Next returns how long to wait before the next attempt: at random between 0
// and an upper bound that doubles with each call up to Max.
func (b *Backoff) Next() time.Duration {
	least, most := b.Min, b.Max
	if least <= 0 {
		least = 100 * time.Millisecond
	}
	if most <= 0 {
		most = 5 * time.Second
	}
	most = max(least, most)
	bound := min(max(b.next, least), most)
	b.next = most
	if bound <= most/2 {
		b.next = 2 * bound
	}
	return rand.N(bound) + 1
}

// Reset makes the next wait short again. Call it after a success.
func (b *Backoff) Reset() { b.next = 0 }

// Sleep waits for Next, or until ctx ends, whose error it then returns.
func (b *Backoff) Sleep(ctx context.Context) error {
	t := time.NewTimer(b.Next())
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
