package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// planes are control planes of a test, each a process.
type planes struct {
	t   *testing.T
	dir string
	api map[string]string // addresses, by name
	url map[string]string // for the others, by name
	// extra are flags of each.
	extra []string

	running map[string]*plane
}

// plane is one process.
type plane struct {
	cmd  *exec.Cmd
	log  string // path
	done chan struct{}
	code int // after done
	once sync.Once
	up   chan struct{}
}

// newPlanes makes certificates and a key for control planes.
func newPlanes(t *testing.T, names ...string) *planes {
	t.Helper()
	p := &planes{t: t, dir: t.TempDir(), api: map[string]string{}, url: map[string]string{}, running: map[string]*plane{}}
	p.run("certs", "init", "--dir", "pki")
	for _, n := range names {
		p.run("certs", "issue", "--dir", "pki", "--role", "controlplane", "--name", n, "--host", "127.0.0.1")
		p.api[n], p.url[n] = freeAddr(t), "https://"+freeAddr(t)
	}
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	if err := os.WriteFile(filepath.Join(p.dir, "key"), key, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for n := range p.running {
			p.kill(n)
		}
	})
	return p
}

// freeAddr returns an address at which nobody listens. It is none of those that
// the system gives to whoever connects (32768 and up, on Linux): such a port could
// be taken before it is used.
func freeAddr(t *testing.T) string {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 10_000+mathrand.IntN(20_000)))
		if err != nil {
			continue
		}
		defer l.Close()
		return l.Addr().String()
	}
	t.Fatal("no free port")
	return ""
}

// cluster returns --initial-cluster of some of them.
func (p *planes) cluster(names ...string) string {
	var out []string
	for _, n := range names {
		out = append(out, n+"="+p.url[n])
	}
	return "--initial-cluster=" + strings.Join(out, ",")
}

// peerFlags are those of one of several.
func (p *planes) peerFlags(name string) []string {
	return []string{"--peer-cert=pki/controlplane-" + name + ".pem", "--peer-key=pki/controlplane-" + name + "-key.pem", "--peer-ca=pki/ca.pem"}
}

// start starts a control plane, with its data in the directory of its name.
func (p *planes) start(name string, flags ...string) *plane {
	p.t.Helper()
	args := append([]string{"controlplane", "--data=" + name, "--key-file=key", "--grpc=" + p.api[name], "--metrics="}, flags...)
	return p.startArgs(name, append(args, p.extra...))
}

func (p *planes) startArgs(name string, args []string) *plane {
	p.t.Helper()
	r := &plane{cmd: exec.Command("fanlight", args...), log: filepath.Join(p.dir, name+".log"), done: make(chan struct{}), up: make(chan struct{})}
	r.cmd.Dir = p.dir
	log, err := os.OpenFile(r.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		p.t.Fatal(err)
	}
	r.cmd.Stderr = log
	out, err := r.cmd.StdoutPipe()
	if err != nil {
		p.t.Fatal(err)
	}
	if err := r.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() {
		defer close(r.done)
		for sc := bufio.NewScanner(out); sc.Scan(); {
			if strings.HasPrefix(sc.Text(), "api ") {
				r.once.Do(func() { close(r.up) })
			}
		}
		_ = r.cmd.Wait()
		_ = log.Close()
		r.code = r.cmd.ProcessState.ExitCode()
	}()
	p.running[name] = r
	return r
}

// await waits until it serves.
func (r *plane) await(t *testing.T) {
	t.Helper()
	select {
	case <-r.up:
	case <-r.done:
		t.Fatalf("it ended with code %d:\n%s", r.code, r.text())
	case <-time.After(patience):
		t.Fatalf("it does not serve:\n%s", r.text())
	}
}

// ends waits until it has ended, and returns what it wrote.
func (r *plane) ends(t *testing.T, code int) string {
	t.Helper()
	select {
	case <-r.done:
	case <-time.After(patience):
		t.Fatalf("it goes on:\n%s", r.text())
	}
	if r.code != code {
		t.Errorf("it ended with code %d, want %d:\n%s", r.code, code, r.text())
	}
	return r.text()
}

func (r *plane) text() string {
	data, _ := os.ReadFile(r.log)
	return string(data)
}

func (p *planes) kill(name string) { p.end(name, syscall.SIGKILL) }
func (p *planes) stop(name string) { p.end(name, syscall.SIGTERM) }

func (p *planes) end(name string, sig syscall.Signal) {
	p.t.Helper()
	r := p.running[name]
	if r == nil {
		return
	}
	_ = r.cmd.Process.Signal(sig)
	select {
	case <-r.done:
	case <-time.After(patience):
		_ = r.cmd.Process.Kill()
		p.t.Errorf("%s does not end:\n%s", name, r.text())
		<-r.done
	}
	if strings.Contains(r.text(), "DATA RACE") {
		p.t.Errorf("%s:\n%s", name, r.text())
	}
	delete(p.running, name)
}

// try runs a command.
func (p *planes) try(args ...string) (out string, ok bool) {
	p.t.Helper()
	cmd := exec.Command("fanlight", args...)
	cmd.Dir = p.dir
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	err := cmd.Run()
	return b.String(), err == nil
}

// run runs a command that must succeed.
func (p *planes) run(args ...string) string {
	p.t.Helper()
	out, ok := p.try(args...)
	if !ok {
		p.t.Fatalf("fanlight %s: %s", strings.Join(args, " "), out)
	}
	return out
}

// refused runs a command that must fail and say why.
func (p *planes) refused(says string, args ...string) {
	p.t.Helper()
	if out, ok := p.try(args...); ok || !strings.Contains(out, says) {
		p.t.Errorf("fanlight %s: got %q, want %q", strings.Join(args, " "), out, says)
	}
}

// sees waits until a command's output has a text.
func (p *planes) sees(text string, args ...string) {
	p.t.Helper()
	var out string
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
		var ok bool
		if out, ok = p.try(args...); ok && strings.Contains(out, text) {
			return
		}
	}
	p.t.Fatalf("fanlight %s: %q, want %q", strings.Join(args, " "), out, text)
}

func (p *planes) server(name string) string { return "--server=" + p.api[name] }

// dial connects to one, or to any of several.
func (p *planes) dial(names ...string) *grpc.ClientConn {
	p.t.Helper()
	var addrs []string
	for _, n := range names {
		addrs = append(addrs, p.api[n])
	}
	cc, err := (&rpc.Dialer{}).Dial(addrs...)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { _ = cc.Close() })
	return cc
}

// three starts three at once.
func three(t *testing.T, flags ...string) *planes {
	t.Helper()
	p := newPlanes(t, "a", "b", "c")
	for _, n := range []string{"a", "b", "c"} {
		p.start(n, slices.Concat([]string{"--name=" + n, p.cluster("a", "b", "c")}, p.peerFlags(n), flags)...)
	}
	for _, n := range []string{"a", "b", "c"} {
		p.running[n].await(t)
	}
	return p
}

// again starts one of three that was stopped.
func (p *planes) again(name string, flags ...string) {
	p.t.Helper()
	p.start(name, slices.Concat([]string{"--name=" + name, p.cluster("a", "b", "c")}, p.peerFlags(name), flags)...).await(p.t)
}

// The whole way of a fleet's control plane: alone, three, two, one that has
// lost the other for good, and a new one from its backup. Nothing is lost.
func TestClusterGrowsShrinksAndIsRestored(t *testing.T) {
	p := newPlanes(t, "a", "b", "c")
	p.start("a").await(t)
	p.run("camera", "add", "lobby", "--url=rtsp://u:hunter2@127.0.0.1:1/x", p.server("a"))
	p.refused("start it again with --name", "cluster", "add", "b", "--peer-url="+p.url["b"], p.server("a"))
	p.stop("a")

	// With an address it can have others, and the data is the same.
	p.start("a", append(p.peerFlags("a"), "--name=a", p.cluster("a"))...).await(t)
	p.sees(p.url["a"], "cluster", "members", p.server("a"))
	p.refused("members/a", "cluster", "remove", "a", p.server("a"))
	for _, n := range []string{"b", "c"} {
		p.refused("already", "cluster", "add", "a", "--peer-url="+p.url[n], p.server("a"))
		p.refused("already", "cluster", "add", "x", "--peer-url="+p.url["a"], p.server("a"))
		flags := strings.Fields(lastLine(p.run("cluster", "add", n, "--peer-url="+p.url[n], p.server("a"))))
		p.refused("still being added", "cluster", "add", "x", "--peer-url=https://127.0.0.1:9", p.server("a"))
		p.start(n, append(flags, p.peerFlags(n)...)...).await(t)
	}
	p.sees("3 of 3 members answer, 2 must: 1 more may fail", "cluster", "members", p.server("c"))
	p.sees("lobby", "camera", "list", p.server("c"))

	// From three to two: the third one ends, and does not come back.
	p.run("cluster", "remove", "c", p.server("a"))
	for range 2 {
		if text := p.running["c"].ends(t, exitUsage); !strings.Contains(text, "was removed from the cluster") || !strings.Contains(text, `"fanlight cluster add c"`) {
			t.Errorf("a removed member said:\n%s", text)
		}
		p.start("c", append(p.peerFlags("c"), "--name=c", p.cluster("a", "b", "c"), "--join")...)
	}
	p.kill("c")
	p.refused("no such replica", "cluster", "remove", "c", p.server("a"))

	// Without b there is no quorum: a says so, and can still be backed up.
	p.kill("b")
	p.sees("No quorum: 1 of 2 members answer, 2 must", "cluster", "members", p.server("a"))
	var out string
	for end := time.Now().Add(patience); !strings.Contains(out, "no quorum: 2 of 2 must run") && time.Now().Before(end); {
		out, _ = p.try("camera", "add", "hall", "--url=rtsp://127.0.0.1:1/x", p.server("a"))
	}
	if !strings.Contains(out, "no quorum: 2 of 2 must run") {
		t.Errorf("without a quorum: %s", out)
	}
	p.run("cluster", "backup", "backup.db", p.server("a"))
	p.refused("is there already", "cluster", "backup", "backup.db", p.server("a"))
	p.stop("a")
	p.restore()
}

// restore is TestClusterGrowsShrinksAndIsRestored's end.
func (p *planes) restore() {
	t := p.t
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, "backup.db"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(p.dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	bad := bytes.Clone(data)
	bad[len(bad)/2] ^= 1
	write("bad.db", bad)
	write("short.db", data[:len(data)-100])
	write("wrong.key", make([]byte, 32))
	p.refused("checksum does not fit", "cluster", "restore", "bad.db", "--data=r", "--key-file=key")
	p.refused("was cut short", "cluster", "restore", "short.db", "--data=r", "--key-file=key")
	p.refused("is not the one", "cluster", "restore", "backup.db", "--data=r", "--key-file=wrong.key")
	p.refused("has a store already", "cluster", "restore", "backup.db", "--data=a", "--key-file=key")
	p.run("cluster", "restore", "backup.db", "--data=r", "--key-file=key")
	p.startArgs("a", []string{"controlplane", "--data=r", "--grpc=" + p.api["a"], "--metrics="}).await(t)
	p.sees("lobby", "camera", "list", p.server("a"))
	p.stop("a")

	// Or each of several from the same file.
	for _, n := range []string{"b", "c"} {
		p.run("cluster", "restore", "backup.db", "--data=r-"+n, "--name="+n, p.cluster("b", "c"), "--key-file=key",
			"--peer-cert=pki/controlplane-"+n+".pem", "--peer-key=pki/controlplane-"+n+"-key.pem", "--peer-ca=pki/ca.pem")
		p.startArgs(n, append(p.peerFlags(n), "controlplane", "--data=r-"+n, "--name="+n, p.cluster("b", "c"), "--grpc="+p.api[n], "--metrics="))
	}
	p.running["b"].await(t)
	p.running["c"].await(t)
	p.sees("2 of 2 members answer", "cluster", "members", p.server("b"))
	p.sees("lobby", "camera", "list", p.server("c"))
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}

// What is wrong in a member's configuration is said, with what to change.
func TestClusterMisconfigured(t *testing.T) {
	p := three(t)
	fails := func(name, says string, code int, flags ...string) {
		t.Helper()
		p.kill(name)
		if text := p.start(name, flags...).ends(t, code); !strings.Contains(text, says) {
			t.Errorf("want %q, got:\n%s", says, text)
		}
		delete(p.running, name)
	}
	all := p.cluster("a", "b", "c")
	fails("c", "give --name c", exitFailure, append(p.peerFlags("c"), "--name=b", all)...)
	fails("c", "give --name c and --initial-cluster", exitFailure)
	fails("c", `--name "x" is not in --initial-cluster`, exitUsage, append(p.peerFlags("c"), "--name=x", all)...)

	// A data directory that was lost: the others know the member.
	if err := os.Rename(filepath.Join(p.dir, "c"), filepath.Join(p.dir, "lost")); err != nil {
		t.Fatal(err)
	}
	fails("c", `"fanlight cluster remove c"`, exitFailure, append(p.peerFlags("c"), "--name=c", all)...)
	if err := os.RemoveAll(filepath.Join(p.dir, "c")); err != nil {
		t.Fatal(err)
	}
	// Another token makes another cluster.
	fails("c", "--cluster-token", exitFailure, append(p.peerFlags("c"), "--name=c", all, "--cluster-token=other")...)
	// One that nobody has added.
	if err := os.RemoveAll(filepath.Join(p.dir, "c")); err != nil {
		t.Fatal(err)
	}
	fails("c", `"fanlight cluster add"`, exitFailure, append(p.peerFlags("c"), "--name=c", "--join", p.cluster("a", "c"))...)

	// The member itself, with its data, comes back.
	if err := os.RemoveAll(filepath.Join(p.dir, "c")); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(filepath.Join(p.dir, "lost"), filepath.Join(p.dir, "c")); err != nil {
		t.Fatal(err)
	}
	p.again("c")
	p.sees("3 of 3 members answer", "cluster", "members", p.server("c"))

	// A certificate of another authority is not a member's.
	p.stop("c")
	p.run("certs", "init", "--dir", "other")
	p.run("certs", "issue", "--dir", "other", "--role", "controlplane", "--name", "c", "--host", "127.0.0.1")
	p.start("c", "--name=c", all, "--peer-cert=other/controlplane-c.pem", "--peer-key=other/controlplane-c-key.pem", "--peer-ca=other/ca.pem")
	c := p.running["c"]
	for end := time.Now().Add(patience); !strings.Contains(c.text(), "--peer-ca must have signed"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("of a wrong authority it says:\n%s", c.text())
		}
	}
}

// kills is how often TestLeaderKilled kills; LEADER_KILLS=10 measures.
func kills() int {
	n := 2
	_, _ = fmt.Sscan(os.Getenv("LEADER_KILLS"), &n)
	return n
}

// The time from the death of the leader's process to the next one's first
// decision is an election's, not that of a lease running out.
func TestLeaderKilled(t *testing.T) {
	p := three(t, "--lease-ttl=30s")
	names := slices.Sorted(maps.Keys(p.api))
	node := p.startArgs("node", []string{
		"medianode", "--node=n1", "--control-plane=" + p.api["a"] + "," + p.api["b"] + "," + p.api["c"],
		"--grpc=127.0.0.1:0", "--media=127.0.0.1:0", "--metrics=",
	})
	select {
	case <-node.done:
		t.Fatalf("the node ended:\n%s", node.text())
	case <-time.After(time.Second):
	}
	p.sees("ready", "node", "list", p.server("a"))
	var took []time.Duration
	for i := range kills() {
		leader := p.places(names)
		rest := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == leader })
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		cc := p.dial(rest[0])
		began := time.Now()
		p.kill(leader)
		id := fmt.Sprintf("k-%d", i)
		create(ctx, t, controlv1.NewCameraServiceClient(cc), id)
		decided(ctx, t, controlv1.NewCameraServiceClient(cc), id)
		took = append(took, time.Since(began))
		cancel()
		p.again(leader, "--lease-ttl=30s")
	}
	slices.Sort(took)
	t.Logf("from kill -9 of the leader to the next decision: %v; p50 %v, max %v", took, took[len(took)/2], took[len(took)-1])
	if limit := 15 * time.Second; took[len(took)-1] > limit {
		t.Errorf("a decision took %v: the dead leader's lease was waited for", took[len(took)-1])
	}
}

// places returns the name of the replica that leads placement, once all are
// there.
func (p *planes) places(names []string) string {
	p.t.Helper()
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		ctx, cancel := context.WithTimeout(p.t.Context(), 5*time.Second)
		resp, err := controlv1.NewClusterServiceClient(p.dial(names[0])).ListMembers(ctx, &controlv1.ListMembersRequest{})
		cancel()
		leader, ok := "", 0
		for _, m := range resp.GetMembers() {
			if m.GetPlaces() {
				leader = shortName(m.GetName())
			}
			if m.GetState() == controlv1.Member_STATE_OK {
				ok++
			}
		}
		if err == nil && leader != "" && ok == len(names) {
			time.Sleep(time.Second) // all candidates wait
			return leader
		}
	}
	p.t.Fatal("nobody leads")
	return ""
}

// create creates a camera, however often that takes.
func create(ctx context.Context, t *testing.T, svc controlv1.CameraServiceClient, id string) {
	t.Helper()
	for {
		_, err := svc.CreateCamera(ctx, &controlv1.CreateCameraRequest{RequestId: id, Camera: newTestCamera(id)}, grpc.WaitForReady(true))
		if err == nil {
			return
		}
		if ctx.Err() != nil || !errors.Is(err, fleet.Unavailable) {
			t.Fatal(err)
		}
	}
}

func newTestCamera(id string) *controlv1.Camera {
	return &controlv1.Camera{Name: "cameras/" + id, Profiles: []*controlv1.Profile{{Id: "main", Url: "rtsp://127.0.0.1:1/x"}}}
}

// decided waits until a leader has given a camera to a node.
func decided(ctx context.Context, t *testing.T, svc controlv1.CameraServiceClient, id string) {
	t.Helper()
	for {
		resp, err := svc.GetCamera(ctx, &controlv1.GetCameraRequest{Name: "cameras/" + id})
		if err != nil && ctx.Err() != nil {
			t.Fatal(err)
		}
		if resp.GetCamera().GetStatus().GetNode() != "" {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// Ten thousand cameras are registered while the leader is killed: each one that
// was acknowledged is there, once, and a retry does not fail for what it has
// created itself.
func TestMassRegistrationWhileTheLeaderIsKilled(t *testing.T) {
	const cameras, batch = 10_000, 500
	p := three(t)
	names := slices.Sorted(maps.Keys(p.api))
	leader := p.places(names)
	cc := p.dial(names...)
	svc := controlv1.NewCameraServiceClient(cc)
	ctx, cancel := context.WithTimeout(t.Context(), 3*patience)
	defer cancel()
	retries := 0
	for from := 0; from < cameras; from += batch {
		if from == 4*batch {
			p.running[leader].cmd.Process.Signal(syscall.SIGKILL) //nolint:errcheck // it is seen below
		}
		req := &controlv1.BatchCreateCamerasRequest{}
		for i := from; i < from+batch; i++ {
			id := fmt.Sprintf("m-%05d", i)
			req.Requests = append(req.Requests, &controlv1.CreateCameraRequest{RequestId: "r-" + id, Camera: newTestCamera(id)})
		}
		for len(req.GetRequests()) > 0 {
			resp, err := svc.BatchCreateCameras(ctx, req, grpc.WaitForReady(true))
			if err != nil {
				if retries++; ctx.Err() != nil || !errors.Is(err, fleet.Unavailable) {
					t.Fatalf("batch at %d: %v", from, err)
				}
				continue
			}
			var left []*controlv1.CreateCameraRequest
			for i, r := range resp.GetResults() {
				switch f := r.GetFailure(); {
				case f == nil:
				case codes.Code(f.GetCode()) == codes.Unavailable:
					retries++
					left = append(left, req.GetRequests()[i])
				default:
					t.Fatalf("a camera of the batch at %d: %s", from, f.GetMessage())
				}
			}
			req.Requests = left
		}
	}
	<-p.running[leader].done
	delete(p.running, leader)
	rest := slices.DeleteFunc(slices.Clone(names), func(n string) bool { return n == leader })
	for _, n := range rest {
		seen := map[string]bool{}
		list := controlv1.NewCameraServiceClient(p.dial(n))
		for page := ""; ; {
			resp, err := list.ListCameras(ctx, &controlv1.ListCamerasRequest{PageSize: 1000, PageToken: page}, grpc.WaitForReady(true))
			if err != nil {
				t.Fatal(err)
			}
			for _, c := range resp.GetCameras() {
				if seen[c.GetName()] {
					t.Errorf("%s is there twice", c.GetName())
				}
				seen[c.GetName()] = true
			}
			if page = resp.GetNextPageToken(); page == "" {
				break
			}
		}
		if len(seen) != cameras {
			t.Errorf("%s has %d of %d cameras", n, len(seen), cameras)
		}
	}
	t.Logf("%d cameras, %s killed, %d retries", cameras, leader, retries)
}
