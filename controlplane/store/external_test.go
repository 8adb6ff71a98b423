package store_test

import (
	"bytes"
	"context"
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/goleak"

	"fanlight/controlplane/store"
	"fanlight/internal/certs"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
)

// authority makes a certificate authority with a server's certificate.
func authority(t *testing.T) certs.Files {
	t.Helper()
	dir := t.TempDir()
	if err := certs.Init(dir, "test", time.Hour); err != nil {
		t.Fatal(err)
	}
	ca, err := certs.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	f := certs.Files{CA: filepath.Join(dir, "ca.pem"), Cert: filepath.Join(dir, "etcd.pem"), Key: filepath.Join(dir, "etcd-key.pem")}
	req := certs.Request{Role: rpc.RoleControlPlane, Name: "etcd", Hosts: []string{"127.0.0.1"}, Validity: time.Hour}
	if err := ca.Issue(req, f.Cert, f.Key); err != nil {
		t.Fatal(err)
	}
	return f
}

// startEtcd starts an etcd as others run it: TLS, users with passwords, and a
// user "fanlight" that may read and write under a prefix.
func startEtcd(t *testing.T, files certs.Files) (endpoint string) {
	t.Helper()
	c := embed.NewConfig()
	c.Dir, c.LogLevel = t.TempDir(), "fatal"
	client, peer := url.URL{Scheme: "https", Host: freeAddr(t)}, url.URL{Scheme: "http", Host: freeAddr(t)}
	c.ListenClientUrls, c.AdvertiseClientUrls = []url.URL{client}, []url.URL{client}
	c.ListenPeerUrls, c.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	c.InitialCluster = c.Name + "=" + peer.String()
	c.TickMs, c.ElectionMs = 10, 100
	c.ClientTLSInfo = transport.TLSInfo{CertFile: files.Cert, KeyFile: files.Key, TrustedCAFile: files.CA, ClientCertAuth: true}
	c.BcryptCost = 4
	e, err := embed.StartEtcd(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(e.Close)
	<-e.Server.ReadyNotify()
	tlsConfig, err := files.ClientTLS(nil)
	if err != nil {
		t.Fatal(err)
	}
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{client.String()}, TLS: tlsConfig})
	if err != nil {
		t.Fatal(err)
	}
	defer admin.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	read := clientv3.PermissionType(clientv3.PermReadWrite)
	for _, step := range []func() error{
		func() error { _, err := admin.UserAdd(ctx, "root", "rootpw"); return err },
		func() error { _, err := admin.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := admin.RoleAdd(ctx, "cameras"); return err },
		func() error {
			_, err := admin.RoleGrantPermission(ctx, "cameras", "/fanlight/", clientv3.GetPrefixRangeEnd("/fanlight/"), read)
			return err
		},
		func() error { _, err := admin.UserAdd(ctx, "fanlight", "right"); return err },
		func() error { _, err := admin.UserGrantRole(ctx, "fanlight", "cameras"); return err },
		func() error { _, err := admin.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
	}
	return client.String()
}

// An etcd elsewhere, with TLS and passwords, serves as the embedded one does,
// and what is wrong in its settings is said.
func TestExternal(t *testing.T) {
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { settle(t, before) }) // after what is opened below
	files := authority(t)
	endpoint := startEtcd(t, files)
	key := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("k", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	config := func(f certs.Files) store.Config {
		tlsConfig, err := f.ClientTLS(nil)
		if err != nil {
			t.Fatal(err)
		}
		return store.Config{Endpoints: []string{endpoint}, TLS: tlsConfig, Username: "fanlight", Password: "right", KeyFile: key}
	}
	refused := func(says string, cfg store.Config) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		s, err := store.Open(ctx, cfg)
		if err == nil {
			_ = s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), says) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v, want %q", err, says)
		}
	}
	wrong := config(files)
	wrong.Password = "hunter2"
	refused("correct --etcd-username and --etcd-password-file", wrong)
	wrong = config(files)
	wrong.Prefix = "/other/"
	refused("may not do this", wrong)
	refused("--etcd-ca", config(authority(t)))
	refused("--etcd-cert", config(certs.Files{CA: files.CA}))
	wrong = config(files)
	wrong.Endpoints = []string{"https://" + freeAddr(t)}
	refused("does it run at this address?", wrong)

	one, two := open(t, config(files)), open(t, config(files))
	if _, err := one.CreateCameras(t.Context(), cameras(1)); err != nil {
		t.Fatal(err)
	}
	if c, err := two.Camera(t.Context(), "c-0"); err != nil || c.Desired.GetDisplayName() != "0" {
		t.Errorf("another replica has %v, %v", c, err)
	}
	leader, err := one.Campaign(t.Context(), "one", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	leader.Resign()
	if m, err := two.Members(t.Context()); err != nil || !m.External || len(m.All) != 1 {
		t.Errorf("members %v, %v", m, err)
	}
	if _, _, err := one.AddMember(t.Context(), "b", "https://127.0.0.1:1"); !errors.Is(err, fleet.ClusterChangeRefused) {
		t.Errorf("a member was added: %v", err)
	}
	if err := one.RemoveMember(t.Context(), "b", true); !errors.Is(err, fleet.ClusterChangeRefused) {
		t.Errorf("a member was removed: %v", err)
	}
	if err := one.Backup(t.Context(), new(bytes.Buffer)); err == nil || !strings.Contains(err.Error(), "the role root") {
		t.Errorf("backed up without permission: %v", err)
	}
	root := config(files)
	root.Username, root.Password = "root", "rootpw"
	path := filepath.Join(t.TempDir(), "backup")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(open(t, root).Backup(t.Context(), f), f.Close()); err != nil {
		t.Fatal(err)
	}
	if err := store.CheckBackupKey(path, key, ""); err != nil {
		t.Error(err)
	}
	if err := one.Close(); err != nil {
		t.Error(err)
	}
	if err := two.Close(); err != nil {
		t.Error(err)
	}
}
