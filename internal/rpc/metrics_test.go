package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// gather returns the counts of the series, by name, method and code.
func gather(t *testing.T, m *rpc.Metrics) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	if err := r.Register(m); err != nil {
		t.Fatal(err)
	}
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, s := range f.GetMetric() {
			key := f.GetName()
			for _, l := range s.GetLabel() {
				if l.GetName() == "grpc_method" || l.GetName() == "grpc_code" {
					key += " " + l.GetValue()
				}
			}
			out[key] = s.GetCounter().GetValue() + float64(s.GetHistogram().GetSampleCount())
		}
	}
	return out
}

// Calls are counted on both sides under the code that the caller is told; how
// long they took is measured of unary ones alone.
func TestMetrics(t *testing.T) {
	server, client := rpc.NewMetrics(), rpc.NewMetrics()
	f := &fake{
		get: func(_ context.Context, name string) error {
			switch name {
			case "panic":
				panic("for the test")
			case "none":
				return fmt.Errorf("get: %w", fleet.CameraNotFound)
			}
			return nil
		},
		sync: func(s grpc.BidiStreamingServer[controlv1.SyncRequest, controlv1.SyncResponse]) error {
			if _, err := s.Recv(); err != nil {
				return err
			}
			if err := s.Send(&controlv1.SyncResponse{}); err != nil {
				return err
			}
			return fleet.HelloFirst
		},
	}
	addr, _, stop := serve(t, rpc.ServerConfig{AllowAny: true, Metrics: server}, f)
	cc := dial(t, rpc.Dialer{Metrics: client}, addr)
	cameras := controlv1.NewCameraServiceClient(cc)
	for name, want := range map[string]error{"there": nil, "none": fleet.CameraNotFound, "panic": fleet.Internal} {
		if _, err := cameras.GetCamera(t.Context(), &controlv1.GetCameraRequest{Name: name}); !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := controlv1.NewNodeServiceClient(cc).ListNodes(t.Context(), &controlv1.ListNodesRequest{}); !errors.Is(err, fleet.PermissionDenied) {
		t.Errorf("a service that nobody may call: %v", err)
	}
	stream, err := controlv1.NewAgentServiceClient(cc).Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&controlv1.SyncRequest{}); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, fleet.HelloFirst) {
		t.Fatalf("the stream ended with %v", err)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	for side, m := range map[string]*rpc.Metrics{"grpc_server_": server, "grpc_client_": client} {
		want := map[string]float64{}
		for key, n := range map[string]float64{
			"started_total GetCamera": 3, "handled_total OK GetCamera": 1, "handled_total NotFound GetCamera": 1, "handled_total Internal GetCamera": 1, "handling_seconds GetCamera": 3,
			"started_total ListNodes": 1, "handled_total PermissionDenied ListNodes": 1, "handling_seconds ListNodes": 1,
			"started_total Sync": 1, "handled_total FailedPrecondition Sync": 1,
		} {
			want[side+key] = n
		}
		got := gather(t, m)
		// Messages are counted otherwise by the two sides: a unary call's by one
		// alone, and its end is one to the client.
		maps.DeleteFunc(got, func(key string, _ float64) bool { return strings.Contains(key, "_msg_") })
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got):\n%s", side, d)
		}
	}
}
