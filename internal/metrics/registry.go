package metrics

import (
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	dto "github.com/prometheus/client_model/go"
)

const (
	// scrapesAtOnce bounds the work that scrapers can make.
	scrapesAtOnce = 4
	// scrapeTimeout is Prometheus' own default.
	scrapeTimeout = 10 * time.Second
)

// Registry is the metrics of a process. It is filled before its handler is asked.
type Registry struct {
	registry  *prometheus.Registry
	gatherers prometheus.Gatherers
}

// NewRegistry makes a registry with what every process has: go_* and process_*
// of its runtime, and fanlight_build_info.
func NewRegistry(version string) (*Registry, error) {
	r := &Registry{registry: prometheus.NewRegistry()}
	r.gatherers = prometheus.Gatherers{r.registry}
	err := r.Register(
		collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		buildInfo(version),
	)
	return r, err
}

// BuildInfo is the definition of the metric that every registry has.
func BuildInfo() Definition { return buildInfo("").defs[0] }

func buildInfo(version string) *Set {
	s := NewSet()
	info := s.Sampled(KindGauge, "fanlight_build_info", "The version of fanlight that runs, and the Go that built it; always 1.", "version", "go_version")
	s.OnScrape(func(k Sink) { k.Put(info, 1, version, runtime.Version()) })
	return s
}

// Register adds the metrics of a component. The error is a fault of the program:
// two metrics of one name.
func (r *Registry) Register(cs ...prometheus.Collector) error {
	for _, c := range cs {
		if err := r.registry.Register(c); err != nil {
			return fmt.Errorf("register metrics: %w", err)
		}
	}
	return nil
}

// Libraries adds metrics that libraries keep in client_golang's default
// registry, as etcd does: those with the names given, no others.
func (r *Registry) Libraries(names ...string) {
	r.gatherers = append(r.gatherers, prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		all, err := prometheus.DefaultGatherer.Gather()
		return slices.DeleteFunc(all, func(f *dto.MetricFamily) bool { return !slices.Contains(names, f.GetName()) }), err
	}))
}

// Handler serves the metrics in Prometheus' text format. What cannot be read is
// left out and logged, and the rest is served.
func (r *Registry) Handler(log *slog.Logger) http.Handler {
	gather := func() ([]*dto.MetricFamily, error) { return r.gatherers.Gather() } // also what is added later
	return promhttp.HandlerFor(prometheus.GathererFunc(gather), promhttp.HandlerOpts{
		ErrorLog: errorLog{log}, ErrorHandling: promhttp.ContinueOnError,
		MaxRequestsInFlight: scrapesAtOnce, Timeout: scrapeTimeout,
	})
}

// errorLog is where promhttp says what it could not serve.
type errorLog struct{ log *slog.Logger }

func (l errorLog) Println(v ...any) { l.log.Warn("metrics incomplete", "error", fmt.Sprint(v...)) }
