package main

import (
	"github.com/spf13/cobra"
)

// newBench has the measurements whose figures docs/operations.md prints.
func newBench(a *app) *cobra.Command {
	cmd := group("bench", "Measure a fleet on this machine")
	cmd.AddCommand(newBenchFailover(a), newBenchFleet(a))
	return cmd
}
