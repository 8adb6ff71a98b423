package fleettest

import (
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
)

// Namespaces has each process in a network namespace of its own, as if it were a
// host, all on one bridge in the namespace of this process: 10.77.0.0/24. It
// needs root, `ip` (iproute2) and iptables, and this process must itself be in a
// namespace that was made for it, as `unshare --net` does: nothing reaches or
// touches the machine's own network.
type Namespaces struct {
	prefix string // of the namespaces' names, which are the machine's

	mu    sync.Mutex // guards the rest
	hosts []string   // in the order of their addresses; the first is this process
}

const (
	bridge     = "fanlight"
	firstOctet = "10.77.0."
)

// NewNamespaces makes the bridge. Close removes all that was made.
func NewNamespaces() (*Namespaces, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces: only root may make them")
	}
	links, err := exec.Command("ip", "-o", "link").Output() //nolint:noctx // ends by itself
	if err != nil {
		return nil, fmt.Errorf("network namespaces: %w", err)
	}
	if n := strings.Count(string(links), "\n"); n > 1 {
		return nil, fmt.Errorf("network namespaces: this one has %d links, so it was not made for a test; run in one by unshare --net", n)
	}
	n := &Namespaces{prefix: "fanlight-" + strings.ToLower(rand.Text()[:8]) + "-", hosts: []string{Harness}}
	err = commands(
		"ip link set lo up",
		"ip link add "+bridge+" type bridge",
		"ip addr add "+firstOctet+"1/24 dev "+bridge,
		"ip link set "+bridge+" up",
	)
	if err != nil {
		return nil, fmt.Errorf("network namespaces: %w", err)
	}
	return n, nil
}

// Place makes a process' namespace and link, and returns its address.
func (n *Namespaces) Place(name string) (netip.Addr, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if addr, ok := n.address(name); ok {
		return addr, nil
	}
	n.hosts = append(n.hosts, name)
	addr, _ := n.address(name)
	ns, outside := n.prefix+name, fmt.Sprintf("host%d", len(n.hosts))
	err := commands(
		"ip netns add "+ns,
		"ip link add "+outside+" type veth peer name eth0 netns "+ns,
		"ip link set "+outside+" master "+bridge+" up",
		"ip -n "+ns+" link set lo up",
		"ip -n "+ns+" addr add "+addr.String()+"/24 dev eth0",
		"ip -n "+ns+" link set eth0 up",
	)
	return addr, err
}

// address returns the address of a process that has one. The caller holds mu.
func (n *Namespaces) address(name string) (netip.Addr, bool) {
	i := slices.Index(n.hosts, name)
	if i < 0 {
		return netip.Addr{}, false
	}
	return netip.AddrFrom4([4]byte{10, 77, 0, byte(i + 1)}), true
}

// Wrap has a command run in its process' namespace.
func (n *Namespaces) Wrap(name string, cmd *exec.Cmd) error {
	ip, err := exec.LookPath("ip")
	if err != nil {
		return fmt.Errorf("network namespaces: %w", err)
	}
	cmd.Args = append([]string{ip, "netns", "exec", n.prefix + name, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = ip
	return nil
}

// Cut drops what one process sends to another, until [Namespaces.Heal]. The
// other direction is another cut. What the sender notices is silence.
func (n *Namespaces) Cut(from, to string) error { return n.rule("-I", from, to) }

// Heal ends a cut.
func (n *Namespaces) Heal(from, to string) error { return n.rule("-D", from, to) }

func (n *Namespaces) rule(action, from, to string) error {
	n.mu.Lock()
	src, ok := n.address(from)
	_, ok2 := n.address(to)
	n.mu.Unlock()
	if !ok || !ok2 {
		return fmt.Errorf("cut the link from %s to %s: no such place", from, to)
	}
	rule := "iptables -w " + action + " INPUT -s " + src.String() + " -j DROP"
	if to != Harness {
		rule = "ip netns exec " + n.prefix + to + " " + rule
	}
	if err := commands(rule); err != nil {
		return fmt.Errorf("cut the link from %s to %s: %w", from, to, err)
	}
	return nil
}

// Close removes the namespaces, with their links.
func (n *Namespaces) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var errs []error
	for _, name := range n.hosts[1:] {
		errs = append(errs, commands("ip netns del "+n.prefix+name))
	}
	n.hosts = n.hosts[:1]
	return errors.Join(append(errs, commands("ip link del "+bridge))...)
}

// commands runs commands one after the other, until one fails.
func commands(lines ...string) error {
	for _, line := range lines {
		args := strings.Fields(line)
		out, err := exec.Command(args[0], args[1:]...).CombinedOutput() //nolint:gosec,noctx // fixed words; they end by themselves
		if err != nil {
			return fmt.Errorf("%s: %w: %s", line, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
