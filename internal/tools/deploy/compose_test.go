package deploy

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
)

var composeFile = filepath.Join(root, "deploy", "compose.yaml")

// loadCompose loads a composition as "docker compose" does, with its tools.
func loadCompose(text string, env map[string]string) (*types.Project, error) {
	dir, err := filepath.Abs(filepath.Dir(composeFile))
	if err != nil {
		return nil, err
	}
	return loader.LoadWithContext(context.Background(), types.ConfigDetails{
		WorkingDir:  dir,
		ConfigFiles: []types.ConfigFile{{Filename: composeFile, Content: []byte(text)}},
		Environment: env,
	}, func(o *loader.Options) { o.Profiles = []string{"*"} })
}

func composeText(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile(composeFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func exampleEnv(t *testing.T) map[string]string {
	t.Helper()
	env, err := dotenv.Read(filepath.Join(root, "deploy", ".env.example"))
	if err != nil {
		t.Fatal(err)
	}
	return env
}

func composition(t *testing.T) *types.Project {
	t.Helper()
	p, err := loadCompose(composeText(t), exampleEnv(t))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestCompose(t *testing.T) {
	p := composition(t)
	count := map[string]int{}
	for name, s := range p.Services {
		env := map[string]string{}
		for k, v := range s.Environment {
			if v == nil {
				t.Errorf("%s: %s comes from outside", name, k)
				continue
			}
			env[k] = *v
		}
		if len(s.Command) > 0 && name != "setup" && strings.HasPrefix(s.Image, "fanlight:") {
			count[s.Command[0]]++
			if err := tryProcess(process{where: name, args: s.Command, env: env}); err != nil {
				t.Error(err)
			}
			for _, problem := range server(name, s, env) {
				t.Errorf("%s: %s", name, problem)
			}
		}
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true") {
			t.Errorf("%s: may write to its root, or has capabilities, or may get more", name)
		}
		if s.Privileged || s.User == "" && name != "setup" {
			t.Errorf("%s: runs as root", name)
		}
	}
	if want := map[string]int{"controlplane": 3, "medianode": 2, "signaling": 2}; !maps.Equal(count, want) {
		t.Errorf("processes %v, want %v", count, want)
	}
	// Who operates is a process too, with every command's settings.
	cli := p.Services["fanlight"]
	for _, args := range [][]string{{"camera", "list"}, {"node", "list"}} {
		env := map[string]string{}
		for k, v := range cli.Environment {
			if k != "FANLIGHT_KEY_FILE" {
				env[k] = *v
			}
		}
		if err := tryProcess(process{where: "fanlight", args: args, env: env}); err != nil {
			t.Error(err)
		}
	}
	if err := tryProcess(process{where: "fanlight", args: []string{"token", "viewer"}, env: map[string]string{"FANLIGHT_KEY_FILE": *cli.Environment["FANLIGHT_KEY_FILE"]}}); err != nil {
		t.Error(err)
	}
}

// server returns what is wrong with a server of the fleet.
func server(name string, s types.ServiceConfig, env map[string]string) []string {
	var wrong []string
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if s.Restart != "unless-stopped" {
		bad("restart %s", s.Restart)
	}
	if s.HealthCheck == nil || !slices.Equal(s.HealthCheck.Test, []string{"CMD", "/fanlight", "health"}) {
		bad("no health check")
	}
	if d, ok := s.DependsOn["setup"]; !ok || d.Condition != types.ServiceConditionCompletedSuccessfully {
		bad("may start before its certificates are there")
	}
	drain, _ := time.ParseDuration(env["FANLIGHT_DRAIN_TIMEOUT"])
	if s.Command[0] == "medianode" && drain == 0 || s.StopGracePeriod == nil || time.Duration(*s.StopGracePeriod) < drain+15*time.Second-time.Second*10 {
		bad("may be killed while it drains")
	}
	mounts := map[string]types.ServiceVolumeConfig{}
	for _, v := range s.Volumes {
		mounts[v.Target] = v
	}
	if m := mounts["/keys"]; m.Source != name+"-keys" || !m.ReadOnly {
		bad("has the keys of %s, read-only: %v", m.Source, m.ReadOnly)
	}
	if s.Command[0] == "controlplane" && mounts[env["FANLIGHT_DATA"]].Source != name+"-data" {
		bad("its state is in no volume of its own")
	}
	for k, v := range env {
		if strings.HasPrefix(v, "/") && !strings.HasPrefix(v, "/keys/") && k != "FANLIGHT_DATA" {
			bad("%s=%s is in no volume", k, v)
		}
	}
	if s.Command[0] != "medianode" {
		if len(s.Ports) > 0 {
			bad("has published ports")
		}
		return wrong
	}
	// Browsers are told the port inside, so it must be the one outside, on both.
	_, port, _ := strings.Cut(env["FANLIGHT_MEDIA"], ":")
	got := map[string]bool{}
	for _, p := range s.Ports {
		if p.Published != port || fmt.Sprint(p.Target) != port {
			bad("port %d is %s outside, and --media has %s", p.Target, p.Published, port)
		}
		got[p.Protocol] = true
	}
	if !got["udp"] || !got["tcp"] {
		bad("its media ports are %v", got)
	}
	if env["FANLIGHT_ADVERTISE_GRPC"] != name+":9091" {
		bad("gateways are told %s", env["FANLIGHT_ADVERTISE_GRPC"])
	}
	return wrong
}

// Every member is in --initial-cluster under the name that it has among its
// peers, for which the setup makes a certificate.
func TestComposeCluster(t *testing.T) {
	p := composition(t)
	var members []string
	for _, name := range slices.Sorted(maps.Keys(p.Services)) {
		s := p.Services[name]
		if len(s.Command) < 2 || s.Command[0] != "controlplane" {
			continue
		}
		if s.Command[1] != "--name="+name {
			t.Errorf("%s: %s", name, s.Command[1])
		}
		peers := s.Networks["peers"]
		if peers == nil || !slices.Equal(peers.Aliases, []string{name + ".peers"}) {
			t.Errorf("%s: is called %v among its peers", name, peers)
		}
		members = append(members, fmt.Sprintf("%s=https://%s.peers:2380", name, name))
	}
	for _, m := range []string{"controlplane-1", "controlplane-2", "controlplane-3"} {
		if got := *p.Services[m].Environment["FANLIGHT_INITIAL_CLUSTER"]; got != strings.Join(members, ",") {
			t.Errorf("%s: initial cluster %s, want %s", m, got, members)
		}
	}
	if !p.Networks["peers"].Internal || !p.Networks["web"].Internal {
		t.Error("what is between processes can be reached from outside")
	}
}

// The authorities' keys are in one volume, which only the setup has; the setup
// fills every volume of keys; nothing is declared in vain.
func TestComposeVolumes(t *testing.T) {
	p := composition(t)
	users := map[string][]string{}
	for name, s := range p.Services {
		for _, v := range s.Volumes {
			if v.Type == types.VolumeTypeVolume {
				users[v.Source] = append(users[v.Source], name)
			} else if _, err := os.Stat(v.Source); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	for v := range p.Volumes {
		slices.Sort(users[v])
		if strings.HasSuffix(v, "-keys") && (len(users[v]) != 2 || !slices.Contains(users[v], "setup")) || strings.HasSuffix(v, "-data") && len(users[v]) != 1 {
			t.Errorf("volume %s is of %q", v, users[v])
		}
	}
	if !slices.Equal(users["authority"], []string{"setup"}) {
		t.Errorf("the authorities' keys are seen by %q", users["authority"])
	}
	script, err := os.ReadFile(filepath.Join(root, "deploy", "compose", "setup.sh"))
	if err != nil {
		t.Fatal(err)
	}
	for v := range p.Volumes {
		name, ok := strings.CutSuffix(v, "-keys")
		base := strings.TrimRight(name, "123")
		if ok && !strings.Contains(string(script), base) {
			t.Errorf("setup.sh makes no keys for %s", name)
		}
	}
}

func TestComposeRefusals(t *testing.T) {
	text := composeText(t)
	if _, err := loadCompose(text, map[string]string{}); err == nil || !strings.Contains(err.Error(), "MEDIA_ADDRESS") {
		t.Errorf("without .env: %v", err)
	}
	if _, err := loadCompose(strings.Replace(text, "read_only: true", "readonly: true", 1), exampleEnv(t)); err == nil {
		t.Error("a misspelt key is accepted")
	}
	if _, err := loadCompose(strings.Replace(text, "admin-keys:/keys:ro", "admins-keys:/keys:ro", 1), exampleEnv(t)); err == nil {
		t.Error("a volume that is not declared is accepted")
	}
	// Every variable is explained in .env.example.
	for _, m := range envVariable.FindAllStringSubmatch(text, -1) {
		if _, ok := exampleEnv(t)[m[1]]; !ok && m[1] != "VERSION" {
			t.Errorf("%s is not in .env.example", m[1])
		}
	}
}
