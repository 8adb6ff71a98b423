package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	"fanlight/internal/service"
	"fanlight/medianode"
	"fanlight/medianode/source"
)

// nodeFlags are a node's settings.
type nodeFlags struct {
	node      string
	media     string
	advertise []string
	labels    map[string]string
	networks  []string

	cameras, viewers      int
	ingressBPS, egressBPS int64
	cpu                   float64 // per cent
	connects              float64 // a second and host

	cacheBytes int
	cacheTime  time.Duration
}

func (f *nodeFlags) flags(flags *pflag.FlagSet, name, nameUsage string) {
	flags.StringVar(&f.node, "node", name, nameUsage)
	flags.StringVar(&f.media, "media", "127.0.0.1:8189", "`address` of the viewers' media, UDP and TCP (always encrypted, and only for sessions that a gateway opened)")
	flags.StringSliceVar(&f.advertise, "advertise", nil, "IP `address` at which browsers reach --media, where it is another; several allowed")
	flags.StringToStringVar(&f.labels, "node-label", nil, "the node's label, `key=value`, for the cameras' selectors; several allowed")
	flags.StringSliceVar(&f.networks, "camera-networks", nil, "`networks` that cameras may be in (default: all)")
	flags.IntVar(&f.cameras, "max-cameras", 0, "`cameras` that the node may be given (0: no limit)")
	flags.IntVar(&f.viewers, "max-viewers", 0, "`sessions` that the node takes (0: 1,000)")
	flags.Float64Var(&f.cpu, "max-cpu", 100*medianode.DefaultCPU, "`percent` of the processors that the process may use, beyond which the node refuses sessions (100: no limit)")
	flags.Float64Var(&f.connects, "max-camera-connects", source.DefaultConnects, "`connections` a second that the node begins to one host, of a camera or of many, after a burst of twice as many (0: no limit)")
	flags.IntVar(&f.cacheBytes, "keyframe-cache-bytes", medianode.DefaultKeyframeCacheBytes, "`bytes` kept of what each camera's profile sent since its last keyframe, at most, so that viewers have a picture at once (0: nothing is kept)")
	flags.DurationVar(&f.cacheTime, "keyframe-cache-time", medianode.DefaultKeyframeCacheTime, "how long since the last keyframe that is kept, at most")
	flags.Int64Var(&f.ingressBPS, "max-ingress-bps", 0, "`bits` per second from cameras that the node may be given (0: no limit)")
	flags.Int64Var(&f.egressBPS, "max-egress-bps", 0, "`bits` per second to viewers, beyond which the node refuses sessions (0: no limit)")
}

// maxConnects bounds --max-camera-connects.
const maxConnects = 100_000

// mediaAddr resolves --media: an IP address and port; an empty host means all
// addresses.
func (f *nodeFlags) mediaAddr() (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(f.media)
	if err != nil {
		return netip.AddrPort{}, usagef("--media %q: must be address:port", f.media)
	}
	p, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, usagef("--media %q: the port must be a number", f.media)
	}
	if host == "" {
		host = "0.0.0.0"
	}
	if host == "localhost" {
		host = "127.0.0.1"
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, usagef("--media %q: must be an IP address, not a host name", f.media)
	}
	return netip.AddrPortFrom(ip, uint16(p)), nil
}

// config returns the node's configuration. sessionAddress is what gateways
// reach it at.
func (f *nodeFlags) config(log *slog.Logger, control *grpc.ClientConn, sessionAddress string) (medianode.Config, error) {
	id, err := fleet.ParseNodeID(f.node)
	if err != nil {
		return medianode.Config{}, usagef("--node: %w", err)
	}
	media, err := f.mediaAddr()
	if err != nil {
		return medianode.Config{}, err
	}
	networks, err := prefixes("camera-networks", f.networks)
	if err != nil {
		return medianode.Config{}, err
	}
	if !(f.cpu > 0 && f.cpu <= 100) { // also of NaN
		return medianode.Config{}, usagef("--max-cpu %v: must be more than 0, and 100 at most, which is no limit", f.cpu)
	}
	if !(f.connects >= 0 && f.connects <= maxConnects) {
		return medianode.Config{}, usagef("--max-camera-connects %v: must be 0, which is no limit, to %d", f.connects, maxConnects)
	}
	hosts := source.HostLimit{PerSecond: f.connects, Burst: max(1, int(2*f.connects))}
	if f.connects == 0 {
		hosts.PerSecond = -1
	}
	if f.cacheTime <= 0 {
		return medianode.Config{}, usagef("--keyframe-cache-time %v: must be more than 0; to keep nothing, set --keyframe-cache-bytes 0", f.cacheTime)
	}
	for name, limit := range map[string]int64{
		"keyframe-cache-bytes": int64(f.cacheBytes),
		"max-cameras":          int64(f.cameras), "max-viewers": int64(f.viewers), "max-ingress-bps": f.ingressBPS, "max-egress-bps": f.egressBPS,
	} {
		if limit < 0 {
			return medianode.Config{}, usagef("--%s %d: must not be negative", name, limit)
		}
	}
	cfg := medianode.Config{
		Log:            log.With("component", "medianode"),
		Node:           id,
		ControlPlane:   control,
		SessionAddress: sessionAddress,
		Media:          media,
		Labels:         f.labels,
		CameraNetworks: networks,
		CameraHosts:    hosts,
		Version:        buildVersion(),
		Capacity:       medianode.Capacity{Cameras: f.cameras, Viewers: f.viewers, IngressBPS: f.ingressBPS, EgressBPS: f.egressBPS, CPU: f.cpu / 100},
	}
	cfg.KeyframeCacheBytes, cfg.KeyframeCacheTime = f.cacheBytes, f.cacheTime
	if f.cacheBytes == 0 {
		cfg.KeyframeCacheBytes = -1
	}
	for _, a := range f.advertise {
		ip, err := netip.ParseAddr(a)
		if err != nil || ip.IsUnspecified() {
			return medianode.Config{}, usagef("--advertise %q: must be an IP address that browsers can reach", a)
		}
		cfg.Advertise = append(cfg.Advertise, ip)
	}
	return cfg, nil
}

// run runs a node; a media port in use is explained with the flag's name.
func (f *nodeFlags) run(n *medianode.Node) func(context.Context) error {
	return func(ctx context.Context) error {
		err := n.Run(ctx)
		var sys *os.SyscallError
		if errors.As(err, &sys) {
			return service.ListenError("media", f.media, err)
		}
		return err
	}
}

// mediaNode is the settings of a process that is a node.
type mediaNode struct {
	node    nodeFlags
	control controlFlags
	sec     security
	metrics observed
	grpc    string
	session string        // what gateways are told
	drain   time.Duration // how long it takes leave, at most
}

func newMediaNode(a *app) *cobra.Command {
	var f mediaNode
	cmd := &cobra.Command{
		Use:   "medianode",
		Short: "Run a media node",
		Long: `Run a media node: it pulls the cameras that the control plane assigns to it and
sends them to browsers. Its certificate (--tls-cert) is also what it shows to
control planes, and names it: issue it with the role node.

SIGTERM and SIGINT drain it: its cameras move to other nodes, viewers follow them,
and it stops when it has none left, when nothing moves for 5 s, as where there is
no other node, or after --drain-timeout. A second signal stops it at once.`,
		Example: "  fanlight medianode --node node-1 --control-plane 127.0.0.1:9090 --grpc 127.0.0.1:9091 --media 127.0.0.1:8189",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.drain < 0 {
				return usagef("--drain-timeout %v: must not be negative", f.drain)
			}
			return a.runMediaNode(cmd.Context(), &f)
		},
	}
	fl := cmd.Flags()
	f.node.flags(fl, "", "the node's `name` in the fleet (default: that in its certificate)")
	f.control.flags(fl)
	f.sec.flags(fl)
	f.metrics.flags(fl, nodeMetrics)
	fl.StringVar(&f.grpc, "grpc", "127.0.0.1:9091", "`address` for gateways")
	fl.StringVar(&f.session, "advertise-grpc", "", "`host:port` at which gateways reach --grpc, where it is another")
	fl.DurationVar(&f.drain, "drain-timeout", 2*time.Minute, "how long a signal lets cameras move to other nodes before the node stops (0: it stops at once)")
	a.logFlags(fl)
	return cmd
}

// nameFromCertificate completes --node, or checks it: control planes accept a
// node only under its certificate's name.
func (f *nodeFlags) nameFromCertificate(sec *security) error {
	if sec.files.Cert == "" {
		if f.node == "" {
			return usagef("--node is missing: the node's name in the fleet")
		}
		return nil
	}
	leaf, err := sec.files.Leaf()
	if err != nil {
		return usageError{err}
	}
	id, err := rpc.CertificateIdentity(leaf)
	switch {
	case err != nil && f.node != "":
		return nil // a certificate for servers only
	case err != nil:
		return usagef("--node is missing, and --tls-cert does not name the node: %w", err)
	case id.Role != rpc.RoleNode:
		return usagef("--tls-cert is of a %s, not of a node: issue one with \"fanlight certs issue --role node\"", id.Role)
	case f.node != "" && f.node != id.Name:
		return usagef("--node %s: the certificate is of node %s", f.node, id.Name)
	}
	f.node = id.Name
	return nil
}

func (a *app) runMediaNode(ctx context.Context, f *mediaNode) error {
	log, err := a.logger()
	if err != nil {
		return err
	}
	if err := f.node.nameFromCertificate(&f.sec); err != nil {
		return err
	}
	if err := f.sec.exposure("grpc", f.grpc, f.sec.needTLS(), f.sec.needPeers()); err != nil {
		return err
	}
	if err := f.metrics.check(&f.sec); err != nil {
		return err
	}
	if err := f.metrics.start(log, &f.sec, nil); err != nil {
		return err
	}
	server, err := f.sec.rpcServer(log, medianode.Services)
	if err != nil {
		return err
	}
	dialer, err := f.sec.dialer(log, controlPlanes())
	if err != nil {
		return err
	}
	cc, err := f.control.dial(dialer)
	if err != nil {
		return err
	}
	defer quietClose(cc)
	lis, err := service.Listen(ctx, "grpc", f.grpc)
	if err != nil {
		return err
	}
	defer quietClose(lis) // closed by Serve already, unless the start failed
	session, err := sessionAddress(lis.Addr(), f.session)
	if err != nil {
		return err
	}
	cfg, err := f.node.config(log, cc, session)
	if err != nil {
		return err
	}
	node, err := medianode.New(cfg)
	if err != nil {
		return usageError{err}
	}
	node.Register(server)
	warnOpen(log, f.sec.anyone(), false)
	ctx, release := f.signals(ctx, log, node)
	defer release()
	var g service.Group
	if err := f.metrics.registry.Register(node.Metrics()); err != nil {
		return err
	}
	observing, err := f.metrics.serve(ctx, log, &f.sec, &g)
	if err != nil {
		return err
	}
	defer quietClose(observing)
	g.Add("node", f.node.run(node))
	g.Add("grpc", func(ctx context.Context) error { return server.Serve(ctx, lis) })
	g.Add("announcement", func(ctx context.Context) error {
		return a.announce(ctx, []func() error{node.Ready}, fmt.Sprintf("node %s ready", f.node.node))
	})
	return g.Run(ctx)
}

// signals returns a context that ends when the node is to stop.
func (f *mediaNode) signals(ctx context.Context, log *slog.Logger, node *medianode.Node) (context.Context, func()) {
	if f.drain == 0 {
		return service.SignalContext(ctx, log)
	}
	return service.DrainContext(ctx, log, func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, f.drain)
		defer cancel()
		if err := node.Leave(ctx); err != nil { // no failure: the process was asked to stop
			log.Warn("stopping before all cameras have moved", "error", err)
		}
	})
}

// sessionAddress returns what gateways are told: the listener's address, if
// that is one that can be dialled.
func sessionAddress(lis net.Addr, given string) (string, error) {
	if given != "" {
		if _, _, err := net.SplitHostPort(given); err != nil {
			return "", usagef("--advertise-grpc %q: must be host:port", given)
		}
		return given, nil
	}
	if ap, err := netip.ParseAddrPort(lis.String()); err == nil && ap.Addr().IsUnspecified() {
		return "", usagef("--advertise-grpc is missing: --grpc listens at all addresses, and gateways must be told one of them")
	}
	return lis.String(), nil
}
