package store

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"
)

// How etcd is timed, in milliseconds. A member that is alone is its own
// majority and need not wait for anybody, so it is ready, and its leases can be
// as short, as these allow. Members of a cluster must tell a slow network from
// a dead leader.
const (
	aloneTick, aloneElection     = 10, 100
	clusterTick, clusterElection = 50, 500
)

const (
	aloneName = "fanlight"
	// alonePeer is in the membership of a member that is alone, for etcd wants an
	// address there; nobody listens at it or dials it.
	alonePeer = "http://127.0.0.1:1"
	// maxSocketPath is what fits into sockaddr_un.sun_path (unix(7)), with its
	// terminating zero.
	maxSocketPath = 107
	// quota is how large the database may grow before etcd refuses writes.
	quota = 8 << 30
)

// embedded is an etcd member in this process.
type embedded struct {
	// Static after startEmbedded.
	name     string
	endpoint string
	etcd     *embed.Etcd
	mute     func()
	lock     *dirLock
	tempDir  string // holds the socket if the data directory's path is too long

	wait    sync.WaitGroup // for the watcher
	closing chan struct{}
	failed  chan struct{} // closed by the watcher
	err     error         // written before failed is closed
}

// startEmbedded starts a member and waits until it is ready.
func startEmbedded(ctx context.Context, cfg Config, logger *zap.Logger, mute func()) (_ *embedded, err error) {
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	e := &embedded{mute: mute, closing: make(chan struct{}), failed: make(chan struct{})}
	defer func() {
		if err != nil && e.etcd == nil {
			e.release()
		}
	}()
	if e.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	socket, err := e.socketPath(dir)
	if err != nil {
		return nil, err
	}
	ec, err := etcdConfig(cfg.Member, filepath.Join(dir, "etcd"), socket, logger)
	if err != nil {
		return nil, err
	}
	e.name, e.endpoint = ec.Name, "unix://"+socket
	e.etcd, err = embed.StartEtcd(ec)
	if err != nil {
		return nil, fmt.Errorf("start embedded etcd in %s: %w", dir, err)
	}
	select {
	case <-e.etcd.Server.ReadyNotify():
	case err = <-e.etcd.Err():
		err = fmt.Errorf("start embedded etcd in %s: %w", dir, err)
	case <-e.etcd.Server.StopNotify():
		err = fmt.Errorf("start embedded etcd in %s: it stopped", dir)
	case <-ctx.Done():
		err = fmt.Errorf("start embedded etcd in %s: it is not ready, perhaps the other members are not up: %w", dir, context.Cause(ctx))
	}
	e.wait.Go(e.watch)
	if err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// etcdConfig makes etcd's configuration.
func etcdConfig(m *Member, dir, socket string, logger *zap.Logger) (*embed.Config, error) {
	client := url.URL{Scheme: "unix", Path: socket}
	c := embed.NewConfig()
	c.Dir = dir
	c.ListenClientUrls = []url.URL{client}
	c.AdvertiseClientUrls = []url.URL{client}
	c.ListenPeerUrls = nil
	c.QuotaBackendBytes = quota
	c.ZapLoggerBuilder = embed.NewZapLoggerBuilder(logger)
	if m == nil {
		c.Name = aloneName
		// Random, so that no two installations have the same cluster id.
		c.InitialClusterToken = rand.Text()
		c.TickMs, c.ElectionMs = aloneTick, aloneElection
		c.InitialCluster = aloneName + "=" + alonePeer
		peer, err := url.Parse(alonePeer)
		if err != nil {
			return nil, fmt.Errorf("peer URL: %w", err)
		}
		c.AdvertisePeerUrls = []url.URL{*peer}
		return c, nil
	}
	return c, m.apply(c)
}

// apply makes the configuration that of one of several members.
func (m *Member) apply(c *embed.Config) error {
	own, ok := m.InitialCluster[m.Name]
	if m.Name == "" || !ok {
		return fmt.Errorf("initial cluster has no member %q: name this member and give its peer URL", m.Name)
	}
	var cluster []string
	for _, name := range slices.Sorted(maps.Keys(m.InitialCluster)) {
		u, err := url.Parse(m.InitialCluster[name])
		if err != nil || u.User != nil || u.Host == "" || (u.Scheme != "https" && u.Scheme != "http") {
			return fmt.Errorf("initial cluster: the peer URL of member %q must be https://host:port or http://host:port", name)
		}
		if u.Scheme == "https" && (m.CertFile == "" || m.KeyFile == "" || m.CAFile == "") {
			return errors.New("initial cluster: https between members needs a certificate, its key and a CA")
		}
		cluster = append(cluster, name+"="+u.String())
	}
	ownURL, err := url.Parse(own)
	if err != nil {
		return fmt.Errorf("peer URL: %w", err)
	}
	listen := m.ListenPeer
	if listen == "" {
		listen = own
	}
	listenURL, err := url.Parse(listen)
	if err != nil || listenURL.User != nil || listenURL.Host == "" || (listenURL.Scheme != "https" && listenURL.Scheme != "http") {
		return errors.New("the URL to listen at for peers must be https://host:port or http://host:port")
	}
	if listenURL.Scheme != ownURL.Scheme {
		return errors.New("the URL to listen at for peers must be https if this member's own is, and only then")
	}
	c.Name = m.Name
	c.TickMs, c.ElectionMs = clusterTick, clusterElection
	c.ListenPeerUrls = []url.URL{*listenURL}
	c.AdvertisePeerUrls = []url.URL{*ownURL}
	c.InitialCluster = strings.Join(cluster, ",")
	c.InitialClusterToken = m.Token
	if m.Token == "" {
		c.InitialClusterToken = "fanlight"
	}
	if m.Join {
		c.ClusterState = embed.ClusterStateFlagExisting
	}
	c.PeerTLSInfo = transport.TLSInfo{
		CertFile: m.CertFile, KeyFile: m.KeyFile, TrustedCAFile: m.CAFile,
		ClientCertAuth: m.CAFile != "",
	}
	return nil
}

// socketPath returns where the clients' socket goes.
func (e *embedded) socketPath(dir string) (string, error) {
	path := filepath.Join(dir, "etcd.sock")
	if len(path) <= maxSocketPath {
		return path, nil
	}
	temp, err := os.MkdirTemp("", "fanlight-")
	if err != nil {
		return "", fmt.Errorf("directory for etcd's socket: %w", err)
	}
	e.tempDir = temp
	return filepath.Join(temp, "etcd.sock"), nil
}

// release gives up what startEmbedded took before etcd.
func (e *embedded) release() {
	e.lock.release()
	if e.tempDir != "" {
		_ = os.RemoveAll(e.tempDir) // holds nothing but a socket
	}
}

// watch waits for etcd's end.
func (e *embedded) watch() {
	select {
	case <-e.closing:
		return
	case err := <-e.etcd.Err():
		e.err = fmt.Errorf("embedded etcd: %w", err)
	case <-e.etcd.Server.StopNotify():
		e.err = errors.New("embedded etcd stopped")
	}
	close(e.failed)
}

// close stops the member and waits for it.
func (e *embedded) close() {
	e.mute() // it reports its own listeners' end as errors
	close(e.closing)
	e.wait.Wait()
	e.etcd.Close()
	e.release()
}
