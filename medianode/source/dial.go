package source

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/base"

	"fanlight/internal/fleet"
)

// dialAllowed resolves a host and opens a TCP connection to one of its addresses
// that are allowed.
func (s *Source) dialAllowed(ctx context.Context, network, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, failed(fleet.ReasonProtocolError, "the URL's host and port cannot be used")
	}
	addrs, err := s.resolve(ctx, host)
	if err != nil {
		return nil, err
	}
	return s.dialAny(ctx, network, address, addrs)
}

// dial is dialAny for RTSP.
func (s *Source) dial(ctx context.Context, network, address string, addrs []netip.Addr) (net.Conn, error) {
	conn, err := s.dialAny(ctx, network, address, addrs)
	if err != nil {
		return nil, err
	}
	s.counters.connects.Add(1)
	return conn, nil
}

// dialAny opens a TCP connection to a port of a host that has been resolved: it
// dials the addresses, which are allowed, in the resolver's order.
func (s *Source) dialAny(ctx context.Context, network, address string, addrs []netip.Addr) (net.Conn, error) {
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, failed(fleet.ReasonProtocolError, "the URL's host and port cannot be used")
	}
	var last error
	for i, addr := range addrs {
		// Leave time for the others.
		share := s.cfg.Timeouts.Request / time.Duration(len(addrs)-i)
		if deadline, ok := ctx.Deadline(); ok {
			share = time.Until(deadline) / time.Duration(len(addrs)-i)
		}
		dialer := net.Dialer{Timeout: share}
		conn, err := dialer.DialContext(ctx, network, net.JoinHostPort(addr.String(), port))
		if err == nil {
			return conn, nil
		}
		last = err
	}
	return nil, last
}

// resolve returns the addresses of a host that are allowed: at least one.
func (s *Source) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeouts.Request)
	defer cancel()
	addrs, err := s.cfg.Resolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, err
	}
	var allowed []netip.Addr
	for _, addr := range addrs {
		if s.allowed(addr) {
			allowed = append(allowed, addr.Unmap())
		}
	}
	if len(allowed) == 0 {
		return nil, failed(fleet.ReasonNetworkForbidden, fmt.Sprintf(
			"%s is in none of the networks that this node may dial: change the URL, or allow the network with --camera-networks", quote(host, s.cfg.Credentials)))
	}
	const most = 8 // addresses that one name may make us dial
	return allowed[:min(len(allowed), most)], nil
}

// allowed tells whether cameras may be at an address.
func (s *Source) allowed(addr netip.Addr) bool {
	return len(s.cfg.Networks) == 0 || s.inNetworks(addr)
}

// inNetworks tells whether an address is in a network that was named.
func (s *Source) inNetworks(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	for _, p := range s.cfg.Networks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// dialTLS is dial and a handshake, which gortsplib would leave without a limit
// in time.
func (s *Source) dialTLS(ctx context.Context, network, address string, addrs []netip.Addr) (net.Conn, error) {
	conn, err := s.dial(ctx, network, address, addrs)
	if err != nil {
		return nil, err
	}
	return s.secure(ctx, conn, address)
}

// secure does the TLS handshake on a connection, or closes it.
func (s *Source) secure(ctx context.Context, conn net.Conn, address string) (net.Conn, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	secured := tls.Client(conn, s.tlsConfig(host))
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close() // the handshake's error says more
		if errors.Is(err, context.DeadlineExceeded) {
			return nil, noTLS(quote(address, s.cfg.Credentials))
		}
		if cut(err) { // by a camera that starts, or by one that does not know what it was sent
			return nil, failed(fleet.ReasonConnectionClosed, "the camera closed the connection in the TLS handshake: if it does not speak TLS on "+
				quote(address, s.cfg.Credentials)+", use rtsp://, or the port of its rtsps service")
		}
		return nil, fmt.Errorf("tls handshake: %w", err)
	}
	return secured, nil
}

func (s *Source) tlsConfig(host string) *tls.Config {
	want := s.cfg.Profile.TLSFingerprint
	if want == "" {
		return &tls.Config{ServerName: host, RootCAs: s.cfg.RootCAs, MinVersion: tls.VersionTLS12}
	}
	return &tls.Config{
		ServerName: host,
		MinVersion: tls.VersionTLS12,
		// The certificate itself is compared below, with or without a valid chain.
		InsecureSkipVerify: true, //nolint:gosec // verified by VerifyConnection
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return failed(fleet.ReasonTLSFailed, "the camera has no certificate")
			}
			sum := sha256.Sum256(state.PeerCertificates[0].Raw)
			if got := hex.EncodeToString(sum[:]); got != want {
				return failed(fleet.ReasonTLSFailed, "the camera's certificate is not the pinned one: it has the SHA-256 fingerprint "+got+
					"; if the camera's certificate was changed on purpose, pin that")
			}
			return nil
		},
	}
}

// withCredentials returns the URL with the credentials in place of any it had.
func withCredentials(u *base.URL, creds fleet.Credentials) *base.URL {
	u = u.CloneWithoutCredentials()
	if !creds.IsZero() {
		u.User = url.UserPassword(creds.Username, creds.Password)
	}
	return u
}

// redirectError is the answer of a camera that wants to be asked elsewhere.
type redirectError struct{ location string }

func (*redirectError) Error() string { return "redirected" }

// redirect returns where to go on. The credentials go along to the same host
// only.
func redirect(from *base.URL, location string) (*base.URL, *failure) {
	to, err := base.ParseURL(location)
	switch {
	case err != nil || to.Hostname() == "":
		return nil, failed(fleet.ReasonProtocolError, "the camera redirects to something that is no rtsp or rtsps URL: set the URL of the stream itself")
	case from.Scheme == "rtsps" && to.Scheme != "rtsps":
		return nil, failed(fleet.ReasonTLSFailed, "the camera redirects from rtsps to rtsp, which is not followed: set the rtsp URL if that is good enough")
	}
	to = to.CloneWithoutCredentials()
	if to.Hostname() == from.Hostname() {
		to.User = from.User
	}
	return to, nil
}
