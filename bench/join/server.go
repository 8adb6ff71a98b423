package join

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"

	"fanlight/internal/fleettest"
	"fanlight/internal/rpc"
	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// site is where viewers join.
type site interface {
	// cameras makes a row's cameras, and returns the addresses of those that
	// are live. end takes them away.
	cameras(ctx context.Context, round int, interval time.Duration) (list []address, end func() error, err error)
	// prepare makes a viewer that has asked for nothing yet.
	prepare(ctx context.Context, at address, websocket bool, cfg viewertest.Config) (player, error)
}

// address is how a camera is watched.
type address struct {
	whep   string // URL
	camera string // its id; "": not known, and only WHEP is possible
}

// player is a viewer of viewertest, by WHEP or over a websocket.
type player interface {
	Play(ctx context.Context) error
	Times() (sent, answered time.Time)
	Delete(ctx context.Context) error
}

var _, _ player = (*viewertest.WHEP)(nil), (*viewertest.Watch)(nil)

// door is how viewers get in.
type door struct {
	client *http.Client
	token  string
}

func newDoor(token string) door {
	return door{client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}, token: token}
}

func (d door) prepare(ctx context.Context, at address, websocket bool, cfg viewertest.Config) (player, error) {
	if !websocket {
		// The connection is there already, as a page's is.
		if err := d.greet(ctx, at.whep); err != nil {
			return nil, err
		}
		return viewertest.PrepareWHEP(ctx, d.client, at.whep, d.token, cfg)
	}
	base, _, _ := strings.Cut(at.whep, "/v1/cameras/")
	return viewertest.PrepareWatch(ctx, "ws"+strings.TrimPrefix(base, "http")+"/v1/ws", d.token, at.camera, cfg)
}

// greet asks for what costs nothing, so that there is a connection.
func (d door) greet(ctx context.Context, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodOptions, target, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return err
	}
	return resp.Body.Close() // whatever the answer is
}

// guest is a running installation.
type guest struct {
	door
	at address
}

// newGuest takes a WHEP URL. Fanlight's have the camera in them:
// "http://127.0.0.1:8080/v1/cameras/lobby/whep".
func newGuest(whep, token string) (*guest, error) {
	g := &guest{newDoor(token), address{whep: whep}}
	if _, rest, ok := strings.Cut(whep, "/v1/cameras/"); ok {
		id, err := url.PathUnescape(strings.TrimSuffix(rest, "/whep"))
		if err != nil {
			return nil, fmt.Errorf("WHEP URL: %w", err)
		}
		g.at.camera = id
	}
	return g, nil
}

func (g *guest) cameras(context.Context, int, time.Duration) ([]address, func() error, error) {
	return []address{g.at}, func() error { g.client.CloseIdleConnections(); return nil }, nil
}

// own is a server that this package has started.
type own struct {
	door
	cfg       *Config
	processes []*fleettest.Process // in the order in which they start

	gateway, api string // host:port
	conn         *grpc.ClientConn
	service      controlv1.CameraServiceClient
}

// newOwn makes the processes. They must be stopped, also if start fails.
func newOwn(cfg *Config) (*own, error) {
	addrs, err := fleettest.FreeAddrs(4)
	if err != nil {
		return nil, err
	}
	o := &own{door: newDoor(""), cfg: cfg, gateway: addrs[0], api: addrs[1]}
	api := []string{"--grpc", o.api, "--data", filepath.Join(cfg.Dir, "data")}
	page := []string{"--http", o.gateway}
	media := []string{"--media", addrs[2], "--max-cpu", "100"} // how busy the machine is must refuse nobody
	if cfg.Apart {
		control := []string{"--metrics", "", "--control-plane", o.api}
		o.processes = []*fleettest.Process{
			o.process("controlplane", "api", append(api, "--metrics", "")),
			o.process("medianode", "node", slices.Concat(media, control, []string{"--node", "node", "--grpc", addrs[3]})),
			o.process("signaling", "page", append(page, control...)),
		}
	} else {
		o.processes = []*fleettest.Process{o.process("up", "api", slices.Concat(api, page, media, []string{"--metrics", ""}))}
	}
	if o.conn, err = new(rpc.Dialer).Dial(o.api); err != nil {
		return nil, err
	}
	o.service = controlv1.NewCameraServiceClient(o.conn)
	return o, nil
}

func (o *own) process(command, ready string, args []string) *fleettest.Process {
	return fleettest.NewProcess(fleettest.ProcessConfig{
		Name: command, Binary: o.cfg.Binary, Args: append([]string{command, "--log-level", "warn"}, args...),
		LogFile: filepath.Join(o.cfg.Dir, command+".log"), Ready: ready,
	})
}

func (o *own) start(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for _, p := range o.processes {
		if err := p.Start(); err != nil {
			return err
		}
	}
	for _, p := range o.processes {
		if err := p.AwaitReady(ctx); err != nil {
			return err
		}
	}
	return nil
}

// stop ends the processes. One that has ended by itself is an error.
func (o *own) stop() error {
	o.client.CloseIdleConnections()
	ctx, cancel := context.WithTimeout(context.Background(), stopLimit)
	defer cancel()
	errs := []error{o.conn.Close()}
	for _, p := range slices.Backward(o.processes) {
		if p.Running() {
			errs = append(errs, p.Terminate(ctx))
		} else {
			errs = append(errs, p.Crashed())
		}
	}
	return errors.Join(errs...)
}

// cameras runs a camera for each second of the interval, and registers them,
// until all are live.
func (o *own) cameras(ctx context.Context, round int, interval time.Duration) ([]address, func() error, error) {
	var ids []string
	for i := range int(interval / time.Second) {
		ids = append(ids, fmt.Sprintf("join-%d-%ds-%d", round, int(interval/time.Second), i))
	}
	sim, err := simcam.New(simcam.Config{Cameras: ids, KeyframeInterval: interval, Bitrate: o.cfg.Bitrate, IgnorePLI: !o.cfg.AnswerPLI}) //nolint:contextcheck // opens sockets, which does not wait
	if err != nil {
		return nil, nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var work sync.WaitGroup
	var failed error
	work.Go(func() { failed = sim.Run(running) })
	end := func() error {
		err := o.remove(running, ids)
		cancel()
		work.Wait()
		return errors.Join(err, failed)
	}
	if err := o.register(ctx, sim, ids); err != nil {
		return nil, nil, errors.Join(err, end())
	}
	list := make([]address, len(ids))
	for i, id := range ids {
		list[i] = address{"http://" + o.gateway + "/v1/cameras/" + id + "/whep", id}
	}
	return list, end, nil
}

func (o *own) register(ctx context.Context, sim *simcam.Server, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	for _, id := range ids {
		_, err := o.service.CreateCamera(ctx, &controlv1.CreateCameraRequest{Camera: &controlv1.Camera{
			Name:     "cameras/" + id,
			Profiles: []*controlv1.Profile{{Url: sim.URL(id), Transport: controlv1.Profile_TRANSPORT_TCP}},
		}}, grpc.WaitForReady(true))
		if err != nil {
			return fmt.Errorf("register camera %s: %w", id, err)
		}
	}
	for _, id := range ids {
		for {
			resp, err := o.service.GetCamera(ctx, &controlv1.GetCameraRequest{Name: "cameras/" + id})
			if err != nil {
				return fmt.Errorf("look at camera %s: %w", id, err)
			}
			if s := resp.GetCamera().GetStatus(); s.GetState() == controlv1.CameraStatus_STATE_LIVE {
				break
			} else if err := sleep(ctx, 50*time.Millisecond); err != nil {
				return fmt.Errorf("camera %s is %v: %w", id, s.GetState(), err)
			}
		}
	}
	return nil
}

func (o *own) remove(ctx context.Context, ids []string) error {
	ctx, cancel := context.WithTimeout(ctx, stopLimit)
	defer cancel()
	var errs []error
	for _, id := range ids {
		if _, err := o.service.DeleteCamera(ctx, &controlv1.DeleteCameraRequest{Name: "cameras/" + id}); err != nil {
			errs = append(errs, fmt.Errorf("delete camera %s: %w", id, err))
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
