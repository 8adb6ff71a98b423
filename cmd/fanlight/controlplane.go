package main

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"fanlight/controlplane"
	"fanlight/controlplane/store"
	"fanlight/internal/service"
)

// openTimeout bounds the wait for etcd at the start. A cluster's first members
// wait for the others.
const openTimeout = 2 * time.Minute

// planeFlags are a control plane's settings.
type planeFlags struct {
	etcd      etcdFlags
	nodeGrace time.Duration
	leaseTTL  time.Duration
	rebalance int
}

func (f *planeFlags) flags(flags *pflag.FlagSet) {
	f.etcd.dataFlags(flags)
	flags.DurationVar(&f.nodeGrace, "node-grace", 500*time.Millisecond, "how `long` a node whose connection broke may take to come back")
	flags.DurationVar(&f.leaseTTL, "lease-ttl", 3*time.Second, "how `long` a silent node keeps its cameras, in whole seconds")
	flags.IntVar(&f.rebalance, "rebalance-moves", 8, "how `many` cameras may be on their way from loaded nodes to others at a time; 0: none moves for balance")
}

// openStore waits for etcd.
func openStore(ctx context.Context, cfg store.Config) (*store.Store, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	return store.Open(ctx, cfg)
}

func (f *planeFlags) config(log *slog.Logger, st *store.Store, networks []netip.Prefix) controlplane.Config {
	return controlplane.Config{
		Log:            log.With("component", "controlplane"),
		Store:          st,
		NodeGrace:      f.nodeGrace,
		LeaseTTL:       f.leaseTTL,
		RebalanceMoves: f.rebalanceMoves(),
		ReplicaName:    f.etcd.member,
		CameraNetworks: networks,
	}
}

// rebalanceMoves returns --rebalance-moves as a Config has it, where 0 is the
// default.
func (f *planeFlags) rebalanceMoves() int {
	if f.rebalance <= 0 {
		return -1
	}
	return f.rebalance
}

func newControlPlane(a *app) *cobra.Command {
	var f planeFlags
	var sec security
	var metrics observed
	var grpcAddr string
	var networks []string
	cmd := &cobra.Command{
		Use:   "controlplane",
		Short: "Run a control plane",
		Long: `Run a control plane: the API for operators, nodes and gateways. Its state is in
an etcd that it embeds (--data), alone or with other control planes
(--initial-cluster), or in one elsewhere (--etcd-endpoints).`,
		Example: `  fanlight controlplane --data ./fanlight-data
  fanlight controlplane --grpc 192.0.2.10:9090 --tls-cert cp.pem --tls-key cp-key.pem --tls-ca ca.pem --operator-tokens operators.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			log, err := a.logger()
			if err != nil {
				return err
			}
			if err := sec.exposure("grpc", grpcAddr, sec.needTLS(), sec.needPeers()); err != nil {
				return err
			}
			if err := f.etcd.exposure(&sec); err != nil {
				return err
			}
			if err := metrics.check(&sec); err != nil {
				return err
			}
			allowed, err := prefixes("camera-networks", networks)
			if err != nil {
				return err
			}
			cfg, err := f.etcd.config(log, cmd.Flags().Changed("data"))
			if err != nil {
				return err
			}
			return a.runControlPlane(cmd.Context(), log, &f, &sec, &metrics, grpcAddr, cfg, allowed)
		},
	}
	f.flags(cmd.Flags())
	f.etcd.clusterFlags(cmd.Flags())
	sec.flags(cmd.Flags())
	sec.tokenFlag(cmd.Flags())
	metrics.flags(cmd.Flags(), planeMetrics)
	cmd.Flags().StringVar(&grpcAddr, "grpc", "127.0.0.1:9090", "`address` of the API")
	cmd.Flags().StringSliceVar(&networks, "camera-networks", nil, "`networks` that cameras' URLs may lead to (default: all)")
	a.logFlags(cmd.Flags())
	return cmd
}

func (a *app) runControlPlane(ctx context.Context, log *slog.Logger, f *planeFlags, sec *security, metrics *observed, addr string, cfg store.Config, networks []netip.Prefix) (err error) {
	if err := metrics.start(log, sec, &f.etcd); err != nil {
		return err
	}
	server, err := sec.rpcServer(log, controlplane.Services)
	if err != nil {
		return err
	}
	ctx, release := service.SignalContext(ctx, log)
	defer release()
	lis, err := service.Listen(ctx, "grpc", addr)
	if err != nil {
		return err
	}
	defer quietClose(lis) // closed by Serve already, unless the start failed
	st, err := openStore(ctx, cfg)
	if err != nil {
		return stopped(ctx, err)
	}
	defer func() { err = joinClose(err, st) }()
	plane, err := controlplane.New(f.config(log, st, networks))
	if err != nil {
		return usageError{err}
	}
	plane.Register(server)
	warnOpen(log, sec.anyone(), false)
	var g service.Group
	if err := metrics.plane(plane, &f.etcd); err != nil {
		return err
	}
	observing, err := metrics.serve(ctx, log, sec, &g)
	if err != nil {
		return err
	}
	defer quietClose(observing)
	g.Add("control plane", plane.Run)
	g.Add("grpc", func(ctx context.Context) error { return server.Serve(ctx, lis) })
	g.Add("announcement", func(ctx context.Context) error {
		return a.announce(ctx, []func() error{plane.Ready}, "api "+lis.Addr().String())
	})
	return noReturn(g.Run(ctx))
}

// stopped returns the error of a start; none if it was a signal that ended it.
func stopped(ctx context.Context, err error) error {
	if ctx.Err() == nil {
		return noReturn(err)
	}
	return nil
}

// noReturn makes a configuration's error of that of a control plane which was
// removed from its cluster: supervisors need not start it again.
func noReturn(err error) error {
	if errors.Is(err, store.ErrRemoved) {
		return usageError{err}
	}
	return err
}
