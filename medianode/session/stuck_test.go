package session_test

import (
	"fmt"
	"io"
	"net"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/viewertest"
	"fanlight/medianode/session"
)

// relay is a TCP connection to the node that can be held up on its way to the
// viewer.
type relay struct {
	net.Listener
	held    atomic.Bool
	workers sync.WaitGroup
}

func newRelay(t *testing.T, to string) *relay {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &relay{Listener: l}
	stop := make(chan struct{})
	r.workers.Go(func() {
		for {
			viewer, err := l.Accept()
			if err != nil {
				return
			}
			node, err := net.Dial("tcp4", to)
			if err != nil {
				_ = viewer.Close()
				continue
			}
			r.workers.Go(func() { _, _ = io.Copy(node, viewer); _ = node.Close() })
			r.workers.Go(func() { r.carry(viewer, node); _ = viewer.Close() })
			r.workers.Go(func() { <-stop; _ = node.Close(); _ = viewer.Close() })
		}
	})
	t.Cleanup(func() {
		_ = l.Close()
		r.held.Store(false)
		close(stop)
		r.workers.Wait()
	})
	return r
}

func (r *relay) carry(viewer io.Writer, node io.Reader) {
	buf := make([]byte, 64<<10)
	for {
		for r.held.Load() {
			time.Sleep(time.Millisecond)
		}
		n, err := node.Read(buf)
		if err != nil {
			return
		}
		if _, err := viewer.Write(buf[:n]); err != nil {
			return
		}
	}
}

var (
	tcpCandidate = regexp.MustCompile(`(?m)^a=candidate:\S+ 1 tcp (\d+) (\S+) (\d+) typ host tcptype passive\r\n`)
	udpCandidate = regexp.MustCompile(`(?m)^a=candidate:\S+ 1 udp .*\r\n`)
)

// A viewer whose connection stands still costs nobody else a packet, and goes on
// with a keyframe when it moves again.
func TestStuckViewer(t *testing.T) {
	n := newNode(t, func(c *session.Config) { c.Shards = 1 }) // all share one
	n.cam.connect(h264Track())
	through := newRelay(t, n.conn.AddrPort().String())
	stuck := newViewer(t, viewertest.Config{TCP: true})
	ctx := testContext(t)
	offer, err := stuck.Offer(ctx)
	if err != nil {
		t.Fatal(err)
	}
	s, answer, err := n.Open(session.OpenConfig{ID: "stuck", Camera: "lobby", Profiles: only(n.cam.stream), Offer: offer})
	if err != nil {
		t.Fatal(err)
	}
	held := run(t, s)
	port := through.Addr().(*net.TCPAddr).Port
	answer = udpCandidate.ReplaceAllString(answer, "")
	answer = tcpCandidate.ReplaceAllString(answer, fmt.Sprintf("a=candidate:1 1 tcp $1 $2 %d typ host tcptype passive\r\n", port))
	if !strings.Contains(answer, fmt.Sprintf(" %d typ host tcptype passive", port)) {
		t.Fatalf("no TCP candidate in the answer:\n%s", answer)
	}
	if err := stuck.Answer(answer); err != nil {
		t.Fatal(err)
	}
	var others []*viewertest.Viewer
	for i := range 4 {
		v := newViewer(t, viewertest.Config{})
		n.watch(t, v, session.OpenConfig{ID: fleet.SessionID(fmt.Sprint("s", i))})
		wait(t, v, connected)
		others = append(others, v)
	}
	n.cam.play(10*time.Millisecond, false)
	for _, v := range append(others, stuck) {
		wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames > 10 })
	}
	through.held.Store(true)
	deadline := time.Now().Add(40 * time.Second)
	for held.Stats().Full == 0 {
		if time.Now().After(deadline) {
			t.Fatalf("everything had room: %+v", held.Stats())
		}
		time.Sleep(10 * time.Millisecond)
	}
	before := others[0].Report().Video.Frames
	wait(t, others[0], func(r viewertest.Report) bool { return r.Video.Frames > before+100 })
	through.held.Store(false)
	shown := stuck.Report().Video.Frames
	wait(t, stuck, func(r viewertest.Report) bool { return connected(r) && r.Video.Frames > shown+100 })
	for i, v := range others {
		if got := v.Report().Video; !got.Perfect() {
			t.Errorf("viewer %d: %v", i, got)
		}
	}
	select {
	case <-held.done:
		t.Errorf("the stuck session has ended: %v", held.err)
	default:
	}
	t.Logf("the stuck viewer was not sent %d packets, and %d until a keyframe", held.Stats().Full, held.Stats().Held)
}

// With one shard or several, each viewer gets each packet.
func TestShards(t *testing.T) {
	for _, shards := range []int{1, 2, 5} {
		t.Run(fmt.Sprint(shards), func(t *testing.T) {
			n := newNode(t, func(c *session.Config) { c.Shards = shards })
			n.cam.connect(h264Track(), pcmaTrack())
			n.cam.play(10*time.Millisecond, true)
			var all []*viewertest.Viewer
			for i := range 7 {
				v := newViewer(t, viewertest.Config{Audio: true, TCP: i == 6})
				n.watch(t, v, session.OpenConfig{ID: fleet.SessionID(fmt.Sprint("s", i))})
				all = append(all, v)
			}
			for i, v := range all {
				wait(t, v, func(r viewertest.Report) bool { return r.Video.Frames >= 50 && r.Audio.Packets >= 50 })
				if got := v.Report(); !got.Video.Perfect() || !got.Audio.Perfect() {
					t.Errorf("viewer %d: %v", i, got)
				}
			}
			if got := n.cam.stream.Stats().Subscriptions; got != min(shards, len(all)) {
				t.Errorf("the stream has %d subscriptions for %d shards", got, shards)
			}
		})
	}
}
