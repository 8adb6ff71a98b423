package session

import (
	"errors"
	"net"
	"sync"
	"testing"
	"time"
)

// flaky is a listener whose first accepts fail.
type flaky struct {
	net.Listener
	mu    sync.Mutex
	fails int
}

func (l *flaky) Accept() (net.Conn, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fails > 0 {
		l.fails--
		return nil, errors.New("too many open files")
	}
	return l.Listener.Accept()
}

func listenTCP(t *testing.T) net.Listener {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func dial(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// ended tells whether the other side has closed a connection.
func ended(c net.Conn) bool {
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	_, err := c.Read(make([]byte, 1))
	var ne net.Error
	return err != nil && !(errors.As(err, &ne) && ne.Timeout())
}

func TestTCPListener(t *testing.T) {
	l := newTCPListener(&flaky{Listener: listenTCP(t), fails: 2}, 1)
	first := dial(t, l)
	a, err := l.Accept()
	if err != nil {
		t.Fatalf("accept after errors: %v", err)
	}
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if got, want := a.LocalAddr().String(), net.JoinHostPort("0.0.0.0", port); got != want {
		t.Errorf("the connection says it is at %s, want %s", got, want)
	}

	second, accepted := dial(t, l), make(chan net.Conn)
	go func() {
		c, _ := l.Accept()
		accepted <- c
	}()
	if !ended(second) {
		t.Error("a connection too many was accepted")
	}
	if got := l.refused.Load(); got != 1 {
		t.Errorf("%d connections were refused, want 1", got)
	}
	_ = a.Close()
	if !ended(first) {
		t.Error("the first connection is still open")
	}
	third := dial(t, l)
	if c := <-accepted; c == nil {
		t.Error("no connection was accepted though one had ended")
	}

	if err := l.Close(); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Errorf("second Close: %v", err)
	}
	if !ended(third) {
		t.Error("Close left a connection open")
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept after Close returned %v", err)
	}
}

// The mux ends at once though a connection has not said a word.
func TestTCPMuxCloses(t *testing.T) {
	l := newTCPListener(listenTCP(t), 10)
	m := newTCPMux(l, pionLog{discard})
	silent := dial(t, l)
	if _, err := silent.Write([]byte{0}); err != nil {
		t.Fatal(err)
	}
	begun := time.Now()
	if err := m.Close(); err != nil {
		t.Error(err)
	}
	if took := time.Since(begun); took > tcpHello/2 {
		t.Errorf("Close took %v", took)
	}
	if !ended(silent) {
		t.Error("the connection is still open")
	}
}
