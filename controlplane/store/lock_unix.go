//go:build unix

package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// dirLock keeps other processes from a data directory. It ends with the
// process, however that ends.
type dirLock struct{ f *os.File }

// lockDir locks a data directory; without it a second process would wait for
// the first one's end without a word.
func lockDir(dir string) (*dirLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data directory: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close() // the error is Flock's
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("data directory %s is in use by another process: stop it, or choose another directory", dir)
		}
		return nil, fmt.Errorf("lock data directory %s: %w", dir, err)
	}
	return &dirLock{f}, nil
}

func (l *dirLock) release() {
	if l != nil {
		_ = l.f.Close() // unlocks
	}
}

// probe writes to the disk that the directory is on, and waits until it is
// there.
func (l *dirLock) probe() error {
	if _, err := l.f.WriteAt([]byte{'\n'}, 0); err != nil {
		return err
	}
	return l.f.Sync()
}
