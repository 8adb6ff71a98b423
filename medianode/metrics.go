package medianode

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/metrics"
	"fanlight/medianode/session"
	"fanlight/medianode/stream"
	"fanlight/medianode/udp"
)

// nodeMetrics is what a node tells Prometheus. Nothing of it is touched for a
// packet: streams, sessions and the socket count for themselves, and are read
// when somebody scrapes. Every series has the node's name.
type nodeMetrics struct {
	// Static after newNodeMetrics.
	node *Node
	set  *metrics.Set

	opens, ends *metrics.Counter
	orphans     atomic.Int64
	verdicts    atomic.Pointer[tally] // nil: none yet

	camera  cameraMetrics
	load    loadMetrics
	viewers viewerMetrics
	socket  socketMetrics

	mu        sync.Mutex // guards the rest
	cameras   map[*camera]struct{}
	departed  lost      // of cameras that the node no longer has
	connected bool      // the control stream
	changed   time.Time // when connected last changed
}

// cameraMetrics have a series for each camera on the node.
type cameraMetrics struct {
	up, state, info, viewers                *metrics.Sampled
	bytes, packets, missing, frames         *metrics.Sampled
	discarded, dropped, failures, keyframes *metrics.Sampled
	bitrate, fps, interval, asked           *metrics.Sampled
	loss, jitter, verdict                   *metrics.Sampled
}

// loadMetrics are what the node has and may have.
type loadMetrics struct {
	cameras, sessions, orphans, verdicts *metrics.Sampled
	maxCameras, maxSessions              *metrics.Sampled
	maxIngress, maxEgress                *metrics.Sampled
	cpu, maxCPU, overloaded              *metrics.Sampled
	connected, changed, expired, leaving *metrics.Sampled
}

// viewerMetrics are the sum of what all sessions did.
type viewerMetrics struct {
	packets, bytes, writeErrors                *metrics.Sampled
	keyframeRequests, nacked, resent, withheld *metrics.Sampled
	missed, profiles                           *metrics.Sampled
	discards, drops, switches, replays         *metrics.Sampled
}

type socketMetrics struct {
	packets, bytes, errors, tcpRefused *metrics.Sampled
}

// lost is what cameras' streams did not pass on.
type lost struct {
	discards stream.Discards
	drops    stream.Drops
}

func (l *lost) add(s stream.Stats) {
	l.discards.Malformed += s.Discards.Malformed
	l.discards.Late += s.Discards.Late
	l.discards.Oversized += s.Discards.Oversized
	l.discards.ParameterSets += s.Discards.ParameterSets
	l.discards.Supplements += s.Discards.Supplements
	l.discards.UnsupportedFormat += s.Discards.UnsupportedFormat
	l.discards.BFrames += s.Discards.BFrames
	l.discards.Damaged += s.Discards.Damaged
	l.drops.Overflow += s.Drops.Overflow
	l.drops.AwaitingKeyframe += s.Drops.AwaitingKeyframe
	l.drops.NoRoom += s.Drops.NoRoom
}

// Results of sessions that are none of the reasons in docs/errors.md.
const (
	resultOK          = "ok"
	resultLeft        = "left"
	resultGatewayGone = "gateway_gone"
	resultOther       = "other"
)

func newNodeMetrics(n *Node) *nodeMetrics {
	s := metrics.NewSet("node", string(n.cfg.Node))
	m := &nodeMetrics{
		node: n, set: s, cameras: make(map[*camera]struct{}), changed: time.Now(),
		opens: s.Counter("fanlight_node_session_opens_total", "Sessions that gateways asked for, by what became of them: ok, or the reason of docs/errors.md for which there is none, in lower case.", "result"),
		ends:  s.Counter("fanlight_node_session_ends_total", "Sessions that have ended: left, gateway_gone, or the reason of docs/errors.md in lower case.", "reason"),
	}
	m.opens.Zero(resultOK)
	m.ends.Zero(resultLeft)
	m.camera = newCameraMetrics(s)
	m.load = newLoadMetrics(s)
	m.viewers = newViewerMetrics(s)
	m.socket = newSocketMetrics(s)
	s.OnScrape(m.sampleCameras)
	s.OnScrape(m.sampleNode)
	s.OnScrape(m.sampleViewers)
	return m
}

func newCameraMetrics(s *metrics.Set) cameraMetrics {
	const camera = "camera"
	return cameraMetrics{
		up:        s.Sampled(metrics.KindGauge, "fanlight_camera_up", "1 while the camera is live: its media is coming.", camera),
		state:     s.Sampled(metrics.KindGauge, "fanlight_camera_state", "1 for the state that the camera is in (connecting, live, failed, idle), with the reason of docs/errors.md for it, in lower case.", camera, "state", "reason"),
		info:      s.Sampled(metrics.KindGauge, "fanlight_camera_info", "1, with what the camera sends: codecs, the picture's width and height in pixels, and the RTSP transport. Only of cameras that have been live.", camera, "video_codec", "audio_codec", "width", "height", "transport"),
		viewers:   s.Sampled(metrics.KindGauge, "fanlight_camera_viewers", "Sessions that watch the camera.", camera),
		bytes:     s.Sampled(metrics.KindCounter, "fanlight_camera_ingress_bytes_total", "Bytes of RTP from the camera, headers included.", camera),
		packets:   s.Sampled(metrics.KindCounter, "fanlight_camera_ingress_packets_total", "RTP packets from the camera.", camera),
		missing:   s.Sampled(metrics.KindCounter, "fanlight_camera_ingress_packets_lost_total", "RTP packets missing in what came from the camera: lost between camera and node.", camera),
		frames:    s.Sampled(metrics.KindCounter, "fanlight_camera_frames_total", "Pictures from the camera.", camera),
		keyframes: s.Sampled(metrics.KindCounter, "fanlight_camera_keyframes_total", "Pictures from the camera that a viewer can begin with.", camera),
		discarded: s.Sampled(metrics.KindCounter, "fanlight_camera_packets_discarded_total", "Packets from the camera that could not be used; by reason in fanlight_node_packets_discarded_total.", camera),
		dropped:   s.Sampled(metrics.KindCounter, "fanlight_camera_viewer_packets_dropped_total", "Packets that a viewer of the camera was not sent, because it was too slow or had to wait for a keyframe, once for each viewer.", camera),
		failures:  s.Sampled(metrics.KindCounter, "fanlight_camera_failures_total", "Attempts to pull the camera that failed, and losses of a live camera, by the reason of docs/errors.md in lower case. Each is followed by another attempt, but the third refusal of the credentials.", camera, "reason"),
		asked:     s.Sampled(metrics.KindCounter, "fanlight_camera_keyframe_requests_total", "Times that the camera was asked for a keyframe, by how: rtcp (PLI), onvif (SetSynchronizationPoint, accepted), failed (an attempt of either that failed).", camera, "by"),
		bitrate:   s.Sampled(metrics.KindGauge, "fanlight_camera_ingress_bytes_per_second", "Bytes from the camera in the last second.", camera),
		fps:       s.Sampled(metrics.KindGauge, "fanlight_camera_frames_per_second", "Pictures from the camera in the last second.", camera),
		interval:  s.Sampled(metrics.KindGauge, "fanlight_camera_keyframe_interval_seconds", "Time between the camera's last two keyframes; 0: there have not been two. A viewer that can begin with none waits for the next.", camera),
		loss:      s.Sampled(metrics.KindGauge, "fanlight_camera_loss_ratio", "Share of the camera's RTP packets that the node did not get, 0 to 1, over the last ten seconds; of the worst of its profiles.", camera),
		jitter:    s.Sampled(metrics.KindGauge, "fanlight_camera_jitter_seconds", "How unevenly pictures come from the camera (interarrival jitter, RFC 3550 section 6.4.1, of the first packet of each); of the worst of its profiles.", camera),
		verdict:   s.Sampled(metrics.KindGauge, "fanlight_camera_verdict", "1 for what is to blame for the camera's picture not being good: camera (or the network between it and the node), node, viewer_network (of most of its viewers), codec. No series while nothing is.", camera, "cause"),
	}
}

func newLoadMetrics(s *metrics.Set) loadMetrics {
	return loadMetrics{
		cameras:     s.Sampled(metrics.KindGauge, "fanlight_node_cameras", "Cameras that the node has."),
		sessions:    s.Sampled(metrics.KindGauge, "fanlight_node_sessions", "Sessions that are open."),
		orphans:     s.Sampled(metrics.KindGauge, "fanlight_node_orphaned_sessions", "Of these, sessions whose gateway is gone; they go on for some seconds, until their viewer has come through another."),
		verdicts:    s.Sampled(metrics.KindGauge, "fanlight_node_sessions_by_verdict", "Sessions by what is to blame for their picture not being good: camera, node, viewer_network, codec; none, nothing is. Some seconds old.", "cause"),
		maxCameras:  s.Sampled(metrics.KindGauge, "fanlight_node_capacity_cameras", "Cameras that the node may be given; not exported without a limit."),
		maxSessions: s.Sampled(metrics.KindGauge, "fanlight_node_capacity_sessions", "Sessions that the node takes."),
		maxIngress:  s.Sampled(metrics.KindGauge, "fanlight_node_capacity_ingress_bytes_per_second", "Bytes a second from cameras that the node may be given; not exported without a limit."),
		maxEgress:   s.Sampled(metrics.KindGauge, "fanlight_node_capacity_egress_bytes_per_second", "Bytes a second to viewers that the node may be given; not exported without a limit."),
		cpu:         s.Sampled(metrics.KindGauge, "fanlight_node_cpu_utilization", "How busy the node's process keeps the processors that it may use, as a share of them all, 0 to 1, over some seconds."),
		maxCPU:      s.Sampled(metrics.KindGauge, "fanlight_node_capacity_cpu_utilization", "How busy they may be: beyond it the node refuses sessions; not exported without a limit."),
		overloaded:  s.Sampled(metrics.KindGauge, "fanlight_node_overloaded", "1 while the node refuses sessions because its processors have reached that limit, until they are clearly less busy."),
		connected:   s.Sampled(metrics.KindGauge, "fanlight_node_control_connected", "1 while a control plane has the node's control stream."),
		changed:     s.Sampled(metrics.KindGauge, "fanlight_node_control_change_timestamp_seconds", "When fanlight_node_control_connected last changed, in seconds since 1970."),
		expired:     s.Sampled(metrics.KindGauge, "fanlight_node_lease_expired", "1 while the node's lease has run out as far as it knows: cameras that accept a single RTSP session are not pulled then."),
		leaving:     s.Sampled(metrics.KindGauge, "fanlight_node_stopping", "1 while the node is about to stop, or has not started."),
	}
}

func newViewerMetrics(s *metrics.Set) viewerMetrics {
	return viewerMetrics{
		packets:          s.Sampled(metrics.KindCounter, "fanlight_node_egress_packets_total", "RTP packets sent to viewers, without those sent again."),
		bytes:            s.Sampled(metrics.KindCounter, "fanlight_node_egress_bytes_total", "Bytes of their payload."),
		writeErrors:      s.Sampled(metrics.KindCounter, "fanlight_node_egress_errors_total", "RTP packets that could not be sent."),
		keyframeRequests: s.Sampled(metrics.KindCounter, "fanlight_node_keyframe_requests_total", "PLI and FIR from viewers: pictures that could not be decoded."),
		nacked:           s.Sampled(metrics.KindCounter, "fanlight_node_nacked_packets_total", "Packets that viewers asked for again (NACK): lost between node and viewer."),
		resent:           s.Sampled(metrics.KindCounter, "fanlight_node_resent_packets_total", "Packets that were sent again."),
		withheld:         s.Sampled(metrics.KindCounter, "fanlight_node_resends_refused_total", "Packets that were not sent again because the viewer's budget was spent."),
		missed:           s.Sampled(metrics.KindCounter, "fanlight_node_resends_missed_total", "Packets that were not sent again because they were no longer there."),
		switches:         s.Sampled(metrics.KindCounter, "fanlight_node_profile_switches_total", "Times that a viewer was given another profile of its camera, because of its network, its tile's size, or what the camera had."),
		replays:          s.Sampled(metrics.KindCounter, "fanlight_node_replays_total", "Viewers' wishes for a keyframe that were answered from what the node keeps, without asking the camera."),
		profiles:         s.Sampled(metrics.KindGauge, "fanlight_node_srtp_sessions", "Sessions that are connected, by how SRTP is protected. SRTP_AES128_CM_HMAC_SHA1_80 costs some eight times the CPU of the others, and is taken by viewers that have nothing else.", "profile"),
		discards:         s.Sampled(metrics.KindCounter, "fanlight_node_packets_discarded_total", "Packets from cameras that could not be used: malformed, late, oversized, parameter_sets, supplements, unsupported_format, b_frames (browsers cannot play them), damaged (what follows a loss, until the next keyframe).", "reason"),
		drops:            s.Sampled(metrics.KindCounter, "fanlight_node_packets_dropped_total", "Packets that viewers were not sent, once for each viewer: overflow, its queue was full; awaiting_keyframe, it could not begin with them; no_room, its TCP connection had no room; socket_full, the UDP socket had none.", "reason"),
	}
}

func newSocketMetrics(s *metrics.Set) socketMetrics {
	return socketMetrics{
		packets:    s.Sampled(metrics.KindCounter, "fanlight_node_udp_packets_total", "Datagrams of the viewers' UDP port, by direction (in, out): media, ICE, DTLS and RTCP.", "direction"),
		bytes:      s.Sampled(metrics.KindCounter, "fanlight_node_udp_bytes_total", "Their bytes, without UDP and IP headers.", "direction"),
		errors:     s.Sampled(metrics.KindCounter, "fanlight_node_udp_errors_total", "Errors that the system reported on reading (in), and datagrams that it refused to send (out).", "direction"),
		tcpRefused: s.Sampled(metrics.KindCounter, "fanlight_node_tcp_refused_total", "TCP connections of viewers that were refused because there were too many."),
	}
}

// Metrics returns the node's metrics, to be registered with those of its
// process.
func (n *Node) Metrics() *metrics.Set { return n.metrics.set }

// has counts a camera's packets among the node's for as long as it has the
// camera, and what they came to afterwards: the caller calls gone then.
func (m *nodeMetrics) has(c *camera) (gone func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.cameras[c] = struct{}{}
	return func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.cameras, c)
		m.departed.add(c.stats())
	}
}

// control notes whether there is a control stream.
func (m *nodeMetrics) control(connected bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.connected != connected {
		m.connected, m.changed = connected, time.Now()
	}
}

// opened counts what became of a wish for a session, nil: it is there.
func (m *nodeMetrics) opened(err error) {
	if err == nil {
		m.opens.Inc(resultOK)
		return
	}
	m.opens.Inc(result(err))
}

// ended counts a session that was there.
func (m *nodeMetrics) ended(err error) {
	if err == nil {
		m.ends.Inc(resultLeft)
		return
	}
	m.ends.Inc(result(err))
}

// orphan counts a session whose gateway is gone until done is called.
func (m *nodeMetrics) orphan() (done func()) {
	m.orphans.Add(1)
	return func() { m.orphans.Add(-1) }
}

// result returns why something failed, of a small number of reasons.
func result(err error) string {
	var reason fleet.Error
	switch {
	case errors.As(err, &reason):
		return strings.ToLower(string(reason))
	case errors.Is(err, context.Canceled):
		return resultGatewayGone
	default:
		return resultOther
	}
}

// failures counts a camera's failures by reason.
type failures struct {
	mu    sync.Mutex // guards the rest
	count map[fleet.Reason]int
}

// note takes a failure of the camera's source.
func (f *failures) note(reason fleet.Reason) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.count == nil {
		f.count = make(map[fleet.Reason]int)
	}
	f.count[reason]++
}

func (f *failures) each(yield func(reason string, n int)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for reason, n := range f.count {
		yield(string(reason), n)
	}
}

// sampleCameras reads the cameras, one after the other.
func (m *nodeMetrics) sampleCameras(k metrics.Sink) {
	for _, c := range m.node.list() {
		m.sampleCamera(k, c)
	}
}

func (m *nodeMetrics) sampleCamera(k metrics.Sink, c *camera) {
	id, cm := string(c.id), &m.camera
	stats, status := c.stats(), c.board.Status()
	c.mu.Lock()
	sessions := c.sessions
	c.mu.Unlock()
	k.Bool(cm.up, status.State == fleet.CameraLive, id)
	k.Put(cm.state, 1, id, status.State.String(), string(status.Reason))
	k.Put(cm.viewers, float64(sessions), id)
	k.Put(cm.bytes, float64(stats.Bytes), id)
	k.Put(cm.packets, float64(stats.Packets), id)
	k.Put(cm.missing, float64(stats.PacketsLost), id)
	k.Put(cm.frames, float64(stats.Frames), id)
	k.Put(cm.keyframes, float64(stats.Keyframes), id)
	var l lost
	l.add(stats)
	d := l.discards
	k.Put(cm.discarded, float64(d.Malformed+d.Late+d.Oversized+d.ParameterSets+d.Supplements+d.UnsupportedFormat+d.BFrames+d.Damaged), id)
	k.Put(cm.dropped, float64(l.drops.Overflow+l.drops.AwaitingKeyframe+l.drops.NoRoom), id)
	k.Put(cm.bitrate, float64(stats.BitrateBPS)/8, id)
	k.Put(cm.fps, stats.FramesPerSecond, id)
	k.Put(cm.interval, stats.KeyframeInterval.Seconds(), id)
	k.Put(cm.loss, stats.Loss, id)
	if status.State != fleet.CameraLive {
		stats.Jitter = 0
	}
	k.Put(cm.jitter, stats.Jitter.Seconds(), id)
	if cause := status.Verdict.Cause; cause != fleet.CauseNone {
		k.Put(cm.verdict, 1, id, cause.String())
	}
	asks := c.keyframes.Counters()
	k.Put(cm.asked, float64(asks.RTCP), id, "rtcp")
	k.Put(cm.asked, float64(asks.ONVIF), id, "onvif")
	k.Put(cm.asked, float64(asks.Failed), id, "failed")
	c.failures.each(func(reason string, n int) { k.Put(cm.failures, float64(n), id, reason) })
	m.sampleInfo(k, id, status, stats)
}

// sampleInfo says what the camera sends, if that is known.
func (m *nodeMetrics) sampleInfo(k metrics.Sink, id string, status fleet.CameraStatus, stats stream.Stats) {
	if len(status.Profiles) == 0 {
		return
	}
	p := status.Profiles[0]
	var video, audio string
	for _, t := range p.Tracks {
		switch {
		case stream.Supported(stream.Video, t.Codec):
			video = t.Codec
		case stream.Supported(stream.Audio, t.Codec):
			audio = t.Codec
		}
	}
	k.Put(m.camera.info, 1, id, strings.ToLower(video), strings.ToLower(audio), strconv.Itoa(stats.Width), strconv.Itoa(stats.Height), p.Transport.String())
}

// sampleNode reads the node's state.
func (m *nodeMetrics) sampleNode(k metrics.Sink) {
	n, l := m.node, &m.load
	n.mu.Lock()
	cameras, expired, stopping := len(n.cameras), n.suspend, n.stopping
	n.mu.Unlock()
	m.mu.Lock()
	connected, changed := m.connected, m.changed
	m.mu.Unlock()
	k.Put(l.cameras, float64(cameras))
	k.Bool(l.connected, connected)
	k.Put(l.changed, float64(changed.UnixMilli())/1000)
	k.Bool(l.expired, expired)
	k.Bool(l.leaving, stopping || n.left())
	capacity := n.cfg.Capacity
	k.Put(l.maxSessions, float64(capacity.Viewers))
	load := n.meter.load()
	k.Put(l.cpu, load.cpu)
	k.Bool(l.overloaded, load.overloaded)
	for _, limit := range []struct {
		metric *metrics.Sampled
		value  float64
	}{
		{l.maxCameras, float64(capacity.Cameras)},
		{l.maxIngress, float64(capacity.IngressBPS) / 8},
		{l.maxEgress, float64(capacity.EgressBPS) / 8},
		{l.maxCPU, n.meter.maxCPU},
	} {
		if limit.value > 0 {
			k.Put(limit.metric, limit.value)
		}
	}
}

// sampleViewers reads what the engine and the socket have counted; before Run,
// nothing.
func (m *nodeMetrics) sampleViewers(k metrics.Sink) {
	m.node.mu.Lock()
	engine := m.node.engine
	m.node.mu.Unlock()
	var e session.EngineStats
	var u udp.Stats
	if engine != nil {
		e, u = engine.Stats(), engine.SocketStats()
	}
	k.Put(m.load.sessions, float64(e.Sessions))
	k.Put(m.load.orphans, float64(m.orphans.Load()))
	v := &m.viewers
	k.Put(v.packets, float64(e.Total.Packets))
	k.Put(v.bytes, float64(e.Total.Bytes))
	k.Put(v.writeErrors, float64(e.Total.WriteErrors))
	k.Put(v.keyframeRequests, float64(e.Total.KeyframeRequests))
	k.Put(v.nacked, float64(e.Total.Nacked))
	k.Put(v.resent, float64(e.Total.Resent))
	k.Put(v.withheld, float64(e.Total.NackRefused))
	k.Put(v.missed, float64(e.Total.NackMissed))
	k.Put(v.switches, float64(e.Total.Switches))
	k.Put(v.replays, float64(e.Total.Replays))
	var verdicts tally
	if t := m.verdicts.Load(); t != nil {
		verdicts = *t
	}
	for cause, n := range verdicts {
		k.Put(m.load.verdicts, float64(n), cmp.Or(fleet.Cause(cause).String(), "none"))
	}
	for profile, n := range e.Profiles {
		k.Put(v.profiles, float64(n), profile)
	}
	l := m.lost()
	for reason, n := range map[string]int64{
		"malformed": l.discards.Malformed, "late": l.discards.Late, "oversized": l.discards.Oversized,
		"parameter_sets": l.discards.ParameterSets, "supplements": l.discards.Supplements, "unsupported_format": l.discards.UnsupportedFormat,
		"b_frames": l.discards.BFrames, "damaged": l.discards.Damaged,
	} {
		k.Put(v.discards, float64(n), reason)
	}
	k.Put(v.drops, float64(l.drops.Overflow), "overflow")
	k.Put(v.drops, float64(l.drops.AwaitingKeyframe), "awaiting_keyframe")
	k.Put(v.drops, float64(l.drops.NoRoom), "no_room")
	k.Put(v.drops, float64(u.Dropped), "socket_full")
	for direction, c := range map[string][3]uint64{
		"in": {u.PacketsIn, u.BytesIn, u.ReadErrors}, "out": {u.PacketsOut, u.BytesOut, u.WriteErrors},
	} {
		k.Put(m.socket.packets, float64(c[0]), direction)
		k.Put(m.socket.bytes, float64(c[1]), direction)
		k.Put(m.socket.errors, float64(c[2]), direction)
	}
	k.Put(m.socket.tcpRefused, float64(e.TCPRefused))
}

// lost returns what the streams of all cameras, also of those that are gone,
// did not pass on.
func (m *nodeMetrics) lost() lost {
	m.mu.Lock()
	defer m.mu.Unlock()
	sum := m.departed
	for c := range m.cameras {
		sum.add(c.stats())
	}
	return sum
}
