// Package fleettest runs a whole fleet of real processes of the fanlight binary
// on one machine: control planes that keep their state among themselves, media
// nodes, gateways behind a load balancer, and simulated cameras in this process.
// Processes can be killed, stopped and started again at the same addresses, with
// the same data.
//
//	f, err := fleettest.New(fleettest.Config{Binary: "bin/fanlight", Dir: dir, ControlPlanes: 3, Nodes: 3, Gateways: 2, Cameras: 20})
//	defer f.Close()
//	err = f.Start(ctx)           // all processes, until they are ready
//	err = f.CreateCameras(ctx)   // and until all are LIVE
//	v, err := f.Follow("cam-0")  // a viewer, through the load balancer
//	err = f.Nodes[1].Kill()
//
// It is for tests and measurements: nothing is secret, and everyone may operate
// and view. Errors are returned, with the end of the log of the process that is
// to blame; every wait is bounded by its ctx. The processes die with this one on
// Linux, and Close waits for them.
//
// A [Network] says where the processes run. With [Namespaces], as root, each is
// a host of its own, and links between them can be cut.
package fleettest

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"fanlight/internal/rpc"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// Config says what fleet there is. Binary and Dir are needed.
type Config struct {
	Log    *slog.Logger // nil: nothing is logged
	Binary string       // the fanlight to run
	Dir    string       // of the logs; made if missing, and left
	Data   string       // of the control planes' data and key, likewise; "": Dir

	ControlPlanes int // 0: 1
	Nodes         int // 0: 1
	Gateways      int // 0: 1

	Cameras          int           // simulated: cam-0, cam-1 …
	KeyframeInterval time.Duration // of the cameras, whole seconds; 0: 1 s

	LogLevel string  // of the processes; "": info
	Network  Network // nil: Loopback

	// Args returns what is added to the command line of a process; nil: nothing.
	Args func(kind Kind, name string) []string
	Env  []string // added to the environment of all processes: "KEY=value"
}

// Fleet is a fleet. Its methods may be called from any goroutine, Start and
// Close once.
type Fleet struct {
	// Static after New.
	Planes   []*Process // "plane-1", "plane-2" …
	Nodes    []*Process // "node-1" …; the names of the nodes in the fleet
	Gateways []*Process // "gateway-1" …
	Sim      *simcam.Server
	Balancer *Balancer

	cfg     Config
	network Network
	subnet  netip.Prefix // of the processes' addresses
	client  *grpc.ClientConn
	ports   portBook

	stopSim context.CancelFunc
	simDone chan error // has one value when the cameras have ended
	closing sync.Once
	closed  error
}

// New makes a fleet, and opens the addresses of the cameras and the load
// balancer. Nothing of it is started but those. It must be closed, also if
// Start fails.
func New(cfg Config) (*Fleet, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Network == nil {
		cfg.Network = Loopback{}
	}
	if cfg.LogLevel == "" {
		cfg.LogLevel = "info"
	}
	cfg.ControlPlanes, cfg.Nodes, cfg.Gateways = max(1, cfg.ControlPlanes), max(1, cfg.Nodes), max(1, cfg.Gateways)
	if cfg.Binary == "" || cfg.Dir == "" {
		return nil, errors.New("make a fleet: a binary and a directory are needed")
	}
	if cfg.Data == "" {
		cfg.Data = cfg.Dir
	}
	for _, dir := range []string{cfg.Dir, cfg.Data} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, fmt.Errorf("make a fleet: %w", err)
		}
	}
	f := &Fleet{cfg: cfg, network: cfg.Network}
	err := f.prepare()
	if err == nil {
		err = f.open()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("make a fleet: %w", err), f.Close())
	}
	return f, nil
}

// prepare gives each process its addresses and its command line.
func (f *Fleet) prepare() error {
	var peers, apis []string
	var planes [][]string
	for i := range f.cfg.ControlPlanes {
		name := fmt.Sprintf("plane-%d", i+1)
		addrs, err := f.place(name, 2)
		if err != nil {
			return err
		}
		planes = append(planes, append([]string{name}, addrs...))
		apis, peers = append(apis, addrs[0]), append(peers, name+"=http://"+addrs[1])
	}
	key := filepath.Join(f.cfg.Data, "secret.key")
	if err := makeKey(key); err != nil {
		return err
	}
	for _, p := range planes {
		args := []string{"--key-file", key, "--data", filepath.Join(f.cfg.Data, p[0]), "--grpc", p[1]}
		if len(planes) > 1 {
			args = append(args, "--name", p[0], "--initial-cluster", strings.Join(peers, ","))
		}
		f.Planes = append(f.Planes, f.process(ControlPlane, p[0], p[1], p[3], "api", args))
	}
	control := strings.Join(apis, ",")
	for i := range f.cfg.Nodes {
		name := fmt.Sprintf("node-%d", i+1)
		addrs, err := f.place(name, 2)
		if err != nil {
			return err
		}
		p := f.process(MediaNode, name, addrs[0], addrs[2], "node",
			[]string{
				"--node", name, "--node-label", "name=" + name, "--control-plane", control, "--grpc", addrs[0], "--media", addrs[1],
				"--max-cpu", "100", // how busy the machine is must refuse nobody
			})
		p.Media = addrs[1]
		f.Nodes = append(f.Nodes, p)
	}
	for i := range f.cfg.Gateways {
		name := fmt.Sprintf("gateway-%d", i+1)
		addrs, err := f.place(name, 1)
		if err != nil {
			return err
		}
		f.Gateways = append(f.Gateways, f.process(Signaling, name, addrs[0], addrs[1], "page",
			[]string{"--control-plane", control, "--http", addrs[0]}))
	}
	return nil
}

// makeKey makes the key that all control planes seal with, unless there is one.
func makeKey(file string) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	}
	var key [32]byte
	_, _ = rand.Read(key[:]) // it cannot fail
	return os.WriteFile(file, key[:], 0o600)
}

func (f *Fleet) process(kind Kind, name, addr, metrics, word string, args []string) *Process {
	args = append([]string{string(kind), "--log-level", f.cfg.LogLevel, "--metrics", metrics}, args...)
	if !rpc.IsLoopback(addr) {
		args = append(args, "--insecure")
	}
	if f.cfg.Args != nil {
		args = append(args, f.cfg.Args(kind, name)...)
	}
	return &Process{
		Name: name, Kind: kind, Addr: addr, Metrics: metrics, LogFile: filepath.Join(f.cfg.Dir, name+".log"),
		args: args, binary: f.cfg.Binary, env: f.cfg.Env, network: f.network, word: word,
	}
}

// open opens what this process listens on and dials.
func (f *Fleet) open() error {
	ip, err := f.network.Place(Harness)
	if err != nil {
		return err
	}
	f.subnet = netip.PrefixFrom(ip, 24).Masked()
	if ip.IsLoopback() {
		f.subnet = netip.PrefixFrom(ip, 8).Masked()
	}
	var names, gateways, planes []string
	for i := range f.cfg.Cameras {
		names = append(names, Camera(i))
	}
	for _, p := range f.Gateways {
		gateways = append(gateways, p.Addr)
	}
	for _, p := range f.Planes {
		planes = append(planes, p.Addr)
	}
	if f.Balancer, err = newBalancer(ip, gateways); err != nil {
		return err
	}
	dialer := rpc.Dialer{Insecure: !ip.IsLoopback()}
	if f.client, err = dialer.Dial(planes...); err != nil {
		return err
	}
	// The last: its sockets are closed by Run alone.
	f.Sim, err = simcam.New(simcam.Config{
		Log: f.cfg.Log, Addr: net.JoinHostPort(ip.String(), "0"), Cameras: names, KeyframeInterval: f.cfg.KeyframeInterval,
	})
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	f.stopSim, f.simDone = cancel, make(chan error, 1)
	go func() { f.simDone <- f.Sim.Run(ctx) }()
	return nil
}

// Camera returns the id of the i-th camera, from 0.
func Camera(i int) string { return fmt.Sprintf("cam-%d", i) }

// Processes returns all processes, in the order in which they are best
// restarted.
func (f *Fleet) Processes() []*Process { return slices.Concat(f.Planes, f.Nodes, f.Gateways) }

// Start starts all processes and waits until they are ready.
func (f *Fleet) Start(ctx context.Context) error {
	for _, p := range f.Processes() {
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range f.Processes() {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Crashed returns an error for each process that ended though nobody asked it
// to.
func (f *Fleet) Crashed() error {
	var errs []error
	for _, p := range f.Processes() {
		errs = append(errs, p.Crashed())
	}
	return errors.Join(errs...)
}

// Gateway returns the address that viewers use: the load balancer's.
func (f *Fleet) Gateway() string { return f.Balancer.Addr() }

// Conn returns the operator's connection, to any control plane that answers.
func (f *Fleet) Conn() *grpc.ClientConn { return f.client }

// CameraService returns the operators' client for cameras.
func (f *Fleet) CameraService() controlv1.CameraServiceClient {
	return controlv1.NewCameraServiceClient(f.client)
}

// NodeService returns the operators' client for nodes.
func (f *Fleet) NodeService() controlv1.NodeServiceClient {
	return controlv1.NewNodeServiceClient(f.client)
}

// Follow returns a viewer of a camera, through the load balancer. The caller
// runs it.
func (f *Fleet) Follow(camera string) (*viewertest.Follower, error) {
	return f.FollowAt(f.Gateway(), camera)
}

// FollowAt is Follow through a gateway of the caller's choice.
func (f *Fleet) FollowAt(gateway, camera string) (*viewertest.Follower, error) {
	return viewertest.NewFollower(viewertest.FollowerConfig{
		Log: f.cfg.Log, Gateway: gateway, Camera: camera, Network: f.subnet, Stamp: simcam.ParseTimestamp,
	})
}

// Close kills all processes that run, ends the cameras and the load balancer,
// removes the network, and waits for all of it. It returns an error if a process
// had ended by itself. A second call returns the same.
func (f *Fleet) Close() error {
	f.closing.Do(func() {
		errs := []error{f.Crashed()}
		for _, p := range f.Processes() {
			if p.Running() {
				errs = append(errs, p.Kill())
			}
		}
		if f.client != nil {
			errs = append(errs, f.client.Close())
		}
		if f.Balancer != nil {
			errs = append(errs, f.Balancer.Close())
		}
		if f.stopSim != nil {
			f.stopSim()
			errs = append(errs, <-f.simDone)
		}
		f.closed = errors.Join(append(errs, f.network.Close())...)
	})
	return f.closed
}
