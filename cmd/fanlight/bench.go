package main

import (
	"github.com/spf13/cobra"
)

// newBench has the measurements whose figures docs/operations.md and
// docs/performance.md print.
func newBench(a *app) *cobra.Command {
	cmd := group("bench", "Measure a fleet on this machine")
	cmd.AddCommand(newBenchFailover(a), newBenchFanout(a), newBenchFanoutFloor(a), newBenchFleet(a), newBenchJoin(a), newBenchSoak(a))
	return cmd
}
