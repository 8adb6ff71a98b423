package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"os"
	"slices"
	"sync"
	"time"

	"fanlight/internal/rpc"
)

// identityScheme is that of the URIs which package rpc reads.
const identityScheme = "fanlight"

// recheck is how long a change of a certificate's files may go unnoticed.
const recheck = time.Second

// Files names a process' certificate files, all PEM.
type Files struct {
	Cert string // the certificate, and the intermediates after it
	Key  string
	CA   string // the roots that the other side is verified by
}

// ServerTLS returns a server's configuration, TLS 1.2 and later. With CA, a
// client that presents a certificate must present one that CA signed, and one
// that presents none is still let in: what it may do is another question.
// Certificate, key and CA are read anew when their files change; if that fails
// the old ones stay and onError (may be nil) is told.
func (f Files) ServerTLS(onError func(error)) (*tls.Config, error) {
	if f.Cert == "" || f.Key == "" {
		return nil, errors.New("a TLS server needs a certificate and its key")
	}
	pair, err := newReloader([]string{f.Cert, f.Key}, f.loadPair, onError)
	if err != nil {
		return nil, err
	}
	cfg := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair.get(), nil },
	}
	if f.CA == "" {
		return cfg, nil
	}
	roots, err := newReloader([]string{f.CA}, f.loadRoots, onError)
	if err != nil {
		return nil, err
	}
	cfg.ClientAuth = tls.VerifyClientCertIfGiven
	cfg.ClientCAs = roots.get()
	base := cfg.Clone()
	// gRPC sets NextProtos on its copy of cfg, which is not the one that is
	// returned here: name the protocols of both kinds of servers.
	base.NextProtos = []string{"h2", "http/1.1"}
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if now := roots.get(); !now.Equal(base.ClientCAs) {
			c := base.Clone()
			c.ClientCAs = now
			return c, nil
		}
		return nil, nil
	}
	return cfg, nil
}

// ClientTLS returns a client's configuration, TLS 1.2 and later. Without CA
// servers are verified by the system's roots; without Cert and Key the client
// has no certificate. Certificate and key are read anew when their files
// change, CA is not.
func (f Files) ClientTLS(onError func(error)) (*tls.Config, error) {
	cfg := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CA != "" {
		roots, err := f.loadRoots()
		if err != nil {
			return nil, err
		}
		cfg.RootCAs = roots
	}
	if (f.Cert == "") != (f.Key == "") {
		return nil, errors.New("a certificate and its key must be given together")
	}
	if f.Cert != "" {
		pair, err := newReloader([]string{f.Cert, f.Key}, f.loadPair, onError)
		if err != nil {
			return nil, err
		}
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return pair.get(), nil }
	}
	return cfg, nil
}

// RequireRole has a client refuse servers whose certificate names none of the
// roles; that it is of the right authority and host is verified before. With
// unnamed, a certificate without any fanlight:// URI is accepted as well: that
// of an authority which knows nothing of roles.
func RequireRole(cfg *tls.Config, unnamed bool, roles ...rpc.Role) {
	cfg.VerifyConnection = func(state tls.ConnectionState) error {
		if len(state.PeerCertificates) == 0 {
			return errors.New("the server has no certificate")
		}
		leaf := state.PeerCertificates[0]
		named := slices.ContainsFunc(leaf.URIs, func(u *url.URL) bool { return u.Scheme == identityScheme })
		if !named && unnamed {
			return nil
		}
		id, err := rpc.CertificateIdentity(leaf)
		if err != nil {
			return fmt.Errorf("server: %w; it must be of the role %v", err, roles)
		}
		if !slices.Contains(roles, id.Role) {
			return fmt.Errorf("the server's certificate is of the %s %q, and must be of the role %v", id.Role, id.Name, roles)
		}
		return nil
	}
}

// Leaf returns the certificate itself, to see whom it names.
func (f Files) Leaf() (*x509.Certificate, error) {
	pair, err := f.loadPair()
	if err != nil {
		return nil, err
	}
	return pair.Leaf, nil
}

func (f Files) loadPair() (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(f.Cert, f.Key)
	if err != nil {
		return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
	}
	return &pair, nil
}

func (f Files) loadRoots() (*x509.CertPool, error) {
	data, err := os.ReadFile(f.CA)
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("certificate authority: %s has no PEM certificate", f.CA)
	}
	return pool, nil
}

// reloader keeps what was loaded from files and loads it anew when they change.
type reloader[T any] struct {
	// Static after newReloader.
	paths   []string
	load    func() (T, error)
	onError func(error)

	mu      sync.Mutex // guards the rest
	value   T
	stamps  []stamp
	checked time.Time
}

type stamp struct {
	mod  time.Time
	size int64
}

func newReloader[T any](paths []string, load func() (T, error), onError func(error)) (*reloader[T], error) {
	r := &reloader[T]{paths: paths, load: load, onError: onError}
	r.stamps = r.stat()
	v, err := load()
	if err != nil {
		return nil, err
	}
	r.value, r.checked = v, time.Now()
	return r, nil
}

// get returns the value after a look at the files, if one is due.
func (r *reloader[T]) get() T {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.checked) < recheck {
		return r.value
	}
	r.checked = time.Now()
	stamps := r.stat()
	changed := false
	for i := range stamps {
		changed = changed || stamps[i] != r.stamps[i]
	}
	if !changed {
		return r.value
	}
	r.stamps = stamps
	v, err := r.load()
	if err != nil {
		if r.onError != nil {
			r.onError(fmt.Errorf("not reloaded: %w", err))
		}
		return r.value
	}
	r.value = v
	return v
}

// stat returns a stamp a file; the zero stamp for one that is not there.
func (r *reloader[T]) stat() []stamp {
	stamps := make([]stamp, len(r.paths))
	for i, p := range r.paths {
		if info, err := os.Stat(p); err == nil {
			stamps[i] = stamp{info.ModTime(), info.Size()}
		}
	}
	return stamps
}
