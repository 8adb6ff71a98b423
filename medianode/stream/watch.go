package stream

import (
	"io"
	"slices"
	"sync"

	"fanlight/internal/fleet"
)

// Board says what is seen of a camera, to whoever watches: each session does. Its
// methods may be called from any goroutine.
type Board struct {
	mu      sync.Mutex // guards the rest
	closed  error      // why, once closed
	status  fleet.CameraStatus
	watches map[*Watch]struct{}
}

// NewBoard returns a board that says connecting.
func NewBoard() *Board { return &Board{watches: make(map[*Watch]struct{})} }

// SetStatus says what is seen of the camera. Watches are told if what matters to a
// viewer is different: state, reason, message and time of the next attempt, of
// the camera and of each profile.
func (b *Board) SetStatus(status fleet.CameraStatus) {
	b.mu.Lock()
	defer b.mu.Unlock()
	old := b.status
	b.status = status
	if sameState(old, status) {
		return
	}
	for w := range b.watches {
		signal(w.wake)
	}
}

func sameState(a, b fleet.CameraStatus) bool {
	return a.State == b.State && a.Reason == b.Reason && a.Message == b.Message && a.RetryTime.Equal(b.RetryTime) && a.Verdict == b.Verdict &&
		slices.EqualFunc(a.Profiles, b.Profiles, func(p, q fleet.ProfileStatus) bool {
			return p.ID == q.ID && p.State == q.State && p.Reason == q.Reason && p.BFrames == q.BFrames && sameTracks(p.Tracks, q.Tracks)
		})
}

// sameTracks tells whether two lists of tracks have the same codecs and sizes.
func sameTracks(a, b []fleet.TrackStatus) bool { return slices.Equal(a, b) }

// Status returns what SetStatus was last told.
func (b *Board) Status() fleet.CameraStatus {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.status
}

// poke tells the watches that something is new which is not in the status.
func (b *Board) poke() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for w := range b.watches {
		signal(w.wake)
	}
}

// Close has every watch, present and future, return err; io.EOF if it is nil.
// Only the first Close has an effect.
func (b *Board) Close(err error) {
	if err == nil {
		err = io.EOF
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return
	}
	b.closed = err
	for w := range b.watches {
		signal(w.wake)
	}
}

// Watch begins to watch. There is something new at once: what is seen now. The
// watch must be closed.
func (b *Board) Watch() *Watch {
	w := &Watch{board: b, wake: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.watches[w] = struct{}{}
	signal(w.wake)
	return w
}

// Watch is told what is seen of the camera. Each session has one. Its methods
// have one caller at a time.
type Watch struct {
	board *Board
	wake  chan struct{} // holds a token while there may be something new; never closed
}

// Changed returns the channel that has a token when there may be something new.
func (w *Watch) Changed() <-chan struct{} { return w.wake }

// Status returns what is seen of the camera; the error that the board was closed
// with, io.EOF if there was none.
func (w *Watch) Status() (fleet.CameraStatus, error) {
	w.board.mu.Lock()
	defer w.board.mu.Unlock()
	return w.board.status, w.board.closed
}

// Close ends the watch. A second Close has no effect.
func (w *Watch) Close() {
	w.board.mu.Lock()
	defer w.board.mu.Unlock()
	delete(w.board.watches, w)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
