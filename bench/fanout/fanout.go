// Package fanout measures what it costs to send one camera's packets to many
// viewers, and how soon they have them.
//
// It starts simulated cameras ([fanlight/internal/simcam], 2 Mbit/s with a
// keyframe each second) and a server ("fanlight up" with its embedded etcd, or with
// [Config.Apart] a media node alone, whose control plane and gateway are not
// measured), as processes of their own, and joins viewers over WHEP. For each number of viewers
// there is a row ([Row]). Viewers stay from row to row: what a row has more than
// the one before is what its viewers have cost.
//
// # Viewers
//
// Generator and server share a machine, so that a viewer must cost little: it has
// a UDP socket of its own, and no peer connection. ICE (RFC 8445; a controlling
// agent with one candidate that nominates at once, and checks consent every two
// seconds), the DTLS handshake, the check of the certificate's fingerprint, and a
// receiver report a second are real. Of RTP, the header is read, which is in the
// clear: packets are counted by sequence numbers. Only of some viewers, evenly
// spread over the order in which they came, are packets decrypted: at the
// beginning of each picture, up to the one with the camera's time stamp. If one of
// those cannot be, the row fails.
//
// Two threads wait for all sockets at once and read with recvmmsg; once viewers
// have joined they let packets gather for 2 ms, for each wait that ends at once
// is a wakeup that the server pays for. The sockets
// have UDP_GRO: what a server sends as one message with UDP_SEGMENT stays one
// over loopback, as it would to a network card that cuts it; else the server
// would be charged for the cutting, as it is with [Config.Cut]. A server that sends packet by packet gains
// nothing by it.
//
// # What a row says
//
// CPU is the time of all threads of the server, user and system, by the kernel's
// clock of the process (clock_getcpuclockid(3), nanoseconds), for each RTP packet
// that arrived at a viewer. On loopback the sender's time has the receiver's part
// of the kernel in it, up to the socket's queue.
//
// The floor is the least that the same packets can cost: a process that encrypts
// them (AES-128-GCM, in place) and sends them with sendmmsg and UDP_SEGMENT to as
// many sockets of the same kind, and does nothing else. Their sizes and the way
// they make up pictures are recorded from a viewer. A row has turns: the server
// is measured for some seconds, then the cameras freeze ([simcam.Freeze], for
// less than two seconds) and the floor is. Medians of the turns count. Compare
// ratios: time depends on the machine and on what else it does.
//
// Latency is from the camera's stamp, taken before it sends a picture's first
// packet, to the arrival of the picture's last packet (its marker) at the
// viewer's socket, by the kernel's clock of that packet: whole frames, including
// RTSP from the camera to the server, and without the generator's own delay.
// Pictures with a packet missing are left out, and so are those of the time in
// which viewers join.
//
// Lost are packets that never arrived, less those that the viewer's own socket
// dropped because the generator did not read in time. These are dropped: a socket
// counts messages, of up to 64 packets each, so that all that a viewer misses is
// taken to be dropped, up to as many. A row with drops says little.
//
// With [Config.Loss] some viewers throw away a share of what arrives, and ask
// for it again (NACK; RFC 4585 §6.2.1, RFC 4588): what they have not got in the
// end is lost, the rest was repaired.
//
// # Other servers
//
// With [Config.WHEP] nothing is started: viewers join at that URL, and the CPU of
// a process of the caller's choice is measured. The floor's turns are then beside
// the server's work. Latency is 0 unless simcam's stamps are seen.
//
// Linux only. All traffic is on loopback: only a server on this machine can be measured.
package fanout

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Config is what is measured. Binary and Dir are needed.
type Config struct {
	Log    *slog.Logger // nil: nothing is logged
	Binary string       // the fanlight to run; the floor is run with it in any case
	Dir    string       // of logs and data

	Viewers    []int         // of each camera, a row each, ascending; nil: 1, 10, 100, 300, 1000
	Cameras    int           // 0: 1
	Bitrate    int           // of each camera, bits a second; 0: 2,000,000
	PacketSize int           // bytes of payload that the cameras' RTP packets have at most; 0: simcam's default, more than viewers take
	Duration   time.Duration // for which the server is measured, a row; 0: 10 s
	Apart      bool          // the server is a media node, with control plane and gateway beside it; false: all in one process
	Cut        bool          // viewers' sockets take no message with segments whole: the kernel cuts it in the sender's time
	GOMAXPROCS int           // of the server; 0: as it likes
	CPUProfile string        // file for the server's CPU profile of the last row; "": none

	Loss  float64 // share of packets that lossy viewers throw away, 0 to 1
	Lossy float64 // share of viewers that are lossy, 0 to 1

	WHEP string // measure the server at this URL; "": start one
	PID  int    // its process, with WHEP

	// Progress is told what is being done, a line each; nil: nobody is.
	Progress func(line string)
	// Done is told of each row when it is measured; nil: nobody is.
	Done func(Row)
}

// ErrUnsupported is why nothing is measured on this system.
var ErrUnsupported = errors.New("only on Linux can the fan-out be measured: it takes recvmmsg, UDP_SEGMENT and the CPU clock of another process")

// The bounds of a turn. The floor's must end before a node misses the cameras.
const (
	serverTurn = 2500 * time.Millisecond
	floorTurn  = 1500 * time.Millisecond
)

func (c *Config) defaults() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if c.Done == nil {
		c.Done = func(Row) {}
	}
	if len(c.Viewers) == 0 {
		c.Viewers = []int{1, 10, 100, 300, 1000}
	}
	if c.Cameras == 0 {
		c.Cameras = 1
	}
	if c.Bitrate == 0 {
		c.Bitrate = 2_000_000
	}
	if c.Duration == 0 {
		c.Duration = 10 * time.Second
	}
	for i, n := range c.Viewers {
		if n < 1 || i > 0 && n <= c.Viewers[i-1] {
			return fmt.Errorf("numbers of viewers %v: must be ascending, from 1", c.Viewers)
		}
	}
	switch {
	case c.Binary == "" || c.Dir == "":
		return errors.New("a binary and a directory are needed")
	case c.Cameras < 0 || c.Bitrate < 0 || c.Duration < 0 || c.GOMAXPROCS < 0:
		return errors.New("a number is negative")
	case c.Loss < 0 || c.Loss >= 1 || c.Lossy < 0 || c.Lossy > 1:
		return errors.New("loss is a share, from 0 to 1")
	case c.WHEP != "" && (c.PID <= 0 || c.Cameras != 1):
		return errors.New("a server of others is measured with its process id, and one camera")
	}
	return nil
}

// Run measures. It returns the rows that were measured, also with an error, when
// all that it started has ended.
func Run(ctx context.Context, cfg Config) ([]Row, error) {
	if err := cfg.defaults(); err != nil {
		return nil, fmt.Errorf("measure the fan-out: %w", err)
	}
	rows, err := run(ctx, cfg)
	if err != nil {
		return rows, fmt.Errorf("measure the fan-out: %w", err)
	}
	return rows, nil
}
