package transport

import (
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/srtp/v3"
	"github.com/pion/stun/v4"
	"go.uber.org/goleak"

	"fanlight/medianode/udp"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTestPort(t testing.TB) *Port {
	t.Helper()
	conn, err := udp.Listen(netip.MustParseAddrPort("127.0.0.1:0"), udp.Config{})
	if err != nil {
		t.Fatal(err)
	}
	lis, err := net.Listen("tcp4", conn.AddrPort().String())
	if err != nil {
		_ = conn.Close()
		t.Skipf("the UDP port is taken for TCP: %v", err)
	}
	p, err := Listen(PortConfig{UDP: conn, TCP: lis})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close the port: %v", err)
		}
	})
	return p
}

// client is a viewer's end, by hand.
type client struct {
	t           *testing.T
	port        *Port
	transport   *Transport
	own         Credentials
	certificate tls.Certificate
	fingerprint string
	deaf        atomic.Bool // it does not answer checks

	mu      sync.Mutex // guards the rest
	conn    net.Conn   // UDP, or TCP
	records chan []byte
	answers chan *stun.Message
	checks  int // that it got
	other   int // what came that is neither STUN nor DTLS
	done    chan struct{}
}

// newClient opens a transport and its viewer's end.
func newClient(t *testing.T, p *Port, change func(*Config)) *client {
	t.Helper()
	cert, fp, err := newCertificate()
	if err != nil {
		t.Fatal(err)
	}
	c := &client{t: t, port: p, own: newCredentials(), certificate: cert, fingerprint: fp}
	cfg := Config{Remote: c.own, Fingerprints: []string{fp}}
	if change != nil {
		change(&cfg)
	}
	if c.transport, err = p.Open(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.transport.Close)
	c.open("udp4")
	return c
}

// open takes a new socket in place of the one before.
func (c *client) open(network string) {
	c.t.Helper()
	conn, err := net.Dial(network, c.port.conn.AddrPort().String())
	if err != nil {
		c.t.Fatal(err)
	}
	c.mu.Lock()
	c.conn, c.records, c.answers, c.done = conn, make(chan []byte, 100), make(chan *stun.Message, 100), make(chan struct{})
	records, answers, done := c.records, c.answers, c.done
	c.mu.Unlock()
	go func() {
		defer close(done)
		c.read(conn, records, answers)
	}()
	c.t.Cleanup(func() {
		_ = conn.Close()
		<-done
	})
}

func isTCP(conn net.Conn) bool { return conn.LocalAddr().Network() == "tcp" }

func send(conn net.Conn, b []byte) {
	if isTCP(conn) {
		b = append(binary.BigEndian.AppendUint16(nil, uint16(len(b))), b...)
	}
	_, _ = conn.Write(b)
}

func (c *client) read(conn net.Conn, records chan<- []byte, answers chan<- *stun.Message) {
	buf := make([]byte, 4096)
	for {
		var n int
		var err error
		if isTCP(conn) {
			if _, err = io.ReadFull(conn, buf[:2]); err == nil {
				n, err = io.ReadFull(conn, buf[:binary.BigEndian.Uint16(buf)])
			}
		} else {
			n, err = conn.Read(buf)
		}
		if err != nil {
			return
		}
		b := append([]byte(nil), buf[:n]...)
		switch {
		case isSTUN(b):
			m := &stun.Message{Raw: b}
			if m.Decode() != nil {
				continue
			}
			if m.Type != stun.BindingRequest {
				answers <- m
				continue
			}
			c.mu.Lock()
			c.checks++
			c.mu.Unlock()
			if !c.deaf.Load() {
				send(conn, build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess, stun.NewShortTermIntegrity(c.own.Password), stun.Fingerprint))
			}
		case isDTLS(b):
			records <- b
		default:
			c.mu.Lock()
			c.other++
			c.mu.Unlock()
		}
	}
}

// check sends a check and returns the answer; nil: none came in time.
func (c *client) check(to Credentials, setters ...stun.Setter) *stun.Message {
	c.t.Helper()
	m := append([]stun.Setter{stun.BindingRequest, stun.TransactionID, stun.NewUsername(to.Fragment + ":" + c.own.Fragment)}, setters...)
	b := build(append(m, stun.NewShortTermIntegrity(to.Password), stun.Fingerprint)...)
	send(c.conn, b)
	select {
	case m := <-c.answers:
		return m
	case <-time.After(300 * time.Millisecond):
		return nil
	}
}

var nominate = stun.RawAttribute{Type: stun.AttrUseCandidate}

// datagrams is the client's socket as pion/dtls takes it.
type datagrams struct {
	net.Conn
	records <-chan []byte
	closed  chan struct{}
	once    sync.Once
}

func (d *datagrams) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case r := <-d.records:
		return copy(b, r), d.RemoteAddr(), nil
	case <-d.closed:
		return 0, nil, net.ErrClosed
	}
}

func (d *datagrams) WriteTo(b []byte, _ net.Addr) (int, error) {
	send(d.Conn, b)
	return len(b), nil
}

func (d *datagrams) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// secure does the client's DTLS handshake, and returns what seals its SRTCP.
func (c *client) secure() (*dtls.Conn, *srtp.Context, error) {
	d := &datagrams{Conn: c.conn, records: c.records, closed: make(chan struct{})}
	conn, err := dtls.ClientWithOptions(d, c.conn.RemoteAddr(), dtls.WithCertificates(c.certificate), dtls.WithInsecureSkipVerify(true),
		dtls.WithSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_128_GCM), dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret))
	if err != nil {
		return nil, nil, err
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	state, ok := conn.ConnectionState()
	if !ok {
		return nil, nil, errors.New("no state")
	}
	cfg := srtp.Config{Profile: srtp.ProtectionProfileAeadAes128Gcm}
	if err := cfg.ExtractSessionKeysFromDTLS(&state, true); err != nil {
		return nil, nil, err
	}
	out, err := srtp.CreateContext(cfg.Keys.LocalMasterKey, cfg.Keys.LocalMasterSalt, cfg.Profile)
	return conn, out, err
}

// report sends an empty receiver report.
func (c *client) report(s *srtp.Context, ssrc uint32) {
	plain := []byte{0x80, 201, 0, 1}
	plain = binary.BigEndian.AppendUint32(plain, ssrc)
	sealed, err := s.EncryptRTCP(nil, plain, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	send(c.conn, sealed)
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not within 10 s: %s", what)
		}
	}
}

func (c *client) state() State { s, _ := c.transport.State(); return s }

// connect does all of it.
func (c *client) connect() (*dtls.Conn, *srtp.Context) {
	c.t.Helper()
	if m := c.check(c.transport.Local(), nominate); m == nil || m.Type != stun.BindingSuccess {
		c.t.Fatalf("the check was answered by %v", m)
	}
	conn, out, err := c.secure()
	if err != nil {
		c.t.Fatal(err)
	}
	eventually(c.t, "connected", func() bool { return c.state() == Connected })
	return conn, out
}

// A viewer connects, over UDP or TCP, reports, and says goodbye, also when its
// DTLS connection rests.
func TestConnect(t *testing.T) {
	for _, network := range []string{"udp4", "tcp4"} {
		for _, rests := range []bool{false, true} {
			t.Run(network+map[bool]string{true: ", at rest"}[rests], func(t *testing.T) {
				heard := make(chan int, 10)
				c := newClient(t, newTestPort(t), func(cfg *Config) { cfg.OnRTCP = func(b []byte) { heard <- len(b) } })
				if network == "tcp4" {
					c.open(network)
				}
				conn, out := c.connect()
				if keys := c.transport.Keys(); keys == nil || keys.Profile != srtp.ProtectionProfileAeadAes128Gcm || len(keys.Key) != 16 || len(keys.Salt) != 12 {
					t.Errorf("keys are %+v", keys)
				}
				path := c.transport.Path()
				if got := path.Addr().String(); got != c.conn.LocalAddr().String() || (path.Dest() == nil) != (network == "tcp4") {
					t.Errorf("the path is %v, the client at %v", path, c.conn.LocalAddr())
				}
				if rests {
					c.report(out, 1)
					if got := <-heard; got != 8 {
						t.Errorf("the report has %d bytes", got)
					}
					eventually(t, "at rest", func() bool {
						c.transport.mu.Lock()
						defer c.transport.mu.Unlock()
						return c.transport.resting != nil
					})
					c.report(out, 1)
					<-heard
				}
				if err := conn.Close(); err != nil {
					t.Error(err)
				}
				eventually(t, "closed by the viewer", func() bool { return c.state() == Closed })
			})
		}
	}
}

// The node says goodbye too, also when the DTLS connection rests.
func TestGoodbye(t *testing.T) {
	for _, rests := range []bool{false, true} {
		c := newClient(t, newTestPort(t), nil)
		conn, out := c.connect()
		if rests {
			c.report(out, 1)
			eventually(t, "at rest", func() bool {
				c.transport.mu.Lock()
				defer c.transport.mu.Unlock()
				return c.transport.resting != nil
			})
		}
		read := make(chan error, 1)
		go func() {
			_, err := conn.Read(make([]byte, 100))
			read <- err
		}()
		c.transport.Close()
		c.transport.Close()
		select {
		case err := <-read:
			if !errors.Is(err, io.EOF) {
				t.Errorf("rests %v: the client reads %v, want the end", rests, err)
			}
		case <-time.After(10 * time.Second):
			t.Errorf("rests %v: the client has heard no goodbye", rests)
		}
		if c.check(c.transport.Local()) != nil {
			t.Error("a check was answered after Close")
		}
	}
}

// Nothing but answers is sent to an address that does not answer: anybody can
// write another's address on a check.
func TestAddressMustAnswer(t *testing.T) {
	c := newClient(t, newTestPort(t), nil)
	c.deaf.Store(true)
	for range 5 {
		if m := c.check(c.transport.Local(), nominate); m == nil || m.Type != stun.BindingSuccess {
			t.Fatalf("the check was answered by %v", m)
		}
	}
	time.Sleep(100 * time.Millisecond)
	if c.transport.Path() != nil {
		t.Error("media would go to an address that has not answered")
	}
	c.deaf.Store(false)
	c.mu.Lock()
	checks := c.checks
	c.mu.Unlock()
	if checks == 0 {
		t.Error("the address was not checked")
	}
	time.Sleep(checkPause)
	c.check(c.transport.Local(), nominate)
	eventually(t, "a path", func() bool { return c.transport.Path() != nil })
}

// Who writes another viewer's address on a check does not get its packets.
func TestAddressStaysItsViewers(t *testing.T) {
	p := newTestPort(t)
	heard := make(chan int, 10)
	a := newClient(t, p, func(cfg *Config) { cfg.OnRTCP = func(b []byte) { heard <- len(b) } })
	b := newClient(t, p, nil)
	_, out := a.connect()
	a.deaf.Store(true) // it has not asked for b's checks
	for range 3 {
		if m := a.check(b.transport.Local(), nominate); m == nil {
			t.Fatal("no answer")
		}
	}
	if b.transport.Path() != nil {
		t.Error("media of b's would go to a")
	}
	a.report(out, 1)
	select {
	case <-heard:
	case <-time.After(10 * time.Second):
		t.Error("a's report was not heard any more")
	}
}

func TestChecksRefused(t *testing.T) {
	p := newTestPort(t)
	c := newClient(t, p, nil)
	local := c.transport.Local()
	for name, creds := range map[string]Credentials{
		"wrong password": {local.Fragment, "another password altogether"},
		"wrong fragment": {"nobody", local.Password},
		"no password":    {local.Fragment, ""},
	} {
		if m := c.check(creds, nominate); m != nil {
			t.Errorf("%s: answered by %v", name, m)
		}
	}
	if p.Stats().Strays == 0 {
		t.Error("the check for nobody was not counted")
	}
	m := c.check(local, stun.RawAttribute{Type: stun.AttrICEControlled, Value: make([]byte, 8)})
	var code stun.ErrorCodeAttribute
	if m == nil || code.GetFrom(m) != nil || code.Code != stun.CodeRoleConflict {
		t.Errorf("a viewer that is controlled is answered by %v", m)
	}
	if c.transport.Path() != nil || c.state() != Connecting {
		t.Error("one of them made a path")
	}
}

func TestFingerprintMustMatch(t *testing.T) {
	_, other, err := newCertificate()
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, newTestPort(t), func(cfg *Config) { cfg.Fingerprints = []string{"sha-1 AB:CD", other} })
	if c.check(c.transport.Local(), nominate) == nil {
		t.Fatal("no answer")
	}
	_, _, _ = c.secure() // the client need not notice
	eventually(t, "failed", func() bool { return c.state() == Failed })
	if c.transport.Keys() != nil {
		t.Error("there are keys")
	}
}

func TestCheckFingerprints(t *testing.T) {
	for _, list := range [][]string{nil, {""}, {"sha-256"}, {"SHA-1 AB:CD"}, {"md5 AB"}} {
		if CheckFingerprints(list) == nil {
			t.Errorf("%q was accepted", list)
		}
	}
	if err := CheckFingerprints([]string{"sha-1 AB", "SHA-256 AB:CD"}); err != nil {
		t.Error(err)
	}
}

// An ICE restart keeps the path until the viewer has another, and the DTLS
// connection with its keys.
func TestRestart(t *testing.T) {
	c := newClient(t, newTestPort(t), nil)
	c.connect()
	before, keys, old := c.transport.Path(), c.transport.Keys(), c.transport.Local()
	c.own = newCredentials()
	local, err := c.transport.Restart(c.own)
	if err != nil {
		t.Fatal(err)
	}
	if local == old || c.transport.Path() != before {
		t.Error("the credentials are the old ones, or the path was lost")
	}
	if c.check(old) != nil {
		t.Error("a check of the generation before was answered")
	}
	c.open("udp4") // as after a change of the viewer's network
	if c.check(local, nominate) == nil {
		t.Fatal("no answer")
	}
	eventually(t, "the new path", func() bool {
		p := c.transport.Path()
		return p != nil && p.Addr().String() == c.conn.LocalAddr().String()
	})
	if c.transport.Keys() != keys || c.state() != Connected {
		t.Error("the DTLS connection is another")
	}
	c.transport.Close()
	if _, err := c.transport.Restart(c.own); err == nil {
		t.Error("a transport that is closed was restarted")
	}
}

// The addresses of one viewer are bounded, and the one in use is kept.
func TestPathsAreBounded(t *testing.T) {
	p := newTestPort(t)
	c := newClient(t, p, nil)
	c.connect()
	used := c.transport.Path()
	for range 2 * maxPaths {
		c.open("udp4")
		if c.check(c.transport.Local()) == nil {
			t.Fatal("no answer")
		}
	}
	c.transport.mu.Lock()
	n := len(c.transport.ice.paths)
	c.transport.mu.Unlock()
	p.mu.RLock()
	owners, transactions := len(p.owners), len(p.transactions)
	p.mu.RUnlock()
	if n > maxPaths || owners > maxPaths || transactions > maxPaths || c.transport.Path() != used {
		t.Errorf("%d paths, %d owners, %d transactions; the path is %v, was %v", n, owners, transactions, c.transport.Path(), used)
	}
	c.transport.Close()
	p.mu.RLock()
	defer p.mu.RUnlock()
	if len(p.owners)+len(p.transactions)+len(p.fragments) > 0 {
		t.Errorf("%d owners, %d transactions, %d fragments are left", len(p.owners), len(p.transactions), len(p.fragments))
	}
}

// Addresses that the viewer named are checked some times, and get no media for
// it.
func TestPunch(t *testing.T) {
	c := newClient(t, newTestPort(t), nil)
	here := c.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	for _, a := range []netip.AddrPort{here, here, {}, netip.MustParseAddrPort("0.0.0.0:5"), netip.MustParseAddrPort("224.0.0.1:5"), netip.MustParseAddrPort("127.0.0.1:0")} {
		c.transport.AddCandidate(a)
	}
	c.deaf.Store(true)
	n := 1
	for now := time.Now(); c.transport.Punch(now); now = now.Add(time.Second) {
		if n++; n > 100 {
			t.Fatal("it never ends")
		}
	}
	if n != punches {
		t.Errorf("checked in %d turns, want %d", n, punches)
	}
	eventually(t, "the checks", func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.checks == punches
	})
	if c.transport.Path() != nil {
		t.Error("there is a path")
	}
	c.transport.AddCandidate(netip.AddrPortFrom(here.Addr(), here.Port()))
	c.deaf.Store(false)
	c.transport.Punch(time.Now())
	eventually(t, "a path by our own check", func() bool { return c.transport.Path() != nil })
	if c.transport.Punch(time.Now()) {
		t.Error("there is more to check though there is a path")
	}
}

func TestBetter(t *testing.T) {
	now := time.Now()
	path := func(nominated, tcp bool, priority uint32, quiet time.Duration) *Path {
		p := &Path{nominated: nominated, priority: priority}
		if tcp {
			p.tcp = &tcpPath{}
		}
		p.heard.Store(now.Add(-quiet).UnixNano())
		return p
	}
	base := path(true, false, 10, time.Second)
	for _, tt := range []struct {
		name string
		p, q *Path
		want bool
	}{
		{"nominated", path(true, true, 1, 0), path(false, false, 99, 0), true},
		{"not nominated", path(false, false, 99, 0), base, false},
		{"UDP", base, path(true, true, 99, 0), true},
		{"TCP", path(true, true, 99, 0), base, false},
		{"priority", path(true, false, 11, 0), base, true},
		{"less priority", path(true, false, 9, 0), base, false},
		{"the same", path(true, false, 10, 0), base, false},
		{"instead of one that is silent", path(true, true, 1, 0), path(true, false, 99, 8*time.Second), true},
		{"one that is silent itself", path(true, false, 99, 8*time.Second), base, false},
		{"both silent", path(true, false, 99, 9*time.Second), path(true, false, 1, 8*time.Second), false},
	} {
		if got := tt.p.better(tt.q, now); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

// A TCP connection that nobody reads from takes what has room, and delays nobody.
func TestTCPIsBounded(t *testing.T) {
	c := newClient(t, newTestPort(t), nil)
	c.open("tcp4")
	if c.check(c.transport.Local(), nominate) == nil {
		t.Fatal("no answer")
	}
	eventually(t, "a path", func() bool { return c.transport.Path() != nil })
	path := c.transport.Path()
	path.tcp.mu.Lock() // as a writer that is stuck
	began, sent := time.Now(), 0
	path.tcp.mu.Unlock()
	packet := make([]byte, 1200)
	packet[0] = 0x80
	for path.Send(packet, began) {
		if sent++; sent > 1_000_000 {
			t.Fatal("there is no end of room")
		}
	}
	if path.Clear() {
		t.Error("nothing waits, but there is no room")
	}
	if sent < tcpBuffer/1300 {
		t.Errorf("%d packets had room", sent)
	}
}

// What waits for too long takes no more.
func TestTCPIsPatientForAWhile(t *testing.T) {
	here, there := net.Pipe() // nobody reads
	defer there.Close()
	l := newTCPListener(listenTCP(t), tcpLimits{conns: 1, waiting: 1, fragment: 1, answer: time.Minute})
	defer l.Close()
	p := newTCPPath(&tcpConn{Conn: here, listener: l, deadline: time.AfterFunc(time.Hour, func() {})})
	done := make(chan struct{})
	go func() {
		defer close(done)
		p.write()
	}()
	now := time.Now()
	p.send([]byte("the writer waits with this"), now)
	eventually(t, "the write", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.busy && len(p.queue) == 0
	})
	if p.clear() {
		t.Error("a write is under way, but nothing waits")
	}
	for i, tt := range []struct {
		at   time.Duration
		want bool
	}{{0, true}, {tcpPatience, true}, {tcpPatience + time.Millisecond, false}} {
		if got := p.send([]byte("x"), now.Add(tt.at)); got != tt.want {
			t.Errorf("%d: after %v: %v", i, tt.at, got)
		}
	}
	p.close()
	<-done
	if p.send([]byte("x"), now) {
		t.Error("a connection that is closed took something")
	}
}

// A viewer that changes its mind is followed; all that it nominates at first is
// one wish, of which the best counts.
func TestNominate(t *testing.T) {
	now := time.Now()
	good, bad := &Path{priority: 2}, &Path{priority: 1}
	tr := &Transport{ice: ice{paths: []*Path{good, bad}}}
	tr.nominate(good, now)
	tr.nominate(bad, now.Add(time.Second))
	if !good.nominated || !bad.nominated {
		t.Errorf("at first: good %v, bad %v", good.nominated, bad.nominated)
	}
	tr.nominate(bad, now.Add(nominationBurst+time.Second))
	if good.nominated || !bad.nominated {
		t.Errorf("later: good %v, bad %v; want the latest alone", good.nominated, bad.nominated)
	}
	tr.nominate(good, now.Add(nominationBurst+2*time.Second))
	if !good.nominated || bad.nominated {
		t.Errorf("back to the better: good %v, bad %v", good.nominated, bad.nominated)
	}
}

// Each restart forgets what the one before has made.
func TestRestartsLeaveNothing(t *testing.T) {
	p := newTestPort(t)
	c := newClient(t, p, nil)
	c.connect()
	for range 5 {
		c.own = newCredentials()
		local, err := c.transport.Restart(c.own)
		if err != nil {
			t.Fatal(err)
		}
		c.deaf.Store(true) // so that a check of ours is under way
		c.check(local, nominate)
	}
	c.transport.Close()
	p.mu.RLock()
	defer p.mu.RUnlock()
	if len(p.owners)+len(p.transactions)+len(p.fragments) > 0 {
		t.Errorf("%d owners, %d transactions, %d fragments are left", len(p.owners), len(p.transactions), len(p.fragments))
	}
}

// Only what cannot have been recorded shows that a viewer is alive.
func TestReplayIsNoLife(t *testing.T) {
	c := newClient(t, newTestPort(t), nil)
	c.connect()
	m := build(stun.BindingRequest, stun.TransactionID, stun.NewUsername(c.transport.Local().Fragment+":"+c.own.Fragment),
		stun.NewShortTermIntegrity(c.transport.Local().Password), stun.Fingerprint)
	other, err := net.Dial("udp4", c.port.conn.AddrPort().String())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	time.Sleep(300 * time.Millisecond)
	send(other, m)
	time.Sleep(100 * time.Millisecond)
	if got := c.transport.Silence(time.Now()); got < 300*time.Millisecond {
		t.Errorf("silent for %v after a replay", got)
	}
	if c.check(c.transport.Local()) == nil {
		t.Fatal("no answer")
	}
	c.transport.mu.Lock()
	c.transport.ice.paths[0].asked = time.Time{} // long ago
	c.transport.mu.Unlock()
	if c.check(c.transport.Local()) == nil {
		t.Fatal("no answer")
	}
	eventually(t, "an answer to the check for consent", func() bool { return c.transport.Silence(time.Now()) < 200*time.Millisecond })
}

// DTLS goes to an address that has proven itself only.
func TestRecordsWaitForProof(t *testing.T) {
	c := newClient(t, newTestPort(t), nil)
	c.deaf.Store(true)
	if c.check(c.transport.Local(), nominate) == nil {
		t.Fatal("no answer")
	}
	secured := make(chan error, 1)
	go func() {
		_, _, err := c.secure()
		secured <- err
	}()
	time.Sleep(200 * time.Millisecond)
	if n := len(c.records); n > 0 {
		t.Errorf("%d records came", n)
	}
	c.deaf.Store(false)
	if c.check(c.transport.Local(), nominate) == nil {
		t.Fatal("no answer")
	}
	if err := <-secured; err != nil {
		t.Error(err)
	}
	eventually(t, "connected", func() bool { return c.state() == Connected })
}

// A session's TCP connections are bounded whatever comes first on them, and end
// with it.
func TestTCPEndsWithItsViewer(t *testing.T) {
	p := newTestPort(t)
	c := newClient(t, p, nil)
	for _, first := range [][]byte{nil, {1}, []byte("hello")} {
		conn := dial(t, p.listener)
		send(tcpNamed{conn}, first)
		if !ended(conn) {
			t.Errorf("a connection that begins with %q goes on", first)
		}
	}
	c.open("tcp4")
	if m := c.check(c.transport.Local(), stun.RawAttribute{Type: stun.AttrICEControlled, Value: make([]byte, 8)}); m == nil {
		t.Error("no answer")
	}
	eventually(t, "the end of a connection of the wrong role", func() bool { return p.open() == 0 })
	for range 3 {
		c.open("tcp4")
		if c.check(c.transport.Local(), nominate) == nil {
			t.Fatal("no answer")
		}
	}
	if _, err := c.transport.Restart(c.own); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the end of what a restart leaves", func() bool { return p.open() <= 1 })
	c.transport.Close()
	eventually(t, "the end of them all", func() bool { return p.open() == 0 })
}

type tcpNamed struct{ net.Conn }

// open returns how many TCP connections there are.
func (p *Port) open() int {
	p.listener.mu.Lock()
	defer p.listener.mu.Unlock()
	return len(p.listener.conns)
}

// Whoever closes a transport waits until it is.
func TestCloseTogether(t *testing.T) {
	p := newTestPort(t)
	for range 5 {
		c := newClient(t, p, nil)
		_, out := c.connect()
		c.report(out, 1)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(c.transport.Close)
		}
		wg.Wait()
	}
}

// Whatever comes, the port goes on.
func FuzzTake(f *testing.F) {
	f.Add(build(stun.BindingRequest, stun.TransactionID, stun.NewUsername("a:b"), stun.NewShortTermIntegrity("x"), stun.Fingerprint))
	f.Add([]byte{22, 254, 253, 0, 0})
	f.Add([]byte{0x80, 201, 0, 1, 0, 0, 0, 1})
	f.Add([]byte{})
	p := newTestPort(f)
	t, err := p.Open(Config{Remote: Credentials{"abcd", "password"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(t.Close)
	from := netip.MustParseAddrPort("127.0.0.1:9")
	t.mu.Lock()
	t.keep(&Path{addr: from})
	path := t.ice.paths[0]
	t.mu.Unlock()
	p.lend(path, t)
	var in stun.Message
	buf := make([]byte, maxRecord)
	f.Fuzz(func(_ *testing.T, b []byte) { p.take(&in, b, buf, from) })
}
