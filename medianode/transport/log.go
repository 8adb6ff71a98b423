package transport

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/pion/logging"
)

// pionLog is where pion's packages log. Whatever they call it, it is debug to
// us: every warning of theirs is something that a viewer can bring about.
type pionLog struct{ log *slog.Logger }

// NewLogger returns the logger of one of pion's packages.
func (l pionLog) NewLogger(scope string) logging.LeveledLogger {
	return scopeLog{l.log.With("pion", scope)}
}

type scopeLog struct{ log *slog.Logger }

func (s scopeLog) write(msg string) { s.log.Debug("webrtc", "text", msg) }

func (s scopeLog) writef(format string, args []any) {
	if s.log.Enabled(context.Background(), slog.LevelDebug) {
		s.write(fmt.Sprintf(format, args...))
	}
}

// Traces are of every packet; nobody wants them.
func (s scopeLog) Trace(string)          {}
func (s scopeLog) Tracef(string, ...any) {}

func (s scopeLog) Debug(msg string)                  { s.write(msg) }
func (s scopeLog) Debugf(format string, args ...any) { s.writef(format, args) }
func (s scopeLog) Info(msg string)                   { s.write(msg) }
func (s scopeLog) Infof(format string, args ...any)  { s.writef(format, args) }
func (s scopeLog) Warn(msg string)                   { s.write(msg) }
func (s scopeLog) Warnf(format string, args ...any)  { s.writef(format, args) }
func (s scopeLog) Error(msg string)                  { s.write(msg) }
func (s scopeLog) Errorf(format string, args ...any) { s.writef(format, args) }
