package soak

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"fanlight/internal/simcam"
)

// How often a camera is lost, on average over all of them, for how long at
// most, and how long after that what is seen of it does not count: the node
// notices, waits for 30 s at most, and tries again.
const (
	lossEvery   = 12 * time.Second
	lossAtMost  = 8 * time.Second
	recovery    = 33 * time.Second
	keptSpans   = 64 // of a camera
	dropPercent = 40
)

// cameras loses cameras, and knows when.
type cameras struct {
	server *server
	random *rand.Rand    // owned by run
	hurry  time.Duration // times are divided by

	mu   sync.Mutex // guards the rest
	lost map[string][]span
	sum  int
}

// span is from one time to another.
type span struct{ from, to time.Time }

func (s span) meets(from, to time.Time) bool { return !s.from.After(to) && s.to.After(from) }

func newCameras(s *server, random *rand.Rand) *cameras {
	return &cameras{server: s, random: random, hurry: time.Duration(s.cfg.hurry), lost: make(map[string][]span)}
}

// run loses cameras until ctx ends, but not while it is calm.
func (c *cameras) run(ctx context.Context, g *gate) {
	for ctx.Err() == nil {
		if calm, _ := g.look(); calm {
			g.hold(ctx)
		}
		g.pause(ctx, time.Duration(c.random.ExpFloat64()*float64(lossEvery))/c.hurry)
		if calm, _ := g.look(); calm || ctx.Err() != nil {
			continue
		}
		c.lose()
	}
}

// lose loses one camera in one of the ways there are, for some time.
func (c *cameras) lose() {
	name := camera(c.random.IntN(c.server.cfg.Cameras))
	profiles := []string{"main", "sub"}
	switch c.random.IntN(3) { // one of the profiles, or the whole camera
	case 0:
		profiles = profiles[:1]
	case 1:
		profiles = profiles[1:]
	}
	faults := []simcam.Fault{simcam.Stop, simcam.Freeze, simcam.TimestampJump, simcam.SequenceJump, simcam.Busy}
	fault := simcam.Drop
	if c.random.IntN(100) >= dropPercent {
		fault = faults[c.random.IntN(len(faults))]
	}
	length := time.Duration(c.random.Int64N(int64(lossAtMost)))/c.hurry + time.Millisecond
	now := time.Now()
	c.mu.Lock()
	c.sum++
	c.lost[name] = append(c.lost[name], span{now, now.Add(length + recovery/c.hurry)})
	if extra := len(c.lost[name]) - keptSpans; extra > 0 {
		c.lost[name] = c.lost[name][extra:]
	}
	c.mu.Unlock()
	for _, p := range profiles {
		c.server.sims[p].SetFaultFor(name, fault, length)
	}
}

// disturbed tells whether a camera was lost, or may not have been back, at any
// time in a span.
func (c *cameras) disturbed(name string, from, to time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.lost[name] {
		if s.meets(from, to) {
			return true
		}
	}
	return false
}

// well tells whether no camera is lost, or may not be back yet.
func (c *cameras) well(now time.Time) bool {
	for i := range c.server.cfg.Cameras {
		if c.disturbed(camera(i), now, now) {
			return false
		}
	}
	return true
}

// losses returns how often cameras were lost.
func (c *cameras) losses() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.sum
}
