package soak

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"google.golang.org/grpc"

	"fanlight/internal/fleettest"
	"fanlight/internal/rpc"
	"fanlight/internal/simcam"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// The bitrates of the profiles.
const (
	mainBitrate = 2_000_000
	subBitrate  = 0 // what the clip has: less than 0.5 Mbit/s
)

// server is a fleet with its cameras.
type server struct {
	cfg     *Config
	fleet   []*fleettest.Process // in the order in which they start
	sims    map[string]*simcam.Server
	stopSim context.CancelFunc
	simDone chan error
	client  *http.Client

	gateway, api string   // host:port
	metrics      []string // host:port of each process
}

// newServer makes the processes and the cameras. It must be stopped.
func newServer(cfg *Config) (*server, error) {
	addrs, err := fleettest.FreeAddrs(7)
	if err != nil {
		return nil, err
	}
	s := &server{
		cfg: cfg, client: &http.Client{Transport: &http.Transport{}}, gateway: addrs[0], api: addrs[1],
		sims: make(map[string]*simcam.Server), simDone: make(chan error, 2), stopSim: func() {},
	}
	api := []string{"--grpc", s.api, "--data", filepath.Join(cfg.Dir, "data")}
	page := []string{"--http", s.gateway}
	media := []string{"--media", addrs[2], "--max-viewers", strconv.Itoa(4*cfg.Viewers + 100), "--max-cpu", "100"}
	if cfg.Apart {
		control := []string{"--control-plane", s.api}
		s.add("controlplane", "controlplane", "api", addrs[3], api)
		s.add("medianode", "medianode", "node", addrs[4], append(append(media, "--node", "node", "--grpc", addrs[6]), control...))
		s.add("gateway", "signaling", "page", addrs[5], append(page, control...))
	} else {
		s.add("server", "up", "api", addrs[3], slices.Concat(api, page, media))
	}
	var names []string
	for i := range cfg.Cameras {
		names = append(names, camera(i))
	}
	ctx, cancel := context.WithCancel(context.Background())
	s.stopSim = cancel
	for profile, bitrate := range map[string]int{"main": mainBitrate, "sub": subBitrate} {
		sim, err := simcam.New(simcam.Config{Log: cfg.Log, Cameras: names, Bitrate: bitrate, KeyframeInterval: 2 * time.Second})
		if err != nil {
			return nil, errors.Join(err, s.stop())
		}
		s.sims[profile] = sim
		go func() { s.simDone <- sim.Run(ctx) }()
	}
	return s, nil
}

func (s *server) add(name, command, ready, metrics string, args []string) {
	s.metrics = append(s.metrics, metrics)
	s.fleet = append(s.fleet, fleettest.NewProcess(fleettest.ProcessConfig{
		Name: name, Binary: s.cfg.Binary, Args: append([]string{command, "--log-level", "warn", "--metrics", metrics}, args...), Env: s.cfg.Env,
		LogFile: filepath.Join(s.cfg.Dir, name+".log"), Ready: ready,
	}))
}

// start starts the processes and registers the cameras, until all are live.
func (s *server) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for _, p := range s.fleet {
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range s.fleet {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	conn, err := new(rpc.Dialer).Dial(s.api)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is under way
	return s.register(ctx, controlv1.NewCameraServiceClient(conn))
}

func (s *server) register(ctx context.Context, cameras controlv1.CameraServiceClient) error {
	for i := range s.cfg.Cameras {
		req := &controlv1.CreateCameraRequest{Camera: &controlv1.Camera{Name: "cameras/" + camera(i)}}
		for _, id := range []string{"main", "sub"} {
			req.Camera.Profiles = append(req.Camera.Profiles, &controlv1.Profile{
				Id: id, Url: s.sims[id].URL(camera(i)), Transport: controlv1.Profile_TRANSPORT_TCP,
			})
		}
		if _, err := cameras.CreateCamera(ctx, req, grpc.WaitForReady(true)); err != nil {
			return fmt.Errorf("register a camera: %w", err)
		}
	}
	for {
		resp, err := cameras.ListCameras(ctx, &controlv1.ListCamerasRequest{PageSize: 1000})
		if err != nil {
			return fmt.Errorf("list cameras: %w", err)
		}
		live := 0
		for _, c := range resp.GetCameras() {
			if c.GetStatus().GetState() == controlv1.CameraStatus_STATE_LIVE {
				live++
			}
		}
		if live == s.cfg.Cameras {
			return nil
		}
		if err := sleep(ctx, lookAgain); err != nil {
			return fmt.Errorf("%d of %d cameras are live: %w", live, s.cfg.Cameras, err)
		}
	}
}

// camera returns a camera's name, which is simcam's as well.
func camera(i int) string { return fmt.Sprintf("cam-%d", i) }

// get returns what a process has at a path of its metrics' address.
func (s *server) get(ctx context.Context, addr, path string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+path, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := s.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, data)
	}
	return data, err
}

// crashed returns an error if a process has ended by itself.
func (s *server) crashed() error {
	var errs []error
	for _, p := range s.fleet {
		errs = append(errs, p.Crashed())
	}
	return errors.Join(errs...)
}

// stop ends the processes and the cameras.
func (s *server) stop() error {
	s.client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	var errs []error
	for _, p := range slices.Backward(s.fleet) {
		if p.Running() {
			errs = append(errs, p.Terminate(ctx))
		} else {
			errs = append(errs, p.Crashed())
		}
	}
	s.stopSim()
	for range s.sims {
		errs = append(errs, <-s.simDone)
	}
	return errors.Join(errs...)
}
