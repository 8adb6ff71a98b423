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
	// cushionLoss is the share of packets lost, in 256ths of a report, that calls for
	// it.
	cushionLoss = 2
	// cushionClean is how long there must have been no loss for it to go again.
	cushionClean = 20 * time.Second
	// cushionBase, and a round trip, is how long pictures are held back in the end:
	// three wishes for a packet, which browsers repeat each 50 to 100 ms. cushionMost
	// is the most, and cushionSlack what a browser may add.
	cushionBase  = 200 * time.Millisecond
	cushionMost  = 600 * time.Millisecond
	cushionSlack = 750 * time.Millisecond
	// cushionStep is how much it grows with each report, some one a second: all of it
	// at once would be a picture that stands still.
	cushionStep = 80 * time.Millisecond
	// cushionSaid is how long a change is said with each picture; afterwards with
	// keyframes only.
	cushionSaid = 2 * time.Second
)

// cushion is for how long a viewer is to hold pictures back.
type cushion struct {
	delay atomic.Uint32 // as the extension has it: at least and at most, 12 bits each of 10 ms; 0: not at all

	// Owned by hearAll.
	lossy time.Time     // when the viewer reported loss last
	least time.Duration // of delay
}

// reported takes what a viewer reports.
func (c *cushion) reported(now time.Time, fraction uint8, roundTrip time.Duration) {
	const unit = 10 * time.Millisecond
	switch least := min(cushionBase+roundTrip, cushionMost); {
	case fraction >= cushionLoss:
		c.lossy = now
		c.least = max(c.least, min(c.least+cushionStep, least))
	case now.Sub(c.lossy) > cushionClean:
		c.least = max(c.least-cushionStep, 0)
	}
	if c.least == 0 {
		c.delay.Store(0)
		return
	}
	c.delay.Store(uint32(c.least/unit)<<12 | uint32((c.least+cushionSlack)/unit))
}
