package viewertest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// Packets are written as "sequence number, frame, marks": K a part of a
// keyframe, . the marker. A frame is 3,600 units of the RTP clock.
func TestAssembler(t *testing.T) {
	tests := []struct {
		name    string
		packets string
		want    string // the packets with which frames were complete: how many, how many were skipped before
		asked   string // what packets were asked for again
		lost    int
	}{
		{"a keyframe and what follows", "1 1 K, 2 1 K., 3 2 ., 4 3 , 5 3 .", "2:1 3:1 5:1", "", 0},
		{"nothing is shown before a keyframe", "1 1 ., 2 2 ., 3 3 K., 4 4 .", "3:1 4:1", "", 0},
		{"a keyframe whose marker is missing is not shown", "1 1 K, 2 2 ., 3 3 K.", "3:1", "", 0},
		{"reordered", "1 1 K., 3 2 ., 2 2 , 4 3 .", "1:1 2:1 4:1", "2", 0},
		{"two frames wait for one packet", "1 1 K., 3 2 ., 4 3 ., 2 2 ", "1:1 2:2", "2", 0},
		{"again", "1 1 K., 1 1 K., 2 2 ., 1 1 K.", "1:1 2:1", "", 0},
		{"lost: until the next keyframe", "1 1 K., 3 2 ., 4 3 . late, 5 4 ., 6 5 K., 7 6 .", "1:1 6:1 7:1", "2", 1},
		{"the beginning of a keyframe is lost", "1 1 K., 3 2 K, 4 2 . late, 5 3 ., 6 4 K.", "1:1 6:1", "2", 1},
		{"sequence numbers start over", "65535 1 K., 0 2 ., 1 3 .", "65535:1 0:1 1:1", "", 0},
		{"lost where they start over", "65534 1 K., 1 2 ., 2 3 K. late, 3 4 K.", "65534:1 2:1 3:1", "65535 0", 2},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			a := newAssembler()
			now := time.Now()
			var got, asked []string
			for s := range strings.SplitSeq(tt.packets, ", ") {
				var seq uint16
				var frame uint32
				if _, err := fmt.Sscan(s, &seq, &frame); err != nil {
					t.Fatal(err)
				}
				if strings.HasSuffix(s, " late") {
					now = now.Add(repairWait)
				}
				p := piece{timestamp: frame * 3600, marker: strings.Contains(s, "."), key: strings.Contains(s, "K")}
				done, missing, _ := a.add(seq, p, now)
				if len(done) > 0 {
					got = append(got, fmt.Sprintf("%d:%d", seq, len(done)))
				}
				for _, m := range missing {
					asked = append(asked, fmt.Sprint(m))
				}
			}
			if diff := cmp.Diff(tt.want, strings.Join(got, " ")); diff != "" {
				t.Errorf("frames (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.asked, strings.Join(asked, " ")); diff != "" {
				t.Errorf("asked for (-want +got):\n%s", diff)
			}
			if a.lost != tt.lost {
				t.Errorf("%d packets given up, want %d", a.lost, tt.lost)
			}
		})
	}
}

// Frames that are missing between others are seen by the timestamps, once it is
// known what is usual; a burst with narrow timestamps is no loss.
func TestAssemblerSkipped(t *testing.T) {
	a := newAssembler()
	at := uint32(1<<32 - 30*3600) // they start over
	seq := uint16(0)
	next := func(step uint32) int {
		t.Helper()
		seq++
		at += step
		done, _, _ := a.add(seq, piece{timestamp: at, marker: true, key: seq == 1}, time.Now())
		if len(done) != 1 {
			t.Fatalf("%d frames of one", len(done))
		}
		return done[0].skipped
	}
	skipped := 0
	for _, step := range []uint32{3600, 90, 90, 90} { // instant start
		skipped += next(step)
	}
	for range 50 {
		skipped += next(3600)
	}
	if skipped != 0 {
		t.Errorf("%d skipped of a regular stream", skipped)
	}
	if got := next(3 * 3600); got != 2 {
		t.Errorf("%d skipped, want 2", got)
	}
	if got := next(3590); got != 0 {
		t.Errorf("%d skipped by jitter", got)
	}
}

func TestSeries(t *testing.T) {
	base := time.Now()
	at := func(ms int) time.Time { return base.Add(time.Duration(ms) * time.Millisecond) }
	s := series{base: base}
	for _, ms := range []int{100, 140, 180, 500, 540, 580} {
		s.frame(at(ms), picture{skipped: ms / 500})
	}
	s.events = []Event{
		{at(50), EventWelcome, "", ""},
		{at(100), EventShown, "s1", ""},
		{at(300), EventWelcome, "", ""},
		{at(500), EventShown, "s2", ""},
		{at(510), EventLoss, "s2", ""},
	}
	tests := []struct {
		name     string
		from, to int
		frames   int
		longest  Gap
		swaps    int
		lost     bool
	}{
		{"all", 0, 600, 6, Gap{at(180), 320 * time.Millisecond}, 1, false},
		{"the gap began before", 200, 600, 3, Gap{at(180), 320 * time.Millisecond}, 1, false},
		{"the gap has not ended", 0, 400, 3, Gap{at(180), 220 * time.Millisecond}, 0, false},
		{"no frame any more", 0, 3000, 6, Gap{at(580), 2420 * time.Millisecond}, 1, true},
		{"no frame yet", 0, 90, 0, Gap{at(0), 90 * time.Millisecond}, 0, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := s.summary(at(tt.from), at(tt.to))
			if got.Frames != tt.frames || got.Longest.Length != tt.longest.Length || !got.Longest.Start.Equal(tt.longest.Start) ||
				got.Swaps != tt.swaps || got.Lost != tt.lost {
				t.Errorf("got %+v", got)
			}
		})
	}
	if got := s.summary(at(0), at(600)); got.Skipped != 3 || got.Reconnects != 1 || got.Losses != 1 || got.Usual != 40*time.Millisecond {
		t.Errorf("got %+v", got)
	}
}

func TestPause(t *testing.T) {
	var p pause
	var got []time.Duration
	most := func(d time.Duration) time.Duration { return d }
	for range 7 {
		got = append(got, p.next(most))
	}
	p.reset()
	got = append(got, p.next(most))
	s := time.Second
	want := []time.Duration{s / 2, s, 2 * s, 4 * s, 8 * s, 15 * s, 15 * s, s / 2}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("waits (-want +got):\n%s", diff)
	}
	for range 1000 {
		if d := jitter(time.Second); d < 0 || d > time.Second {
			t.Fatalf("a jitter of %v", d)
		}
	}
}
