//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"fanlight/internal/simcam"
	"fanlight/internal/viewertest"
)

// TestFiftyViewers watches one camera fifty times over WHEP: everyone gets
// every packet in order, the camera is pulled once, and when they have left
// nothing of them remains, not even a goroutine.
func TestFiftyViewers(t *testing.T) {
	const viewers, watch = 50, 10 * time.Second
	s := up(t)
	srv := startSimcam(t, simcam.Config{Cameras: []string{"cam"}})
	s.add(t, "lobby", simCamera(srv, "cam"))
	s.awaitCamera(t, "lobby", "STATE_LIVE", "")

	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	list := playAll(ctx, t, client, s.gateways[0]+"/v1/cameras/lobby/whep", viewers)
	eventually(t, picturePatience, "/stats counts the viewers", func() (bool, string) {
		st := s.stats(t, 0, "lobby")
		return st.Viewers == viewers, fmt.Sprintf("%+v", st)
	})
	began := make([]viewertest.Report, viewers)
	for i, v := range list {
		began[i] = v.Report()
	}
	time.Sleep(watch)
	for i, v := range list {
		now := v.Report()
		if !now.Video.Perfect() || now.Video.Backwards > 0 {
			t.Errorf("viewer %d: %v", i, now)
		}
		// 25 frames a second, whatever the load.
		if got, least := now.Video.Frames-began[i].Video.Frames, int(watch.Seconds()*25*8/10); got < least {
			t.Errorf("viewer %d: %d frames in %v, want %d at least", i, got, watch, least)
		}
	}
	t.Logf("viewer 0: %v", list[0].Report())
	if plays, sessions := srv.Plays("cam"), srv.Sessions("cam"); plays != 1 || sessions != 1 {
		t.Errorf("the camera was asked to play %d times and has %d sessions, want 1 and 1", plays, sessions)
	}

	for i, v := range list {
		if err := v.Delete(ctx); err != nil {
			t.Errorf("viewer %d leaves: %v", i, err)
		}
		if err := v.Close(); err != nil {
			t.Errorf("viewer %d closes: %v", i, err)
		}
	}
	eventually(t, picturePatience, "/stats forgets the viewers", func() (bool, string) {
		st := s.stats(t, 0, "lobby")
		return st.Viewers == 0 && st.State == "live", fmt.Sprintf("%+v", st)
	})
	if plays := srv.Plays("cam"); plays != 1 {
		t.Errorf("the camera was asked to play %d times", plays)
	}
	checkGoroutines(t, s.processes[0])
}

// checkGoroutines looks for what sessions run in a process that has none. It
// ends the process.
func checkGoroutines(t *testing.T, p *process) {
	t.Helper()
	time.Sleep(3 * time.Second) // ended sessions may still be closing
	stacks := p.goroutines(t)
	if !strings.Contains(stacks, "fanlight/medianode.(*Node)") {
		t.Fatalf("these are no goroutines of a node:\n%s", stacks)
	}
	for _, of := range []string{"pion/", "transport.(*tcpPath)", "session.(*Session)"} {
		for goroutine := range strings.SplitSeq(stacks, "\n\n") {
			if strings.Contains(goroutine, of) {
				t.Errorf("left by a session:\n%s", goroutine)
				break
			}
		}
	}
}

// playAll makes viewers, a few at a time, and waits for a frame of each. They
// are closed at the end of the test at the latest.
func playAll(ctx context.Context, t *testing.T, client *http.Client, endpoint string, n int) []*viewertest.WHEP {
	t.Helper()
	list, errs := make([]*viewertest.WHEP, n), make([]error, n)
	var wg sync.WaitGroup
	turn := make(chan struct{}, 5)
	for i := range n {
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			if list[i], errs[i] = viewertest.PlayWHEP(ctx, client, endpoint, "", viewertest.Config{}); errs[i] == nil {
				errs[i] = list[i].WaitFrames(ctx, 1)
			}
		})
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, v := range list {
			if v != nil {
				_ = v.Close() // a second time, unless the test failed
			}
		}
	})
	for i, err := range errs {
		if err != nil {
			t.Fatalf("viewer %d: %v", i, err)
		}
	}
	return list
}
