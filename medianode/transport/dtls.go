package transport

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/fingerprint"
	"github.com/pion/srtp/v3"
	"github.com/pion/transport/v5/deadline"
)

// Profile is how SRTP is protected (RFC 3711, RFC 7714).
type Profile = srtp.ProtectionProfile

// Keys are what the node seals SRTP and SRTCP with (RFC 5764 §4.2).
type Keys struct {
	Profile Profile
	Key     []byte // master key
	Salt    []byte // master salt
}

// profiles in the order of what a packet costs: 0.5, 0.7 and 4.2 µs.
func profiles() []dtls.SRTPProtectionProfile {
	return []dtls.SRTPProtectionProfile{dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AEAD_AES_256_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80}
}

const (
	// recordQueue is how many DTLS datagrams of one viewer may wait. A handshake
	// has flights of up to five.
	recordQueue = 16
	// maxRecord is a DTLS datagram's greatest size in bytes.
	maxRecord = 2048
	// recordMTU is the size of ours: below what tunnels leave of 1,500.
	recordMTU = 1200
	// certificateLife is how long the certificate says it is valid. Nobody looks:
	// it is its fingerprint that counts (RFC 8122 §6).
	certificateLife = 10 * 365 * 24 * time.Hour
)

// newCertificate returns a self-signed certificate (RFC 8827 §6.5: ECDSA with
// P-256) and its fingerprint as in SDP (RFC 8122 §5).
func newCertificate() (tls.Certificate, string, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, "", fmt.Errorf("make a DTLS key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return tls.Certificate{}, "", fmt.Errorf("make a DTLS certificate: %w", err)
	}
	now := time.Now()
	template := x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "WebRTC"},
		NotBefore: now.Add(-24 * time.Hour), NotAfter: now.Add(certificateLife),
	}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, "", fmt.Errorf("make a DTLS certificate: %w", err)
	}
	sum := sha256.Sum256(der)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		"sha-256 " + strings.ToUpper(strings.ReplaceAll(fmt.Sprintf("% x", sum), " ", ":")), nil
}

// CheckFingerprints tells whether there is one that a certificate could have, of
// those in an offer: "sha-256 AB:CD:…". Hashes that are broken do not count.
func CheckFingerprints(list []string) error {
	for _, f := range list {
		name, value, _ := strings.Cut(f, " ")
		if _, ok := usableHash(name); ok && value != "" {
			return nil
		}
	}
	return errors.New("no fingerprint is of the form \"sha-256 AB:CD:…\" (RFC 8122 §5)")
}

func usableHash(name string) (string, bool) {
	switch name = strings.ToLower(name); name {
	case "sha-256", "sha-384", "sha-512":
		return name, true
	}
	return name, false
}

// verify tells whether a certificate has one of the fingerprints.
func verify(raw [][]byte, list []string) error {
	if len(raw) == 0 {
		return errors.New("the viewer has no certificate")
	}
	cert, err := x509.ParseCertificate(raw[0])
	if err != nil {
		return fmt.Errorf("the viewer's certificate: %w", err)
	}
	for _, f := range list {
		name, value, _ := strings.Cut(f, " ")
		name, ok := usableHash(name)
		if !ok {
			continue
		}
		hash, err := fingerprint.HashFromString(name)
		if err != nil {
			continue
		}
		if got, err := fingerprint.Fingerprint(cert, hash); err == nil && strings.EqualFold(got, strings.TrimSpace(value)) {
			return nil
		}
	}
	return errors.New("the viewer's certificate has none of its offer's fingerprints")
}

// handshake begins DTLS: the viewer may send its first message at once. The
// caller holds t.mu.
func (t *Transport) handshake() {
	r := newRecords(t)
	conn, err := dtls.ServerWithOptions(r, &net.UDPAddr{}, t.port.dtlsOptions(t.fingerprints)...)
	if err != nil {
		t.end(fmt.Errorf("start DTLS: %w", err))
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	t.dtls, t.records, t.cancel = conn, r, cancel
	t.workers.Go(func() {
		defer cancel()
		keys, rtcp, err := shake(ctx, conn)
		t.mu.Lock()
		defer t.mu.Unlock()
		if err != nil {
			t.end(fmt.Errorf("the DTLS handshake failed: %w", err))
			return
		}
		t.keys = keys
		t.rtcp.Store(rtcp)
		signal(t.changed)
	})
}

// shake does the handshake, and returns the keys to seal with and what opens the
// viewer's SRTCP.
func shake(ctx context.Context, conn *dtls.Conn) (*Keys, *srtcp, error) {
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, nil, err
	}
	state, ok := conn.ConnectionState()
	if !ok {
		return nil, nil, errors.New("no state")
	}
	selected, ok := conn.SelectedSRTPProtectionProfile()
	if !ok {
		return nil, nil, errors.New("the viewer has no SRTP profile of ours (RFC 5764 §4.1.2)")
	}
	cfg := srtp.Config{Profile: Profile(selected)}
	if err := cfg.ExtractSessionKeysFromDTLS(&state, false); err != nil {
		return nil, nil, err
	}
	const window = 64 // of replay protection (RFC 3711 §3.3.2)
	remote, err := srtp.CreateContext(cfg.Keys.RemoteMasterKey, cfg.Keys.RemoteMasterSalt, cfg.Profile, srtp.SRTCPReplayProtection(window))
	if err != nil {
		return nil, nil, err
	}
	return &Keys{Profile: cfg.Profile, Key: cfg.Keys.LocalMasterKey, Salt: cfg.Keys.LocalMasterSalt}, &srtcp{context: remote}, nil
}

// maxSources bounds the SSRCs that one viewer may report as: a context keeps
// something for each. Browsers use one for each section, and 1.
const maxSources = 16

// A DTLS connection that is up has nothing to do but to wait for the viewer's
// goodbye, and three goroutines and some 36 KB to do it with. So it is put to
// rest when the viewer has shown, by SRTCP, that it has all of the handshake that
// it needs: what is left of it is its state, from which it is made anew when
// the viewer sends a record, or to say goodbye ourselves.
//
// A state may be used once only, for two connections would use a nonce twice
// (RFC 5288 §3). rest makes sure that the old one sends nothing more, and the
// new one stays.

// rest puts the DTLS connection to rest.
func (t *Transport) rest() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.dtls == nil || t.keys == nil || t.rested {
		return
	}
	t.rested = true // once: a connection that was woken stays
	conn, r := t.dtls, t.records
	r.mute()
	t.workers.Go(func() {
		state, ok := conn.ConnectionState()
		r.own.Store(true)
		_ = conn.Close() // into the void
		t.mu.Lock()
		defer t.mu.Unlock()
		t.dtls, t.records = nil, nil
		if !ok {
			t.end(errors.New("the DTLS connection has no state"))
			return
		}
		t.resting = &state
		if t.closed {
			return // Close waits for this, and goes on from here
		}
		for _, b := range r.rest() { // what came meanwhile
			if woken := t.woken(); woken != nil {
				woken.take(b, r.from.Load())
			}
		}
	})
}

// woken returns what takes the viewer's records, nil if nothing does. It wakes
// the connection if that rests. The caller holds t.mu.
func (t *Transport) woken() *records {
	if t.resting == nil {
		return t.records
	}
	state := t.resting
	t.resting = nil
	r := newRecords(t)
	conn, err := dtls.ResumeWithOptions(state, r, &net.UDPAddr{}, t.port.resumeOptions()...)
	if err != nil {
		t.end(fmt.Errorf("go on with DTLS: %w", err))
		return nil
	}
	t.dtls, t.records = conn, r
	t.workers.Go(func() {
		if err := conn.Handshake(); err != nil && !t.goodbye.Load() { // begins to read; there is none
			t.mu.Lock()
			defer t.mu.Unlock()
			t.end(fmt.Errorf("go on with DTLS: %w", err))
		}
	})
	return r
}

// srtcp opens what a viewer sends.
type srtcp struct {
	mu      sync.Mutex // guards the rest; held while the caller of Open's OnRTCP runs
	context *srtp.Context
	sources []uint32
}

// take opens one packet into buf and gives it to f. It tells whether it was
// authentic.
func (s *srtcp) take(b, buf []byte, f func([]byte)) bool {
	if len(b) < 8 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	source := binary.BigEndian.Uint32(b[4:])
	known := slices.Contains(s.sources, source)
	if !known && len(s.sources) == maxSources {
		return false
	}
	plain, err := s.context.DecryptRTCP(buf[:0], b, nil)
	if err != nil {
		return false
	}
	if !known {
		s.sources = append(s.sources, source)
	}
	f(plain)
	return true
}

// records is the net.PacketConn under a viewer's DTLS connection.
type records struct {
	transport *Transport
	in        chan []byte // never closed
	from      atomic.Pointer[Path]
	muted     atomic.Bool
	own       atomic.Bool // it is not the viewer who closes
	deadline  *deadline.Deadline

	once   sync.Once
	closed chan struct{} // closed by Close

	mu      sync.Mutex // guards the rest; taken after Transport.mu
	waiting [][]byte   // for a proof of where they go
}

// maxWaiting is how many datagrams wait for the proof of an address. A flight has
// two at most.
const maxWaiting = 4

// release sends what has waited for the proof of a path.
func (r *records) release(p *Path) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.from.Load() != p {
		return
	}
	for _, b := range r.waiting {
		r.transport.port.write(b, p)
	}
	r.waiting = nil
}

func newRecords(t *Transport) *records {
	return &records{transport: t, in: make(chan []byte, recordQueue), closed: make(chan struct{}), deadline: deadline.New()}
}

// mute ends the reading, and lets nothing more out.
func (r *records) mute() {
	r.muted.Store(true)
	r.once.Do(func() { close(r.closed) })
}

// rest returns what has not been read.
func (r *records) rest() (left [][]byte) {
	for {
		select {
		case b := <-r.in:
			left = append(left, b)
		default:
			return left
		}
	}
}

// take queues a datagram; one too many is lost, as on any network.
func (r *records) take(b []byte, from *Path) {
	if len(b) > maxRecord {
		return
	}
	r.from.Store(from)
	select {
	case r.in <- append([]byte(nil), b...):
	default:
	}
}

// ReadFrom waits for a datagram.
func (r *records) ReadFrom(b []byte) (int, net.Addr, error) {
	if r.muted.Load() {
		return 0, nil, net.ErrClosed
	}
	select {
	case in := <-r.in:
		return copy(b, in), &net.UDPAddr{}, nil
	case <-r.closed:
		return 0, nil, net.ErrClosed
	case <-r.deadline.Done():
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo sends a datagram where the latest came from, when that address has
// answered a check of ours: anybody can write another's address on a record.
func (r *records) WriteTo(b []byte, _ net.Addr) (int, error) {
	if r.muted.Load() {
		return len(b), nil
	}
	to := r.from.Load()
	if to == nil {
		to = r.transport.path.Load()
	}
	if to == nil {
		return 0, net.ErrClosed
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case to.proven.Load():
		r.transport.port.write(b, to)
	case len(r.waiting) < maxWaiting:
		r.waiting = append(r.waiting, append([]byte(nil), b...))
	}
	return len(b), nil
}

// Close is called by pion when the viewer has said goodbye, and at the end.
func (r *records) Close() error {
	r.once.Do(func() { close(r.closed) })
	if !r.own.Load() {
		r.transport.goodbye.Store(true)
		signal(r.transport.changed)
	}
	return nil
}

// LocalAddr returns no address in particular.
func (r *records) LocalAddr() net.Addr { return &net.UDPAddr{} }

// SetDeadline sets the deadline of reads; writes do not wait.
func (r *records) SetDeadline(t time.Time) error { return r.SetReadDeadline(t) }

// SetReadDeadline sets the deadline of reads.
func (r *records) SetReadDeadline(t time.Time) error {
	r.deadline.Set(t)
	return nil
}

// SetWriteDeadline does nothing: writes do not wait.
func (r *records) SetWriteDeadline(time.Time) error { return nil }
