package certs_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fanlight/internal/certs"
	"fanlight/internal/rpc"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// authority makes one in a directory of its own.
func authority(t *testing.T) (*certs.Authority, string) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if err := certs.Init(dir, "Test CA", 0); err != nil {
		t.Fatal(err)
	}
	ca, err := certs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return ca, dir
}

// issue makes a certificate and returns its files.
func issue(t *testing.T, ca *certs.Authority, dir string, req certs.Request) certs.Files {
	t.Helper()
	f := certs.Files{Cert: filepath.Join(dir, req.Name+".pem"), Key: filepath.Join(dir, req.Name+"-key.pem"), CA: filepath.Join(dir, certs.CAFile)}
	if err := ca.Issue(req, f.Cert, f.Key); err != nil {
		t.Fatal(err)
	}
	return f
}

func TestIssue(t *testing.T) {
	ca, dir := authority(t)
	f := issue(t, ca, dir, certs.Request{Role: rpc.RoleNode, Name: "node-1", Hosts: []string{"node-1.example", "192.0.2.1", "2001:db8::1", "*.example"}, Validity: time.Hour})
	leaf, err := f.Leaf()
	if err != nil {
		t.Fatal(err)
	}
	id, err := rpc.CertificateIdentity(leaf)
	if err != nil || id.Role != rpc.RoleNode || id.Name != "node-1" {
		t.Errorf("identity is %v, %v", id, err)
	}
	pem, err := os.ReadFile(f.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		for _, host := range []string{"node-1.example", "192.0.2.1", "2001:db8::1", "x.example"} {
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: host, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
				t.Errorf("%s: %v", host, err)
			}
		}
	}
	if _, err := leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: "other.test"}); err == nil {
		t.Error("good for another host")
	}
	if d := time.Until(leaf.NotAfter); d < 50*time.Minute || d > time.Hour {
		t.Errorf("valid for %v", d)
	}
	if leaf.IsCA {
		t.Error("is an authority")
	}
	for _, key := range []string{f.Key, filepath.Join(dir, certs.CAKeyFile)} {
		info, err := os.Stat(key)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s has mode %v, %v", key, info.Mode(), err)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, ".fanlight-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files left: %v, %v", left, err)
	}
}

func TestIssueIsNeverValidLongerThanTheAuthority(t *testing.T) {
	dir := t.TempDir()
	if err := certs.Init(dir, "short", time.Hour); err != nil {
		t.Fatal(err)
	}
	ca, err := certs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := issue(t, ca, dir, certs.Request{Role: rpc.RoleGateway, Name: "gw"}).Leaf()
	if err != nil {
		t.Fatal(err)
	}
	if d := time.Until(leaf.NotAfter); d > time.Hour {
		t.Errorf("valid for %v", d)
	}
	if len(leaf.DNSNames) != 1 || len(leaf.IPAddresses) != 2 {
		t.Errorf("hosts without --host: %v, %v", leaf.DNSNames, leaf.IPAddresses)
	}
}

func TestRefusals(t *testing.T) {
	ca, dir := authority(t)
	if err := certs.Init(dir, "again", 0); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a second authority in the same place: %v", err)
	}
	if err := certs.Init(t.TempDir(), "x", -time.Hour); err == nil {
		t.Error("an authority that has expired")
	}
	for name, req := range map[string]certs.Request{
		"role":     {Role: "king", Name: "a"},
		"no name":  {Role: rpc.RoleNode},
		"slash":    {Role: rpc.RoleNode, Name: "a/b"},
		"space":    {Role: rpc.RoleNode, Name: "a b"},
		"query":    {Role: rpc.RoleNode, Name: "a?b"},
		"dots":     {Role: rpc.RoleNode, Name: ".."},
		"long":     {Role: rpc.RoleNode, Name: strings.Repeat("a", 64)},
		"port":     {Role: rpc.RoleNode, Name: "a", Hosts: []string{"h:1"}},
		"host":     {Role: rpc.RoleNode, Name: "a", Hosts: []string{"bad host"}},
		"operator": {Role: rpc.RoleOperator, Name: "a", Hosts: []string{"h"}},
		"monitor":  {Role: rpc.RoleMonitor, Name: "a", Hosts: []string{"h"}},
		"validity": {Role: rpc.RoleNode, Name: "a", Validity: time.Second},
	} {
		if err := ca.Issue(req, filepath.Join(dir, "x.pem"), filepath.Join(dir, "x-key.pem")); err == nil {
			t.Errorf("%s: issued", name)
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "x-key.pem")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused request left a key: %v", err)
	}
	if _, err := certs.Open(t.TempDir()); err == nil || !strings.Contains(err.Error(), "fanlight certs init") {
		t.Errorf("no authority: %v", err)
	}
	_, other := authority(t)
	copyFile(t, filepath.Join(other, certs.CAKeyFile), filepath.Join(dir, certs.CAKeyFile))
	if _, err := certs.Open(dir); err == nil {
		t.Error("an authority with another's key")
	}
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// handshake connects once and returns the certificates that the two sides saw.
func handshake(t *testing.T, server, client *tls.Config) (seenByClient, seenByServer *x509.Certificate, err error) {
	t.Helper()
	a, b := net.Pipe()
	defer func() { _, _ = a.Close(), b.Close() }()
	sc := tls.Server(a, server)
	cfg := client.Clone()
	cfg.ServerName = "localhost"
	cc := tls.Client(b, cfg)
	done := make(chan error, 1)
	go func() {
		err := sc.Handshake()
		if err == nil {
			_, err = io.WriteString(sc, "x")
		}
		if err != nil {
			_ = a.Close()
		}
		done <- err
	}()
	_, err = io.ReadFull(cc, make([]byte, 1)) // TLS 1.3: the server's refusal comes after the client's handshake
	if err != nil {
		_ = b.Close()
	}
	if serr := <-done; err == nil {
		err = serr
	}
	if err != nil {
		return nil, nil, err
	}
	if certs := sc.ConnectionState().PeerCertificates; len(certs) > 0 {
		seenByServer = certs[0]
	}
	return cc.ConnectionState().PeerCertificates[0], seenByServer, nil
}

func mustTLS(t *testing.T) func(*tls.Config, error) *tls.Config {
	return func(cfg *tls.Config, err error) *tls.Config {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return cfg
	}
}

func TestMutualTLS(t *testing.T) {
	ca, dir := authority(t)
	server := issue(t, ca, dir, certs.Request{Role: rpc.RoleControlPlane, Name: "cp"})
	client := issue(t, ca, dir, certs.Request{Role: rpc.RoleNode, Name: "node-1"})
	otherCA, otherDir := authority(t)
	foreign := issue(t, otherCA, otherDir, certs.Request{Role: rpc.RoleNode, Name: "node-1"})
	foreign.CA = server.CA
	tlsOf := mustTLS(t)
	onServer := tlsOf(server.ServerTLS(nil))

	if _, peer, err := handshake(t, onServer, tlsOf(client.ClientTLS(nil))); err != nil || peer == nil || peer.Subject.CommonName != "node-1" {
		t.Errorf("a client with a certificate: %v, %v", peer, err)
	}
	if _, peer, err := handshake(t, onServer, tlsOf(certs.Files{CA: server.CA}.ClientTLS(nil))); err != nil || peer != nil {
		t.Errorf("a client without one: %v, %v", peer, err)
	}
	if _, _, err := handshake(t, onServer, tlsOf(foreign.ClientTLS(nil))); err == nil {
		t.Error("a client of another authority was let in")
	}
	if _, _, err := handshake(t, onServer, tlsOf(certs.Files{CA: filepath.Join(otherDir, certs.CAFile)}.ClientTLS(nil))); err == nil {
		t.Error("a server of another authority was believed")
	}
	old := tlsOf(client.ClientTLS(nil))
	old.MinVersion, old.MaxVersion = tls.VersionTLS11, tls.VersionTLS11
	if _, _, err := handshake(t, onServer, old); err == nil {
		t.Error("TLS 1.1 was accepted")
	}
}

// A server must be what it is dialled as.
func TestRequireRole(t *testing.T) {
	ca, dir := authority(t)
	tlsOf := mustTLS(t)
	servers := map[rpc.Role]*tls.Config{}
	var files certs.Files
	for _, r := range rpc.Roles() {
		f := issue(t, ca, dir, certs.Request{Role: r, Name: string(r)})
		servers[r] = tlsOf(f.ServerTLS(nil))
		files.CA = f.CA
	}
	for _, tt := range []struct {
		want []rpc.Role
		ok   map[rpc.Role]bool
	}{
		{[]rpc.Role{rpc.RoleControlPlane}, map[rpc.Role]bool{rpc.RoleControlPlane: true}},
		{[]rpc.Role{rpc.RoleNode, rpc.RoleControlPlane}, map[rpc.Role]bool{rpc.RoleControlPlane: true, rpc.RoleNode: true}},
	} {
		for role, server := range servers {
			for _, unnamed := range []bool{false, true} {
				client := tlsOf(files.ClientTLS(nil))
				certs.RequireRole(client, unnamed, tt.want...)
				if _, _, err := handshake(t, server, client); (err == nil) != tt.ok[role] {
					t.Errorf("a %s dialled as one of %v (unnamed: %v): %v", role, tt.want, unnamed, err)
				}
			}
		}
	}
	client := tlsOf(files.ClientTLS(nil))
	if _, _, err := handshake(t, servers[rpc.RoleOperator], client); err == nil {
		t.Error("an operator's certificate is good for a server")
	}
}

// Authorities that know nothing of roles sign certificates without our URI.
func TestUnnamedServer(t *testing.T) {
	node, err := url.Parse("fanlight://node/n")
	if err != nil {
		t.Fatal(err)
	}
	bad, err := url.Parse("fanlight://king/n")
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		uris            []*url.URL
		strict, unnamed bool // whether it is accepted
	}{
		"none":      {nil, false, true},
		"malformed": {[]*url.URL{bad}, false, false},
		"two":       {[]*url.URL{node, node}, false, false},
		"other":     {[]*url.URL{node}, false, false},
		"foreign":   {[]*url.URL{{Scheme: "spiffe", Host: "example", Path: "/cp"}}, false, true},
	} {
		state := tls.ConnectionState{PeerCertificates: []*x509.Certificate{{URIs: tt.uris}}}
		for _, unnamed := range []bool{false, true} {
			cfg := &tls.Config{MinVersion: tls.VersionTLS12}
			certs.RequireRole(cfg, unnamed, rpc.RoleControlPlane)
			want := tt.strict
			if unnamed {
				want = tt.unnamed
			}
			if err := cfg.VerifyConnection(state); (err == nil) != want {
				t.Errorf("%s (unnamed: %v): %v", name, unnamed, err)
			}
		}
	}
}

func TestReload(t *testing.T) {
	ca, dir := authority(t)
	serverReq := certs.Request{Role: rpc.RoleControlPlane, Name: "cp"}
	clientReq := certs.Request{Role: rpc.RoleNode, Name: "node-1"}
	server, client := issue(t, ca, dir, serverReq), issue(t, ca, dir, clientReq)
	failures := make(chan error, 100)
	onError := func(err error) {
		select {
		case failures <- err:
		default:
		}
	}
	tlsOf := mustTLS(t)
	onServer, onClient := tlsOf(server.ServerTLS(onError)), tlsOf(client.ClientTLS(onError))
	first, firstPeer, err := handshake(t, onServer, onClient)
	if err != nil {
		t.Fatal(err)
	}

	issue(t, ca, dir, serverReq)
	issue(t, ca, dir, clientReq)
	eventually(t, func() bool {
		now, peer, err := handshake(t, onServer, onClient)
		return err == nil && !now.Equal(first) && !peer.Equal(firstPeer)
	})

	// A broken file is reported, and the old certificate stays in use.
	if err := os.WriteFile(server.Cert, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		if _, _, err := handshake(t, onServer, onClient); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-failures:
			return strings.Contains(err.Error(), server.Cert)
		default:
			return false
		}
	})

	// Clients of a new authority are let in once its certificate is in the file.
	newCA, newDir := authority(t)
	newcomer := issue(t, newCA, newDir, clientReq)
	copyFile(t, server.CA, filepath.Join(newDir, "old-ca.pem"))
	newcomer.CA = filepath.Join(newDir, "old-ca.pem")
	asNewcomer := tlsOf(newcomer.ClientTLS(nil))
	if _, _, err := handshake(t, onServer, asNewcomer); err == nil {
		t.Fatal("a client of an unknown authority was let in")
	}
	copyFile(t, filepath.Join(newDir, certs.CAFile), server.CA)
	eventually(t, func() bool { _, _, err := handshake(t, onServer, asNewcomer); return err == nil })
}

func TestFilesErrors(t *testing.T) {
	ca, dir := authority(t)
	good := issue(t, ca, dir, certs.Request{Role: rpc.RoleNode, Name: "n"})
	other := issue(t, ca, dir, certs.Request{Role: rpc.RoleNode, Name: "m"})
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]certs.Files{
		"nothing":       {},
		"no key":        {Cert: good.Cert},
		"missing file":  {Cert: good.Cert, Key: filepath.Join(dir, "none")},
		"another's key": {Cert: good.Cert, Key: other.Key},
		"empty CA":      {Cert: good.Cert, Key: good.Key, CA: empty},
		"missing CA":    {Cert: good.Cert, Key: good.Key, CA: filepath.Join(dir, "none")},
	} {
		if _, err := f.ServerTLS(nil); err == nil {
			t.Errorf("server, %s: no error", name)
		}
		if name == "nothing" {
			continue
		}
		if _, err := f.ClientTLS(nil); err == nil {
			t.Errorf("client, %s: no error", name)
		}
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("not so after 30 s")
		}
	}
}
