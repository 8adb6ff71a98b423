package signaling

import "sync"

// outbox is the queue of messages to one browser, bounded in messages and
// bytes. Whoever finds it full gives the connection up: a browser that does
// not read would otherwise hold the memory of everything that happens.
type outbox struct {
	// Static.
	most      int // messages
	mostBytes int
	wake      chan struct{} // one slot: there is something to take

	mu     sync.Mutex // guards the rest
	queue  [][]byte
	bytes  int
	closed bool
}

func newOutbox(most, mostBytes int) *outbox {
	return &outbox{most: most, mostBytes: mostBytes, wake: make(chan struct{}, 1)}
}

// put adds a message; it does not block. False: the queue is full. A closed
// one takes and drops everything.
func (o *outbox) put(msg []byte) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.closed {
		return true
	}
	if len(o.queue) >= o.most || o.bytes+len(msg) > o.mostBytes {
		return false
	}
	o.queue = append(o.queue, msg)
	o.bytes += len(msg)
	select {
	case o.wake <- struct{}{}:
	default:
	}
	return true
}

// take empties the queue.
func (o *outbox) take() [][]byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	msgs := o.queue
	o.queue, o.bytes = nil, 0
	return msgs
}

// close makes the queue take nothing more; what it has can still be taken.
func (o *outbox) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.closed = true
}
