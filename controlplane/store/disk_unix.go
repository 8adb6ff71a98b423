//go:build linux || darwin || freebsd

package store

import (
	"fmt"
	"syscall"
)

// freeDisk returns how many bytes this user may still write under a directory.
func freeDisk(dir string) (int64, error) {
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		return 0, fmt.Errorf("free space of %s: %w", dir, err)
	}
	return int64(st.Bavail) * int64(st.Bsize), nil //nolint:unconvert // the types differ between systems
}
