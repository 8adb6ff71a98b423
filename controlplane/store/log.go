package store

import (
	"context"
	"log/slog"
	"slices"
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
}

// newZapLogger returns a logger for etcd that passes warnings and errors on,
// and a function that silences it.
func newZapLogger(log *slog.Logger) (*zap.Logger, func()) {
	core := &slogCore{log: log.With("component", "etcd"), muted: new(atomic.Bool)}
	return zap.New(core), func() { core.muted.Store(true) }
}

// slogCore is a zapcore.Core that writes to slog.
type slogCore struct {
	log   *slog.Logger
	muted *atomic.Bool
}

// Enabled tells whether entries of a level are passed on.
func (c *slogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.WarnLevel && !c.muted.Load()
}

// With returns a core whose entries all have the fields.
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: slog.New(c.log.Handler().WithAttrs(attrs(fields))), muted: c.muted}
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
