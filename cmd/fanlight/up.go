package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"fanlight/controlplane"
	"fanlight/controlplane/store"
	"fanlight/internal/rpc"
	"fanlight/internal/service"
	"fanlight/medianode"
)

// upFlags are the settings of everything in one process.
type upFlags struct {
	plane   planeFlags
	node    nodeFlags
	gateway gatewayFlags
	sec     security
	metrics observed
	grpc    string
	demo    int
}

func newUp(a *app) *cobra.Command {
	var f upFlags
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run everything in one process",
		Long: `Run everything in one process: a control plane with its state in --data, a media
node and a gateway with the page.

--demo adds simulated cameras, demo-0 and so on. They are registered as others
are, with the label fanlight-demo; a later start without --demo leaves them
there, without a picture, until they are deleted.`,
		Example: "  fanlight up --demo 2\n  fanlight up --data /var/lib/fanlight --config /etc/fanlight.yaml",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runUp(cmd.Context(), &f)
		},
	}
	fl := cmd.Flags()
	f.gateway.flags(fl)
	fl.StringVar(&f.grpc, "grpc", "127.0.0.1:9090", "`address` of the API")
	f.node.flags(fl, "local", "the node's `name`")
	f.plane.flags(fl)
	f.sec.flags(fl)
	f.sec.tokenFlag(fl)
	f.metrics.flags(fl, upMetrics)
	fl.IntVar(&f.demo, "demo", 0, "add as `many` simulated cameras")
	a.logFlags(fl)
	return cmd
}

func (f *upFlags) check() error {
	if f.demo < 0 {
		return usagef("--demo %d: must not be negative", f.demo)
	}
	if err := f.gateway.check(&f.sec); err != nil {
		return err
	}
	if err := f.metrics.check(&f.sec); err != nil {
		return err
	}
	return f.sec.exposure("grpc", f.grpc, f.sec.needTLS(), f.sec.needOperators())
}

// up is everything in one process. What is opened is closed in reverse order.
type up struct {
	app     *app
	log     *slog.Logger
	flags   *upFlags
	group   service.Group
	closers []io.Closer

	server  *rpc.Server
	dialer  *rpc.Dialer
	control *grpc.ClientConn // to this process itself
	ready   []func() error
}

func (a *app) runUp(ctx context.Context, f *upFlags) (err error) {
	log, err := a.logger()
	if err != nil {
		return err
	}
	if err := f.check(); err != nil {
		return err
	}
	ctx, release := service.SignalContext(ctx, log)
	defer release()
	u := &up{app: a, log: log, flags: f}
	defer func() { err = joinClose(err, u) }()
	if err := u.open(ctx); err != nil {
		return stopped(ctx, err)
	}
	return u.group.Run(ctx)
}

// open opens the listeners first: a port in use is said before anything else
// was done.
func (u *up) open(ctx context.Context) (err error) {
	f := u.flags
	if err := f.metrics.start(u.log, &f.sec, nil); err != nil {
		return err
	}
	if u.server, err = f.sec.rpcServer(u.log, controlplane.Services, medianode.Services); err != nil {
		return err
	}
	grpcLis, err := u.listen(ctx, "grpc", f.grpc)
	if err != nil {
		return err
	}
	httpLis, err := u.listen(ctx, "http", f.gateway.http)
	if err != nil {
		return err
	}
	metricsLis, err := f.metrics.serve(ctx, u.log, &f.sec, &u.group)
	if err != nil {
		return err
	}
	u.closers = append(u.closers, metricsLis)
	pipe := rpc.NewPipe(grpcLis.Addr().String())
	if u.dialer, err = f.sec.dialer(u.log, nodes()); err != nil {
		return err
	}
	u.dialer.Pipe = pipe
	if u.control, err = u.dialer.Dial(pipe.Addr().String()); err != nil {
		return err
	}
	u.closers = append(u.closers, u.control)
	u.group.Add("grpc", func(ctx context.Context) error { return u.server.Serve(ctx, grpcLis, pipe) })
	if err := u.openGateway(httpLis); err != nil {
		return err
	}
	if err := u.openPlane(ctx); err != nil {
		return err
	}
	if err := u.openNode(pipe.Addr().String()); err != nil {
		return err
	}
	// Last: the simulated cameras' sockets are closed only by their Run.
	if err := u.openDemo(); err != nil { //nolint:contextcheck // opens sockets, which does not wait
		return err
	}
	warnOpen(u.log, f.sec.anyone(), f.gateway.viewers.anyone())
	u.group.Add("announcement", func(ctx context.Context) error {
		return u.app.announce(ctx, u.ready,
			"page "+pageURL(httpLis.Addr(), f.sec.files.Cert != ""),
			"api  "+grpcLis.Addr().String())
	})
	return nil
}

func (u *up) listen(ctx context.Context, flag, addr string) (net.Listener, error) {
	lis, err := service.Listen(ctx, flag, addr)
	if err != nil {
		return nil, err
	}
	u.closers = append(u.closers, lis)
	return lis, nil
}

func (u *up) openGateway(lis net.Listener) error {
	tlsConfig, err := u.flags.sec.webTLS(u.log)
	if err != nil {
		return err
	}
	gw, err := u.flags.gateway.gateway(u.log, u.control, u.dialer)
	if err != nil {
		return err
	}
	u.ready = append(u.ready, gw.Ready)
	if err := u.flags.metrics.registry.Register(gw.Metrics()); err != nil {
		return err
	}
	u.group.Add("gateway", gw.Run)
	u.group.Add("http", func(ctx context.Context) error {
		return service.ServeHTTP(ctx, u.log, lis, gw.Handler(), tlsConfig)
	})
	return nil
}

func (u *up) openPlane(ctx context.Context) error {
	f := &u.flags.plane
	cfg, err := f.etcd.config(u.log, true)
	if err != nil {
		return err
	}
	networks, err := prefixes("camera-networks", u.flags.node.networks)
	if err != nil {
		return err
	}
	var st *store.Store
	if st, err = openStore(ctx, cfg); err != nil {
		return err
	}
	u.closers = append(u.closers, st)
	plane, err := controlplane.New(f.config(u.log, st, networks))
	if err != nil {
		return usageError{err}
	}
	plane.Register(u.server)
	u.ready = append(u.ready, plane.Ready)
	if err := u.flags.metrics.plane(plane, &f.etcd); err != nil {
		return err
	}
	u.group.Add("control plane", plane.Run)
	return nil
}

func (u *up) openNode(sessionAddress string) error {
	cfg, err := u.flags.node.config(u.log, u.control, sessionAddress)
	if err != nil {
		return err
	}
	node, err := medianode.New(cfg)
	if err != nil {
		return usageError{err}
	}
	node.Register(u.server)
	u.ready = append(u.ready, node.Ready)
	if err := u.flags.metrics.registry.Register(node.Metrics()); err != nil {
		return err
	}
	u.group.Add("node", u.flags.node.run(node))
	return nil
}

func (u *up) openDemo() error {
	if u.flags.demo == 0 {
		return nil
	}
	d, err := newDemo(u.log, u.flags.demo, u.control)
	if err != nil {
		return err
	}
	ready := u.ready
	u.group.Add("demo cameras", d.cameras.Run)
	u.group.Add("demo", func(ctx context.Context) error {
		if awaitReady(ctx, ready...) == nil {
			return d.register(ctx)
		}
		return nil
	})
	return nil
}

// Close closes what was opened. Listeners that a server has closed already are
// no error.
func (u *up) Close() error {
	var errs []error
	for i := len(u.closers) - 1; i >= 0; i-- {
		if err := u.closers[i].Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// joinClose closes c and adds its error to err.
func joinClose(err error, c io.Closer) error {
	if cerr := c.Close(); cerr != nil {
		return errors.Join(err, fmt.Errorf("close: %w", cerr))
	}
	return err
}
