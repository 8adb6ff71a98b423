// Package certs is a small certificate authority for those who have none, and
// the TLS configurations of Fanlight's processes.
//
// The authority is a directory with ca.pem and ca-key.pem ([Init]). It issues
// one certificate per process ([Authority.Issue]), good as a client's and, but
// for operators, as a server's, whose URI names its owner:
// fanlight://node/node-1. Package rpc reads that name back from clients, and
// [RequireRole] has clients look at that of servers, so that a node can't pass
// as a control plane; host names and addresses serve only to verify servers.
//
// Keys are ECDSA P-256 (RFC 5480), which browsers accept as well, in files that
// only their owner may read. There is no revocation and no renewal: a
// certificate that must go is replaced together with the authority, and a
// process picks a new certificate up from the same files without a restart
// (see [ServerTLS]). Whoever has a certificate authority already should use
// that one.
package certs

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"time"

	"fanlight/internal/rpc"
)

// The authority's files in its directory.
const (
	CAFile    = "ca.pem"
	CAKeyFile = "ca-key.pem"
)

// How long certificates are valid. They begin to be an hour early, for clocks
// that are slow.
const (
	DefaultCAValidity = 10 * 365 * 24 * time.Hour
	DefaultValidity   = 365 * 24 * time.Hour

	maxValidity = 20 * 365 * 24 * time.Hour
	early       = time.Hour
)

// Authority issues certificates.
type Authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Init makes an authority in dir, which is created if need be. It refuses to
// replace one: every certificate that it issued would become worthless.
// validity 0: DefaultCAValidity.
func Init(dir, commonName string, validity time.Duration) error {
	if validity == 0 {
		validity = DefaultCAValidity
	}
	if err := checkValidity(validity); err != nil {
		return err
	}
	for _, f := range []string{CAFile, CAKeyFile} {
		if _, err := os.Lstat(filepath.Join(dir, f)); err == nil {
			return fmt.Errorf("%s is there already: %w", filepath.Join(dir, f), fs.ErrExist)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	tmpl, err := template(validity)
	if err != nil {
		return err
	}
	tmpl.Subject = pkix.Name{CommonName: commonName}
	tmpl.IsCA = true
	tmpl.MaxPathLenZero = true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return err
	}
	return write(filepath.Join(dir, CAFile), filepath.Join(dir, CAKeyFile), [][]byte{der}, key)
}

// Open reads the authority in dir.
func Open(dir string) (*Authority, error) {
	cert, err := readCert(filepath.Join(dir, CAFile))
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w (make one with \"fanlight certs init\")", err)
	}
	key, err := readKey(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, fmt.Errorf("certificate authority: %w", err)
	}
	if !cert.IsCA || !key.PublicKey.Equal(cert.PublicKey) {
		return nil, fmt.Errorf("certificate authority: %s is not the certificate of the key in %s", CAFile, CAKeyFile)
	}
	return &Authority{cert, key}, nil
}

// Request says what a certificate is for.
type Request struct {
	Role rpc.Role
	Name string
	// Hosts are the host names and IP addresses that the process is reached at.
	// Empty: localhost, 127.0.0.1 and ::1. Operators and monitors have none.
	Hosts    []string
	Validity time.Duration // 0: DefaultValidity
}

// nameSyntax is that of node names, with upper case and dots for operators.
var nameSyntax = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9.@_-]{0,61}[A-Za-z0-9])?$`)

// Issue writes a new key and its certificate to certFile and keyFile and
// replaces what was there, so that a running process can be given a new one.
func (a *Authority) Issue(req Request, certFile, keyFile string) error {
	tmpl, err := a.leaf(req)
	if err != nil {
		return err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, key.Public(), a.key)
	if err != nil {
		return err
	}
	return write(certFile, keyFile, [][]byte{der}, key)
}

func (a *Authority) leaf(req Request) (*x509.Certificate, error) {
	if !req.Role.Valid() {
		return nil, fmt.Errorf("role %q is not one of %v", req.Role, rpc.Roles())
	}
	if !nameSyntax.MatchString(req.Name) {
		return nil, fmt.Errorf("name %q must be 1 to 63 letters, digits, \".\", \"_\", \"@\" and \"-\"", req.Name)
	}
	if req.Validity == 0 {
		req.Validity = DefaultValidity
	}
	if err := checkValidity(req.Validity); err != nil {
		return nil, err
	}
	serves := req.Role != rpc.RoleOperator && req.Role != rpc.RoleMonitor
	if !serves && len(req.Hosts) > 0 {
		return nil, fmt.Errorf("hosts are for servers, and the role %s is of none; leave them out", req.Role)
	}
	if serves && len(req.Hosts) == 0 {
		req.Hosts = []string{"localhost", "127.0.0.1", "::1"}
	}
	tmpl, err := template(req.Validity)
	if err != nil {
		return nil, err
	}
	if tmpl.NotAfter.After(a.cert.NotAfter) {
		tmpl.NotAfter = a.cert.NotAfter
	}
	uri, err := url.Parse(rpc.IdentityURI(req.Role, req.Name))
	if err != nil {
		return nil, err
	}
	tmpl.Subject = pkix.Name{CommonName: req.Name, OrganizationalUnit: []string{string(req.Role)}}
	tmpl.URIs = []*url.URL{uri}
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if serves {
		tmpl.ExtKeyUsage = append(tmpl.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	}
	for _, h := range req.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else if hostSyntax.MatchString(h) {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		} else {
			return nil, fmt.Errorf("host %q is neither a host name nor an IP address (give it without a port)", h)
		}
	}
	return tmpl, nil
}

// hostSyntax is a host name's (RFC 1123 §2.1), with a wildcard as its first
// label allowed (RFC 6125 §6.4.3).
var hostSyntax = regexp.MustCompile(`^(\*\.)?([A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)*[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

func checkValidity(d time.Duration) error {
	if d < time.Minute || d > maxValidity {
		return fmt.Errorf("validity %v must be between 1m and %v", d, maxValidity)
	}
	return nil
}

func template(validity time.Duration) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127)) // RFC 5280 §4.1.2.2
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber:          serial.Add(serial, big.NewInt(1)),
		NotBefore:             now.Add(-early),
		NotAfter:              now.Add(validity),
		BasicConstraintsValid: true,
	}, nil
}

// write puts the key first, so that who sees the new certificate finds its key.
func write(certFile, keyFile string, ders [][]byte, key *ecdsa.PrivateKey) error {
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := replace(keyFile, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})); err != nil {
		return err
	}
	var chain []byte
	for _, der := range ders {
		chain = append(chain, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
	}
	return replace(certFile, 0o644, chain)
}

// replace writes a file so that a reader sees the old or the new one whole.
func replace(path string, perm fs.FileMode, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".fanlight-*") // with 0600
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(perm), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func readCert(path string) (*x509.Certificate, error) {
	block, err := readPEM(path, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return cert, nil
}

func readKey(path string) (*ecdsa.PrivateKey, error) {
	block, err := readPEM(path, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("%s: not a PKCS #8 key", path)
	}
	ec, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: not an ECDSA key", path)
	}
	return ec, nil
}

func readPEM(path, kind string) (*pem.Block, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(data)
	if block == nil || block.Type != kind {
		return nil, fmt.Errorf("%s: does not begin with a PEM block %q", path, kind)
	}
	return block, nil
}
