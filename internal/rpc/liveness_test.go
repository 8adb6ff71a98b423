package rpc_test

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// A server that accepts and then says nothing is given up, so that its clients
// go elsewhere.
func TestSilentServerIsGivenUp(t *testing.T) {
	if testing.Short() {
		t.Skip("takes the four seconds of silence")
	}
	inner, _, _ := serve(t, rpc.ServerConfig{AllowAny: true}, &fake{sync: func(s grpc.BidiStreamingServer[controlv1.SyncRequest, controlv1.SyncResponse]) error {
		<-s.Context().Done()
		return nil
	}})
	proxy := newStoppableProxy(t, inner)
	cc := dial(t, rpc.Dialer{}, proxy.addr())
	s, err := controlv1.NewAgentServiceClient(cc).Sync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Send(&controlv1.SyncRequest{}); err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() { _, err := s.Recv(); got <- err }()
	select {
	case err := <-got:
		t.Fatalf("given up although the server pings: %v", err)
	case <-time.After(6 * time.Second):
	}
	proxy.freeze()
	select {
	case err := <-got:
		if !errors.Is(err, fleet.Unavailable) {
			t.Errorf("error is %v", err)
		}
	case <-time.After(20 * time.Second):
		t.Error("still waiting for a server that is silent")
	}
}

// stoppableProxy passes bytes on until it is frozen; connections then stay
// open and nothing comes any more, as when a host has vanished.
type stoppableProxy struct {
	lis    net.Listener
	target string
	frozen chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex
	conns  []net.Conn
}

func newStoppableProxy(t *testing.T, target string) *stoppableProxy {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &stoppableProxy{lis: lis, target: target, frozen: make(chan struct{})}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = lis.Close()
		p.mu.Lock()
		for _, c := range p.conns {
			_ = c.Close()
		}
		p.mu.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *stoppableProxy) addr() string { return p.lis.Addr().String() }
func (p *stoppableProxy) freeze()      { close(p.frozen) }

func (p *stoppableProxy) accept() {
	for {
		down, err := p.lis.Accept()
		if err != nil {
			return
		}
		up, err := net.Dial("tcp", p.target)
		if err != nil {
			_ = down.Close()
			continue
		}
		p.mu.Lock()
		p.conns = append(p.conns, down, up)
		p.mu.Unlock()
		p.wg.Go(func() { p.copy(up, down) })
		p.wg.Go(func() { p.copy(down, up) })
	}
}

func (p *stoppableProxy) copy(dst, src net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		if err != nil {
			return
		}
		select {
		case <-p.frozen:
			continue
		default:
		}
		if _, err := dst.Write(buf[:n]); err != nil {
			return
		}
	}
}
