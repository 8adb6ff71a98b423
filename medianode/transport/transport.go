package transport

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/stun/v4"

	"fanlight/medianode/udp"
)

// Config is one viewer's transport to be.
type Config struct {
	Remote       Credentials
	Fingerprints []string // of the offer, as "sha-256 AB:CD:…"; the certificate must have one
	// OnRTCP takes what the viewer sends, authenticated and decrypted: a compound
	// packet (RFC 3550 §6.1) or a reduced-size one (RFC 5506), not checked. It is
	// called by the goroutines that read, one call at a time, must not block, and
	// may still be called while Close runs. b is valid during the call only.
	OnRTCP func(b []byte)
}

// Transport is one viewer's way: ICE and DTLS. Its methods may be called from
// any goroutine.
type Transport struct {
	// Static after Open.
	port         *Port
	fingerprints []string
	onRTCP       func([]byte)
	changed      chan struct{} // holds a token while there may be something new; never closed

	path    atomic.Pointer[Path] // where media goes; nil: nowhere
	rtcp    atomic.Pointer[srtcp]
	heard   atomic.Int64 // unix nanoseconds, of the latest authentic packet
	settled atomic.Bool  // the viewer has sent SRTCP
	goodbye atomic.Bool  // the viewer has closed its DTLS connection, or we have
	workers sync.WaitGroup
	closing sync.Once

	mu      sync.Mutex // guards the rest; taken before Port.mu
	ice     ice
	dtls    *dtls.Conn // nil before the first check, and while it rests
	records *records
	resting *dtls.State        // of a DTLS connection that rests
	rested  bool               // it was put to rest, and may have been woken
	cancel  context.CancelFunc // ends the handshake; nil: it has not begun
	keys    *Keys              // nil before DTLS is up
	failure error
	closed  bool
}

// State is how far a transport is.
type State int

// The states.
const (
	Connecting State = iota
	Connected        // DTLS is up, and there was a path
	Failed           // DTLS failed: Err says why
	Closed           // the viewer has said goodbye, or Close was called
)

// Path is one way to a viewer.
type Path struct {
	// Static.
	addr netip.AddrPort
	dest udp.Dest // not over TCP
	tcp  *tcpPath // nil: UDP

	heard  atomic.Int64 // unix nanoseconds, of the latest answer to a check of ours, or SRTCP
	proven atomic.Bool  // it has answered a check

	// Guarded by Transport.mu.
	priority    uint32
	nominated   bool
	wanted      time.Time // when it was nominated last
	verified    bool      // it has answered a check of this ICE generation
	checked     time.Time // when a check came from it last
	asked       time.Time // when it was checked last
	transaction [stun.TransactionIDSize]byte
}

func (p *Path) same(q *Path) bool { return p.addr == q.addr && p.tcp == q.tcp }

// NewPath returns a path over UDP to an address that need not answer: for
// measurements. A viewer's paths are the port's.
func NewPath(conn *udp.Conn, to netip.AddrPort) (*Path, error) {
	p := &Path{addr: to}
	var err error
	if p.dest, err = conn.Dest(to); err != nil {
		return nil, fmt.Errorf("make a path: %w", err)
	}
	return p, nil
}

// Dest returns where to send over UDP; nil if this is a TCP connection.
func (p *Path) Dest() *udp.Dest {
	if p.tcp != nil {
		return nil
	}
	return &p.dest
}

// Addr returns the viewer's address.
func (p *Path) Addr() netip.AddrPort { return p.addr }

// Send queues a packet on a path over TCP. False: there is no room, or what
// waits has waited for too long; the packet is lost.
func (p *Path) Send(b []byte, now time.Time) bool { return p.tcp.send(b, now) }

// Clear tells whether nothing waits to be sent over TCP, but for what the system
// has.
func (p *Path) Clear() bool { return p.tcp == nil || p.tcp.clear() }

// Changed returns the channel that has a token when something may have changed:
// State, Path, or that there is something to Punch. It has one reader.
func (t *Transport) Changed() <-chan struct{} { return t.changed }

// State returns the state, and for Failed why.
func (t *Transport) State() (State, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.failure != nil:
		return Failed, t.failure
	case t.closed || t.goodbye.Load():
		return Closed, nil
	case t.keys != nil && t.path.Load() != nil:
		return Connected, nil
	}
	return Connecting, nil
}

// Keys returns what to seal with, once Connected.
func (t *Transport) Keys() *Keys {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.keys
}

// Path returns where media goes now; nil: nowhere.
func (t *Transport) Path() *Path { return t.path.Load() }

// Route returns what Path reads: for who sends a burst to thousands, and does not
// want to look at each transport for it.
func (t *Transport) Route() *atomic.Pointer[Path] { return &t.path }

// Silence returns for how long the viewer has sent nothing that is authentic.
func (t *Transport) Silence(now time.Time) time.Duration {
	return now.Sub(time.Unix(0, t.heard.Load()))
}

// Local returns our credentials of the present ICE generation.
func (t *Transport) Local() Credentials {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.ice.local
}

// Restart begins another ICE generation (RFC 8445 §2.4) and returns our
// credentials. Media keeps its path until there is one of the new generation.
func (t *Transport) Restart(remote Credentials) (Credentials, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.failure != nil {
		return Credentials{}, errors.New("the transport has ended")
	}
	present := t.path.Load()
	t.ice.paths = slices.DeleteFunc(t.ice.paths, func(p *Path) bool {
		if p == present {
			t.port.settle(p.transaction)
			p.nominated, p.verified, p.checked, p.transaction = false, false, time.Time{}, [stun.TransactionIDSize]byte{}
			return false
		}
		t.port.forget(p, t)
		if p.tcp != nil {
			p.tcp.finish()
		}
		return true
	})
	t.ice.punching = nil
	before := t.ice.local.Fragment
	t.ice.begin(newCredentials(), remote)
	t.port.rename(before, t.ice.local.Fragment, t)
	return t.ice.local, nil
}

// end ends the transport with an error. The caller holds t.mu.
func (t *Transport) end(err error) {
	if t.failure == nil && !t.closed {
		t.failure = err
		signal(t.changed)
	}
}

// Close says goodbye to the viewer, ends what belongs to it and waits for that. A
// second call waits for the first. It must not be called by OnRTCP.
func (t *Transport) Close() { t.closing.Do(t.close) }

func (t *Transport) close() {
	t.mu.Lock()
	t.closed = true
	if t.cancel != nil {
		t.cancel()
	}
	t.mu.Unlock()
	t.workers.Wait() // a handshake, or that a connection is put to rest
	t.mu.Lock()
	t.woken()
	conn := t.dtls
	t.mu.Unlock()
	t.workers.Wait()
	if conn != nil {
		_ = conn.Close() // says goodbye if there is somebody to hear it
	}
	t.mu.Lock()
	paths := t.ice.paths
	t.ice.paths = nil
	t.path.Store(nil)
	fragment := t.ice.local.Fragment
	t.mu.Unlock()
	t.port.remove(t, fragment, paths)
	signal(t.changed)
}

// datagram takes a DTLS record or SRTCP that came over a path. buf is for the
// SRTCP.
func (t *Transport) datagram(b, buf []byte, via *Path) {
	if isDTLS(b) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.closed {
			return
		}
		if r := t.woken(); r != nil {
			r.take(b, via)
		}
		return
	}
	rtcp := t.rtcp.Load()
	if rtcp == nil || !rtcp.take(b, buf, t.onRTCP) {
		return
	}
	if !t.settled.Swap(true) {
		t.rest()
	}
	now := time.Now().UnixNano()
	via.heard.Store(now)
	t.heard.Store(now)
}

// String says where the viewer is, for logs.
func (p *Path) String() string {
	if p == nil {
		return "none"
	}
	if p.tcp != nil {
		return fmt.Sprintf("tcp %v", p.addr)
	}
	return fmt.Sprintf("udp %v", p.addr)
}

// The first byte tells the protocols apart (RFC 7983 §7), the second RTCP from
// RTP (RFC 5761 §4).

func isSTUN(b []byte) bool { return len(b) >= 20 && b[0] < 4 }
func isDTLS(b []byte) bool { return len(b) > 0 && b[0] >= 20 && b[0] < 64 }
func isRTCP(b []byte) bool {
	return len(b) >= 8 && b[0] >= 128 && b[0] < 192 && b[1] >= 192 && b[1] < 224
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
