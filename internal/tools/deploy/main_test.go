package deploy

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

// root is that of the repository.
var root = filepath.Join("..", "..", "..")

// binary is the fanlight that command lines are tried on.
var binary string

func TestMain(m *testing.M) {
	os.Exit(testMain(m))
}

func testMain(m *testing.M) int {
	dir, err := os.MkdirTemp("", "fanlight-deploy-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	binary = filepath.Join(dir, "fanlight")
	build := exec.Command("go", "build", "-buildvcs=false", "-o", binary, "./cmd/fanlight")
	build.Dir = root
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build fanlight: %v\n%s", err, out)
		return 1
	}
	code := m.Run()
	// klog, which Kubernetes' libraries log with, flushes for ever.
	if err := goleak.Find(goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1")); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// process is how one process is started, wherever that was read.
type process struct {
	where string
	args  []string
	env   map[string]string
}

var flagLine = regexp.MustCompile(`(?m)^ +(?:-[a-z], )?--([a-z][a-z0-9-]*)`)

// helps keeps what commands say of themselves.
var helps sync.Map

// settings returns the flags of a command, "camera list".
func settings(command []string) (map[string]bool, error) {
	key := strings.Join(command, " ")
	if f, ok := helps.Load(key); ok {
		return f.(map[string]bool), nil
	}
	out, err := exec.Command(binary, append(command, "--help")...).Output()
	if err != nil {
		return nil, fmt.Errorf("fanlight %s --help: %w", key, err)
	}
	flags := map[string]bool{}
	for _, m := range flagLine.FindAllSubmatch(out, -1) {
		flags[string(m[1])] = true
	}
	helps.Store(key, flags)
	return flags, nil
}

// tried keeps what tryProcess found.
var tried sync.Map

// tryProcess has the binary read a command line, with the variables as flags
// before it, and returns what it does not like: flags that it does not have,
// values that are not of their type. With --help at the end it goes no further.
func tryProcess(p process) error {
	var command []string
	for _, a := range p.args {
		if strings.HasPrefix(a, "-") {
			break
		}
		command = append(command, a)
	}
	if len(command) == 0 {
		return fmt.Errorf("%s: no command in %q", p.where, p.args)
	}
	flags, err := settings(command)
	if err != nil {
		return fmt.Errorf("%s: %w", p.where, err)
	}
	args := append([]string{}, command...)
	for name, value := range p.env {
		setting, ok := strings.CutPrefix(name, "FANLIGHT_")
		if !ok {
			continue
		}
		flag := strings.ToLower(strings.ReplaceAll(setting, "_", "-"))
		if !flags[flag] {
			return fmt.Errorf("%s: %s is not a setting of fanlight %s", p.where, name, strings.Join(command, " "))
		}
		args = append(args, "--"+flag+"="+value)
	}
	slices.Sort(args[len(command):]) // the variables
	args = append(append(args, p.args[len(command):]...), "--help")
	key := strings.Join(args, "\x00")
	if found, ok := tried.Load(key); ok {
		if text, _ := found.(string); text != "" {
			return fmt.Errorf("%s: %s", p.where, text)
		}
		return nil
	}
	cmd := exec.Command(binary, args...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		var exit *exec.ExitError
		if !errors.As(err, &exit) {
			return fmt.Errorf("%s: %w", p.where, err)
		}
		text := strings.TrimSpace(stderr.String())
		tried.Store(key, text)
		return fmt.Errorf("%s: %s", p.where, text)
	}
	tried.Store(key, "")
	return nil
}

// The check finds what it is there to find.
func TestTryProcess(t *testing.T) {
	for _, tt := range []struct {
		args []string
		env  map[string]string
		want string
	}{
		{[]string{"controlplane", "--grpc=:9090", "--lease-ttl=3s"}, map[string]string{"PATH": "/bin"}, ""},
		{[]string{"medianode"}, map[string]string{"FANLIGHT_MEDIA": "0.0.0.0:8189"}, ""},
		{[]string{"node", "drain"}, nil, ""},
		{[]string{"controlplane", "--grcp=:9090"}, nil, "unknown flag: --grcp"},
		{[]string{"controlplane", "--lease-ttl=3"}, nil, "--lease-ttl"},
		{[]string{"medianode"}, map[string]string{"FANLIGHT_HTTP": ":1"}, "FANLIGHT_HTTP is not a setting of fanlight medianode"},
		{[]string{"medianode"}, map[string]string{"FANLIGHT_MAX_CAMERAS": "many"}, "--max-cameras"},
		{[]string{"--grpc=:9090"}, nil, "no command"},
	} {
		err := tryProcess(process{where: "x", args: tt.args, env: tt.env})
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%q %v: %v, want %q", tt.args, tt.env, err, tt.want)
		}
	}
}
