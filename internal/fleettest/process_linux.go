package fleettest

import "syscall"

// dieWithParent has a process killed when this one ends, however that ends, and
// keeps a terminal's signals from it.
func dieWithParent() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
