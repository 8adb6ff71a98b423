package source

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/medianode/stream"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fast is a Retry for tests.
var fast = Retry{Min: 40 * time.Millisecond, Max: 200 * time.Millisecond, Hold: 400 * time.Millisecond}

// runSim runs simulated cameras until the test ends or the function returned is called.
func runSim(t *testing.T, cfg simcam.Config) (*simcam.Server, func()) {
	t.Helper()
	if cfg.Cameras == nil {
		cfg.Cameras = []string{"cam"}
	}
	sim, err := simcam.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- sim.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("simcam: %v", err)
		}
	})
	t.Cleanup(stop)
	return sim, stop
}

// rig is a source that runs, and what it said.
type rig struct {
	source *Source
	stream *stream.Stream
	log    *logBuffer
	stop   func()

	mu       sync.Mutex // guards the rest
	statuses []fleet.CameraStatus
}

// pull runs a source until the test ends. What cfg leaves out is filled in.
func pull(t *testing.T, cfg Config, options ...func(*Source)) *rig {
	t.Helper()
	r := &rig{stream: stream.New(stream.Config{}), log: &logBuffer{}}
	cfg.Camera, cfg.Profile.ID, cfg.Stream = "cam", "main", r.stream
	cfg.Log = slog.New(slog.NewTextHandler(r.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	if cfg.Retry == (Retry{}) {
		cfg.Retry = fast
	}
	if cfg.Timeouts.Request == 0 {
		cfg.Timeouts.Request = 3 * time.Second
	}
	cfg.OnStatus = func(status fleet.CameraStatus) {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.statuses = append(r.statuses, status)
	}
	r.source = New(cfg)
	for _, o := range options {
		o(r.source)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.source.Run(ctx) }()
	r.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run did not return within 10 s of its context's end")
		}
	})
	t.Cleanup(r.stop)
	return r
}

// logBuffer keeps what a source logs.
type logBuffer struct {
	mu  sync.Mutex // guards the rest
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// waitStatus waits for a status after the first n, and returns it and how many
// there were up to it.
func (r *rig) waitStatus(t *testing.T, n int, what string, cond func(fleet.CameraStatus) bool) (fleet.CameraStatus, int) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		r.mu.Lock()
		for ; n < len(r.statuses); n++ {
			if status := r.statuses[n]; cond(status) {
				r.mu.Unlock()
				return status, n + 1
			}
		}
		if time.Now().After(deadline) {
			t.Errorf("no status within 30 s: %s; there were:", what)
			for _, s := range r.statuses {
				t.Logf("%v %s %q", s.State, s.Reason, s.Message)
			}
			r.mu.Unlock()
			t.FailNow()
		}
		r.mu.Unlock()
	}
}

func (r *rig) waitLive(t *testing.T, n int) (fleet.CameraStatus, int) {
	t.Helper()
	return r.waitStatus(t, n, "live", func(s fleet.CameraStatus) bool { return s.State == fleet.CameraLive })
}

func (r *rig) waitFailed(t *testing.T, n int, reason fleet.Reason) (fleet.CameraStatus, int) {
	t.Helper()
	status, n := r.waitStatus(t, n, "failed", func(s fleet.CameraStatus) bool { return s.State == fleet.CameraFailed })
	if status.Reason != reason {
		t.Errorf("failed with %s (%s), want %s", status.Reason, status.Message, reason)
	}
	if status.Message == "" || status.RetryTime.IsZero() || status.Since.IsZero() {
		t.Errorf("message %q, retry time %v, since %v: none may be empty", status.Message, status.RetryTime, status.Since)
	}
	return status, n
}

// waitStopped waits for the next failure, after which the camera is not tried
// again.
func (r *rig) waitStopped(t *testing.T, n int) (fleet.CameraStatus, int) {
	t.Helper()
	status, n := r.waitStatus(t, n, "failed", func(s fleet.CameraStatus) bool { return s.State == fleet.CameraFailed })
	if status.Reason != fleet.ReasonAuthenticationFailed || !status.RetryTime.IsZero() || !strings.Contains(status.Message, "fanlight camera retry") {
		t.Errorf("failed with %s, next try %v, message %q; want authentication_failed, none, how to have it tried again", status.Reason, status.RetryTime, status.Message)
	}
	return status, n
}

// waitPicture waits for keyframes of a new subscription.
func (r *rig) waitPicture(t *testing.T, keyframes int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	sub := r.stream.Subscribe(stream.SubscribeOptions{})
	defer sub.Close()
	for keyframes > 0 {
		burst, err := sub.Next(ctx)
		if err != nil {
			t.Fatalf("no picture: %v", err)
		}
		if burst.Keyframe {
			keyframes--
		}
	}
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not seen within 20 s: %s", what)
		}
	}
}

// scripted is a camera that answers what a test says.
type scripted struct {
	addr string

	mu       sync.Mutex // guards the rest
	requests []string   // their first lines and headers
}

// request is what an answer needs of a request.
type request struct{ method, url, cseq, text string }

// answer returns a response with the request's sequence number.
func (q request) answer(status string, headersAndBody string) string {
	if headersAndBody == "" {
		headersAndBody = "\r\n"
	}
	return "RTSP/1.0 " + status + "\r\nCSeq: " + q.cseq + "\r\n" + headersAndBody
}

func (q request) sdp(body string) string {
	return q.answer("200 OK", fmt.Sprintf("Content-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
}

// runScripted serves until the test ends. An empty answer closes the connection.
func runScripted(t *testing.T, answer func(request) string) *scripted {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &scripted{addr: lis.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				s.serve(conn, answer)
			})
		}
	})
	t.Cleanup(func() {
		if err := lis.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
	})
	return s
}

func (s *scripted) serve(conn net.Conn, answer func(request) string) {
	in := bufio.NewReader(conn)
	for {
		var q request
		for {
			line, err := in.ReadString('\n')
			if err != nil {
				return
			}
			q.text += line
			if line = strings.TrimSpace(line); line == "" {
				break
			}
			if q.method == "" {
				q.method, q.url, _ = strings.Cut(line, " ")
				q.url, _, _ = strings.Cut(q.url, " ")
			}
			if v, ok := strings.CutPrefix(line, "CSeq: "); ok {
				q.cseq = v
			}
		}
		s.mu.Lock()
		s.requests = append(s.requests, q.text)
		s.mu.Unlock()
		a := answer(q)
		if a == "" {
			return
		}
		if _, err := io.WriteString(conn, a); err != nil && !errors.Is(err, net.ErrClosed) {
			return
		}
	}
}

func (s *scripted) seen(part string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := 0
	for _, r := range s.requests {
		if strings.Contains(r, part) {
			n++
		}
	}
	return n
}
