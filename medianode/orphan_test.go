package medianode

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"fanlight/internal/rpc"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// audited waits for the audit line of the only session that has ended, and
// returns it.
func (r *rig) audited(t *testing.T) string {
	t.Helper()
	lines := func() (out []string) {
		for line := range strings.Lines(r.log.String()) {
			if strings.Contains(line, `"msg":"session ended"`) {
				out = append(out, line)
			}
		}
		return out
	}
	eventually(t, "the audit line", func() bool { return len(lines()) > 0 })
	if n := len(lines()); n != 1 {
		t.Errorf("there are %d audit lines", n)
	}
	return lines()[0]
}

// orphaned starts a node and a session whose gateway is gone.
func orphaned(t *testing.T, cfg Config) (*rig, *watcher) {
	t.Helper()
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, cfg)
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	w := r.watch(t, lobby(), viewertest.Config{})
	w.waitFrames(t, 5)
	w.vanish()
	eventually(t, "the orphan", func() bool { return strings.Contains(r.log.String(), `"msg":"session orphaned"`) })
	return r, w
}

// The session of a gateway that is gone goes on for a while, as a viewer like
// others. It is told once how it ended, whatever ended it.
func TestOrphan(t *testing.T) {
	for name, c := range map[string]struct {
		cfg    Config
		end    func(*testing.T, *rig, *watcher)
		reason string
	}{
		"its time is over": {Config{OrphanTimeout: time.Second}, func(*testing.T, *rig, *watcher) {}, "gateway gone"},
		"its viewer leaves": {Config{}, func(t *testing.T, _ *rig, w *watcher) {
			t.Helper()
			if err := w.Close(); err != nil {
				t.Error(err)
			}
		}, "PEER_CONNECTION_FAILED"},
		"its camera is let go": {Config{}, func(_ *testing.T, r *rig, _ *watcher) { r.control.want() }, "CAMERA_MOVED"},
		"its camera is handed over for too long": {Config{HandOverTimeout: 300 * time.Millisecond}, func(t *testing.T, r *rig, _ *watcher) {
			t.Helper()
			r.control.want(r.moving("lobby", 1, partHandOver))
			r.control.waitReleased(t, "cameras/lobby 1")
		}, "CAMERA_MOVED"},
		"its node stops": {Config{}, func(_ *testing.T, r *rig, _ *watcher) { r.stopNode() }, "NODE_STOPPING"},
	} {
		t.Run(name, func(t *testing.T) {
			began := time.Now()
			r, w := orphaned(t, c.cfg)
			w.waitFrames(t, 10)
			if status, _ := r.node.list()[0].status(); status.Viewers != 1 {
				t.Errorf("the camera has %d viewers", status.Viewers)
			}
			if v := w.Report().Video; !v.Perfect() {
				t.Errorf("the viewer got %v", v)
			}
			c.end(t, r, w)
			line := r.audited(t)
			if !strings.Contains(line, `"reason":"`+c.reason+`"`) || !strings.Contains(line, `"orphaned":true`) {
				t.Errorf("the audit line is %s", line)
			}
			if took := time.Since(began); took > DefaultOrphanTimeout {
				t.Errorf("it took %v", took)
			}
			eventually(t, "the session to end", func() bool { return r.node.engine.Stats().Sessions == 0 })
		})
	}
}

// A gateway that half-closes its stream ends the session at once.
func TestLeftIsNoOrphan(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	w := r.watch(t, lobby(), viewertest.Config{})
	w.waitFrames(t, 5)
	w.leave()
	if line := r.audited(t); !strings.Contains(line, `"reason":"left"`) || strings.Contains(line, "orphaned") {
		t.Errorf("the audit line is %s", line)
	}
}

// Orphans take no viewer's place, and there are no more of them than viewers.
func TestOrphansLimit(t *testing.T) {
	r, first := orphaned(t, Config{Capacity: Capacity{Viewers: 1}})
	second := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Session: "second"}, viewertest.Config{})
	second.waitFrames(t, 5)
	second.vanish()
	if line := r.audited(t); !strings.Contains(line, `"session":"second"`) || !strings.Contains(line, `"reason":"gateway gone"`) {
		t.Errorf("the audit line is %s", line)
	}
	first.waitFrames(t, 5)
	third := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Session: "third"}, viewertest.Config{})
	third.waitFrames(t, 5)
	first.waitFrames(t, 5)
}

// wire is a connection between gateway and node that can be cut.
type wire struct {
	lis net.Listener
	to  string
	wg  sync.WaitGroup

	mu    sync.Mutex // guards the rest
	conns []net.Conn
}

func (w *wire) run() {
	for {
		c, err := w.lis.Accept()
		if err != nil {
			return
		}
		s, err := net.Dial("tcp", w.to)
		if err != nil {
			_ = c.Close()
			continue
		}
		w.mu.Lock()
		w.conns = append(w.conns, c, s)
		w.mu.Unlock()
		for _, pair := range [][2]net.Conn{{c, s}, {s, c}} {
			w.wg.Go(func() { _, _ = io.Copy(pair[0], pair[1]) })
		}
	}
}

// cut resets all connections, as a process that is killed does.
func (w *wire) cut() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		_ = c.(*net.TCPConn).SetLinger(0)
		_ = c.Close()
	}
	w.conns = nil
}

// A gateway's process that dies leaves its viewers the picture; they come back
// through another.
func TestGatewayKilled(t *testing.T) {
	r := newRig(t, simcam.Config{Cameras: []string{"lobby"}}, Config{})
	r.control.want(r.desired("lobby", 1))
	r.control.waitApplied(t)
	node, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := rpc.NewServer(rpc.ServerConfig{AllowAny: true, Services: Services})
	r.node.Register(server)
	ctx, stop := context.WithCancel(context.Background())
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, node) }()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	line := &wire{lis: lis, to: node.Addr().String()}
	line.wg.Go(line.run)
	cc, err := (&rpc.Dialer{}).Dial(lis.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cc.Close()
		_ = lis.Close()
		line.cut()
		line.wg.Wait()
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	another := r.sessions
	r.sessions = mediav1.NewSessionServiceClient(cc)
	const viewers = 3
	var all []*watcher
	for i := range viewers {
		w := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Session: fmt.Sprint("s", i), Generation: 1}, viewertest.Config{})
		w.waitFrames(t, 5)
		all = append(all, w)
	}
	line.cut()
	for _, w := range all {
		_ = w.ended(t)
	}
	r.sessions = another
	for i, w := range all {
		w.waitFrames(t, 30)
		if v := w.Report().Video; !v.Perfect() {
			t.Errorf("viewer %d got %v", i, v)
		}
		again := r.watch(t, &mediav1.Open{Camera: "cameras/lobby", Session: fmt.Sprint("again", i), Generation: 1}, viewertest.Config{})
		again.waitFrames(t, 5)
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the orphans to end", func() bool { return r.node.engine.Stats().Sessions == viewers })
	if plays := r.cameras.Plays("lobby"); plays != 1 {
		t.Errorf("the camera saw %d PLAY", plays)
	}
}
