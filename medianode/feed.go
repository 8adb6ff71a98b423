package medianode

import (
	"context"
	"slices"
	"time"

	"fanlight/internal/fleet"
	"fanlight/medianode/session"
	"fanlight/medianode/source"
	"fanlight/medianode/stream"
)

// feed is one profile of a camera: its stream, for as long as the camera has the
// profile, and its source, while it is to be pulled.
type feed struct {
	// Static after newFeed.
	id     string
	stream *stream.Stream

	pulling *pulling  // owned by camera.run; nil: it is not pulled
	held    judgement // against the camera's side; owned by Node.judge

	// Guarded by camera.mu.
	users     int                // sessions that need it
	idleSince time.Time          // when the last of them let go; zero: there has been none
	status    fleet.CameraStatus // of its source
	pulled    bool
	verdict   fleet.Verdict // on the camera's side
}

func newFeed(c *camera, id string) *feed {
	cfg := stream.Config{CacheBytes: c.node.cfg.KeyframeCacheBytes, CacheTime: c.node.cfg.KeyframeCacheTime, OnBFrames: c.poke}
	return &feed{id: id, stream: stream.New(cfg)}
}

// pulling is a source that runs.
type pulling struct {
	desired fleet.Camera
	profile fleet.Profile
	source  *source.Source
	cancel  context.CancelFunc
	done    chan struct{}
}

// stop ends the source and waits for it.
func (p *pulling) stop() {
	if p != nil {
		p.cancel()
		<-p.done
	}
}

// arrange makes the camera's feeds those of its profiles, in their order: of a
// camera that accepts few RTSP sessions no more than that. The streams of profiles
// that are no more are closed: their viewers come again. The caller holds c.mu, or
// is newCamera.
func (c *camera) arrange() (gone []*feed) {
	old, profiles := c.feeds, c.desired.Profiles
	if most := c.desired.MaxSessions; most > 0 && most < len(profiles) {
		profiles = profiles[:most]
	}
	c.feeds = make([]*feed, 0, len(profiles))
	for _, p := range profiles {
		i := slices.IndexFunc(old, func(f *feed) bool { return f.id == p.ID })
		if i < 0 {
			c.feeds = append(c.feeds, newFeed(c, p.ID))
			continue
		}
		c.feeds = append(c.feeds, old[i])
		old = slices.Delete(slices.Clone(old), i, i+1)
	}
	return old
}

// profiles returns what sessions can have of the camera.
func (c *camera) profiles() []session.Profile {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]session.Profile, 0, len(c.feeds))
	for _, f := range c.feeds {
		out = append(out, session.Profile{ID: f.id, Stream: f.stream})
	}
	return out
}

// hold says that a session needs a profile, until release is called.
func (c *camera) hold(profile string) (release func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.feeds, func(f *feed) bool { return f.id == profile })
	if i < 0 {
		return func() {} // it is no more, and its stream closed
	}
	f := c.feeds[i]
	f.users++
	c.poke()
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		f.users--
		f.idleSince = time.Now()
		c.poke()
	}
}

// wanted tells whether a feed is to be pulled, and until when if nothing else
// changes; zero: for ever. The first one is pulled always, unless it is on demand;
// the others while somebody needs them. The caller holds c.mu.
func (c *camera) wanted(index int, now time.Time) (pull bool, until time.Time) {
	f := c.feeds[index]
	switch {
	case index == 0 && (c.desired.part == partTakeOver || c.desired.PullPolicy != fleet.PullOnDemand):
		return true, time.Time{}
	case f.users > 0:
		return true, time.Time{}
	case f.idleSince.IsZero():
		return false, time.Time{}
	}
	until = f.idleSince.Add(c.desired.IdleTimeout)
	return until.After(now), until
}

// samePull tells whether a source pulls as is desired.
func (p *pulling) samePull(desired fleet.Camera, profile fleet.Profile) bool {
	a, b := p.profile, profile
	return p.desired.Credentials == desired.Credentials && p.desired.ONVIFURL == desired.ONVIFURL && a.ID == b.ID && a.URL == b.URL &&
		slices.Equal(a.FallbackURLs, b.FallbackURLs) && a.Transport == b.Transport && a.TLSFingerprint == b.TLSFingerprint &&
		((p.desired.MaxSessions == 1) == (desired.MaxSessions == 1) || len(b.FallbackURLs) == 0)
}

// reconcile starts and stops sources, so that those run that should. It is called
// by run.
func (c *camera) reconcile(ctx context.Context, now next) {
	for _, f := range now.gone {
		f.pulling.stop()
		f.pulling = nil
	}
	if len(now.gone) > 0 {
		c.announce()
	}
	for i, f := range now.feeds {
		profile := now.desired.Profiles[i]
		if p := f.pulling; p != nil && (!now.pull[i] || ctx.Err() != nil || !p.samePull(now.desired, profile)) {
			p.stop()
			f.pulling = nil
			c.saw(f, fleet.CameraStatus{State: fleet.CameraIdle, Reason: fleet.ReasonIdle}, false)
		}
		if p := f.pulling; p != nil && now.desired.Retry > p.desired.Retry {
			p.desired.Retry = now.desired.Retry
			p.source.Retry()
		}
		if now.pull[i] && f.pulling == nil && ctx.Err() == nil {
			f.pulling = c.pull(ctx, f, now.desired, profile)
		}
	}
}

// pull starts a source of a profile.
func (c *camera) pull(ctx context.Context, f *feed, desired fleet.Camera, profile fleet.Profile) *pulling {
	ctx, cancel := context.WithCancel(ctx)
	p := &pulling{desired: desired, profile: profile, cancel: cancel, done: make(chan struct{})}
	p.source = source.New(source.Config{
		Log: c.node.log, Camera: c.id, Profile: profile, Credentials: desired.Credentials, Stream: f.stream,
		OnStatus: func(s fleet.CameraStatus) { c.saw(f, s, true) }, OnFailure: c.failures.note,
		Networks: c.node.cfg.CameraNetworks, ONVIFURL: desired.ONVIFURL, Keyframes: &c.keyframes, TCPFirst: desired.TCPFirst, Timeouts: c.node.cfg.SourceTimeouts, Retry: c.node.cfg.SourceRetry,
		Hosts: c.node.hosts, Accounts: &c.node.accounts, MaxSessions: desired.MaxSessions,
	})
	go func() {
		defer close(p.done)
		if err := p.source.Run(ctx); err != nil {
			c.log.Error("source ended", "profile", f.id, "error", err)
		}
	}()
	return p
}

// saw takes the status of a feed's source, and says what that makes of the
// camera.
func (c *camera) saw(f *feed, status fleet.CameraStatus, pulled bool) {
	c.mu.Lock()
	f.status, f.pulled = status, pulled
	if !slices.ContainsFunc(c.feeds, func(f *feed) bool { return f.pulled }) {
		c.restingSince = time.Now()
	}
	c.mu.Unlock()
	c.announce()
}

// announce says on the board what is seen of the camera: it is live if any of its
// profiles is; else it is as the first of those that are pulled.
func (c *camera) announce() {
	c.announcing.Lock() // or what is older could be said last
	defer c.announcing.Unlock()
	c.mu.Lock()
	status := c.whole()
	c.mu.Unlock()
	c.board.SetStatus(status)
	c.node.changes.add(c.id)
}

// whole makes one status of those of the feeds. The caller holds c.mu.
func (c *camera) whole() fleet.CameraStatus {
	var lead *feed
	for _, f := range c.feeds {
		if !f.pulled {
			continue
		}
		if lead == nil || lead.status.State != fleet.CameraLive && f.status.State == fleet.CameraLive {
			lead = f
		}
	}
	if lead == nil {
		return c.resting()
	}
	status := lead.status
	status.Profiles = nil
	for _, f := range c.feeds {
		if !f.pulled {
			continue
		}
		p := fleet.ProfileStatus{ID: f.id}
		if len(f.status.Profiles) > 0 {
			p = f.status.Profiles[0]
		}
		p.State, p.Reason, p.Message, p.RetryTime = f.status.State, f.status.Reason, f.status.Message, f.status.RetryTime
		if p.BFrames = f.stream.BFrames(); p.BFrames == fleet.BFramesReferenced && p.State == fleet.CameraLive {
			p.Reason, p.Message = fleet.ReasonBFrames, fleet.ReasonBFrames.Sentence()
		}
		status.Profiles = append(status.Profiles, p)
	}
	if status.Verdict = blameCamera(status, len(c.feeds)); status.Verdict == (fleet.Verdict{}) && status.State == fleet.CameraLive {
		status.Verdict = c.verdict
	}
	return status
}

// unplayable tells whether a profile has turned out to be what nobody can play, and
// the board does not say so yet.
func (c *camera) unplayable() bool {
	said := c.board.Status().Profiles
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(c.feeds, func(f *feed) bool {
		return f.pulled && f.stream.BFrames() == fleet.BFramesReferenced &&
			slices.ContainsFunc(said, func(p fleet.ProfileStatus) bool { return p.ID == f.id && p.BFrames != fleet.BFramesReferenced })
	})
}

// resting is the status of a camera that is not pulled. The caller holds c.mu.
func (c *camera) resting() fleet.CameraStatus {
	status := fleet.CameraStatus{
		State: fleet.CameraIdle, Reason: fleet.ReasonIdle, Message: "nobody watches; the camera is pulled on demand", Since: c.restingSince,
	}
	if c.suspended {
		status.Message = "the control plane cannot be reached, and another node may have been given the camera, which accepts one session"
	}
	return status
}

// stats returns the figures of all profiles together; sizes and rates of pictures
// are those of the best that comes.
func (c *camera) stats() stream.Stats {
	c.mu.Lock()
	feeds := slices.Clone(c.feeds)
	c.mu.Unlock()
	var sum stream.Stats
	for i, f := range feeds {
		s := f.stream.Stats()
		if i == 0 {
			sum = s
			continue
		}
		sum.Add(s)
	}
	return sum
}
