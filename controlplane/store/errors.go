package store

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"fanlight/internal/fleet"
)

// trouble is why the store is known not to answer: the cause of the end of the
// contexts of calls to it.
type trouble struct {
	error      // wraps fleet.Unavailable
	slow  bool // the disk; else there is no quorum
}

func (t *trouble) Unwrap() error { return t.error }

// unavailable wraps an error of a call to etcd, made with a context of
// [Store.call], in [fleet.Unavailable] or [fleet.StoreFull], with what to do
// about it. A caller's own end stays what it is.
func (s *Store) unavailable(ctx context.Context, err error) error {
	var t *trouble
	if errors.As(context.Cause(ctx), &t) {
		return t
	}
	if s.health != nil && errors.Is(err, rpctypes.ErrNoSpace) {
		return s.health.quotaError()
	}
	return unavailable(err)
}

// unavailable wraps an error of etcd. See [Store.unavailable], which knows more.
func unavailable(err error) error {
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, fleet.Unavailable), errors.Is(err, fleet.StoreFull):
		return err
	case errors.Is(err, rpctypes.ErrNoSpace):
		return fmt.Errorf("%w: etcd's database has reached its quota: raise --quota-backend-bytes of that etcd, or delete what is not needed, "+
			"compact and defragment it, then \"etcdctl alarm disarm\": %w", fleet.StoreFull, err)
	}
	hint := ""
	for _, h := range hints {
		if h.is(err) {
			hint = h.text + ": "
			break
		}
	}
	return fmt.Errorf("%w: %s%w", fleet.Unavailable, hint, err)
}

// hints say what to do about errors of etcd, the first that fits.
var hints = []struct {
	is   func(error) bool
	text string
}{
	{
		anyOf(rpctypes.ErrAuthFailed, rpctypes.ErrInvalidAuthToken, rpctypes.ErrUserNotFound, rpctypes.ErrUserEmpty),
		"etcd does not accept the user name or password: correct --etcd-username and --etcd-password-file",
	},
	{
		anyOf(rpctypes.ErrPermissionDenied),
		"the etcd user may not do this: grant it read and write under --etcd-prefix, and for the members and backups the role root",
	},
	{
		anyOf(rpctypes.ErrAuthNotEnabled),
		"that etcd has no authentication switched on: leave out --etcd-username, or switch it on there",
	},
	{
		says("unknown authority", "certificate is valid for", "certificate has expired", "doesn't contain any IP SANs"),
		"etcd's certificate is not good for its address: correct --etcd-ca or --etcd-endpoints",
	},
	{
		says("remote error: tls", "tls: first record does not look like", "server gave HTTP response"),
		"etcd does not accept the connection: it may need --etcd-cert and --etcd-key, or https:// or http:// in --etcd-endpoints",
	},
	{
		anyOf(rpctypes.ErrNoLeader, rpctypes.ErrTimeoutDueToLeaderFail, rpctypes.ErrLeaderChanged, rpctypes.ErrNotLeader, rpctypes.ErrTimeoutDueToConnectionLost),
		"etcd has no leader at the moment: more than half of its members must run and reach each other",
	},
	{
		anyOf(rpctypes.ErrTimeout, rpctypes.ErrTimeoutWaitAppliedIndex, rpctypes.ErrTooManyRequests),
		"etcd does not keep up: its disk or its machine is too slow",
	},
	{
		anyOf(rpctypes.ErrNotCapable),
		"this replica is still catching up with the others",
	},
	{
		says("connection refused", "no such host", "i/o timeout", "connection error"),
		"etcd cannot be reached: does it run at this address?",
	},
	{
		anyOf(context.DeadlineExceeded),
		"etcd has not answered in time",
	},
}

// anyOf matches errors of etcd, which its client returns as values or as gRPC
// statuses with the same text.
func anyOf(targets ...error) func(error) bool {
	return func(err error) bool {
		for _, t := range targets {
			if errors.Is(err, t) || errors.Is(rpctypes.Error(err), t) {
				return true
			}
		}
		return false
	}
}

// says matches what crypto/tls and net say, which gRPC passes on as text.
func says(parts ...string) func(error) bool {
	return func(err error) bool {
		var unknown x509.UnknownAuthorityError
		if errors.As(err, &unknown) {
			err = unknown
		}
		for _, p := range parts {
			if strings.Contains(err.Error(), p) {
				return true
			}
		}
		return false
	}
}
