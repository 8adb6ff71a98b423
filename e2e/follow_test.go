//go:build e2e

package e2e

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"fanlight/internal/simcam"
)

//go:embed testdata/follow.js
var followScript string

// smooth is the longest time without a new frame that a planned change may
// cost; the camera sends one every 40 ms.
const smooth = 250 * time.Millisecond

// TestFollowNodeKill kills the node that serves a picture: the page goes on by
// itself with the other one.
func TestFollowNodeKill(t *testing.T) {
	s, page := followed(t)
	before := page.awaitMoving(t, "lobby")
	node := s.node(t, "lobby")
	page.follow(t, "lobby")
	page.screenshot(t, "before.png")
	s.process(t, node).kill(t)
	page.awaitPictures(t, 2)
	after := page.awaitMoving(t, "lobby")
	page.screenshot(t, "after.png")
	f := page.followed(t)
	t.Logf("%s was killed; %v; %v", node, after, f)
	if now := s.node(t, "lobby"); now == node {
		t.Errorf("the camera is still on %s", now)
	}
	if !f.Same || after.Connection == before.Connection {
		t.Errorf("was shown by %v, is shown by %v, same element: %v", before, after, f.Same)
	}
	if slices.Max(f.Freezes) > 0 {
		t.Errorf("the browser counted freezes: %v", f.Freezes)
	}
}

// TestFollowNodeDrain takes a node out of service: nobody sees it.
func TestFollowNodeDrain(t *testing.T) {
	s, page := followed(t)
	page.awaitMoving(t, "lobby")
	page.follow(t, "lobby")
	for round := range 2 {
		node := s.node(t, "lobby")
		s.cli(t, "node", "drain", node)
		page.awaitPictures(t, round+2)
		page.awaitMoving(t, "lobby")
		page.screenshot(t, fmt.Sprintf("drained-%d.png", round+1))
		if now := s.node(t, "lobby"); now == node {
			t.Errorf("the camera is still on %s", now)
		}
		s.cli(t, "node", "undrain", node)
	}
	page.checkSmooth(t, 2)
}

// TestFollowGateway ends the gateway that a page uses, the hard way and then as
// an upgrade does. The pictures go on while the page finds another.
func TestFollowGateway(t *testing.T) {
	s, page := followed(t)
	page.awaitMoving(t, "lobby")
	page.follow(t, "lobby")
	time.Sleep(6 * time.Second) // a connection that has lasted is a good one
	s.process(t, "gateway-1").kill(t)
	page.awaitPictures(t, 2)
	page.awaitMoving(t, "lobby")
	page.screenshot(t, "killed.png")
	// The dead one's session is over as soon as the browser has another.
	eventually(t, picturePatience, "one session at the node", func() (bool, string) {
		st := s.stats(t, 1, "lobby")
		return st.Viewers == 1, fmt.Sprintf("%+v", st)
	})

	p := start(t, "gateway-1-again", fanlight("signaling", "--control-plane", s.grpc,
		"--http", strings.TrimPrefix(s.gateways[0], "http://"), "--log-level", "debug"))
	p.announced(t, "page")
	time.Sleep(6 * time.Second)
	s.process(t, "gateway-2").stop(t)
	page.awaitPictures(t, 3)
	page.awaitMoving(t, "lobby")
	page.screenshot(t, "stopped.png")
	page.checkSmooth(t, 2)
}

// followed runs a fleet with one camera and a page that shows it, through one
// address for both gateways.
func followed(t *testing.T) (*system, *tab) {
	t.Helper()
	s := separate(t)
	s.add(t, "lobby", simCamera(startSimcam(t, simcam.Config{Cameras: []string{"cam"}}), "cam"))
	s.awaitCamera(t, "lobby", "STATE_LIVE", "")
	return s, open(t, "http://"+balance(t, s.gateways)+"/")
}

// process returns one of the system's processes.
func (s *system) process(t *testing.T, name string) *process {
	t.Helper()
	for _, p := range s.processes {
		if p.name == name {
			return p
		}
	}
	t.Fatalf("no process %s", name)
	return nil
}

// node returns the node that has a camera: "node-a".
func (s *system) node(t *testing.T, camera string) string {
	t.Helper()
	return strings.TrimPrefix(s.camera(t, camera).Status.Node, "nodes/")
}

// following is what testdata/follow.js has seen. Times in milliseconds.
type following struct {
	Same     bool     `json:"same"` // the element is the one it was
	Frames   int      `json:"frames"`
	Pictures int      `json:"pictures"` // video elements, so peer connections
	Worst    gap      `json:"worst"`
	Swaps    []gap    `json:"swaps"`
	Freezes  []int    `json:"freezes"` // by peer connection
	States   []string `json:"states"`
	Slowest  float64  `json:"slowest"` // the longest time that the page did nothing
}

// gap is the time between two frames, of two pictures or of one.
type gap struct {
	MS   float64 `json:"ms"`
	From int     `json:"from"`
	To   int     `json:"to"`
}

func (g gap) took() time.Duration {
	return time.Duration(g.MS * float64(time.Millisecond)).Round(time.Millisecond)
}

func (f following) String() string {
	swaps := make([]string, len(f.Swaps))
	for i, g := range f.Swaps {
		swaps[i] = g.took().String()
	}
	return fmt.Sprintf("%d frames of %d pictures, longest gap %v (picture %d to %d), at the swaps %v, freezes %v, states %q, the page stood still for %.0f ms at most",
		f.Frames, f.Pictures, f.Worst.took(), f.Worst.From, f.Worst.To, swaps, f.Freezes, f.States, f.Slowest)
}

// follow begins to note every frame of a camera that plays.
func (tb *tab) follow(t *testing.T, camera string) {
	t.Helper()
	arg, err := json.Marshal(camera)
	if err != nil {
		t.Fatal(err)
	}
	evaluate[any](t, tb, fmt.Sprintf("void (%s)(%s)", strings.TrimSpace(followScript), arg))
}

func (tb *tab) followed(t *testing.T) following {
	t.Helper()
	return evaluate[following](t, tb, "window.fanlightFollowed()")
}

// awaitPictures waits until so many pictures have been in front, one after the
// other.
func (tb *tab) awaitPictures(t *testing.T, n int) {
	t.Helper()
	eventually(t, picturePatience, fmt.Sprintf("picture %d is in front", n), func() (bool, string) {
		f := tb.followed(t)
		return len(f.Swaps) >= n-1, f.String()
	})
}

// checkSmooth makes sure that a number of swaps was seen by nobody.
func (tb *tab) checkSmooth(t *testing.T, swaps int) {
	t.Helper()
	f := tb.followed(t)
	t.Log(f)
	if !f.Same || len(f.Swaps) != swaps || f.Pictures != swaps+1 {
		t.Errorf("same element: %v; %d pictures with %d swaps, want %d", f.Same, f.Pictures, len(f.Swaps), swaps)
	}
	// What the page itself was kept from running for is the machine's.
	stall := time.Duration(f.Slowest * float64(time.Millisecond))
	if took := f.Worst.took(); took > smooth+stall {
		t.Errorf("no new frame for %v, want %v at most and the %v that the page stood still", took, smooth, stall)
	}
	if slices.Max(f.Freezes) > 0 {
		t.Errorf("the browser counted freezes: %v", f.Freezes)
	}
	for _, state := range f.States {
		if state != "live" && !strings.HasPrefix(state, "moving") {
			t.Errorf("the player said %q while its picture ran", state)
		}
	}
}

// balance gives several gateways one address until the end of the test, as a
// load balancer for TCP does: a connection goes to the first one that takes it.
func balance(t *testing.T, gateways []string) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var b balancer
	for _, g := range gateways {
		b.to = append(b.to, strings.TrimPrefix(g, "http://"))
	}
	b.work.Go(func() { b.serve(lis) })
	t.Cleanup(func() {
		_ = lis.Close()
		b.cut()
		b.work.Wait()
	})
	return lis.Addr().String()
}

type balancer struct {
	to   []string // host:port; static
	work sync.WaitGroup

	mu   sync.Mutex // guards the rest
	open map[net.Conn]bool
	over bool
}

func (b *balancer) serve(lis net.Listener) {
	for {
		c, err := lis.Accept()
		if err != nil {
			return // closed
		}
		b.work.Go(func() { b.carry(c) })
	}
}

// carry joins a connection to one of a gateway.
func (b *balancer) carry(c net.Conn) {
	defer c.Close()
	for _, addr := range b.to {
		far, err := net.DialTimeout("tcp", addr, time.Second)
		if err != nil {
			continue
		}
		defer far.Close()
		if !b.keep(c, far) {
			return
		}
		var half sync.WaitGroup
		half.Go(func() { pour(far, c) })
		pour(c, far)
		half.Wait()
		b.forget(c, far)
		return
	}
}

// pour copies until either side ends, and ends both.
func pour(to, from net.Conn) {
	_, _ = io.Copy(to, from)
	_ = to.Close()
	_ = from.Close()
}

// keep notes connections that cut is to close. False: it has been called.
func (b *balancer) keep(conns ...net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open == nil {
		b.open = make(map[net.Conn]bool)
	}
	for _, c := range conns {
		b.open[c] = true
	}
	return !b.over
}

func (b *balancer) forget(conns ...net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, c := range conns {
		delete(b.open, c)
	}
}

// cut closes all connections.
func (b *balancer) cut() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.over = true
	for c := range b.open {
		_ = c.Close()
	}
}
