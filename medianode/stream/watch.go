package stream

import "fanlight/internal/fleet"

// Watch is told what is seen of the camera. Each session has one. Its methods
// have one caller at a time.
type Watch struct {
	stream *Stream
	wake   chan struct{} // holds a token while there may be something new; never closed
}

// Watch begins to watch. There is something new at once: what is seen now. The
// watch must be closed.
func (s *Stream) Watch() *Watch {
	w := &Watch{stream: s, wake: make(chan struct{}, 1)}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.watches[w] = struct{}{}
	signal(w.wake)
	return w
}

// Changed returns the channel that has a token when there may be something new.
func (w *Watch) Changed() <-chan struct{} { return w.wake }

// Status returns what is seen of the camera; the error that the stream was
// closed with, io.EOF if there was none.
func (w *Watch) Status() (fleet.CameraStatus, error) {
	w.stream.mu.Lock()
	defer w.stream.mu.Unlock()
	return w.stream.status, w.stream.closed
}

// Close ends the watch. A second Close has no effect.
func (w *Watch) Close() {
	w.stream.mu.Lock()
	defer w.stream.mu.Unlock()
	delete(w.stream.watches, w)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
