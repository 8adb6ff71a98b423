package session

import (
	"slices"
	"time"
)

// A session gets one of its camera's profiles at a time. Which one is decided from
// how large the picture is shown, what the path to the viewer carries, and what
// the camera has; by a pure function of those and of what was decided before, so
// that it does not flap.
const (
	// sizeShare is how large a profile must be, of the box that it is shown in.
	sizeShare = 0.85
	// growAfter and shrinkAfter are how long a box must have another size for the
	// profile to follow.
	growAfter   = 300 * time.Millisecond
	shrinkAfter = 3 * time.Second
	// hideAfter is how long nobody must have looked for nothing to be sent.
	hideAfter = time.Second

	// lossBad is the share of packets lost, before they are sent again, with which a
	// viewer gets less, if that lasts for badAfter; lossWorst that with which it gets
	// keyframes only, if there is no other profile.
	lossBad   = 0.10
	lossWorst = 0.25
	badAfter  = 3 * time.Second
	// lossGood is what must not be exceeded for cleanAfter for it to get more again;
	// for more than keyframes, lossBad is.
	lossGood   = 0.03
	cleanAfter = 10 * time.Second
	// relapse is how soon after it got more a bad path means that it was too early:
	// then the wait is doubled, up to cleanMost.
	relapse   = 20 * time.Second
	cleanMost = 3 * time.Minute
	// estimateShare is the share of a profile's bit rate that the path must be
	// estimated to carry. An estimate that grows says nothing yet: browsers begin
	// with what they got before, and add 8 % a second.
	estimateShare = 0.85

	// avoidFirst is how long a profile that failed is left alone if another will do;
	// it doubles up to avoidMost. One that is live again is taken back at once, unless
	// it was live for less than avoidFirst before it failed: then it must first be
	// live for that long, which doubles too.
	avoidFirst = 30 * time.Second
	avoidMost  = 5 * time.Minute

	// guessedWidth is that of a profile other than the first as long as it has not
	// been seen.
	guessedWidth = 640
)

// candidate is a profile as it is to be decided about.
type candidate struct {
	fits   bool // the viewer can take its codec, or it is not known yet
	failed bool // it cannot be pulled
	live   bool // it is being pulled
	width  int  // of the picture, in pixels; 0: unknown
	bps    int64
}

// sight is what is known of the viewer.
type sight struct {
	width   int  // of the box that the picture is shown in, in pixels; 0: unknown
	visible bool // somebody can see it

	loss      float64 // share of packets, by the latest report
	estimate  int64   // bits per second that the path carries, as the viewer says; 0: unknown
	exhausted bool    // it has asked for more again than it may have, lately
}

// choice is what a viewer is to get.
type choice struct {
	profile int
	paused  bool // nothing
	thin    bool // keyframes only
}

// steering decides. The zero value begins with the first profile.
type steering struct {
	choice choice
	begun  bool // a choice has been made

	size    int       // the profile that fits the box
	wider   bool      // what the box wants is a better one than that
	resized time.Time // since when it has wanted another; zero: it does not
	hidden  time.Time // since when nobody looks; zero: somebody does

	floor  int           // the path carries none better than this; len(profiles): keyframes only
	bad    time.Time     // since when the path has been bad; zero: it is not
	clean  time.Time     // since when it has been good; zero: it is not, or there is no more to have
	wait   time.Duration // how long it must be good
	least  int64         // what a too low estimate must exceed by a twentieth to be one that grows; 0: it is not too low
	raised time.Time     // when the viewer was given more, last; zero: the path has been bad since, or good for long

	trials   []trial // of the profiles
	nextLook time.Time
}

// trial is what is remembered of a profile's failures.
type trial struct {
	live     time.Time     // since when it has come; zero: it does not
	relapses int           // how often it failed soon after it had come, in a row
	relapsed time.Time     // the last time
	until    time.Time     // it is left alone before
	wait     time.Duration // how long it was, last; 0: it has come since
}

// decide returns the choice, and when to decide again if nothing changes; zero:
// there is no need.
func (s *steering) decide(now time.Time, profiles []candidate, v sight) (choice, time.Time) {
	if len(s.trials) != len(profiles) {
		s.trials = make([]trial, len(profiles))
	}
	// What is chosen changes what there is to wait for.
	for again := true; again; {
		before, floor := s.choice, s.floor
		s.step(now, profiles, v)
		again = s.choice != before || s.floor != floor
	}
	return s.choice, s.nextLook
}

// step decides once. It changes nothing twice at one time: each change begins a
// wait.
func (s *steering) step(now time.Time, profiles []candidate, v sight) {
	s.nextLook = time.Time{}
	usable := s.usable(now, profiles)
	s.fit(now, profiles, v)
	s.weigh(now, profiles, usable, v)
	if p := pick(usable, max(s.size, s.floor), s.choice.profile); p != s.choice.profile {
		s.choice.profile = p
		s.bad, s.least = time.Time{}, 0 // of the path's state with another one nothing is known
	}
	s.choice.thin = s.floor >= len(profiles)
	s.choice.paused = s.pause(now, v)
	s.begun = true
}

// at notes that something is to be decided at a time.
func (s *steering) at(t time.Time) {
	if s.nextLook.IsZero() || t.Before(s.nextLook) {
		s.nextLook = t
	}
}

// usable returns which profiles can be had; all that fit, if none can.
func (s *steering) usable(now time.Time, profiles []candidate) []bool {
	out := make([]bool, len(profiles))
	for i, p := range profiles {
		t := &s.trials[i]
		t.see(now, p, s.begun)
		avoid := now.Before(t.until)
		out[i] = p.fits && !p.failed && !avoid
		if p.fits && avoid {
			s.at(t.until)
		}
	}
	// Where there is no other, one that is to be left alone is better than one that
	// fails, and one that fails better than one that cannot be played.
	for _, will := range []func(candidate) bool{
		func(p candidate) bool { return p.fits && !p.failed },
		func(p candidate) bool { return p.fits },
	} {
		if slices.Contains(out, true) {
			break
		}
		for i, p := range profiles {
			out[i] = will(p)
		}
	}
	return out
}

// see notes how a profile does now. begun: it has been looked at before.
func (t *trial) see(now time.Time, p candidate, begun bool) {
	switch {
	case p.live && t.live.IsZero():
		t.live, t.until, t.wait = now, time.Time{}, 0
		if !begun {
			t.live = now.Add(-avoidFirst) // nobody has seen it fail
		}
		if t.relapses > 0 {
			// From the failure on: one that nobody takes is soon not pulled any longer,
			// and could not prove itself for as long.
			t.until = t.relapsed.Add(min(avoidFirst<<(t.relapses-1), avoidMost))
		}
	case p.live && t.relapses > 0 && now.Sub(t.relapsed) >= avoidMost:
		t.relapses = 0
	case !p.live && !t.live.IsZero():
		if p.failed && now.Sub(t.live) < avoidFirst { // or it is just not pulled any longer
			t.relapses, t.relapsed = min(t.relapses+1, 10), now
		}
		t.live = time.Time{}
	}
	if p.failed && !now.Before(t.until) {
		t.wait = min(max(avoidFirst, 2*t.wait), avoidMost)
		t.until = now.Add(t.wait)
	}
}

// pick returns the usable profile at or after want, else the nearest before it;
// if there is none, the current one.
func pick(usable []bool, want, current int) int {
	for i := want; i < len(usable); i++ {
		if usable[i] {
			return i
		}
	}
	for i := min(want, len(usable)) - 1; i >= 0; i-- {
		if usable[i] {
			return i
		}
	}
	return current
}

// fit follows the box that the picture is shown in: at once while there is no
// picture.
func (s *steering) fit(now time.Time, profiles []candidate, v sight) {
	if v.width <= 0 || !v.visible {
		s.resized = time.Time{}
		return
	}
	want := fitting(profiles, v.width)
	if want == s.size || !s.begun || s.choice.paused {
		s.size, s.resized = want, time.Time{}
		return
	}
	if wider := want < s.size; s.resized.IsZero() || wider != s.wider {
		s.resized, s.wider = now, wider
	}
	after := shrinkAfter
	if s.wider {
		after = growAfter
	}
	if now.Sub(s.resized) >= after {
		s.size, s.resized = want, time.Time{}
		return
	}
	s.at(s.resized.Add(after))
}

// fitting returns the last profile that is large enough for a box of a width.
func fitting(profiles []candidate, box int) int {
	for i := len(profiles) - 1; i > 0; i-- {
		width := profiles[i].width
		if width == 0 {
			width = guessedWidth
		}
		if profiles[i].fits && float64(width) >= sizeShare*float64(box) {
			return i
		}
	}
	return 0
}

// weigh follows the path to the viewer.
func (s *steering) weigh(now time.Time, profiles []candidate, usable []bool, v sight) {
	if s.wait == 0 || !s.raised.IsZero() && now.Sub(s.raised) >= cleanMost {
		s.wait, s.raised = cleanAfter, time.Time{}
	}
	if s.choice.paused {
		s.bad, s.clean, s.least = time.Time{}, time.Time{}, 0
		return
	}
	current := s.choice.profile
	lesser := current + 1 // that there is; len(profiles): none
	for lesser < len(profiles) && !usable[lesser] {
		lesser++
	}
	last, thin := lesser >= len(profiles), s.floor >= len(profiles)
	limit, good := lossBad, lossGood
	if last {
		limit = lossWorst
	}
	if thin {
		good = lossBad
	}
	narrow := !last && v.estimate > 0 && float64(v.estimate) < estimateShare*float64(profiles[current].bps)
	lossy := v.loss > limit || v.exhausted
	if s.grows(narrow, v.estimate) && !lossy {
		s.bad = time.Time{}
	}
	switch {
	case lossy || narrow:
		s.clean = time.Time{}
		if thin {
			return // there is no less
		}
		if s.bad.IsZero() {
			s.bad = now
		}
		if now.Sub(s.bad) < badAfter {
			s.at(s.bad.Add(badAfter))
			return
		}
		if !s.raised.IsZero() && now.Sub(s.raised) < relapse {
			s.wait = min(2*s.wait, cleanMost)
		}
		s.floor, s.bad, s.raised = lesser, time.Time{}, time.Time{}
	case v.loss > good:
		s.bad, s.clean = time.Time{}, time.Time{}
	default:
		s.bad = time.Time{}
		s.recover(now, usable, thin)
	}
}

// grows tells whether an estimate that is too low has grown.
func (s *steering) grows(low bool, estimate int64) bool {
	if !low {
		s.least = 0
		return false
	}
	if estimate <= s.least+s.least/20 {
		return false
	}
	s.least = estimate
	return true
}

// recover gives the viewer more when the path has been good for long enough.
func (s *steering) recover(now time.Time, usable []bool, thin bool) {
	if s.floor == 0 {
		s.clean = time.Time{}
		return
	}
	if s.clean.IsZero() {
		s.clean = now
	}
	if now.Sub(s.clean) < s.wait {
		s.at(s.clean.Add(s.wait))
		return
	}
	s.raised, s.clean = now, now
	if thin {
		s.floor = s.choice.profile
	} else {
		s.floor--
	}
	for s.floor > 0 && !usable[s.floor] {
		s.floor--
	}
}

// pause tells whether nothing is to be sent.
func (s *steering) pause(now time.Time, v sight) bool {
	switch {
	case v.visible:
		s.hidden = time.Time{}
		return false
	case !s.begun:
		s.hidden = now.Add(-hideAfter)
		return true
	case s.hidden.IsZero():
		s.hidden = now
	}
	if now.Sub(s.hidden) >= hideAfter {
		return true
	}
	s.at(s.hidden.Add(hideAfter))
	return s.choice.paused
}
