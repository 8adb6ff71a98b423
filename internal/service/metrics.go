package service

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"strings"
	"syscall"

	"fanlight/internal/rpc"
)

// MetricsFlag is the flag that says where a process' metrics are.
const MetricsFlag = "metrics"

// ListenMetrics listens at the address of the metrics. Where a default address
// is taken, by another process of the same role on this machine, a free port of
// it is taken in its place, with a warning: metrics are no reason not to start.
func ListenMetrics(ctx context.Context, log *slog.Logger, addr string, isDefault bool) (net.Listener, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err == nil {
		return l, nil
	}
	host, _, serr := net.SplitHostPort(addr)
	if !isDefault || serr != nil || !errors.Is(err, syscall.EADDRINUSE) {
		return nil, ListenError(MetricsFlag, addr, err)
	}
	if l, err = lc.Listen(ctx, "tcp", net.JoinHostPort(host, "0")); err != nil {
		return nil, ListenError(MetricsFlag, addr, err)
	}
	log.Warn("the port of the metrics is in use; another was taken", "wanted", addr, "address", l.Addr().String())
	return l, nil
}

// MetricsHandler serves metrics at /metrics. What listens on loopback has the
// profiles of net/http/pprof at /debug/pprof/ besides, and answers only to names
// of the loopback: a page in a browser on the same machine could otherwise give
// its own name this address by DNS, and read them.
func MetricsHandler(metrics http.Handler, loopback bool) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", metrics)
	if !loopback {
		return mux
	}
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !isLoopbackHost(r.Host) {
			http.Error(w, "ask for 127.0.0.1 or localhost", http.StatusForbidden)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

// isLoopbackHost tells whether a Host header names the loopback.
func isLoopbackHost(host string) bool {
	if rpc.IsLoopback(host) {
		return true
	}
	host = strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.IsLoopback()
}
