package medianode

import (
	"math"
	"testing"
	"testing/fstest"
)

func TestCPUQuota(t *testing.T) {
	none := math.Inf(1)
	for name, c := range map[string]struct {
		files map[string]string
		want  float64
	}{
		"no cgroups":           {nil, none},
		"none of version 2":    {map[string]string{"proc/self/cgroup": "9:cpu:/a\n0::/\n"}, none},
		"container":            {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 0.5},
		"container, unlimited": {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, none},
		"container under the host's name": {map[string]string{
			"proc/self/cgroup": "0::/kubepods.slice/pod1/c2\n", "sys/fs/cgroup/cpu.max": "250000 100000\n",
		}, 2.5},
		"unit": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/fanlight.service\n", "sys/fs/cgroup/system.slice/fanlight.service/cpu.max": "150000 100000\n",
			"sys/fs/cgroup/system.slice/cpu.max": "max 100000\n",
		}, 1.5},
		"slice with less than its unit": {map[string]string{
			"proc/self/cgroup": "0::/system.slice/fanlight.service\n", "sys/fs/cgroup/system.slice/fanlight.service/cpu.max": "400000 100000\n",
			"sys/fs/cgroup/system.slice/cpu.max": "200000 100000\n",
		}, 2},
		"beside the tree": {map[string]string{"proc/self/cgroup": "0::/../../x\n", "sys/fs/cgroup/x/cpu.max": "100000 100000\n", "x/cpu.max": "1 100000\n"}, 1},
		"nonsense":        {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "-1 x\n"}, none},
		"nothing":         {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "0 100000\n"}, none},
		"empty":           {map[string]string{"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": ""}, none},
	} {
		files := fstest.MapFS{}
		for name, data := range c.files {
			files[name] = &fstest.MapFile{Data: []byte(data)}
		}
		if got := cpuQuota(files); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
	if p := processors(); !(p > 0) || math.IsInf(p, 0) {
		t.Errorf("this process may use %v processors", p)
	}
}
