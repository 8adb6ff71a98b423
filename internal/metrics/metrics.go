// Package metrics is what a process tells Prometheus: the only user of
// client_golang, but for package rpc, whose interceptors come with their own.
//
// A component makes a [Set] in its New, with a definition for each metric. What
// happens is counted ([Counter]) or measured ([Histogram]) when it does; what is
// there anyway, as counters that the code has for itself, is read when somebody
// scrapes ([Sampled], [Set.OnScrape]). The process puts the sets of its
// components into a [Registry], which serves them.
//
// # What has a series
//
// A camera, a node, a reason, a phase, a method: what an operator can name, and
// of which there is a known number. A session, a viewer, an address or a URL has
// none: there is no end to them, and they are nobody's but the viewers'.
// Per-camera series belong to the node that has the camera; the control plane
// counts.
//
// # Names
//
// As Prometheus has it: fanlight_, the part of the system, the thing, the unit
// (seconds, bytes), and _total for what only grows. docs/metrics.md lists them
// all, and a test keeps it so.
package metrics

import (
	"fmt"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
)

// Kind is what a metric is, as in Prometheus' exposition format.
type Kind string

// The kinds.
const (
	KindCounter   Kind = "counter"
	KindGauge     Kind = "gauge"
	KindHistogram Kind = "histogram"
)

// Definition describes a metric.
type Definition struct {
	Name   string
	Help   string
	Kind   Kind
	Labels []string // those that all series of the set have first
}

// Set is the metrics of one component. It is filled before it is registered;
// afterwards its counters may be used from any goroutine.
type Set struct {
	// Static once registered.
	constant prometheus.Labels
	first    []string // the names of constant
	defs     []Definition
	parts    []prometheus.Collector
	descs    []*prometheus.Desc
	sample   []func(Sink)
}

// NewSet makes a set. constant are pairs of a label and its value that all
// series have: "node", "node-1".
func NewSet(constant ...string) *Set {
	s := &Set{constant: prometheus.Labels{}}
	for i := 0; i+1 < len(constant); i += 2 {
		s.constant[constant[i]] = constant[i+1]
		s.first = append(s.first, constant[i])
	}
	return s
}

// Definitions returns the set's metrics, in the order in which they were made.
func (s *Set) Definitions() []Definition { return slices.Clone(s.defs) }

func (s *Set) define(kind Kind, name, help string, labels []string) {
	s.defs = append(s.defs, Definition{Name: name, Help: help, Kind: kind, Labels: slices.Concat(s.first, labels)})
}

// Counter is what only grows, until the process ends.
type Counter struct{ vec *prometheus.CounterVec }

// Counter makes a counter. One without labels begins at 0, others where [Counter.Zero]
// says so, and else with the first Add.
func (s *Set) Counter(name, help string, labels ...string) *Counter {
	s.define(KindCounter, name, help, labels)
	c := &Counter{prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help, ConstLabels: s.constant}, labels)}
	s.parts = append(s.parts, c.vec)
	if len(labels) == 0 {
		c.Zero()
	}
	return c
}

// Zero makes the series exist, so that its first increase is one.
func (c *Counter) Zero(values ...string) { c.vec.WithLabelValues(values...) }

// Inc adds 1.
func (c *Counter) Inc(values ...string) { c.vec.WithLabelValues(values...).Inc() }

// Add adds n, which is not negative.
func (c *Counter) Add(n float64, values ...string) { c.vec.WithLabelValues(values...).Add(n) }

// Histogram is how often something took how long.
type Histogram struct{ vec *prometheus.HistogramVec }

// Histogram makes a histogram; buckets are their upper bounds, in order.
func (s *Set) Histogram(name, help string, buckets []float64, labels ...string) *Histogram {
	s.define(KindHistogram, name, help, labels)
	h := &Histogram{prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, ConstLabels: s.constant, Buckets: buckets}, labels)}
	s.parts = append(s.parts, h.vec)
	if len(labels) == 0 {
		h.vec.WithLabelValues()
	}
	return h
}

// Observe adds a measurement, in the unit of the name.
func (h *Histogram) Observe(v float64, values ...string) { h.vec.WithLabelValues(values...).Observe(v) }

// Sampled is a metric that is read when somebody scrapes.
type Sampled struct {
	desc *prometheus.Desc
	kind prometheus.ValueType
}

// Sampled makes a metric that the functions of [Set.OnScrape] give values to.
func (s *Set) Sampled(kind Kind, name, help string, labels ...string) *Sampled {
	s.define(kind, name, help, labels)
	m := &Sampled{desc: prometheus.NewDesc(name, help, labels, s.constant), kind: prometheus.GaugeValue}
	if kind == KindCounter {
		m.kind = prometheus.CounterValue
	}
	s.descs = append(s.descs, m.desc)
	return m
}

// Sink takes what is read.
type Sink struct{ ch chan<- prometheus.Metric }

// Put gives a series its value. It is put once in a scrape, with as many values
// as the metric has labels.
func (k Sink) Put(m *Sampled, v float64, values ...string) {
	metric, err := prometheus.NewConstMetric(m.desc, m.kind, v, values...)
	if err != nil {
		metric = prometheus.NewInvalidMetric(m.desc, fmt.Errorf("put: %w", err))
	}
	k.ch <- metric
}

// Bool is 1 for true.
func (k Sink) Bool(m *Sampled, v bool, values ...string) {
	n := 0.0
	if v {
		n = 1
	}
	k.Put(m, n, values...)
}

// OnScrape has f called for each scrape, by several goroutines at once if there
// are several. It takes no longer than a scraper waits, 10 s, and holds no lock
// that media waits for.
func (s *Set) OnScrape(f func(Sink)) { s.sample = append(s.sample, f) }

// Describe implements prometheus.Collector.
func (s *Set) Describe(ch chan<- *prometheus.Desc) {
	for _, p := range s.parts {
		p.Describe(ch)
	}
	for _, d := range s.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Set) Collect(ch chan<- prometheus.Metric) {
	for _, p := range s.parts {
		p.Collect(ch)
	}
	for _, f := range s.sample {
		f(Sink{ch})
	}
}
