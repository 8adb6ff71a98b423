package store_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"fanlight/controlplane/store"
	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// writerDir tells the test binary to be a process that writes to a store there
// until that fails, for what ends a process.
const writerDir = "FANLIGHT_TEST_WRITER"

// write is that process. For each camera that was acknowledged it prints its
// id, and at the end why the store failed.
func write(dir string) {
	ctx := context.Background()
	s, err := store.Open(ctx, store.Config{DataDir: dir, MinFreeDisk: -1})
	if err != nil {
		fmt.Println("end", err)
		return
	}
	payload := strings.Repeat("x", 400<<10)
	for i := 0; ; i++ {
		select {
		case <-s.Failed():
			fmt.Println("end", s.FailedErr())
			_ = s.Close()
			return
		default:
		}
		c := cameras(1)
		c[0].ID = fleet.CameraID("w-" + strconv.Itoa(i))
		c[0].Desired.DisplayName = payload
		call, cancel := context.WithTimeout(ctx, 5*time.Second)
		_, err := s.CreateCameras(call, c)
		cancel()
		if err == nil {
			fmt.Println(c[0].ID)
		} else {
			fmt.Println("error", err)
			time.Sleep(50 * time.Millisecond)
		}
	}
}

// mount gives a test a file system of its own.
func mount(t *testing.T, args ...string) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir := t.TempDir()
	if out, err := exec.Command("mount", append(args, dir)...).CombinedOutput(); err != nil {
		t.Skipf("cannot mount here: %s", out)
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %s", out)
		}
	})
	return dir
}

// What was acknowledged before the disk was full is there when it has space
// again; the process ends with a reason.
func TestFullDisk(t *testing.T) {
	dir := mount(t, "-t", "tmpfs", "-o", "size=170m", "tmpfs")
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), writerDir+"="+dir)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	var acknowledged []string
	end, failures := "", 0
	for sc := bufio.NewScanner(out); sc.Scan(); {
		switch line := sc.Text(); {
		case strings.HasPrefix(line, "end "):
			end = line
		case strings.HasPrefix(line, "error "):
			failures++
		default:
			acknowledged = append(acknowledged, line)
		}
	}
	err = cmd.Wait()
	t.Logf("%d acknowledged, %d failed, then: %s", len(acknowledged), failures, end)
	if err != nil || !strings.Contains(end, fleet.StoreFull.Error()) || !strings.Contains(end, dir) {
		t.Fatalf("the end was %q, %v", end, err)
	}
	if len(acknowledged) < 50 {
		t.Fatalf("only %d writes were acknowledged", len(acknowledged))
	}
	if out, err := exec.Command("mount", "-o", "remount,size=600m", dir).CombinedOutput(); err != nil {
		t.Fatalf("%s", out)
	}
	s := open(t, store.Config{DataDir: dir})
	defer s.Close()
	for _, id := range acknowledged {
		if _, err := s.Camera(t.Context(), fleet.CameraID(id)); err != nil {
			t.Errorf("%s was acknowledged: %v", id, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// Below the reserve operators' changes are refused, and everything else goes
// on; above it all is well again.
func TestNearlyFullDisk(t *testing.T) {
	dir := mount(t, "-t", "tmpfs", "-o", "size=200m", "tmpfs")
	s := open(t, store.Config{DataDir: dir, MinFreeDisk: 40 << 20})
	ctx := t.Context()
	if _, err := s.CreateCameras(ctx, cameras(2)); err != nil {
		t.Fatal(err)
	}
	lease, err := s.Grant(ctx, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	// Etcd makes its next log file in the background, of 64 MB.
	free := int64(-1)
	eventually(t, func() bool {
		before := free
		time.Sleep(2 * time.Second)
		free = s.Health().FreeDisk
		return free > 0 && free == before
	})
	if err := os.WriteFile(ballast, make([]byte, free-30<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return errors.Is(s.Health().Err, fleet.StoreFull) })
	_, err = s.CreateCameras(ctx, cameras(3)[2:])
	if !errors.Is(err, fleet.StoreFull) || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "40 MiB must be") {
		t.Errorf("created: %v", err)
	}
	if _, err := lease.Register(ctx, "n1", &controlv1.Node{}); err != nil {
		t.Errorf("a node is refused: %v", err)
	}
	if _, err := s.DeleteCamera(ctx, "c-1", 0); err != nil {
		t.Errorf("a deletion is refused: %v", err)
	}
	m, err := s.Members(ctx)
	if err != nil || m.All[0].GetState().String() != "STATE_FULL" {
		t.Errorf("members %v, %v", m, err)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool { return s.Health().Err == nil })
	if _, err := s.CreateCameras(ctx, cameras(3)[2:]); err != nil {
		t.Errorf("with space again: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

// When the database has reached its quota, operators' changes are refused with
// the same reason; once something is deleted, the space is taken back.
func TestQuota(t *testing.T) {
	s := open(t, store.Config{DataDir: t.TempDir(), Quota: 16 << 20})
	ctx := t.Context()
	n := 0
	write := func() error {
		c := cameras(n + 1)[n]
		c.Desired.DisplayName = strings.Repeat("x", 400<<10)
		_, err := s.CreateCameras(ctx, []*store.Camera{c})
		if err == nil {
			n++
		}
		return err
	}
	var err error
	for err == nil && n < 200 {
		err = write()
	}
	if !errors.Is(err, fleet.StoreFull) {
		t.Fatalf("after %d writes: %v", n, err)
	}
	eventually(t, func() bool {
		if errors.Is(s.Health().Err, fleet.StoreFull) {
			return true
		}
		_ = write() // space may have been reclaimed at once
		return false
	})
	for i := range n {
		if _, err := s.DeleteCamera(ctx, fleet.CameraID(fmt.Sprintf("c-%d", i)), 0); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, func() bool { return s.Health().Err == nil })
	if _, err := s.CreateCameras(ctx, cameras(1)); err != nil {
		t.Errorf("with space again: %v", err)
	}
}

// While the disk does not answer, calls fail with that reason instead of
// hanging; when it answers again, all goes on and nothing is lost.
func TestSlowDisk(t *testing.T) {
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 400<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Skipf("no file system can be made here: %v %s", err, out)
	}
	dir := mount(t, "-o", "loop", image)
	s := open(t, store.Config{DataDir: dir, MinFreeDisk: -1})
	ctx := t.Context()
	if _, err := s.CreateCameras(ctx, cameras(1)); err != nil {
		t.Fatal(err)
	}
	var frozen atomic.Bool
	thaw := func() {
		if frozen.CompareAndSwap(true, false) {
			if out, err := exec.Command("fsfreeze", "-u", dir).CombinedOutput(); err != nil {
				t.Errorf("thaw: %s", out)
			}
		}
	}
	t.Cleanup(thaw)
	if out, err := exec.Command("fsfreeze", "-f", dir).CombinedOutput(); err != nil {
		t.Skipf("file systems can't be frozen here: %v %s", err, out)
	}
	frozen.Store(true)
	began := time.Now()
	_, err := s.CreateCameras(ctx, cameras(2)[1:])
	took := time.Since(began)
	if !errors.Is(err, fleet.Unavailable) || !strings.Contains(err.Error(), "the store is slow: a write to "+dir) {
		t.Errorf("on a frozen disk: %v", err)
	}
	began = time.Now()
	if _, err := s.CreateCameras(ctx, cameras(2)[1:]); !errors.Is(err, fleet.Unavailable) || time.Since(began) > time.Second {
		t.Errorf("known to be slow, it took %v: %v", time.Since(began), err)
	}
	if h := s.Health(); !errors.Is(h.Err, fleet.Unavailable) || !h.Slow || h.DiskLatency < time.Second {
		t.Errorf("health %+v", h)
	}
	thaw()
	eventually(t, func() bool { return s.Health().Err == nil })
	if _, err := s.Camera(ctx, "c-0"); err != nil {
		t.Error(err)
	}
	if _, err := s.CreateCameras(ctx, cameras(3)[2:]); err != nil {
		t.Errorf("thawed: %v", err)
	}
	t.Logf("the first call failed after %v", took)
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}

func eventually(t *testing.T, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if ok() {
			return
		}
	}
	t.Fatal("it does not come to pass")
}
