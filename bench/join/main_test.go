package join

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

// program is fanlight, built by TestMain from the sources as they are.
var program string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "fanlight-join-")
	if err == nil {
		program = filepath.Join(dir, "fanlight")
		err = build()
	}
	if err != nil {
		_ = os.RemoveAll(dir)
		fmt.Fprintln(os.Stderr, "join:", err)
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
	out, err := exec.CommandContext(ctx, "go", "build", "-buildvcs=false", "-o", program, "../../cmd/fanlight").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build fanlight: %w\n%s", err, out)
	}
	return nil
}
