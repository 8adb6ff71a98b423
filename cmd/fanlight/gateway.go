package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"fanlight/internal/rpc"
	"fanlight/internal/service"
	"fanlight/signaling"
	"fanlight/signaling/viewer"
)

// gatewayFlags are a gateway's settings.
type gatewayFlags struct {
	http           string
	viewers        viewerKeys
	origins        []string
	trustedProxies []string
	iceServers     []string
	turnSecretFile string
	turnUsername   string
	turnPassword   string
}

func (f *gatewayFlags) flags(flags *pflag.FlagSet) {
	flags.StringVar(&f.http, "http", "127.0.0.1:8080", "`address` of the page and of signaling")
	f.viewers.flags(flags)
	flags.StringSliceVar(&f.origins, "allowed-origin", nil, "`https://host` of a page of others that may use the gateway; several allowed; \"*\": any")
	flags.StringSliceVar(&f.trustedProxies, "trusted-proxy", nil, "`network` of reverse proxies whose X-Forwarded-For is believed; several allowed")
	flags.StringSliceVar(&f.iceServers, "ice-server", nil, "`stun:host:port` or turn:host:port that browsers are told of; several allowed")
	flags.StringVar(&f.turnSecretFile, "turn-secret-file", "", "`file` with the secret shared with the TURN servers, from which each viewer's credentials are made")
	flags.StringVar(&f.turnUsername, "turn-username", "", "user `name` for TURN servers without a shared secret")
	flags.StringVar(&f.turnPassword, "turn-password-file", "", "`file` with its password")
}

// check refuses an address that others can reach without what makes it safe.
func (f *gatewayFlags) check(sec *security) error {
	return sec.exposure("http", f.http, sec.needTLS(), f.viewers.need())
}

func (f *gatewayFlags) ice() (signaling.ICE, error) {
	var ice signaling.ICE
	if f.turnSecretFile != "" {
		data, err := os.ReadFile(f.turnSecretFile)
		if err != nil {
			return ice, usagef("--turn-secret-file: %w", err)
		}
		ice.TURNSecret = bytes.TrimSpace(data)
		if len(ice.TURNSecret) == 0 {
			return ice, usagef("--turn-secret-file %s: is empty", f.turnSecretFile)
		}
	}
	if (f.turnUsername == "") != (f.turnPassword == "") {
		return ice, usagef("give --turn-username and --turn-password-file together")
	}
	password := ""
	if f.turnPassword != "" {
		var err error
		if password, err = readPassword(f.turnPassword, strings.NewReader("")); err != nil {
			return ice, usagef("--turn-password-file: %w", err)
		}
	}
	for _, u := range f.iceServers {
		s := signaling.ICEServer{URLs: []string{u}}
		if strings.HasPrefix(u, "turn") {
			s.Username, s.Credential = f.turnUsername, password
		}
		ice.Servers = append(ice.Servers, s)
	}
	return ice, nil
}

// gateway makes a gateway.
func (f *gatewayFlags) gateway(log *slog.Logger, control grpc.ClientConnInterface, dialer *rpc.Dialer) (*signaling.Gateway, error) {
	ver, err := f.viewers.verifier(log)
	if err != nil {
		return nil, err
	}
	return f.newGateway(log, control, dialer, ver)
}

func (f *gatewayFlags) newGateway(log *slog.Logger, control grpc.ClientConnInterface, dialer *rpc.Dialer, ver *viewer.Verifier) (*signaling.Gateway, error) {
	ice, err := f.ice()
	if err != nil {
		return nil, err
	}
	proxies, err := prefixes("trusted-proxy", f.trustedProxies)
	if err != nil {
		return nil, err
	}
	g, err := signaling.New(signaling.Config{
		Log:            log.With("component", "gateway"),
		ControlPlane:   control,
		DialNode:       func(addr string) (*grpc.ClientConn, error) { return dialer.Dial(addr) },
		Auth:           ver,
		ICE:            ice,
		AllowedOrigins: f.origins,
		TrustedProxies: proxies,
	})
	if err != nil {
		return nil, usageError{err}
	}
	return g, nil
}

// prefixes returns networks that came from a flag; a single address is a
// network of one.
func prefixes(flag string, values []string) ([]netip.Prefix, error) {
	list := make([]netip.Prefix, 0, len(values))
	for _, v := range values {
		p, err := netip.ParsePrefix(v)
		if err != nil {
			addr, aerr := netip.ParseAddr(v)
			if aerr != nil {
				return nil, usagef("--%s %q: must be a network, as 192.0.2.0/24, or an address", flag, v)
			}
			p = netip.PrefixFrom(addr, addr.BitLen())
		}
		list = append(list, p.Masked())
	}
	return list, nil
}

// pageURL returns the page's URL at a listener's address; a listener at all
// addresses is shown by the loopback one.
func pageURL(addr net.Addr, tls bool) string {
	scheme := "http"
	if tls {
		scheme = "https"
	}
	host, port, err := net.SplitHostPort(addr.String())
	if ip, perr := netip.ParseAddr(host); err == nil && perr == nil && ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	return fmt.Sprintf("%s://%s/", scheme, net.JoinHostPort(host, port))
}

// controlFlags say where processes of a fleet find the control plane.
type controlFlags struct{ addrs []string }

func (c *controlFlags) flags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&c.addrs, "control-plane", []string{"127.0.0.1:9090"}, "`host:port` of a control plane; several for any of them")
}

// dial connects to the control plane.
func (c *controlFlags) dial(d *rpc.Dialer) (*grpc.ClientConn, error) {
	cc, err := d.Dial(c.addrs...)
	if err != nil {
		return nil, usagef("--control-plane: %w: add --tls-ca, --tls-cert and --tls-key, or --insecure to do without", err)
	}
	return cc, nil
}

func newSignaling(a *app) *cobra.Command {
	var f gatewayFlags
	var control controlFlags
	var sec security
	var metrics observed
	cmd := &cobra.Command{
		Use:   "signaling",
		Short: "Run a signaling gateway",
		Long: `Run a signaling gateway: the page, the websocket and WHEP for browsers, relayed
to the media nodes. Its certificate (--tls-cert) is also what it shows to
control planes and nodes: issue it with the role gateway.`,
		Example: "  fanlight signaling --control-plane 127.0.0.1:9090 --http 127.0.0.1:8081",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runSignaling(cmd.Context(), &f, &control, &sec, &metrics)
		},
	}
	f.flags(cmd.Flags())
	control.flags(cmd.Flags())
	sec.flags(cmd.Flags())
	metrics.flags(cmd.Flags(), signalingMetrics)
	a.logFlags(cmd.Flags())
	return cmd
}

func (a *app) runSignaling(ctx context.Context, f *gatewayFlags, control *controlFlags, sec *security, metrics *observed) error {
	log, err := a.logger()
	if err != nil {
		return err
	}
	if err := f.check(sec); err != nil {
		return err
	}
	if err := metrics.check(sec); err != nil {
		return err
	}
	if err := metrics.start(log, sec, nil); err != nil {
		return err
	}
	tlsConfig, err := sec.webTLS(log)
	if err != nil {
		return err
	}
	planeDialer, err := sec.dialer(log, controlPlanes())
	if err != nil {
		return err
	}
	dialer, err := sec.dialer(log, nodes())
	if err != nil {
		return err
	}
	cc, err := control.dial(planeDialer)
	if err != nil {
		return err
	}
	defer quietClose(cc)
	gw, err := f.gateway(log, cc, dialer)
	if err != nil {
		return err
	}
	lis, err := service.Listen(ctx, "http", f.http)
	if err != nil {
		return err
	}
	warnOpen(log, false, f.viewers.anyone())
	ctx, release := service.SignalContext(ctx, log)
	defer release()
	var g service.Group
	if err := metrics.registry.Register(gw.Metrics()); err != nil {
		return err
	}
	observing, err := metrics.serve(ctx, log, sec, &g)
	if err != nil {
		return err
	}
	defer quietClose(observing)
	g.Add("gateway", gw.Run)
	g.Add("http", func(ctx context.Context) error {
		return service.ServeHTTP(ctx, log, lis, gw.Handler(), tlsConfig)
	})
	g.Add("announcement", func(ctx context.Context) error {
		return a.announce(ctx, []func() error{gw.Ready}, "page "+pageURL(lis.Addr(), tlsConfig != nil))
	})
	return g.Run(ctx)
}

// warnOpen says once that no keys are needed.
func warnOpen(log *slog.Logger, operators, viewers bool) {
	switch {
	case operators && viewers:
		log.Warn("no keys are configured: whoever reaches these addresses may operate and view")
	case operators:
		log.Warn("no keys for callers are configured: whoever reaches the gRPC address may operate")
	case viewers:
		log.Warn("no keys for viewers are configured: whoever reaches the page may view")
	}
}
