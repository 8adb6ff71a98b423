package medianode

import (
	"bytes"
	"io/fs"
	"math"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
)

// processors returns how many processors the process may use, of which it need
// not be given all of one. GOMAXPROCS follows a quota, but rounded up and never
// to less than two: a process with one half would seem idle for ever.
func processors() float64 {
	return min(float64(runtime.GOMAXPROCS(0)), cpuQuota(os.DirFS("/")))
}

// cpuQuota returns the least quota of the process's cgroup and those above it,
// in processors; +Inf: there is none, or it is not known. Of cgroups of version 2
// only: https://docs.kernel.org/admin-guide/cgroup-v2.html, cpu.max.
func cpuQuota(root fs.FS) float64 {
	least := math.Inf(1)
	all, err := fs.ReadFile(root, "proc/self/cgroup")
	if err != nil {
		return least
	}
	for line := range bytes.Lines(all) {
		group, ok := strings.CutPrefix(strings.TrimSpace(string(line)), "0::/")
		if !ok {
			continue
		}
		// In a container the group may be the host's name for it, which is not
		// there, while the root is the container's own.
		for dir := path.Join("sys/fs/cgroup", path.Clean("/"+group)); ; dir = path.Dir(dir) {
			if limit, err := fs.ReadFile(root, path.Join(dir, "cpu.max")); err == nil {
				least = min(least, parseQuota(string(limit)))
			}
			if dir == "sys/fs/cgroup" {
				break
			}
		}
	}
	return least
}

// parseQuota reads "max 100000" or "150000 100000": microseconds of how many.
func parseQuota(s string) float64 {
	f := strings.Fields(s)
	if len(f) != 2 {
		return math.Inf(1)
	}
	quota, err := strconv.ParseUint(f[0], 10, 63)
	period, err2 := strconv.ParseUint(f[1], 10, 63)
	if err != nil || err2 != nil || quota == 0 || period == 0 {
		return math.Inf(1)
	}
	return float64(quota) / float64(period)
}
