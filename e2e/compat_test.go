//go:build e2e

package e2e

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// update has TestCompatibility write its document instead of comparing it.
var update = flag.Bool("update", false, "write docs/compatibility.md from what TestCompatibility sees")

// compatDoc is what TestCompatibility writes.
const compatDoc = "../docs/compatibility.md"

// outcome is what a cell of the matrix says. It is the same in each run: what
// may differ from run to run is not in it.
type outcome string

// The outcomes. Any other is a reason of docs/errors.md.
const (
	plays       outcome = "plays"
	withSound   outcome = "plays, with sound"
	silent      outcome = "plays, no sound"
	gaps        outcome = "plays with gaps"
	thinned     outcome = "plays, B-frames left out"
	unsupported outcome = "codec_unsupported"
	bFrames     outcome = "b_frames"
)

// wanted returns what a cell must say.
func wanted(camera compatCamera, client compatClient) outcome {
	switch {
	case !slices.Contains(client.takes, camera.Codec):
		return unsupported
	case camera.want != "":
		return camera.want
	case camera.audio != nil:
		return withSound
	}
	return plays
}

// TestCompatibility plays every camera in every client: each cell either plays,
// or gives the reason that it must, and docs/compatibility.md says so.
func TestCompatibility(t *testing.T) {
	site := newSite(t)
	s := up(t, "--allowed-origin", site.URL, "--media", machineAddress(t)+":0")
	cameras := startCompatCameras(t)
	var work sync.WaitGroup
	turn := make(chan struct{}, 4)
	errs := make([]error, len(compatCameras))
	for i, c := range compatCameras {
		work.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			_, errs[i] = s.tryCLI(t, append([]string{"camera", "add", c.Name}, cameras[c.Name].flags()...)...)
		})
	}
	work.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range compatCameras {
		eventually(t, picturePatience, c.Name+" is live, or says why not", func() (bool, string) {
			st := s.cameraStatus(t, c.Name)
			return st.State == "STATE_LIVE" || st.State == "STATE_FAILED", fmt.Sprintf("%+v", st)
		})
	}

	m := matrix{versions: map[string]string{}, cells: map[string]outcome{}, said: map[string]string{}}
	for _, client := range compatClients {
		t.Run(client.name, func(t *testing.T) {
			version, came := client.play(t, &compatRig{s, site})
			m.versions[client.name] = version
			t.Logf("%s, version: %s", client.name, version)
			for _, camera := range compatCameras {
				c, ok := find(came, camera.Name)
				if !ok {
					t.Errorf("%s: the client says nothing of it", camera.Name)
					continue
				}
				got, said := s.judge(t, camera, c)
				m.cells[camera.Name+" "+client.name] = got
				if said != "" {
					m.said[camera.Name+" "+client.name] = said
				}
				t.Logf("%s: %s %s (%d pictures, %d of sound, %d lost)", camera.Name, got, said, c.Video, c.Audio, c.Lost)
				if want := wanted(camera, client); got != want {
					t.Errorf("%s: %s, want %s; %+v", camera.Name, got, want, c)
				}
			}
		})
	}
	m.check(t)
}

// compatStatus is a camera's status in part.
type compatStatus struct {
	State    string    `json:"state"`
	Reason   string    `json:"reason"`
	Message  string    `json:"message"`
	Since    time.Time `json:"state_time"`
	Profiles []struct {
		Tracks []struct {
			Codec             string `json:"codec"`
			UnsupportedReason string `json:"unsupported_reason"`
		} `json:"tracks"`
		BFrames     string `json:"b_frames"`
		PacketsLost int64  `json:"packets_lost,string"`
	} `json:"profiles"`
	Verdict struct {
		Cause   string `json:"cause"`
		Message string `json:"message"`
	} `json:"verdict"`
}

// lossy tells whether the camera's network is to blame by what is said of it: the
// verdict, or that one packet in twenty or more has been lost of pictures that are
// a packet each, or more.
func (st compatStatus) lossy() bool {
	if st.Verdict.Cause == "CAUSE_CAMERA" {
		return true
	}
	var lost int64
	for _, p := range st.Profiles {
		lost += p.PacketsLost
	}
	return float64(lost) > 0.05*compatRate*time.Since(st.Since).Seconds()
}

func (s *system) cameraStatus(t *testing.T, name string) compatStatus {
	t.Helper()
	var c struct {
		Status compatStatus `json:"status"`
	}
	out := s.cli(t, "camera", "get", name, "-o", "json")
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatalf("camera get: %v\n%s", err, out)
	}
	return c.Status
}

// judge returns what a cell says, and the text beside its reason.
func (s *system) judge(t *testing.T, camera compatCamera, c cameTo) (outcome, string) {
	t.Helper()
	if reason, detail := c.refusal(); reason != "" {
		return checkReason(t, camera, reason, detail), detail
	}
	switch {
	case camera.want == gaps:
		st := s.cameraStatus(t, camera.Name)
		if st.State == "STATE_LIVE" && (c.Video >= camera.frames() || c.Video > 0 && st.lossy()) {
			return gaps, st.Verdict.Message
		}
		return outcome(fmt.Sprintf("%d pictures of a camera with status %+v", c.Video, st)), st.Verdict.Message
	case c.Video >= camera.frames() && !camera.sounds():
		if camera.want == thinned {
			if st := s.cameraStatus(t, camera.Name); len(st.Profiles) == 0 || st.Profiles[0].BFrames != "B_FRAMES_DROPPED" {
				return outcome(fmt.Sprintf("plays, and the status has not that B-frames are left out: %+v", st.Profiles)), ""
			}
			return thinned, ""
		}
		if camera.want != silent {
			return plays, ""
		}
		why := s.whySilent(t, camera.Name)
		if why == "" || c.Audio > 0 {
			return outcome(fmt.Sprintf("plays, %d of sound, and the camera's status says %q", c.Audio, why)), ""
		}
		return silent, why
	case c.Video >= camera.frames() && c.Audio >= compatSounds:
		return withSound, ""
	case c.Video >= camera.frames():
		return outcome(fmt.Sprintf("plays, but %d of sound", c.Audio)), ""
	}
	// Accepted, and no picture: the camera's state has the reason.
	st := s.cameraStatus(t, camera.Name)
	if st.Reason == "" {
		return outcome(fmt.Sprintf("%d pictures of a camera that is %s", c.Video, st.State)), c.Error
	}
	return checkReason(t, camera, strings.ToLower(strings.TrimPrefix(st.Reason, "REASON_")), st.Message), st.Message
}

// whySilent returns why a camera's sound is not passed on.
func (s *system) whySilent(t *testing.T, name string) string {
	t.Helper()
	for _, p := range s.cameraStatus(t, name).Profiles {
		for _, track := range p.Tracks {
			if track.UnsupportedReason != "" {
				return track.UnsupportedReason
			}
		}
	}
	return ""
}

// checkReason makes sure that a reason is documented, and that its text says what
// it is about.
func checkReason(t *testing.T, camera compatCamera, reason, text string) outcome {
	t.Helper()
	doc, err := os.ReadFile("../docs/errors.md")
	if err != nil {
		t.Fatal(err)
	}
	if upper := strings.ToUpper(reason); !strings.Contains(string(doc), "| `"+upper+"` |") && !strings.Contains(string(doc), "| `REASON_"+upper+"` |") {
		t.Errorf("%s: docs/errors.md knows no %q", camera.Name, reason)
	}
	sends := regexp.MustCompile(`camera sends ` + camera.Codec + `\b.*offers .`)
	if outcome(reason) == unsupported && camera.want == bFrames && strings.Contains(text, "B-frames") {
		return bFrames
	}
	if outcome(reason) == unsupported && !sends.MatchString(text) {
		t.Errorf("%s: the text names not what is sent and what could be taken: %q", camera.Name, text)
	}
	return outcome(reason)
}
