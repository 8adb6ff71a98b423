package viewertest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gorilla/websocket"
)

// Watch is a viewer that watches a camera over a websocket of its own, as the
// page's player does (docs/signaling.md): candidates trickle. It follows no
// camera to another node; a [Follower] does.
type Watch struct {
	*Viewer

	// Static after PrepareWatch.
	camera string
	offer  string
	ws     *websocket.Conn

	sent, answered time.Time // owned by Play

	reader  sync.WaitGroup
	welcome chan struct{} // closed by the reader at the first welcome
	answer  chan string   // one slot: the answer
	ended   chan struct{} // closed by the reader when it ends

	mu         sync.Mutex  // guards the rest, and writing
	ours       []Candidate // that wait for the watch
	watched    bool        // the watch was sent
	theirs     []Candidate // that wait for the answer
	applied    bool        // the answer has been taken
	err        error       // why nothing more comes
	complained string      // the last reason that the gateway gave
}

const watchSession = "s1" // the websocket has no other

// PrepareWatch opens a websocket, "ws://127.0.0.1:8080/v1/ws", waits for the
// gateway's welcome, and makes the viewer and its offer. It watches nothing
// before Play. The token may be empty.
func PrepareWatch(ctx context.Context, endpoint, token, camera string, cfg Config) (*Watch, error) {
	w := &Watch{camera: camera, welcome: make(chan struct{}), answer: make(chan string, 1), ended: make(chan struct{})}
	cfg.Trickle, cfg.OnCandidate = true, w.gathered
	var err error
	if w.Viewer, err = New(cfg); err != nil {
		return nil, err
	}
	if w.ws, err = dialGateway(ctx, endpoint, token); err != nil {
		_ = w.Viewer.Close()
		return nil, fmt.Errorf("watch camera %s: %w", camera, err)
	}
	w.reader.Go(w.read)
	if w.offer, err = w.Offer(ctx); err == nil {
		err = w.await(ctx, w.welcome)
	}
	if err != nil {
		_ = w.Close()
		return nil, fmt.Errorf("watch camera %s: %w", camera, err)
	}
	return w, nil
}

// Play sends the offer and takes the answer. It is called once.
func (w *Watch) Play(ctx context.Context) error {
	if err := w.play(ctx); err != nil {
		return fmt.Errorf("watch camera %s: %w", w.camera, err)
	}
	return nil
}

func (w *Watch) play(ctx context.Context) error {
	w.sent = time.Now()
	if err := w.begin(); err != nil {
		return err
	}
	var sdp string
	select {
	case sdp = <-w.answer:
	case <-w.ended:
		return w.reason()
	case <-ctx.Done():
		return fmt.Errorf("wait for the answer: %w", ctx.Err())
	}
	w.answered = time.Now()
	if err := w.Answer(sdp); err != nil {
		return err
	}
	w.mu.Lock()
	theirs := w.theirs
	w.theirs, w.applied = nil, true
	w.mu.Unlock()
	for _, c := range theirs {
		_ = w.AddCandidate(c) // one that cannot be used leaves the others
	}
	return nil
}

// begin sends the watch, and the candidates that there are.
func (w *Watch) begin() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	err := w.write(toGateway{
		Type: "watch", Session: watchSession, Camera: w.camera, Offer: w.offer,
		Viewport: &viewport{640, 360, true}, Codecs: []string{"H264"},
	})
	w.watched = true
	for _, c := range w.ours {
		err = errors.Join(err, w.write(toGateway{Type: "candidate", Session: watchSession, Candidate: &c}))
	}
	w.ours = nil
	return err
}

// Times returns when the watch was sent and when the answer had come.
func (w *Watch) Times() (sent, answered time.Time) { return w.sent, w.answered }

// write sends a message. The caller holds mu.
func (w *Watch) write(m toGateway) error {
	_ = w.ws.SetWriteDeadline(time.Now().Add(sendTimeout))
	return w.ws.WriteJSON(m)
}

func (w *Watch) gathered(c Candidate) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.watched {
		w.ours = append(w.ours, c)
		return
	}
	_ = w.write(toGateway{Type: "candidate", Session: watchSession, Candidate: &c}) // the reader hears of an error too
}

// read takes what the gateway says until the websocket or the session ends.
func (w *Watch) read() {
	defer close(w.ended)
	welcomed := false
	for {
		var m fromGateway
		if err := w.ws.ReadJSON(&m); err != nil {
			w.mu.Lock()
			w.err = err
			w.mu.Unlock()
			return
		}
		switch m.Type {
		case "welcome":
			if !welcomed {
				close(w.welcome)
			}
			welcomed = true
		case "answer":
			select {
			case w.answer <- m.SDP:
			default:
			}
		case "candidate":
			if m.Candidate != nil && m.Candidate.Candidate != "" {
				w.candidate(*m.Candidate)
			}
		case "error", "state":
			if w.heard(m) {
				return
			}
		}
	}
}

func (w *Watch) candidate(c Candidate) {
	w.mu.Lock()
	applied := w.applied
	if !applied {
		w.theirs = append(w.theirs, c)
	}
	w.mu.Unlock()
	if applied {
		_ = w.AddCandidate(c)
	}
}

// heard takes an error or a state. It tells whether the session is over.
func (w *Watch) heard(m fromGateway) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if m.Reason != "" {
		w.complained = m.Reason + ": " + m.Message
	}
	if m.State == "ended" {
		w.err = errors.New("the gateway ended the session")
		return true
	}
	return false
}

// reason says why nothing more comes, after ended.
func (w *Watch) reason() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.complained != "" {
		return fmt.Errorf("%w (%s)", w.err, w.complained)
	}
	return w.err
}

func (w *Watch) await(ctx context.Context, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-w.ended:
		return w.reason()
	case <-ctx.Done():
		return fmt.Errorf("wait for the welcome: %w", ctx.Err())
	}
}

// Delete leaves, and closes the viewer.
func (w *Watch) Delete(context.Context) error {
	w.mu.Lock()
	err := w.write(toGateway{Type: "leave", Session: watchSession})
	w.mu.Unlock()
	return errors.Join(err, w.Close())
}

// Close closes the websocket and the viewer, and waits for all goroutines.
func (w *Watch) Close() error {
	deadline := time.Now().Add(time.Second)
	_ = w.ws.WriteControl(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""), deadline)
	_ = w.ws.Close()
	w.reader.Wait()
	return w.Viewer.Close()
}
