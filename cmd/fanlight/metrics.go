package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"time"

	"github.com/spf13/pflag"

	"fanlight/controlplane"
	"fanlight/internal/certs"
	"fanlight/internal/metrics"
	"fanlight/internal/rpc"
	"fanlight/internal/service"
)

// Where each kind of process has its metrics by default: one port each, so that
// they run side by side.
const (
	upMetrics        = "127.0.0.1:8280"
	planeMetrics     = "127.0.0.1:8281"
	nodeMetrics      = "127.0.0.1:8282"
	signalingMetrics = "127.0.0.1:8283"
)

// etcdMetrics are what an embedded etcd tells of itself that operators need: is
// there a majority, how full is it, how fast is its disk.
var etcdMetrics = []string{
	"etcd_server_has_leader",
	"etcd_server_is_leader",
	"etcd_server_leader_changes_seen_total",
	"etcd_server_proposals_failed_total",
	"etcd_server_proposals_pending",
	"etcd_server_slow_apply_total",
	"etcd_server_quota_backend_bytes",
	"etcd_mvcc_db_total_size_in_bytes",
	"etcd_mvcc_db_total_size_in_use_in_bytes",
	"etcd_disk_wal_fsync_duration_seconds",
	"etcd_disk_backend_commit_duration_seconds",
	"etcd_network_peer_round_trip_time_seconds",
}

// observed is a process' metrics and how they are reached.
type observed struct {
	// Static after flags.
	addr  string
	open  bool
	given func() bool // the address was given, and is not the default

	registry *metrics.Registry // set by start
}

func (o *observed) flags(flags *pflag.FlagSet, def string) {
	flags.StringVar(&o.addr, service.MetricsFlag, def, "`address` of the metrics for Prometheus (/metrics) and, on loopback, of profiles (/debug/pprof/); empty: none")
	flags.BoolVar(&o.open, "metrics-open", false, "allow other machines to read the metrics in the clear and without a certificate")
	o.given = func() bool { return flags.Changed(service.MetricsFlag) }
}

// check refuses an address that others can reach without what makes it safe.
func (o *observed) check(sec *security) error {
	if o.addr == "" {
		return nil
	}
	if _, _, err := net.SplitHostPort(o.addr); err != nil {
		return usagef("--%s %q: must be address:port", service.MetricsFlag, o.addr)
	}
	if o.open {
		return nil
	}
	needs := []string{sec.needTLS(), sec.needPeers()}
	for i, n := range needs {
		if n != "" {
			needs[i] = n + " (or --metrics-open)"
			break
		}
	}
	return sec.exposure(service.MetricsFlag, o.addr, needs...)
}

// start makes the registry, with what every process has, and has the servers and
// dialers that sec makes from then on counted. etcd are the certificates for
// etcd, where there are any.
func (o *observed) start(log *slog.Logger, sec *security, etcd *etcdFlags) error {
	var err error
	if o.registry, err = metrics.NewRegistry(buildVersion()); err != nil {
		return err
	}
	sec.calls = rpc.NewMetrics()
	files := map[string]certs.Files{"tls": sec.files}
	if etcd != nil {
		files["etcd"], files["peer"] = etcd.files, etcd.peers
	}
	return o.registry.Register(sec.calls, certificates(log, files))
}

// plane registers the metrics of a control plane, and those of its etcd if that
// is in this process.
func (o *observed) plane(p *controlplane.Server, etcd *etcdFlags) error {
	if len(etcd.endpoints) == 0 {
		o.registry.Libraries(etcdMetrics...)
	}
	return o.registry.Register(p.Metrics())
}

// certificates are the metrics of the process' certificates, read anew at each
// scrape: they are replaced while it runs.
func certificates(log *slog.Logger, files map[string]certs.Files) *metrics.Set {
	s := metrics.NewSet()
	expiry := s.Sampled(metrics.KindGauge, "fanlight_certificate_expiry_timestamp_seconds",
		"When a certificate of this process expires, in seconds since 1970; the one in its file now.", "certificate")
	s.OnScrape(func(k metrics.Sink) {
		for name, f := range files {
			if f.Cert == "" {
				continue
			}
			leaf, err := f.Leaf()
			if err != nil {
				log.Warn("certificate not read for the metrics", "certificate", name, "error", err)
				continue
			}
			k.Put(expiry, float64(leaf.NotAfter.UnixNano())/float64(time.Second), name)
		}
	})
	return s
}

// serve opens the listener and adds its part to the group; the caller closes
// what it returns.
func (o *observed) serve(ctx context.Context, log *slog.Logger, sec *security, g *service.Group) (io.Closer, error) {
	if o.addr == "" {
		return io.NopCloser(nil), nil
	}
	lis, err := service.ListenMetrics(ctx, log, o.addr, !o.given())
	if err != nil {
		return nil, err
	}
	loopback := rpc.IsLoopback(o.addr)
	scheme := "http"
	var tlsConfig *tls.Config
	if !loopback && !o.open && !sec.insecure {
		if tlsConfig, err = sec.serverTLS(log); err != nil {
			quietClose(lis)
			return nil, err
		}
		requireClients(tlsConfig)
		scheme = "https"
	}
	log.Info("metrics", "address", fmt.Sprintf("%s://%s/metrics", scheme, lis.Addr()), "profiles", loopback)
	handler := service.MetricsHandler(o.registry.Handler(log), loopback)
	g.Add("metrics", func(ctx context.Context) error { return service.ServeHTTP(ctx, log, lis, handler, tlsConfig) })
	return lis, nil
}

// requireClients has a server demand a certificate of its --tls-ca.
func requireClients(cfg *tls.Config) {
	cfg.ClientAuth = tls.RequireAndVerifyClientCert
	if next := cfg.GetConfigForClient; next != nil {
		cfg.GetConfigForClient = func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := next(h)
			if c != nil {
				c.ClientAuth = tls.RequireAndVerifyClientCert
			}
			return c, err
		}
	}
}
