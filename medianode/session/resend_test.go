package session

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/pion/rtcp"
)

// The budget is what a viewer may have missed at once, then a quarter of what was
// sent and 50 packets of 1,000 bytes a second.
func TestResendBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const size, roundTrip = 1000, 20 * time.Millisecond
		var r resends
		var sent, own uint64
		began := time.Now()
		resend := func(what string, packets, want int) {
			t.Helper()
			passed := 0
			for range packets {
				own++
				now := time.Now()
				if r.pay(7, own, size, sent, now, now.Sub(began), roundTrip) {
					passed++
				}
			}
			if passed != want {
				t.Errorf("%s: %d of %d packets were sent again, want %d", what, passed, packets, want)
			}
		}
		resend("all at once", 600, resendBurst/size)
		time.Sleep(time.Second)
		resend("a second later", 100, 50)
		sent += 400 * size
		resend("a quarter of 400", 200, 100)
		sent += 1_000_000 * size
		time.Sleep(time.Hour)
		resend("no more than that, ever", 600, resendBurst/size)
		time.Sleep(2 * time.Second)
		first := own
		resend("two seconds later", 100, 100)
		own = first
		time.Sleep(2 * time.Second)
		resend("again, with less than half the budget", 100, 0)
		time.Sleep(10 * time.Second)
		own = first
		resend("again, with all of it", 10, 10)
		own = first
		time.Sleep(roundTrip)
		resend("before anybody could have missed them", 10, 0)
		own = first
		time.Sleep(2 * resendPause)
		resend("once more", 10, 10)
	})
}

// One datagram's lists are cut where they ask for more than is looked for.
func TestShorten(t *testing.T) {
	list := func(pairs int) []rtcp.NackPair {
		var out []rtcp.NackPair
		for i := range pairs {
			out = append(out, rtcp.NackPair{PacketID: uint16(20 * i), LostPackets: 0x1ff}) // 10 packets
		}
		return out
	}
	left := maxNacked
	for _, step := range []struct{ pairs, kept, refused int }{{30, 30, 0}, {40, 21, 190}, {1, 0, 10}} {
		kept, rest, asked, refused := shorten(list(step.pairs), left)
		if len(kept) != step.kept || asked != 10*step.pairs || refused != step.refused {
			t.Errorf("of %d pairs %d are left, %d packets asked for and %d refused; want %d, %d, %d",
				step.pairs, len(kept), asked, refused, step.kept, 10*step.pairs, step.refused)
		}
		left = rest
	}
}
