//go:build !linux

package fleettest

import "syscall"

// dieWithParent has no means here: Close is what ends the processes.
func dieWithParent() *syscall.SysProcAttr { return nil }
