package session

import "time"

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
	// lossGood is what must not be exceeded for cleanAfter for it to get more again.
	lossGood   = 0.03
	cleanAfter = 10 * time.Second
	// relapse is how soon after it got more a bad path means that it was too early:
	// then the wait is doubled, up to cleanMost.
	relapse   = 20 * time.Second
	cleanMost = 3 * time.Minute
	// estimateShare is the share of a profile's bit rate that the path must be
	// estimated to carry.
	estimateShare = 0.85

	// avoidFirst is how long a profile that failed is left alone if another will do;
	// it doubles up to avoidMost.
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

	loss      float64 // share of packets, by the latest report; below 0: there has been none since
	estimate  int64   // bits per second that the path carries, as the viewer says; 0: unknown
	exhausted bool    // it asked for more again than it may have
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

	size     int       // the profile that fits the box
	resized  time.Time // when the box began to want another; zero: it does not
	hidden   time.Time // since when nobody looks; zero: somebody does
	floor    int       // the path carries none better than this
	bad      time.Time // since when the path has been bad; zero: it is not
	clean    time.Time // since when it has been good; zero: it is not
	wait     time.Duration
	raised   time.Time // when the viewer was given more, last
	avoid    []time.Time
	avoided  []time.Duration
	begun    bool
	nextLook time.Time
}

// decide returns the choice, and when to decide again if nothing changes; zero:
// there is no need.
func (s *steering) decide(now time.Time, profiles []candidate, v sight) (choice, time.Time) {
	s.nextLook = time.Time{}
	if len(s.avoid) != len(profiles) {
		s.avoid, s.avoided = make([]time.Time, len(profiles)), make([]time.Duration, len(profiles))
	}
	usable := s.usable(now, profiles)
	s.fit(now, profiles, v)
	s.weigh(now, profiles, v)
	s.choice.profile = pick(usable, max(s.size, s.floor), s.choice.profile)
	s.choice.thin = s.floor >= len(profiles)
	s.choice.paused = s.pause(now, v)
	s.begun = true
	return s.choice, s.nextLook
}

// at notes that something is to be decided at a time.
func (s *steering) at(t time.Time) {
	if s.nextLook.IsZero() || t.Before(s.nextLook) {
		s.nextLook = t
	}
}

// usable returns which profiles can be had.
func (s *steering) usable(now time.Time, profiles []candidate) []bool {
	out := make([]bool, len(profiles))
	for i, p := range profiles {
		switch {
		case p.failed && now.After(s.avoid[i]):
			s.avoided[i] = min(max(avoidFirst, 2*s.avoided[i]), avoidMost)
			s.avoid[i] = now.Add(s.avoided[i])
		case p.live:
			s.avoid[i], s.avoided[i] = time.Time{}, 0
		}
		avoid := now.Before(s.avoid[i])
		out[i] = p.fits && !p.failed && !avoid
		if p.fits && avoid {
			s.at(s.avoid[i])
		}
	}
	return out
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

// fit follows the box that the picture is shown in.
func (s *steering) fit(now time.Time, profiles []candidate, v sight) {
	if v.width == 0 || !v.visible {
		s.resized = time.Time{}
		return
	}
	want := 0
	for i := len(profiles) - 1; i > 0; i-- {
		width := profiles[i].width
		if width == 0 {
			width = guessedWidth
		}
		if profiles[i].fits && float64(width) >= sizeShare*float64(v.width) {
			want = i
			break
		}
	}
	if want == s.size {
		s.resized = time.Time{}
		return
	}
	if !s.begun {
		s.size = want
		return
	}
	if s.resized.IsZero() {
		s.resized = now
	}
	after := growAfter
	if want > s.size {
		after = shrinkAfter
	}
	if now.Sub(s.resized) >= after {
		s.size, s.resized = want, time.Time{}
		return
	}
	s.at(s.resized.Add(after))
}

// weigh follows the path to the viewer.
func (s *steering) weigh(now time.Time, profiles []candidate, v sight) {
	if s.wait == 0 {
		s.wait = cleanAfter
	}
	if s.choice.paused || v.loss < 0 {
		s.bad, s.clean = time.Time{}, time.Time{}
		return
	}
	current := s.choice.profile
	last := current >= len(profiles)-1
	limit := lossBad
	if last {
		limit = lossWorst
	}
	narrow := !last && v.estimate > 0 && float64(v.estimate) < estimateShare*float64(profiles[current].bps)
	switch {
	case v.loss > limit || v.exhausted || narrow:
		s.clean = time.Time{}
		if s.bad.IsZero() {
			s.bad = now
		}
		if s.floor >= len(profiles) {
			return // there is no less
		}
		if now.Sub(s.bad) < badAfter {
			s.at(s.bad.Add(badAfter))
			return
		}
		if !s.raised.IsZero() && now.Sub(s.raised) < relapse {
			s.wait = min(2*s.wait, cleanMost)
		}
		s.floor, s.bad = max(s.floor, current)+1, time.Time{}
	case v.loss <= lossGood:
		s.bad = time.Time{}
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
		s.floor--
		s.raised, s.clean = now, now
	default:
		s.bad, s.clean = time.Time{}, time.Time{}
	}
	if !s.raised.IsZero() && now.Sub(s.raised) >= cleanMost {
		s.wait, s.raised = cleanAfter, time.Time{}
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
