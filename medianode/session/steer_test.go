package session

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// helm steers with the time of the test. It decides when something changes and
// when the steering has asked for it, as a session does, and at no other time.
type helm struct {
	t        *testing.T
	steering steering
	now      time.Time
	next     time.Time
	profiles []candidate
	sight    sight
	choice   choice
	switches int // of profiles
}

// newHelm steers between a main profile of 1920 pixels and a sub profile of 640.
func newHelm(t *testing.T) *helm {
	return &helm{
		t: t, now: time.Unix(1_700_000_000, 0), sight: sight{visible: true},
		profiles: []candidate{{fits: true, live: true, width: 1920, bps: 4_000_000}, {fits: true, width: 640, bps: 500_000}},
	}
}

func (h *helm) decide() {
	h.t.Helper()
	before, begun := h.choice, h.steering.begun
	h.choice, h.next = h.steering.decide(h.now, h.profiles, h.sight)
	if begun && before.profile != h.choice.profile {
		h.switches++
	}
	if !h.next.IsZero() && !h.next.After(h.now) {
		h.t.Fatalf("it is to be decided again at once, for ever: %+v", h.steering)
	}
}

// set changes something, and decides.
func (h *helm) set(change func()) *helm {
	h.t.Helper()
	change()
	h.decide()
	return h
}

// pass lets time pass.
func (h *helm) pass(d time.Duration) *helm {
	h.t.Helper()
	end := h.now.Add(d)
	for !h.next.IsZero() && !h.next.After(end) {
		h.now = h.next
		h.decide()
	}
	h.now = end
	return h
}

// is checks the choice.
func (h *helm) is(what string, profile int, thin, paused bool) *helm {
	h.t.Helper()
	if want := (choice{profile, paused, thin}); h.choice != want {
		h.t.Fatalf("%s: %+v, want %+v; %+v", what, h.choice, want, h.steering)
	}
	return h
}

const tick = time.Millisecond

// The first choice fits the box at once.
func TestSteerFirst(t *testing.T) {
	for _, tt := range []struct {
		name         string
		box          int
		mainW, subW  int
		mainOK, subO bool
		want         int
	}{
		{"nothing known", 0, 0, 0, true, true, 0},
		{"no box", 0, 1920, 640, true, true, 0},
		{"small box", 320, 1920, 640, true, true, 1},
		{"a box as large as the sub profile", 640, 1920, 640, true, true, 1},
		{"a little larger", 752, 1920, 640, true, true, 1},
		{"larger", 754, 1920, 640, true, true, 0},
		{"huge", 3840, 1920, 640, true, true, 0},
		{"sizes unknown, small box", 640, 0, 0, true, true, 1},
		{"sizes unknown, large box", 1280, 0, 0, true, true, 0},
		{"sub profile is tiny", 320, 1920, 176, true, true, 0},
		{"main profile cannot be played", 1920, 1920, 640, false, true, 1},
		{"sub profile cannot be played", 320, 1920, 640, true, false, 0},
		{"a box that makes no sense", -5, 1920, 640, true, true, 0},
	} {
		h := newHelm(t)
		h.profiles[0].width, h.profiles[1].width = tt.mainW, tt.subW
		h.profiles[0].fits, h.profiles[1].fits = tt.mainOK, tt.subO
		h.set(func() { h.sight.width = tt.box }).is(tt.name, tt.want, false, false)
	}
}

// Of several that are large enough it is the smallest.
func TestSteerThree(t *testing.T) {
	h := newHelm(t)
	h.profiles = []candidate{{fits: true, width: 3840}, {fits: true, width: 1280}, {fits: true, width: 480}}
	for box, want := range map[int]int{300: 2, 564: 2, 566: 1, 1280: 1, 1600: 0} {
		h.steering = steering{}
		h.set(func() { h.sight.width = box }).is("box", want, false, false)
	}
	// What wants less and then more has not wanted more all the time.
	h.steering = steering{}
	h.set(func() { h.sight.width = 1280 }).is("middle", 1, false, false)
	h.set(func() { h.sight.width = 300 }).pass(shrinkAfter - 100*tick)
	h.set(func() { h.sight.width = 3000 }).pass(growAfter-tick).is("not yet", 1, false, false)
	h.pass(tick).is("grown", 0, false, false)
}

// A box must have its size for a while.
func TestSteerSize(t *testing.T) {
	h := newHelm(t)
	h.set(func() { h.sight.width = 320 }).is("small", 1, false, false)
	h.set(func() { h.sight.width = 1280 }).pass(growAfter-tick).is("just grown", 1, false, false)
	h.pass(tick).is("grown", 0, false, false)
	h.set(func() { h.sight.width = 320 }).pass(shrinkAfter-tick).is("just shrunk", 0, false, false)
	h.pass(tick).is("shrunk", 1, false, false)
	h.set(func() { h.sight.width = 0 }).pass(time.Minute).is("unknown again", 1, false, false)
	// What the profile turns out to be counts too.
	h.set(func() { h.sight.width = 600 }).pass(time.Minute).is("fits", 1, false, false)
	h.set(func() { h.profiles[1].width = 320 }).pass(growAfter).is("it has turned out to be smaller", 0, false, false)
	if !h.next.IsZero() {
		t.Errorf("there is nothing to wait for, and it is looked again at %v", h.next)
	}
}

// However a box flaps, the profile follows once in growAfter and shrinkAfter
// together at most: and not at all if no size lasts.
func TestSteerSizeFlaps(t *testing.T) {
	h := newHelm(t)
	h.set(func() { h.sight.width = 1280 })
	for i := range 600 {
		h.set(func() { h.sight.width = []int{320, 1280}[i%2] }).pass(100 * tick)
	}
	if h.switches != 0 || h.choice.profile != 0 {
		t.Errorf("%d switches while no size lasted", h.switches)
	}
	for seed := range uint64(50) {
		h, rnd := newHelm(t), rand.New(rand.NewPCG(seed, 1))
		h.set(func() { h.sight.width = 1280 })
		begun := h.now
		for h.now.Sub(begun) < 10*time.Minute {
			h.set(func() { h.sight.width = []int{320, 1280}[rnd.IntN(2)] }).pass(time.Duration(rnd.Int64N(int64(4 * time.Second))))
		}
		if most := 2 + 2*int(h.now.Sub(begun)/(growAfter+shrinkAfter)); h.switches > most || h.switches == 0 {
			t.Errorf("seed %d: %d switches in 10 minutes, at most %d", seed, h.switches, most)
		}
	}
}

// A lossy path gets the sub profile, and main again when it has been good; later
// each time that that was too early.
func TestSteerLoss(t *testing.T) {
	h := newHelm(t)
	loss := func(share float64) *helm { return h.set(func() { h.sight.loss = share }) }
	loss(0.09).pass(time.Minute).is("a little", 0, false, false)
	loss(0.11).pass(badAfter-tick).is("not for long", 0, false, false)
	loss(0.05).pass(time.Minute).is("over", 0, false, false)
	loss(0.11).pass(badAfter).is("lossy", 1, false, false)
	loss(0.20).pass(time.Minute).is("the last profile bears more", 1, false, false)
	loss(0.05).pass(time.Minute).is("not good yet", 1, false, false)
	loss(0).pass(cleanAfter-tick).is("not good for long", 1, false, false)
	h.pass(tick).is("good", 0, false, false)

	wait := cleanAfter
	for range 8 { // relapses
		loss(0.2).pass(badAfter).is("relapse", 1, false, false)
		wait = min(2*wait, cleanMost)
		loss(0).pass(wait-tick).is("held off", 1, false, false)
		h.pass(tick).is("let again", 0, false, false)
	}
	h.pass(cleanMost)
	loss(0.2).pass(badAfter).is("after a long good time", 1, false, false)
	loss(0).pass(cleanAfter).is("as at first", 0, false, false)
	h.pass(relapse)
	loss(0.2).pass(badAfter)
	loss(0).pass(cleanAfter).is("no relapse", 0, false, false)
}

// With the last profile and a still worse path it is keyframes, and back step by
// step.
func TestSteerThin(t *testing.T) {
	h := newHelm(t)
	h.set(func() { h.sight.loss = 0.5 }).pass(badAfter).is("lossy", 1, false, false)
	h.pass(badAfter).is("still", 1, true, false)
	h.pass(time.Hour).is("still", 1, true, false)
	if !h.next.IsZero() {
		t.Errorf("there is nothing to wait for, and it is looked again at %v", h.next)
	}
	h.set(func() { h.sight.loss = 0.09 }).pass(cleanAfter).is("better", 1, false, false)
	h.pass(time.Hour).is("not good enough for main", 1, false, false)
	h.set(func() { h.sight.loss = 0 }).pass(cleanAfter).is("good", 0, false, false)
}

// Without another profile it is keyframes only, of a path that is worse, or
// that asks for more than there is to send again.
func TestSteerOnlyOne(t *testing.T) {
	other := map[string]func(h *helm){
		"one profile":        func(h *helm) { h.profiles = h.profiles[:1] },
		"the other fails":    func(h *helm) { h.profiles[1].failed = true },
		"the other is H265":  func(h *helm) { h.profiles[1].fits = false },
		"no sizes, one left": func(h *helm) { h.profiles = []candidate{{fits: true}} },
	}
	for name, change := range other {
		h := newHelm(t)
		h.set(func() { change(h) })
		h.set(func() { h.sight.loss = 0.2 }).pass(time.Minute).is(name+": bearable", 0, false, false)
		h.set(func() { h.sight.loss = 0.3 }).pass(badAfter-tick).is(name+": not for long", 0, false, false)
		h.pass(tick).is(name+": unbearable", 0, true, false)
		h.set(func() { h.sight.loss = 0.2 }).pass(time.Minute).is(name+": not good yet", 0, true, false)
		h.set(func() { h.sight.loss = 0.05 }).pass(cleanAfter).is(name+": good", 0, false, false)
		h.pass(cleanMost)
		h.set(func() { h.sight.exhausted = true }).pass(badAfter).is(name+": spent", 0, true, false)
		h.set(func() { h.sight.exhausted = false }).pass(cleanAfter).is(name+": spent no more", 0, false, false)
		h.set(func() { h.sight.estimate = 1000 }).pass(time.Minute).is(name+": an estimate changes nothing", 0, false, false)
	}
}

// What the path is estimated to carry chooses, if there is a choice.
func TestSteerEstimate(t *testing.T) {
	h := newHelm(t)
	h.set(func() { h.sight.estimate = 3_500_000 }).pass(time.Minute).is("enough", 0, false, false)
	h.set(func() { h.sight.estimate = 3_000_000 }).pass(badAfter-tick).is("not for long", 0, false, false)
	h.set(func() { h.sight.estimate = 5_000_000 }).pass(time.Minute).is("over", 0, false, false)
	h.set(func() { h.sight.estimate = 3_000_000 }).pass(badAfter).is("too little", 1, false, false)
	// It cannot grow much while little is sent: main is tried again, and less often.
	h.pass(cleanAfter).is("tried", 0, false, false)
	h.pass(badAfter).is("in vain", 1, false, false)
	h.pass(2*cleanAfter-tick).is("held off", 1, false, false)
	h.set(func() { h.sight.estimate = 5_000_000 }).pass(tick).is("tried", 0, false, false)
	h.pass(time.Hour).is("carried", 0, false, false)
}

// An estimate that grows is waited for: a browser's is what it got of the sub
// profile at first, and half as much again.
func TestSteerEstimateGrows(t *testing.T) {
	h := newHelm(t)
	h.set(func() { h.sight.width, h.sight.estimate = 320, 760_000 }).is("small", 1, false, false)
	h.set(func() { h.sight.width = 1920 }).pass(growAfter).is("grown", 0, false, false)
	for h.sight.estimate < 4_000_000 {
		h.set(func() { h.sight.estimate += h.sight.estimate * 8 / 100 }).pass(time.Second).is("it grows", 0, false, false)
	}
	h.pass(time.Minute)
	// What swings below what is needed does not grow.
	for i := range 4 {
		h.set(func() { h.sight.estimate = 2_000_000 - int64(i%2)*150_000 }).pass(time.Second)
	}
	h.is("it swings", 1, false, false)
}

// A profile that fails is left for another, and taken back when it is live.
func TestSteerFailed(t *testing.T) {
	h := newHelm(t)
	state := func(failed, live bool) *helm {
		return h.set(func() { h.profiles[0].failed, h.profiles[0].live = failed, live })
	}
	state(false, true).is("live", 0, false, false)
	state(true, false).is("failed", 1, false, false)
	state(false, false).pass(avoidFirst-tick).is("it is tried", 1, false, false)
	state(true, false)
	state(false, false)
	state(false, true).is("live again", 0, false, false)

	// One that fails again and again must prove itself.
	h.pass(5 * time.Second)
	state(true, false).is("a relapse", 1, false, false)
	state(false, true).pass(avoidFirst-tick).is("live, but for how long", 1, false, false)
	h.pass(tick).is("for long", 0, false, false)
	h.pass(avoidMost)
	state(false, true)
	state(true, false).is("failed after a long time", 1, false, false)
	state(false, true).is("live again", 0, false, false)

	// Both fail: what there is is kept until one of them is back.
	h.pass(time.Hour)
	h.set(func() { h.profiles[1].failed = true })
	state(true, false).is("both failed", 0, false, false)
	h.set(func() { h.profiles[1].failed, h.profiles[1].live = false, true }).is("the sub profile is back", 1, false, false)
	state(false, true).is("both are back", 0, false, false)
}

// A camera that fails every few seconds does not take its viewers along each time.
func TestSteerFailureFlaps(t *testing.T) {
	h := newHelm(t)
	h.set(func() {})
	for i := range 600 {
		h.set(func() { h.profiles[0].failed, h.profiles[0].live = i%2 == 0, i%2 == 1 }).pass(time.Second)
	}
	if h.switches > 4 || h.choice.profile != 1 {
		t.Errorf("%d switches in 10 minutes of a camera that fails every 2 s, now with profile %d", h.switches, h.choice.profile)
	}
	h.set(func() { h.profiles[0].failed, h.profiles[0].live = false, true }).pass(avoidMost).is("it is live for good", 0, false, false)
}

// A profile that relapsed, and is not pulled while it is left alone, has its chance
// again when its time is over, and keeps it.
func TestSteerProbationWithoutPull(t *testing.T) {
	h := newHelm(t)
	sub := func(failed, live bool) *helm {
		return h.set(func() { h.profiles[1].failed, h.profiles[1].live = failed, live })
	}
	h.set(func() { h.sight.width = 320 }).is("small", 1, false, false)
	sub(false, true).pass(5 * time.Second)
	sub(true, false).is("a relapse", 0, false, false)
	sub(false, true).pass(10*time.Second).is("live, and to prove itself", 0, false, false)
	sub(false, false).pass(avoidFirst).is("not pulled any longer, tried again", 1, false, false)
	sub(false, true).pass(avoidMost).is("live for good", 1, false, false)
}

// A profile that nobody pulls is tried now and then, for nothing says that it is
// back.
func TestSteerTriesAgain(t *testing.T) {
	h := newHelm(t)
	h.set(func() { h.sight.width = 320 }).is("small", 1, false, false)
	for _, wait := range []time.Duration{avoidFirst, 2 * avoidFirst, 4 * avoidFirst, 8 * avoidFirst, avoidMost, avoidMost} {
		h.set(func() { h.profiles[1].failed = true }).is("failed", 0, false, false)
		h.set(func() { h.profiles[1].failed = false }).pass(wait-tick).is("left alone", 0, false, false)
		h.pass(tick).is("tried", 1, false, false)
	}
	h.set(func() { h.profiles[1].live = true }).pass(time.Hour).is("back", 1, false, false)
}

// That a profile is no longer pulled is no failure of it.
func TestSteerNotPulled(t *testing.T) {
	h := newHelm(t)
	h.set(func() { h.sight.width = 320 })
	for range 5 {
		h.set(func() { h.profiles[1].live = true }).pass(time.Second)
		h.set(func() { h.sight.width = 1280 }).pass(growAfter).is("grown", 0, false, false)
		h.set(func() { h.profiles[1].live = false }).pass(time.Second)
		h.set(func() { h.sight.width = 320 }).pass(shrinkAfter).is("shrunk", 1, false, false)
	}
	h.set(func() { h.profiles[1].live = true }).pass(time.Hour).is("live", 1, false, false)
}

// Nobody who does not look is sent anything.
func TestSteerHidden(t *testing.T) {
	h := newHelm(t)
	h.sight.visible = false
	h.set(func() { h.sight.width = 320 }).is("hidden from the start", 0, false, true)
	h.set(func() { h.sight.visible = true }).is("shown small", 1, false, false)
	h.set(func() { h.sight.visible = false }).pass(hideAfter-tick).is("just hidden", 1, false, false)
	h.set(func() { h.sight.visible = true }).pass(time.Minute).is("shown", 1, false, false)
	h.set(func() { h.sight.visible = false }).pass(hideAfter).is("hidden", 1, false, true)
	h.set(func() { h.sight.loss = 0.9 }).pass(time.Hour).is("of loss nothing is known", 1, false, true)
	h.set(func() { h.sight = sight{visible: true, width: 1920} }).is("shown large", 0, false, false)
	if h.switches != 2 {
		t.Errorf("%d switches, want 2", h.switches)
	}
}

// Whatever happens, the choice is a profile that there is, one that can be had if
// there is any, and it does not depend on when else it is decided.
func FuzzSteer(f *testing.F) {
	f.Add([]byte{2, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{1, 0, 255, 9, 100, 200, 3})
	f.Add([]byte{3, 7, 7, 7, 7, 31, 63, 127, 255, 254, 1})
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 40 {
		b := make([]byte, 200)
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, script []byte) {
		if len(script) == 0 || len(script) > 4000 {
			return
		}
		h := newHelm(t)
		h.profiles = make([]candidate, 1+int(script[0])%4)
		for i := range h.profiles {
			h.profiles[i].fits = true
		}
		for ; len(script) >= 3; script = script[3:] {
			op, at, by := script[0], int(script[1])%len(h.profiles), script[2]
			h.set(func() {
				p := &h.profiles[at]
				switch op % 8 {
				case 0:
					h.sight.width = int(by) * 16
				case 1:
					h.sight.visible = by%4 > 0
				case 2:
					h.sight.loss = float64(by) / 256
				case 3:
					h.sight.exhausted = by%2 > 0
				case 4:
					h.sight.estimate = int64(by) * 30_000
				case 5:
					p.fits = by%4 > 0
				case 6:
					p.failed, p.live = by%3 == 0, by%3 == 1
				case 7:
					p.width, p.bps = int(by)*10, int64(by)*20_000
				}
			})
			h.check()
			h.pass(time.Duration(op) * 40 * time.Millisecond)
			h.check()
		}
	})
}

func (h *helm) check() {
	h.t.Helper()
	c := h.choice
	if c.profile < 0 || c.profile >= len(h.profiles) {
		h.t.Fatalf("profile %d of %d", c.profile, len(h.profiles))
	}
	good := func(p candidate) bool { return p.fits && !p.failed }
	fits := func(p candidate) bool { return p.fits }
	if p := h.profiles[c.profile]; !good(p) && slices.ContainsFunc(h.profiles, good) || !p.fits && slices.ContainsFunc(h.profiles, fits) {
		h.t.Fatalf("profile %d cannot be had, of %+v", c.profile, h.profiles)
	}
	if c.paused && h.sight.visible {
		h.t.Fatal("paused though somebody looks")
	}
	if s := h.steering; s.floor < 0 || s.floor > len(h.profiles) || c.thin != (s.floor == len(h.profiles)) || s.wait < cleanAfter || s.wait > cleanMost {
		h.t.Fatalf("%+v", s)
	}
	again, next := h.steering.decide(h.now, h.profiles, h.sight)
	if again != c || !next.Equal(h.next) {
		h.t.Fatalf("decided again it is %+v until %v, not %+v until %v", again, next, c, h.next)
	}
}
