package store

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"time"
)

// diagnose says why an etcd elsewhere can't be connected to: its client only
// says that the time is over. err is what that said, and is returned if there
// is nothing to add.
func diagnose(ctx context.Context, cfg Config, err error) error {
	if cfg.DataDir != "" || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	var found []error
	for _, e := range cfg.Endpoints {
		if why := tryEndpoint(ctx, e, cfg.TLS); why != nil {
			found = append(found, fmt.Errorf("%s: %w", e, why))
		}
	}
	if len(found) < len(cfg.Endpoints) {
		return err // one of them does answer
	}
	return errors.Join(found...)
}

// tryEndpoint connects as etcd's client does. A server says that it misses a
// client's certificate only after the handshake (RFC 8446 §4.4.2.4).
func tryEndpoint(ctx context.Context, endpoint string, config *tls.Config) error {
	u, err := url.Parse(endpoint)
	if err != nil {
		return errors.New("not a URL")
	}
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.DialContext(ctx, "tcp", u.Host)
	if err != nil || u.Scheme != "https" {
		if err == nil {
			_ = c.Close() // that it could be made is all
		}
		return err
	}
	if config == nil {
		config = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	config = config.Clone()
	if config.ServerName == "" {
		config.ServerName = u.Hostname()
	}
	tc := tls.Client(c, config)
	defer tc.Close()
	if err := errors.Join(tc.SetDeadline(time.Now().Add(2*time.Second)), tc.HandshakeContext(ctx)); err != nil {
		return err
	}
	_ = tc.SetReadDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := tc.Read(make([]byte, 1)); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		return err
	}
	return nil
}
