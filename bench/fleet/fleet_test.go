package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// build builds the program that is measured.
func build(t *testing.T) string {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "fanlight")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "fanlight/cmd/fanlight")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd.Args, err, out)
	}
	return binary
}

// A small fleet, measured as a large one is.
func TestFleet(t *testing.T) {
	if testing.Short() {
		t.Skip("takes two minutes, of which it mostly waits for moves to end")
	}
	dir := t.TempDir()
	profiles := filepath.Join(t.TempDir(), "profile")
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	res, err := Run(ctx, Config{
		Binary: build(t), Dir: dir, Cameras: 200, Nodes: 5, Replicas: 1, MemProfile: profiles,
		Progress: func(line string) { t.Log(line) },
	})
	if err != nil {
		t.Fatal(err)
	}
	for what, v := range map[string]float64{
		"register": res.Register, "all assigned": res.AllAssigned, "node's death p50": res.NodeDeathP50,
		"node's death p99": res.NodeDeathP99, "leader's death": res.LeaderDeath, "join": res.JoinSettled,
	} {
		if v <= 0 || v > 300_000 {
			t.Errorf("%s: %v", what, v)
		}
	}
	if res.NodeDeathP99 < res.NodeDeathP50 || res.Deaths != 1 {
		t.Errorf("%d deaths: p50 %v ms, p99 %v ms", res.Deaths, res.NodeDeathP50, res.NodeDeathP99)
	}
	// 200 cameras on 6 nodes are 33 each; a fifth less is enough.
	if res.MovesOnJoin < 20 || res.MovesOnJoin > 34 {
		t.Errorf("%d moves when a node joined", res.MovesOnJoin)
	}
	if _, err := os.Stat("/proc/self/stat"); err == nil && (res.RSS < 20 || res.RSSMax > res.RSS || res.CPU <= 0 || res.CPUMax > res.CPU || res.NodesCPU <= 0) {
		t.Errorf("memory %v MiB, %v MiB; CPU %v s, %v s, simulation %v s", res.RSS, res.RSSMax, res.CPU, res.CPUMax, res.NodesCPU)
	}
	if heap, err := os.ReadFile(profiles + ".plane-1"); err != nil || len(heap) < 100 {
		t.Errorf("heap profile of %d bytes, %v", len(heap), err)
	}
}

// What is measured has ended when Run returns, also when it is stopped.
func TestStopped(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	assigning := func(line string) {
		if line == "give the nodes more room" {
			cancel()
		}
	}
	if _, err := Run(ctx, Config{Binary: build(t), Dir: t.TempDir(), Cameras: 50, Nodes: 5, Replicas: 1, Progress: assigning}); err == nil {
		t.Fatal("no error")
	}
}

func TestRunSaysWhatIsMissing(t *testing.T) {
	for _, cfg := range []Config{
		{},
		{Binary: "fanlight", Dir: t.TempDir()},
		{Binary: "fanlight", Dir: t.TempDir(), Cameras: 1, Nodes: 1},
		{Binary: filepath.Join(t.TempDir(), "none"), Dir: t.TempDir(), Cameras: 1, Nodes: 2},
	} {
		if _, err := Run(t.Context(), cfg); err == nil {
			t.Errorf("no error for %+v", cfg)
		}
	}
}

// The keys that others read.
func TestResultKeys(t *testing.T) {
	data, err := json.Marshal(Result{})
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(data, &got); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"register_s", "all_assigned_s", "node_death_p50_ms", "node_death_p99_ms", "leader_death_ms", "moves_on_join", "rss_mib"} {
		if _, ok := got[key]; !ok {
			t.Errorf("no %s in %s", key, data)
		}
	}
}

func TestPlacement(t *testing.T) {
	res, err := Placement(t.Context(), 2000, 40)
	if err != nil {
		t.Fatal(err)
	}
	if res.Plan <= 0 || res.Plan > 60 || res.NodeLossP50 < 0 || res.NodeLossP99 < res.NodeLossP50 || res.LostCameras < 25 {
		t.Errorf("%+v", res)
	}
	if res.Moves < 1 || res.Moves > 60 {
		t.Errorf("%d moves when a node joined, of a share of 50", res.Moves)
	}
	if _, err := Placement(t.Context(), 1, 1); err == nil {
		t.Error("no error for one node")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Placement(ctx, 2000, 40); err == nil {
		t.Error("no error when stopped")
	}
}

func TestPercentile(t *testing.T) {
	var list []time.Duration
	for i := range 20 {
		list = append(list, time.Duration(i+1))
	}
	for _, tt := range []struct {
		list []time.Duration
		p    int
		want time.Duration
	}{{list, 50, 10}, {list, 99, 20}, {list, 95, 19}, {list, 1, 1}, {list[:1], 50, 1}, {list[:3], 50, 2}} {
		if got := percentile(tt.list, tt.p); got != tt.want {
			t.Errorf("p%d of %s: %d, want %d", tt.p, fmt.Sprint(tt.list), got, tt.want)
		}
	}
}

// A process' usage is read as the kernel writes it, whatever its name.
func TestReadProcess(t *testing.T) {
	rss, cpu, ok := readProcess(os.Getpid())
	if !ok {
		t.Skip("there is no /proc here")
	}
	if rss < 1 || rss > 100_000 || cpu < 0 || cpu > time.Hour {
		t.Errorf("%v MiB, %v", rss, cpu)
	}
	if _, _, ok := readProcess(-1); ok {
		t.Error("read what is not there")
	}
	if m := readMachine(); m.active <= 0 || m.passed < m.active {
		t.Errorf("%+v", m)
	}
}
