package store_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(writerDir); dir != "" {
		write(dir)
		return
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, cfg store.Config) *store.Store {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	s, err := store.Open(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func cameras(n int) []*store.Camera {
	out := make([]*store.Camera, n)
	for i := range out {
		out[i] = &store.Camera{ID: fleet.CameraID(fmt.Sprintf("c-%d", i)), Desired: &controlv1.Camera{DisplayName: fmt.Sprint(i)}}
	}
	return out
}

func TestBadConfigs(t *testing.T) {
	dir := t.TempDir()
	member := func(m store.Member) store.Config { return store.Config{DataDir: filepath.Join(dir, "m"), Member: &m} }
	for says, cfg := range map[string]store.Config{
		"set a data directory or etcd endpoints": {},
		"not both":                               {DataDir: dir, Endpoints: []string{"x"}},
		"need a key file":                        {Endpoints: []string{"x"}},
		`end with "/"`:                           {DataDir: dir, Prefix: "/x"},
		"initial cluster is for embedded etcd":   {Endpoints: []string{"x"}, KeyFile: "k", Member: &store.Member{}},
		`initial cluster has no member "a"`:      member(store.Member{Name: "a", InitialCluster: map[string]string{"b": "http://127.0.0.1:1"}}),
		`peer URL of member "a" must be`:         member(store.Member{Name: "a", InitialCluster: map[string]string{"a": "127.0.0.1:1"}}),
		"URL to listen at for peers must be":     member(store.Member{Name: "a", InitialCluster: map[string]string{"a": "http://127.0.0.1:1"}, ListenPeer: "http://u:p@127.0.0.1:1"}),
		"must be https if this member's own is":  member(store.Member{Name: "a", InitialCluster: map[string]string{"a": "http://127.0.0.1:1"}, ListenPeer: "https://127.0.0.1:1"}),
		"https between members needs":            member(store.Member{Name: "a", InitialCluster: map[string]string{"a": "https://127.0.0.1:1"}}),
		"data directory: mkdir":                  {DataDir: filepath.Join(os.DevNull, "x")},
	} {
		s, err := store.Open(t.Context(), cfg)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want %q", err, says)
		}
		if err == nil {
			_ = s.Close()
		}
	}
}

func TestKeyFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "secret.key")
	s := open(t, store.Config{DataDir: dir})
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 || info.Size() != 32 {
		t.Fatalf("the key file: %v, %v", info, err)
	}
	sealed := s.Seal("lobby", "hunter2")
	if p, err := s.Unseal("lobby", sealed); p != "hunter2" || err != nil {
		t.Errorf("got %q, %v", p, err)
	}
	if again := s.Seal("lobby", "hunter2"); string(again) == string(sealed) {
		t.Error("the same password is sealed alike twice")
	}
	if p, err := s.Unseal("yard", sealed); err == nil {
		t.Errorf("unsealed for another camera: %q", p)
	}
	for i := range sealed {
		spoiled := append([]byte(nil), sealed...)
		spoiled[i] ^= 1
		if _, err := s.Unseal("lobby", spoiled); err == nil {
			t.Errorf("unsealed although byte %d is spoiled", i)
		}
	}
	if _, err := s.Unseal("lobby", sealed[:5]); err == nil {
		t.Error("unsealed although it is cut short")
	}
	if s.Seal("lobby", "") != nil {
		t.Error("no password is sealed")
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		spoil func() error
		says  string
	}{
		"readable": {func() error { return os.Chmod(path, 0o640) }, "mode 0640"},
		"short":    {func() error { return os.WriteFile(path, key[:31], 0o600) }, "31 bytes"},
		"another":  {func() error { return os.WriteFile(path, make([]byte, 32), 0o600) }, "not the one"},
		"missing":  {func() error { return os.Remove(path) }, "missing"},
	} {
		if err := os.WriteFile(path, key, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := tt.spoil(); err != nil {
			t.Fatal(err)
		}
		s, err := store.Open(t.Context(), store.Config{DataDir: dir})
		if err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: got %v, want %q", name, err, tt.says)
		}
		if err == nil {
			_ = s.Close()
		}
		if _, err := os.Stat(path); name == "missing" && err == nil {
			t.Error("a key file was made although passwords are sealed under another")
		}
	}
}

func TestDataDirectoryIsInUse(t *testing.T) {
	dir := t.TempDir()
	open(t, store.Config{DataDir: dir})
	if _, err := store.Open(t.Context(), store.Config{DataDir: dir}); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("got %v", err)
	}
}

// The socket of a data directory whose path is long is somewhere else.
func TestLongDataDirectory(t *testing.T) {
	s := open(t, store.Config{DataDir: filepath.Join(t.TempDir(), strings.Repeat("x", 120))})
	if _, err := s.CreateCameras(t.Context(), cameras(1)); err != nil {
		t.Error(err)
	}
	path := strings.TrimPrefix(s.Endpoint(), "unix://")
	if len(path) > 107 {
		t.Errorf("the socket is %s", path)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Dir(path)); err == nil {
		t.Errorf("%s is left", filepath.Dir(path))
	}
}

// An embedded member that is alone can be reached by its own user only.
func TestNoListener(t *testing.T) {
	s := open(t, store.Config{DataDir: t.TempDir()})
	if !strings.HasPrefix(s.Endpoint(), "unix:///") {
		t.Errorf("the endpoint is %s", s.Endpoint())
	}
	if info, err := os.Stat(filepath.Dir(strings.TrimPrefix(s.Endpoint(), "unix://"))); err != nil || !info.IsDir() {
		t.Errorf("%v, %v", info, err)
	}
}

// Many writes share transactions; one whose guard does not hold keeps none of
// the others from being made.
func TestBatches(t *testing.T) {
	s := open(t, store.Config{DataDir: t.TempDir()})
	all := cameras(1000)
	existing := []*store.Camera{all[3], all[500], all[999]}
	if _, err := s.CreateCameras(t.Context(), existing); err != nil {
		t.Fatal(err)
	}
	before, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	revs, err := s.CreateCameras(t.Context(), all)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for i, rev := range revs {
		if rev == 0 {
			refused++
			if i != 3 && i != 500 && i != 999 {
				t.Errorf("camera %d was refused", i)
			}
		}
	}
	after, err := s.Revision(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if refused != 3 || after-before > 8+3*8 {
		t.Errorf("%d refused, %d transactions", refused, after-before)
	}
	entries, rev, err := s.Load(t.Context())
	if err != nil || len(entries) != 1000 || rev != after {
		t.Errorf("loaded %d entries at %d, %v", len(entries), rev, err)
	}
}

func TestAssignments(t *testing.T) {
	s := open(t, store.Config{DataDir: t.TempDir()})
	ctx := t.Context()
	leader, err := s.Campaign(ctx, "one", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	created, err := s.CreateCameras(ctx, cameras(300))
	if err != nil {
		t.Fatal(err)
	}
	var decisions []store.Decision
	for i, c := range cameras(300) {
		decisions = append(decisions, store.Decision{
			Assignment:    store.Assignment{Camera: c.ID, Node: "n1", Generation: created[i], Time: timestamppb.Now()},
			CameraCreated: created[i],
		})
	}
	if _, err := s.DeleteCamera(ctx, "c-7", 0); err != nil {
		t.Fatal(err)
	}
	revs, err := s.Assign(ctx, leader, decisions)
	if err != nil {
		t.Fatal(err)
	}
	for i, rev := range revs {
		if (rev == 0) != (i == 7) {
			t.Errorf("camera %d: revision %d", i, rev)
		}
	}
	// Decided on something that has changed, a decision is refused.
	stale := decisions[0]
	stale.Before = revs[0] - 1
	if got, err := s.Assign(ctx, leader, []store.Decision{stale}); err != nil || got[0] != 0 {
		t.Errorf("got %v, %v", got, err)
	}
	// So is a first one in doubt that was made already.
	again := decisions[0]
	again.Node, again.Generation, again.Doubt = "n2", revs[0], true
	if got, err := s.Assign(ctx, leader, []store.Decision{again}); err != nil || got[0] != 0 {
		t.Errorf("a camera is given away twice: %v, %v", got, err)
	}
	// One that counts on a node's being gone is refused once it is back.
	lease, err := s.Grant(ctx, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lease.Register(ctx, "n1", &controlv1.Node{Name: "nodes/n1"}); err != nil {
		t.Fatal(err)
	}
	if revs, err = s.Assign(ctx, leader, []store.Decision{
		{Assignment: store.Assignment{Camera: "c-0", Node: "n2", Generation: revs[0]}, Before: revs[0], Gone: "n1"},
		{Assignment: store.Assignment{Camera: "c-1", Node: "n2", Generation: revs[1]}, Before: revs[1], Gone: "n3"},
	}); err != nil || revs[0] != 0 || revs[1] == 0 {
		t.Errorf("with a node that is back and one that is not: %v, %v", revs, err)
	}
	good := store.Decision{Assignment: store.Assignment{Camera: "c-1", Node: "n1", Generation: revs[1]}, Before: revs[1]}
	// Another leader's term ends the first one's decisions.
	leader.Resign()
	next, err := s.Campaign(ctx, "two", 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer next.Resign()
	if _, err := s.Assign(ctx, leader, []store.Decision{good}); !errors.Is(err, fleet.Unavailable) {
		t.Errorf("a former leader's decision: %v", err)
	}
	if got, err := s.Assign(ctx, next, []store.Decision{good}); err != nil || got[0] == 0 {
		t.Errorf("got %v, %v", got, err)
	}
}

// One leads at a time; a former self does not keep its successor waiting.
func TestElection(t *testing.T) {
	s := open(t, store.Config{DataDir: t.TempDir()})
	first, err := s.Campaign(t.Context(), "one", 60*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Resign()
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if l, err := s.Campaign(ctx, "two", time.Second); err == nil {
		l.Resign()
		t.Fatal("two lead")
	}
	again, err := s.Campaign(t.Context(), "one", time.Second)
	if err != nil {
		t.Fatal(err)
	}
	again.Resign()
}

func TestLeases(t *testing.T) {
	s := open(t, store.Config{DataDir: t.TempDir()})
	ctx := t.Context()
	nodes := func() int {
		entries, _, err := s.Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, e := range entries {
			if e.Node != nil {
				n++
			}
		}
		return n
	}
	grant := func() *store.Lease {
		l, err := s.Grant(ctx, 1500*time.Millisecond)
		if err != nil || l.TTL != 2*time.Second {
			t.Fatalf("granted %v, %v", l, err)
		}
		return l
	}
	old, now := grant(), grant()
	n := &controlv1.Node{BootId: "b"}
	if _, err := old.Register(ctx, "n1", n); err != nil {
		t.Fatal(err)
	}
	if _, err := now.Register(ctx, "n1", n); err != nil {
		t.Fatal(err)
	}
	if _, err := old.Update(ctx, "n1", n); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("updated under a former lease: %v", err)
	}
	third := grant()
	if _, err := third.Succeed(ctx, old, "n1", n); !errors.Is(err, store.ErrSuperseded) {
		t.Errorf("succeeded a lease that the node is no longer under: %v", err)
	}
	if err := old.Revoke(ctx); err != nil || nodes() != 1 {
		t.Errorf("a former lease took the node with it: %v", err)
	}
	renew, stop := context.WithTimeout(ctx, 3*time.Second)
	defer stop()
	if err := now.Renew(renew); err != nil {
		t.Errorf("renewed: %v", err)
	}
	if nodes() != 1 {
		t.Error("a renewed lease ran out")
	}
	for end := time.Now().Add(20 * time.Second); nodes() != 0; time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a lease does not run out")
		}
	}
	if err := now.Renew(ctx); !errors.Is(err, fleet.Unavailable) {
		t.Errorf("a lease that ran out was renewed: %v", err)
	}
	if _, err := grant().Succeed(ctx, now, "n1", n); err != nil {
		t.Errorf("not succeeded: %v", err)
	}
}

func TestWatch(t *testing.T) {
	s := open(t, store.Config{DataDir: t.TempDir()})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, from, err := s.Load(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateCameras(ctx, cameras(300)); err != nil {
		t.Fatal(err)
	}
	last, err := s.DeleteCamera(ctx, "c-0", 0)
	if err != nil {
		t.Fatal(err)
	}
	seen, through := 0, from
	err = s.Watch(ctx, from, func(rev int64, events []store.Event) {
		for _, e := range events {
			if e.Revision <= through || e.Revision > rev {
				t.Errorf("an event of %d in a response of %d to %d", e.Revision, through, rev)
			}
		}
		seen, through = seen+len(events), rev
		if rev >= last {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) || seen != 301 {
		t.Errorf("%d events, %v", seen, err)
	}
	ctx = t.Context()
	events, err := s.Changes(ctx, from, last)
	if err != nil || len(events) != 301 || !events[300].Deleted || events[300].Camera.ID != "c-0" {
		t.Errorf("%d changes, %v", len(events), err)
	}
	if events, err := s.Changes(ctx, last, last); err != nil || len(events) != 0 {
		t.Errorf("%d changes, %v", len(events), err)
	}
	// Changes also ends when nothing of ours has happened since.
	lease, err := s.Grant(ctx, time.Second)
	if err != nil {
		t.Fatal(err)
	}
	rev, err := lease.Register(ctx, "n1", &controlv1.Node{})
	if err != nil {
		t.Fatal(err)
	}
	if events, err := s.Changes(ctx, rev-1, rev); err != nil || len(events) != 1 || events[0].Node.Lease != lease.ID() {
		t.Errorf("changes %v, %v", events, err)
	}
	if err := s.Compact(ctx, rev); err != nil {
		t.Fatal(err)
	}
	if err := s.Compact(ctx, rev); err != nil {
		t.Errorf("compacted twice: %v", err)
	}
	if _, err := s.Changes(ctx, from, rev); !errors.Is(err, fleet.ResumeTokenTooOld) {
		t.Errorf("changes of what is compacted: %v", err)
	}
	if err := s.Watch(ctx, from, func(int64, []store.Event) {}); !errors.Is(err, fleet.ResumeTokenTooOld) {
		t.Errorf("a watch of what is compacted: %v", err)
	}
}

// freeAddr returns an address at which nobody listens. It is none of those that
// the system gives to whoever connects (32768 and up, on Linux): such a port could
// be taken before it is used.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatal("no free port")
	return ""
}

// Three members make one store.
func TestCluster(t *testing.T) {
	defer settle(t, goleak.IgnoreCurrent())
	peers := make(map[string]string)
	for _, name := range []string{"a", "b", "c"} {
		peers[name] = "http://" + freeAddr(t)
	}
	dir := t.TempDir()
	key := filepath.Join(dir, "key")
	if err := os.WriteFile(key, []byte(strings.Repeat("k", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	stores := make(chan *store.Store, len(peers))
	for name := range peers {
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
			defer cancel()
			s, err := store.Open(ctx, store.Config{
				DataDir: filepath.Join(dir, name), KeyFile: key, Log: slog.New(slog.DiscardHandler),
				Member: &store.Member{Name: name, InitialCluster: peers},
			})
			if err != nil {
				t.Error(err)
			}
			stores <- s
		}()
	}
	var all []*store.Store
	for range peers {
		if s := <-stores; s != nil {
			all = append(all, s)
		}
	}
	defer func() {
		for _, s := range all {
			_ = s.Close()
		}
	}()
	if len(all) != 3 {
		t.Fatal("not all members are up")
	}
	if _, err := all[0].CreateCameras(t.Context(), cameras(1)); err != nil {
		t.Fatal(err)
	}
	if c, err := all[2].Camera(t.Context(), "c-0"); err != nil || c.Desired.GetDisplayName() != "0" {
		t.Errorf("another member has %v, %v", c, err)
	}
	// A minority less, it goes on.
	if err := all[1].Close(); err != nil {
		t.Fatal(err)
	}
	var err error
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		if _, err = all[0].DeleteCamera(t.Context(), "c-0", 0); err == nil || errors.Is(err, fleet.CameraNotFound) {
			break
		}
	}
	if err != nil && !errors.Is(err, fleet.CameraNotFound) {
		t.Fatalf("with two members of three: %v", err)
	}
	stopWithoutQuorum(t, all[0], all[2])
}

// A leader and a candidate that lose the quorum stop all the same, in a time
// that does not depend on their leases.
func stopWithoutQuorum(t *testing.T, s, other *store.Store) {
	t.Helper()
	const ttl = time.Minute
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	leader, err := s.Campaign(ctx, "leader", ttl)
	if err != nil {
		t.Fatal(err)
	}
	candidate := make(chan error, 1)
	go func() {
		_, err := s.Campaign(ctx, "candidate", ttl)
		candidate <- err
	}()
	if err := other.Close(); err != nil {
		t.Fatal(err)
	}
	cancel()
	began := time.Now()
	leader.Resign()
	if err := <-candidate; err == nil {
		t.Error("a candidate was elected without a quorum")
	}
	if took := time.Since(began); took > ttl/2 {
		t.Errorf("stopping without a quorum took %v", took)
	}
}

// settle waits until the goroutines of etcd's peer connections have ended: that
// takes them a read timeout of 5 s when the peer was in the same process.
func settle(t *testing.T, before goleak.Option) {
	t.Helper()
	var err error
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); {
		if err = goleak.Find(before); err == nil {
			return
		}
	}
	t.Error(err)
}
