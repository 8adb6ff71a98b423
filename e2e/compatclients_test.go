//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"fanlight/internal/viewertest"
)

//go:embed testdata/compat.js
var compatScript string

// What a cell of the matrix needs to play.
const (
	compatFrames   = 20               // pictures decoded
	compatSounds   = 10               // packets or buffers of sound decoded
	compatPatience = 15 * time.Second // from joining on
	compatAtOnce   = 8                // cameras that a client plays at a time
)

// compatClient is a column of the matrix.
type compatClient struct {
	name  string
	takes []string // codecs of video that it can decode, by their names in SDP
	about string   // in docs/compatibility.md, behind the version
	play  func(t *testing.T, r *compatRig) (version string, came []cameTo)
}

// compatClients are the columns of the matrix, in its order.
var compatClients = []compatClient{
	{"Chromium", []string{"H264", "VP8", "VP9", "AV1"}, "Debian's, headless, as it is installed. Sound counts if WebAudio hears it.", chromiumCompat},
	{"Firefox", []string{"VP8", "VP9", "AV1"}, "Debian's, headless. It brings no decoder of H264: it fetches one, OpenH264, when it first runs on a machine with access to the internet. These tests have none, so that it offers no H264. Sound counts if its samples were decoded.", firefoxCompat},
	{"webrtcbin", []string{"H264", "H265", "VP8", "VP9"}, "GStreamer's element, with OpenH264, libde265 and libvpx behind it. This version has no depacketizer of AV1.", webrtcbinCompat},
	{"aiortc", []string{"H264", "VP8"}, "In Python, with FFmpeg's and libvpx's decoders.", aiortcCompat},
	{"pion", []string{"H264", "H265", "VP8", "VP9", "AV1"}, "In Go. It decodes nothing: the whole pictures that come are counted.", pionCompat},
}

// compatRig is what the clients play from.
type compatRig struct {
	system *system
	site   *site
}

// cameTo is what a client says of a camera.
type cameTo struct {
	Camera   string `json:"camera"`
	Endpoint string `json:"endpoint"` // in place of Camera
	Version  string `json:"version"`
	Error    string `json:"error"` // "POST: 406 {…}" if the session was refused
	Video    int    `json:"video"` // pictures decoded
	Audio    int    `json:"audio"` // of sound: packets, buffers, or looks at a loudness
	Codec    string `json:"codec"` // of the video, if the client tells
	Lost     int    `json:"lost"`  // packets of video, if the client tells
}

// refusal returns the reason and the text of the gateway's refusal; empty: it
// took the offer.
func (c cameTo) refusal() (reason, detail string) {
	_, body, ok := strings.Cut(c.Error, "{")
	if !ok {
		return "", ""
	}
	var problem struct{ Reason, Detail string }
	if err := json.NewDecoder(strings.NewReader("{" + body)).Decode(&problem); err != nil {
		return "", ""
	}
	return problem.Reason, problem.Detail
}

// frames returns how many pictures are to be decoded: so many that a clock leaps
// at least once meanwhile.
func (c compatCamera) frames() int {
	if c.fault.Clock == clockLeaps {
		return compatRate * 7
	}
	return compatFrames
}

// sounds tells whether sound is to be heard.
func (c compatCamera) sounds() bool { return c.audio != nil && c.want != silent }

// page returns the argument of testdata/compat.js; listens: sound is heard, by
// WebAudio, which is silent in Firefox on a machine without a device.
func (r *compatRig) page(t *testing.T, listens bool) string {
	t.Helper()
	type one struct {
		Camera   string `json:"camera"`
		Endpoint string `json:"endpoint"`
		Enough   int    `json:"enough"` // pictures
		Sounds   int    `json:"sounds"`
	}
	var cameras []one
	for _, c := range compatCameras {
		sounds := 0
		if c.sounds() {
			sounds = compatSounds
		}
		cameras = append(cameras, one{c.Name, r.system.whep(c.Name), c.frames(), sounds})
	}
	return marshal(t, map[string]any{"cameras": cameras, "atOnce": compatAtOnce, "patience": compatPatience.Milliseconds(), "listens": listens})
}

func chromiumCompat(t *testing.T, r *compatRig) (string, []cameTo) {
	page := open(t, r.system.gateways[0]+"/healthz") // of the gateway's origin, and no player on it
	came := evaluate[[]cameTo](t, page, fmt.Sprintf("%s; %s; window.fanlightCompat(%s)", whepScript, compatScript, r.page(t, true)))
	return page.version(t), came
}

func firefoxCompat(t *testing.T, r *compatRig) (string, []cameTo) {
	p := startFirefox(t, r.site, "/compat")
	defer p.kill(t)
	r.site.camera <- r.page(t, false)
	got := r.site.next(t, "compat")
	if got.Error != "" {
		t.Fatal(got.Error)
	}
	return regexp.MustCompile(`Firefox/\S+`).FindString(got.Version), got.Compat
}

func webrtcbinCompat(t *testing.T, r *compatRig) (string, []cameTo) {
	return scriptCompat(t, r, "testdata/webrtcbin.py")
}

func aiortcCompat(t *testing.T, r *compatRig) (string, []cameTo) {
	return scriptCompat(t, r, "testdata/aiortc_whep.py")
}

// scriptCompat plays in a program that tells of each camera by a line of JSON.
func scriptCompat(t *testing.T, r *compatRig, script string) (version string, came []cameTo) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*startPatience)
	defer cancel()
	args := []string{
		script, "--video", strconv.Itoa(compatFrames), "--audio", strconv.Itoa(compatSounds),
		"--seconds", strconv.Itoa(int(compatPatience.Seconds())), "--at-once", strconv.Itoa(compatAtOnce),
	}
	for _, c := range compatCameras {
		audio := 0
		if c.sounds() {
			audio = compatSounds
		}
		args = append(args, fmt.Sprintf("%s#video=%d&audio=%d", r.system.whep(c.Name), c.frames(), audio))
	}
	stderr, err := os.Create(artifact(t, "stderr.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd := exec.CommandContext(ctx, python, args...)
	cmd.Stderr = stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	// Its status only says that not every cell is good, which some are not to be.
	if exit := (*exec.ExitError)(nil); err != nil && (!errors.As(err, &exit) || exit.ExitCode() != 1) {
		t.Fatalf("%s: %v", script, err)
	}
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		var c cameTo
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatalf("%s: %v: %s", script, err, lines.Bytes())
		}
		c.Camera = filepath.Base(filepath.Dir(c.Endpoint)) // …/cameras/NAME/whep
		version = c.Version
		came = append(came, c)
	}
	return version, came
}

func pionCompat(t *testing.T, r *compatRig) (string, []cameTo) {
	transport := &http.Transport{DisableKeepAlives: true}
	came := make([]cameTo, len(compatCameras))
	var work sync.WaitGroup
	turn := make(chan struct{}, compatAtOnce)
	for i, c := range compatCameras {
		work.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			came[i] = pionWatches(t.Context(), &http.Client{Transport: transport}, r.system.whep(c.Name), c)
		})
	}
	work.Wait()
	return "pion " + moduleVersion(t, "github.com/pion/webrtc/v4"), came
}

// pionWatches plays a camera in pion.
func pionWatches(ctx context.Context, client *http.Client, endpoint string, c compatCamera) cameTo {
	ctx, cancel := context.WithTimeout(ctx, compatPatience)
	defer cancel()
	came := cameTo{Camera: c.Name}
	v, err := viewertest.PlayWHEP(ctx, client, endpoint, "", viewertest.Config{Audio: true, NACK: true, More: true})
	if refused := (*viewertest.HTTPError)(nil); errors.As(err, &refused) {
		came.Error = fmt.Sprintf("POST: %d %s", refused.Status, refused.Body)
		return came
	}
	if err != nil {
		came.Error = err.Error()
		return came
	}
	err = v.Wait(ctx, func(r viewertest.Report) bool {
		return r.Video.Frames >= c.frames() && (!c.sounds() || r.Audio.Packets >= compatSounds)
	})
	if err != nil {
		came.Error = err.Error()
	}
	r := v.Report()
	came.Video, came.Audio, came.Codec, came.Lost = r.Video.Frames, r.Audio.Packets, r.Video.Codec, r.Video.Missing
	if c.Codec == "H264" && r.Video.Keyframes == 0 {
		came.Video = 0 // nothing could be decoded of it
	}
	leave, done := context.WithTimeout(context.WithoutCancel(ctx), picturePatience)
	defer done()
	if err := v.Delete(leave); err != nil {
		came.Error = err.Error()
	}
	return came
}

// find returns what a client says of a camera.
func find(came []cameTo, camera string) (cameTo, bool) {
	i := slices.IndexFunc(came, func(c cameTo) bool { return c.Camera == camera })
	if i < 0 {
		return cameTo{}, false
	}
	return came[i], true
}
