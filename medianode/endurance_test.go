package medianode

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/pion/rtp"

	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	"fanlight/medianode/source"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// How often the camera is lost, how many watch it, and what may be different
// after all that from how it was after the first loss.
const (
	drops          = 50
	watchers       = 5
	moreGoroutines = 3
	moreFiles      = 2
	moreHeap       = 4 << 20               // bytes; the viewers' books, the log and the reports are in it
	moreLatency    = 30 * time.Millisecond // of the median, on a machine that does other things
	missing        = 8                     // sequence numbers for each loss, which say that a picture is not whole
)

// A camera is lost and comes back fifty times, each time in another way: its
// connection is closed, it sends nothing more, its host is gone for a while and
// comes back with other numbers, its clock is set. Those who watch stay in the
// same peer connections and see it again each time; their timestamps and
// sequence numbers go on; and nothing grows.
func TestFiftyDrops(t *testing.T) {
	r := newRig(t, simcam.Config{}, Config{
		SourceTimeouts: source.Timeouts{Request: 2 * time.Second, Media: 300 * time.Millisecond},
		SourceRetry:    source.Retry{Min: 40 * time.Millisecond, Max: 80 * time.Millisecond, Hold: 80 * time.Millisecond},
	})
	cam := &fickleCamera{t: t}
	cam.start()
	t.Cleanup(func() { cam.stop() })
	want := r.desired("lobby", 1)
	want.Camera.Profiles[0].Url = cam.sim.URL("lobby")
	r.control.want(want)
	r.control.waitState(t, "lobby", controlv1.CameraStatus_STATE_LIVE)

	var all []*enduring
	for i := range watchers {
		all = append(all, endure(t, r, fmt.Sprint("s", i)))
	}
	awaitAll(t, all, 10)

	var first, last footprint
	for i := range drops {
		what := cam.fail(i, r)
		if err := all[i%watchers].SendPLI(); err != nil { // as a browser without a picture does
			t.Fatal(err)
		}
		awaitAll(t, all, 5)
		if t.Failed() {
			t.Fatalf("after loss %d: %s", i+1, what)
		}
		if i == 0 {
			first = measureFootprint(t, all)
		}
	}
	last = settle(t, all, first)
	t.Logf("after the first loss: %v", first)
	t.Logf("after %d losses:      %v", drops, last)
	if last.goroutines > first.goroutines+moreGoroutines || last.files > first.files+moreFiles ||
		last.heap > first.heap+moreHeap || last.latency > first.latency+moreLatency {
		t.Error("it has grown")
	}
	for _, w := range all {
		w.check(t)
	}
}

// fickleCamera is a simulated camera at an address that it keeps over restarts.
type fickleCamera struct {
	t      *testing.T
	addr   string
	sim    *simcam.Server
	stop   func() // and waits
	jumped bool
}

func (c *fickleCamera) start() {
	c.t.Helper()
	sim, err := simcam.New(simcam.Config{Addr: c.addr, Cameras: []string{"lobby"}, KeyframeAtPlay: true})
	if err != nil {
		c.t.Fatal(err)
	}
	c.sim, c.addr, c.jumped = sim, sim.Addr().String(), false
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sim.Run(ctx) }()
	c.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			c.t.Error(err)
		}
	})
}

// fail loses the camera for the i-th time and has it come back. It returns when
// the node has it again, and says how it was lost.
func (c *fickleCamera) fail(i int, r *rig) string {
	c.t.Helper()
	plays := c.sim.Plays("lobby")
	switch i % 4 {
	case 0:
		c.sim.SetFault("lobby", simcam.Drop)
		eventually(c.t, "the node to come back", func() bool { return c.sim.Plays("lobby") > plays })
		return "its connection was closed"
	case 1:
		c.sim.SetFault("lobby", simcam.Freeze)
		r.control.waitState(c.t, "lobby", controlv1.CameraStatus_STATE_FAILED)
		c.sim.SetFault("lobby", simcam.None)
		r.control.waitState(c.t, "lobby", controlv1.CameraStatus_STATE_LIVE)
		return "it sent nothing"
	case 2:
		c.stop()
		r.control.waitState(c.t, "lobby", controlv1.CameraStatus_STATE_FAILED)
		c.start()
		eventually(c.t, "the node to come back", func() bool { return c.sim.Plays("lobby") > 0 })
		return "its host was gone"
	default:
		// Hours ahead, and by turns back again within the same connection or after
		// the host's restart, which begins with any number.
		if c.jumped = !c.jumped; c.jumped {
			c.sim.SetFault("lobby", simcam.SequenceJump)
		} else {
			c.sim.SetFault("lobby", simcam.None)
		}
		return "its clock was set"
	}
}

// enduring is a viewer that stays.
type enduring struct {
	*watcher

	mu    sync.Mutex // guards the rest
	ssrcs []uint32   // of what came, each once
}

func endure(t *testing.T, r *rig, id string) *enduring {
	t.Helper()
	e := new(enduring)
	open := lobby()
	open.Session = id
	e.watcher = r.watch(t, open, viewertest.Config{
		Stamp: simcam.ParseTimestamp,
		OnPacket: func(_ string, p *rtp.Packet, _ time.Time) {
			e.mu.Lock()
			defer e.mu.Unlock()
			if !slices.Contains(e.ssrcs, p.SSRC) {
				e.ssrcs = append(e.ssrcs, p.SSRC)
			}
		},
	})
	return e
}

// awaitAll waits until each viewer has got n pictures more.
func awaitAll(t *testing.T, all []*enduring, n int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	want := make([]int, len(all))
	for i, w := range all {
		want[i] = w.Report().Video.Frames + n
	}
	for i, w := range all {
		if err := w.WaitFrames(ctx, want[i]); err != nil {
			t.Error(err)
		}
	}
}

// check makes sure that a viewer has had one session and one peer connection,
// and that its timestamps and sequence numbers went on throughout.
func (e *enduring) check(t *testing.T) {
	t.Helper()
	got := e.Report()
	if v := got.Video; got.State != "connected" || v.Backwards != 0 || v.Missing > missing*drops || v.Late != 0 || v.Duplicates != 0 {
		t.Errorf("a viewer got %v", got)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.ssrcs) != 1 {
		t.Errorf("SSRCs %v, want one", e.ssrcs)
	}
	e.watcher.mu.Lock()
	defer e.watcher.mu.Unlock()
	if e.answers != 1 || len(e.rejected) != 0 || e.err != nil {
		t.Errorf("%d answers, rejected %v, ended %v", e.answers, e.rejected, e.err)
	}
}

// footprint is what the process has, with the cameras and the viewers in it.
type footprint struct {
	goroutines, files int
	heap              uint64        // bytes in use, after a collection
	latency           time.Duration // from the camera to the viewers, the median of the last second
}

func (f footprint) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %.1f MiB of heap, latency %v",
		f.goroutines, f.files, float64(f.heap)/(1<<20), f.latency.Round(100*time.Microsecond))
}

func measureFootprint(t *testing.T, all []*enduring) footprint {
	t.Helper()
	awaitAll(t, all, 25)
	var latencies []time.Duration
	for _, w := range all {
		l := w.Report().Video.Latencies
		latencies = append(latencies, l[max(0, len(l)-25):]...)
	}
	slices.Sort(latencies)
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers let go
	runtime.ReadMemStats(&m)
	return footprint{runtime.NumGoroutine(), openFiles(), m.HeapAlloc, latencies[len(latencies)/2]}
}

// settle measures until what ends in its own time has ended, or does not.
func settle(t *testing.T, all []*enduring, first footprint) footprint {
	t.Helper()
	var now footprint
	for range 5 {
		now = measureFootprint(t, all)
		if now.goroutines <= first.goroutines && now.files <= first.files && now.latency <= first.latency+moreLatency {
			break
		}
	}
	return now
}

// openFiles counts the process' descriptors; 0 where the system does not tell.
func openFiles() int {
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}
