//go:build e2e

package e2e

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/browser"
	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/chromedp"

	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
)

//go:embed testdata/whep.js
var whepScript string

// enough is how many frames of video a client must have to be believed: the
// camera sends 25 a second, with a keyframe among them.
const enough = 50

// TestClients plays H264 and PCMA in WebRTC clients written by others, which
// share no line with the player or with each other, over WHEP: what one of them
// does not accept of an answer, a handshake or a packet is seen here.
func TestClients(t *testing.T) {
	site := newSite(t)
	s := up(t, "--allowed-origin", site.URL, "--media", machineAddress(t)+":0")
	s.add(t, "lobby", simCamera(startSimcam(t, simcam.Config{Cameras: []string{"cam"}, Audio: true}), "cam"))
	s.add(t, "gst", gstCamera(t, "tcp", "none"))
	for _, name := range []string{"lobby", "gst"} {
		s.awaitCamera(t, name, "STATE_LIVE", "")
	}

	for _, protocol := range []string{"udp", "tcp"} {
		t.Run("pion/"+protocol, func(t *testing.T) { pionPlays(t, s, protocol) })
	}
	t.Run("chromium", func(t *testing.T) {
		page := open(t, s.gateways[0]+"/healthz") // of the gateway's origin, and no player on it
		for _, protocol := range []string{"udp", "tcp"} {
			t.Run(protocol, func(t *testing.T) { chromiumPlays(t, s, page, protocol) })
		}
	})
	// aiortc decodes packets of 20 ms of sound alone, and simcam's have 40.
	for _, c := range []struct{ name, script, camera string }{
		{"gstreamer webrtcbin", "testdata/webrtcbin.py", "lobby"},
		{"aiortc", "testdata/aiortc_whep.py", "gst"},
	} {
		t.Run(c.name, func(t *testing.T) { scriptPlays(t, c.name, c.script, s.whep(c.camera)) })
	}
	t.Run("firefox", func(t *testing.T) { firefoxPlays(t, s, site) })

	eventually(t, picturePatience, "nobody watches", func() (bool, string) {
		a, b := s.stats(t, 0, "lobby"), s.stats(t, 0, "gst")
		return a.Viewers+b.Viewers == 0, fmt.Sprintf("%+v, %+v", a, b)
	})
}

// machineAddress returns an address of this machine that others could reach:
// Firefox pairs no candidate of its own with one of loopback.
func machineAddress(t *testing.T) string {
	t.Helper()
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Fatal("this machine has no IPv4 address but loopback, and browsers gather no candidates then")
	return ""
}

// whep returns the URL at which a camera is played.
func (s *system) whep(camera string) string {
	return s.gateways[0] + "/v1/cameras/" + camera + "/whep"
}

// client is a line of the report: what played, and how.
type client struct {
	name, version string
	protocol      string // of the media: "udp", "tcp"
	srtp          string // protection profile; empty: the client does not say
	came          string
}

func (c client) print(t *testing.T) {
	t.Helper()
	srtp := c.srtp
	if srtp == "" {
		srtp = "not told"
	}
	t.Logf("client: %s, version: %s, transport: %s, SRTP: %s, %s", c.name, c.version, c.protocol, srtp, c.came)
}

// pionPlays plays in pion, which decodes nothing but keeps account of packets.
func pionPlays(t *testing.T, s *system, protocol string) {
	ctx, cancel := context.WithTimeout(t.Context(), picturePatience)
	defer cancel()
	v, err := viewertest.PlayWHEP(ctx, &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}, s.whep("lobby"), "",
		viewertest.Config{Audio: true, TCP: protocol == "tcp"})
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	if err := v.Wait(ctx, func(r viewertest.Report) bool { return r.Video.Frames >= enough && r.Audio.Packets >= enough/2 }); err != nil {
		t.Fatal(err)
	}
	r := v.Report()
	if !r.Video.Perfect() || !r.Audio.Perfect() || r.Audio.Codec != mimePCMA {
		t.Errorf("what came: %v", r)
	}
	if got := v.Protocol(); got != protocol {
		t.Errorf("came over %s, want %s", got, protocol)
	}
	client{"pion", moduleVersion(t, "github.com/pion/webrtc/v4"), v.Protocol(), "", r.String()}.print(t)
	if err := v.Delete(ctx); err != nil {
		t.Error(err)
	}
}

// moduleVersion returns the version of a module that the tests are made with,
// which test programs don't know of themselves.
func moduleVersion(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// gcm is the end of the name of the SRTP profile that costs the node least,
// which it prefers where a client knows it.
const gcm = "AEAD_AES_128_GCM"

// Media types of what is seen.
const (
	mimeH264 = "video/H264"
	mimePCMA = "audio/PCMA"
)

// received is what a browser says of a peer connection; see testdata/whep.js.
type received struct {
	State    string  `json:"state"`
	Protocol string  `json:"protocol"`
	Cipher   string  `json:"cipher"` // of SRTP
	Ufrag    string  `json:"ufrag"`  // this side's
	Remote   string  `json:"remote"`
	Shown    uint32  `json:"timestamp"` // RTP timestamp of the picture shown last
	Video    inbound `json:"video"`
	Audio    inbound `json:"audio"`
}

// inbound is an RTCInboundRtpStreamStats, in part.
type inbound struct {
	Codec         string `json:"codec"`
	Packets       int    `json:"packetsReceived"`
	Lost          int    `json:"packetsLost"`
	Retransmitted int    `json:"retransmittedPacketsReceived"`
	NACKs         int    `json:"nackCount"`
	PLIs          int    `json:"pliCount"`

	Received int `json:"framesReceived"`
	Decoded  int `json:"framesDecoded"`
	Dropped  int `json:"framesDropped"`
	Keys     int `json:"keyFramesDecoded"`
	Freezes  int `json:"freezeCount"`

	Samples   int `json:"totalSamplesReceived"`
	Concealed int `json:"concealedSamples"`
}

func (r received) String() string {
	v, a := r.Video, r.Audio
	return fmt.Sprintf("%s %s over %s: %s: %d frames decoded, %d dropped, %d keyframes, %d freezes, %d packets, %d lost, %d NACKs, %d retransmitted, %d PLIs; %s: %d packets, %d lost, %d samples, %d of them concealed",
		r.State, r.Remote, r.Protocol, v.Codec, v.Decoded, v.Dropped, v.Keys, v.Freezes, v.Packets, v.Lost, v.NACKs, v.Retransmitted, v.PLIs,
		a.Codec, a.Packets, a.Lost, a.Samples, a.Concealed)
}

// chromiumPlays plays in a page with a player by others, and restarts ICE.
func chromiumPlays(t *testing.T, s *system, page *tab, protocol string) {
	page.playWHEP(t, s.whep("lobby"), protocol)
	before := page.awaitReceived(t, "frames and sound", func(r received) bool {
		return r.Video.Decoded >= enough && r.Audio.Samples > r.Audio.Concealed
	})
	client{"Chromium", page.version(t), before.Protocol, before.Cipher, before.String()}.print(t)
	if before.Video.Freezes > 0 || before.Protocol != protocol || !strings.HasSuffix(before.Cipher, gcm) || before.Video.Codec != mimeH264 || before.Audio.Codec != mimePCMA {
		t.Errorf("plays %v with SRTP %q", before, before.Cipher)
	}

	evaluate[any](t, page, "window.whep.restart().then(() => null)")
	after := page.awaitReceived(t, "frames after an ICE restart", func(r received) bool {
		return r.Video.Decoded >= before.Video.Decoded+enough/2
	})
	client{"Chromium, ICE restarted", page.version(t), after.Protocol, after.Cipher, after.String()}.print(t)
	if after.Ufrag == before.Ufrag || after.Protocol != protocol || after.Cipher != before.Cipher {
		t.Errorf("before the restart: %v %s, after it: %v %s", before, before.Ufrag, after, after.Ufrag)
	}
	// Media keeps its path until there is another (RFC 8445 §2.4).
	if after.Video.Freezes > before.Video.Freezes || after.Video.Dropped > before.Video.Dropped {
		t.Errorf("the picture was disturbed: before %v, after %v", before, after)
	}
	evaluate[any](t, page, "window.whep.leave().then(() => null)")
}

// playWHEP starts a player by others in a page, over one protocol only; empty:
// whichever the browser takes.
func (tb *tab) playWHEP(t *testing.T, endpoint, protocol string) {
	t.Helper()
	tb.playWith(t, marshal(t, map[string]string{"endpoint": endpoint, "protocol": protocol}))
}

// playWith is playWHEP with options as testdata/whep.js takes them.
func (tb *tab) playWith(t *testing.T, options string) {
	t.Helper()
	evaluate[any](t, tb, fmt.Sprintf("%s; window.fanlightWHEP(%s).then((whep) => { window.whep = whep; return null; })", whepScript, options))
}

// received returns what the page's player receives.
func (tb *tab) received(t *testing.T) received {
	t.Helper()
	return evaluate[received](t, tb, "window.whep.stats()")
}

// awaitReceived waits for something of what the page's player receives.
func (tb *tab) awaitReceived(t *testing.T, what string, ok func(received) bool) received {
	t.Helper()
	var now received
	eventually(t, picturePatience, what, func() (bool, string) {
		now = tb.received(t)
		return ok(now), now.String()
	})
	return now
}

// version returns the browser's.
func (tb *tab) version(t *testing.T) string {
	t.Helper()
	v, err := chromedp.CallBrowser(tb.ctx, browser.GetVersion, cdp.Empty{})
	if err != nil {
		t.Fatal(err)
	}
	return v.Product
}

// scriptPlays plays in a program that decodes and counts, by a script that
// prints its figures as JSON.
func scriptPlays(t *testing.T, name, script, endpoint string) {
	ctx, cancel := context.WithTimeout(t.Context(), startPatience)
	defer cancel()
	stderr, err := os.Create(artifact(t, "stderr.log"))
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	cmd := exec.CommandContext(ctx, python, script, "--video", strconv.Itoa(enough), "--audio", strconv.Itoa(enough), endpoint)
	cmd.Stderr = stderr
	cmd.WaitDelay = time.Second
	out, err := cmd.Output()
	var r struct {
		Version      string
		SRTP         string
		Video, Audio int
	}
	if err != nil || json.Unmarshal(out, &r) != nil {
		said, _ := os.ReadFile(stderr.Name()) // for whoever reads the log
		t.Fatalf("%s: %v\n%s%s", script, err, out, said)
	}
	client{name, r.Version, "udp", r.SRTP, fmt.Sprintf("%d frames and %d of sound decoded", r.Video, r.Audio)}.print(t)
	if r.Video < enough || r.Audio < enough || !strings.Contains(r.SRTP, "AES") {
		t.Errorf("what came: %+v", r)
	}
}
