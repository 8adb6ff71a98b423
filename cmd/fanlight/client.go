package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/pflag"
	"google.golang.org/grpc"

	"fanlight/internal/certs"
	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
	"fanlight/internal/service"
)

// tokenSetting names the variable FANLIGHT_TOKEN. It is not a flag, because a
// command line can be read by others.
const tokenSetting = "token"

// client is how a command reaches the control plane.
type client struct {
	app       *app
	servers   []string
	files     certs.Files
	tokenFile string
	insecure  bool
	timeout   time.Duration
	output    string
}

func (c *client) flags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&c.servers, "server", []string{"127.0.0.1:9090"}, "`host:port` of a control plane; several, separated by commas, for any of them")
	flags.StringVar(&c.files.CA, "ca", "", "PEM `file` of the authority that signed the server's certificate (default: the system's)")
	flags.StringVar(&c.files.Cert, "cert", "", "PEM `file` of an operator's certificate")
	flags.StringVar(&c.files.Key, "key", "", "PEM `file` of its key")
	flags.StringVar(&c.tokenFile, "token-file", "", "`file` with an operator's token; or put the token into FANLIGHT_TOKEN")
	flags.BoolVar(&c.insecure, "insecure", false, "plaintext to another machine: tokens and passwords can be read on the way")
	flags.DurationVar(&c.timeout, "timeout", 10*time.Second, "for the answer to a `request`")
	flags.StringVarP(&c.output, "output", "o", "table", "print `table|json`")
}

// dial connects to the control plane. On loopback without TLS flags it speaks
// plaintext, everywhere else TLS.
func (c *client) dial() (*grpc.ClientConn, error) {
	if c.output != "table" && c.output != "json" {
		return nil, usagef("--output %s: must be table or json", c.output)
	}
	token, err := c.token()
	if err != nil {
		return nil, err
	}
	d := rpc.Dialer{Token: token, Insecure: c.insecure}
	if d.TLS, err = c.tls(); err != nil {
		return nil, usageError{err}
	}
	cc, err := d.Dial(c.servers...)
	if err != nil {
		return nil, usagef("--server: %w", err)
	}
	return cc, nil
}

func (c *client) tls() (*tls.Config, error) {
	if c.files == (certs.Files{}) {
		if c.insecure {
			return nil, nil
		}
		remote := false
		for _, s := range c.servers {
			remote = remote || !rpc.IsLoopback(s)
		}
		if !remote {
			return nil, nil
		}
	}
	cfg, err := c.files.ClientTLS(nil)
	if err != nil {
		return nil, err
	}
	certs.RequireRole(cfg, true, controlPlanes()...)
	return cfg, nil
}

func (c *client) token() (string, error) {
	if c.tokenFile == "" {
		for _, kv := range c.app.environ {
			if v, ok := strings.CutPrefix(kv, service.EnvName(tokenSetting)+"="); ok {
				return v, nil
			}
		}
		return "", nil
	}
	data, err := os.ReadFile(c.tokenFile)
	if err != nil {
		return "", usagef("--token-file: %w", err)
	}
	token := strings.TrimSpace(string(data))
	if token == "" || strings.ContainsAny(token, " \t\r\n") {
		return "", usagef("--token-file %s: must hold one token and nothing else", c.tokenFile)
	}
	return token, nil
}

// call makes calls with the timeout.
func (c *client) call(ctx context.Context, f func(context.Context, *grpc.ClientConn) error) error {
	cc, err := c.dial()
	if err != nil {
		return err
	}
	defer quietClose(cc)
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	return c.explain(f(ctx, cc))
}

// watch runs one attempt of a watch after another until a signal, with a
// pause after each that the server could not be reached for. attempt gets a
// function to call when something has been received.
func (c *client) watch(ctx context.Context, attempt func(ctx context.Context, cc *grpc.ClientConn, received func()) error) error {
	cc, err := c.dial()
	if err != nil {
		return err
	}
	defer quietClose(cc)
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	backoff := rpc.Backoff{Max: 2 * time.Second}
	ever := false
	for {
		err := attempt(ctx, cc, func() { ever = true; backoff.Reset() })
		switch {
		case ctx.Err() != nil:
			return nil
		case err == nil:
			return errors.New("the server ended the watch")
		case !ever || !errors.Is(err, fleet.Unavailable):
			return c.explain(err)
		}
		c.app.note("connection lost (%v), connecting again", err)
		if backoff.Sleep(ctx) != nil {
			return nil
		}
	}
}

// explain says what the user can do about an error of the connection.
func (c *client) explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("no answer from %s within %v", strings.Join(c.servers, ", "), c.timeout)
	case errors.Is(err, fleet.Unavailable) && rpc.Answered(err):
		return err // the control plane's own
	case errors.Is(err, fleet.Unavailable):
		hint := ""
		if c.files.CA == "" {
			hint = " (if it uses TLS, see --ca)"
		}
		return fmt.Errorf("no control plane can be reached at %s: %s%s", strings.Join(c.servers, ", "), dialText(err), hint)
	case errors.Is(err, fleet.Unauthenticated):
		return fmt.Errorf("%w (see --token-file, --cert and --key)", err)
	default:
		return err
	}
}

// dialText returns what is wrong with a connection without gRPC's framing of
// it: "dial tcp 127.0.0.1:9090: connect: connection refused".
func dialText(err error) string {
	s := err.Error()
	if _, inner, ok := strings.Cut(s, `desc = "transport: `); ok {
		s = strings.TrimSuffix(inner, `"`)
	}
	return strings.TrimPrefix(s, "Error while dialing: ")
}
