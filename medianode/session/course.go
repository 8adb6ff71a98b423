package session

import (
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// course is which profile a session's viewer gets: what is decided about it, and
// what of that has been done.
type course struct {
	// Static after newCourse.
	review chan struct{} // holds a token when there may be something to decide; never closed

	// Owned by Open, and then by Run.
	steering  steering
	camera    fleet.CameraStatus
	choice    choice
	connected bool
	spent     uint64    // counts.spent when it was looked at last
	spentAt   time.Time // when that was seen to have grown, last
	told      *Status

	taken     atomic.Int32 // index of the profile that the viewer gets, and one; 0: none yet
	unsettled atomic.Bool  // reports of a good path matter too

	mu       sync.Mutex // guards the rest
	viewport *Viewport
	holds    map[int]func()
}

// spentFor is how long a viewer counts as asking for too much after it was refused
// for want of budget: for the next second's reports.
const spentFor = 1500 * time.Millisecond

func newCourse(cfg OpenConfig) course {
	return course{review: make(chan struct{}, 1), viewport: cfg.Viewport, holds: make(map[int]func())}
}

// look has Run decide anew.
func (c *course) look() { signal(c.review) }

// reported is told which share of packets the viewer lost, in 256ths.
func (c *course) reported(fraction uint8) {
	if c.unsettled.Load() || float64(fraction) > lossGood*256 {
		c.look()
	}
}

// SetViewport says how the picture is shown now.
func (s *Session) SetViewport(v Viewport) {
	s.course.mu.Lock()
	s.course.viewport = &v
	s.course.mu.Unlock()
	s.course.look()
}

// sight returns what is known of the viewer.
func (s *Session) sight(now time.Time) sight {
	out := sight{visible: true, loss: float64(s.feedback.fraction.Load()) / 256, estimate: s.feedback.estimate.Load()}
	if spent := s.counts.spent.Load(); spent != s.course.spent {
		s.course.spent, s.course.spentAt = spent, now
	}
	out.exhausted = !s.course.spentAt.IsZero() && now.Sub(s.course.spentAt) < spentFor
	s.course.mu.Lock()
	defer s.course.mu.Unlock()
	if v := s.course.viewport; v != nil {
		out.width, out.visible = v.Width, v.Visible
	}
	return out
}

// candidates returns the camera's profiles as they are now.
func (s *Session) candidates(plan *plan) []candidate {
	out := make([]candidate, len(s.cfg.Profiles))
	for i, p := range s.cfg.Profiles {
		video := trackOf(p.Stream.Tracks(), stream.Video)
		out[i].fits = !p.Stream.Closed() && (video == nil || plan.takes(video.Codec) && p.Stream.BFrames() != fleet.BFramesReferenced)
		if len(out) > 1 {
			stats := p.Stream.Stats()
			out[i].width, out[i].bps = stats.Width, stats.BitrateBPS
		}
		for _, status := range s.course.camera.Profiles {
			if status.ID == p.ID {
				out[i].failed, out[i].live = status.State == fleet.CameraFailed, status.State == fleet.CameraLive
			}
		}
	}
	return out
}

// unplayable is the error of a camera that has no profile which the viewer can
// take; nil: there is one.
func (s *Session) unplayable(profiles []candidate) error {
	if slices.ContainsFunc(profiles, func(p candidate) bool { return p.fits }) {
		return nil
	}
	if !slices.ContainsFunc(s.cfg.Profiles, func(p Profile) bool { return !p.Stream.Closed() }) {
		return nil // the camera was let go: the board says why
	}
	var sends []stream.Track
	for _, p := range s.cfg.Profiles {
		if p.Stream.BFrames() == fleet.BFramesReferenced {
			return stream.ErrBFrames
		}
		if video := trackOf(p.Stream.Tracks(), stream.Video); video != nil {
			sends = append(sends, *video)
		}
	}
	return codecUnsupported(sends, s.offered)
}

// steer decides what the viewer gets, and has it so. The error is that there is
// nothing which it could get.
func (s *Session) steer(timer *time.Timer) error {
	now, c := time.Now(), &s.course
	profiles := s.candidates(s.plan)
	if err := s.unplayable(profiles); err != nil {
		return err
	}
	chosen, next := c.steering.decide(now, profiles, s.sight(now))
	if timer != nil {
		if timer.Stop(); !next.IsZero() {
			timer.Reset(max(next.Sub(now), 0))
		}
	}
	c.unsettled.Store(c.steering.floor > 0 || !c.steering.bad.IsZero())
	before := c.choice
	c.choice = chosen
	switch taken := int(c.taken.Load()) - 1; {
	case !chosen.paused:
		s.hold(chosen.profile)
		if taken >= 0 && !before.paused {
			s.hold(taken) // the viewer may have gone over to it when it was no longer wanted
		}
	case !before.paused:
		// What is reported of what is sent then is something else.
		s.feedback.fraction.Store(0)
		s.feedback.estimate.Store(0)
	}
	if v := s.viewer.Load(); v != nil && c.connected && before != chosen {
		from := s.cfg.Profiles[chosen.profile].Stream
		v.shard.post(mail{change: v, do: func(sh *shard, v *viewer) { v.steered(sh, from, chosen) }})
	}
	s.releaseBut(chosen)
	s.tell()
	return nil
}

// settle decides for the first time, so that the camera is pulled while the
// viewer connects. The error is as steer's; the camera is pulled all the same, for
// that it cannot be played may be true of its last connection only.
func (s *Session) settle() error {
	c, profiles := &s.course, s.candidates(s.plan)
	now := time.Now()
	c.choice, _ = c.steering.decide(now, profiles, s.sight(now))
	if !c.choice.paused {
		s.hold(c.choice.profile)
	}
	return s.unplayable(profiles)
}

// tell tells the viewer what has changed for it.
func (s *Session) tell() {
	c := &s.course
	if s.cfg.OnStatus == nil {
		return
	}
	now := Status{Camera: c.camera}
	if taken := int(c.taken.Load()) - 1; taken >= 0 && !c.choice.paused {
		now.Profile = s.cfg.Profiles[taken].ID
	}
	if old := c.told; old != nil && old.Profile == now.Profile && old.Camera.State == now.Camera.State && old.Camera.Reason == now.Camera.Reason &&
		old.Camera.Message == now.Camera.Message && old.Camera.RetryTime.Equal(now.Camera.RetryTime) && old.Camera.Verdict == now.Camera.Verdict {
		return
	}
	c.told = &now
	s.cfg.OnStatus(now)
}

// hold says that a profile is needed.
func (s *Session) hold(profile int) {
	s.course.mu.Lock()
	defer s.course.mu.Unlock()
	if _, held := s.course.holds[profile]; held || s.cfg.Hold == nil {
		return
	}
	s.course.holds[profile] = s.cfg.Hold(profile)
}

// releaseBut says of profiles that they are no longer needed, but for the one
// that the viewer is to get and the one that it gets until then.
func (s *Session) releaseBut(chosen choice) {
	taken := int(s.course.taken.Load()) - 1
	s.course.mu.Lock()
	defer s.course.mu.Unlock()
	for i, release := range s.course.holds {
		if chosen.paused || i != chosen.profile && i != taken {
			delete(s.course.holds, i)
			release()
		}
	}
}

// letGo says that no profile is needed.
func (s *Session) letGo() { s.releaseBut(choice{paused: true}) }

// took is told by the shard that the viewer has a seat.
func (s *Session) took(v *viewer) {
	for i, p := range s.cfg.Profiles {
		if p.Stream == v.seat.outlet.stream {
			s.course.taken.Store(int32(i) + 1)
		}
	}
	s.course.look()
}

// board is where it is said what is seen of the camera.
func (s *Session) board() *stream.Board {
	if s.cfg.Board != nil {
		return s.cfg.Board
	}
	return s.cfg.Profiles[0].Stream.Board()
}

// steered has the viewer get what was decided.
func (v *viewer) steered(sh *shard, from *stream.Stream, chosen choice) {
	if v.thin != chosen.thin {
		v.thin, v.key = chosen.thin, false
		if !v.thin { // what comes next refers to what was left out
			v.held, v.resumed = true, true
		}
	}
	if chosen.paused {
		v.account()
		v.paused, v.held, v.resumed, v.catching = true, true, true, false
		v.lanes[stream.Video].forget()
	}
	v.aim(sh, from, chosen.paused || v.paused)
	if v.paused && !chosen.paused {
		v.paused = false
		if v.route.Load() == nil || !v.catchUp(sh) {
			v.seat.outlet.sub.RequestKeyframe()
		}
	}
}

// aim has the viewer get another stream: with what is recent of it if that is not
// too much, or if there is no picture anyway, else from its next keyframe on.
// paused: it gets nothing now, and the seat is all that changes.
func (v *viewer) aim(sh *shard, from *stream.Stream, paused bool) {
	switch {
	case from == v.seat.outlet.stream:
		sh.vacate(&v.next)
		return
	case from != v.nextStream():
		sh.vacate(&v.next)
		sh.sit(v, &v.next, from)
	case !paused:
		return // its keyframe is waited for
	}
	o := v.next.outlet
	recent, bytes := o.seen(o.sub.Recent()), 0
	for _, b := range recent {
		bytes += b.Bytes()
	}
	switch {
	case paused:
		v.change(sh)
		v.held, v.resumed, v.mute = true, true, true
	case len(recent) > 0 && (bytes <= replayMost || v.held):
		v.change(sh)
		if !v.catchUp(sh) { // the stream has let go of it meanwhile
			v.held, v.resumed = true, true
			o.sub.RequestKeyframe()
		}
	default:
		o.sub.RequestKeyframe()
	}
}

func (v *viewer) nextStream() *stream.Stream {
	if v.next.outlet == nil {
		return nil
	}
	return v.next.outlet.stream
}
