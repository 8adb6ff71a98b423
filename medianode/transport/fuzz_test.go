package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// spoken is a connection from which given bytes come, in pieces of a size.
type spoken struct {
	net.Conn // nil
	in       *bytes.Reader
	piece    int
}

func (c *spoken) Read(b []byte) (int, error) { return c.in.Read(b[:min(len(b), c.piece)]) }
func (c *spoken) Close() error               { return nil }
func (c *spoken) RemoteAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 9}
}

// FuzzFrames takes what comes over a viewer's TCP connection (RFC 4571), however
// it is cut. Frames come as they were sent and within bounds, the connection
// counts for one session at most, and nothing is left of it.
func FuzzFrames(f *testing.F) {
	framed := func(messages ...[]byte) []byte {
		var out []byte
		for _, m := range messages {
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(m))), m...)
		}
		return out
	}
	check := build(stun.BindingRequest, stun.TransactionID, stun.NewUsername("abcd:efgh"), stun.Fingerprint)
	f.Add(framed(check, []byte{22, 254, 253, 0, 0}, []byte{0x80, 201, 0, 1, 0, 0, 0, 1}), uint8(3))
	f.Add(framed(check[:20]), uint8(255))
	f.Add(framed(nil, nil, check), uint8(1))
	f.Add([]byte{0xff, 0xff, 0}, uint8(0))
	f.Add(framed([]byte(strings.Repeat("x", maxFrame))), uint8(200))
	f.Fuzz(func(t *testing.T, in []byte, piece uint8) {
		l := newTCPListener(nil, tcpLimits{conns: 1, waiting: 1, fragment: 1, answer: time.Hour})
		conn := l.add(&spoken{in: bytes.NewReader(in), piece: int(piece) + 1})
		if conn == nil {
			t.Fatal("refused")
		}
		p := newTCPPath(conn)
		var out []byte
		p.read(func(b []byte) {
			if len(b) > maxFrame {
				t.Errorf("a frame of %d bytes", len(b))
			}
			out = append(binary.BigEndian.AppendUint16(out, uint16(len(b))), b...)
		})
		if !bytes.HasPrefix(in, out) {
			t.Errorf("the frames are not what came")
		}
		if len(conn.hello) > maxFrame+2 {
			t.Errorf("%d bytes of a first message were kept", len(conn.hello))
		}
		if len(l.fragments) > 1 {
			t.Errorf("the connection is for %d sessions", len(l.fragments))
		}
		p.close()
		if len(l.conns)+len(l.waiting)+len(l.fragments) != 0 {
			t.Errorf("left are %v, %v, %v", l.conns, l.waiting, l.fragments)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, errTooMany) {
			t.Error(err)
		}
	})
}
