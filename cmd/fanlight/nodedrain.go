package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/durationpb"

	controlv1 "fanlight/proto/fanlight/control/v1"
)

// drainSlack is how long "node drain" waits beyond the deadline for a node to be
// empty: as long as it may take to let go of a camera that accepts one session.
const drainSlack = time.Minute

// errDrainOver ends the watch of a drain that has come to its end.
var errDrainOver = errors.New("the drain is over")

func newNodeDrain(a *app) *cobra.Command {
	d := nodeDrain{client: client{app: a}}
	cmd := &cobra.Command{
		Use:   "drain NAME",
		Short: "Give a node no more cameras and move those it has",
		Long: `Give a node no more cameras and move those it has to others, each of which has
its picture before the old node lets go. Wait until the node is empty, and print
what is left; an interrupt ends the waiting, not the drain.

A camera that no other node can take stays until the deadline, and is unassigned
then. The drain survives the node's restart; "node undrain" ends it.`,
		Args: oneName("node"),
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			for _, flag := range []string{"deadline", "drain-timeout"} {
				if cmd.Flags().Changed(flag) && d.deadline <= 0 {
					return usagef("--%s %v: must be positive", flag, d.deadline)
				}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if d.name, err = nodeName(args[0]); err != nil {
				return err
			}
			return d.run(cmd.Context())
		},
	}
	d.client.flags(cmd.Flags())
	cmd.Flags().DurationVar(&d.deadline, "deadline", 0, "how `long` the moves may take (default 10m)")
	cmd.Flags().DurationVar(&d.deadline, "drain-timeout", 0, "the former name of --deadline")
	_ = cmd.Flags().MarkHidden("drain-timeout") // it exists
	cmd.Flags().BoolVar(&d.noWait, "no-wait", false, "do not wait until the node is empty")
	return cmd
}

// nodeDrain is one "node drain".
type nodeDrain struct {
	client   client
	name     string
	deadline time.Duration // 0: the control plane's default
	noWait   bool

	node     *controlv1.Node  // as it was last seen
	stranded *controlv1.Drain // as it was when cameras were stranded last; nil: never
	printed  string
	end      time.Time // of the waiting
}

func (d *nodeDrain) run(ctx context.Context) error {
	err := d.client.call(ctx, func(ctx context.Context, cc *grpc.ClientConn) error {
		req := &controlv1.DrainNodeRequest{Name: d.name}
		if d.deadline > 0 {
			req.Timeout = durationpb.New(d.deadline)
		}
		resp, err := controlv1.NewNodeServiceClient(cc).DrainNode(ctx, req)
		d.node = resp.GetNode()
		return err
	})
	if err != nil {
		return err
	}
	if d.noWait {
		return d.client.nodeResult(d.node, fmt.Sprintf("is being drained, cameras left: %d", d.node.GetDrain().GetCamerasLeft()))
	}
	if err := d.say("node %s is being drained\n", shortName(d.name)); err != nil {
		return err
	}
	d.end = d.node.GetDrain().GetDeadline().AsTime().Add(drainSlack)
	waiting, cancel := context.WithDeadline(ctx, d.end)
	defer cancel()
	switch err := d.client.watch(waiting, d.attempt); {
	case errors.Is(err, errDrainOver):
		return d.result()
	case err != nil:
		return err
	case !time.Now().Before(d.end):
		return fmt.Errorf("node %s still has %d cameras after its deadline", shortName(d.name), d.node.GetDrain().GetCamerasLeft())
	}
	d.client.app.note("the drain goes on; see \"node get %s\"", shortName(d.name))
	return nil
}

// say prints a line for people.
func (d *nodeDrain) say(format string, args ...any) error {
	if d.client.output == "json" {
		return nil
	}
	_, err := fmt.Fprintf(d.client.app.stdout, format, args...)
	return err
}

// attempt follows the drain on one connection.
func (d *nodeDrain) attempt(ctx context.Context, cc *grpc.ClientConn, received func()) error {
	stream, err := controlv1.NewNodeServiceClient(cc).WatchNodes(ctx, &controlv1.WatchNodesRequest{})
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if err != nil {
			return err
		}
		received()
		for _, e := range resp.GetEvents() {
			if e.GetNode().GetName() != d.name {
				continue
			}
			if err := d.progress(e.GetNode()); err != nil {
				return err
			}
		}
	}
}

// progress prints how far the drain is, when that has changed.
func (d *nodeDrain) progress(n *controlv1.Node) error {
	drain := n.GetDrain()
	if drain == nil {
		return fmt.Errorf("the drain of node %s was ended with cameras on it", shortName(d.name))
	}
	d.node = n
	if drain.GetCamerasStranded() > 0 {
		d.stranded = drain
	} else if time.Now().Before(drain.GetDeadline().AsTime()) {
		d.stranded = nil // somebody took them
	}
	if drain.GetCamerasLeft() == 0 {
		return errDrainOver
	}
	line := fmt.Sprintf("cameras left: %d, moving: %d", drain.GetCamerasLeft(), drain.GetCamerasMoving())
	if drain.GetCamerasStranded() > 0 {
		line += fmt.Sprintf(", stranded: %d (%s)", drain.GetCamerasStranded(), printable(drain.GetStrandedMessage()))
	}
	if line == d.printed {
		return nil
	}
	d.printed = line
	return d.say("%s\n", line)
}

// result ends the command when the node is empty.
func (d *nodeDrain) result() error {
	if err := d.client.nodeResult(d.node, "is empty"); err != nil || d.stranded == nil {
		return err
	}
	return fmt.Errorf("cameras that had nowhere to go and are unassigned: %d; %s", d.stranded.GetCamerasStranded(), d.stranded.GetStrandedMessage())
}
