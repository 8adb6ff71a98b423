package soak

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
)

// What viewers do: times are averages.
const (
	stay     = 40 * time.Second
	away     = 3 * time.Second
	act      = 6 * time.Second // between changes of the picture's box
	hidden   = 5 * time.Second
	joinWait = 15 * time.Second // for a camera that is well: longer is a join that failed
	joinTry  = 4                // so often for one that is not
	settled  = 2 * time.Second  // after what the viewer did itself: gaps until then are not counted
	frozen   = 500 * time.Millisecond
)

// sizes are boxes of pictures: a wall's tile, a window, all of a screen.
var sizes = [][2]int{{160, 90}, {320, 180}, {480, 270}, {640, 360}, {1280, 720}, {1920, 1080}, {3840, 2160}}

// slot is one viewer after another.
type slot struct {
	// Static.
	bench  *bench
	random *rand.Rand // owned by run

	mu     sync.Mutex // guards the rest
	viewer *viewertest.Follower
	camera string
	own    []span    // in which what is seen does not count: it was hidden, or has just changed
	last   time.Time // the latest frame that has been counted; zero: none
	total  counts
}

// counts are of all viewers of a slot, since the sample before.
type counts struct {
	joins, failed, waited int // waited: for a camera that was lost
	boxes, hides          int
	frames, lost, freezes int // in time that counts
	latencies             []time.Duration
}

func (c *counts) add(o *counts) {
	c.joins, c.failed, c.waited = c.joins+o.joins, c.failed+o.failed, c.waited+o.waited
	c.boxes, c.hides = c.boxes+o.boxes, c.hides+o.hides
	c.frames, c.lost, c.freezes = c.frames+o.frames, c.lost+o.lost, c.freezes+o.freezes
	c.latencies = append(c.latencies, o.latencies...)
}

func newSlot(b *bench, i int) *slot {
	return &slot{bench: b, random: rand.New(rand.NewPCG(b.cfg.Seed, uint64(i)))}
}

// run watches and leaves until ctx ends.
func (s *slot) run(ctx context.Context) {
	for ctx.Err() == nil {
		if calm, _ := s.bench.gate.look(); !calm {
			s.bench.gate.pause(ctx, s.about(away))
		}
		if ctx.Err() == nil {
			s.watch(ctx)
		}
	}
}

// about returns a time that is as long on average.
func (s *slot) about(d time.Duration) time.Duration {
	return time.Duration(s.random.ExpFloat64()*float64(d)) / time.Duration(s.bench.cfg.hurry)
}

// watch is one viewer, from its coming to its leaving.
func (s *slot) watch(ctx context.Context) {
	name := camera(s.random.IntN(s.bench.cfg.Cameras))
	v, err := viewertest.NewFollower(viewertest.FollowerConfig{
		Log: s.bench.cfg.Log, Gateway: s.bench.server.gateway, Camera: name, Stamp: simcam.ParseTimestamp,
	})
	if err != nil {
		return // the configuration is this package's
	}
	ctx, leave := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { _ = v.Run(ctx) }) // its error is always nil
	defer work.Wait()
	defer leave()
	s.begin(v, name)
	defer s.end()
	if s.join(ctx, v, name) {
		s.play(ctx, v)
	}
}

func (s *slot) begin(v *viewertest.Follower, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.viewer, s.camera, s.own, s.last = v, name, nil, time.Time{}
}

// end counts what the viewer saw, and forgets it.
func (s *slot) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count(time.Now())
	s.viewer = nil
}

// dropLatencies has the next sample's begin now.
func (s *slot) dropLatencies() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.viewer != nil {
		s.count(time.Now())
	}
	s.total.latencies = nil
}

// take returns what has been counted since the last call, and whether there is
// a viewer who has a picture.
func (s *slot) take(now time.Time) (c counts, watching bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.viewer != nil {
		s.count(now)
		watching = now.Sub(s.last) < settled
	}
	c, s.total = s.total, counts{}
	return c, watching
}

// count counts what the viewer has seen until now. The caller holds mu.
func (s *slot) count(now time.Time) {
	for _, f := range s.viewer.Frames(s.last.Add(1), now) {
		if from := s.last; !from.IsZero() && !s.excused(from, f.At) {
			s.total.frames++
			s.total.lost += f.Skipped
			if f.At.Sub(from) > frozen {
				s.total.freezes++
			}
			if f.Latency > 0 {
				s.total.latencies = append(s.total.latencies, f.Latency)
			}
		}
		s.last = f.At
	}
	if !s.last.IsZero() && now.Sub(s.last) > settled && !s.excused(s.last, now) {
		s.total.freezes++
		s.last = now
	}
}

// excused tells whether what is seen in a span of time does not count. The caller
// holds mu.
func (s *slot) excused(from, to time.Time) bool {
	for _, o := range s.own {
		if o.meets(from, to) {
			return true
		}
	}
	return s.bench.cameras.disturbed(s.camera, from, to)
}

// join waits for the first picture.
func (s *slot) join(ctx context.Context, v *viewertest.Follower, name string) bool {
	began := time.Now()
	for range joinTry {
		wait, cancel := context.WithTimeout(ctx, joinWait)
		err := v.AwaitFrame(wait, began)
		cancel()
		now := time.Now()
		lost := s.bench.cameras.disturbed(name, began, now)
		s.mu.Lock()
		switch {
		case ctx.Err() != nil:
		case err == nil:
			s.total.joins++
			s.own = append(s.own, span{began, now.Add(settled)})
		case lost:
			s.total.waited++
		default:
			s.total.failed++
		}
		s.mu.Unlock()
		if err == nil || !lost || ctx.Err() != nil {
			return err == nil
		}
	}
	return false
}

// play changes the picture's box, and hides and shows it, for some time. While it
// is calm the viewer stays, and sees all of it.
func (s *slot) play(ctx context.Context, v *viewertest.Follower) {
	leave := time.Now().Add(s.about(stay))
	for ctx.Err() == nil {
		if calm, _ := s.bench.gate.look(); calm {
			s.resize(ctx, v, sizes[len(sizes)/2], true)
			s.bench.gate.hold(ctx)
			leave = time.Now().Add(s.about(stay))
			continue
		}
		if !time.Now().Before(leave) {
			return
		}
		s.bench.gate.pause(ctx, min(s.about(act), time.Until(leave)))
		if calm, _ := s.bench.gate.look(); calm || ctx.Err() != nil {
			continue
		}
		size := sizes[s.random.IntN(len(sizes))]
		if s.random.IntN(4) > 0 {
			s.resize(ctx, v, size, true)
			continue
		}
		s.resize(ctx, v, size, false)
		s.bench.gate.pause(ctx, s.about(hidden))
		s.resize(ctx, v, size, true)
	}
}

// resize sets the picture's box. What is seen of it until it has settled does not
// count, and all the time that it is hidden.
func (s *slot) resize(ctx context.Context, v *viewertest.Follower, size [2]int, visible bool) {
	now := time.Now()
	s.mu.Lock()
	if n := len(s.own); n > 0 && s.own[n-1].to.After(now.Add(time.Hour)) { // it was hidden
		s.own[n-1].to = now.Add(settled)
	}
	end := now.Add(settled)
	if !visible {
		end = now.Add(24 * time.Hour)
		s.total.hides++
	}
	s.total.boxes++
	s.own = append(s.own, span{now, end})
	s.mu.Unlock()
	v.SetViewport(ctx, size[0], size[1], visible)
}

// frames returns what the viewer that there is has seen.
func (s *slot) frames(from, to time.Time) []viewertest.Frame {
	s.mu.Lock()
	v := s.viewer
	s.mu.Unlock()
	if v == nil {
		return nil
	}
	return v.Frames(from, to)
}
