package transport

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
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
	l := newTCPListener(&flaky{Listener: listenTCP(t), fails: 2}, tcpLimits{conns: 1, waiting: 1, fragment: 1, answer: time.Minute})
	first := dial(t, l)
	a, err := l.Accept()
	if err != nil {
		t.Fatalf("accept after errors: %v", err)
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

// check returns a framed STUN binding request for a user name fragment, without
// the password: the header, a SOFTWARE and a USERNAME.
func check(fragment string) []byte {
	attribute := func(b []byte, kind uint16, text string) []byte {
		b = binary.BigEndian.AppendUint16(b, kind)
		b = binary.BigEndian.AppendUint16(b, uint16(len(text)))
		return append(append(b, text...), make([]byte, -len(text)&3)...)
	}
	attributes := attribute(attribute(nil, 0x8022, "a test"), 0x0006, fragment+":x")
	m := []byte{0, 1, 0, byte(len(attributes)), 0x21, 0x12, 0xa4, 0x42}
	m = append(append(m, "twelve bytes"...), attributes...)
	return append(binary.BigEndian.AppendUint16(nil, uint16(len(m))), m...)
}

// What one address may open, and for one session, is bounded; who is answered
// counts no longer for the address, and who is not is closed.
func TestTCPLimits(t *testing.T) {
	l := newTCPListener(listenTCP(t), tcpLimits{conns: 100, waiting: 3, fragment: 2, answer: 300 * time.Millisecond})
	accepted := make(chan net.Conn, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			accepted <- c
		}
	})
	defer wg.Wait()
	defer func() { _ = l.Close() }()
	read := func(fragment string) (net.Conn, error) {
		t.Helper()
		viewer := dial(t, l)
		if _, err := viewer.Write(check(fragment)); err != nil {
			t.Fatal(err)
		}
		var c net.Conn
		select {
		case c = <-accepted:
		case <-time.After(10 * time.Second):
			t.Fatal("the connection is not accepted")
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 100)
		if _, err := io.ReadFull(c, buf[:2]); err != nil {
			return c, err
		}
		_, err := io.ReadFull(c, buf[:binary.BigEndian.Uint16(buf)])
		return c, err
	}
	reply := func(c net.Conn) {
		t.Helper()
		if _, err := c.Write([]byte{0, 1, 0}); err != nil {
			t.Fatal(err)
		}
	}
	var answered []net.Conn
	for i := range 2 {
		c, err := read("abcd")
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		reply(c)
		answered = append(answered, c)
	}
	if c, err := read("abcd"); !errors.Is(err, errTooMany) {
		t.Errorf("a session's third connection: %v", err)
	} else {
		_ = c.Close()
	}
	_ = answered[0].Close()
	c, err := read("abcd")
	if err != nil {
		t.Errorf("after one has ended: %v", err)
	}
	reply(c)

	silent := []net.Conn{dial(t, l), dial(t, l), dial(t, l)}
	for range silent {
		select {
		case <-accepted:
		case <-time.After(10 * time.Second):
			t.Fatal("the address does not get its connections")
		}
	}
	if before := l.refused.Load(); !ended(dial(t, l)) || l.refused.Load() != before+1 {
		t.Error("the address has a fourth connection that nobody answered")
	}
	for i, c := range silent {
		if !ended(c) {
			t.Errorf("connection %d is still open though nobody answered", i)
		}
	}
	if _, err := read("efgh"); err != nil {
		t.Errorf("after the silent ones: %v", err)
	}
	reply(answered[1]) // still open
}

func TestFragmentOf(t *testing.T) {
	whole := check("abcd")
	for n := range whole {
		if got, complete := fragmentOf(whole[:n]); complete || got != "" {
			t.Fatalf("the first %d of %d bytes are complete, for %q", n, len(whole), got)
		}
	}
	for name, tt := range map[string]struct {
		message []byte
		want    string
	}{
		"a check":            {whole, "abcd"},
		"with more after it": {append(check("abcd"), 1, 2, 3), "abcd"},
		"empty":              {[]byte{0, 0}, ""},
		"header only":        {append([]byte{0, 20}, make([]byte, 20)...), ""},
		"attribute too long": {append(append([]byte{0, 24}, make([]byte, 20)...), 0, 6, 0, 9), ""},
		"no user name":       {append(append([]byte{0, 25}, make([]byte, 20)...), 0, 7, 0, 1, 'a'), ""},
	} {
		if got, complete := fragmentOf(tt.message); !complete || got != tt.want {
			t.Errorf("%s: %q, complete %v; want %q", name, got, complete, tt.want)
		}
	}
}

func TestSenderOf(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7:1": "192.0.2.7/32", "[::ffff:192.0.2.7]:1": "192.0.2.7/32", "[2001:db8:1:2:3::4]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
	} {
		if got := senderOf(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(addr))); got.String() != want {
			t.Errorf("%s: %v, want %s", addr, got, want)
		}
	}
}
