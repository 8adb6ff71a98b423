//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Patience for two slow cores with the race detector.
const (
	startPatience   = 60 * time.Second
	picturePatience = 30 * time.Second
)

// system is a running Fanlight.
type system struct {
	grpc      string   // the control plane's API
	gateways  []string // base URLs, "http://127.0.0.1:8080"
	flags     []string // of the operators' commands, for TLS and tokens
	processes []*process
}

// fanlight returns a command of the binary under test.
func fanlight(args ...string) *exec.Cmd {
	cmd := exec.Command(binary, args...)
	// A data race ends the process, and so fails the test that started it.
	cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1 exitcode=66", "GOTRACEBACK=all")
	return cmd
}

// up runs everything in one process.
func up(t *testing.T, args ...string) *system {
	t.Helper()
	return upAt(t, filepath.Join(t.TempDir(), "data"), args...)
}

// upAt is up with a data directory of the caller's.
func upAt(t *testing.T, data string, args ...string) *system {
	t.Helper()
	p := start(t, "up", fanlight(append([]string{
		"up", "--data", data, "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0", "--media", "127.0.0.1:0", "--log-level", "debug",
		"--max-cpu", "100", // the machine's load must refuse nobody
	}, args...)...))
	return &system{
		grpc:      p.announced(t, "api"),
		gateways:  []string{strings.TrimSuffix(p.announced(t, "page"), "/")},
		processes: []*process{p},
	}
}

// separate runs one control plane, two nodes and two gateways as processes.
func separate(t *testing.T) *system {
	t.Helper()
	plane := start(t, "controlplane", fanlight("controlplane", "--data", filepath.Join(t.TempDir(), "data"), "--grpc", "127.0.0.1:0", "--log-level", "debug"))
	s := &system{grpc: plane.announced(t, "api"), processes: []*process{plane}}
	for _, name := range []string{"node-a", "node-b"} {
		p := start(t, name, fanlight("medianode", "--node", name, "--node-label", "name="+name, "--control-plane", s.grpc,
			"--grpc", "127.0.0.1:0", "--media", "127.0.0.1:0", "--max-cpu", "100", "--log-level", "debug"))
		p.announced(t, "node")
		s.processes = append(s.processes, p)
	}
	for _, name := range []string{"gateway-1", "gateway-2"} {
		p := start(t, name, fanlight("signaling", "--control-plane", s.grpc, "--http", "127.0.0.1:0", "--log-level", "debug"))
		s.gateways = append(s.gateways, strings.TrimSuffix(p.announced(t, "page"), "/"))
		s.processes = append(s.processes, p)
	}
	return s
}

// announced waits until a process says that it is ready, and returns the
// address behind a word: "page http://127.0.0.1:8080/".
func (p *process) announced(t *testing.T, word string) string {
	t.Helper()
	var found string
	eventually(t, startPatience, p.name+" announces its "+word, func() (bool, string) {
		select {
		case <-p.done:
			t.Fatalf("%s ended: %v\n%s", p.name, p.err, p.out.tail(20))
		default:
		}
		for line := range strings.Lines(p.out.String()) {
			if rest, ok := strings.CutPrefix(line, word+" "); ok && strings.HasSuffix(rest, "\n") {
				found = strings.Fields(rest)[0]
				return true, ""
			}
		}
		return false, p.out.tail(3)
	})
	return found
}

// stop ends all processes, those that the others depend on last.
func (s *system) stop(t *testing.T) {
	t.Helper()
	for _, p := range slices.Backward(s.processes) {
		p.stop(t)
	}
}

// cli runs a command against the control plane and returns its standard output.
func (s *system) cli(t *testing.T, args ...string) string {
	t.Helper()
	out, err := s.tryCLI(t, args...)
	if err != nil {
		t.Fatalf("fanlight %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// tryCLI is cli for commands that may fail; the error has what it printed.
func (s *system) tryCLI(t *testing.T, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, binary, slices.Concat(args, []string{"--server", s.grpc}, s.flags)...)
	// Else the race detector would let it linger for a second.
	cmd.Env = append(os.Environ(), "GORACE=atexit_sleep_ms=0")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// add registers a camera.
func (s *system) add(t *testing.T, name string, c *rtspCamera, flags ...string) {
	t.Helper()
	s.cli(t, slices.Concat([]string{"camera", "add", name}, c.flags(), flags)...)
}

// camera is what "fanlight camera get -o json" says of a camera, in part.
type camera struct {
	Name   string `json:"name"`
	Status struct {
		State   string `json:"state"`
		Reason  string `json:"reason"`
		Message string `json:"message"`
		Node    string `json:"node"`
	} `json:"status"`
}

func (s *system) camera(t *testing.T, name string) camera {
	t.Helper()
	var c camera
	out := s.cli(t, "camera", "get", name, "-o", "json")
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatalf("camera get: %v\n%s", err, out)
	}
	return c
}

// awaitCamera waits for a camera's state as the control plane sees it.
func (s *system) awaitCamera(t *testing.T, name, state, reason string) {
	t.Helper()
	eventually(t, picturePatience, fmt.Sprintf("camera %s is %s %s", name, state, reason), func() (bool, string) {
		c := s.camera(t, name)
		return c.Status.State == state && (reason == "" || c.Status.Reason == reason), fmt.Sprintf("%+v", c.Status)
	})
}

// cameraStats is what /stats says of a camera.
type cameraStats struct {
	Camera           string  `json:"camera"`
	Node             string  `json:"node"`
	State            string  `json:"state"`
	BitrateBPS       int64   `json:"bitrate_bps"`
	PacketsPerSecond float64 `json:"packets_per_second"`
	FramesPerSecond  float64 `json:"frames_per_second"`
	Width            int     `json:"width"`
	Height           int     `json:"height"`
	Viewers          int     `json:"viewers"`
	Packets          int64   `json:"packets"`
}

// stats returns what a gateway's /stats says of a camera; the zero value if it
// says nothing.
func (s *system) stats(t *testing.T, gateway int, name string) cameraStats {
	t.Helper()
	var list struct {
		Cameras []cameraStats `json:"cameras"`
	}
	getJSON(t, s.gateways[gateway]+"/stats", &list)
	for _, c := range list.Cameras {
		if c.Camera == name {
			return c
		}
	}
	return cameraStats{}
}

// getJSON reads a URL, which must answer 200.
func getJSON(t *testing.T, url string, v any) {
	t.Helper()
	status, body := get(t, url)
	if status != http.StatusOK {
		t.Fatalf("GET %s: %d %s", url, status, body)
	}
	if err := json.Unmarshal(body, v); err != nil {
		t.Fatalf("GET %s: %v\n%s", url, err, body)
	}
}

// get reads a URL with a connection of its own.
func get(t *testing.T, url string) (int, []byte) {
	t.Helper()
	return request(t, http.MethodGet, url, "", nil)
}

// request makes a request with a connection of its own, so that none lingers.
func request(t *testing.T, method, url, contentType string, body []byte) (int, []byte) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), startPatience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var buf bytes.Buffer
	if _, err := buf.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, buf.Bytes()
}
