package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"fanlight/internal/rpc"
	"fanlight/internal/service"
	"fanlight/internal/simcam"
)

// maxSimulated bounds how many cameras are simulated in one process.
const maxSimulated = 10_000

type simcamFlags struct {
	cameras      int
	prefix       string
	listen       string
	control      string
	username     string
	passwordFile string
	audio        bool
	bitrate      int
	packetSize   int
	sec          security
}

func newSimcam(a *app) *cobra.Command {
	var f simcamFlags
	cmd := &cobra.Command{
		Use:   "simcam",
		Short: "Simulate RTSP cameras",
		Long: `Simulate RTSP cameras for tests and demonstrations: a moving picture with a
counter, H264, 25 frames a second. --control serves faults over HTTP:

  curl -X POST 'http://127.0.0.1:8555/cameras/cam-0/fault?kind=freeze&for=5s'`,
		Example: "  fanlight simcam --cameras 2\n  fanlight camera add lobby --url rtsp://127.0.0.1:8554/cam-0",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), a) },
	}
	fl := cmd.Flags()
	fl.IntVar(&f.cameras, "cameras", 1, "how `many` cameras")
	fl.StringVar(&f.prefix, "prefix", "cam", "`name` of the cameras, which are at /NAME-0, /NAME-1 …")
	fl.StringVar(&f.listen, "listen", "127.0.0.1:8554", "RTSP `address`")
	fl.StringVar(&f.control, "control", "", "HTTP `address` to set faults at (default: none)")
	fl.StringVar(&f.username, "username", "", "user `name` that the cameras ask for")
	fl.StringVar(&f.passwordFile, "password-file", "", "`file` with the password that they ask for; \"-\": the standard input")
	fl.BoolVar(&f.audio, "audio", false, "a tone as well (PCMA)")
	fl.IntVar(&f.bitrate, "bitrate", 0, "fill the video up to as many `bits` a second (0: what the pictures have)")
	fl.IntVar(&f.packetSize, "packet-size", 0, "`bytes` that an RTP packet of video has at most, without its header (0: 1460)")
	fl.BoolVar(&f.sec.insecure, "insecure", false, "allow addresses that other machines can reach without a user name and password")
	a.logFlags(fl)
	return cmd
}

func (f *simcamFlags) run(ctx context.Context, a *app) error {
	log, err := a.logger()
	if err != nil {
		return err
	}
	cfg, err := f.config(a)
	if err != nil {
		return err
	}
	cfg.Log = log
	ctx, release := service.SignalContext(ctx, log)
	defer release()
	var g service.Group
	if f.control == "" {
		srv, err := newSimulated(cfg) //nolint:contextcheck // opens sockets, which does not wait
		if err != nil {
			return err
		}
		return f.serve(ctx, a, &g, srv)
	}
	// The control address first: the cameras' sockets are closed only by Run.
	lis, err := service.Listen(ctx, "control", f.control)
	if err != nil {
		return err
	}
	defer quietClose(lis)         // closed by ServeHTTP already, unless the start failed
	srv, err := newSimulated(cfg) //nolint:contextcheck // opens sockets, which does not wait
	if err != nil {
		return err
	}
	f.control = lis.Addr().String()
	g.Add("control", func(ctx context.Context) error {
		return service.ServeHTTP(ctx, log, lis, srv.Handler(), nil)
	})
	return f.serve(ctx, a, &g, srv)
}

func (f *simcamFlags) serve(ctx context.Context, a *app, g *service.Group, srv *simcam.Server) error {
	g.Add("cameras", srv.Run)
	var lines []string
	for i := range f.cameras {
		lines = append(lines, srv.URL(simulatedName(f.prefix, i)))
	}
	if f.control != "" {
		lines = append(lines, "control http://"+f.control+"/cameras")
	}
	g.Add("announcement", func(ctx context.Context) error { return a.announce(ctx, nil, lines...) })
	return g.Run(ctx)
}

func (f *simcamFlags) config(a *app) (simcam.Config, error) {
	cfg := simcam.Config{Addr: f.listen, Username: f.username, Audio: f.audio, Bitrate: f.bitrate, PacketSize: f.packetSize}
	if f.cameras < 1 || f.cameras > maxSimulated {
		return cfg, usagef("--cameras %d: must be 1 to %d", f.cameras, maxSimulated)
	}
	if f.bitrate < 0 || f.bitrate > 100_000_000 {
		return cfg, usagef("--bitrate %d: must be 0 to 100000000", f.bitrate)
	}
	if f.packetSize != 0 && (f.packetSize < 100 || f.packetSize > 1460) {
		return cfg, usagef("--packet-size %d: must be 100 to 1460, or 0", f.packetSize)
	}
	if (f.username == "") != (f.passwordFile == "") {
		return cfg, usagef("give --username and --password-file together")
	}
	need := "--username and --password-file"
	if f.passwordFile != "" {
		need = ""
		var err error
		if cfg.Password, err = readPassword(f.passwordFile, a.stdin); err != nil {
			return cfg, usagef("--password-file: %w", err)
		}
	}
	if err := f.sec.exposure("listen", f.listen, need); err != nil {
		return cfg, err
	}
	if f.control != "" && !f.sec.insecure && !rpc.IsLoopback(f.control) {
		return cfg, usagef("--control %s can be reached by other machines and has no keys: use 127.0.0.1, or --insecure", f.control)
	}
	for i := range f.cameras {
		cfg.Cameras = append(cfg.Cameras, simulatedName(f.prefix, i))
	}
	return cfg, nil
}

func simulatedName(prefix string, i int) string { return fmt.Sprintf("%s-%d", prefix, i) }

// newSimulated opens the cameras' sockets; a port in use is explained.
func newSimulated(cfg simcam.Config) (*simcam.Server, error) {
	srv, err := simcam.New(cfg)
	if err != nil {
		return nil, service.ListenError("listen", cfg.Addr, err)
	}
	return srv, nil
}
