package transport

import (
	"encoding/binary"
	"io"
	"sync"
	"time"
)

const (
	// maxFrame bounds what a viewer may send in one frame over TCP, in bytes.
	maxFrame = 2048
	// tcpBuffer bounds what waits for one viewer's TCP connection, in bytes, and
	// tcpPatience for how long: what a network that is slower than the camera
	// would add to the delay of the picture.
	tcpBuffer   = 512 << 10
	tcpPatience = time.Second
	// tcpUnsent bounds what the system holds of it besides, in bytes.
	tcpUnsent = 64 << 10
)

// tcpPath is one viewer's TCP connection: frames of RFC 4571. A reader and a
// writer belong to it, which Port waits for.
type tcpPath struct {
	conn *tcpConn
	wake chan struct{} // holds a token while there may be something to write; never closed

	mu     sync.Mutex // guards the rest
	queue  []byte     // frames
	spare  []byte     // the buffer that was written last
	since  time.Time  // when the oldest of queue was queued
	busy   bool       // a write is under way
	last   bool       // nothing follows what is queued
	closed bool
}

func newTCPPath(c *tcpConn) *tcpPath { return &tcpPath{conn: c, wake: make(chan struct{}, 1)} }

// send queues a frame. False: there is no room, or what waits has
// waited for too long.
func (p *tcpPath) send(b []byte, now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.closed || p.last || len(p.queue)+2+len(b) > tcpBuffer:
		return false
	case len(p.queue) == 0:
		p.since = now
	case now.Sub(p.since) > tcpPatience:
		return false
	}
	p.queue = append(binary.BigEndian.AppendUint16(p.queue, uint16(len(b))), b...)
	signal(p.wake)
	return true
}

// clear tells whether nothing waits.
func (p *tcpPath) clear() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.queue) == 0 && !p.busy
}

// write writes what is queued until the connection is closed.
func (p *tcpPath) write() {
	for range p.wake {
		p.mu.Lock()
		out, last, closed := p.queue, p.last, p.closed
		p.queue, p.spare, p.busy = p.spare[:0], nil, len(out) > 0
		p.mu.Unlock()
		if closed {
			return
		}
		if len(out) > 0 {
			if _, err := p.conn.Write(out); err != nil {
				last = true
			}
		}
		if last {
			p.close()
			return
		}
		p.mu.Lock()
		p.busy = false
		if cap(out) <= tcpBuffer {
			p.spare = out[:0]
		}
		p.mu.Unlock()
	}
}

// finish ends the connection when what is queued has been written, or some time
// later.
func (p *tcpPath) finish() {
	p.mu.Lock()
	p.last = true
	p.mu.Unlock()
	_ = p.conn.SetWriteDeadline(time.Now().Add(tcpPatience)) // closed already, if it fails
	signal(p.wake)
}

// close ends the connection, its reader and its writer.
func (p *tcpPath) close() {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	_ = p.conn.Close()
	signal(p.wake)
}

// read gives each frame to handle, until the connection ends.
func (p *tcpPath) read(handle func(b []byte)) {
	buf := make([]byte, maxFrame)
	for {
		if _, err := io.ReadFull(p.conn, buf[:2]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(buf))
		if n > len(buf) {
			return
		}
		if _, err := io.ReadFull(p.conn, buf[:n]); err != nil {
			return
		}
		handle(buf[:n])
	}
}
