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
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"fanlight/internal/fleet"
)

// How etcd is timed, in milliseconds. A member that is alone is its own
// majority and need not wait for anybody, so it is ready, and its leases can be
// as short, as these allow. Members of a cluster must tell a slow network from
// a dead leader.
const (
	aloneTick, aloneElection     = 10, 100
	clusterTick, clusterElection = 50, 500
)

// minElection is ten of etcd's shortest sensible heartbeats.
const minElection = 100 * time.Millisecond

const (
	aloneName = "fanlight"
	// alonePeer is in the membership of a member that is alone, for etcd wants an
	// address there; nobody listens at it or dials it.
	alonePeer = "http://127.0.0.1:1"
	// maxSocketPath is what fits into sockaddr_un.sun_path (unix(7)), with its
	// terminating zero.
	maxSocketPath = 107
	// defaultQuota is how large the database may grow before etcd refuses writes.
	defaultQuota = 8 << 30
	// How many entries etcd keeps of its log: in memory, for members that are a
	// little behind (others get the whole database), and on disk, to be read at
	// the start. With its own defaults, five and two times as many, a mass
	// registration leaves some hundred MiB in each.
	catchUpEntries, snapshotEntries = 1000, 5000
	// closeWait bounds the wait for etcd to end: with a disk that hangs it can't.
	closeWait = 15 * time.Second
)

// ErrRemoved says that this member was removed from its cluster: starting it
// again is of no use.
var ErrRemoved = errors.New("this replica was removed from the cluster")

// embedded is an etcd member in this process.
type embedded struct {
	// Static after startEmbedded.
	name     string
	dir      string
	endpoint string
	quota    int64
	etcd     *embed.Etcd
	log      *etcdLog
	lock     *dirLock
	peers    *peers // nil: the member is alone
	tempDir  string // holds the socket if the data directory's path is too long

	wait    sync.WaitGroup // for the watcher
	closing chan struct{}
	failed  chan struct{} // closed by the watcher
	err     error         // written before failed is closed
}

// startEmbedded starts a member and waits until it is ready.
func startEmbedded(ctx context.Context, cfg Config, log *etcdLog) (_ *embedded, err error) {
	dir, err := filepath.Abs(cfg.DataDir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	e := &embedded{dir: dir, log: log, quota: cfg.Quota, closing: make(chan struct{}), failed: make(chan struct{})}
	defer func() {
		if err != nil && e.etcd == nil {
			e.release()
		}
	}()
	if e.lock, err = lockDir(dir); err != nil {
		return nil, err
	}
	ec, err := e.config(cfg.Member)
	if err != nil {
		return nil, err
	}
	if err := checkIdentity(dir, cfg.Member); err != nil {
		return nil, err
	}
	if err := e.start(ec, cfg.Member); err != nil {
		return nil, fmt.Errorf("start embedded etcd in %s: %w", dir, err)
	}
	e.wait.Go(e.watch)
	err = e.ready(ctx)
	if err == nil {
		err = e.belongs(cfg.Member)
	}
	if err == nil {
		err = keepIdentity(dir, cfg.Member)
	}
	if err != nil {
		e.close()
		return nil, fmt.Errorf("start embedded etcd in %s: %w", dir, err)
	}
	return e, nil
}

// config makes etcd's configuration.
func (e *embedded) config(m *Member) (*embed.Config, error) {
	socket, err := e.socketPath(e.dir)
	if err != nil {
		return nil, err
	}
	ec, err := etcdConfig(m, filepath.Join(e.dir, "etcd"), socket, e.log.zap)
	if err != nil {
		return nil, err
	}
	if e.quota == 0 {
		e.quota = defaultQuota
	}
	ec.QuotaBackendBytes = e.quota
	e.name, e.endpoint = ec.Name, "unix://"+socket
	if m != nil {
		if e.peers, err = newPeers(m); err != nil {
			return nil, err
		}
	}
	return ec, nil
}

// start starts etcd. What etcd can't go on after leaves its goroutine waiting
// for ever; see fatalHook.
func (e *embedded) start(ec *embed.Config, m *Member) error {
	type result struct {
		etcd *embed.Etcd
		err  error
	}
	started := make(chan result, 1)
	go func() {
		etcd, err := embed.StartEtcd(ec)
		started <- result{etcd, err}
	}()
	select {
	case r := <-started:
		if r.err != nil {
			return explainStart(r.err, m)
		}
		e.etcd = r.etcd
		return nil
	case <-e.log.fatal.failed:
		return e.endError(e.log.fatal.err)
	}
}

// ready waits until the member has found the others, and says meanwhile which
// of them it can't.
func (e *embedded) ready(ctx context.Context) error {
	tick := time.NewTicker(2 * time.Second)
	defer tick.Stop()
	said := ""
	for {
		select {
		case <-e.etcd.Server.ReadyNotify():
			return nil
		case <-e.failed:
			return e.err
		case <-ctx.Done():
			return fmt.Errorf("it is not ready: %s: %w", orText(said, "no majority of the members can be reached"), context.Cause(ctx))
		case <-tick.C:
		}
		problems, err := e.peerProblems(ctx)
		if err != nil {
			return err
		}
		if problems != "" && problems != said {
			e.log.slog.Warn("waiting for the other members", "error", problems)
			said = problems
		}
	}
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// etcdConfig makes etcd's configuration.
func etcdConfig(m *Member, dir, socket string, logger *zap.Logger) (*embed.Config, error) {
	client := url.URL{Scheme: "unix", Path: socket}
	c := embed.NewConfig()
	c.Dir = dir
	c.ListenClientUrls = []url.URL{client}
	c.AdvertiseClientUrls = []url.URL{client}
	c.ListenPeerUrls = nil
	c.SnapshotCount, c.SnapshotCatchUpEntries = snapshotEntries, catchUpEntries
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
	if m.Election > 0 {
		c.ElectionMs = uint(max(m.Election, minElection) / time.Millisecond)
		c.TickMs = c.ElectionMs / 10
	}
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
	case <-e.log.fatal.failed:
		e.err = e.endError(e.log.fatal.err)
	case err := <-e.etcd.Err():
		e.err = fmt.Errorf("embedded etcd: %w", err)
	case <-e.etcd.Server.StopNotify():
		e.err = errors.New("embedded etcd stopped")
	}
	close(e.failed)
}

// endError explains what etcd can't go on after.
func (e *embedded) endError(err error) error {
	switch {
	case errors.Is(err, ErrRemoved):
		return fmt.Errorf("%w, and its data in %s is of no more use; to have it again: \"fanlight cluster add %s\", "+
			"then start it with the flags that this prints and an empty --data", ErrRemoved, e.dir, e.name)
	case errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT):
		return fmt.Errorf("%w: embedded etcd cannot write to %s (%w): what was acknowledged is there; free space, then start again",
			fleet.StoreFull, e.dir, err)
	case errors.Is(err, syscall.EIO) || errors.Is(err, syscall.EROFS):
		return fmt.Errorf("embedded etcd cannot write to %s (%w): check the disk; then start again, or if the data is lost and there are "+
			"other members, remove this one and add it anew", e.dir, err)
	default:
		return fmt.Errorf("embedded etcd in %s cannot go on: %w", e.dir, err)
	}
}

// close stops the member and waits for it, unless it can't be stopped any more
// because its disk failed or hangs.
func (e *embedded) close() {
	e.log.mute() // it reports its own listeners' end as errors
	close(e.closing)
	e.wait.Wait()
	if e.peers != nil {
		e.peers.close()
	}
	closed := make(chan struct{})
	go func() {
		e.etcd.Close()
		close(closed)
	}()
	t := time.NewTimer(closeWait)
	defer t.Stop()
	select {
	case <-closed:
	case <-e.log.fatal.failed:
	case <-t.C:
		e.log.slog.Error("embedded etcd does not end: the disk does not answer", "dir", e.dir)
	}
	e.release()
}
