package medianode

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// figures are what moves all the time: reported coarsely. Guarded by camera.mu.
type figures struct {
	next      time.Time // not before
	bitrate   float64
	fps       float64
	interval  float64 // seconds between keyframes
	lost      int64
	loss      float64 // the greatest of the profiles'
	jitter    float64 // seconds, likewise
	viewers   int
	said      string // what is said of it beside figures, and is not of its state
	width     int
	height    int
	announced fleet.CameraState
}

// noticeable tells whether a figure has moved by more than a tenth.
func noticeable(old, now float64) bool {
	return math.Abs(now-old) > 0.1*math.Max(math.Abs(old), math.Abs(now))
}

func figuresOf(status fleet.CameraStatus) figures {
	f := figures{viewers: status.Viewers, announced: status.State, said: status.Verdict.Cause.String()}
	for _, p := range status.Profiles {
		f.bitrate += float64(p.BitrateBPS)
		f.fps += p.FramesPerSecond
		f.interval += p.KeyframeInterval.Seconds()
		f.lost += p.PacketsLost
		f.loss, f.jitter = max(f.loss, p.Loss), max(f.jitter, p.Jitter.Seconds())
		f.viewers += p.Viewers
		f.said += fmt.Sprintf(" %s %d %d", p.ID, p.KeyframeRequest, p.BFrames)
		for _, t := range p.Tracks {
			f.width, f.height = max(f.width, t.Width), max(f.height, t.Height)
		}
	}
	return f
}

// moved tells whether f is worth a report after old.
func (f figures) moved(old figures) bool {
	return noticeable(old.bitrate, f.bitrate) || noticeable(old.fps, f.fps) || noticeable(old.interval, f.interval) ||
		f.lost != old.lost || f.said != old.said || noticeable(old.loss, f.loss) && math.Abs(f.loss-old.loss) > leastLoss ||
		noticeable(old.jitter, f.jitter) && math.Abs(f.jitter-old.jitter) > leastJitter.Seconds() || f.viewers != old.viewers || f.width != old.width || f.height != old.height
}

// The changes that are worth a report: both figures wander all the time.
const (
	leastLoss   = 0.005 // of all packets
	leastJitter = 5 * time.Millisecond
)

// observe returns what to report of a camera. Because its state changed: always,
// and its figures soon after. Else only if they have moved and it is time; nil:
// nothing.
func (c *camera) observe(now time.Time, changed bool) *controlv1.ObservedCamera {
	status, generation := c.status()
	f := figuresOf(status)
	c.mu.Lock()
	old := c.figures
	if !changed && (now.Before(old.next) || !f.moved(old)) {
		c.mu.Unlock()
		return nil
	}
	switch {
	case changed && f.announced != old.announced:
		f.next = now.Add(firstFigures)
	case changed && now.Before(old.next):
		f.next = old.next // what is said in between does not put figures off
	default:
		f.next = now.Add(figuresInterval + rand.N(figuresCheck))
	}
	c.figures = f
	c.mu.Unlock()
	return &controlv1.ObservedCamera{Camera: c.id.Name(), Generation: generation, Status: toStatus(status)}
}

// reportChanges reports the cameras whose state changed, and those released.
func (c *controlStream) reportChanges(now time.Time) error {
	n := c.agent.node
	var out []*controlv1.ObservedCamera
	ids := n.changes.take()
	for _, camera := range n.list() {
		if _, ok := ids[camera.id]; ok {
			out = append(out, camera.observe(now, true))
		}
	}
	n.mu.Lock()
	released := n.released.take(now)
	n.mu.Unlock()
	return c.report(out, nil, released)
}

// reportFigures reports the cameras whose figures have moved, and the node's
// load.
func (c *controlStream) reportFigures(now time.Time) error {
	n := c.agent.node
	var out []*controlv1.ObservedCamera
	load := n.meter.load()
	load.next = now.Add(figuresInterval + rand.N(figuresCheck))
	for _, camera := range n.list() {
		if o := camera.observe(now, false); o != nil {
			out = append(out, o)
		}
		load.add(camera)
	}
	if load.due(c.load, now) {
		c.load = load
		return c.report(out, load.proto(), nil)
	}
	return c.report(out, nil, nil)
}

// report sends what there is, in pieces.
func (c *controlStream) report(cameras []*controlv1.ObservedCamera, load *controlv1.NodeLoad, released []*controlv1.RunningAssignment) error {
	for len(cameras) > 0 || load != nil || len(released) > 0 {
		seen, gone := min(len(cameras), maxReported), min(len(released), maxReported)
		m := &controlv1.Report{Cameras: cameras[:seen], Load: load, Released: released[:gone]}
		if err := c.send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Report{Report: m}}); err != nil {
			return err
		}
		cameras, load, released = cameras[seen:], nil, released[gone:]
	}
	return nil
}

// nodeLoad is what the node has.
type nodeLoad struct {
	next             time.Time // the next report is not due before
	cameras, viewers int
	ingress, egress  float64 // bits per second
	cpu              float64 // of all processors
	overloaded       bool
}

// add counts a camera and its viewers.
func (l *nodeLoad) add(c *camera) {
	status, _ := c.status()
	if status.State != fleet.CameraIdle {
		l.cameras++
	}
	l.viewers += status.Viewers
}

const (
	// leastEgress is the change of what is sent that is worth a report, in bits per
	// second: ICE alone sends something, and never twice as much.
	leastEgress = 100_000
	// leastCPU is that of the processors, as a share of all.
	leastCPU = 0.05
)

// due tells whether l is to be reported now, after old. That the node has become
// overloaded does not wait: it is about to be given cameras. That it is not any
// more does, so that a node on the brink does not say something else each second.
func (l nodeLoad) due(old nodeLoad, now time.Time) bool {
	return !now.Before(old.next) && l.moved(old) || l.overloaded && !old.overloaded
}

// moved tells whether l is worth a report after old.
func (l nodeLoad) moved(old nodeLoad) bool {
	return l.cameras != old.cameras || l.viewers != old.viewers || l.overloaded != old.overloaded || noticeable(old.ingress, l.ingress) ||
		noticeable(old.egress, l.egress) && math.Abs(l.egress-old.egress) > leastEgress || math.Abs(l.cpu-old.cpu) > leastCPU
}

func (l nodeLoad) proto() *controlv1.NodeLoad {
	return &controlv1.NodeLoad{
		Cameras: int32(l.cameras), Viewers: int32(l.viewers), IngressBps: int64(l.ingress), EgressBps: int64(l.egress),
		CpuUtilization: math.Round(1000*l.cpu) / 1000, Overloaded: l.overloaded,
	}
}

var cameraStates = map[fleet.CameraState]controlv1.CameraStatus_State{
	fleet.CameraConnecting: controlv1.CameraStatus_STATE_CONNECTING,
	fleet.CameraLive:       controlv1.CameraStatus_STATE_LIVE,
	fleet.CameraFailed:     controlv1.CameraStatus_STATE_FAILED,
	fleet.CameraIdle:       controlv1.CameraStatus_STATE_IDLE,
}

// toStatus returns a status as the control plane takes it.
func toStatus(in fleet.CameraStatus) *controlv1.CameraStatus {
	out := &controlv1.CameraStatus{
		State: cameraStates[in.State], Reason: controlv1.Reason(controlv1.Reason_value[in.Reason.Enum()]), Message: in.Message, Viewers: int32(in.Viewers),
	}
	if in.State == fleet.CameraFailed && !in.RetryTime.IsZero() {
		out.RetryTime = timestamppb.New(in.RetryTime)
	}
	if !in.Since.IsZero() {
		out.StateTime = timestamppb.New(in.Since)
	}
	if in.Verdict != (fleet.Verdict{}) {
		out.Verdict = &controlv1.Verdict{Cause: controlv1.Verdict_Cause(in.Verdict.Cause), Message: in.Verdict.Message}
	}
	for _, p := range in.Profiles {
		out.Profiles = append(out.Profiles, toProfileStatus(p))
	}
	return out
}

func toProfileStatus(p fleet.ProfileStatus) *controlv1.ProfileStatus {
	out := &controlv1.ProfileStatus{
		Id: p.ID, State: cameraStates[p.State], Reason: controlv1.Reason(controlv1.Reason_value[p.Reason.Enum()]), Message: p.Message,
		Transport: transportsAPI[p.Transport], UrlIndex: int32(p.URLIndex), BitrateBps: p.BitrateBPS, FramesPerSecond: p.FramesPerSecond,
		PacketsLost: p.PacketsLost, Loss: math.Round(10_000*p.Loss) / 10_000, Viewers: int32(p.Viewers),
		KeyframeRequest: controlv1.ProfileStatus_KeyframeRequest(p.KeyframeRequest), BFrames: controlv1.ProfileStatus_BFrames(p.BFrames),
	}
	if p.State == fleet.CameraFailed && !p.RetryTime.IsZero() {
		out.RetryTime = timestamppb.New(p.RetryTime)
	}
	if p.KeyframeInterval > 0 {
		out.KeyframeInterval = durationpb.New(p.KeyframeInterval)
	}
	if p.Jitter > 0 {
		out.Jitter = durationpb.New(p.Jitter.Round(10 * time.Microsecond))
	}
	for _, t := range p.Tracks {
		out.Tracks = append(out.Tracks, &controlv1.TrackStatus{
			Codec: t.Codec, Width: int32(t.Width), Height: int32(t.Height), UnsupportedReason: t.UnsupportedReason,
		})
	}
	return out
}

var transportsAPI = map[fleet.Transport]controlv1.Profile_Transport{
	fleet.TransportAuto:      controlv1.Profile_TRANSPORT_AUTO,
	fleet.TransportTCP:       controlv1.Profile_TRANSPORT_TCP,
	fleet.TransportUDP:       controlv1.Profile_TRANSPORT_UDP,
	fleet.TransportMulticast: controlv1.Profile_TRANSPORT_MULTICAST,
}
