package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

func newNode(a *app) *cobra.Command {
	cmd := group("node", "List, drain and watch media nodes")
	cmd.Aliases = []string{"nodes"}
	cmd.AddCommand(newNodeList(a), newNodeGet(a), newNodeDrain(a), newNodeUndrain(a), newNodeWatch(a))
	return cmd
}

// nodeName returns "nodes/node-1" for what the user typed, "node-1" or
// "nodes/node-1".
func nodeName(arg string) (string, error) {
	id, err := fleet.ParseNodeID(strings.TrimPrefix(arg, "nodes/"))
	if err != nil {
		return "", usageError{err}
	}
	return id.Name(), nil
}

func newNodeList(a *app) *cobra.Command {
	c := client{app: a}
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List nodes",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				nodes, err := listNodes(ctx, controlv1.NewNodeServiceClient(cc))
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printJSONList(a.stdout, "nodes", nodes)
				}
				if len(nodes) == 0 {
					_, err := fmt.Fprintln(a.stderr, "no nodes")
					return err
				}
				rows := make([][]string, 0, len(nodes))
				for _, n := range nodes {
					rows = append(rows, nodeRow(n))
				}
				return printTable(a.stdout, []string{"NAME", "STATE", "CAMERAS", "VIEWERS", "CPU", "IN", "OUT", "ADDRESS", "VERSION", "LABELS"}, rows)
			})
		},
	}
	c.flags(cmd.Flags())
	return cmd
}

// listNodes returns all pages.
func listNodes(ctx context.Context, svc controlv1.NodeServiceClient) ([]*controlv1.Node, error) {
	var all []*controlv1.Node
	req := &controlv1.ListNodesRequest{PageSize: listPage}
	for {
		resp, err := svc.ListNodes(ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, resp.GetNodes()...)
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			return all, nil
		}
	}
}

// nodeState returns a node's state in a word; "leaving" of one whose process is
// about to stop, "overloaded" of one that is ready and refuses sessions because
// its processors are too busy.
func nodeState(n *controlv1.Node) string {
	if n.GetLeaving() && n.GetDrain() == nil {
		return "leaving"
	}
	state := enumText(n.GetState().String(), "STATE_")
	if n.GetLoad().GetOverloaded() && n.GetState() == controlv1.Node_STATE_READY {
		return "overloaded"
	}
	return state
}

// cpuText returns how busy processors are; empty for 0, which is unknown.
func cpuText(share float64) string {
	if share <= 0 {
		return ""
	}
	return strconv.FormatFloat(100*share, 'f', 0, 64) + "%"
}

func nodeRow(n *controlv1.Node) []string {
	cameras := strconv.Itoa(int(n.GetAssignedCameras()))
	if limit := n.GetCapacity().GetCameras(); limit > 0 {
		cameras += "/" + strconv.Itoa(int(limit))
	}
	return []string{
		shortName(n.GetName()), nodeState(n), cameras, strconv.Itoa(int(n.GetLoad().GetViewers())), cpuText(n.GetLoad().GetCpuUtilization()),
		bitrateText(n.GetLoad().GetIngressBps()), bitrateText(n.GetLoad().GetEgressBps()),
		n.GetSessionAddress(), n.GetVersion(), labelText(n.GetLabels()),
	}
}

func nodeFields(n *controlv1.Node) [][2]string {
	fields := [][2]string{
		{"name", shortName(n.GetName())},
		{"state", nodeState(n)},
		{"cameras", strconv.Itoa(int(n.GetAssignedCameras()))},
		{"viewers", strconv.Itoa(int(n.GetLoad().GetViewers()))},
		{"cpu", cpuText(n.GetLoad().GetCpuUtilization())},
		{"from cameras", bitrateText(n.GetLoad().GetIngressBps())},
		{"to viewers", bitrateText(n.GetLoad().GetEgressBps())},
		{"camera limit", countText(int64(n.GetCapacity().GetCameras()))},
		{"viewer limit", countText(int64(n.GetCapacity().GetViewers()))},
		{"cpu limit", cpuText(n.GetCapacity().GetCpuUtilization())},
		{"ingress limit", bitrateText(n.GetCapacity().GetIngressBps())},
		{"egress limit", bitrateText(n.GetCapacity().GetEgressBps())},
		{"session address", printable(n.GetSessionAddress())},
		{"media addresses", printable(strings.Join(n.GetMediaAddresses(), ", "))},
		{"labels", labelText(n.GetLabels())},
		{"version", printable(n.GetVersion())},
		{"connected", timeText(n.GetConnectTime())},
	}
	if d := n.GetDrain(); d != nil {
		fields = append(fields,
			[2]string{"drain began", timeText(d.GetStartTime())},
			[2]string{"drain ends", timeText(d.GetDeadline())},
			[2]string{"cameras left", strconv.Itoa(int(d.GetCamerasLeft()))},
			[2]string{"cameras moving", strconv.Itoa(int(d.GetCamerasMoving()))},
			[2]string{"cameras stranded", strconv.Itoa(int(d.GetCamerasStranded()))})
		if d.GetStrandedMessage() != "" {
			fields = append(fields, [2]string{"stranded", printable(d.GetStrandedMessage())})
		}
	}
	return fields
}

// nodeResult prints a node after something was done to it; done "": shows it.
func (c *client) nodeResult(n *controlv1.Node, done string) error {
	switch {
	case c.output == "json":
		return printJSON(c.app.stdout, n)
	case done == "":
		return printFields(c.app.stdout, nodeFields(n))
	}
	_, err := fmt.Fprintf(c.app.stdout, "node %s %s\n", shortName(n.GetName()), done)
	return err
}

// nodeCommand makes a command that does something to one node.
func nodeCommand(a *app, use, short string, do func(ctx context.Context, svc controlv1.NodeServiceClient, name string) (*controlv1.Node, string, error)) *cobra.Command {
	c := client{app: a}
	cmd := &cobra.Command{
		Use:   use,
		Short: short,
		Args:  oneName("node"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := nodeName(args[0])
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				n, done, err := do(ctx, controlv1.NewNodeServiceClient(cc), name)
				if err != nil {
					return err
				}
				return c.nodeResult(n, done)
			})
		},
	}
	c.flags(cmd.Flags())
	return cmd
}

func newNodeGet(a *app) *cobra.Command {
	return nodeCommand(a, "get NAME", "Show a node",
		func(ctx context.Context, svc controlv1.NodeServiceClient, name string) (*controlv1.Node, string, error) {
			resp, err := svc.GetNode(ctx, &controlv1.GetNodeRequest{Name: name})
			return resp.GetNode(), "", err
		})
}

func newNodeUndrain(a *app) *cobra.Command {
	return nodeCommand(a, "undrain NAME", "Let a drained node take cameras again",
		func(ctx context.Context, svc controlv1.NodeServiceClient, name string) (*controlv1.Node, string, error) {
			resp, err := svc.UndrainNode(ctx, &controlv1.UndrainNodeRequest{Name: name})
			return resp.GetNode(), "takes cameras again", err
		})
}

func newNodeWatch(a *app) *cobra.Command {
	c := client{app: a}
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Print nodes and every change of them until interrupted",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			w := nodeWatch{client: &c}
			return c.watch(cmd.Context(), w.attempt)
		},
	}
	c.flags(cmd.Flags())
	return cmd
}

// nodeWatch is a watch over all its connections.
type nodeWatch struct {
	client *client
	resume string
}

func (w *nodeWatch) attempt(ctx context.Context, cc *grpc.ClientConn, received func()) error {
	stream, err := controlv1.NewNodeServiceClient(cc).WatchNodes(ctx, &controlv1.WatchNodesRequest{ResumeToken: w.resume})
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, fleet.ResumeTokenTooOld) && w.resume != "" {
			w.resume = ""
			return w.attempt(ctx, cc, received)
		}
		if err != nil {
			return err
		}
		received()
		if err := w.print(resp); err != nil {
			return err
		}
		w.resume = resp.GetResumeToken()
	}
}

func (w *nodeWatch) print(resp *controlv1.WatchNodesResponse) error {
	out := w.client.app.stdout
	for _, e := range resp.GetEvents() {
		var err error
		switch {
		case w.client.output == "json":
			err = printJSONLine(out, e)
		case e.GetType() == controlv1.NodeEvent_TYPE_DELETED:
			_, err = fmt.Fprintln(out, time.Now().Format("15:04:05"), printable(shortName(e.GetNode().GetName())), "gone")
		default:
			n := e.GetNode()
			_, err = fmt.Fprintf(out, "%s %s %s, %d cameras, %d viewers\n", time.Now().Format("15:04:05"),
				printable(shortName(n.GetName())), nodeState(n), n.GetAssignedCameras(), n.GetLoad().GetViewers())
		}
		if err != nil {
			return err
		}
	}
	if resp.GetSnapshotComplete() && w.client.output == "json" {
		_, err := fmt.Fprintln(out, `{"snapshot_complete":true}`)
		return err
	}
	return nil
}
