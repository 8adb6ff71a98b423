package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"go.etcd.io/etcd/etcdutl/v3/snapshot"
)

// Backup writes all that is stored, as of one moment: etcd's database, and the
// 32 bytes of its SHA-256. It takes nothing but this member, and no quorum.
func (s *Store) Backup(ctx context.Context, w io.Writer) error {
	resp, err := s.client.SnapshotWithVersion(ctx)
	if err != nil {
		return fmt.Errorf("back up etcd: %w", s.unavailable(ctx, err))
	}
	_, err = io.Copy(w, resp.Snapshot)
	if cerr := resp.Snapshot.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("back up etcd: %w", unavailable(err))
	}
	return nil
}

// databasePage is the least size of a page of etcd's database: its length is a
// multiple of that, and the length of a backup 32 bytes more.
const databasePage = 512

// CheckBackup tells whether a backup is whole, and returns its SHA-256.
func CheckBackup(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	n := info.Size() - sha256.Size
	if n <= 0 || n%databasePage != 0 {
		return nil, fmt.Errorf("%s is not a backup, or was cut short: it has %d bytes", path, info.Size())
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, io.LimitReader(f, n)); err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	want := make([]byte, sha256.Size)
	if _, err := io.ReadFull(f, want); err != nil {
		return nil, fmt.Errorf("backup: %w", err)
	}
	if !bytes.Equal(want, sum.Sum(nil)) {
		return nil, fmt.Errorf("%s is damaged: its checksum does not fit", path)
	}
	return want, nil
}

// revisionBump is how far a restored store's revision is ahead of the backup's:
// more than any fleet writes between two backups, so that no revision, and so
// no generation and no resume token, means two things.
const revisionBump = 1_000_000_000

// Restoring is what Restore needs.
type Restoring struct {
	Log     *slog.Logger // nil: no log
	Backup  string       // the file
	DataDir string       // to be made; it must not have a store yet
	// Member makes it the data directory of one of several members; nil: of one
	// that is alone. The others must be restored from the same file, with the
	// same InitialCluster and Token, or added later.
	Member *Member
}

// Restore makes a data directory from a backup, with nothing running. It is a
// new cluster: members of the one that was backed up can't join it, and nodes
// forget the generations of that.
func Restore(r Restoring) (err error) {
	if r.Log == nil {
		r.Log = slog.New(slog.DiscardHandler)
	}
	sum, err := CheckBackup(r.Backup)
	if err != nil {
		return err
	}
	dir, err := filepath.Abs(r.DataDir)
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return err
	}
	defer lock.release()
	etcdDir := filepath.Join(dir, "etcd")
	for _, name := range []string{"etcd", identityFile} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return fmt.Errorf("data directory %s has a store already (%s): choose another, or move that away", dir, name)
		}
	}
	cfg, err := r.config(sum)
	if err != nil {
		return err
	}
	cfg.SnapshotPath, cfg.OutputDataDir = r.Backup, etcdDir
	cfg.RevisionBump, cfg.MarkCompacted = revisionBump, true
	defer func() {
		if err != nil {
			_ = os.RemoveAll(etcdDir) // half a store
		}
	}()
	log := newEtcdLog(r.Log)
	done := make(chan error, 1)
	go func() { done <- snapshot.NewV3(log.zap).Restore(cfg) }()
	select {
	case err = <-done:
	case <-log.fatal.failed:
		err = (&embedded{dir: dir}).endError(log.fatal.err)
	}
	if err != nil {
		return fmt.Errorf("restore: %w", err)
	}
	return keepIdentity(dir, r.Member)
}

// config returns etcd's settings of the new cluster.
func (r *Restoring) config(sum []byte) (snapshot.RestoreConfig, error) {
	ec, err := etcdConfig(r.Member, "", "restore.sock", newEtcdLog(r.Log).zap)
	if err != nil {
		return snapshot.RestoreConfig{}, err
	}
	cfg := snapshot.RestoreConfig{Name: ec.Name, InitialCluster: ec.InitialCluster, InitialClusterToken: ec.InitialClusterToken}
	for _, u := range ec.AdvertisePeerUrls {
		cfg.PeerURLs = append(cfg.PeerURLs, u.String())
	}
	if r.Member != nil && r.Member.Token == "" {
		// All members' must be the same, and not that of the cluster that was.
		cfg.InitialClusterToken = "restored-" + hex.EncodeToString(sum[:8])
	}
	return cfg, nil
}
