package medianode

import (
	"fmt"
	"math"
	"time"

	"fanlight/internal/fleet"
)

// What is to blame for a picture that is not good is judged every two seconds, of
// each camera and each session, from figures that are there anyway.
//
// Who is upstream is to blame first: what a camera's packets lack when they come
// to the node every viewer lacks, and what the node does not send no network can
// carry. So a session has its camera's verdict if that is of the camera, the node
// or the codec, and one of its own, that of its network, otherwise. A codec is to
// blame where nothing of the camera can be played: that there is no sound is not
// a picture that is not good, and is said in the track's status.
//
// A figure counts against somebody from one limit on, and if it is the one that
// decided, until it is below another; and a verdict is another only after two
// looks that agree (three to be let off), so that it does not flap.
const (
	judgeEvery = 2 * time.Second
	convictAt  = 2 // looks, one after the other
	acquitAt   = 3
	// resayAfter is how old what was said must be for its figures to be said anew,
	// and resayChange by how much the figure must differ, as a share.
	resayAfter  = 10 * time.Second
	resayChange = 0.3
)

// figure is one that counts against somebody: which one decided. The zero value:
// none, or one that has no limits.
type figure int

const (
	byLoss figure = iota + 1
	byJitter
	byDrops
	bySocket
	byProcessors
	byOverload
	byFull
	byNarrowness
	byRoundTrip
)

// limits are from where on a figure counts against somebody who was not blamed
// for it before, and down to where against somebody who was.
type limits struct{ on, off float64 }

func (l limits) exceeded(v float64, blamed bool) bool {
	return v >= l.on || blamed && v > l.off
}

var (
	// A packet that the camera's side loses is not sent again: pictures stand still
	// until the next keyframe.
	cameraLoss = limits{on: 0.01, off: 0.003}
	// cameraMissing is how many packets that must be, too: where few come, one is
	// much of them.
	cameraMissing = limits{on: 5, off: 1}
	cameraJitter  = limits{on: 0.150, off: 0.075} // seconds
	nodeDrops     = limits{on: 0.01, off: 0.003}  // of all packets to viewers
	// nodeBusy is the share of all processors from which packets come late, whatever
	// the limit beyond which the node takes no more sessions.
	nodeBusy = limits{on: 0.97, off: 0.90}
	// What a viewer loses is sent again; from here on it shows.
	viewerLoss      = limits{on: 0.03, off: 0.015}
	viewerFull      = limits{on: 0.01, off: 0.003} // of the packets to it
	viewerRoundTrip = limits{on: 0.400, off: 0.250}
	viewerJitter    = limits{on: 0.150, off: 0.075} // more than the camera's
	// viewerNarrow is of what a profile needs that is more than the path carries.
	viewerNarrow = limits{on: 0.2, off: 0.1}
)

// finding is what one look found against somebody; the zero value: nothing.
type finding struct {
	cause   fleet.Cause
	figure  figure  // that decided
	amount  float64 // of it, by which later ones are compared
	message string
}

// judgement is what is held against one party: a profile of a camera, the node as
// far as a camera's viewers are concerned, a viewer's network.
type judgement struct {
	verdict fleet.Verdict
	figure  figure    // that decided: its lower limit counts, and of no other
	amount  float64   // that the verdict's message has
	said    time.Time // when the message was made
	other   finding   // what the latest looks found instead
	looks   int       // how many of them
}

// blames tells whether the verdict has a cause.
func (j *judgement) blames(cause fleet.Cause) bool { return j.verdict.Cause == cause }

// hear takes what a look has found. Looks agree if they find the same cause; what
// is said of a cause becomes another once they agree in another figure too.
func (j *judgement) hear(now time.Time, f finding) {
	if f.cause == j.verdict.Cause && f.figure == j.figure {
		j.looks = 0
		if f.cause != fleet.CauseNone && now.Sub(j.said) >= resayAfter && math.Abs(f.amount-j.amount) > resayChange*j.amount {
			j.say(now, f)
		}
		return
	}
	if f.cause != j.other.cause || f.cause == j.verdict.Cause && f.figure != j.other.figure {
		j.looks = 0
	}
	j.other = f
	j.looks++
	need := convictAt
	if f.cause == fleet.CauseNone {
		need = acquitAt
	}
	if j.looks >= need {
		j.say(now, f)
	}
}

func (j *judgement) say(now time.Time, f finding) {
	*j = judgement{verdict: fleet.Verdict{Cause: f.cause, Message: f.message}, figure: f.figure, amount: f.amount, said: now}
}

// profileFigures are what is seen of a profile that is live.
type profileFigures struct {
	loss    float64 // share of packets, over ten seconds
	missing int64   // packets, in the same time
	jitter  time.Duration
	tcp     bool // RTP comes over TCP
}

// blameProfile tells whether a camera, or the network between it and its node, is
// to blame. held: by which figure it has been.
func blameProfile(f profileFigures, held figure) finding {
	switch lossy := held == byLoss; {
	case cameraLoss.exceeded(f.loss, lossy) && cameraMissing.exceeded(float64(f.missing), lossy):
		advice := "use TCP, or look at its network"
		if f.tcp {
			advice = "it sends less than it numbers: look at its load, or lower its bit rate"
		}
		return finding{fleet.CauseCamera, byLoss, f.loss, fmt.Sprintf("the camera lost %s of its packets on the way to the node in the last 10 s: %s", tenths(f.loss), advice)}
	case cameraJitter.exceeded(f.jitter.Seconds(), held == byJitter):
		return finding{fleet.CauseCamera, byJitter, f.jitter.Seconds(), fmt.Sprintf("pictures come from the camera unevenly, by %s: look at its network and its load", ms(f.jitter))}
	}
	return finding{}
}

// nodeFigures are what the node did to the packets of a camera's viewers since the
// look before.
type nodeFigures struct {
	dropped    float64 // share of the packets to them that it had no time for
	socketFull float64 // share of all packets that its network took too slowly
	cpu        float64 // share of all processors
	overloaded bool
	viewers    float64 // share of the viewers who lose packets
}

// blameNode tells whether the node is to blame. held: by which figure it has been.
func blameNode(f nodeFigures, held figure) finding {
	busy := fmt.Sprintf("its processors are %s busy", percent(f.cpu))
	behind := func(by figure) finding {
		return finding{fleet.CauseNode, by, f.cpu, fmt.Sprintf("the node does not keep up, %s: give it fewer viewers, or more processors", busy)}
	}
	switch {
	case nodeDrops.exceeded(f.dropped, held == byDrops):
		return finding{fleet.CauseNode, byDrops, f.dropped, fmt.Sprintf("the node did not send %s of the packets in time, %s: give it fewer viewers, or more processors", tenths(f.dropped), busy)}
	case nodeDrops.exceeded(f.socketFull, held == bySocket):
		return finding{fleet.CauseNode, bySocket, f.socketFull, fmt.Sprintf("the node's network did not take %s of its packets in time: give it fewer viewers, or a faster network", tenths(f.socketFull))}
	case nodeBusy.exceeded(f.cpu, held == byProcessors):
		return behind(byProcessors)
	case f.overloaded && f.viewers > 0.5:
		return behind(byOverload)
	}
	return finding{}
}

// viewerFigures are what is seen of the way to a viewer who is being sent
// something.
type viewerFigures struct {
	loss      float64 // share of video packets before they are sent again, over some seconds
	latest    float64 // the same, of the latest report
	full      float64 // share of packets since the look before that its TCP connection had no room for
	roundTrip time.Duration
	jitter    time.Duration // at the viewer
	camera    time.Duration // jitter of what the node was sent
	estimate  int64         // bits per second that the path carries; 0: unknown
	growing   bool          // the estimate is too low and grows: it says nothing yet
	bitrate   int64         // bits per second of the profile that it gets, over some looks; 0: unknown
}

// blameViewer tells whether the network between node and viewer is to blame. held:
// by which figure it has been. Who has not been for loss is not for what is over:
// the latest report must be of as much.
func blameViewer(f viewerFigures, held figure) finding {
	loss, narrow := f.loss, 0.
	if held != byLoss {
		loss = min(loss, f.latest)
	}
	if f.estimate > 0 && f.bitrate > 0 && !f.growing {
		narrow = 1 - float64(f.estimate)/float64(f.bitrate)
	}
	network := func(by figure, amount float64, message string) finding {
		return finding{fleet.CauseViewerNetwork, by, amount, message}
	}
	trip := ""
	if f.roundTrip > 0 {
		trip = ", round trip " + ms(f.roundTrip)
	}
	switch jitter := f.jitter - f.camera; {
	case viewerLoss.exceeded(loss, held == byLoss):
		return network(byLoss, f.loss, fmt.Sprintf("this viewer loses %s of its packets%s: look at its network", tenths(f.loss), trip))
	case viewerFull.exceeded(f.full, held == byFull):
		return network(byFull, f.full, fmt.Sprintf("this viewer's connection had no room for %s of its packets%s: look at its network", tenths(f.full), trip))
	case viewerNarrow.exceeded(narrow, held == byNarrowness):
		return network(byNarrowness, narrow, fmt.Sprintf("the path to this viewer carries some %s, the picture needs %s: look at its network, or add a smaller profile", mbits(float64(f.estimate)), mbits(float64(f.bitrate))))
	case viewerRoundTrip.exceeded(f.roundTrip.Seconds(), held == byRoundTrip):
		return network(byRoundTrip, f.roundTrip.Seconds(), fmt.Sprintf("what this viewer sees is late, round trip %s: look at its network", ms(f.roundTrip)))
	case viewerJitter.exceeded(jitter.Seconds(), held == byJitter):
		return network(byJitter, jitter.Seconds(), fmt.Sprintf("packets come to this viewer unevenly, by %s%s: look at its network", ms(f.jitter), trip))
	}
	return finding{}
}

// breadth is what is known of whether the path to a viewer carries the profile
// that it gets. The zero value: nothing yet.
type breadth struct {
	profile string
	bytes   int64 // of the profile, at the look before
	at      time.Time
	spans   int     // between looks that bitrate is of
	bitrate float64 // bits per second of the profile
	highest int64   // of the estimates that were too low; 0: the latest was not
}

const (
	// breadthSpans is how many times between two looks the bitrate is smoothed over:
	// some seconds have a keyframe, and some have none.
	breadthSpans = 5
	// breadthGrowth is by what share a low estimate must exceed those before it to
	// be one that grows. Browsers begin with what they were sent before, and go up by
	// some 8 % a second.
	breadthGrowth = 0.05
)

// look takes of how many bytes the profile has been, and what the viewer's
// estimate is. It returns the bitrate that the profile needs, 0 at the profile's
// first look, and whether the estimate is too low but grows.
func (b *breadth) look(now time.Time, profile string, bytes, estimate int64) (bitrate int64, growing bool) {
	if profile != b.profile || bytes < b.bytes {
		*b = breadth{profile: profile}
	} else if span := now.Sub(b.at).Seconds(); span > 0 {
		b.spans = min(b.spans+1, breadthSpans)
		b.bitrate += (float64(8*(bytes-b.bytes))/span - b.bitrate) / float64(b.spans)
	}
	b.bytes, b.at, bitrate = bytes, now, int64(b.bitrate)
	switch {
	case estimate <= 0 || bitrate > 0 && estimate >= bitrate:
		b.highest = 0
	case b.highest == 0:
		b.highest = estimate
	case float64(estimate) > (1+breadthGrowth)*float64(b.highest):
		b.highest, growing = estimate, true
	}
	return bitrate, growing
}

// blameViewers tells whether the networks of most of a camera's viewers are to
// blame: of two at least. bad of all have such a verdict.
func blameViewers(bad, all int) finding {
	if bad < 2 || 2*bad <= all {
		return finding{}
	}
	return finding{fleet.CauseViewerNetwork, 0, float64(bad), fmt.Sprintf("%d of %d viewers have a bad network: look at what they have in common, the node's own uplink too", bad, all)}
}

// blameCamera is the verdict on a camera that does not have to be waited for: of
// one that cannot be pulled, or whose video nobody can play. The zero value: there
// is none.
func blameCamera(status fleet.CameraStatus, profiles int) fleet.Verdict {
	unplayable := 0
	for _, p := range status.Profiles {
		if p.Reason == fleet.ReasonBFrames || p.Reason == fleet.ReasonCodecUnsupported {
			unplayable++
		}
	}
	switch {
	case status.State == fleet.CameraFailed && status.Reason == fleet.ReasonCodecUnsupported:
		return fleet.Verdict{Cause: fleet.CauseCodec, Message: status.Reason.Sentence() + ": set it to H264 without B-frames"}
	case status.State == fleet.CameraFailed && status.Reason != fleet.ReasonNetworkForbidden:
		return fleet.Verdict{Cause: fleet.CauseCamera, Message: status.Reason.Sentence()}
	case status.State != fleet.CameraLive:
		return fleet.Verdict{}
	case unplayable == profiles && profiles > 0:
		return fleet.Verdict{Cause: fleet.CauseCodec, Message: fleet.ReasonBFrames.Sentence() + ": set them to 0, or its profile to baseline"}
	}
	for _, p := range status.Profiles {
		if p.State == fleet.CameraFailed {
			return fleet.Verdict{Cause: fleet.CauseCamera, Message: fmt.Sprintf("profile %q cannot be had, viewers get another: %s", p.ID, p.Reason.Sentence())}
		}
	}
	return fleet.Verdict{}
}

// upstream tells whether a verdict is of what every viewer of a camera gets.
func upstream(v fleet.Verdict) bool {
	return v.Cause == fleet.CauseCamera || v.Cause == fleet.CauseNode || v.Cause == fleet.CauseCodec
}

// tenths writes a share as "12.3 %".
func tenths(share float64) string { return fmt.Sprintf("%.1f %%", 100*share) }

// ms writes a time as "180 ms".
func ms(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
