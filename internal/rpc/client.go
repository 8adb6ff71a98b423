package rpc

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	controlv1 "fanlight/proto/fanlight/control/v1"
)

// How a client holds its connections.
const (
	// Silence is how long a connection lives without a byte from the server, which
	// pings every second: so long ago, at most, was the last when a stream is lost.
	Silence        = 4 * time.Second
	connectTimeout = 3 * time.Second
)

// Dialer opens client connections. One per process; its fields are set before
// the first Dial.
type Dialer struct {
	// TLS has the roots of the servers, and for mutual TLS the client's
	// certificate. nil: plaintext.
	TLS *tls.Config
	// Insecure allows plaintext to other machines; without it, and without TLS,
	// only loopback is dialled.
	Insecure bool
	// Token is an operator's bearer token. Empty: none.
	Token string
	// Pipe is dialled in place of its own address. nil: none.
	Pipe    *Pipe
	Log     *slog.Logger // nil: no log
	Metrics *Metrics     // nil: nothing is counted
}

// ErrPlaintext is why an address is not dialled.
var ErrPlaintext = errors.New("another machine is not dialled without TLS")

// Dial returns a connection to the server at any of the addresses, host:port,
// of which one is connected at a time: another when that one is lost. A
// single host that resolves to several addresses is treated in the same way.
// The order is random, so that clients spread over the servers.
//
// Dial does not wait for the connection; calls made before there is one fail
// with fleet.Unavailable, or wait with grpc.WaitForReady(true). The caller
// closes it.
func (d *Dialer) Dial(addrs ...string) (*grpc.ClientConn, error) {
	if len(addrs) == 0 {
		return nil, errors.New("dial: no address")
	}
	for _, a := range addrs {
		if _, _, err := net.SplitHostPort(a); err != nil {
			return nil, fmt.Errorf("dial %q: an address is host:port: %w", a, err)
		}
	}
	opts := d.options()
	if d.Pipe != nil && slices.Contains(addrs, d.Pipe.Addr().String()) {
		return grpc.NewClient("passthrough:///"+d.Pipe.Addr().String(), append(opts,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return d.Pipe.DialContext(ctx) }))...)
	}
	creds := insecure.NewCredentials()
	if d.TLS != nil {
		creds = credentials.NewTLS(d.TLS)
	}
	opts = append(opts, grpc.WithTransportCredentials(creds), grpc.WithContextDialer(dialTCP))
	if d.TLS == nil && !d.Insecure && slices.ContainsFunc(addrs, notLoopback) {
		return nil, fmt.Errorf("dial %s: %w", strings.Join(addrs, ", "), ErrPlaintext)
	}
	if d.Token != "" {
		opts = append(opts, grpc.WithPerRPCCredentials(bearer(d.Token)))
	}
	if len(addrs) == 1 {
		return grpc.NewClient("dns:///"+addrs[0], opts...)
	}
	var state resolver.State
	for _, a := range addrs {
		host, _, _ := net.SplitHostPort(a)
		state.Addresses = append(state.Addresses, resolver.Address{Addr: a, ServerName: host})
	}
	r := manual.NewBuilderWithScheme("fanlight")
	r.InitialState(state)
	return grpc.NewClient("fanlight:///"+addrs[0], append(opts, grpc.WithResolvers(r))...)
}

func (d *Dialer) options() []grpc.DialOption {
	unary, stream := d.Metrics.clientInterceptors()
	return []grpc.DialOption{
		grpc.WithChainUnaryInterceptor(append([]grpc.UnaryClientInterceptor{unaryClient}, unary...)...),
		grpc.WithChainStreamInterceptor(append([]grpc.StreamClientInterceptor{streamClient}, stream...)...),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)),
		grpc.WithDefaultServiceConfig(`{"loadBalancingConfig":[{"pick_first":{"shuffleAddressList":true}}]}`),
		grpc.WithDisableServiceConfig(),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: pingTimeout, PermitWithoutStream: true}),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.5, MaxDelay: time.Second},
			MinConnectTimeout: connectTimeout,
		}),
		grpc.WithIdleTimeout(0),
	}
}

// notLoopback tells whether an address may lead to another machine.
func notLoopback(addr string) bool { return !IsLoopback(addr) }

// IsLoopback tells whether host:port is this machine's loopback: an address of
// 127.0.0.0/8 or ::1, or the name "localhost".
func IsLoopback(addr string) bool {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false
	}
	if strings.EqualFold(host, "localhost") {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

// bearer sends a token with every call.
type bearer string

func (b bearer) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	return map[string]string{"authorization": "Bearer " + string(b)}, nil
}

// RequireTransportSecurity is false because Dial has already refused to dial
// another machine in clear.
func (bearer) RequireTransportSecurity() bool { return false }

// dialTCP connects to a server that is known to ping.
func dialTCP(ctx context.Context, addr string) (net.Conn, error) {
	var nd net.Dialer
	c, err := nd.DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return &watchedConn{c}, nil
}

// watchedConn fails when the server has been silent for too long.
type watchedConn struct{ net.Conn }

func (c *watchedConn) Read(b []byte) (int, error) {
	if err := c.SetReadDeadline(time.Now().Add(Silence)); err != nil {
		return 0, err
	}
	return c.Conn.Read(b)
}

// unaryClient is the interceptor of all unary calls.
func unaryClient(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoker grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	return FromStatus(invoker(ctx, method, req, reply, cc, opts...))
}

// streamClient is the interceptor of all streaming calls.
func streamClient(ctx context.Context, desc *grpc.StreamDesc, cc *grpc.ClientConn, method string, streamer grpc.Streamer, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	if method == controlv1.AgentService_Sync_FullMethodName {
		opts = append(opts, grpc.MaxCallRecvMsgSize(maxDesiredSet))
	}
	cs, err := streamer(ctx, desc, cc, method, opts...)
	if err != nil {
		return nil, FromStatus(err)
	}
	return &clientStream{cs}, nil
}

type clientStream struct{ grpc.ClientStream }

func (s *clientStream) RecvMsg(m any) error { return fromStream(s.ClientStream.RecvMsg(m)) }
func (s *clientStream) SendMsg(m any) error { return fromStream(s.ClientStream.SendMsg(m)) }

// fromStream leaves io.EOF alone: callers compare it.
func fromStream(err error) error {
	if err == nil || errors.Is(err, io.EOF) {
		return err
	}
	return FromStatus(err)
}
