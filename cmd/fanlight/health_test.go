package main

import (
	"crypto/tls"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"fanlight/internal/certs"
	"fanlight/internal/rpc"
)

// A gateway is asked for /readyz, with and without TLS, and believed.
func TestHealthOfGateways(t *testing.T) {
	status := http.StatusOK
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			t.Errorf("asked for %s", r.URL.Path)
		}
		w.WriteHeader(status)
	})
	dir := t.TempDir()
	pki := func(name string) certs.Files {
		t.Helper()
		d := filepath.Join(dir, name)
		if err := certs.Init(d, name, 0); err != nil {
			t.Fatal(err)
		}
		ca, err := certs.Open(d)
		if err != nil {
			t.Fatal(err)
		}
		f := certs.Files{Cert: filepath.Join(d, "gw.pem"), Key: filepath.Join(d, "gw-key.pem"), CA: filepath.Join(d, certs.CAFile)}
		if err := ca.Issue(certs.Request{Role: rpc.RoleGateway, Name: "gw", Hosts: []string{"gw.example"}}, f.Cert, f.Key); err != nil {
			t.Fatal(err)
		}
		return f
	}
	ours, others := pki("ours"), pki("others")
	plain := httptest.NewServer(handler)
	defer plain.Close()
	secure := httptest.NewUnstartedServer(handler)
	cfg, err := ours.ServerTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	secure.Listener = tls.NewListener(secure.Listener, cfg)
	secure.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
	secure.Start()
	defer secure.Close()

	flags := func(f certs.Files) []string {
		return []string{"--tls-cert", f.Cert, "--tls-key", f.Key, "--tls-ca", f.CA}
	}
	for _, tt := range []struct {
		name   string
		server *httptest.Server
		status int
		args   []string
		want   int
	}{
		{"ready", plain, http.StatusOK, nil, exitOK},
		{"not ready", plain, http.StatusServiceUnavailable, nil, exitFailure},
		{"a redirect is no answer", plain, http.StatusFound, nil, exitFailure},
		{"ready by TLS, under another host name", secure, http.StatusOK, flags(ours), exitOK},
		{"not ready by TLS", secure, http.StatusServiceUnavailable, flags(ours), exitFailure},
		{"a server of another authority", secure, http.StatusOK, flags(others), exitFailure},
		{"files that are not there", secure, http.StatusOK, flags(certs.Files{Cert: "no", Key: "no", CA: "no"}), exitUsage},
	} {
		t.Run(tt.name, func(t *testing.T) {
			status = tt.status
			var out strings.Builder
			a := &app{stdin: strings.NewReader(""), stdout: &out, stderr: io.Discard}
			got := run(append([]string{"health", "--http", tt.server.Listener.Addr().String()}, tt.args...), a)
			if got != tt.want || (out.String() == "serving\n") != (tt.want == exitOK) {
				t.Errorf("exit code %d, output %q; want %d", got, out.String(), tt.want)
			}
		})
	}
}

func TestDialable(t *testing.T) {
	for listen, want := range map[string]string{
		":9090":           "127.0.0.1:9090",
		"0.0.0.0:9090":    "127.0.0.1:9090",
		"[::]:9090":       "localhost:9090",
		"192.0.2.1:9090":  "192.0.2.1:9090",
		"[192.0.2.1]:9":   "192.0.2.1:9",
		"[2001:db8::1]:9": "[2001:db8::1]:9",
		"cp-1.example:9":  "cp-1.example:9",
		"127.0.0.1":       "",
	} {
		got, err := dialable(listen)
		if got != want || (err != nil) != (want == "") {
			t.Errorf("%s: %q, %v; want %q", listen, got, err, want)
		}
	}
}
