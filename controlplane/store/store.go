// Package store keeps the control plane's state in etcd.
//
// Etcd is either embedded in the process ([Config.DataDir]) or somewhere else
// ([Config.Endpoints]); everything above [Open] is the same for both. An
// embedded member that is alone has no network listener at all: its clients
// reach it through a Unix socket that only this user can open.
//
// # Keys
//
// Under a prefix, "/fanlight/" by default:
//
//	cameras/{camera}       what operators want; the password sealed
//	nodes/{node}           a connected node; goes with its lease
//	drains/{node}          a node being drained
//	assignments/{camera}   the leader's decision: which node, which generation
//	observed/{camera}      what the camera's node last reported
//	members/{id}           how a replica of several is; goes with its lease
//	election/…             candidates for leadership, by etcd's recipe
//	meta/key-check         tells a wrong key file from the right one
//
// Values are protobuf. A camera's three keys are deleted in one transaction, so
// that none outlives it.
//
// # Who may write what
//
// Every write states what it relies on, and is refused if that no longer
// holds: cameras by the revision that was read, assignments by the leader's
// election key, observations by the assignment they were made under, nodes by
// their lease. Many such writes share a transaction of at most 128 operations;
// one that is refused does not keep the others from being made.
//
// # What it does not do
//
// It decides nothing, caches nothing and retries nothing. Callers bound their
// waiting with a context; where they don't, a call ends after 10 s.
package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// callTimeout bounds a call to etcd whose caller set no earlier deadline.
const callTimeout = 10 * time.Second

// Config says where the state is. DataDir or Endpoints must be set, not both.
type Config struct {
	Log *slog.Logger // nil: no log

	// DataDir embeds an etcd member that keeps its data there. The directory is
	// made with mode 0700 if it is missing.
	DataDir string
	// Member makes the embedded member one of several. nil: it is alone.
	Member *Member

	// Endpoints are the URLs of an etcd elsewhere.
	Endpoints []string
	TLS       *tls.Config // for Endpoints; nil: none
	Username  string      // for Endpoints; empty: no authentication
	Password  string

	// Prefix is put before every key and ends with "/". Empty: "/fanlight/". It
	// tells fleets apart, but etcd should be Fanlight's own all the same: the
	// history that [Store.Compact] drops is that of every key in it.
	Prefix string
	// KeyFile has the 32 bytes that seal the cameras' passwords, and must not be
	// readable by others than its owner. Empty: DataDir/secret.key, which is
	// made if it is missing and nothing was ever sealed. With Endpoints it must
	// be given.
	KeyFile string

	// MinFreeDisk is how many bytes must be free in DataDir's file system; with
	// less, operators' writes are refused with [fleet.StoreFull]. 0: 128 MiB.
	// Negative: none.
	MinFreeDisk int64
	// Quota is how many bytes the embedded etcd's database may have on disk.
	// 0: 8 GiB.
	Quota int64
	// Version is what other replicas are told that this one runs.
	Version string
}

// Member is an embedded etcd member that has others. The zero value of a field
// that has no default is refused.
type Member struct {
	Name string // this member's, a key of InitialCluster
	// InitialCluster has the members at the cluster's birth: their peer URLs
	// (https://host:port, or http:// where the network is trusted), by name.
	InitialCluster map[string]string
	// ListenPeer is the URL with an IP address at which this member listens to
	// the others. Empty: its URL in InitialCluster.
	ListenPeer string
	// Join is true for a member that is added to a cluster that exists.
	Join bool
	// Token tells clusters apart that could reach each other. Empty: "fanlight".
	Token string
	// Election is how long members wait for a leader that has gone silent, before
	// they elect another; twice that at most. It must be the same for all, and be
	// long against their round trips and their disks' pauses. 0: 500 ms. Less
	// than 100 ms is 100 ms.
	Election time.Duration

	// The PEM files for mutual TLS between members. Required for https.
	CertFile, KeyFile, CAFile string
}

// Store is the state. Its methods may be called by any number of goroutines.
type Store struct {
	// Static after Open.
	log      *slog.Logger
	client   *clientv3.Client
	embedded *embedded // nil: etcd is elsewhere
	health   *health   // nil: etcd is elsewhere
	prefix   string
	sealer   *sealer
	cluster  uint64
	name     string
	version  string

	stop       context.CancelFunc // ends what background has; nil: nothing
	background sync.WaitGroup
	closeOnce  sync.Once
	closeErr   error
}

// Open starts the embedded etcd or connects to the endpoints, and waits until
// it answers or ctx ends. What was stored is there when it returns.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Prefix == "" {
		cfg.Prefix = "/fanlight/"
	}
	if err := cfg.check(); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	s := &Store{log: cfg.Log, prefix: cfg.Prefix, version: cfg.Version}
	if err := s.open(ctx, cfg); err != nil {
		_ = s.Close() // the error is open's
		return nil, fmt.Errorf("open store: %w", err)
	}
	return s, nil
}

func (cfg *Config) check() error {
	switch {
	case cfg.DataDir == "" && len(cfg.Endpoints) == 0:
		return errors.New("set a data directory or etcd endpoints")
	case cfg.DataDir != "" && len(cfg.Endpoints) > 0:
		return errors.New("set a data directory or etcd endpoints, not both")
	case len(cfg.Endpoints) > 0 && cfg.KeyFile == "":
		return errors.New("etcd endpoints need a key file: it must be the same on every replica")
	case len(cfg.Endpoints) > 0 && cfg.Member != nil:
		return errors.New("an initial cluster is for embedded etcd: remove it or the endpoints")
	case !strings.HasSuffix(cfg.Prefix, "/"):
		return fmt.Errorf("key prefix %q must end with \"/\"", cfg.Prefix)
	}
	return nil
}

func (s *Store) open(ctx context.Context, cfg Config) error {
	log := newEtcdLog(cfg.Log)
	endpoints := cfg.Endpoints
	if cfg.DataDir != "" {
		e, err := startEmbedded(ctx, cfg, log)
		if err != nil {
			return err
		}
		s.embedded = e
		s.name = e.name
		endpoints = []string{e.endpoint}
	}
	client, err := clientv3.New(clientv3.Config{
		Endpoints:            endpoints,
		TLS:                  cfg.TLS,
		Username:             cfg.Username,
		Password:             cfg.Password,
		DialTimeout:          5 * time.Second,
		DialKeepAliveTime:    2 * time.Second,
		DialKeepAliveTimeout: 2 * time.Second,
		Context:              context.WithoutCancel(ctx),
		Logger:               log.zap,
	})
	if err != nil {
		return fmt.Errorf("connect to etcd: %w", unavailable(diagnose(ctx, cfg, err)))
	}
	s.client = client
	if s.embedded == nil {
		err := s.openKey(ctx, cfg)
		if errors.Is(err, context.DeadlineExceeded) {
			return unavailable(diagnose(ctx, cfg, err))
		}
		return err
	}
	s.health = newHealth(cfg.Log, s.embedded, cfg.MinFreeDisk)
	life, stop := context.WithCancel(context.WithoutCancel(ctx))
	s.stop = stop
	s.background.Go(func() { s.health.run(life) })
	if err := s.awaitVote(ctx); err != nil {
		return err
	}
	if err := s.openKey(ctx, cfg); err != nil {
		return err
	}
	if err := s.moved(ctx, cfg.Member); err != nil {
		return err
	}
	s.background.Go(func() { (&maintainer{store: s}).run(life) })
	return nil
}

// awaitVote waits until a member that was added has caught up: until then it
// answers nobody.
func (s *Store) awaitVote(ctx context.Context) error {
	if !s.embedded.isLearner() {
		return nil
	}
	s.log.Info("catching up with the other members", "member", s.name)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for s.embedded.isLearner() {
		select {
		case <-tick.C:
		case <-s.embedded.failed:
			return s.embedded.err
		case <-ctx.Done():
			return fmt.Errorf("this member has not caught up with the others: %w", context.Cause(ctx))
		}
	}
	return nil
}

// Close ends the connection, and the embedded etcd. Calls under way fail.
func (s *Store) Close() error {
	s.closeOnce.Do(func() {
		if s.stop != nil {
			s.stop()
			s.background.Wait()
			s.health.close()
		}
		if s.client != nil {
			if err := s.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
				s.closeErr = fmt.Errorf("close etcd client: %w", err)
			}
		}
		if s.embedded != nil {
			s.embedded.close()
		}
	})
	return s.closeErr
}

// Failed is closed when the embedded etcd ends without having been closed;
// [Store.FailedErr] then says why. It is nil when etcd is elsewhere.
func (s *Store) Failed() <-chan struct{} {
	if s.embedded == nil {
		return nil
	}
	return s.embedded.failed
}

// FailedErr says why the embedded etcd ended. To be called when Failed is
// closed.
func (s *Store) FailedErr() error {
	if s.embedded == nil {
		return nil
	}
	return s.embedded.err
}

// Endpoint returns the address of the embedded etcd for clients on this
// machine that run as the same user; empty if etcd is elsewhere.
func (s *Store) Endpoint() string {
	if s.embedded == nil {
		return ""
	}
	return s.embedded.endpoint
}

// MemberName returns the embedded member's name; empty if etcd is elsewhere.
func (s *Store) MemberName() string { return s.name }

// ClusterID tells etcd clusters apart: revisions of one mean nothing in
// another.
func (s *Store) ClusterID() uint64 { return s.cluster }

// call bounds one call to etcd. It ends as soon as the store is known not to
// answer, with what [Store.unavailable] makes of it.
func (s *Store) call(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	if s.health == nil {
		return ctx, cancel
	}
	return s.health.follow(ctx, cancel, false)
}

// write bounds one call to etcd that changes something. Besides, it ends when
// the leader that it was sent to is lost.
func (s *Store) write(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	if s.health == nil {
		return ctx, cancel
	}
	return s.health.follow(ctx, cancel, true)
}
