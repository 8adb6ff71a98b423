package fanout

import (
	"bufio"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the floor's process is told, and what it answers, a line of JSON each.
type (
	floorSetup struct {
		Period  time.Duration `json:"period"`  // between a camera's pictures
		Frames  [][]int       `json:"frames"`  // bytes of each packet of each picture, RTP header and tag included
		Cameras [][]string    `json:"cameras"` // addresses of each camera's viewers
	}
	floorOrder struct {
		Length time.Duration `json:"length"`
	}
	floorTurnResult struct {
		CPU     time.Duration `json:"cpu"`
		Packets uint64        `json:"packets"`
	}
)

// Sizes of SRTP with AES-128-GCM (RFC 7714).
const (
	sealTag   = 16
	sealNonce = 12
)

// Floor is the floor's process: it reads what to send, then a line for each
// turn, and answers each turn with what it cost. It returns when there is
// nothing to read any more.
func Floor(r io.Reader, w io.Writer) error {
	in, out := json.NewDecoder(bufio.NewReader(r)), json.NewEncoder(w)
	var setup floorSetup
	if err := in.Decode(&setup); err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	f, err := newFloor(&setup)
	if err != nil {
		return fmt.Errorf("floor: %w", err)
	}
	defer func() { _ = unix.Close(f.fd) }() // nothing is written that could be lost
	for {
		var order floorOrder
		if err := in.Decode(&order); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		res, err := f.turn(order.Length)
		if err == nil {
			err = out.Encode(res)
		}
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
	}
}

// floor sends pictures to sockets, and does nothing else. One goroutine has it.
type floor struct {
	period  time.Duration
	frames  [][]int
	cameras [][]*destination
	fd      int
	picture []byte // what is sent: any bytes
	batch   batch
	packets uint64
}

// destination is one socket of the floor's.
type destination struct {
	addr  unix.RawSockaddrInet4
	aead  cipher.AEAD
	nonce [sealNonce]byte
	seq   uint16
}

func newFloor(setup *floorSetup) (*floor, error) {
	if setup.Period <= 0 || len(setup.Frames) == 0 || len(setup.Cameras) == 0 {
		return nil, errors.New("there is nothing to send")
	}
	f := &floor{period: setup.Period, picture: make([]byte, 1<<16)}
	_, _ = rand.Read(f.picture) // it cannot fail
	for _, frame := range setup.Frames {
		var sizes []int
		for _, n := range frame {
			sizes = append(sizes, min(max(n-rtpHeader-sealTag, 1), maxDatagram-rtpHeader-sealTag))
		}
		f.frames = append(f.frames, sizes)
	}
	for _, addrs := range setup.Cameras {
		var list []*destination
		for _, a := range addrs {
			d, err := newDestination(a)
			if err != nil {
				return nil, err
			}
			list = append(list, d)
		}
		f.cameras = append(f.cameras, list)
	}
	var err error
	if f.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0); err != nil {
		return nil, err
	}
	if err := unix.Bind(f.fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return nil, errors.Join(err, unix.Close(f.fd))
	}
	f.batch.init(f.fd)
	return f, nil
}

func newDestination(addr string) (*destination, error) {
	a, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	var key [16]byte
	_, _ = rand.Read(key[:]) // it cannot fail
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	d := &destination{}
	d.addr.Family, d.addr.Addr = unix.AF_INET, a.Addr().As4()
	port := (*[2]byte)(unsafe.Pointer(&d.addr.Port)) //nolint:gosec // in network order
	binary.BigEndian.PutUint16(port[:], a.Port())
	d.aead, err = cipher.NewGCM(block)
	return d, err
}

// turn sends for a while. Cameras have moments of their own within a picture's
// period, as simulated ones do.
func (f *floor) turn(length time.Duration) (floorTurnResult, error) {
	cpu, err := processCPU(os.Getpid())
	if err != nil {
		return floorTurnResult{}, err
	}
	f.packets = 0
	start := time.Now()
	for n := 0; ; n++ {
		due := time.Duration(n) * f.period / time.Duration(len(f.cameras))
		if due >= length {
			break
		}
		time.Sleep(due - time.Since(start))
		if err := f.send(f.frames[n/len(f.cameras)%len(f.frames)], f.cameras[n%len(f.cameras)]); err != nil {
			return floorTurnResult{}, err
		}
	}
	after, err := processCPU(os.Getpid())
	return floorTurnResult{CPU: after - cpu, Packets: f.packets}, err
}

// send sends a picture to all viewers of a camera.
func (f *floor) send(sizes []int, to []*destination) error {
	for _, d := range to {
		for i, n := range sizes {
			b, err := f.batch.room()
			if err != nil {
				return err
			}
			d.seq++
			b[0], b[1] = 0x80, offeredH264
			if i == len(sizes)-1 {
				b[1] |= 0x80
			}
			binary.BigEndian.PutUint16(b[2:], d.seq)
			binary.BigEndian.PutUint64(b[4:], 1) // timestamp and SSRC are no work
			binary.BigEndian.PutUint16(d.nonce[sealNonce-2:], d.seq)
			copy(b[rtpHeader:], f.picture[:n])
			d.aead.Seal(b[rtpHeader:rtpHeader], d.nonce[:], b[rtpHeader:rtpHeader+n], b[:rtpHeader])
			if err := f.batch.commit(&d.addr, rtpHeader+n+sealTag); err != nil {
				return err
			}
		}
		f.packets += uint64(len(sizes))
	}
	return f.batch.flush()
}

// processCPU returns the CPU time of a process, user and system, by the clock
// that clock_getcpuclockid(3) names.
func processCPU(pid int) (time.Duration, error) {
	const schedClock = 2 // CPUCLOCK_SCHED, of the whole process
	var ts unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|schedClock), &ts); err != nil {
		return 0, fmt.Errorf("CPU time of process %d: %w", pid, err)
	}
	return time.Duration(ts.Nano()), nil
}

// floorProcess is the floor, run by this process.
type floorProcess struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *json.Decoder
	errors *head
}

// startFloor starts the floor's process. It is killed when ctx ends, and must be
// closed in any case.
func startFloor(ctx context.Context, binary string, setup *floorSetup) (*floorProcess, error) {
	cmd := exec.CommandContext(ctx, binary, "bench", "fanout-floor")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = time.Second
	p := &floorProcess{cmd: cmd, errors: &head{}}
	cmd.Stderr = p.errors
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the floor: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start the floor: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start the floor: %w", err)
	}
	p.in, p.out = in, json.NewDecoder(out)
	if err := json.NewEncoder(in).Encode(setup); err != nil {
		return nil, errors.Join(fmt.Errorf("start the floor: %w", err), p.close())
	}
	return p, nil
}

// turn has the floor send for a while.
func (p *floorProcess) turn(length time.Duration) (res floorTurnResult, err error) {
	if err := json.NewEncoder(p.in).Encode(floorOrder{Length: length}); err != nil {
		return res, fmt.Errorf("measure the floor: %w: %s", err, p.errors)
	}
	if err := p.out.Decode(&res); err != nil {
		return res, fmt.Errorf("measure the floor: %w: %s", err, p.errors)
	}
	return res, nil
}

// close ends the process and waits for it.
func (p *floorProcess) close() error {
	_ = p.in.Close() // the process ends with it
	if err := p.cmd.Wait(); err != nil {
		return fmt.Errorf("the floor: %w: %s", err, p.errors)
	}
	return nil
}

// head keeps the beginning of what is written.
type head struct {
	mu   sync.Mutex // guards the rest
	text []byte
}

func (h *head) Write(b []byte) (int, error) {
	const most = 4096
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text = append(h.text, b[:min(len(b), most-len(h.text))]...)
	return len(b), nil
}

func (h *head) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return string(h.text)
}
