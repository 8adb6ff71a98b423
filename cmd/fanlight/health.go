package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health/grpc_health_v1"

	"fanlight/internal/certs"
	"fanlight/internal/rpc"
)

// healthFlags have the names of the servers' own, so that a check finds its
// server by the same environment or file.
type healthFlags struct {
	grpc, http string
	files      certs.Files
	insecure   bool
	timeout    time.Duration
}

func newHealth(a *app) *cobra.Command {
	var f healthFlags
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Ask a server of this machine whether it serves",
		Long: `Ask a server of this machine whether it serves: a control plane or a media node
by --grpc (grpc.health), a gateway by --http (/readyz). The settings are those
of the server itself, so that in a container that has them in its environment
"fanlight health" is the whole health check. The server must show a certificate
of --tls-ca, under whatever host name.

The exit code is 0 if it serves, and 1 if it does not or cannot be asked.`,
		Example: "  fanlight health --grpc 127.0.0.1:9090\n  fanlight health --http 127.0.0.1:8080",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.runHealth(cmd.Context(), &f)
		},
	}
	fl := cmd.Flags()
	fl.StringVar(&f.grpc, "grpc", "", "the server's `address` of the API, or for gateways")
	fl.StringVar(&f.http, "http", "", "the server's `address` of the page")
	fl.StringVar(&f.files.Cert, "tls-cert", "", "PEM `file` of the server's certificate, which is shown to it")
	fl.StringVar(&f.files.Key, "tls-key", "", "PEM `file` of its key")
	fl.StringVar(&f.files.CA, "tls-ca", "", "PEM `file` of the authority that signed it")
	fl.BoolVar(&f.insecure, "insecure", false, "as the server's; changes nothing here")
	fl.DurationVar(&f.timeout, "timeout", 3*time.Second, "for the `answers`")
	return cmd
}

func (a *app) runHealth(ctx context.Context, f *healthFlags) error {
	if f.grpc == "" && f.http == "" {
		return usagef("--grpc and --http are missing: give the address of the server")
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	defer cancel()
	cfg, err := f.tls()
	if err != nil {
		return usageError{err}
	}
	for _, check := range []struct {
		flag, addr string
		ask        func(context.Context, string, *tls.Config) error
	}{{"grpc", f.grpc, askGRPC}, {"http", f.http, askHTTP}} {
		if check.addr == "" {
			continue
		}
		addr, err := dialable(check.addr)
		if err != nil {
			return usagef("--%s %q: %w", check.flag, check.addr, err)
		}
		if err := check.ask(ctx, addr, cfg); err != nil {
			return fmt.Errorf("--%s %s: %w", check.flag, addr, err)
		}
	}
	_, err = fmt.Fprintln(a.stdout, "serving")
	return err
}

// dialable returns the address at which a listener of this machine is reached.
func dialable(listen string) (string, error) {
	host, port, err := net.SplitHostPort(listen)
	if err != nil {
		return "", errors.New("must be address:port")
	}
	if ip, perr := netip.ParseAddr(host); host == "" || perr == nil && ip == netip.IPv4Unspecified() {
		host = "127.0.0.1"
	} else if perr == nil && ip == netip.IPv6Unspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port), nil
}

// tls returns how the server is spoken to; nil: plaintext. The host name is not
// verified: the certificate is for how others reach the server, not for how it
// reaches itself.
func (f *healthFlags) tls() (*tls.Config, error) {
	if f.files.Cert == "" {
		return nil, nil
	}
	cfg, err := f.files.ClientTLS(nil)
	if err != nil {
		return nil, err
	}
	roots := cfg.RootCAs
	cfg.InsecureSkipVerify = true // verified below, but for the host name
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if roots == nil {
			return nil // a server for browsers alone: only whether it answers is asked
		}
		opts := x509.VerifyOptions{Roots: roots, Intermediates: x509.NewCertPool()}
		for _, c := range state.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		_, err := state.PeerCertificates[0].Verify(opts)
		return err
	}
	return cfg, nil
}

// askGRPC asks grpc.health about the whole server.
func askGRPC(ctx context.Context, addr string, cfg *tls.Config) error {
	d := rpc.Dialer{TLS: cfg, Insecure: true, Log: slog.New(slog.DiscardHandler)}
	cc, err := d.Dial(addr)
	if err != nil {
		return err
	}
	defer quietClose(cc)
	resp, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	if s := resp.GetStatus(); s != grpc_health_v1.HealthCheckResponse_SERVING {
		return fmt.Errorf("answers that it is %s", s)
	}
	return nil
}

// askHTTP asks /readyz.
func askHTTP(ctx context.Context, addr string, cfg *tls.Config) error {
	scheme := "http"
	if cfg != nil {
		scheme = "https"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, scheme+"://"+addr+"/readyz", http.NoBody)
	if err != nil {
		return err
	}
	transport := &http.Transport{TLSClientConfig: cfg, DisableKeepAlives: true}
	defer transport.CloseIdleConnections()
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	defer quietClose(resp.Body)
	if _, err := io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<16)); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("answers %s", resp.Status)
	}
	return nil
}
