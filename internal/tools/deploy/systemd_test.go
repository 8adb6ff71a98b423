package deploy

import (
	"bufio"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/unit"
)

var unitDir = filepath.Join(root, "deploy", "systemd")

// options returns a unit's settings of a section, the last of each name.
func options(t *testing.T, file string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	list, err := unit.DeserializeOptions(bytes.NewReader(data))
	if err != nil {
		t.Fatalf("%s: %v", file, err)
	}
	out := map[string]string{}
	for _, o := range list {
		if o.Name != "SystemCallFilter" || out[o.Name] == "" { // a list, the first of which is what is allowed
			out[o.Name] = o.Value
		}
	}
	return out
}

// environment reads an environment file as systemd does, as far as ours go:
// with the settings that are commented out as examples put in.
func environment(t *testing.T, file string) map[string]string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	env := map[string]string{}
	s := bufio.NewScanner(bytes.NewReader(data))
	for s.Scan() {
		line := s.Text()
		if strings.HasPrefix(line, "#FANLIGHT_") {
			line = line[1:]
		}
		if line == "" || line[0] == '#' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		if !ok || !regexp.MustCompile(`^FANLIGHT_[A-Z0-9_]+$`).MatchString(name) || value == "" || strings.ContainsAny(value, " \"'\\$") {
			t.Errorf("%s: %q is not a plain NAME=value", file, line)
		}
		env[name] = value
	}
	return env
}

func TestUnits(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(unitDir, "*.service"))
	if err != nil || len(files) != 4 {
		t.Fatalf("%d units, %v", len(files), err)
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".service")
		o := options(t, file)
		if o["EnvironmentFile"] != "/etc/fanlight/"+name+".env" {
			t.Errorf("%s: EnvironmentFile=%s", name, o["EnvironmentFile"])
		}
		env := environment(t, filepath.Join(unitDir, name+".env"))
		args := strings.Fields(o["ExecStart"])
		if args[0] != "/usr/local/bin/fanlight" {
			t.Errorf("%s: ExecStart=%s", name, o["ExecStart"])
		}
		if err := tryProcess(process{where: name, args: args[1:], env: env}); err != nil {
			t.Error(err)
		}
		// What it may write to is its state.
		for _, a := range args {
			dir, ok := strings.CutPrefix(a, "--data=")
			if ok && dir != "/var/lib/"+o["StateDirectory"] {
				t.Errorf("%s: %s is not its StateDirectory=%s", name, a, o["StateDirectory"])
			}
		}
		stop, err := time.ParseDuration(o["TimeoutStopSec"])
		if err != nil {
			t.Errorf("%s: TimeoutStopSec: %v", name, err)
		}
		if d, ok := env["FANLIGHT_DRAIN_TIMEOUT"]; ok {
			if drain, err := time.ParseDuration(d); err != nil || stop < drain+15*time.Second {
				t.Errorf("%s: is killed after %v, while it may drain for %s", name, stop, d)
			}
		} else if name == "fanlight-medianode" {
			t.Errorf("%s: no FANLIGHT_DRAIN_TIMEOUT", name)
		}
		// Ports below 1024 need their capability, and nothing else needs any.
		low := strings.HasSuffix(env["FANLIGHT_HTTP"], ":443")
		if low != (o["AmbientCapabilities"] == "CAP_NET_BIND_SERVICE") || o["AmbientCapabilities"] != o["CapabilityBoundingSet"] {
			t.Errorf("%s: capabilities %q of %q", name, o["AmbientCapabilities"], o["CapabilityBoundingSet"])
		}
		for option, want := range map[string]string{
			"User": "fanlight", "NoNewPrivileges": "yes", "ProtectSystem": "strict", "ProtectHome": "yes", "PrivateDevices": "yes",
			"MemoryDenyWriteExecute": "yes", "SystemCallFilter": "@system-service", "Restart": "always", "RestartPreventExitStatus": "2",
			"WantedBy": "multi-user.target",
		} {
			if o[option] != want {
				t.Errorf("%s: %s=%s, want %s", name, option, o[option], want)
			}
		}
	}
}

// systemdRoot makes a root directory in which systemd finds the units, what
// they need, and the binary.
func systemdRoot(t *testing.T, change func(name, text string) string) string {
	t.Helper()
	dir := t.TempDir()
	put := func(name, text string, mode os.FileMode) {
		t.Helper()
		file := filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	put("usr/local/bin/fanlight", "#!/bin/sh\n", 0o755)
	for _, u := range []string{
		"sysinit.target", "basic.target", "shutdown.target", "network-online.target", "multi-user.target",
		"system.slice", "-.slice",
	} {
		put("usr/lib/systemd/system/"+u, "[Unit]\nDescription="+u+"\nDefaultDependencies=no\n", 0o644)
	}
	files, err := filepath.Glob(filepath.Join(unitDir, "*.service"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		put("etc/systemd/system/"+filepath.Base(f), change(filepath.Base(f), string(data)), 0o644)
	}
	return dir
}

func analyze(t *testing.T, root, name string) string {
	t.Helper()
	cmd := exec.Command("systemd-analyze", "verify", "--man=no", "--root="+root, name)
	cmd.Env = append(os.Environ(), "SYSTEMD_LOG_LEVEL=warning", "SYSTEMD_COLORS=0")
	out, err := cmd.CombinedOutput()
	if err != nil {
		out = append(out, err.Error()...)
	}
	return string(out)
}

// systemd itself has nothing to say against the units, and finds their exposure
// small.
func TestUnitsBySystemd(t *testing.T) {
	if _, err := exec.LookPath("systemd-analyze"); err != nil {
		t.Skip("no systemd-analyze here")
	}
	unchanged := func(_, text string) string { return text }
	dir := systemdRoot(t, unchanged)
	units := []string{"fanlight-controlplane.service", "fanlight-medianode.service", "fanlight-signaling.service", "fanlight.service"}
	for _, u := range units {
		if out := analyze(t, dir, u); out != "" {
			t.Errorf("%s: %s", u, out)
		}
	}
	level := regexp.MustCompile(`Overall exposure level for \S+: ([0-9.]+)`)
	for _, u := range units {
		out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--root="+dir, u).CombinedOutput()
		m := level.FindSubmatch(out)
		if err != nil || m == nil {
			t.Errorf("%s: %v\n%s", u, err, out)
			continue
		}
		if f, err := strconv.ParseFloat(string(m[1]), 64); err != nil || f > 2 {
			t.Errorf("%s: exposure %s, of 10; at most 2", u, m[1])
		}
	}
	// And it would have had, had there been something.
	damaged := systemdRoot(t, func(_, text string) string {
		return strings.NewReplacer("LimitNOFILE", "LimitNOFIL", "ProtectSystem=strict", "ProtectSystem=strickt").Replace(text)
	})
	out := analyze(t, damaged, "fanlight.service")
	for _, want := range []string{"LimitNOFIL", "strickt"} {
		if !strings.Contains(out, want) {
			t.Errorf("systemd-analyze does not see %s: %s", want, out)
		}
	}
}

// Every environment file is of a unit.
func TestEnvironmentFiles(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(unitDir, "*.env"))
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		names = append(names, strings.TrimSuffix(filepath.Base(f), ".env"))
	}
	slices.Sort(names)
	if want := []string{"fanlight", "fanlight-controlplane", "fanlight-medianode", "fanlight-signaling"}; !slices.Equal(names, want) {
		t.Errorf("environment files %q, want %q", names, want)
	}
}
