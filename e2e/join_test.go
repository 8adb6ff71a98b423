//go:build e2e

package e2e

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
)

//go:embed testdata/join.js
var joinScript string

// What TestJoin asks for, on a machine that has others to do. A viewer who waits
// for the next keyframe of a camera that has one every 4 s or 10 s has no picture
// so soon.
const (
	joinP95     = 2 * time.Second
	catchUpMost = time.Second           // from the first frame to the first that is live
	laterMost   = 60 * time.Millisecond // a frame, and one of the screen's
)

// joinsEnv is how many times each camera is begun to be watched, one camera after
// the other. Where it is not set, few times, and the cameras at the same time.
const joinsEnv = "E2E_JOINS"

// fewJoins is that. The last of them is looked at for longer.
const fewJoins = 2

// TestJoin begins to watch cameras that have a keyframe every 1, 4 and 10 s, and
// send none when they are asked: the picture is there at once whenever somebody
// clicks, is not played fast, and ten seconds later is as new as that of a player
// that began at a keyframe.
func TestJoin(t *testing.T) {
	intervals := []time.Duration{time.Second, 4 * time.Second, 10 * time.Second}
	joins, parallel := fewJoins, len(intervals)
	if given := os.Getenv(joinsEnv); given != "" {
		var err error
		if joins, err = strconv.Atoi(given); err != nil || joins < fewJoins {
			t.Fatalf("%s is %q, want %d at least", joinsEnv, given, fewJoins)
		}
		parallel = 1
	}
	cameras := make([]*simcam.Server, len(intervals))
	for i, interval := range intervals {
		cameras[i] = startSimcam(t, simcam.Config{Cameras: []string{"cam"}, KeyframeInterval: interval, Bitrate: 2_000_000, IgnorePLI: true})
	}
	s := upShipped(t)
	page := open(t, s.gateways[0]+"/")
	evaluate[any](t, page, strings.TrimSpace(joinScript))
	rows := make([]joinRow, len(intervals))
	turn := make(chan struct{}, parallel)
	var work sync.WaitGroup
	for i, interval := range intervals {
		work.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			t.Run(interval.String(), func(t *testing.T) {
				c := joinCamera{
					system: s, page: page, place: 2 * i, joins: joins,
					name: fmt.Sprintf("every-%ds", int(interval.Seconds())), interval: interval,
				}
				rows[i] = c.run(t, cameras[i])
			})
		})
	}
	work.Wait()
	t.Log(joinTable(t, rows))
}

// upShipped is up with the program that users have: one that looks for races is
// slow.
func upShipped(t *testing.T) *system {
	t.Helper()
	cmd := fanlight("up", "--data", filepath.Join(t.TempDir(), "data"), "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--media", "127.0.0.1:0", "--max-cpu", "100")
	cmd.Path, cmd.Args[0] = shipped, shipped
	p := start(t, "up", cmd)
	return &system{
		grpc: p.announced(t, "api"), gateways: []string{strings.TrimSuffix(p.announced(t, "page"), "/")}, processes: []*process{p},
	}
}

// joinRow is what was seen of one camera. Times in milliseconds.
type joinRow struct {
	interval time.Duration
	first    []float64  // from the click to the first frame in front
	reported []float64  // what the player says of that
	frames   []float64  // presented before the first that is live
	catchUp  []float64  // how long those were
	later    float64    // than at the player that began at a keyframe, after 10 s
	buffer   [2]float64 // from the last packet to the presentation, after 10 s: of that player, and of this
}

// joinCamera begins to watch a camera again and again.
type joinCamera struct {
	system   *system
	page     *tab
	place    int // of its first player on the page
	joins    int
	name     string
	interval time.Duration
}

func (c *joinCamera) run(t *testing.T, srv *simcam.Server) joinRow {
	t.Helper()
	s, page, name, interval := c.system, c.page, c.name, c.interval
	s.add(t, name, simCamera(srv, "cam"))
	s.awaitCamera(t, name, "STATE_LIVE", "")
	clock := followKeyframes(t, s, name, interval)

	// The player that the others are compared with begins right after a keyframe.
	first, late := name+" first", name+" late"
	clock.await(t, 20*time.Millisecond)
	page.join(t, first, c.place, name)
	page.awaitFrames(t, first, 25)

	row := joinRow{interval: interval}
	phases := clock.phases(c.joins-1, 0, 1)
	if c.joins == fewJoins { // early enough for the last, which comes in the same interval
		phases = clock.phases(1, 0.25, 0.6)
	}
	for len(phases) > 0 {
		slices.SortFunc(phases, func(a, b time.Duration) int { return clock.next(a).Compare(clock.next(b)) })
		c.join(t, &row, clock, phases[0], first, late)
		phases = phases[1:]
		page.left(t, late)
	}
	c.join(t, &row, clock, interval*8/10, first, late)
	eventually(t, picturePatience, "frames of 12 s", func() (bool, string) {
		j := page.joined(t, late)
		return j.Frames[len(j.Frames)-1].At > 12_000, j.String()
	})
	row.compare(t, page.joined(t, late), page.joined(t, first), 10_000)
	page.screenshot(t, "after.png")
	for _, p := range []string{late, first} {
		page.left(t, p)
	}
	s.cli(t, "camera", "delete", name)
	row.check(t, c.joins)
	return row
}

// join begins to watch so long after a keyframe, and takes what is seen.
func (c *joinCamera) join(t *testing.T, row *joinRow, clock *keyframes, after time.Duration, first, late string) {
	t.Helper()
	clock.await(t, after)
	c.page.join(t, late, c.place+1, c.name)
	c.page.awaitFrames(t, late, 15)
	eventually(t, picturePatience, "the player says how long it took", func() (bool, string) {
		return c.page.joined(t, late).Reported > 0, ""
	})
	row.add(t, c.page.joined(t, late), c.page.joined(t, first))
}

// add takes one join.
func (r *joinRow) add(t *testing.T, j, reference joined) {
	t.Helper()
	n := j.live(reference)
	if n < 0 {
		t.Errorf("none of %d frames is one of %d at the other player: %v and %v", len(j.Frames), len(reference.Frames), j, reference)
		return
	}
	r.first = append(r.first, j.Frames[0].Told)
	r.reported = append(r.reported, j.Reported)
	r.frames = append(r.frames, float64(n))
	r.catchUp = append(r.catchUp, j.Frames[n].At-j.Frames[0].At)
}

// compare takes the last join, from a time after it on.
func (r *joinRow) compare(t *testing.T, j, reference joined, after float64) {
	t.Helper()
	there := reference.byTimestamp()
	var later, here, other []float64
	for _, f := range j.Frames {
		g, ok := there[f.RTP]
		if f.At < after || !ok {
			continue
		}
		later = append(later, f.At+j.Origin-g.At-reference.Origin)
		here, other = append(here, f.At-f.Received), append(other, g.At-g.Received)
	}
	if len(later) < 25 {
		t.Errorf("after %v ms only %d frames were presented by both players", after, len(later))
		return
	}
	r.later, r.buffer = share(later, 0.5), [2]float64{share(other, 0.5), share(here, 0.5)}
}

func (r *joinRow) check(t *testing.T, joins int) {
	t.Helper()
	if p95 := share(r.first, 0.95); len(r.first) < joins || p95 > ms(joinP95) {
		t.Errorf("%d first frames, p95 after %.0f ms, want %d and %v at most", len(r.first), p95, joins, joinP95)
	}
	if most := share(r.catchUp, 1); most > ms(catchUpMost) {
		t.Errorf("the past was played for %.0f ms, want %v at most", most, catchUpMost)
	}
	if math.Abs(r.later) > ms(laterMost) {
		t.Errorf("10 s after the join the picture is %.0f ms later than that of a player that began at a keyframe, want %v at most", r.later, laterMost)
	}
	for i, first := range r.first {
		// Both are told by the browser, one after the other.
		if d := first - r.reported[i]; math.Abs(d) > 100 {
			t.Errorf("the first frame was there after %.0f ms, the player says %.0f", first, r.reported[i])
		}
	}
}

func joinTable(t *testing.T, rows []joinRow) string {
	t.Helper()
	var b strings.Builder
	b.WriteString("Chromium, from the click to the first frame in front:\n")
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	_, _ = fmt.Fprintln(w, "KEYFRAME EVERY\tJOINS\tP50 MS\tP95 MS\tMAX MS\tPLAYER SAYS P95\tFRAMES BEFORE LIVE (MAX)\tFOR MS (MAX)\tLATER AFTER 10 S, MS\tBUFFER MS (AT A KEYFRAME, NOT)")
	for _, r := range rows {
		_, _ = fmt.Fprintf(w, "%v\t%d\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.0f\t%.1f\t%.1f, %.1f\n", r.interval, len(r.first),
			share(r.first, 0.5), share(r.first, 0.95), share(r.first, 1), share(r.reported, 0.95), share(r.frames, 1), share(r.catchUp, 1), r.later, r.buffer[0], r.buffer[1])
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// joined is what a player that testdata/join.js added has presented. Times in
// milliseconds since it began, Origin of the page's clock.
type joined struct {
	Frames   []presented `json:"frames"`
	Reported float64     `json:"reported"` // first_frame_ms; 0: not yet
	States   []string    `json:"states"`
	Origin   float64     `json:"origin"`
}

// presented is one frame.
type presented struct {
	At       float64 `json:"at"`
	Told     float64 `json:"told"` // when the page was told; a first frame is put in front then
	RTP      uint32  `json:"rtp"`
	Received float64 `json:"received"` // its last packet
	Count    int     `json:"count"`    // frames presented by the element so far
}

func (j joined) String() string {
	if len(j.Frames) == 0 {
		return fmt.Sprintf("no frames, states %q", j.States)
	}
	first, last := j.Frames[0], j.Frames[len(j.Frames)-1]
	return fmt.Sprintf("%d frames from %.0f to %.0f ms with timestamps %d to %d, states %q", len(j.Frames), first.At, last.At, first.RTP, last.RTP, j.States)
}

func (j joined) byTimestamp() map[uint32]presented {
	m := make(map[uint32]presented, len(j.Frames))
	for _, f := range j.Frames {
		m[f.RTP] = f
	}
	return m
}

// live returns which frame is the first that the other player has presented too,
// and not long before: what is past has timestamps of its own, or comes late. -1:
// there is none.
func (j joined) live(reference joined) int {
	there := reference.byTimestamp()
	return slices.IndexFunc(j.Frames, func(f presented) bool {
		g, ok := there[f.RTP]
		return ok && f.At+j.Origin-g.At-reference.Origin < 2*ms(laterMost)
	})
}

// share returns the value that a share q of the values does not exceed; NaN of
// none.
func share(values []float64, q float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(values))
	return s[max(0, int(math.Ceil(q*float64(len(s))))-1)]
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func (tb *tab) join(t *testing.T, name string, index int, camera string) {
	t.Helper()
	args, err := json.Marshal([]any{name, index, camera})
	if err != nil {
		t.Fatal(err)
	}
	evaluate[any](t, tb, fmt.Sprintf("window.fanlightJoin(...%s).then(() => null)", args))
}

func (tb *tab) joined(t *testing.T, name string) joined {
	t.Helper()
	return evaluate[joined](t, tb, fmt.Sprintf("window.fanlightJoined(%q)", name))
}

func (tb *tab) left(t *testing.T, name string) {
	t.Helper()
	evaluate[any](t, tb, fmt.Sprintf("window.fanlightLeft(%q), null", name))
}

// awaitFrames waits until a player has presented so many frames.
func (tb *tab) awaitFrames(t *testing.T, name string, n int) {
	t.Helper()
	eventually(t, picturePatience, fmt.Sprintf("%d frames of %s", n, name), func() (bool, string) {
		j := tb.joined(t, name)
		return len(j.Frames) >= n, j.String()
	})
}

// keyframes tells when a camera has keyframes.
type keyframes struct {
	interval time.Duration

	mu   sync.Mutex // guards last
	last time.Time  // the latest that was seen; zero: none
}

// followKeyframes watches a camera by itself until the end of the test.
func followKeyframes(t *testing.T, s *system, camera string, interval time.Duration) *keyframes {
	t.Helper()
	k := &keyframes{interval: interval}
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	v, err := viewertest.PlayWHEP(ctx, client, s.whep(camera), "", viewertest.Config{
		Stamp: simcam.ParseTimestamp,
		OnPicture: func(p viewertest.Picture) {
			if p.Key {
				k.mu.Lock()
				k.last = p.Sent
				k.mu.Unlock()
			}
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, picturePatience, "a keyframe of "+camera, func() (bool, string) {
		return !k.seen().IsZero(), v.Report().String()
	})
	return k
}

func (k *keyframes) seen() time.Time {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.last
}

// phases returns so many times after a keyframe, one anywhere in each part of what
// is between two shares of the interval, so that all of it has its turn.
func (k *keyframes) phases(n int, from, to float64) []time.Duration {
	list := make([]time.Duration, n)
	for i := range list {
		at := from + (to-from)*(float64(i)+rand.Float64())/float64(n)
		list[i] = time.Duration(at * float64(k.interval))
	}
	return list
}

// next returns when a player must be made to begin so long after a keyframe: the
// page takes a while to prepare.
func (k *keyframes) next(after time.Duration) time.Time {
	const prepared = 300 * time.Millisecond // testdata/join.js
	at := k.seen().Add(after - prepared)
	for !at.After(time.Now()) {
		at = at.Add(k.interval)
	}
	return at
}

// await waits until then.
func (k *keyframes) await(t *testing.T, after time.Duration) {
	t.Helper()
	time.Sleep(time.Until(k.next(after)))
}
