package fleettest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// commandPatience is how long one of the programs that set the network up may
// take.
const commandPatience = 20 * time.Second

// isolatedVariable is set in the environment of a process that Isolate made.
const isolatedVariable = "FLEETTEST_ISOLATED"

// hubPrefix has the addresses of the places; the first is this process'.
var hubPrefix = netip.MustParsePrefix("10.231.77.0/24")

// bridge joins the places. It is in a namespace of its own, and needs no name of
// its own.
const bridge = "fanlight0"

// ErrNotIsolated is why there are no namespaces: this process' network is that
// of the machine.
var ErrNotIsolated = errors.New("not in a network namespace made for it")

// Isolate has a command run in a network namespace of its own, without any
// interface but loopback, where it may use [NewNamespaces]. It must be run by
// root. A test runs its own program again in this way:
//
//	cmd := exec.CommandContext(ctx, os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v")
//	fleettest.Isolate(cmd)
func Isolate(cmd *exec.Cmd) {
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	cmd.Env = append(cmd.Env, isolatedVariable+"=1")
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Cloneflags |= syscall.CLONE_NEWNET
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
}

// Isolated tells whether this process was made by [Isolate].
func Isolated() bool { return os.Getenv(isolatedVariable) != "" }

// Namespaces is a network in which each place is a host: a network namespace
// with one interface, all on one bridge, at which this process is too. Packets
// from one place to another can be made to vanish, in either direction, as if a
// cable were cut: nobody is told.
//
// A namespace lives as long as a process that does nothing else, and that dies
// with this one: whatever happens, nothing is left. It takes root, and the
// programs ip, nsenter, iptables and sleep.
type Namespaces struct {
	mu     sync.Mutex // guards the rest
	places map[string]*namespace
	order  []string
	closed bool
}

// namespace is one place.
type namespace struct {
	addr   netip.Addr
	holder *exec.Cmd // nil: this process
	path   string    // of the namespace's file; empty: this process'
}

// NewNamespaces makes the bridge, in this process' own namespace: it fails with
// [ErrNotIsolated] where that was not made by [Isolate]. It must be closed.
func NewNamespaces() (*Namespaces, error) {
	if !Isolated() {
		return nil, ErrNotIsolated
	}
	n := &Namespaces{places: map[string]*namespace{Harness: {addr: hubPrefix.Addr().Next()}}, order: []string{Harness}}
	err := run(nil,
		"ip link set lo up",
		"ip link add "+bridge+" type bridge forward_delay 0",
		fmt.Sprintf("ip addr add %v/%d dev %s", n.places[Harness].addr, hubPrefix.Bits(), bridge),
		"ip link set "+bridge+" up",
	)
	if err != nil {
		return nil, fmt.Errorf("make a network: %w", err)
	}
	return n, nil
}

// Place makes a namespace for a name, if there is none.
func (n *Namespaces) Place(name string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if p := n.places[name]; p != nil {
		return p.addr, nil
	}
	if n.closed {
		return netip.Addr{}, errors.New("the network is closed")
	}
	p := &namespace{addr: n.places[n.order[len(n.order)-1]].addr.Next()}
	if !hubPrefix.Contains(p.addr.Next()) {
		return netip.Addr{}, errors.New("the network is full")
	}
	p.holder = exec.Command("sleep", "infinity") //nolint:noctx // it lives until Close
	p.holder.SysProcAttr = dieWithParent()
	p.holder.SysProcAttr.Cloneflags = syscall.CLONE_NEWNET
	if err := p.holder.Start(); err != nil {
		return netip.Addr{}, fmt.Errorf("make a namespace: %w", err)
	}
	pid := p.holder.Process.Pid
	p.path = fmt.Sprintf("/proc/%d/ns/net", pid)
	link := "fl" + strconv.Itoa(len(n.order))
	err := run(nil,
		fmt.Sprintf("ip link add %s type veth peer name eth0 netns %d", link, pid),
		fmt.Sprintf("ip link set %s master %s up", link, bridge),
	)
	if err == nil {
		err = run(p,
			"ip link set lo up",
			fmt.Sprintf("ip addr add %v/%d dev eth0", p.addr, hubPrefix.Bits()),
			"ip link set eth0 up",
		)
	}
	if err != nil {
		p.end()
		return netip.Addr{}, fmt.Errorf("make a namespace: %w", err)
	}
	n.places[name] = p
	n.order = append(n.order, name)
	return p.addr, nil
}

// Wrap has a command run in the namespace of a name.
func (n *Namespaces) Wrap(name string, cmd *exec.Cmd) error {
	p, err := n.place(name)
	if err != nil {
		return err
	}
	if p.path == "" {
		return nil
	}
	enter, err := exec.LookPath("nsenter")
	if err != nil {
		return fmt.Errorf("run in a namespace: %w", err)
	}
	cmd.Args = append([]string{enter, "--net=" + p.path, "--", cmd.Path}, cmd.Args[1:]...)
	cmd.Path = enter
	return nil
}

func (n *Namespaces) place(name string) (*namespace, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := n.places[name]
	if p == nil {
		return nil, fmt.Errorf("there is no place %q", name)
	}
	return p, nil
}

// Block makes all packets vanish that go from one place to another. They are
// dropped where they arrive: the sender is not told.
func (n *Namespaces) Block(from, to string) error { return n.rule("-A", from, to) }

// Unblock undoes one Block.
func (n *Namespaces) Unblock(from, to string) error { return n.rule("-D", from, to) }

func (n *Namespaces) rule(action, from, to string) error {
	a, err := n.place(from)
	if err != nil {
		return err
	}
	b, err := n.place(to)
	if err != nil {
		return err
	}
	if err := run(b, fmt.Sprintf("iptables -w %s INPUT -s %v -j DROP", action, a.addr)); err != nil {
		return fmt.Errorf("packets from %s to %s: %w", from, to, err)
	}
	return nil
}

// Cut blocks a place from all others that there are now, both ways: its host
// has vanished.
func (n *Namespaces) Cut(name string) error { return n.around(name, n.Block) }

// Mend undoes a Cut.
func (n *Namespaces) Mend(name string) error { return n.around(name, n.Unblock) }

func (n *Namespaces) around(name string, do func(from, to string) error) error {
	n.mu.Lock()
	names := append([]string(nil), n.order...)
	n.mu.Unlock()
	var errs []error
	for _, other := range names {
		if other != name {
			errs = append(errs, do(name, other), do(other, name))
		}
	}
	return errors.Join(errs...)
}

// Close ends the namespaces and removes the bridge.
func (n *Namespaces) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return nil
	}
	n.closed = true
	for _, p := range n.places {
		p.end()
	}
	if err := run(nil, "iptables -w -F INPUT", "ip link del "+bridge); err != nil {
		return fmt.Errorf("remove the network: %w", err)
	}
	return nil
}

// end ends a namespace; its interface goes with it.
func (p *namespace) end() {
	if p.holder != nil {
		_ = p.holder.Process.Kill()
		_ = p.holder.Wait() // it was killed
	}
}

// run runs command lines in a namespace; nil: in this process'.
func run(p *namespace, lines ...string) error {
	for _, line := range lines {
		words := strings.Fields(line)
		if p != nil && p.path != "" {
			words = append([]string{"nsenter", "--net=" + p.path, "--"}, words...)
		}
		ctx, cancel := context.WithTimeout(context.Background(), commandPatience)
		out, err := exec.CommandContext(ctx, words[0], words[1:]...).CombinedOutput() //nolint:gosec // the lines are this file's
		cancel()
		if err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
