package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spf13/cobra"

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
	// The control address first: simcam.New opens sockets that only Run closes.
	if f.control != "" {
		lis, err := service.Listen(ctx, "control", f.control)
		if err != nil {
			return err
		}
		f.control = lis.Addr().String()
		var srv *simcam.Server
		if srv, err = newSimulated(cfg, "listen"); err != nil {
			return closeAll(err, lis)
		}
		g.Add("control", func(ctx context.Context) error {
			return service.ServeHTTP(ctx, log, lis, srv.Handler(), nil)
		})
		return f.serve(ctx, a, &g, srv)
	}
	srv, err := newSimulated(cfg, "listen")
	if err != nil {
		return err
	}
	return f.serve(ctx, a, &g, srv)
}

func (f *simcamFlags) serve(ctx context.Context, a *app, g *service.Group, srv *simcam.Server) error {
	g.Add("cameras", srv.Run)
	for i := range f.cameras {
		fmt.Fprintln(a.stdout, srv.URL(simulatedName(f.prefix, i)))
	}
	if f.control != "" {
		fmt.Fprintf(a.stdout, "control http://%s/cameras\n", f.control)
	}
	return g.Run(ctx)
}

func (f *simcamFlags) config(a *app) (simcam.Config, error) {
	cfg := simcam.Config{Addr: f.listen, Username: f.username, Audio: f.audio}
	if f.cameras < 1 || f.cameras > maxSimulated {
		return cfg, usagef("--cameras %d: must be 1 to %d", f.cameras, maxSimulated)
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
	if f.control != "" {
		if err := f.sec.exposure("control", f.control, "nothing: it has no keys"); err != nil {
			return cfg, usagef("--control %s can be reached by other machines and has no keys: use 127.0.0.1, or --insecure", f.control)
		}
	}
	for i := range f.cameras {
		cfg.Cameras = append(cfg.Cameras, simulatedName(f.prefix, i))
	}
	return cfg, nil
}

func simulatedName(prefix string, i int) string { return fmt.Sprintf("%s-%d", prefix, i) }

// newSimulated opens the cameras' sockets; a port in use is explained with the
// flag's name.
func newSimulated(cfg simcam.Config, flag string) (*simcam.Server, error) {
	srv, err := simcam.New(cfg)
	if err != nil {
		return nil, service.ListenError(flag, cfg.Addr, err)
	}
	return srv, nil
}

// closeAll closes what was opened before err.
func closeAll(err error, closers ...interface{ Close() error }) error {
	for _, c := range closers {
		if cerr := c.Close(); cerr != nil {
			fmt.Fprintln(os.Stderr, "fanlight:", cerr)
		}
	}
	return err
}
