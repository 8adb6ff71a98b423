package main

import (
	"context"
	"fmt"
	"time"
)

// readyPoll is how often parts are asked whether they are ready.
const readyPoll = 20 * time.Millisecond

// awaitReady waits until all parts are ready. It returns the error of ctx, if
// that ends first.
func awaitReady(ctx context.Context, parts ...func() error) error {
	tick := time.NewTicker(readyPoll)
	defer tick.Stop()
	for _, ready := range parts {
		for ready() != nil {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

// announce prints lines once all parts are ready, for who started the process.
func (a *app) announce(ctx context.Context, parts []func() error, lines ...string) error {
	if err := awaitReady(ctx, parts...); err != nil {
		return nil //nolint:nilerr // stopped before it was ready
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(a.stdout, l); err != nil {
			return fmt.Errorf("standard output: %w", err)
		}
	}
	return nil
}
