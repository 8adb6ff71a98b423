package fanout

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/srtp/v3"
	"github.com/pion/transport/v5/packetio"
)

// How long a part of joining may take, on a machine that is busy with others'.
const (
	joinLimit  = 30 * time.Second
	firstCheck = 100 * time.Millisecond // until a check is sent again; twice as long each time
)

// identity is the certificate of all viewers.
type identity struct {
	cert        tls.Certificate
	fingerprint string // SHA-256, as in SDP (RFC 8122 §5)
}

func newIdentity() (*identity, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(der)
	return &identity{
		cert:        tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key},
		fingerprint: strings.ReplaceAll(fmt.Sprintf("% X", sum[:]), " ", ":"),
	}, nil
}

// newViewer opens a viewer's socket. The viewer must leave.
func newViewer(r *reader, camera int, lossy float64) (*viewer, error) {
	v := &viewer{camera: camera, lossy: lossy, reader: r, creds: newCredentials(), inbox: packetio.NewBuffer(), nominated: make(chan struct{}, 1)}
	v.inbox.SetLimitSize(64 << 10)
	var err error
	if v.socket, err = newSocket(v, r.whole); err != nil {
		return nil, err
	}
	if err := r.add(v.socket); err != nil {
		v.socket.close()
		return nil, err
	}
	return v, nil
}

// join has a viewer join at a WHEP endpoint, until it has its keys. It must
// leave also if join fails.
func (v *viewer) join(ctx context.Context, client *http.Client, endpoint string, id *identity) error {
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	text, err := v.post(ctx, client, endpoint, offer(v.creds, v.socket.addr, id.fingerprint))
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	a, err := parseAnswer(text)
	if err != nil {
		return fmt.Errorf("join: %w", err)
	}
	if err := v.nominate(ctx, a); err != nil {
		return fmt.Errorf("join: ICE: %w", err)
	}
	if err := v.handshake(ctx, id, a); err != nil {
		return fmt.Errorf("join: DTLS: %w", err)
	}
	return nil
}

// post sends the offer and returns the answer.
func (v *viewer) post(ctx context.Context, client *http.Client, endpoint, offer string) (string, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(offer))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/sdp")
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }() // it was read
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if resp.StatusCode/100 != 2 {
		return "", &refusal{resp.StatusCode, string(bytes.TrimSpace(body[:min(len(body), 500)]))}
	}
	if at, err := url.Parse(resp.Header.Get("Location")); err == nil && at.String() != "" {
		v.resource = req.URL.ResolveReference(at).String()
	}
	return string(body), nil
}

// refusal is an HTTP error.
type refusal struct {
	status int
	body   string
}

func (r *refusal) Error() string { return fmt.Sprintf("HTTP %d: %s", r.status, r.body) }

// final tells whether it is of no use to ask again.
func (r *refusal) final() bool {
	return r.status/100 == 4 && r.status != http.StatusTooManyRequests && r.status != http.StatusRequestTimeout
}

// nominate sends a check until the server answers it (RFC 8445 §7.2.2).
func (v *viewer) nominate(ctx context.Context, a *answer) error {
	v.reader.mu.Lock()
	v.server = a
	m, err := v.check()
	if err == nil {
		v.transaction = m.TransactionID
	}
	v.reader.mu.Unlock()
	if err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for wait := firstCheck; ; wait *= 2 {
		v.write(m.Raw)
		timer.Reset(wait)
		select {
		case <-v.nominated:
			return nil
		case <-timer.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// handshake makes the DTLS connection and takes the SRTP keys (RFC 5764 §4.2).
func (v *viewer) handshake(ctx context.Context, id *identity, a *answer) error {
	verify := func(certs [][]byte, _ [][]*x509.Certificate) error {
		if len(certs) == 0 {
			return errors.New("the server has no certificate")
		}
		if sum := sha256.Sum256(certs[0]); !bytes.Equal(sum[:], a.fingerprint) {
			return errors.New("the server's certificate is not the one of its answer")
		}
		return nil
	}
	opts := []dtls.Option{
		dtls.WithCertificates(id.cert), dtls.WithInsecureSkipVerify(true), dtls.WithVerifyPeerCertificate(verify),
		dtls.WithExtendedMasterSecret(dtls.RequireExtendedMasterSecret),
		dtls.WithSRTPProtectionProfiles(dtls.SRTP_AEAD_AES_128_GCM, dtls.SRTP_AEAD_AES_256_GCM, dtls.SRTP_AES128_CM_HMAC_SHA1_80),
	}
	var err error
	if a.active {
		all := []dtls.ServerOption{dtls.WithClientAuth(dtls.RequireAnyClientCert)}
		for _, o := range opts {
			all = append(all, o)
		}
		v.secure, err = dtls.ServerWithOptions(datagrams{v.inbox, v}, from(a.remote), all...)
	} else {
		var all []dtls.ClientOption
		for _, o := range opts {
			all = append(all, o)
		}
		v.secure, err = dtls.ClientWithOptions(datagrams{v.inbox, v}, from(a.remote), all...)
	}
	if err != nil {
		return err
	}
	if err := v.secure.HandshakeContext(ctx); err != nil {
		return err
	}
	k, err := exportKeys(v.secure, !a.active)
	if err != nil {
		return err
	}
	v.reader.mu.Lock()
	defer v.reader.mu.Unlock()
	v.keys = k
	v.reader.viewers = append(v.reader.viewers, v)
	return nil
}

func exportKeys(conn *dtls.Conn, client bool) (*keys, error) {
	profile, ok := conn.SelectedSRTPProtectionProfile()
	state, known := conn.ConnectionState()
	if !ok || !known {
		return nil, errors.New("no SRTP profile was agreed on")
	}
	cfg := srtp.Config{Profile: srtp.ProtectionProfile(profile)}
	if err := cfg.ExtractSessionKeysFromDTLS(&state, client); err != nil {
		return nil, err
	}
	in, err := srtp.CreateContext(cfg.Keys.RemoteMasterKey, cfg.Keys.RemoteMasterSalt, cfg.Profile)
	if err != nil {
		return nil, err
	}
	out, err := srtp.CreateContext(cfg.Keys.LocalMasterKey, cfg.Keys.LocalMasterSalt, cfg.Profile)
	if err != nil {
		return nil, err
	}
	return &keys{in: in, out: out}, nil
}

// leave says goodbye. Errors are of servers that have gone before.
func (v *viewer) leave(ctx context.Context, client *http.Client) {
	if v.resource != "" {
		if req, err := http.NewRequestWithContext(ctx, http.MethodDelete, v.resource, http.NoBody); err == nil {
			if resp, err := client.Do(req); err == nil {
				_ = resp.Body.Close()
			}
		}
	}
	if v.secure != nil {
		_ = v.secure.Close()
	}
	_ = v.inbox.Close()
	v.reader.remove(v)
}

// datagrams is a viewer's socket as package dtls wants it: DTLS alone.
type datagrams struct {
	*packetio.Buffer
	v *viewer
}

// ReadFrom returns the next DTLS datagram.
func (d datagrams) ReadFrom(b []byte) (int, net.Addr, error) {
	n, _, err := d.Read(b, nil)
	return n, d.RemoteAddr(), err
}

// WriteTo sends to the server; there is no other.
func (d datagrams) WriteTo(b []byte, _ net.Addr) (int, error) {
	return len(b), d.v.socket.send(b, d.v.server.remote)
}

// RemoteAddr is the server's.
func (d datagrams) RemoteAddr() net.Addr { return from(d.v.server.remote) }

// LocalAddr is the socket's.
func (d datagrams) LocalAddr() net.Addr { return from(d.v.socket.addr) }

// SetDeadline is SetReadDeadline: writes do not wait.
func (d datagrams) SetDeadline(t time.Time) error { return d.SetReadDeadline(t) }

// SetWriteDeadline does nothing.
func (d datagrams) SetWriteDeadline(time.Time) error { return nil }
