package medianode

import (
	"context"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"fanlight/internal/fleet"
	"fanlight/medianode/session"
	"fanlight/medianode/stream"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// trial is what is held against a camera's node and viewers, and what had been
// counted at the look before.
type trial struct {
	node, viewers judgement
	overflow      int64 // packets
}

// viewerTrial is what is held against a viewer's network.
type viewerTrial struct {
	own          judgement
	loss         float64 // of several reports, the latest counting most
	breadth      breadth
	packets, all uint64 // sent, and with those that there was no room for
}

// lossWeight is how much one look counts in viewerTrial.loss: a report is of a
// second, in which few packets come.
const lossWeight = 1. / 3

// tally is how many sessions have each verdict.
type tally [fleet.CauseCodec + 1]int

// judge looks at all cameras and sessions now and then, until ctx ends.
func (n *Node) judge(ctx context.Context) {
	ticker := time.NewTicker(n.cfg.judgeEvery)
	defer ticker.Stop()
	n.mu.Lock()
	engine := n.engine
	n.mu.Unlock()
	before := engine.SocketStats()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		u, load := engine.SocketStats(), n.meter.load()
		dropped := float64(u.Dropped - before.Dropped)
		seen := nodeFigures{cpu: load.cpu, overloaded: load.overloaded, socketFull: share(dropped, dropped+float64(u.PacketsOut-before.PacketsOut))}
		before = u
		var sum tally
		for _, c := range n.list() {
			c.judge(time.Now(), seen, &sum)
		}
		n.metrics.verdicts.Store(&sum)
	}
}

// share returns part of whole; 0 of nothing.
func share(part, whole float64) float64 {
	if whole <= 0 {
		return 0
	}
	return part / whole
}

// judge looks at the camera and its sessions, has them say what is new, and counts
// the sessions' verdicts. node has what is not of the camera alone.
func (c *camera) judge(now time.Time, node nodeFigures, sum *tally) {
	c.mu.Lock()
	feeds, live, tcp := slices.Clone(c.feeds), make([]bool, len(c.feeds)), make([]bool, len(c.feeds))
	for i, f := range feeds {
		live[i] = f.pulled && f.status.State == fleet.CameraLive
		tcp[i] = len(f.status.Profiles) > 0 && f.status.Profiles[0].Transport == fleet.TransportTCP
	}
	c.mu.Unlock()

	stats := make(map[string]stream.Stats, len(feeds))
	var overflow int64
	for i, f := range feeds {
		s := f.stream.Stats()
		stats[f.id] = s
		overflow += s.Drops.Overflow
		var found finding
		if live[i] {
			found = blameProfile(profileFigures{loss: s.Loss, missing: s.Missing, jitter: s.Jitter, tcp: tcp[i]}, f.held.figure)
		}
		f.held.hear(now, found)
	}
	viewings := c.watching()
	var sent float64
	fed, bad := 0, 0
	for _, v := range viewings {
		packets := v.judge(now, stats)
		sent += packets
		blamed := v.trial.own.blames(fleet.CauseViewerNetwork)
		if blamed {
			bad++
		}
		if packets > 0 || blamed { // whom nothing can be sent counts
			fed++
		}
	}
	t := &c.trial
	dropped := float64(max(overflow-t.overflow, 0)) // less: a profile is gone
	t.overflow = overflow
	node.dropped, node.viewers = share(dropped, dropped+sent), share(float64(bad), float64(fed))
	var found finding
	if fed > 0 || dropped > 0 {
		found = blameNode(node, t.node.figure)
	}
	t.node.hear(now, found)
	t.viewers.hear(now, blameViewers(bad, fed))
	c.pronounce(feeds)
	for _, v := range viewings {
		sum[v.tell()]++
	}
}

// pronounce makes the verdicts known.
func (c *camera) pronounce(feeds []*feed) {
	c.mu.Lock()
	before := c.verdict
	c.verdict = fleet.Verdict{}
	for _, f := range feeds {
		f.verdict = f.held.verdict
		if c.verdict.Cause == fleet.CauseNone {
			c.verdict = f.verdict
		}
	}
	c.nodeVerdict = c.trial.node.verdict
	for _, v := range []fleet.Verdict{c.nodeVerdict, c.trial.viewers.verdict} {
		if c.verdict.Cause == fleet.CauseNone {
			c.verdict = v
		}
	}
	changed := c.verdict != before
	c.mu.Unlock()
	if changed {
		c.announce()
	}
}

// upstream returns the verdict that a session has because every viewer of the
// profile has it; of no profile in particular if it gets none.
func (c *camera) upstream(profile string) fleet.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := c.verdict
	if i := slices.IndexFunc(c.feeds, func(f *feed) bool { return f.id == profile }); i >= 0 {
		if out = c.feeds[i].verdict; out.Cause == fleet.CauseNone {
			out = c.nodeVerdict
		}
	}
	if !upstream(out) {
		return fleet.Verdict{}
	}
	return out
}

// watched and unwatched keep account of the sessions.
func (c *camera) watched(v *viewing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.viewings[v] = struct{}{}
}

func (c *camera) unwatched(v *viewing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.viewings, v)
}

// watching returns the camera's sessions, by id.
func (c *camera) watching() []*viewing {
	c.mu.Lock()
	out := make([]*viewing, 0, len(c.viewings))
	for v := range c.viewings {
		out = append(out, v)
	}
	c.mu.Unlock()
	slices.SortFunc(out, func(a, b *viewing) int { return strings.Compare(string(a.id), string(b.id)) })
	return out
}

// judge looks at the way to the viewer, and returns how many packets have been
// sent since the look before.
func (v *viewing) judge(now time.Time, profiles map[string]stream.Stats) (packets float64) {
	v.telling.Lock()
	profile := v.status.Profile
	v.telling.Unlock()
	packets = v.trial.look(now, profile, profiles[profile], v.session.Stats(), v.session.Path())
	v.telling.Lock()
	v.own = v.trial.own.verdict
	v.telling.Unlock()
	return packets
}

// look takes what has been counted of a session that gets a profile of a camera,
// and returns how many packets have been sent since the look before. Nothing is
// held against the network of a viewer who gets no profile because nobody looks;
// and a look at one for whom nothing came says nothing.
func (t *viewerTrial) look(now time.Time, profile string, camera stream.Stats, stats session.Stats, path session.Path) (packets float64) {
	all := stats.Packets + stats.Full
	packets, due := float64(stats.Packets-t.packets), float64(all-t.all)
	t.packets, t.all = stats.Packets, all
	if profile == "" {
		t.loss, t.breadth = 0, breadth{}
		t.own.hear(now, finding{})
		return packets
	}
	seen := viewerFigures{full: share(due-packets, due), roundTrip: path.RoundTrip, estimate: path.Estimate}
	seen.bitrate, seen.growing = t.breadth.look(now, profile, camera.Bytes, path.Estimate)
	switch {
	case packets > 0:
		t.loss += lossWeight * (path.Loss - t.loss)
		seen.loss, seen.latest, seen.jitter, seen.camera = t.loss, path.Loss, path.Jitter, camera.Jitter
	case due == 0:
		return 0
	}
	t.own.hear(now, blameViewer(seen, t.own.figure))
	return packets
}

// saw takes what the session tells, and tells the viewer.
func (v *viewing) saw(status session.Status) {
	v.telling.Lock()
	defer v.telling.Unlock()
	v.status = status
	v.say()
}

// tell tells the viewer what has changed of the verdict, and returns its cause.
func (v *viewing) tell() fleet.Cause {
	v.telling.Lock()
	defer v.telling.Unlock()
	if v.told != nil {
		v.say()
	}
	return v.shown.Cause
}

// say tells the viewer where it stands, unless it knows. The caller holds
// v.telling.
func (v *viewing) say() {
	v.shown = v.status.Camera.Verdict
	if v.status.Camera.State == fleet.CameraLive && v.shown.Cause != fleet.CauseCodec {
		if v.shown = v.camera.upstream(v.status.Profile); v.shown.Cause == fleet.CauseNone {
			v.shown = v.own
		}
	}
	state := toSessionState(v.status.Camera)
	state.Profile, state.Verdict, state.VerdictMessage = v.status.Profile, v.shown.Cause.String(), v.shown.Message
	if proto.Equal(state, v.told) {
		return
	}
	v.told = state
	v.send(&mediav1.OpenSessionResponse{Message: &mediav1.OpenSessionResponse_State{State: state}})
}

// figures returns what is seen of the session.
func (v *viewing) figures() *mediav1.SessionStats {
	stats, path := v.session.Stats(), v.session.Path()
	v.telling.Lock()
	defer v.telling.Unlock()
	return &mediav1.SessionStats{
		Session: string(v.id), Viewer: v.viewer, Profile: v.status.Profile, Packets: int64(stats.Packets), PacketsResent: int64(stats.Resent),
		PacketsDropped: int64(stats.Full), Loss: path.Loss, RoundTripMs: milliseconds(path.RoundTrip), JitterMs: milliseconds(path.Jitter),
		EstimatedBps: path.Estimate, Verdict: v.shown.Cause.String(), VerdictMessage: v.shown.Message,
	}
}
