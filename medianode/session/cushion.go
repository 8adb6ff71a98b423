package session

import (
	"sync/atomic"
	"time"
)

// A picture is shown as soon as it can be, unless the viewer loses packets: what is
// lost takes a round trip to come again, and more if the wish or the packet is
// lost too. A browser that holds back nothing stands still then, and catches up
// by leaps. So a viewer that reports loss is told to hold pictures back for long
// enough, in the playout delay extension, and not to once it has reported none for a
// while.
const (
	// cushionLoss is the share of packets lost, in 256ths, that calls for it, in two
	// reports within cushionMemory.
	cushionLoss   = 2
	cushionMemory = 10 * time.Second
	// cushionClean is how long there must have been no loss.
	cushionClean = 20 * time.Second
	// cushionBase, and a round trip, is how long pictures are held back: three wishes
	// for a packet, which browsers repeat each 50 to 100 ms. cushionMost is the most,
	// and cushionSlack what a browser may add.
	cushionBase  = 200 * time.Millisecond
	cushionMost  = 600 * time.Millisecond
	cushionSlack = 750 * time.Millisecond
	// cushionSaid is how long a change is said with each picture; afterwards with
	// keyframes only.
	cushionSaid = 2 * time.Second
)

// cushion is for how long a viewer is to hold pictures back.
type cushion struct {
	delay atomic.Uint32 // as the extension has it: at least and at most, 12 bits each of 10 ms; 0: not at all

	// Owned by hearAll.
	lossy time.Time // when the viewer reported loss last; zero: not for long
}

// reported takes what a viewer reports.
func (c *cushion) reported(now time.Time, fraction uint8, roundTrip time.Duration) {
	if fraction >= cushionLoss {
		again := !c.lossy.IsZero() && now.Sub(c.lossy) < cushionMemory
		c.lossy = now
		if again || c.delay.Load() != 0 {
			c.set(roundTrip)
		}
		return
	}
	if now.Sub(c.lossy) > cushionClean {
		c.lossy = time.Time{}
		c.delay.Store(0)
	}
}

// set has pictures held back, for longer if the round trip is longer than it was.
func (c *cushion) set(roundTrip time.Duration) {
	const unit = 10 * time.Millisecond
	least := min(cushionBase+roundTrip, cushionMost)
	delay := uint32(least/unit)<<12 | uint32((least+cushionSlack)/unit)
	if old := c.delay.Load(); delay > old+uint32(5)<<12 || old == 0 {
		c.delay.Store(delay)
	}
}
