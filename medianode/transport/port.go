package transport

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/stun/v4"

	"fanlight/medianode/udp"
)

// PortConfig is how a Port is made. Only UDP must be given.
type PortConfig struct {
	Log       *slog.Logger // nil: nothing is logged
	UDP       *udp.Conn    // the port's from Listen on
	TCP       net.Listener // on the same port; nil: UDP only
	Advertise []netip.Addr // candidates' IP addresses; empty: those that UDP listens on
	Viewers   int          // how many there may be, which bounds the TCP connections; 0: 1,000
}

// Port is where all viewers come in. Its methods may be called from any
// goroutine.
type Port struct {
	// Static after Listen.
	log         *slog.Logger
	conn        *udp.Conn
	listener    *tcpListener // nil: no TCP
	addrs       []netip.Addr
	candidates  []string
	certificate tls.Certificate
	fingerprint string
	readers     sync.WaitGroup // of the sockets and of TCP connections
	strays      atomic.Uint64

	mu           sync.RWMutex // guards the rest; taken after Transport.mu
	fragments    map[string]*Transport
	owners       map[netip.AddrPort]owner
	transactions map[[stun.TransactionIDSize]byte]*Transport
	closed       bool
}

// owner is whose packets come from an address over UDP.
type owner struct {
	transport *Transport
	path      *Path
}

// Stats are a port's figures.
type Stats struct {
	TCPRefused uint64 // TCP connections refused because there were too many, or too many for one session or from one address
	Strays     uint64 // datagrams of no viewer
}

// Listen begins to take viewers. It owns the sockets: Close closes them, and so
// does Listen when it fails.
func Listen(cfg PortConfig) (*Port, error) {
	p, err := newPort(cfg)
	if err != nil {
		_ = cfg.UDP.Close()
		if cfg.TCP != nil {
			_ = cfg.TCP.Close()
		}
		return nil, err
	}
	p.readers.Go(func() {
		var in stun.Message
		buf := make([]byte, maxRecord)
		if err := p.conn.Serve(func(b []byte, from netip.AddrPort) { p.take(&in, b, buf, from) }); err != nil {
			p.log.Error("media is no longer read", "error", err)
		}
	})
	if p.listener != nil {
		p.readers.Go(p.accept)
	}
	return p, nil
}

func newPort(cfg PortConfig) (*Port, error) {
	const viewers = 1000
	p := &Port{
		log: cfg.Log, conn: cfg.UDP, fragments: make(map[string]*Transport),
		owners: make(map[netip.AddrPort]owner), transactions: make(map[[stun.TransactionIDSize]byte]*Transport),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Viewers <= 0 {
		cfg.Viewers = viewers
	}
	var err error
	if p.addrs, err = candidateAddresses(cfg.UDP.AddrPort().Addr(), cfg.Advertise, net.InterfaceAddrs); err != nil {
		return nil, err
	}
	if p.certificate, p.fingerprint, err = newCertificate(); err != nil {
		return nil, err
	}
	if cfg.TCP != nil {
		p.listener = newTCPListener(cfg.TCP, tcpLimits{conns: 2 * cfg.Viewers, waiting: tcpWaiting, fragment: tcpFragment, answer: tcpAnswer})
	}
	p.candidates = candidates(p.addrs, cfg.UDP.AddrPort().Port(), cfg.TCP != nil)
	return p, nil
}

// Addresses returns the candidates' IP addresses.
func (p *Port) Addresses() []netip.Addr { return p.addrs }

// Candidates returns our candidates, the same for all viewers: values of
// a=candidate (RFC 8839 §5.1), best first.
func (p *Port) Candidates() []string { return p.candidates }

// Fingerprint returns the certificate's, as the value of a=fingerprint (RFC 8122
// §5).
func (p *Port) Fingerprint() string { return p.fingerprint }

// Stats returns the figures.
func (p *Port) Stats() Stats {
	s := Stats{Strays: p.strays.Load()}
	if p.listener != nil {
		s.TCPRefused = p.listener.refused.Load()
	}
	return s
}

// Open makes a viewer's transport. It must be closed.
func (p *Port) Open(cfg Config) (*Transport, error) {
	t := &Transport{port: p, fingerprints: cfg.Fingerprints, onRTCP: cfg.OnRTCP, changed: make(chan struct{}, 1)}
	if t.onRTCP == nil {
		t.onRTCP = func([]byte) {}
	}
	t.ice.begin(newCredentials(), cfg.Remote)
	id := stun.NewTransactionID() // random bytes
	for _, b := range id[:8] {
		t.ice.tieBreaker = t.ice.tieBreaker<<8 | uint64(b)
	}
	t.heard.Store(time.Now().UnixNano())
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, errors.New("open a transport: the port is closed")
	}
	p.fragments[t.ice.local.Fragment] = t
	return t, nil
}

// dtlsOptions are a viewer's. The cookie of the handshake (RFC 6347 §4.2.1) would
// prove what ICE proves, that the viewer is where it says, and cost a round trip:
// what is to be sent waits for that proof (records.WriteTo).
func (p *Port) dtlsOptions(fingerprints []string) []dtls.ServerOption {
	return []dtls.ServerOption{
		dtls.WithCertificates(p.certificate),
		dtls.WithClientAuth(dtls.RequireAnyClientCert),
		dtls.WithInsecureSkipVerify(true), // of its chain; verify has the last word
		dtls.WithVerifyPeerCertificate(func(raw [][]byte, _ [][]*x509.Certificate) error { return verify(raw, fingerprints) }),
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
		dtls.WithSRTPProtectionProfiles(profiles()...),
		dtls.WithInsecureSkipVerifyHello(true),
		dtls.WithMTU(recordMTU),
		dtls.WithLoggerFactory(pionLog{p.log}),
	}
}

// resumeOptions are those of a connection whose handshake is long over.
func (p *Port) resumeOptions() []dtls.Option {
	return []dtls.Option{dtls.WithMTU(recordMTU), dtls.WithLoggerFactory(pionLog{p.log})}
}

// take takes a datagram from the UDP socket. in and buf are the reader's.
func (p *Port) take(in *stun.Message, b, buf []byte, from netip.AddrPort) {
	from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	if isSTUN(b) {
		p.stun(in, b, &Path{addr: from})
		return
	}
	if !isDTLS(b) && !isRTCP(b) {
		p.strays.Add(1)
		return
	}
	p.mu.RLock()
	o := p.owners[from]
	p.mu.RUnlock()
	if o.transport == nil {
		p.strays.Add(1)
		return
	}
	o.transport.datagram(b, buf, o.path)
}

// stun takes a STUN message that came over a path.
func (p *Port) stun(in *stun.Message, b []byte, via *Path) {
	in.Raw = append(in.Raw[:0], b...)
	if in.Decode() != nil {
		p.strays.Add(1)
		return
	}
	now := time.Now()
	switch in.Type {
	case stun.BindingRequest:
		r, err := parseRequest(in)
		if err != nil {
			p.strays.Add(1)
			return
		}
		p.mu.RLock()
		t := p.fragments[r.fragment]
		p.mu.RUnlock()
		if t == nil {
			p.strays.Add(1)
			return
		}
		// The answer goes first: a viewer that has it, and then sees our check, may
		// nominate the path at once, and need not wait for its own next turn.
		answer, check := t.requested(in, r, via, now)
		if answer != nil {
			p.write(answer, via)
		}
		if check != nil {
			p.write(check, via)
		}
		if via.tcp != nil && t.known(via) == nil {
			via.tcp.finish() // it has an answer, and nothing to stay for
		}
	case stun.BindingSuccess:
		p.mu.RLock()
		t := p.transactions[in.TransactionID]
		p.mu.RUnlock()
		if t != nil {
			t.answered(in, via, now)
		}
	}
}

// write sends one datagram or frame at once. Errors are counted by the socket.
func (p *Port) write(b []byte, to *Path) {
	if to.tcp != nil {
		to.tcp.send(b, time.Now())
		return
	}
	_, _ = p.conn.WriteToAddrPort(b, to.addr)
}

// accept takes TCP connections until the listener is closed.
func (p *Port) accept() {
	for {
		c, err := p.listener.Accept()
		if err != nil {
			return
		}
		conn, ok := c.(*tcpConn)
		if !ok {
			_ = c.Close()
			continue
		}
		path := newTCPPath(conn)
		p.readers.Go(path.write)
		p.readers.Go(func() { p.serve(path) })
	}
}

// serve reads one TCP connection, which is one viewer's: that of its first
// check.
func (p *Port) serve(c *tcpPath) {
	var in stun.Message
	var t *Transport
	buf := make([]byte, maxRecord)
	addr := addrPortOf(c.conn.RemoteAddr())
	via := &Path{addr: addr, tcp: c}
	defer func() {
		c.close()
		if t != nil {
			t.lose(via)
		}
	}()
	c.read(func(b []byte) {
		if isSTUN(b) {
			p.stun(&in, b, via)
			if t == nil {
				t = p.named(&in)
			}
			return
		}
		if t == nil || !isDTLS(b) && !isRTCP(b) {
			return
		}
		if known := t.known(via); known != nil {
			t.datagram(b, buf, known)
		}
	})
}

// named returns the transport that a check is for; nil: none, or it is no check.
func (p *Port) named(m *stun.Message) *Transport {
	r, err := parseRequest(m)
	if err != nil {
		return nil
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.fragments[r.fragment]
}

func addrPortOf(a net.Addr) netip.AddrPort {
	if t, ok := a.(*net.TCPAddr); ok {
		ap := t.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// known returns the path of a viewer that is the same as via: a check with its
// password has come over it.
func (t *Transport) known(via *Path) *Path {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.ice.paths {
		if p.same(via) {
			return p
		}
	}
	return nil
}

// lose forgets a path whose connection has ended.
func (t *Transport) lose(via *Path) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i, p := range t.ice.paths {
		if p.same(via) {
			t.drop(i)
			return
		}
	}
}

// path returns a path like via; nil: the socket cannot send there.
func (p *Port) path(via *Path) *Path {
	if via.tcp != nil {
		return &Path{addr: via.addr, tcp: via.tcp}
	}
	path, err := NewPath(p.conn, via.addr)
	if err != nil {
		return nil
	}
	return path
}

// expect notes whose check a transaction is.
func (p *Port) expect(id [stun.TransactionIDSize]byte, t *Transport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		p.transactions[id] = t
	}
}

// settle forgets a transaction.
func (p *Port) settle(id [stun.TransactionIDSize]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.transactions, id)
}

// lend gives a viewer what comes from an address that a check of it came from,
// unless that is another's.
func (p *Port) lend(path *Path, t *Transport) {
	p.give(path, t, false)
}

// own gives a viewer what comes from an address that has answered its check,
// whoever had it: nobody can answer for another's address.
func (p *Port) own(path *Path, t *Transport) {
	p.give(path, t, true)
}

func (p *Port) give(path *Path, t *Transport, proven bool) {
	if path.tcp != nil {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if o, ok := p.owners[path.addr]; p.closed || ok && o.transport != t && !proven {
		return
	}
	p.owners[path.addr] = owner{transport: t, path: path}
}

// forget takes an address and a transaction from a viewer.
func (p *Port) forget(path *Path, t *Transport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.forgetLocked(path, t)
}

func (p *Port) forgetLocked(path *Path, t *Transport) {
	delete(p.transactions, path.transaction)
	if o := p.owners[path.addr]; path.tcp == nil && o.transport == t {
		delete(p.owners, path.addr)
	}
}

// rename gives a viewer another fragment.
func (p *Port) rename(before, after string, t *Transport) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.fragments, before)
	if !p.closed {
		p.fragments[after] = t
	}
}

// remove forgets a viewer, and closes its TCP connections.
func (p *Port) remove(t *Transport, fragment string, paths []*Path) {
	p.mu.Lock()
	delete(p.fragments, fragment)
	for _, path := range paths {
		p.forgetLocked(path, t)
	}
	p.mu.Unlock()
	for _, path := range paths {
		if path.tcp != nil {
			path.tcp.finish()
		}
	}
}

// Close closes the sockets and all TCP connections, and waits for their readers.
// The transports should be closed before. A second call does nothing.
func (p *Port) Close() error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return nil
	}
	p.closed = true
	p.mu.Unlock()
	err := p.conn.Close()
	if p.listener != nil {
		err = errors.Join(err, p.listener.Close())
	}
	p.readers.Wait()
	if err != nil {
		return fmt.Errorf("close the media port: %w", err)
	}
	return nil
}
