package service

import (
	"bytes"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func TestListenMetrics(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	addr := taken.Addr().String()
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))

	if l, err := ListenMetrics(t.Context(), log, addr, false); err == nil || !strings.Contains(err.Error(), "--metrics "+addr) {
		t.Errorf("an address that was given and is taken: %v %v", l, err)
	}
	if text.Len() > 0 {
		t.Errorf("the log has %q", text.String())
	}
	l, err := ListenMetrics(t.Context(), log, addr, true)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if !strings.Contains(text.String(), "level=WARN") || !strings.Contains(text.String(), l.Addr().String()) {
		t.Errorf("the log has %q, and the metrics are at %v", text.String(), l.Addr())
	}
	if _, err := ListenMetrics(t.Context(), log, "192.0.2.1:1", true); err == nil {
		t.Error("an address that the machine does not have")
	}
}

func TestMetricsHandler(t *testing.T) {
	served := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTeapot) })
	for _, tt := range []struct {
		loopback     bool
		method, path string
		host         string
		want         int
	}{
		{true, "GET", "/metrics", "127.0.0.1:8280", http.StatusTeapot},
		{true, "GET", "/metrics", "localhost:8280", http.StatusTeapot},
		{true, "GET", "/metrics", "LOCALHOST", http.StatusTeapot},
		{true, "GET", "/metrics", "[::1]:8280", http.StatusTeapot},
		{true, "GET", "/metrics", "[::1]", http.StatusTeapot},
		{true, "GET", "/metrics", "127.0.0.1", http.StatusTeapot},
		{true, "GET", "/metrics", "pages.example", http.StatusForbidden},
		{true, "GET", "/metrics", "localhost.pages.example:8280", http.StatusForbidden},
		{true, "GET", "/metrics", "192.0.2.1:8280", http.StatusForbidden},
		{true, "GET", "/debug/pprof/", "pages.example", http.StatusForbidden},
		{true, "POST", "/metrics", "localhost", http.StatusMethodNotAllowed},
		{true, "GET", "/", "localhost", http.StatusNotFound},
		{true, "GET", "/debug/pprof/", "localhost", http.StatusOK},
		{true, "GET", "/debug/pprof/goroutine", "localhost", http.StatusOK},
		{true, "GET", "/debug/pprof/cmdline", "localhost", http.StatusOK},
		{false, "GET", "/metrics", "node-1.example:8282", http.StatusTeapot},
		{false, "GET", "/debug/pprof/", "node-1.example:8282", http.StatusNotFound},
		{false, "GET", "/debug/pprof/heap", "127.0.0.1:8282", http.StatusNotFound},
	} {
		r := httptest.NewRequest(tt.method, tt.path, http.NoBody)
		r.Host = tt.host
		w := httptest.NewRecorder()
		MetricsHandler(served, tt.loopback).ServeHTTP(w, r)
		if w.Code != tt.want {
			t.Errorf("%s %s of %s (loopback: %v): %d, want %d", tt.method, tt.path, tt.host, tt.loopback, w.Code, tt.want)
		}
	}
}
