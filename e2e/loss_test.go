//go:build e2e && linux

package e2e

import (
	"context"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"fanlight/internal/fleettest"
	"fanlight/internal/simcam"
)

// TestLoss watches in Chromium behind a network that loses packets: 5 % of them,
// which nobody sees, for they are asked for and sent again; and all of them for a
// while, after which the picture is back soon, by packets sent again or, where
// none are, by a keyframe that is asked for.
func TestLoss(t *testing.T) {
	if !ownNetwork(t) {
		return
	}
	s, srv, wire := lossy(t)
	page := open(t, s.gateways[0]+"/healthz") // of the gateway's origin, and no player on it
	t.Run("some", func(t *testing.T) { losesSome(t, s, page, wire) })
	t.Run("all", func(t *testing.T) { losesAll(t, page, wire) })
	t.Run("all, and nothing is sent again", func(t *testing.T) { losesForGood(t, s, srv, page, wire) })
	t.Run("blame", func(t *testing.T) { blames(t, s, srv, wire) })
}

// silence is how long nothing comes: longer than anybody would not see.
const silence = 1500 * time.Millisecond

// frameTicks is a frame of a simulated camera in RTP's time: each that is sent
// has a timestamp so much later than the one before, whenever it is sent.
const frameTicks = 90_000 / 25

// losesSome plays for 15 s, of which each packet is lost by a chance of 5 %.
func losesSome(t *testing.T, s *system, page *tab, wire *wire) {
	const percent, watch = 5, 15 * time.Second
	wire.lose(t, percent)
	page.playWHEP(t, s.whep("lobby"), "udp")
	before := page.awaitReceived(t, "a picture", func(r received) bool { return r.Video.Decoded > 0 && r.Shown > 0 })
	time.Sleep(watch)
	after := page.received(t)
	wire.lose(t, 0)
	sent, decoded := int(after.Shown-before.Shown)/frameTicks, after.Video.Decoded-before.Video.Decoded
	t.Logf("%d %% lost: %d frames sent, %d decoded; %v", percent, sent, decoded, after)
	if least := int(watch.Seconds()) * 25 * 8 / 10; sent < least {
		t.Errorf("%d frames were sent in %v, want %d at least", sent, watch, least)
	}
	// What a browser drops has come whole, and too late for it: on a busy machine
	// that is not the network's fault.
	dropped := after.Video.Dropped - before.Video.Dropped
	if (decoded+dropped)*100 < sent*99 || decoded*100 < sent*95 {
		t.Errorf("%d frames of %d were decoded and %d dropped, want 99 %% together at least", decoded, sent, dropped)
	}
	v := after.Video
	if v.NACKs == 0 || v.Retransmitted*10 < v.Lost*9 || v.Freezes > 2 { // or the machine was busy
		t.Errorf("%d NACKs, %d packets came again of %d that were lost, %d freezes", v.NACKs, v.Retransmitted, v.Lost, v.Freezes)
	}
}

// losesAll goes on with what losesSome plays. The node still has what was lost.
func losesAll(t *testing.T, page *tab, wire *wire) {
	before := page.received(t)
	took, after := wire.silence(t, page)
	t.Logf("nothing came for %v, the picture was back after another %v; %v", silence, took, after)
	if after.Video.Retransmitted <= before.Video.Retransmitted {
		t.Error("no packet came again")
	}
	evaluate[any](t, page, "window.whep.leave().then(() => null)")
}

// losesForGood plays a camera that sends a keyframe every 10 s, without asking
// for packets again: without a wish for a keyframe there is no picture until then.
func losesForGood(t *testing.T, s *system, srv *simcam.Server, page *tab, wire *wire) {
	const noNACK = `{ endpoint: %q, protocol: "udp",
		made: (sdp) => sdp.replace(/^a=rtcp-fb:\d+ nack\r\n/gm, "") }`
	page.playWith(t, fmt.Sprintf(noNACK, s.whep("rare")))
	first := page.awaitReceived(t, "a picture", func(r received) bool { return r.Video.Decoded > 0 })
	// Who comes begins with a keyframe of before, so that the next may be near;
	// after that one there is none for 10 s.
	before := page.awaitReceived(t, "the camera's next keyframe", func(r received) bool { return r.Video.Keys > first.Video.Keys })
	asked := srv.KeyframeRequests("rare")
	took, after := wire.silence(t, page)
	asked = srv.KeyframeRequests("rare") - asked
	t.Logf("nothing came for %v, the picture was back after another %v; the camera was asked for %d keyframes; %v", silence, took, asked, after)
	if after.Video.PLIs <= before.Video.PLIs || asked == 0 || after.Video.Retransmitted > 0 {
		t.Errorf("%d PLIs more, the camera was asked for %d keyframes, %d packets came again",
			after.Video.PLIs-before.Video.PLIs, asked, after.Video.Retransmitted)
	}
	evaluate[any](t, page, "window.whep.leave().then(() => null)")
}

// blames has packets lost on the way to the page with all cameras, and then by one
// of the cameras: each picture says whose fault it is.
func blames(t *testing.T, s *system, srv *simcam.Server, wire *wire) {
	page := open(t, s.gateways[0]+"/")
	badge := func(camera, want, why string) {
		t.Helper()
		eventually(t, startPatience, fmt.Sprintf("%q over the picture of %s", want, camera), func() (bool, string) {
			said := evaluate[[]string](t, page, fmt.Sprintf(`(() => {
				const badge = document.querySelector("fanlight-player[camera=%s]")?.shadowRoot.querySelector("[part=verdict]");
				return badge && !badge.hidden ? [badge.innerText, badge.title] : ["", ""];
			})()`, camera))
			return strings.HasPrefix(said[0], want) && (said[0] == "") == (want == "") && strings.Contains(said[1], why), fmt.Sprint(said)
		})
	}
	for _, camera := range []string{"lobby", "rare"} {
		page.awaitMoving(t, camera)
	}
	wire.lose(t, 12)
	badge("lobby", "Your network", "This viewer loses")
	page.screenshot(t, "network.png")
	wire.lose(t, 0)
	srv.SetFault("rare", simcam.Lossy)
	badge("rare", "Camera", "The camera lost")
	badge("lobby", "", "")
	page.screenshot(t, "camera.png")
	open(t, s.gateways[0]+"/stats").screenshot(t, "stats.png")
	srv.SetFault("rare", simcam.None)
	badge("rare", "", "")
}

// silence has nothing come for a while, and returns how long after that there
// was a picture again, which goes on.
func (w *wire) silence(t *testing.T, page *tab) (took time.Duration, after received) {
	t.Helper()
	w.lose(t, 100)
	time.Sleep(silence)
	still := page.received(t)
	w.lose(t, 0)
	began := time.Now()
	page.awaitReceived(t, "a picture", func(r received) bool { return r.Video.Decoded > still.Video.Decoded+1 })
	took = time.Since(began).Round(10 * time.Millisecond)
	after = page.awaitReceived(t, "a picture that goes on", func(r received) bool { return r.Video.Decoded > still.Video.Decoded+25 })
	const soon = 6 * time.Second // Chromium asks for a keyframe after 3 s without a picture
	if took > soon {
		t.Errorf("no picture for %v after nothing was lost any more", took)
	}
	return took, after
}

// lossy runs Fanlight at a host of its own, with cameras at this one: "lobby",
// and "rare", of the server that is returned, with few keyframes.
func lossy(t *testing.T) (*system, *simcam.Server, *wire) {
	t.Helper()
	const place = "fanlight"
	network, err := fleettest.NewNamespaces()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := network.Close(); err != nil {
			t.Error(err)
		}
	})
	here, err := network.Place(fleettest.Harness)
	if err != nil {
		t.Fatal(err)
	}
	there, err := network.Place(place)
	if err != nil {
		t.Fatal(err)
	}
	// What the node sends at once comes as one large packet else, and would be
	// lost as one.
	ethtool := exec.Command("ethtool", "-K", "eth0", "tx-udp-segmentation", "off")
	if err := network.Wrap(place, ethtool); err != nil {
		t.Fatal(err)
	}
	if out, err := ethtool.CombinedOutput(); err != nil {
		t.Fatalf("ethtool: %v\n%s", err, out)
	}

	const mediaPort = 8189
	at := func(port uint16) string { return netip.AddrPortFrom(there, port).String() }
	up := fanlight("up", "--max-cpu", "100", "--data", filepath.Join(t.TempDir(), "data"), "--http", at(8080), "--grpc", at(9090), "--media", at(mediaPort),
		"--insecure", "--log-level", "debug")
	if err := network.Wrap(place, up); err != nil {
		t.Fatal(err)
	}
	p := start(t, "up", up)
	s := &system{
		grpc: p.announced(t, "api"), gateways: []string{strings.TrimSuffix(p.announced(t, "page"), "/")},
		flags: []string{"--insecure"}, processes: []*process{p},
	}
	addr := netip.AddrPortFrom(here, 0).String()
	s.add(t, "lobby", simCamera(startSimcam(t, simcam.Config{Addr: addr, Cameras: []string{"cam"}}), "cam"))
	srv := startSimcam(t, simcam.Config{Addr: addr, Cameras: []string{"rare"}, KeyframeInterval: 10 * time.Second})
	s.add(t, "rare", simCamera(srv, "rare"))
	for _, name := range []string{"lobby", "rare"} {
		s.awaitCamera(t, name, "STATE_LIVE", "")
	}
	return s, srv, &wire{from: netip.AddrPortFrom(there, mediaPort), camera: addr}
}

// wire is the way of a node's media to this host.
type wire struct {
	from   netip.AddrPort
	camera string   // an address for cameras at this host, without a port
	rule   []string // of what is lost; nil: nothing is
}

// lose has so many of a hundred packets vanish, at random, where they arrive.
func (w *wire) lose(t *testing.T, percent int) {
	t.Helper()
	if w.rule != nil {
		w.iptables(t, "-D", w.rule)
		w.rule = nil
	}
	if percent == 0 {
		return
	}
	w.rule = strings.Fields(fmt.Sprintf("INPUT -p udp -s %v --sport %d -m statistic --mode random --probability %.2f -j DROP",
		w.from.Addr(), w.from.Port(), float64(percent)/100))
	w.iptables(t, "-A", w.rule)
}

func (w *wire) iptables(t *testing.T, action string, rule []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startPatience)
	defer cancel()
	if out, err := exec.CommandContext(ctx, "iptables", append([]string{"-w", action}, rule...)...).CombinedOutput(); err != nil {
		t.Fatalf("iptables %s %v: %v\n%s", action, rule, err, out)
	}
}
