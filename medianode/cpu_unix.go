//go:build unix

package medianode

import (
	"syscall"
	"time"
)

// processTime returns the user and system time of this process, of all its
// threads; 0: not known.
func processTime() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
