package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	"fanlight/internal/fleettest"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

const (
	// The waits of a real node between two attempts to open its control stream.
	minReconnect = 100 * time.Millisecond
	maxReconnect = 2 * time.Second
	// maxReported is how many cameras a real node has in a report at most.
	maxReported = 500
	// bitrate is what the cameras send, bits per second.
	bitrate = 4_000_000
)

// nodes are the simulated media nodes.
type nodes struct {
	// Static after newNodes.
	dialer  rpc.Dialer
	planes  []string
	tracker *tracker

	all  []*node // owned by the measurement
	wait sync.WaitGroup
}

func newNodes(planes []*fleettest.Process, t *tracker) *nodes {
	ns := &nodes{tracker: t}
	for _, p := range planes {
		ns.planes = append(ns.planes, p.Addr)
	}
	return ns
}

// add starts a node with room for so many cameras. It lives until kill or stop.
func (ns *nodes) add(ctx context.Context, capacity int) error {
	conn, err := ns.dialer.Dial(ns.planes...)
	if err != nil {
		return err
	}
	// A replica that loses a node's stream looks here whether it is still there.
	door, err := new(net.ListenConfig).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	n := &node{
		id:       fleet.NodeID(fmt.Sprintf("node-%04d", len(ns.all))),
		client:   controlv1.NewAgentServiceClient(conn),
		tracker:  ns.tracker,
		conn:     conn,
		door:     door,
		done:     make(chan struct{}),
		capacity: capacity,
		running:  make(map[int]assigned),
	}
	ctx, n.cancel = context.WithCancel(ctx)
	ns.all = append(ns.all, n)
	ns.wait.Go(func() {
		defer close(n.done)
		n.run(ctx)
	})
	ns.wait.Go(n.open)
	return nil
}

// stop ends all nodes and waits for them.
func (ns *nodes) stop() {
	for _, n := range ns.all {
		n.cancel()
	}
	for _, n := range ns.all {
		<-n.done
		_ = n.conn.Close() // that it was closed by kill is all that it could say
		_ = n.door.Close()
	}
	ns.wait.Wait()
}

// node is one simulated media node.
type node struct {
	// Static after add.
	id      fleet.NodeID
	client  controlv1.AgentServiceClient
	tracker *tracker
	conn    *grpc.ClientConn
	door    net.Listener // its session address, where nobody is served
	cancel  context.CancelFunc
	done    chan struct{} // closed when run has ended

	// Owned by run.
	running map[int]assigned // by the camera's number

	mu       sync.Mutex // guards the rest
	capacity int
	again    context.CancelFunc // ends the stream; nil: there is none
	welcomes int
	err      error // of the last stream
}

// assigned is a camera that a node was told to have.
type assigned struct {
	generation int64
	part       controlv1.DesiredCamera_Part
}

// open lets in whoever comes, until the node is killed.
func (n *node) open() {
	for {
		c, err := n.door.Accept()
		if err != nil {
			return
		}
		_ = c.Close() // nothing was said
	}
}

// kill ends the node as its process' death does: its connection and its port
// are closed, and nothing is said.
func (n *node) kill() error {
	err := errors.Join(n.door.Close(), n.conn.Close())
	n.cancel()
	<-n.done
	return err
}

// lift has the node reconnect with room for so many cameras.
func (n *node) lift(capacity int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.capacity = capacity
	if n.again != nil {
		n.again()
	}
}

// welcomed returns how often the node was welcomed, and why its last stream
// ended.
func (n *node) welcomed() (int, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.welcomes, n.err
}

// run keeps a control stream open until ctx ends.
func (n *node) run(ctx context.Context) {
	backoff := rpc.Backoff{Min: minReconnect, Max: maxReconnect}
	for ctx.Err() == nil {
		before, _ := n.welcomed()
		streamCtx, cancel := context.WithCancel(ctx)
		err := n.sync(streamCtx, cancel)
		cancel()
		n.mu.Lock()
		n.again, n.err = nil, err
		n.mu.Unlock()
		if after, _ := n.welcomed(); after > before {
			backoff.Reset()
		}
		_ = backoff.Sleep(ctx) // its error is ctx's
	}
}

// sync runs one control stream until it ends, which is an error.
func (n *node) sync(ctx context.Context, cancel context.CancelFunc) error {
	stream, err := n.client.Sync(ctx, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	n.mu.Lock()
	n.again = cancel
	capacity := n.capacity
	n.mu.Unlock()
	hello := &controlv1.Hello{
		Node: n.id.Name(), BootId: "boot-" + string(n.id), Version: "bench",
		SessionAddress: n.door.Addr().String(),
		Labels:         map[string]string{"site": "bench"},
		Capacity:       &controlv1.NodeCapacity{Cameras: int32(capacity)},
	}
	for cam, a := range n.running {
		hello.Running = append(hello.Running, &controlv1.RunningAssignment{Camera: cameraName(cam), Generation: a.generation})
	}
	if err := stream.Send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Hello{Hello: hello}}); err != nil {
		return err
	}
	fresh := true // nothing is known to have been reported on this stream
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		switch m := resp.GetMessage().(type) {
		case *controlv1.SyncResponse_Welcome:
			n.mu.Lock()
			n.welcomes++
			n.mu.Unlock()
		case *controlv1.SyncResponse_DesiredSet:
			if err := n.apply(stream, m.DesiredSet, fresh); err != nil {
				return err
			}
			fresh = false
		}
	}
}

// apply does what a desired set says, and answers it. On a fresh stream it
// reports all that it has.
func (n *node) apply(stream grpc.BidiStreamingClient[controlv1.SyncRequest, controlv1.SyncResponse], set *controlv1.DesiredSet, fresh bool) error {
	now := time.Now()
	next := make(map[int]assigned, len(set.GetCameras()))
	arrived := make(map[int]int64)
	var live []*controlv1.ObservedCamera
	var released []*controlv1.RunningAssignment
	for _, d := range set.GetCameras() {
		cam, err := cameraNumber(d.GetCamera().GetName())
		if err != nil || cam >= len(n.tracker.places) {
			return fmt.Errorf("%s was given a camera that is not of this measurement: %s", n.id, d.GetCamera().GetName())
		}
		a := assigned{d.GetGeneration(), d.GetPart()}
		next[cam] = a
		if n.running[cam] == a && !fresh {
			continue
		}
		if a.part == controlv1.DesiredCamera_PART_HAND_OVER {
			released = append(released, &controlv1.RunningAssignment{Camera: d.GetCamera().GetName(), Generation: a.generation})
			continue
		}
		if n.running[cam].generation != a.generation {
			arrived[cam] = a.generation
		} else if !fresh {
			continue // what was taken over is kept
		}
		live = append(live, observation(d))
	}
	for cam, a := range n.running {
		if _, kept := next[cam]; !kept && a.part != controlv1.DesiredCamera_PART_HAND_OVER {
			released = append(released, &controlv1.RunningAssignment{Camera: cameraName(cam), Generation: a.generation})
		}
	}
	n.running = next
	n.tracker.arrived(n, arrived, now)
	applied := &controlv1.Applied{Generation: set.GetGeneration()}
	if err := stream.Send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Applied{Applied: applied}}); err != nil {
		return err
	}
	for len(live)+len(released) > 0 {
		r := &controlv1.Report{Cameras: live[:min(len(live), maxReported)], Released: released}
		live, released = live[len(r.GetCameras()):], nil
		if err := stream.Send(&controlv1.SyncRequest{Message: &controlv1.SyncRequest_Report{Report: r}}); err != nil {
			return err
		}
	}
	return nil
}

// observation is what a node reports of a camera that it pulls.
func observation(d *controlv1.DesiredCamera) *controlv1.ObservedCamera {
	return &controlv1.ObservedCamera{
		Camera: d.GetCamera().GetName(), Generation: d.GetGeneration(),
		Status: &controlv1.CameraStatus{
			State: controlv1.CameraStatus_STATE_LIVE,
			Profiles: []*controlv1.ProfileStatus{{
				Id: "main", Transport: controlv1.Profile_TRANSPORT_TCP, BitrateBps: bitrate, FramesPerSecond: 25,
				Tracks: []*controlv1.TrackStatus{{Codec: "H264", Width: 1920, Height: 1080}},
			}},
		},
	}
}

func cameraName(i int) string { return fmt.Sprintf("cameras/cam-%07d", i) }

func cameraNumber(name string) (int, error) {
	digits, ok := strings.CutPrefix(name, "cameras/cam-")
	if !ok {
		return 0, errors.New("not of this measurement")
	}
	return strconv.Atoi(digits)
}
