package rpc

import (
	grpcprom "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
)

// callBuckets are seconds: from what a read of the control plane's copy takes to
// what a caller that has lost the store waits.
var callBuckets = []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}

// Metrics are the figures of a process' gRPC calls, by service, method and code:
// grpc_server_* of all its servers, grpc_client_* of all its clients. Register it
// once, and give it to each [ServerConfig] and [Dialer].
//
// The histograms of how long calls took are of unary calls alone. Fanlight's
// streams live as long as a node is connected or a viewer watches, and their
// ends, hours after, would drown what the histograms are for. Streams are
// counted: those begun less those ended are open.
type Metrics struct {
	unaryServer, streamServer *grpcprom.ServerMetrics
	unaryClient, streamClient *grpcprom.ClientMetrics
}

// NewMetrics makes the metrics of a process.
func NewMetrics() *Metrics {
	return &Metrics{
		unaryServer:  grpcprom.NewServerMetrics(grpcprom.WithServerHandlingTimeHistogram(grpcprom.WithHistogramBuckets(callBuckets))),
		streamServer: grpcprom.NewServerMetrics(),
		unaryClient:  grpcprom.NewClientMetrics(grpcprom.WithClientHandlingTimeHistogram(grpcprom.WithHistogramBuckets(callBuckets))),
		streamClient: grpcprom.NewClientMetrics(),
	}
}

// Describe implements prometheus.Collector. The metrics of streams are the same
// but for the histograms, and their series have another grpc_type.
func (m *Metrics) Describe(ch chan<- *prometheus.Desc) {
	m.unaryServer.Describe(ch)
	m.unaryClient.Describe(ch)
}

// Collect implements prometheus.Collector.
func (m *Metrics) Collect(ch chan<- prometheus.Metric) {
	for _, c := range []prometheus.Collector{m.unaryServer, m.streamServer, m.unaryClient, m.streamClient} {
		c.Collect(ch)
	}
}

// serverInterceptors are what a server begins its chains with, so that they see
// the code that the caller is told; none for nil.
func (m *Metrics) serverInterceptors() ([]grpc.UnaryServerInterceptor, []grpc.StreamServerInterceptor) {
	if m == nil {
		return nil, nil
	}
	return []grpc.UnaryServerInterceptor{m.unaryServer.UnaryServerInterceptor()},
		[]grpc.StreamServerInterceptor{m.streamServer.StreamServerInterceptor()}
}

// clientInterceptors are what a client ends its chains with, so that they see
// what came; none for nil.
func (m *Metrics) clientInterceptors() ([]grpc.UnaryClientInterceptor, []grpc.StreamClientInterceptor) {
	if m == nil {
		return nil, nil
	}
	return []grpc.UnaryClientInterceptor{m.unaryClient.UnaryClientInterceptor()},
		[]grpc.StreamClientInterceptor{m.streamClient.StreamClientInterceptor()}
}
