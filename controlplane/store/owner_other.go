//go:build !unix

package store

import "io/fs"

// ownerOf is for systems whose files have other permissions.
func ownerOf(fs.FileInfo) int { return -1 }
