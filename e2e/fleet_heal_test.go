//go:build e2e

package e2e

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fanlight/bench/failover"
)

// swapLimit is how long a planned move may stop a picture.
const swapLimit = 250 * time.Millisecond

// TestFleetHeals ends parts of a fleet under viewers, as "fanlight bench
// failover" does with more of them: whatever ends, nobody is left without a
// picture, and what is planned or does not concern the picture is not seen.
func TestFleetHeals(t *testing.T) {
	tests := []struct {
		mode  failover.Mode
		check func(t *testing.T, r failover.Result)
	}{
		{failover.Kill, func(t *testing.T, r failover.Result) {
			// One swap each, whenever it came.
			if r.Swaps != r.Viewers {
				t.Errorf("%d viewers swapped %d times, want once each", r.Viewers, r.Swaps)
			}
			if r.GapP50 < 50 {
				t.Errorf("a median gap of %v ms: was the node killed?", r.GapP50)
			}
		}},
		{failover.Drain, func(t *testing.T, r failover.Result) {
			if r.Swaps != r.Viewers {
				t.Errorf("%d viewers swapped %d times, want once each", r.Viewers, r.Swaps)
			}
			checkSmooth(t, r)
		}},
		{failover.Rolling, func(t *testing.T, r failover.Result) {
			// Each node's restart moves its viewers, each gateway's its own.
			if r.Swaps < r.Viewers || r.Reconnects == 0 {
				t.Errorf("%d swaps and %d reconnects of %d viewers: was everything restarted?", r.Swaps, r.Reconnects, r.Viewers)
			}
			checkSmooth(t, r)
		}},
		{failover.Outage, func(t *testing.T, r failover.Result) {
			if r.Swaps > 0 || r.Reconnects > 0 || r.FramesSkipped > 0 {
				t.Errorf("%d swaps, %d reconnects, %d frames skipped; want none", r.Swaps, r.Reconnects, r.FramesSkipped)
			}
			o := r.Outage
			if o.Repulled > 0 || o.Reassigned > 0 {
				t.Errorf("%d cameras were asked to play again, %d assigned anew", o.Repulled, o.Reassigned)
			}
			if o.NewViewers == 0 || o.NewLost > 0 {
				t.Errorf("%d of %d new viewers got no picture", o.NewLost, o.NewViewers)
			}
		}},
	}
	for _, tt := range tests {
		t.Run(string(tt.mode), func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
			defer cancel()
			res, err := failover.Run(ctx, failover.Config{
				Binary: shipped, Dir: filepath.Dir(artifact(t, "any")), Data: t.TempDir(), Env: []string{"GOTRACEBACK=all"},
				Mode: tt.mode, Cameras: 3, Viewers: 6, Nodes: 2, Outage: 6 * time.Second,
				Progress: func(line string) { t.Log(line) },
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%+v", res)
			if res.LostViewers > 0 {
				t.Errorf("%d viewers lost their picture", res.LostViewers)
			}
			tt.check(t, res)
			if t.Failed() {
				for _, s := range res.Steps {
					t.Logf("%s: %s", s.What, strings.TrimSpace(s.Slow))
				}
			}
		})
	}
}

// checkSmooth fails if a picture stood still for longer than a planned move may
// take, and than this machine, which runs the whole fleet, explains: what the viewers' process was kept from running, and what gaps there
// are when nothing happens.
func checkSmooth(t *testing.T, r failover.Result) {
	t.Helper()
	for _, s := range r.Steps {
		limit := float64(swapLimit.Milliseconds()) + s.Stall + r.QuietGapMax
		if s.GapMax > limit {
			t.Errorf("%s: a gap of %v ms, with a stall of %v ms and gaps of %v ms in quiet", s.What, s.GapMax, s.Stall, r.QuietGapMax)
		}
	}
}
