package fleettest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// binary is fanlight, built by TestMain from the sources as they are.
var binary string

// binaryVariable names it for this program when that runs itself again.
const binaryVariable = "FLEETTEST_BINARY"

func TestMain(m *testing.M) {
	if binary = os.Getenv(binaryVariable); binary != "" {
		goleak.VerifyTestMain(m)
		return
	}
	dir, err := os.MkdirTemp("", "fanlight-fleettest-")
	if err == nil {
		binary = filepath.Join(dir, "fanlight")
		err = build()
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		fmt.Fprintln(os.Stderr, "fleettest:", err)
		os.Exit(1)
	}
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(dir)
		os.Exit(code)
	}))
}

func build() error {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", binary, "../../cmd/fanlight").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build fanlight: %w\n%s", err, out)
	}
	return nil
}

// patience is for two slow cores with the race detector.
const patience = 60 * time.Second
