package stream

import "time"

// How much is kept of what followed the last keyframe, if Config does not say.
const (
	DefaultCacheBytes = 8 << 20
	DefaultCacheTime  = 15 * time.Second
)

// What a packet and a burst take besides the payload, about.
const (
	packetBytes = 200
	burstBytes  = 150
)

// cache is what came since the last keyframe, for those who begin to watch in
// between. It is kept whether or not anybody watches. When it would be too much,
// nothing is kept until the next keyframe: a part of it is of no use. Guarded by
// Stream.mu.
type cache struct {
	maxBytes int
	maxTime  time.Duration

	bursts []*Burst // of video; what was handed out is not changed
	bytes  int      // of payload, and of what it takes to keep it
}

func newCache(maxBytes int, maxTime time.Duration) cache {
	if maxBytes == 0 {
		maxBytes = DefaultCacheBytes
	}
	if maxTime <= 0 {
		maxTime = DefaultCacheTime
	}
	return cache{maxBytes: maxBytes, maxTime: maxTime}
}

// on tells whether anything is kept at all.
func (c *cache) on() bool { return c.maxBytes > 0 }

// put takes the next burst of video.
func (c *cache) put(b *Burst) {
	switch {
	case !c.on():
		return
	case b.Keyframe:
		c.bursts, c.bytes = make([]*Burst, 0, max(64, len(c.bursts))), 0
	case len(c.bursts) == 0:
		return
	}
	size := b.bytes + len(b.Packets)*packetBytes + burstBytes
	if c.bytes+size > c.maxBytes || len(c.bursts) > 0 && b.Arrival.Sub(c.bursts[0].Arrival) > c.maxTime {
		c.drop()
		return
	}
	c.bursts = append(c.bursts, b)
	c.bytes += size
}

// drop forgets everything.
func (c *cache) drop() { c.bursts, c.bytes = nil, 0 }

// Recent returns the bursts of video from the last keyframe on, for a viewer who
// begins in between; none if that is too long ago, or too much came since. They
// are shared and must not be changed. Their Seq goes up by one from burst to
// burst, and goes on in what Poll returns.
func (sub *Subscription) Recent() []*Burst {
	s := sub.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.cache.bursts)
	return s.cache.bursts[:n:n]
}

// Begin returns the Seq of the first burst of video that the subscription could
// get: what is in Recent before it came before the subscription.
func (sub *Subscription) Begin() uint64 { return sub.begin }
