package fanout

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	readMessages = 16       // at a time from one socket
	messageSize  = 64 << 10 // what GRO makes at most
	controlSize  = 128      // of a message: its segments' size and its time
	readEvents   = 256

	// tickEvery is how often a reader looks at what its viewers have to send; each
	// has its turn once in tickRound ticks, a second.
	tickEvery = 20 * time.Millisecond
	tickRound = int(time.Second / tickEvery)

	// gather is how long a patient reader lets packets gather, to read many at
	// once: it shares the machine's cores with the server, and when a packet came
	// is the kernel's to say.
	gather = 2 * time.Millisecond
)

// reader waits for many sockets in one thread, and reads what comes.
type reader struct {
	// Static after newReader.
	whole bool // its viewers' sockets take messages whole
	epoll int

	// Owned by run.
	messages [readMessages]mmsghdr
	vectors  [readMessages]unix.Iovec
	control  [readMessages][controlSize]byte
	buffer   []byte
	events   [readEvents]unix.EpollEvent
	tick     int

	mu       sync.Mutex // guards the rest, and all that the sockets' receivers own
	sockets  map[int32]*socket
	last     int32 // the key given last
	viewers  []*viewer
	patient  bool // nobody waits for a handshake: what comes may gather
	sampling bool // spot-checked viewers keep latencies
	latency  []time.Duration
	stamps   []time.Duration
	failed   error // of the first packet that could not be decrypted
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	size   uint32
}

func newReader(whole bool) (*reader, error) {
	epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("wait for sockets: %w", err)
	}
	r := &reader{epoll: epoll, whole: whole, buffer: make([]byte, readMessages*messageSize), sockets: make(map[int32]*socket)}
	for i := range r.messages {
		r.vectors[i].Base = &r.buffer[i*messageSize]
		r.vectors[i].SetLen(messageSize)
		r.messages[i].header.Iov = &r.vectors[i]
		r.messages[i].header.SetIovlen(1)
	}
	return r, nil
}

// add has the reader wait for a socket, until close.
func (r *reader) add(s *socket) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last++
	// Fd is a key of ours: descriptors are used again.
	if err := unix.EpollCtl(r.epoll, unix.EPOLL_CTL_ADD, s.fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: r.last}); err != nil {
		return fmt.Errorf("wait for a socket: %w", err)
	}
	r.sockets[r.last] = s
	return nil
}

// remove closes a viewer's socket and forgets the viewer.
func (r *reader) remove(v *viewer) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v.socket.close()
	maps.DeleteFunc(r.sockets, func(_ int32, s *socket) bool { return s == v.socket })
	r.viewers = slices.DeleteFunc(r.viewers, func(other *viewer) bool { return other == v })
}

// run reads until ctx ends, then closes all sockets.
func (r *reader) run(ctx context.Context) error {
	defer func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, s := range r.sockets {
			s.close()
		}
		_ = unix.Close(r.epoll)
	}()
	next := time.Now().Add(tickEvery)
	for ctx.Err() == nil {
		n, err := unix.EpollWait(r.epoll, r.events[:], int(tickEvery/time.Millisecond))
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("wait for sockets: %w", err)
		}
		r.mu.Lock()
		for _, e := range r.events[:max(n, 0)] {
			if s := r.sockets[e.Fd]; s != nil {
				r.read(s)
			}
		}
		if now := time.Now(); now.After(next) {
			next = now.Add(tickEvery)
			r.tick++
			for i, v := range r.viewers {
				v.tick(now, i%tickRound == r.tick%tickRound, r.tick/tickRound)
			}
		}
		patient := r.patient && n > 0
		r.mu.Unlock()
		if patient {
			time.Sleep(gather)
		}
	}
	return nil
}

// read takes what a socket has; what is left comes with the next wait. The
// caller holds mu.
func (r *reader) read(s *socket) {
	for i := range r.messages {
		h := &r.messages[i].header
		h.Control = &r.control[i][0]
		h.SetControllen(controlSize)
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(s.fd), uintptr(unsafe.Pointer(&r.messages)), readMessages, //nolint:gosec // package unix has no call for it
		unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return
	}
	for i := range int(n) {
		m := &r.messages[i]
		data := r.buffer[i*messageSize : i*messageSize+int(m.size)]
		segment, at := parseControl(r.control[i][:min(int(m.header.Controllen), controlSize)])
		if segment <= 0 {
			segment = max(1, len(data))
		}
		for len(data) > 0 {
			part := data[:min(segment, len(data))]
			data = data[len(part):]
			s.to.datagram(part, at)
		}
	}
}

// parseControl reads the size of a message's segments (UDP_GRO) and its time
// (SCM_TIMESTAMPNS, nanoseconds since 1970); 0: not there.
func parseControl(b []byte) (segment int, at int64) {
	const word = int(unsafe.Sizeof(uintptr(0)))
	for len(b) >= unix.SizeofCmsghdr {
		size := int(nativeUint(b))
		if size < unix.SizeofCmsghdr || size > len(b) {
			return segment, at
		}
		level, kind := int32(binary.NativeEndian.Uint32(b[word:])), int32(binary.NativeEndian.Uint32(b[word+4:]))
		value := b[unix.SizeofCmsghdr:size]
		switch {
		case level == unix.SOL_UDP && kind == unix.UDP_GRO && len(value) >= 4:
			segment = int(binary.NativeEndian.Uint32(value))
		case level == unix.SOL_SOCKET && kind == unix.SO_TIMESTAMPNS && len(value) >= 2*word:
			at = int64(nativeUint(value))*int64(time.Second) + int64(nativeUint(value[word:]))
		}
		b = b[min(len(b), (size+word-1)&^(word-1)):]
	}
	return segment, at
}

// nativeUint reads a long of the kernel's.
func nativeUint(b []byte) uint64 {
	if unsafe.Sizeof(uintptr(0)) == 8 {
		return binary.NativeEndian.Uint64(b)
	}
	return uint64(binary.NativeEndian.Uint32(b))
}

// sink counts packets and does nothing else: what the floor sends to. Guarded by
// the reader's mu.
type sink struct{ packets uint64 }

func (s *sink) datagram([]byte, int64) { s.packets++ }
