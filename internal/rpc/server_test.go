package rpc_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionv1 "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"fanlight/internal/certs"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
	mediav1 "fanlight/proto/fanlight/media/v1"
)

// services is the table of a process that has all services but NodeService.
var services = map[string]rpc.Role{
	controlv1.CameraService_ServiceDesc.ServiceName: rpc.RoleOperator,
	controlv1.AgentService_ServiceDesc.ServiceName:  rpc.RoleNode,
	controlv1.RouteService_ServiceDesc.ServiceName:  rpc.RoleGateway,
	mediav1.SessionService_ServiceDesc.ServiceName:  rpc.RoleGateway,
}

// fake implements what the tests call of every service.
type fake struct {
	controlv1.UnimplementedCameraServiceServer
	controlv1.UnimplementedNodeServiceServer
	controlv1.UnimplementedAgentServiceServer
	controlv1.UnimplementedRouteServiceServer
	mediav1.UnimplementedSessionServiceServer

	get  func(ctx context.Context, name string) error
	sync func(grpc.BidiStreamingServer[controlv1.SyncRequest, controlv1.SyncResponse]) error
}

func (f *fake) GetCamera(ctx context.Context, req *controlv1.GetCameraRequest) (*controlv1.GetCameraResponse, error) {
	if f.get != nil {
		if err := f.get(ctx, req.GetName()); err != nil {
			return nil, err
		}
	}
	return &controlv1.GetCameraResponse{Camera: &controlv1.Camera{Name: rpc.IdentityFrom(ctx).String()}}, nil
}

func (f *fake) ListNodes(context.Context, *controlv1.ListNodesRequest) (*controlv1.ListNodesResponse, error) {
	return &controlv1.ListNodesResponse{}, nil
}

func (f *fake) Sync(s grpc.BidiStreamingServer[controlv1.SyncRequest, controlv1.SyncResponse]) error {
	if f.sync == nil {
		return nil
	}
	return f.sync(s)
}

func (f *fake) BrowseCameras(context.Context, *controlv1.BrowseCamerasRequest) (*controlv1.BrowseCamerasResponse, error) {
	return &controlv1.BrowseCamerasResponse{}, nil
}

func (f *fake) GetStats(context.Context, *mediav1.GetStatsRequest) (*mediav1.GetStatsResponse, error) {
	return &mediav1.GetStatsResponse{}, nil
}

// serve runs a server until the test ends, on a socket and a pipe.
func serve(t *testing.T, cfg rpc.ServerConfig, f *fake) (addr string, pipe *rpc.Pipe, stop func() error) {
	t.Helper()
	if cfg.Services == nil {
		cfg.Services = services
	}
	s := rpc.NewServer(cfg)
	controlv1.RegisterCameraServiceServer(s, f)
	controlv1.RegisterNodeServiceServer(s, f)
	controlv1.RegisterAgentServiceServer(s, f)
	controlv1.RegisterRouteServiceServer(s, f)
	mediav1.RegisterSessionServiceServer(s, f)
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = lis.Addr().String()
	pipe = rpc.NewPipe(addr)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, lis, pipe) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() {
		if err := stop(); err != nil {
			t.Errorf("Serve: %v", err)
		}
	})
	return addr, pipe, stop
}

func dial(t *testing.T, d rpc.Dialer, addrs ...string) *grpc.ClientConn {
	t.Helper()
	cc, err := d.Dial(addrs...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// pki makes an authority and a certificate for each role; a file's name is its
// role's.
func pki(t *testing.T) (dir string) {
	t.Helper()
	dir = t.TempDir()
	if err := certs.Init(dir, "test", 0); err != nil {
		t.Fatal(err)
	}
	ca, err := certs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rpc.Roles() {
		req := certs.Request{Role: r, Name: string(r) + "-1"}
		if err := ca.Issue(req, filepath.Join(dir, string(r)+".pem"), filepath.Join(dir, string(r)+"-key.pem")); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func files(dir, owner string) certs.Files {
	f := certs.Files{CA: filepath.Join(dir, certs.CAFile)}
	if owner != "" {
		f.Cert, f.Key = filepath.Join(dir, owner+".pem"), filepath.Join(dir, owner+"-key.pem")
	}
	return f
}

func serverTLS(t *testing.T, dir, owner string) *tls.Config {
	t.Helper()
	cfg, err := files(dir, owner).ServerTLS(func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

func clientTLS(t *testing.T, f certs.Files) *tls.Config {
	t.Helper()
	cfg, err := f.ClientTLS(func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// calls makes one call of each service.
var calls = []struct {
	service string
	role    rpc.Role // "": anyone who is authenticated
	call    func(context.Context, *grpc.ClientConn) error
}{
	{"CameraService", rpc.RoleOperator, func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := controlv1.NewCameraServiceClient(cc).GetCamera(ctx, &controlv1.GetCameraRequest{})
		return err
	}},
	{"NodeService, which is not in the table", "nobody", func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := controlv1.NewNodeServiceClient(cc).ListNodes(ctx, &controlv1.ListNodesRequest{})
		return err
	}},
	{"AgentService", rpc.RoleNode, func(ctx context.Context, cc *grpc.ClientConn) error {
		s, err := controlv1.NewAgentServiceClient(cc).Sync(ctx)
		if err != nil {
			return err
		}
		if _, err = s.Recv(); errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}},
	{"RouteService", rpc.RoleGateway, func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := controlv1.NewRouteServiceClient(cc).BrowseCameras(ctx, &controlv1.BrowseCamerasRequest{})
		return err
	}},
	{"SessionService", rpc.RoleGateway, func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := mediav1.NewSessionServiceClient(cc).GetStats(ctx, &mediav1.GetStatsRequest{})
		return err
	}},
	{"Health", "", func(ctx context.Context, cc *grpc.ClientConn) error {
		_, err := grpc_health_v1.NewHealthClient(cc).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: controlv1.CameraService_ServiceDesc.ServiceName})
		return err
	}},
	{"ServerReflection", "", func(ctx context.Context, cc *grpc.ClientConn) error {
		s, err := reflectionv1.NewServerReflectionClient(cc).ServerReflectionInfo(ctx)
		if err != nil {
			return err
		}
		req := &reflectionv1.ServerReflectionRequest{MessageRequest: &reflectionv1.ServerReflectionRequest_ListServices{}}
		if err := s.Send(req); err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		resp, err := s.Recv()
		if err == nil && len(resp.GetListServicesResponse().GetService()) < 5 {
			return fmt.Errorf("reflection lists %v", resp.GetListServicesResponse().GetService())
		}
		return errors.Join(err, s.CloseSend())
	}},
}

func TestAuthorization(t *testing.T) {
	dir := pki(t)
	token := rpc.NewToken()
	line, err := rpc.TokenLine("alice", token)
	if err != nil {
		t.Fatal(err)
	}
	tokenPath := filepath.Join(dir, "tokens")
	if err := os.WriteFile(tokenPath, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := rpc.OpenTokenFile(tokenPath, nil)
	if err != nil {
		t.Fatal(err)
	}
	closed, closedPipe, _ := serve(t, rpc.ServerConfig{TLS: serverTLS(t, dir, "controlplane"), OperatorTokens: tokens}, &fake{})
	open, _, _ := serve(t, rpc.ServerConfig{AllowAny: true}, &fake{})

	for _, caller := range []struct {
		name   string
		addr   string
		dialer rpc.Dialer
		role   rpc.Role // "": not authenticated
		any    bool
	}{
		{"operator's certificate", closed, rpc.Dialer{TLS: clientTLS(t, files(dir, "operator"))}, rpc.RoleOperator, false},
		{"node's certificate", closed, rpc.Dialer{TLS: clientTLS(t, files(dir, "node"))}, rpc.RoleNode, false},
		{"gateway's certificate", closed, rpc.Dialer{TLS: clientTLS(t, files(dir, "gateway"))}, rpc.RoleGateway, false},
		{"control plane's certificate", closed, rpc.Dialer{TLS: clientTLS(t, files(dir, "controlplane"))}, rpc.RoleControlPlane, false},
		{"token", closed, rpc.Dialer{TLS: clientTLS(t, files(dir, "")), Token: token}, rpc.RoleOperator, false},
		{"nothing", closed, rpc.Dialer{TLS: clientTLS(t, files(dir, ""))}, "", false},
		{"wrong token", closed, rpc.Dialer{TLS: clientTLS(t, files(dir, "")), Token: rpc.NewToken()}, "", false},
		{"pipe", closed, rpc.Dialer{Pipe: closedPipe}, "", true},
		{"anybody where anybody may", open, rpc.Dialer{}, "", true},
	} {
		t.Run(caller.name, func(t *testing.T) {
			cc := dial(t, caller.dialer, caller.addr)
			for _, c := range calls {
				err := c.call(t.Context(), cc)
				var want error
				switch {
				case c.role == "nobody" && (caller.any || caller.role != ""):
					want = fleet.PermissionDenied
				case caller.any || c.role == "" && caller.role != "":
				case caller.role == "":
					want = fleet.Unauthenticated
				case c.role != caller.role:
					want = fleet.PermissionDenied
				}
				if !errors.Is(err, want) {
					t.Errorf("%s: error is %v, want %v", c.service, err, want)
				}
			}
		})
	}
}

func TestIdentityOfCallers(t *testing.T) {
	dir := pki(t)
	addr, pipe, _ := serve(t, rpc.ServerConfig{TLS: serverTLS(t, dir, "controlplane")}, &fake{})
	for name, tt := range map[string]struct {
		dialer rpc.Dialer
		want   string
	}{
		"certificate": {rpc.Dialer{TLS: clientTLS(t, files(dir, "operator"))}, "operator/operator-1"},
		"pipe":        {rpc.Dialer{Pipe: pipe}, "any"},
	} {
		resp, err := controlv1.NewCameraServiceClient(dial(t, tt.dialer, addr)).GetCamera(t.Context(), &controlv1.GetCameraRequest{})
		if err != nil || resp.GetCamera().GetName() != tt.want {
			t.Errorf("%s: caller is %q (%v), want %q", name, resp.GetCamera().GetName(), err, tt.want)
		}
	}
}

func TestTokenMetadata(t *testing.T) {
	dir := t.TempDir()
	token := rpc.NewToken()
	line, err := rpc.TokenLine("alice", token)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "tokens")
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	tokens, err := rpc.OpenTokenFile(path, nil)
	if err != nil {
		t.Fatal(err)
	}
	addr, _, _ := serve(t, rpc.ServerConfig{OperatorTokens: tokens}, &fake{})
	svc := controlv1.NewCameraServiceClient(dial(t, rpc.Dialer{}, addr))
	for _, tt := range []struct {
		values []string
		want   error
	}{
		{[]string{"Bearer " + token}, nil},
		{[]string{"bearer " + token}, nil},
		{[]string{"Bearer " + token, "Bearer " + token}, fleet.Unauthenticated},
		{[]string{"Basic " + token}, fleet.Unauthenticated},
		{[]string{token}, fleet.Unauthenticated},
		{[]string{""}, fleet.Unauthenticated},
		{nil, fleet.Unauthenticated},
	} {
		ctx := metadata.NewOutgoingContext(t.Context(), metadata.MD{"authorization": tt.values})
		if _, err := svc.GetCamera(ctx, &controlv1.GetCameraRequest{}); !errors.Is(err, tt.want) {
			t.Errorf("%q: error is %v, want %v", tt.values, err, tt.want)
		}
	}
}

func TestForeignCertificatesAreRefused(t *testing.T) {
	ours, theirs := pki(t), pki(t)
	addr, _, _ := serve(t, rpc.ServerConfig{TLS: serverTLS(t, ours, "controlplane")}, &fake{})
	get := func(d rpc.Dialer) error {
		_, err := controlv1.NewCameraServiceClient(dial(t, d, addr)).GetCamera(t.Context(), &controlv1.GetCameraRequest{})
		return err
	}
	mixed := files(theirs, "operator")
	mixed.CA = files(ours, "").CA
	if err := get(rpc.Dialer{TLS: clientTLS(t, mixed)}); !errors.Is(err, fleet.Unavailable) {
		t.Errorf("a client's certificate of another authority: %v", err)
	}
	if err := get(rpc.Dialer{TLS: clientTLS(t, files(theirs, "operator"))}); !errors.Is(err, fleet.Unavailable) {
		t.Errorf("a server's certificate of another authority: %v", err)
	}
	if err := get(rpc.Dialer{}); !errors.Is(err, fleet.Unavailable) {
		t.Errorf("plaintext to a TLS server: %v", err)
	}
}

// A server that asks for a certificate without verifying it must not believe
// it.
func TestUnverifiedCertificateIsNobody(t *testing.T) {
	dir := pki(t)
	cfg := serverTLS(t, dir, "controlplane")
	cfg.ClientAuth, cfg.GetConfigForClient = tls.RequestClientCert, nil
	addr, _, _ := serve(t, rpc.ServerConfig{TLS: cfg}, &fake{})
	d := rpc.Dialer{TLS: clientTLS(t, files(dir, "operator"))}
	_, err := controlv1.NewCameraServiceClient(dial(t, d, addr)).GetCamera(t.Context(), &controlv1.GetCameraRequest{})
	if !errors.Is(err, fleet.Unauthenticated) {
		t.Errorf("error is %v", err)
	}
}

// syncBuffer is a log that several goroutines write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestErrorsAndPanics(t *testing.T) {
	var out syncBuffer
	f := &fake{get: func(_ context.Context, name string) error {
		switch name {
		case "panic":
			panic("boom s3cret")
		case "unknown":
			return errors.New("etcd said s3cret")
		default:
			return fmt.Errorf("camera %q: %w", name, fleet.CameraNotFound)
		}
	}, sync: func(grpc.BidiStreamingServer[controlv1.SyncRequest, controlv1.SyncResponse]) error {
		panic("stream boom")
	}}
	addr, _, _ := serve(t, rpc.ServerConfig{AllowAny: true, Log: slog.New(slog.NewTextHandler(&out, nil))}, f)
	cc := dial(t, rpc.Dialer{}, addr)
	get := func(name string) error {
		_, err := controlv1.NewCameraServiceClient(cc).GetCamera(t.Context(), &controlv1.GetCameraRequest{Name: name})
		return err
	}
	if err := get("lobby"); !errors.Is(err, fleet.CameraNotFound) || err.Error() != `camera "lobby": no such camera` || status.Code(err) != codes.NotFound {
		t.Errorf("error is %v", err)
	}
	for _, name := range []string{"panic", "unknown"} {
		if err := get(name); !errors.Is(err, fleet.Internal) || err.Error() != "internal error" {
			t.Errorf("%s: error is %v", name, err)
		}
	}
	stream, err := controlv1.NewAgentServiceClient(cc).Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); !errors.Is(err, fleet.Internal) || strings.Contains(err.Error(), "boom") {
		t.Errorf("stream: error is %v", err)
	}
	log := out.String()
	for _, want := range []string{"boom s3cret", "etcd said s3cret", "stream boom"} {
		if strings.Count(log, want) != 1 {
			t.Errorf("%q is not once in the log:\n%s", want, log)
		}
	}
	if strings.Contains(log, "lobby") {
		t.Errorf("an error that was returned is in the log:\n%s", log)
	}
}

func TestMessageSizes(t *testing.T) {
	const mib = 1 << 20
	f := &fake{sync: func(s grpc.BidiStreamingServer[controlv1.SyncRequest, controlv1.SyncResponse]) error {
		return s.Send(&controlv1.SyncResponse{Message: &controlv1.SyncResponse_DesiredSet{DesiredSet: &controlv1.DesiredSet{
			Cameras: []*controlv1.DesiredCamera{{Password: strings.Repeat("x", 20*mib)}},
		}}})
	}}
	addr, _, _ := serve(t, rpc.ServerConfig{AllowAny: true}, f)
	cc := dial(t, rpc.Dialer{}, addr)
	_, err := controlv1.NewCameraServiceClient(cc).GetCamera(t.Context(), &controlv1.GetCameraRequest{Name: strings.Repeat("x", 5*mib)})
	if status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a request of 5 MiB: %v", err)
	}
	s, err := controlv1.NewAgentServiceClient(cc).Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if resp, err := s.Recv(); err != nil || len(resp.GetDesiredSet().GetCameras()) != 1 {
		t.Errorf("a desired set of 20 MiB: %v", err)
	}
}

// The server ends the contexts of streams when it stops, and callers are told
// that it is the server.
func TestStopEndsStreams(t *testing.T) {
	started := make(chan struct{})
	f := &fake{sync: func(s grpc.BidiStreamingServer[controlv1.SyncRequest, controlv1.SyncResponse]) error {
		close(started)
		<-s.Context().Done()
		if err := context.Cause(s.Context()); !errors.Is(err, fleet.Unavailable) {
			t.Errorf("the stream's context ended because of %v", err)
		}
		return s.Context().Err()
	}}
	addr, _, stop := serve(t, rpc.ServerConfig{AllowAny: true}, f)
	s, err := controlv1.NewAgentServiceClient(dial(t, rpc.Dialer{}, addr)).Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	<-started
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Recv(); !errors.Is(err, fleet.Unavailable) {
		t.Errorf("error is %v", err)
	}
}

func TestServeReturnsAListenersError(t *testing.T) {
	s := rpc.NewServer(rpc.ServerConfig{})
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if err := lis.Close(); err != nil {
		t.Fatal(err)
	}
	if err := s.Serve(t.Context(), rpc.NewPipe("127.0.0.1:1"), lis); err == nil {
		t.Error("no error of a closed listener")
	}
}

func TestDialAnyReplica(t *testing.T) {
	a, _, stopA := serve(t, rpc.ServerConfig{AllowAny: true}, &fake{})
	b, _, _ := serve(t, rpc.ServerConfig{AllowAny: true}, &fake{})
	svc := controlv1.NewCameraServiceClient(dial(t, rpc.Dialer{}, a, b))
	get := func() error {
		_, err := svc.GetCamera(t.Context(), &controlv1.GetCameraRequest{}, grpc.WaitForReady(true))
		return err
	}
	if err := get(); err != nil {
		t.Fatal(err)
	}
	if err := stopA(); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return get() == nil })
}

func TestDialVerifiesEachReplicasHost(t *testing.T) {
	dir := pki(t)
	addr, _, _ := serve(t, rpc.ServerConfig{TLS: serverTLS(t, dir, "controlplane")}, &fake{})
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	d := rpc.Dialer{TLS: clientTLS(t, files(dir, "operator"))}
	cc := dial(t, d, addr, "localhost:"+port)
	if _, err := controlv1.NewCameraServiceClient(cc).GetCamera(t.Context(), &controlv1.GetCameraRequest{}); err != nil {
		t.Errorf("the certificate's hosts: %v", err)
	}
	other := dial(t, d, "127.0.0.2:"+port, "127.0.0.3:"+port)
	_, err = controlv1.NewCameraServiceClient(other).GetCamera(t.Context(), &controlv1.GetCameraRequest{})
	if !errors.Is(err, fleet.Unavailable) {
		t.Errorf("hosts that are not in the certificate: %v", err)
	}
}

func TestDialRefusals(t *testing.T) {
	var d rpc.Dialer
	for _, addrs := range [][]string{{}, {"no-port"}, {"127.0.0.1:1", "no-port"}} {
		if cc, err := d.Dial(addrs...); err == nil {
			_ = cc.Close()
			t.Errorf("%q was dialled", addrs)
		}
	}
	for _, addrs := range [][]string{{"192.0.2.1:1"}, {"127.0.0.1:1", "192.0.2.1:1"}, {"example.com:1"}} {
		if cc, err := d.Dial(addrs...); !errors.Is(err, rpc.ErrPlaintext) {
			if err == nil {
				_ = cc.Close()
			}
			t.Errorf("%q in plaintext: %v", addrs, err)
		}
	}
	d.Insecure = true
	dial(t, d, "192.0.2.1:1")
}
