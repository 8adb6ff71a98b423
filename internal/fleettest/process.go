package fleettest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Kind is which component a process is.
type Kind string

// The components.
const (
	ControlPlane Kind = "controlplane"
	MediaNode    Kind = "medianode"
	Signaling    Kind = "signaling"
)

// killPatience is how long a process that was killed may take to be gone: the
// kernel's time, on a loaded machine.
const killPatience = 10 * time.Second

// ProcessConfig says what a process that is not of a fleet runs. All but Env is
// needed.
type ProcessConfig struct {
	Name    string
	Binary  string
	Args    []string
	Env     []string // added to this process' environment: "KEY=value"
	LogFile string   // of all its starts
	Ready   string   // the first word of the line that it prints when it is ready
}

// NewProcess returns a process on loopback that is not of a fleet. It is not
// started; who starts it must kill or terminate it.
func NewProcess(cfg ProcessConfig) *Process {
	return &Process{Name: cfg.Name, LogFile: cfg.LogFile, args: cfg.Args, binary: cfg.Binary, env: cfg.Env, network: Loopback{}, word: cfg.Ready}
}

// Process is one process of a fleet, over all its starts: the same name,
// addresses, data and log. Its methods may be called from any goroutine; starts
// and ends wait for each other.
type Process struct {
	// Static after New.
	Name    string // "node-2"
	Kind    Kind   // empty: none of a fleet
	Addr    string // host:port of its gRPC server, or HTTP for a gateway
	Media   string // host:port of a node's media; empty for others
	Metrics string // host:port of its metrics and profiles, on the loopback of its place
	LogFile string // of all its starts

	args    []string
	binary  string
	env     []string
	network Network
	word    string // what it prints when it is ready

	turn sync.Mutex // one start or end at a time

	mu  sync.Mutex // guards the rest
	run *running   // nil: never started
}

// running is one start.
type running struct {
	cmd    *exec.Cmd
	out    *output
	file   *os.File
	waited chan struct{} // closed when it has ended, after err was set
	err    error         // of Wait
	asked  bool          // to end, by this package's caller
}

// Start starts the process; it does not wait until that is ready.
func (p *Process) Start() error {
	p.turn.Lock()
	defer p.turn.Unlock()
	if p.Running() {
		return fmt.Errorf("start %s: it runs", p.Name)
	}
	file, err := os.OpenFile(p.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.Name, err)
	}
	r := &running{out: newOutput(file), file: file, waited: make(chan struct{})}
	r.cmd = exec.Command(p.binary, p.args...) //nolint:gosec,noctx // the binary under test; it outlives the call
	r.cmd.Env = append(os.Environ(), p.env...)
	r.cmd.Stdout, r.cmd.Stderr = r.out, r.out
	// What it leaves behind must not hold Wait up.
	r.cmd.WaitDelay = time.Second
	r.cmd.SysProcAttr = dieWithParent()
	if err = p.network.Wrap(p.Name, r.cmd); err == nil {
		_, _ = fmt.Fprintf(file, "--- %s: %s\n", time.Now().Format(time.RFC3339Nano), strings.Join(r.cmd.Args, " "))
		err = r.cmd.Start()
	}
	if err != nil {
		return errors.Join(fmt.Errorf("start %s: %w", p.Name, err), file.Close())
	}
	go func() {
		r.err = r.cmd.Wait()
		_, _ = fmt.Fprintf(file, "--- %s: ended: %v\n", time.Now().Format(time.RFC3339Nano), r.err)
		_ = file.Close()
		close(r.waited)
	}()
	p.mu.Lock()
	p.run = r
	p.mu.Unlock()
	return nil
}

func (p *Process) current() *running {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.run
}

// Running tells whether the process runs.
func (p *Process) Running() bool {
	r := p.current()
	if r == nil {
		return false
	}
	select {
	case <-r.waited:
		return false
	default:
		return true
	}
}

// PID returns the id of the process that was started last; 0: none was.
func (p *Process) PID() int {
	if r := p.current(); r != nil {
		return r.cmd.Process.Pid
	}
	return 0
}

// AwaitReady waits until the process has said that it is ready, since its last
// start. It fails at once if the process ends.
func (p *Process) AwaitReady(ctx context.Context) error {
	r := p.current()
	if r == nil {
		return fmt.Errorf("wait for %s: it was not started", p.Name)
	}
	for {
		said, grown := r.out.said(p.word)
		if said {
			return nil
		}
		select {
		case <-grown:
		case <-r.waited:
			return fmt.Errorf("wait for %s: it ended (%w) before it was ready:\n%s", p.Name, endError(r.err), p.Tail(20))
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be ready: %w:\n%s", p.Name, ctx.Err(), p.Tail(20))
		}
	}
}

// errEndedWell is why a process that ended with code 0 is not there.
var errEndedWell = errors.New("exit code 0")

func endError(err error) error {
	if err == nil {
		return errEndedWell
	}
	return err
}

// Signal sends a signal; it does not wait for what comes of it. A process that
// is stopped (SIGSTOP) is a host that hangs.
func (p *Process) Signal(s syscall.Signal) error {
	r := p.current()
	if r == nil {
		return fmt.Errorf("signal %s: it was not started", p.Name)
	}
	if err := r.cmd.Process.Signal(s); err != nil {
		return fmt.Errorf("signal %s: %w", p.Name, err)
	}
	return nil
}

// Kill ends the process as kill -9 does, and waits until it is gone. One that
// has ended already is none to kill: an error, for nobody asked it to.
func (p *Process) Kill() error {
	p.turn.Lock()
	defer p.turn.Unlock()
	r, err := p.end(syscall.SIGKILL)
	if err != nil {
		return err
	}
	select {
	case <-r.waited:
		return nil
	case <-time.After(killPatience):
		return fmt.Errorf("kill %s: still there after %v", p.Name, killPatience)
	}
}

// Terminate asks the process to end (SIGTERM) and waits for it. It fails if the
// process ends otherwise than with code 0, or not before ctx, and is then
// killed.
func (p *Process) Terminate(ctx context.Context) error {
	p.turn.Lock()
	defer p.turn.Unlock()
	r, err := p.end(syscall.SIGTERM)
	if err != nil {
		return err
	}
	select {
	case <-r.waited:
	case <-ctx.Done():
		_ = r.cmd.Process.Kill()
		<-r.waited
		return fmt.Errorf("stop %s: %w; killed:\n%s", p.Name, ctx.Err(), p.Tail(20))
	}
	if r.err != nil {
		return fmt.Errorf("stop %s: %w:\n%s", p.Name, r.err, p.Tail(20))
	}
	return nil
}

func (p *Process) end(s syscall.Signal) (*running, error) {
	r := p.current()
	switch {
	case r == nil:
		return nil, fmt.Errorf("end %s: it was not started", p.Name)
	case !p.Running():
		return nil, fmt.Errorf("end %s: it has ended by itself (%w):\n%s", p.Name, endError(r.err), p.Tail(20))
	}
	p.mu.Lock()
	r.asked = true
	p.mu.Unlock()
	if err := r.cmd.Process.Signal(s); err != nil {
		return nil, fmt.Errorf("end %s: %w", p.Name, err)
	}
	return r, nil
}

// Restart starts a process that has ended and waits until it is ready.
func (p *Process) Restart(ctx context.Context) error {
	if err := p.Start(); err != nil {
		return err
	}
	return p.AwaitReady(ctx)
}

// Crashed returns an error if the process has ended and nobody asked it to.
func (p *Process) Crashed() error {
	r := p.current()
	if r == nil || p.Running() {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.asked {
		return nil
	}
	return fmt.Errorf("%s ended by itself: %w", p.Name, endError(r.err))
}

// Tail returns the last lines that the process printed since its last start.
func (p *Process) Tail(lines int) string {
	if r := p.current(); r != nil {
		return r.out.tail(lines)
	}
	return ""
}

// keptOutput is how much of a start's output is kept in memory, beside the
// file.
const keptOutput = 64 << 10

// output keeps the end of what a process prints, and all of it in a file.
type output struct {
	file io.Writer

	mu    sync.Mutex // guards the rest
	text  []byte
	lines map[string]bool // first words of lines of the standard output's announcements
	rest  []byte          // a line that has not ended
	grown chan struct{}   // closed and replaced with every write
}

func newOutput(file io.Writer) *output {
	return &output{file: file, lines: make(map[string]bool), grown: make(chan struct{})}
}

// Write takes what a process prints.
func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b...)
	if n := len(o.text) - keptOutput; n > keptOutput {
		o.text = append([]byte(nil), o.text[n:]...)
	}
	o.rest = append(o.rest, b...)
	for {
		line, rest, ok := bytes.Cut(o.rest, []byte("\n"))
		if !ok {
			break
		}
		if word, _, found := bytes.Cut(line, []byte(" ")); found && len(o.lines) < 64 && !bytes.ContainsRune(word, '=') {
			o.lines[string(word)] = true
		}
		o.rest = rest
	}
	close(o.grown)
	o.grown = make(chan struct{})
	return o.file.Write(b)
}

// said tells whether a line began with a word, and returns a channel that is
// closed when there is more.
func (o *output) said(word string) (bool, <-chan struct{}) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.lines[word], o.grown
}

func (o *output) tail(lines int) string {
	o.mu.Lock()
	defer o.mu.Unlock()
	all := strings.Split(strings.TrimRight(string(o.text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}
