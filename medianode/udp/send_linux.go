//go:build !plainudp

package udp

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// send gives all messages to the kernel. Each ends as sent, refused or dropped.
func (b *Batch) send(fd uintptr) {
	for b.sent < b.n {
		n, errno := b.push(fd, &b.headers[b.sent], b.n-b.sent)
		switch errno {
		case 0:
			b.passed(b.messages[b.sent : b.sent+n])
			b.sent += n
			continue
		case unix.EAGAIN:
			b.drop(0)
			return
		case unix.EIO, unix.EINVAL, unix.EMSGSIZE:
			if m := &b.messages[b.sent]; m.segments > 1 {
				if !b.sendApart(fd, m, errno) {
					return
				}
				b.sent++
				continue
			}
		default:
		}
		b.tally.refused += uint64(b.messages[b.sent].segments)
		b.sent++
	}
}

// push sends the first of n messages and as many of the others as the kernel
// takes at once, and returns their number. An error is the first message's; it
// is EAGAIN if there was no room for it in time.
func (b *Batch) push(fd uintptr, first *mmsghdr, n int) (int, unix.Errno) {
	for failed := false; ; {
		sent, errno := sendmmsg(fd, first, n)
		b.tally.batches++
		switch errno {
		case 0:
			b.tally.messages += uint64(sent)
			return sent, 0
		case unix.EINTR:
		case unix.EAGAIN, unix.ENOBUFS:
			if !b.room.wait(fd, errno) {
				return 0, unix.EAGAIN
			}
		default:
			// The error may belong to a datagram sent before, which the network
			// sent back: then the second try passes.
			if failed {
				return 0, errno
			}
			failed = true
		}
	}
}

// passed counts messages that were sent.
func (b *Batch) passed(messages []message) {
	segmented := false
	for i := range messages {
		b.tally.packets += uint64(messages[i].segments)
		b.tally.bytes += uint64(messages[i].bytes)
		segmented = segmented || messages[i].segments > 1
	}
	if segmented && b.conn.refusals.Load() != 0 {
		b.conn.refusals.Store(0)
	}
}

// sendApart sends the segments of a message, which the kernel refused to cut,
// one by one: the device has no checksum offload (EIO), or a segment is longer
// than the path's MTU and must be cut by IP (EINVAL, EMSGSIZE). It returns
// false if there was no more room, and all the rest has been dropped.
func (b *Batch) sendApart(fd uintptr, m *message, why unix.Errno) bool {
	b.one.setName(&m.to.sa)
	b.one.Namelen = m.to.len
	passed := false
	for i := range m.segments {
		at := i * m.size
		size := min(m.size, m.bytes-at)
		b.oneData.Base = &b.buf[m.at+at]
		b.oneData.SetLen(size)
		switch _, errno := b.push(fd, &b.one, 1); errno {
		case 0:
			passed = true
			b.tally.packets++
			b.tally.bytes += uint64(size)
		case unix.EAGAIN:
			b.drop(i)
			return false
		default:
			b.tally.refused++
		}
	}
	// If no segment passed either, it is not for the segmentation.
	if passed && b.conn.refusals.Add(1) == maxRefusals {
		b.conn.stopSegmenting(fmt.Sprintf("UDP_SEGMENT was refused %d times: %v", maxRefusals, why))
	}
	return true
}

// drop counts what is left as dropped, but for the first done segments of the
// message whose turn it is.
func (b *Batch) drop(done int) {
	for i := b.sent; i < b.n; i++ {
		b.tally.dropped += uint64(b.messages[i].segments)
	}
	b.tally.dropped -= uint64(done)
	b.sent = b.n
}
