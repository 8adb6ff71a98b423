package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// hushed are etcd's warnings about what is meant to be as it is.
var hushed = []string{
	"Running http and grpc server on single port. This is not recommended for production.",
	"simple token is not cryptographically signed",
	"failed to update storage version", // at a member's first start; it tries again
	"Failed to detect schema version",  // at a member's first start; there is none yet
	"request stats",                    // after "apply request took too long"
	"retrying of unary invoker failed", // the error is returned
	"rejecting member add request; local member has not been connected to majority peers, reconfigure breaks active quorum", // the error is returned
}

// etcdLog is what etcd logs to.
type etcdLog struct {
	// Static after newEtcdLog.
	slog  *slog.Logger
	zap   *zap.Logger
	fatal *fatalHook

	muted *atomic.Bool
}

// newEtcdLog returns a logger for etcd that passes warnings and errors on.
func newEtcdLog(log *slog.Logger) *etcdLog {
	l := &etcdLog{
		slog:  log.With("component", "etcd"),
		fatal: &fatalHook{failed: make(chan struct{})},
		muted: new(atomic.Bool),
	}
	core := &slogCore{log: l.slog, muted: l.muted, fatal: l.fatal}
	l.zap = zap.New(core, zap.WithFatalHook(l.fatal), zap.WithPanicHook(l.fatal))
	return l
}

// mute silences it.
func (l *etcdLog) mute() { l.muted.Store(true) }

// fatalHook is run when etcd logs something after which it can't go on, as a
// write to its log that failed. By itself it would end the process on the spot;
// so the goroutine that must not go on is stopped for ever instead, and
// everybody else learns of it.
type fatalHook struct {
	once   sync.Once
	failed chan struct{} // closed by OnWrite
	err    error         // written before failed is closed
}

// OnWrite does not return.
func (h *fatalHook) OnWrite(ce *zapcore.CheckedEntry, fields []zapcore.Field) {
	err := errors.New(ce.Message)
	if reason := errorOf(fields); reason != nil {
		err = fmt.Errorf("%s: %w", ce.Message, reason)
	}
	h.fail(err)
}

// fail does not return.
func (h *fatalHook) fail(err error) {
	h.once.Do(func() {
		h.err = err
		close(h.failed)
	})
	select {}
}

// errorOf returns the error among an entry's fields; nil: there is none.
func errorOf(fields []zapcore.Field) error {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			return err
		}
	}
	return nil
}

// slogCore is a zapcore.Core that writes to slog.
type slogCore struct {
	log   *slog.Logger
	muted *atomic.Bool
	fatal *fatalHook
}

// Enabled tells whether entries of a level are passed on.
func (c *slogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && !c.muted.Load()
}

// With returns a core whose entries all have the fields.
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: slog.New(c.log.Handler().WithAttrs(attrs(fields))), muted: c.muted, fatal: c.fatal}
}

// Check adds the core to an entry that is to be written.
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) && !slices.Contains(hushed, e.Message) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write writes an entry.
func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	if err := errorOf(fields); e.Message == "server error" && err != nil && strings.Contains(err.Error(), "permanently removed") {
		// Else etcd would close its database now, and panic in the calls that are
		// under way.
		c.fatal.fail(ErrRemoved)
	}
	level := slog.LevelWarn
	if e.Level > zapcore.WarnLevel {
		level = slog.LevelError
	}
	c.log.LogAttrs(context.Background(), level, e.Message, attrs(fields)...) //nolint:sloglint // etcd's message
	return nil
}

// Sync does nothing: slog buffers nothing.
func (c *slogCore) Sync() error { return nil }

func attrs(fields []zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range fields {
		f.AddTo(enc)
	}
	out := make([]slog.Attr, 0, len(enc.Fields))
	for _, f := range fields {
		if v, ok := enc.Fields[f.Key]; ok {
			out = append(out, slog.Any(f.Key, v))
		}
	}
	return out
}
