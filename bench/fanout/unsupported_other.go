//go:build !linux

package fanout

import (
	"context"
	"io"
)

func run(context.Context, Config) ([]Row, error) { return nil, ErrUnsupported }

// Floor is not to be had here.
func Floor(io.Reader, io.Writer) error { return ErrUnsupported }
