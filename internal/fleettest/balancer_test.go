package fleettest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// namer accepts connections, says its name, and echoes.
type namer struct {
	net.Listener
	wg sync.WaitGroup

	mu    sync.Mutex
	conns []net.Conn
}

func newNamer(t *testing.T, name string) *namer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n := &namer{Listener: l}
	n.wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			n.mu.Lock()
			n.conns = append(n.conns, c)
			n.mu.Unlock()
			n.wg.Go(func() {
				_, _ = fmt.Fprintln(c, name)
				_, _ = io.Copy(c, c)
				_ = c.Close()
			})
		}
	})
	t.Cleanup(n.die)
	return n
}

// die closes everything, as the end of a process does.
func (n *namer) die() {
	_ = n.Close()
	n.mu.Lock()
	for _, c := range n.conns {
		_ = c.Close()
	}
	n.mu.Unlock()
	n.wg.Wait()
}

func TestBalancer(t *testing.T) {
	a, b := newNamer(t, "a"), newNamer(t, "b")
	lb, err := newBalancer(netip.MustParseAddr("127.0.0.1"), []string{a.Addr().String(), b.Addr().String()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lb.Close(); err != nil {
			t.Error(err)
		}
	}()
	open := func() (net.Conn, *bufio.Reader, string) {
		t.Helper()
		c, err := net.Dial("tcp", lb.Addr())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		r := bufio.NewReader(c)
		name, err := r.ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			t.Fatal(err)
		}
		return c, r, strings.TrimSpace(name)
	}
	c, r, first := open()
	_, _, second := open()
	if first+second != "ab" {
		t.Errorf("first %q, then %q", first, second)
	}
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.ReadString('\n'); got != "hello\n" {
		t.Errorf("echo %q: %v", got, err)
	}
	// A server that dies ends its clients' connections, and is passed over.
	a.die()
	if _, err := r.ReadByte(); err == nil {
		t.Error("the connection outlives its server")
	}
	for range 4 {
		if _, _, name := open(); name != "b" {
			t.Errorf("connected to %q, want b", name)
		}
	}
	b.die()
	if _, _, name := open(); name != "" {
		t.Errorf("connected to %q, want nobody", name)
	}
}

func TestOutput(t *testing.T) {
	var file strings.Builder
	o := newOutput(&file)
	said := func(word string) bool { ok, _ := o.said(word); return ok }
	_, grown := o.said("node")
	for _, part := range []string{"time=1 level=WARN\n", "no", "de node-1"} {
		if _, err := o.Write([]byte(part)); err != nil {
			t.Fatal(err)
		}
	}
	select {
	case <-grown:
	default:
		t.Error("the channel is not closed")
	}
	if said("node") {
		t.Error("said before the line has ended")
	}
	if _, err := o.Write([]byte(" ready\n")); err != nil {
		t.Fatal(err)
	}
	if !said("node") || said("time=1") {
		t.Errorf("node said %v, a line of the log taken for one %v", said("node"), said("time=1"))
	}
	if got := o.tail(1); got != "node node-1 ready" {
		t.Errorf("tail %q", got)
	}
	for range 10_000 {
		_, _ = o.Write([]byte("a line of twenty-one\n"))
	}
	if len(o.text) > 3*keptOutput || file.Len() < 200_000 {
		t.Errorf("%d bytes kept, %d in the file", len(o.text), file.Len())
	}
}

func TestPorts(t *testing.T) {
	var book portBook
	seen := map[netip.AddrPort]bool{}
	for range 50 {
		a, err := book.next(netip.MustParseAddr("127.0.0.1"))
		if err != nil {
			t.Fatal(err)
		}
		if seen[a] || a.Port() < firstPort || a.Port() > lastPort {
			t.Errorf("port %v", a)
		}
		seen[a] = true
	}
}

// A process that does not become ready is told of with what it printed.
func TestNotReady(t *testing.T) {
	f, err := New(Config{Binary: binary, Dir: t.TempDir(), Args: func(kind Kind, _ string) []string {
		if kind == MediaNode {
			return []string{"--no-such-flag"}
		}
		return nil
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := f.Start(ctx); err == nil || !strings.Contains(err.Error(), "node-1") || !strings.Contains(err.Error(), "no-such-flag") {
		t.Errorf("start: %v", err)
	}
	if err := f.Close(); err == nil || !strings.Contains(err.Error(), "node-1 ended by itself") {
		t.Errorf("close: %v", err)
	}
}
