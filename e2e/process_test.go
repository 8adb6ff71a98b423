//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// stopLimit is how long a process may take to stop after SIGTERM: 5 s by the
// product's promise, and what a loaded machine adds.
const stopLimit = 8 * time.Second

// process is a program that a test started, alone in its process group, so
// that what it starts goes with it. It ends with the test at the latest.
type process struct {
	name string
	cmd  *exec.Cmd
	out  *output
	done chan struct{} // closed when it has ended, after err was set
	err  error         // of Wait

	stopping sync.Once
}

// start runs a command until the end of the test. Its output goes to a file
// among the artifacts, and its last lines to the test's log if it fails.
func start(t *testing.T, name string, cmd *exec.Cmd) *process {
	t.Helper()
	file, err := os.OpenFile(artifact(t, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{name: name, cmd: cmd, out: &output{file: file, grown: make(chan struct{})}, done: make(chan struct{})}
	cmd.Stdout, cmd.Stderr = p.out, p.out
	// Killed with the test binary too, if that is killed.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	// A program that left its output to a child must not hold Wait up.
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		_ = file.Close()
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	t.Cleanup(func() {
		p.stop(t)
		if t.Failed() {
			t.Logf("the end of what %s printed:\n%s", name, p.out.tail(40))
		}
		_ = file.Close()
	})
	return p
}

// stop asks the process to end and waits for it. The test fails if it does not
// end in time or not well. A second call does nothing.
func (p *process) stop(t *testing.T) {
	t.Helper()
	p.stopping.Do(func() {
		select {
		case <-p.done:
			t.Errorf("%s ended by itself: %v", p.name, p.err)
			return
		default:
		}
		began := time.Now()
		if err := p.signal(syscall.SIGTERM); err != nil {
			t.Errorf("stop %s: %v", p.name, err)
		}
		select {
		case <-p.done:
			if p.err != nil {
				t.Errorf("%s did not stop well: %v", p.name, p.err)
			}
		case <-time.After(stopLimit):
			t.Errorf("%s still runs %v after SIGTERM", p.name, time.Since(began).Round(time.Second))
			p.killNow(t)
		}
	})
}

// kill ends the process the hard way, as a power cut would.
func (p *process) kill(t *testing.T) {
	t.Helper()
	p.stopping.Do(func() { p.killNow(t) })
}

// goroutines ends a Go process, and returns the stacks of its goroutines, which
// it prints because of the signal.
func (p *process) goroutines(t *testing.T) string {
	t.Helper()
	const dump = "SIGQUIT: quit"
	p.stopping.Do(func() {
		if err := p.signal(syscall.SIGQUIT); err != nil {
			t.Fatal(err)
		}
		select {
		case <-p.done:
		case <-time.After(stopLimit):
			p.killNow(t)
		}
	})
	_, stacks, ok := strings.Cut(p.out.String(), dump)
	if !ok {
		t.Fatalf("%s printed no goroutines", p.name)
	}
	return stacks
}

func (p *process) killNow(t *testing.T) {
	t.Helper()
	if err := syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL); err != nil {
		t.Errorf("kill %s: %v", p.name, err)
	}
	<-p.done
}

func (p *process) signal(s syscall.Signal) error {
	if err := p.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %v: %w", s, err)
	}
	return nil
}

// awaitLine waits until the process has printed a text.
func (p *process) awaitLine(t *testing.T, text string, patience time.Duration) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		has, grown := p.out.contains(text)
		if has {
			return
		}
		select {
		case <-grown:
		case <-p.done:
			t.Fatalf("%s ended (%v) before it printed %q:\n%s", p.name, p.err, text, p.out.tail(20))
		case <-deadline.C:
			t.Fatalf("%s did not print %q within %v:\n%s", p.name, text, patience, p.out.tail(20))
		}
	}
}

// output keeps what a process prints, in memory and in a file.
type output struct {
	file *os.File

	mu    sync.Mutex // guards the rest
	text  bytes.Buffer
	grown chan struct{} // closed and replaced with every write
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text.Write(b)
	close(o.grown)
	o.grown = make(chan struct{})
	return o.file.Write(b)
}

// contains tells whether a text has been printed, and returns a channel that is
// closed when there is more.
func (o *output) contains(text string) (bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return bytes.Contains(o.text.Bytes(), []byte(text)), o.grown
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

func (o *output) tail(lines int) string {
	all := strings.Split(strings.TrimRight(o.String(), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// ports hands out port numbers of 127.0.0.1 that are free for TCP and UDP, and
// never the same one twice.
var ports struct {
	mu    sync.Mutex
	given map[int]bool
}

// freePort returns such a port. It is free now; nothing keeps others from it,
// but what listens on port 0 is unlikely to get it at once.
func freePort(t *testing.T) int {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	if ports.given == nil {
		ports.given = make(map[int]bool)
	}
	for range 100 {
		port, err := tryPort()
		if err == nil && !ports.given[port] {
			ports.given[port] = true
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

func tryPort() (int, error) {
	// None of those that the system gives to whoever connects (32768 and up): such a
	// port could be taken before it is used.
	lis, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+rand.IntN(20_000)))
	if err != nil {
		return 0, fmt.Errorf("free port: %w", err)
	}
	defer lis.Close()
	port := lis.Addr().(*net.TCPAddr).Port
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: port})
	if err != nil {
		return 0, fmt.Errorf("free port: %w", err)
	}
	return port, conn.Close()
}

// freeAddr is freePort as host:port.
func freeAddr(t *testing.T) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", freePort(t))
}
