package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"sync"
	"time"

	"fanlight/internal/fleettest"
)

const (
	// usageEvery is how often the replicas' memory is looked at.
	usageEvery = 500 * time.Millisecond
	// profileFor is how long a CPU profile takes.
	profileFor = 30 * time.Second
	// ticks is USER_HZ, the unit of times in /proc, which is 100 on every Linux.
	ticks = 100
)

// usage is what the replicas have used. Where there is no /proc, it stays zero.
type usage struct {
	planes []*fleettest.Process
	group  sync.WaitGroup
	begun  machine

	mu      sync.Mutex // guards the rest
	cpu     map[int]time.Duration
	names   map[int]string
	rss     map[string]float64 // at the most, MiB
	sum     float64            // of all at once, at the most
	failure []error            // of profiles
}

func newUsage(planes []*fleettest.Process) *usage {
	return &usage{planes: planes, cpu: make(map[int]time.Duration), names: make(map[int]string), rss: make(map[string]float64)}
}

// start looks until ctx ends.
func (u *usage) start(ctx context.Context) {
	u.begun = readMachine()
	u.group.Go(func() {
		for sleep(ctx, usageEvery) == nil {
			u.sample()
		}
	})
}

func (u *usage) wait() { u.group.Wait() }

// sample looks at all replicas that run.
func (u *usage) sample() {
	u.mu.Lock()
	defer u.mu.Unlock()
	total := 0.0
	for _, p := range u.planes {
		if !p.Running() {
			continue
		}
		pid := p.PID()
		rss, cpu, ok := readProcess(pid)
		if !ok {
			continue
		}
		total += rss
		u.rss[p.Name] = max(u.rss[p.Name], rss)
		u.cpu[pid], u.names[pid] = max(u.cpu[pid], cpu), p.Name
	}
	u.sum = max(u.sum, total)
}

// into puts the sums into a result.
func (u *usage) into(r *Result) {
	u.mu.Lock()
	defer u.mu.Unlock()
	r.RSS = round(u.sum, 1)
	for _, v := range u.rss {
		r.RSSMax = max(r.RSSMax, round(v, 1))
	}
	cpu := make(map[string]time.Duration)
	var all time.Duration
	for pid, d := range u.cpu {
		cpu[u.names[pid]] += d
		all += d
	}
	r.CPU = seconds(all)
	for _, d := range cpu {
		r.CPUMax = max(r.CPUMax, seconds(d))
	}
	if _, own, ok := readProcess(os.Getpid()); ok {
		r.NodesCPU = seconds(own)
	}
	if now := readMachine(); now.passed > u.begun.passed {
		r.MachineBusy = round((now.active-u.begun.active)/(now.passed-u.begun.passed), 2)
	}
}

// readProcess returns a process' resident memory in MiB and its CPU time, user
// and system (proc_pid_stat(5)).
func readProcess(pid int) (rss float64, cpu time.Duration, ok bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, 0, false
	}
	// The second field is the command in parentheses, and may have blanks.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 22 {
		return 0, 0, false
	}
	field := func(n int) float64 { // as numbered in the manual
		v, _ := strconv.ParseFloat(string(fields[n-3]), 64)
		return v
	}
	cpu = time.Duration((field(14) + field(15)) / ticks * float64(time.Second))
	return field(24) * float64(os.Getpagesize()) / (1 << 20), cpu, true
}

// machine is how long all cores together have worked, and how long they could
// have, in the kernel's units (proc_stat(5)).
type machine struct{ active, passed float64 }

func readMachine() machine {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machine{}
	}
	line, _, _ := bytes.Cut(data, []byte("\n"))
	var m machine
	for i, f := range bytes.Fields(line) {
		v, err := strconv.ParseFloat(string(f), 64)
		if err != nil || i > 8 { // the word "cpu"; guests are in user already
			continue
		}
		m.passed += v
		if i != 4 && i != 5 { // idle, iowait
			m.active += v
		}
	}
	return m
}

// profileCPU begins to profile the replicas; collect waits for it.
func (b *bench) profileCPU() {
	if b.cfg.CPUProfile == "" {
		return
	}
	for name, addr := range b.metrics {
		b.usage.group.Go(func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*profileFor)
			defer cancel()
			b.usage.fail(fetch(ctx, fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%.0f", addr, profileFor.Seconds()), b.cfg.CPUProfile+"."+name))
		})
	}
}

// profileMem has the heaps of the replicas that run written.
func (b *bench) profileMem(ctx context.Context) error {
	if b.cfg.MemProfile == "" {
		return nil
	}
	var errs []error
	for _, p := range b.fleet.Planes {
		if p.Running() {
			errs = append(errs, fetch(ctx, "http://"+b.metrics[p.Name]+"/debug/pprof/heap", b.cfg.MemProfile+"."+p.Name))
		}
	}
	return errors.Join(errs...)
}

func (u *usage) fail(err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.failure = append(u.failure, err)
}

func (u *usage) profiles() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return errors.Join(u.failure...)
}

// fetch writes what is at a URL into a file.
func fetch(ctx context.Context, url, file string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("profile: %w", err)
	}
	defer http.DefaultClient.CloseIdleConnections()
	defer func() { _ = resp.Body.Close() }() // it was read
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = errors.New(resp.Status)
	}
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		return fmt.Errorf("profile from %s: %w", url, err)
	}
	return nil
}

// freeAddr returns an address on loopback that is free.
func freeAddr() (string, error) {
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return "", fmt.Errorf("bench fleet: %w", err)
	}
	defer func() { _ = l.Close() }() // nothing was accepted
	return l.Addr().String(), nil
}
