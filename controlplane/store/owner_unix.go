//go:build unix

package store

import (
	"io/fs"
	"syscall"
)

// ownerOf returns whose file it is.
func ownerOf(info fs.FileInfo) int {
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid)
	}
	return -1
}
