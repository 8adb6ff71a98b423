package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime/debug"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"

	"fanlight/internal/fleet"
)

// How a server holds its connections.
const (
	pingEvery    = time.Second            // of silence, before a ping
	pingTimeout  = 2 * time.Second        // for the answer
	minPingEvery = 500 * time.Millisecond // clients that ping more often are disconnected
	stopGrace    = 3 * time.Second        // for calls under way when the server stops
	maxStreams   = 10_000                 // calls at once on one connection: a gateway's viewers of one node
)

// ServerConfig says who may call what.
type ServerConfig struct {
	Log *slog.Logger // nil: no log
	// TLS is the server's certificate, and for mutual TLS the roots of its
	// clients with tls.VerifyClientCertIfGiven. nil: plaintext.
	TLS *tls.Config
	// OperatorTokens are the bearer tokens of operators. nil: none, and
	// operators need a certificate.
	OperatorTokens *TokenFile
	// AllowAny gives everyone every role. For loopback without keys only; it is
	// the caller's to warn about.
	AllowAny bool
	// Services says which role may call each service, by its full name. Others
	// may be called by nobody.
	Services map[string]Role
	Metrics  *Metrics // nil: nothing is counted
}

// Server is a gRPC server with authentication, authorization, recovery from
// panics, limits, keepalive, health and reflection.
type Server struct {
	// Static after NewServer.
	cfg    ServerConfig
	log    *slog.Logger
	grpc   *grpc.Server
	health *health.Server

	// stopping ends when the server begins to stop, and with it every stream.
	stopping context.Context //nolint:containedctx // a signal, never handed out
	stop     context.CancelFunc
}

// NewServer makes a server; register services, then call Serve.
func NewServer(cfg ServerConfig) *Server {
	s := &Server{cfg: cfg, log: cfg.Log, health: health.NewServer()}
	s.stopping, s.stop = context.WithCancel(context.Background())
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	creds := insecure.NewCredentials()
	if cfg.TLS != nil {
		creds = credentials.NewTLS(cfg.TLS)
	}
	unary, stream := cfg.Metrics.serverInterceptors()
	s.grpc = grpc.NewServer(
		grpc.Creds(serverCredentials{creds}),
		grpc.ChainUnaryInterceptor(append(unary, s.unary)...),
		grpc.ChainStreamInterceptor(append(stream, s.stream)...),
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.MaxConcurrentStreams(maxStreams),
		grpc.MaxHeaderListSize(16<<10),
		grpc.ConnectionTimeout(10*time.Second),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: pingEvery, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: minPingEvery, PermitWithoutStream: true}),
		grpc.WaitForHandlers(true),
	)
	grpc_health_v1.RegisterHealthServer(s.grpc, s.health)
	reflection.Register(s.grpc)
	return s
}

// RegisterService adds a service. It implements grpc.ServiceRegistrar.
func (s *Server) RegisterService(d *grpc.ServiceDesc, impl any) {
	s.grpc.RegisterService(d, impl)
	s.health.SetServingStatus(d.ServiceName, grpc_health_v1.HealthCheckResponse_SERVING)
}

// SetServing says in grpc.health whether a service is; "" is the whole server.
func (s *Server) SetServing(service string, ok bool) {
	st := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if ok {
		st = grpc_health_v1.HealthCheckResponse_SERVING
	}
	s.health.SetServingStatus(service, st)
}

// Serve serves on the listeners, which it closes, until ctx ends; it is called
// once. It then ends the contexts of all streams, with fleet.Unavailable as
// their cause, lets calls under way finish for 3 s, cuts the others, and returns
// nil when all handlers have returned. If a listener fails it does the same and
// returns the error.
func (s *Server) Serve(ctx context.Context, lis ...net.Listener) error {
	errs := make(chan error, len(lis))
	for _, l := range lis {
		go func() { errs <- s.grpc.Serve(l) }()
	}
	left := len(lis)
	var err error
	select {
	case <-ctx.Done():
	case err = <-errs:
		left--
	}
	s.drain()
	for ; left > 0; left-- {
		err = errors.Join(err, <-errs)
	}
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("serve gRPC: %w", err)
	}
	return nil
}

func (s *Server) drain() {
	s.health.Shutdown()
	s.stop()
	done := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(done)
	}()
	t := time.NewTimer(stopGrace)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		s.log.Warn("calls cut", "after", stopGrace)
		s.grpc.Stop()
		<-done
	}
}

// unary is the interceptor of all unary calls.
func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (resp any, err error) {
	var id Identity
	defer func() { err = s.finish(recover(), err, id, info.FullMethod) }()
	if id, err = s.admit(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handler(WithIdentity(ctx, id), req)
}

// errStopping is the cause of a stream's context that ends because the server
// begins to stop.
var errStopping = fmt.Errorf("%w: the server is stopping", fleet.Unavailable)

// stream is the interceptor of all streaming calls. Their context ends when
// the server begins to stop, with fleet.Unavailable as its cause.
func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	var id Identity
	defer func() { err = s.finish(recover(), err, id, info.FullMethod) }()
	if id, err = s.admit(ss.Context(), info.FullMethod); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(WithIdentity(ss.Context(), id))
	defer cancel(nil)
	defer context.AfterFunc(s.stopping, func() { cancel(errStopping) })()
	return handler(srv, &serverStream{ss, ctx})
}

func (s *Server) admit(ctx context.Context, method string) (Identity, error) {
	id, err := s.authenticate(ctx)
	if err != nil {
		return Identity{}, err
	}
	return id, s.authorize(id, method)
}

// finish turns what a handler returned or panicked with into a status, and
// logs what the caller is not told.
func (s *Server) finish(panicked any, err error, id Identity, method string) error {
	if panicked != nil {
		s.log.Error("handler panicked", "method", method, "caller", id.String(), "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		return Status(fleet.Internal)
	}
	if err == nil {
		return nil
	}
	st := Status(err)
	switch status.Code(st) {
	case codes.Internal:
		s.log.Error("call failed", "method", method, "caller", id.String(), "error", err)
	case codes.Unauthenticated, codes.PermissionDenied:
		s.log.Warn("call refused", "method", method, "caller", id.String(), "error", err)
	case codes.Canceled:
		if s.stopping.Err() != nil {
			return Status(errStopping)
		}
	}
	return st
}

type serverStream struct {
	grpc.ServerStream
	ctx context.Context //nolint:containedctx // grpc.ServerStream hands its context out by a method
}

func (s *serverStream) Context() context.Context { return s.ctx }
