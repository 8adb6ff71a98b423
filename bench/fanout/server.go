package fanout

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"

	"fanlight/internal/fleettest"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// How long the server may take to do things.
const (
	startLimit = 2 * time.Minute
	stopLimit  = 20 * time.Second
	lookAgain  = 50 * time.Millisecond
	registered = 500 // cameras in one request
)

// server is what is measured, with its cameras.
type server interface {
	// endpoint returns the WHEP URL of a camera.
	endpoint(camera int) string
	// pid returns the process that is measured.
	pid() int
	// freeze has the cameras send nothing, or go on; a server of others goes on.
	freeze(ctx context.Context, on bool) error
}

// guest is a server of others.
type guest struct {
	url     string
	process int
}

func (g guest) endpoint(int) string                { return g.url }
func (g guest) pid() int                           { return g.process }
func (g guest) freeze(context.Context, bool) error { return nil }

// own is a server and cameras that this package has started.
type own struct {
	cfg     *Config
	up      *fleettest.Process   // what is measured
	others  []*fleettest.Process // what it needs besides, with Config.Apart
	cameras *fleettest.Process
	client  *http.Client

	gateway, api, metrics, control string // host:port
	rtsp                           string
}

// newOwn makes the processes. They must be stopped, also if start fails.
func newOwn(cfg *Config, viewers int) (*own, error) {
	addrs, err := fleettest.FreeAddrs(7)
	if err != nil {
		return nil, err
	}
	o := &own{cfg: cfg, gateway: addrs[0], api: addrs[1], metrics: addrs[2], rtsp: addrs[4], control: addrs[5], client: &http.Client{Transport: &http.Transport{}}}
	api := []string{"--grpc", o.api, "--data", filepath.Join(cfg.Dir, "data")}
	page := []string{"--http", o.gateway}
	media := []string{
		"--metrics", o.metrics, "--media", addrs[3],
		"--max-viewers", strconv.Itoa(viewers + 100), "--max-cpu", "100", // how busy the machine is must refuse nobody
		"--max-camera-connects", "0", // all cameras are of one host
	}
	if cfg.Apart {
		control := []string{"--metrics", "", "--control-plane", o.api}
		o.others = []*fleettest.Process{
			o.process("controlplane", "controlplane", "api", append(api, "--metrics", ""), nil),
			o.process("gateway", "signaling", "page", append(page, control...), nil),
		}
		o.up = o.process("server", "medianode", "node", append(media, "--node", "node", "--control-plane", o.api, "--grpc", addrs[6]), o.env())
	} else {
		o.up = o.process("server", "up", "api", slices.Concat(api, page, media), o.env())
	}
	o.cameras = o.process("cameras", "simcam", "control", []string{
		"--cameras", strconv.Itoa(cfg.Cameras), "--listen", o.rtsp, "--control", o.control,
		"--bitrate", strconv.Itoa(cfg.Bitrate), "--packet-size", strconv.Itoa(cfg.PacketSize),
	}, nil)
	return o, nil
}

// env is the environment of what is measured.
func (o *own) env() []string {
	if o.cfg.GOMAXPROCS <= 0 {
		return nil
	}
	return []string{"GOMAXPROCS=" + strconv.Itoa(o.cfg.GOMAXPROCS)}
}

func (o *own) process(name, command, ready string, args, env []string) *fleettest.Process {
	return fleettest.NewProcess(fleettest.ProcessConfig{
		Name: name, Binary: o.cfg.Binary, Args: append([]string{command, "--log-level", "warn"}, args...), Env: env,
		LogFile: filepath.Join(o.cfg.Dir, name+".log"), Ready: ready,
	})
}

// processes returns all, in the order in which they start.
func (o *own) processes() []*fleettest.Process {
	return append([]*fleettest.Process{o.cameras, o.up}, o.others...)
}

// start starts the processes and registers the cameras, until all are live.
func (o *own) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for _, p := range o.processes() {
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range o.processes() {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	conn, err := new(rpc.Dialer).Dial(o.api)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is under way
	return o.register(ctx, controlv1.NewCameraServiceClient(conn))
}

func (o *own) register(ctx context.Context, cameras controlv1.CameraServiceClient) error {
	for from := 0; from < o.cfg.Cameras; from += registered {
		req := &controlv1.BatchCreateCamerasRequest{}
		for i := from; i < min(from+registered, o.cfg.Cameras); i++ {
			req.Requests = append(req.Requests, &controlv1.CreateCameraRequest{Camera: &controlv1.Camera{
				Name:     "cameras/" + camera(i),
				Profiles: []*controlv1.Profile{{Url: "rtsp://" + o.rtsp + "/" + camera(i), Transport: controlv1.Profile_TRANSPORT_TCP}},
			}})
		}
		resp, err := cameras.BatchCreateCameras(ctx, req, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("register cameras: %w", err)
		}
		for _, r := range resp.GetResults() {
			if e := r.GetFailure(); e != nil {
				return fmt.Errorf("register a camera: %s", e.GetMessage())
			}
		}
	}
	for {
		live, err := o.live(ctx, cameras)
		if err != nil || live == o.cfg.Cameras {
			return err
		}
		if err := sleep(ctx, lookAgain); err != nil {
			return fmt.Errorf("%d of %d cameras are live: %w", live, o.cfg.Cameras, err)
		}
	}
}

// live counts the cameras whose media comes.
func (o *own) live(ctx context.Context, cameras controlv1.CameraServiceClient) (live int, err error) {
	req := &controlv1.ListCamerasRequest{PageSize: 1000}
	for {
		resp, err := cameras.ListCameras(ctx, req)
		if err != nil {
			return 0, fmt.Errorf("list cameras: %w", err)
		}
		for _, c := range resp.GetCameras() {
			if c.GetStatus().GetState() == controlv1.CameraStatus_STATE_LIVE {
				live++
			}
		}
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			return live, nil
		}
	}
}

// camera returns a camera's name, which is simcam's as well.
func camera(i int) string { return fmt.Sprintf("cam-%d", i) }

func (o *own) endpoint(i int) string {
	return "http://" + o.gateway + "/v1/cameras/" + camera(i) + "/whep"
}
func (o *own) pid() int { return o.up.PID() }

// frozen is how long cameras that nobody unfreezes are: what a turn of the floor
// takes, and a second.
const frozen = floorTurn + time.Second

func (o *own) freeze(ctx context.Context, on bool) error {
	query := "kind=none"
	if on {
		query = "kind=freeze&for=" + frozen.String()
	}
	for i := range o.cfg.Cameras {
		u := "http://" + o.control + "/cameras/" + camera(i) + "/fault?" + query
		if _, err := o.request(ctx, http.MethodPost, u); err != nil {
			return fmt.Errorf("freeze cameras: %w", err)
		}
	}
	return nil
}

// goroutines returns how many goroutines the server has.
func (o *own) goroutines(ctx context.Context) (float64, error) {
	text, err := o.request(ctx, http.MethodGet, "http://"+o.metrics+"/metrics")
	if err != nil {
		return 0, fmt.Errorf("count goroutines: %w", err)
	}
	for lines := bufio.NewScanner(strings.NewReader(string(text))); lines.Scan(); {
		if v, ok := strings.CutPrefix(lines.Text(), "go_goroutines "); ok {
			return strconv.ParseFloat(v, 64)
		}
	}
	return 0, errors.New("count goroutines: the server's metrics have none")
}

// profile writes the server's CPU profile of so long from now on.
func (o *own) profile(ctx context.Context, length time.Duration, file string) error {
	seconds := max(1, int(length.Seconds()))
	data, err := o.request(ctx, http.MethodGet, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", o.metrics, seconds))
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("profile the server: %w", err)
	}
	return nil
}

func (o *own) request(ctx context.Context, method, url string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, http.NoBody)
	if err != nil {
		return nil, err
	}
	resp, err := o.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, data)
	}
	return data, err
}

// crashed returns an error if a process has ended by itself.
func (o *own) crashed() error {
	var errs []error
	for _, p := range o.processes() {
		errs = append(errs, p.Crashed())
	}
	return errors.Join(errs...)
}

// stop ends the processes.
func (o *own) stop() error {
	o.client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	var errs []error
	for _, p := range slices.Backward(o.processes()) {
		if p.Running() {
			errs = append(errs, p.Terminate(ctx))
		} else {
			errs = append(errs, p.Crashed())
		}
	}
	return errors.Join(errs...)
}

// sleep waits, or returns the error of ctx.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
