package rpc

import (
	"context"
	"net"

	"google.golang.org/grpc/test/bufconn"
)

// pipeBuffer is how many bytes a connection through a Pipe holds in each
// direction before its writer waits.
const pipeBuffer = 64 << 10

// Pipe joins clients and servers of one process without a socket. It is the
// net.Listener of the server; a [Dialer] that has it goes through it instead
// of dialling its address. Callers through it are trusted: their [Identity]
// is Any.
type Pipe struct {
	addr pipeAddr
	lis  *bufconn.Listener
}

// NewPipe makes a pipe that stands for addr: usually the address that the same
// server also listens on.
func NewPipe(addr string) *Pipe {
	return &Pipe{addr: pipeAddr(addr), lis: bufconn.Listen(pipeBuffer)}
}

// Accept waits for a client. It implements net.Listener.
func (p *Pipe) Accept() (net.Conn, error) {
	c, err := p.lis.Accept()
	if err != nil {
		return nil, err
	}
	return pipeConn{c, p.addr}, nil
}

// Close ends Accept and refuses clients from now on; connections stay. It
// implements net.Listener.
func (p *Pipe) Close() error { return p.lis.Close() }

// Addr returns the address that the pipe stands for; its network is "pipe".
// It implements net.Listener.
func (p *Pipe) Addr() net.Addr { return p.addr }

// DialContext connects to the server.
func (p *Pipe) DialContext(ctx context.Context) (net.Conn, error) {
	return p.lis.DialContext(ctx)
}

// pipeConn marks a server's connection as one of the same process.
type pipeConn struct {
	net.Conn
	addr pipeAddr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.addr }

type pipeAddr string

func (pipeAddr) Network() string  { return "pipe" }
func (a pipeAddr) String() string { return string(a) }
