//go:build e2e && linux

package e2e

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"fanlight/internal/simcam"
)

// lossEnv asks TestLossTable for the whole table, at the length of a row that it
// says ("30s"), of the program as it is shipped. "make loss" sets it.
const lossEnv = "E2E_LOSS"

// lossRow is one row of the table: what the network does, both ways.
type lossRow struct {
	percent       float64
	delay, jitter time.Duration
}

func (r lossRow) String() string {
	if r.delay == 0 {
		return fmt.Sprintf("%v %%", r.percent)
	}
	return fmt.Sprintf("%v %%, %v and 0 to %v", r.percent, r.delay, r.jitter)
}

// far is the delay of a network that is not near, one way.
const far, unsteady = 50 * time.Millisecond, 10 * time.Millisecond

// TestLossTable plays a camera of 2 Mbit/s in Chromium behind networks that lose
// and delay packets in both directions, a row each, and prints what became of the
// picture. Nobody sees a loss of 1 %; with 5 % the picture stands still for less
// than a hundredth of the time.
func TestLossTable(t *testing.T) {
	rows, watch := []lossRow{{percent: 1}, {5, far, unsteady}}, 8*time.Second
	if length := os.Getenv(lossEnv); length != "" {
		var err error
		if watch, err = time.ParseDuration(length); err != nil || watch < time.Second {
			t.Fatalf("%s=%q: must be the length of a row, such as 30s", lossEnv, length)
		}
		rows = nil
		for _, d := range []time.Duration{0, far} {
			for _, percent := range []float64{0, 1, 5, 10} {
				row := lossRow{percent: percent, delay: d}
				if d > 0 {
					row.jitter = unsteady
				}
				rows = append(rows, row)
			}
		}
	}
	if !inOwnNetwork(t, 2*time.Minute+time.Duration(len(rows))*(watch+20*time.Second), os.Getenv(lossEnv) != "") {
		return
	}
	s, _, wire := lossy(t)
	s.add(t, "hall", simCamera(startSimcam(t, simcam.Config{
		Addr: wire.camera, Cameras: []string{"cam"}, Bitrate: 2_000_000, KeyframeInterval: 2 * time.Second,
	}), "cam"))
	s.awaitCamera(t, "hall", "STATE_LIVE", "")
	w := newWeather(t, wire.from)
	page := open(t, s.gateways[0]+"/healthz")
	var table strings.Builder
	fmt.Fprintf(&table, "| loss both ways, delay one way | frames decoded | dropped | freezes | time frozen | packets lost | NACKs | packets sent again | PLIs |\n|%s\n", strings.Repeat("---|", 9))
	for _, row := range rows {
		got := playInWeather(t, s, page, w, row, watch)
		fmt.Fprintf(&table, "| %v | %.2f %% | %d | %d | %.2f %% | %d | %d | %d | %d |\n",
			row, got.decoded, got.dropped, got.freezes, got.frozen, got.lost, got.nacks, got.again, got.plis)
		got.check(t, row)
	}
	t.Logf("the table, %v a row:\n%s", watch, table.String())
}

// seen is what became of a picture in one row.
type seen struct {
	decoded          float64 // of the frames that were sent, in percent
	frozen           float64 // of the time, in percent
	dropped, freezes int
	lost, nacks      int
	again, plis      int
}

// playInWeather plays the camera anew: in fine weather until there is a picture,
// then in that of the row.
func playInWeather(t *testing.T, s *system, page *tab, w *weather, row lossRow, watch time.Duration) seen {
	t.Helper()
	w.set(0, row.delay, row.jitter)
	page.playWHEP(t, s.whep("hall"), "udp")
	page.awaitReceived(t, "a picture", func(r received) bool { return r.Video.Decoded > 25 && r.Shown > 0 })
	w.set(row.percent, row.delay, row.jitter)
	time.Sleep(2 * time.Second)
	before, frozenBefore := page.received(t), page.frozen(t)
	began := time.Now()
	time.Sleep(watch)
	after, frozenAfter := page.received(t), page.frozen(t)
	took := time.Since(began)
	w.set(0, 0, 0)
	evaluate[any](t, page, "window.whep.leave().then(() => null)")
	a, b := before.Video, after.Video
	sent := int(after.Shown-before.Shown) / frameTicks
	if least := int(watch.Seconds()) * 25 * 8 / 10; sent < least {
		t.Errorf("%v: %d frames were shown or skipped in %v, want %d at least", row, sent, watch, least)
	}
	t.Logf("%v: %v", row, after)
	return seen{
		decoded: 100 * float64(b.Decoded-a.Decoded) / float64(max(1, sent)), frozen: 100 * (frozenAfter - frozenBefore) / took.Seconds(),
		dropped: b.Dropped - a.Dropped, freezes: b.Freezes - a.Freezes,
		lost: b.Lost - a.Lost, nacks: b.NACKs - a.NACKs, again: b.Retransmitted - a.Retransmitted, plis: b.PLIs - a.PLIs,
	}
}

// frozen returns for how many seconds the picture has stood still, as the browser
// counts it.
func (tb *tab) frozen(t *testing.T) float64 {
	t.Helper()
	return evaluate[float64](t, tb, "window.whep.stats().then((s) => s.video.totalFreezesDuration ?? 0)")
}

// check compares a row of the whole table with what is aimed at. A short row says
// that packets come again: a freeze in it may be the machine's, which does other
// things.
func (s seen) check(t *testing.T, row lossRow) {
	t.Helper()
	if row.percent > 0 && (s.nacks == 0 || s.again == 0) {
		t.Errorf("%v: %d NACKs, %d packets came again", row, s.nacks, s.again)
	}
	if s.decoded < 90 {
		t.Errorf("%v: %.2f %% of the frames were decoded", row, s.decoded)
	}
	if os.Getenv(lossEnv) == "" {
		return
	}
	switch {
	case row.percent <= 1 && s.freezes > 0:
		t.Errorf("%v: %d freezes, want none", row, s.freezes)
	case row.percent <= 5 && s.frozen >= 1:
		t.Errorf("%v: the picture stood still for %.2f %% of the time, want less than 1 %%", row, s.frozen)
	}
}
