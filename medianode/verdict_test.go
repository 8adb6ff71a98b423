package medianode

import (
	"strings"
	"testing"
	"time"

	"fanlight/internal/fleet"
)

// What figures mean, of somebody who is not blamed yet and of one who is for the
// figure that the row is about.
func TestBlame(t *testing.T) {
	const (
		none, camera, node, network = fleet.CauseNone, fleet.CauseCamera, fleet.CauseNode, fleet.CauseViewerNetwork
	)
	profile := func(f profileFigures) func(figure) finding {
		return func(held figure) finding { return blameProfile(f, held) }
	}
	ofNode := func(f nodeFigures) func(figure) finding {
		return func(held figure) finding { return blameNode(f, held) }
	}
	viewer := func(f viewerFigures) func(figure) finding {
		return func(held figure) finding { return blameViewer(f, held) }
	}
	viewers := func(bad, all int) func(figure) finding {
		return func(figure) finding { return blameViewers(bad, all) }
	}
	for _, c := range []struct {
		name        string
		look        func(figure) finding
		held        figure
		want, still fleet.Cause
		says        string // what the message has, of the first that is not none
	}{
		{"camera: nothing lost", profile(profileFigures{}), byLoss, none, none, ""},
		{"camera: one packet of 500", profile(profileFigures{loss: 0.002, missing: 10}), byLoss, none, none, ""},
		{"camera: one of 200", profile(profileFigures{loss: 0.005, missing: 10}), byLoss, none, camera, "0.5 %"},
		{"camera: an eighth, over UDP", profile(profileFigures{loss: 0.123, missing: 40}), byLoss, camera, camera, "the camera lost 12.3 % of its packets on the way to the node in the last 10 s: use TCP, or look at its network"},
		{"camera: an eighth, over TCP", profile(profileFigures{loss: 0.123, missing: 40, tcp: true}), byLoss, camera, camera, "lower its bit rate"},
		{"camera: an eighth of few packets", profile(profileFigures{loss: 0.123, missing: 4}), byLoss, none, camera, "12.3 %"},
		{"camera: one packet of few", profile(profileFigures{loss: 0.05, missing: 1}), byLoss, none, none, ""},
		{"camera: uneven", profile(profileFigures{jitter: 210 * time.Millisecond}), byJitter, camera, camera, "210 ms"},
		{"camera: a little uneven", profile(profileFigures{jitter: 100 * time.Millisecond}), byJitter, none, camera, "100 ms"},
		{"camera: a little uneven, and blamed for loss", profile(profileFigures{jitter: 100 * time.Millisecond}), byLoss, none, none, ""},
		{"camera: loses a little, and blamed for jitter", profile(profileFigures{loss: 0.005, missing: 10}), byJitter, none, none, ""},
		{"camera: as cameras are", profile(profileFigures{jitter: 20 * time.Millisecond}), byJitter, none, none, ""},

		{"node: idle", ofNode(nodeFigures{cpu: 0.2}), byDrops, none, none, ""},
		{"node: drops", ofNode(nodeFigures{dropped: 0.05, cpu: 0.93}), byDrops, node, node, "5.0 % of the packets in time, its processors are 93 % busy"},
		{"node: socket full", ofNode(nodeFigures{socketFull: 0.02}), bySocket, node, node, "2.0 %"},
		{"node: no processor left", ofNode(nodeFigures{cpu: 0.98}), byProcessors, node, node, "98 %"},
		{"node: hardly one left", ofNode(nodeFigures{cpu: 0.93}), byProcessors, none, node, "93 %"},
		{"node: hardly one left, and blamed for drops", ofNode(nodeFigures{cpu: 0.93}), byDrops, none, none, ""},
		{"node: a few drops, and blamed for its processors", ofNode(nodeFigures{dropped: 0.005, socketFull: 0.005}), byProcessors, none, none, ""},
		{"node: overloaded, and nobody suffers", ofNode(nodeFigures{cpu: 0.86, overloaded: true}), byOverload, none, none, ""},
		{"node: overloaded, and most viewers lose packets", ofNode(nodeFigures{cpu: 0.86, overloaded: true, viewers: 0.6}), byOverload, node, node, "86 %"},

		{"viewer: fine", viewer(viewerFigures{loss: 0.005, roundTrip: 40 * time.Millisecond, jitter: 10 * time.Millisecond, estimate: 5e6, bitrate: 2e6}), byLoss, none, none, ""},
		{"viewer: loses packets", viewer(viewerFigures{loss: 0.08, latest: 0.1, roundTrip: 180 * time.Millisecond}), byLoss, network, network, "this viewer loses 8.0 % of its packets, round trip 180 ms"},
		{"viewer: loses some", viewer(viewerFigures{loss: 0.02, latest: 0.02}), byLoss, none, network, "2.0 % of its packets: look"},
		{"viewer: lost a lot, and not any more", viewer(viewerFigures{loss: 0.045, latest: 0.01}), byLoss, none, network, "4.5 %"},
		{"viewer: TCP has no room", viewer(viewerFigures{full: 0.3}), byFull, network, network, "no room for 30.0 %"},
		{"viewer: narrow", viewer(viewerFigures{estimate: 1e6, bitrate: 4e6}), byNarrowness, network, network, "carries some 1.0 Mbit/s, the picture needs 4.0 Mbit/s"},
		{"viewer: narrow, by an estimate that grows", viewer(viewerFigures{estimate: 1e6, bitrate: 4e6, growing: true}), byNarrowness, none, none, ""},
		{"viewer: a little narrow, and blamed for loss", viewer(viewerFigures{estimate: 17e5, bitrate: 2e6}), byLoss, none, none, ""},
		{"viewer: far away", viewer(viewerFigures{roundTrip: 620 * time.Millisecond}), byRoundTrip, network, network, "round trip 620 ms"},
		{"viewer: quite far away", viewer(viewerFigures{roundTrip: 300 * time.Millisecond}), byRoundTrip, none, network, "round trip 300 ms"},
		{"viewer: quite far away, and blamed for loss", viewer(viewerFigures{roundTrip: 300 * time.Millisecond}), byLoss, none, none, ""},
		{"viewer: uneven", viewer(viewerFigures{jitter: 300 * time.Millisecond, camera: 10 * time.Millisecond}), byJitter, network, network, "300 ms"},
		{"viewer: as uneven as its camera", viewer(viewerFigures{jitter: 300 * time.Millisecond, camera: 280 * time.Millisecond}), byJitter, none, none, ""},

		{"viewers: one of one", viewers(1, 1), 0, none, none, ""},
		{"viewers: two of four", viewers(2, 4), 0, none, none, ""},
		{"viewers: two of three", viewers(2, 3), 0, network, network, "2 of 3 viewers"},
	} {
		t.Run(c.name, func(t *testing.T) {
			fresh, blamed := c.look(0), c.look(c.held)
			if fresh.cause != c.want || blamed.cause != c.still {
				t.Errorf("cause %v, and if it was blamed before %v, want %v and %v", fresh.cause, blamed.cause, c.want, c.still)
			}
			for _, f := range []finding{fresh, blamed} {
				if (f.cause == none) != (f.message == "") || f.cause != none && !strings.Contains(f.message, c.says) {
					t.Errorf("message %q, want one with %q", f.message, c.says)
				}
			}
		})
	}
}

func TestBlameCamera(t *testing.T) {
	live := fleet.ProfileStatus{ID: "main", State: fleet.CameraLive}
	bFrames := fleet.ProfileStatus{ID: "main", State: fleet.CameraLive, Reason: fleet.ReasonBFrames}
	failed := fleet.ProfileStatus{ID: "sub", State: fleet.CameraFailed, Reason: fleet.ReasonStreamNotFound}
	for _, c := range []struct {
		name     string
		status   fleet.CameraStatus
		profiles int
		want     fleet.Cause
	}{
		{"live", fleet.CameraStatus{State: fleet.CameraLive, Profiles: []fleet.ProfileStatus{live}}, 1, fleet.CauseNone},
		{"connecting", fleet.CameraStatus{State: fleet.CameraConnecting, Profiles: []fleet.ProfileStatus{{ID: "main"}}}, 1, fleet.CauseNone},
		{"idle", fleet.CameraStatus{State: fleet.CameraIdle, Reason: fleet.ReasonIdle}, 1, fleet.CauseNone},
		{"refuses", fleet.CameraStatus{State: fleet.CameraFailed, Reason: fleet.ReasonConnectionRefused, Profiles: []fleet.ProfileStatus{failed}}, 1, fleet.CauseCamera},
		{"forbidden here", fleet.CameraStatus{State: fleet.CameraFailed, Reason: fleet.ReasonNetworkForbidden}, 1, fleet.CauseNone},
		{"codec", fleet.CameraStatus{State: fleet.CameraFailed, Reason: fleet.ReasonCodecUnsupported}, 1, fleet.CauseCodec},
		{"B-frames", fleet.CameraStatus{State: fleet.CameraLive, Profiles: []fleet.ProfileStatus{bFrames}}, 1, fleet.CauseCodec},
		{"B-frames, and another profile that nobody needs yet", fleet.CameraStatus{State: fleet.CameraLive, Profiles: []fleet.ProfileStatus{bFrames}}, 2, fleet.CauseNone},
		{"one of two fails", fleet.CameraStatus{State: fleet.CameraLive, Profiles: []fleet.ProfileStatus{live, failed}}, 2, fleet.CauseCamera},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := blameCamera(c.status, c.profiles)
			if got.Cause != c.want || (got.Message == "") != (c.want == fleet.CauseNone) {
				t.Errorf("%+v, want %v", got, c.want)
			}
		})
	}
}

// A verdict takes two looks, an acquittal three, and what is said does not change
// with each figure.
func TestJudgement(t *testing.T) {
	lost := func(share float64) finding {
		return blameProfile(profileFigures{loss: share, missing: 100}, byLoss)
	}
	var j judgement
	now := time.Now()
	for i, step := range []struct {
		found finding
		want  string // what the verdict's message has; empty: there is none
	}{
		{lost(0.1), ""},
		{finding{}, ""}, // not in a row
		{lost(0.1), ""},
		{lost(0.1), "10.0 %"},
		{lost(0.2), "10.0 %"}, // too soon for other figures
		{finding{}, "10.0 %"},
		{finding{}, "10.0 %"},
		{lost(0.11), "10.0 %"}, // and three looks begin anew
		{finding{}, "10.0 %"},
		{lost(0.2), "20.0 %"}, // is double after ten seconds
		{finding{}, "20.0 %"},
		{finding{}, "20.0 %"},
		{finding{}, ""},
		{finding{}, ""},
	} {
		j.hear(now, step.found)
		if got := j.verdict.Message; (step.want == "") != (got == "") || !strings.Contains(got, step.want) {
			t.Errorf("look %d: %q, want %q", i, got, step.want)
		}
		now = now.Add(2 * time.Second)
	}
}

// What is said is of the figure that decided: another one takes two looks as well,
// and looks that find either are of one cause.
func TestJudgementByAnotherFigure(t *testing.T) {
	var j judgement
	now := time.Now()
	for i, step := range []struct {
		seen viewerFigures
		want string // what the verdict's message has; empty: there is none
	}{
		{viewerFigures{loss: 0.1, latest: 0.1}, ""},
		{viewerFigures{jitter: 200 * time.Millisecond}, "unevenly"},
		{viewerFigures{jitter: 100 * time.Millisecond}, "unevenly"},
		{viewerFigures{loss: 0.1, latest: 0.1}, "unevenly"},
		{viewerFigures{}, "unevenly"},
		{viewerFigures{loss: 0.1, latest: 0.1}, "unevenly"}, // not in a row
		{viewerFigures{loss: 0.1, latest: 0.1}, "10.0 %"},
		{viewerFigures{loss: 0.02, jitter: 100 * time.Millisecond}, "10.0 %"},
		{viewerFigures{jitter: 100 * time.Millisecond, roundTrip: 300 * time.Millisecond}, "10.0 %"},
		{viewerFigures{jitter: 100 * time.Millisecond, roundTrip: 300 * time.Millisecond}, "10.0 %"},
		{viewerFigures{jitter: 100 * time.Millisecond, roundTrip: 300 * time.Millisecond}, ""},
	} {
		j.hear(now, blameViewer(step.seen, j.figure))
		if got := j.verdict.Message; (step.want == "") != (got == "") || !strings.Contains(got, step.want) {
			t.Errorf("look %d: %q, want %q", i, got, step.want)
		}
		now = now.Add(judgeEvery)
	}
}
