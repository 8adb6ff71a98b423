package session

import (
	"testing"
	"time"
)

// The cushion grows step by step while there is loss, to what a round trip asks
// for, stays for a while, and goes.
func TestCushion(t *testing.T) {
	var c cushion
	now := time.Unix(1e9, 0)
	report := func(times int, fraction uint8, roundTrip time.Duration) (least, most time.Duration) {
		for range times {
			now = now.Add(time.Second)
			c.reported(now, fraction, roundTrip)
		}
		d := c.delay.Load()
		return time.Duration(d>>12) * 10 * time.Millisecond, time.Duration(d&0xfff) * 10 * time.Millisecond
	}
	const ms = time.Millisecond
	for _, s := range []struct {
		what      string
		reports   int
		fraction  uint8
		roundTrip time.Duration
		want      time.Duration
	}{
		{"no loss", 30, 0, 0, 0},
		{"a lost packet", 1, 1, 0, 0},
		{"loss", 1, 3, 20 * ms, 80 * ms},
		{"more of it", 1, 20, 20 * ms, 160 * ms},
		{"for long", 10, 20, 20 * ms, 220 * ms},
		{"on a longer path", 10, 20, 120 * ms, 320 * ms},
		{"on a shorter one again", 10, 20, 20 * ms, 320 * ms},
		{"a clean while", 20, 0, 20 * ms, 320 * ms},
		{"a longer one", 1, 0, 20 * ms, 240 * ms},
		{"loss again", 1, 3, 20 * ms, 240 * ms},
		{"clean for long", 30, 0, 20 * ms, 0},
		{"on a very long path", 30, 30, 5 * time.Second, cushionMost},
	} {
		least, most := report(s.reports, s.fraction, s.roundTrip)
		if least != s.want || (s.want > 0 && most != s.want+cushionSlack) || (s.want == 0 && most != 0) {
			t.Errorf("%s: hold back %v to %v, want %v", s.what, least, most, s.want)
		}
	}
}
