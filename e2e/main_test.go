//go:build e2e

package e2e

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// What TestMain makes for all tests.
var (
	binary  string // fanlight, with the race detector
	shipped string // fanlight as users have it, where a test looks at times
	scratch string // a directory that anyone may read: VLC runs as nobody
)

// artifacts is where the tests leave logs and screenshots.
const artifacts = "artifacts"

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	if err := checkPrograms(); err != nil {
		return 1, err
	}
	// A test that runs again in a network of its own has all that from outside.
	if binary = os.Getenv(insideEnv); binary != "" {
		return runTests(m)
	}
	if err := os.RemoveAll(artifacts); err != nil {
		return 1, err
	}
	if scratch, err = os.MkdirTemp("", "fanlight-e2e-"); err != nil {
		return 1, err
	}
	defer func() {
		if rerr := os.RemoveAll(scratch); rerr != nil && err == nil {
			code, err = 1, rerr
		}
	}()
	if err := os.Chmod(scratch, 0o755); err != nil {
		return 1, err
	}
	if err := build(); err != nil {
		return 1, err
	}
	return runTests(m)
}

// runTests runs the tests and looks for what they leave.
func runTests(m *testing.M) (code int, err error) {
	if code = m.Run(); code != 0 {
		return code, nil
	}
	if err := goleak.Find(); err != nil {
		return 1, fmt.Errorf("the tests left goroutines: %w", err)
	}
	return 0, nil
}

// build makes the binary from the sources as they are: one that lies about
// might be an old one. The race detector ends a process that races, and the
// test that started it fails.
func build() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	binary, shipped = filepath.Join(scratch, "fanlight"), filepath.Join(scratch, "shipped")
	for _, b := range []struct{ out, flag, cgo string }{{binary, "-race", "1"}, {shipped, "-trimpath", "0"}} {
		cmd := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", b.flag, "-o", b.out, "../cmd/fanlight")
		cmd.Env = append(os.Environ(), "CGO_ENABLED="+b.cgo)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("build fanlight: %w\n%s", err, out)
		}
	}
	return nil
}

// checkPrograms fails early, and at once for all that is missing.
func checkPrograms() error {
	var missing []string
	for _, name := range []string{"ffmpeg", "ffprobe", "vlc", "chromium", "firefox-esr", "setpriv", python} {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("missing programs: %s; \"make deps\" installs them", strings.Join(missing, ", "))
	}
	return nil
}

// artifact returns the name of a file that the test leaves behind.
func artifact(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(artifacts, strings.ReplaceAll(t.Name(), "/", "_"))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, name)
}

// eventually waits until a condition holds; what it returned last is in the
// failure's message. The patience is for two slow cores, not a measurement.
func eventually(t *testing.T, patience time.Duration, what string, holds func() (bool, string)) {
	t.Helper()
	var last string
	for deadline := time.Now().Add(patience); ; time.Sleep(100 * time.Millisecond) {
		ok, state := holds()
		if ok {
			return
		}
		last = state
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v; last seen: %s", what, patience, last)
		}
	}
}
