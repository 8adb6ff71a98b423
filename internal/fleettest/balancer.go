package fleettest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// dialPatience is how long a gateway may take to accept a connection before the
// next one is tried.
const dialPatience = 2 * time.Second

// Balancer is one TCP address in front of several servers, as a load balancer
// in front of gateways: connections go to them in turn, and those that refuse
// are passed over. A connection whose server ends it, or dies, is ended.
type Balancer struct {
	// Static after newBalancer.
	listener net.Listener
	servers  []string

	wg sync.WaitGroup // accept and the connections

	mu    sync.Mutex // guards the rest
	next  int
	conns map[net.Conn]struct{} // both sides of each
	shut  bool
}

// newBalancer begins to listen. It must be closed.
func newBalancer(ip netip.Addr, servers []string) (*Balancer, error) {
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
	if err != nil {
		return nil, fmt.Errorf("load balancer: %w", err)
	}
	b := &Balancer{listener: l, servers: servers, conns: make(map[net.Conn]struct{})}
	b.wg.Go(b.accept)
	return b, nil
}

// Addr returns the address, host:port.
func (b *Balancer) Addr() string { return b.listener.Addr().String() }

// Close ends all connections and waits for them.
func (b *Balancer) Close() error {
	err := b.listener.Close()
	b.mu.Lock()
	b.shut = true
	for c := range b.conns {
		_ = c.Close()
	}
	b.mu.Unlock()
	b.wg.Wait()
	if err != nil && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("load balancer: %w", err)
	}
	return nil
}

func (b *Balancer) accept() {
	for {
		c, err := b.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of file descriptors, perhaps for a while
			continue
		}
		b.wg.Go(func() { b.serve(c) })
	}
}

// serve connects a client to a server and copies both ways until either ends.
func (b *Balancer) serve(client net.Conn) {
	defer b.forget(client)
	if !b.keep(client) {
		return
	}
	server := b.dial()
	if server == nil {
		return
	}
	defer b.forget(server)
	if !b.keep(server) {
		return
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
		_ = client.Close()
	})
	_, _ = io.Copy(client, server)
	_ = client.Close()
	_ = server.Close()
	wg.Wait()
}

// dial connects to the next server in turn that accepts; nil: none does.
func (b *Balancer) dial() net.Conn {
	b.mu.Lock()
	first := b.next
	b.next++
	b.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), dialPatience*time.Duration(len(b.servers)))
	defer cancel()
	d := net.Dialer{Timeout: dialPatience}
	for i := range b.servers {
		c, err := d.DialContext(ctx, "tcp", b.servers[(first+i)%len(b.servers)])
		if err == nil {
			return c
		}
	}
	return nil
}

func (b *Balancer) keep(c net.Conn) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.shut {
		b.conns[c] = struct{}{}
	}
	return !b.shut
}

func (b *Balancer) forget(c net.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.conns, c)
	_ = c.Close()
}
