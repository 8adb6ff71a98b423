package metrics_test

import (
	"bytes"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"fanlight/internal/metrics"
)

// scrape returns the status and the lines of the metrics whose names have a
// prefix.
func scrape(t *testing.T, r *metrics.Registry, log *slog.Logger, prefix string) (int, []string) {
	t.Helper()
	w := httptest.NewRecorder()
	r.Handler(log).ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/metrics", http.NoBody))
	var lines []string
	for line := range strings.Lines(w.Body.String()) {
		if strings.HasPrefix(strings.TrimPrefix(strings.TrimPrefix(line, "# HELP "), "# TYPE "), prefix) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	return w.Code, lines
}

func registry(t *testing.T) *metrics.Registry {
	t.Helper()
	r, err := metrics.NewRegistry("v1.2.3")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestSet(t *testing.T) {
	s := metrics.NewSet("node", "n1")
	plain := s.Counter("test_plain_total", "Without labels.")
	labelled := s.Counter("test_labelled_total", "With a label.", "reason")
	labelled.Zero("none")
	times := s.Histogram("test_times_seconds", "Times.", []float64{1, 2})
	level := s.Sampled(metrics.KindGauge, "test_level", "A level.", "camera")
	sum := s.Sampled(metrics.KindCounter, "test_sum_total", "A sum.")
	is := s.Sampled(metrics.KindGauge, "test_is", "A truth.")
	s.OnScrape(func(k metrics.Sink) {
		k.Put(level, 1.5, "lobby")
		k.Put(sum, 7)
		k.Bool(is, true)
	})
	r := registry(t)
	if err := r.Register(s); err != nil {
		t.Fatal(err)
	}
	plain.Inc()
	plain.Add(2)
	labelled.Inc("some")
	times.Observe(1.5)
	code, got := scrape(t, r, nil, "test_")
	want := []string{
		`# HELP test_is A truth.`,
		`# TYPE test_is gauge`,
		`test_is{node="n1"} 1`,
		`# HELP test_labelled_total With a label.`,
		`# TYPE test_labelled_total counter`,
		`test_labelled_total{node="n1",reason="none"} 0`,
		`test_labelled_total{node="n1",reason="some"} 1`,
		`# HELP test_level A level.`,
		`# TYPE test_level gauge`,
		`test_level{camera="lobby",node="n1"} 1.5`,
		`# HELP test_plain_total Without labels.`,
		`# TYPE test_plain_total counter`,
		`test_plain_total{node="n1"} 3`,
		`# HELP test_sum_total A sum.`,
		`# TYPE test_sum_total counter`,
		`test_sum_total{node="n1"} 7`,
		`# HELP test_times_seconds Times.`,
		`# TYPE test_times_seconds histogram`,
		`test_times_seconds_bucket{node="n1",le="1"} 0`,
		`test_times_seconds_bucket{node="n1",le="2"} 1`,
		`test_times_seconds_bucket{node="n1",le="+Inf"} 1`,
		`test_times_seconds_sum{node="n1"} 1.5`,
		`test_times_seconds_count{node="n1"} 1`,
	}
	if d := cmp.Diff(want, got); code != http.StatusOK || d != "" {
		t.Errorf("%d, scraped (-want +got):\n%s", code, d)
	}
	defs := s.Definitions()
	if d := cmp.Diff(metrics.Definition{Name: "test_labelled_total", Help: "With a label.", Kind: metrics.KindCounter, Labels: []string{"node", "reason"}}, defs[1]); len(defs) != 6 || d != "" {
		t.Errorf("%d definitions, the second (-want +got):\n%s", len(defs), d)
	}
	if err := r.Register(s); err == nil {
		t.Error("the same metrics were registered twice")
	}
}

// What cannot be read is left out, and said in the log.
func TestIncompleteScrape(t *testing.T) {
	s := metrics.NewSet()
	good := s.Sampled(metrics.KindGauge, "test_good", "Good.")
	twice := s.Sampled(metrics.KindGauge, "test_twice", "Put twice.", "camera")
	short := s.Sampled(metrics.KindGauge, "test_short", "Put without its label.", "camera")
	s.OnScrape(func(k metrics.Sink) {
		k.Put(twice, 1, "a")
		k.Put(twice, 2, "a")
		k.Put(short, 1)
		k.Put(good, 1)
	})
	r := registry(t)
	if err := r.Register(s); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	code, got := scrape(t, r, slog.New(slog.NewTextHandler(&log, nil)), "test_good")
	if code != http.StatusOK || len(got) != 3 || got[2] != "test_good 1" {
		t.Errorf("%d %q", code, got)
	}
	if text := log.String(); !strings.Contains(text, "test_twice") || !strings.Contains(text, "metrics incomplete") {
		t.Errorf("the log has %q", text)
	}
}

func TestRegistryHasTheProcess(t *testing.T) {
	r := registry(t)
	for _, prefix := range []string{"go_goroutines", "process_start_time_seconds", `fanlight_build_info{`} {
		if _, got := scrape(t, r, nil, prefix); len(got) == 0 {
			t.Errorf("no %s", prefix)
		}
	}
	if _, got := scrape(t, r, nil, "fanlight_build_info{"); !strings.Contains(got[0], `version="v1.2.3"`) {
		t.Errorf("build info %q", got)
	}
}

// Of what libraries keep for themselves, only what is asked for is served.
func TestLibraries(t *testing.T) {
	wanted := prometheus.NewCounter(prometheus.CounterOpts{Name: "testlibrary_wanted_total", Help: "."})
	other := prometheus.NewCounter(prometheus.CounterOpts{Name: "testlibrary_other_total", Help: "."})
	prometheus.MustRegister(wanted, other)
	t.Cleanup(func() {
		prometheus.Unregister(wanted)
		prometheus.Unregister(other)
	})
	r := registry(t)
	if _, got := scrape(t, r, nil, "testlibrary_"); len(got) != 0 {
		t.Errorf("unasked: %q", got)
	}
	r.Libraries("testlibrary_wanted_total", "testlibrary_missing_total")
	if _, got := scrape(t, r, nil, "testlibrary_"); len(got) != 3 || got[2] != "testlibrary_wanted_total 0" {
		t.Errorf("asked: %q", got)
	}
	// go_* is in the default registry as well, and served once.
	if _, got := scrape(t, r, nil, "go_goroutines"); len(got) != 3 {
		t.Errorf("%q", got)
	}
}
