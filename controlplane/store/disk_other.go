//go:build !linux && !darwin && !freebsd

package store

import "errors"

// freeDisk is not known here: only etcd's own errors tell of a full disk.
func freeDisk(string) (int64, error) { return 0, errors.ErrUnsupported }
