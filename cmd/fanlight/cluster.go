package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	controlv1 "fanlight/proto/fanlight/control/v1"
)

func newCluster(a *app) *cobra.Command {
	cmd := group("cluster", "List, add and remove control planes, back up and restore their state")
	cmd.AddCommand(newClusterMembers(a), newClusterAdd(a), newClusterRemove(a), newClusterBackup(a), newClusterRestore(a))
	return cmd
}

func newClusterMembers(a *app) *cobra.Command {
	c := client{app: a}
	cmd := &cobra.Command{
		Use:   "members",
		Short: "List the control planes that keep the state, or the members of the etcd elsewhere",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				resp, err := controlv1.NewClusterServiceClient(cc).ListMembers(ctx, &controlv1.ListMembersRequest{})
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printJSON(a.stdout, resp)
				}
				return a.printMembers(resp.GetMembers(), resp.GetQuorum())
			})
		},
	}
	c.flags(cmd.Flags())
	return cmd
}

// printMembers prints a table, what is to be done about each, and how many may
// fail.
func (a *app) printMembers(members []*controlv1.Member, quorum int32) error {
	rows := make([][]string, 0, len(members))
	votes, alive := 0, 0
	for _, m := range members {
		rows = append(rows, memberRow(m))
		if m.GetLearner() {
			continue
		}
		votes++
		if s := m.GetState(); s == controlv1.Member_STATE_OK || s == controlv1.Member_STATE_FULL {
			alive++
		}
	}
	if err := printTable(a.stdout, []string{"NAME", "ID", "STATE", "ROLE", "PEER", "DATABASE", "DISK FREE", "VERSION"}, rows); err != nil {
		return err
	}
	for _, m := range members {
		if m.GetMessage() != "" {
			a.note("%s: %s", shortName(m.GetName()), printable(m.GetMessage()))
		}
	}
	switch spare := alive - int(quorum); {
	case spare < 0:
		a.note("No quorum: %d of %d members answer, %d must.", alive, votes, quorum)
	case votes > 1:
		a.note("%d of %d members answer, %d must: %d more may fail.", alive, votes, quorum, spare)
	}
	return nil
}

func memberRow(m *controlv1.Member) []string {
	var roles []string
	if m.GetLearner() {
		roles = append(roles, "learner")
	}
	if m.GetLeader() {
		roles = append(roles, "leader")
	}
	if m.GetPlaces() {
		roles = append(roles, "places")
	}
	state := strings.ReplaceAll(enumText(m.GetState().String(), "STATE_"), "_", " ")
	return []string{
		shortName(m.GetName()), m.GetId(), state, strings.Join(roles, ","), strings.Join(m.GetPeerUrls(), ","),
		sizeText(m.GetDbSize()), sizeText(m.GetDiskFree()), m.GetVersion(),
	}
}

// sizeText returns bytes for people.
func sizeText(n int64) string {
	switch {
	case n <= 0:
		return ""
	case n < 1<<20:
		return strconv.FormatInt((n+1023)>>10, 10) + " KiB"
	case n < 1<<30:
		return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) + " MiB"
	default:
		return strconv.FormatFloat(float64(n)/(1<<30), 'f', 1, 64) + " GiB"
	}
}

func newClusterAdd(a *app) *cobra.Command {
	c := client{app: a}
	var peerURL string
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a control plane, and print how to start it",
		Long: `Add a control plane to those that keep the state among themselves, and print the
flags to start it with. It is a learner until it has caught up, which it does by
itself; "cluster members" shows it.

A control plane that is alone must first be started again with --name a and
--initial-cluster a=https://HOST:2380 (and --peer-cert, --peer-key, --peer-ca),
so that others can reach it. It keeps its data.

The new one needs the same key file as the others: copy secret.key, and give it
with --key-file.`,
		Example: "  fanlight cluster add b --peer-url https://192.0.2.11:2380",
		Args:    oneName("control plane"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if peerURL == "" {
				return usagef("--peer-url is missing: where the others will reach it, https://host:port")
			}
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				resp, err := controlv1.NewClusterServiceClient(cc).AddMember(ctx, &controlv1.AddMemberRequest{Name: memberName(args[0]), PeerUrl: peerURL})
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printJSON(a.stdout, resp)
				}
				a.note("Start it with these flags, an empty --data, a copy of the others' key file (--key-file),\n" +
					"its own certificate for the others (--peer-cert, --peer-key, --peer-ca) and its own --grpc:")
				_, err = fmt.Fprintf(a.stdout, "%s\n", strings.Join(resp.GetFlags(), " "))
				return err
			})
		},
	}
	c.flags(cmd.Flags())
	cmd.Flags().StringVar(&peerURL, "peer-url", "", "`URL` where the others will reach it: https://host:port")
	return cmd
}

// memberName returns "members/a" for what the user typed, "a" or "members/a".
func memberName(arg string) string { return "members/" + strings.TrimPrefix(arg, "members/") }

func newClusterRemove(a *app) *cobra.Command {
	c := client{app: a}
	var force bool
	cmd := &cobra.Command{
		Use:   "remove NAME",
		Short: "Take a control plane out of the cluster for good",
		Long: `Take a control plane out of the cluster, by its name or id. Its process ends, and
its data directory is of no more use. It is refused where those that are left
would have no quorum.`,
		Args: oneName("control plane"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				resp, err := controlv1.NewClusterServiceClient(cc).RemoveMember(ctx, &controlv1.RemoveMemberRequest{Name: memberName(args[0]), Force: force})
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printJSON(a.stdout, resp)
				}
				if _, err := fmt.Fprintf(a.stdout, "control plane %s removed\n", strings.TrimPrefix(args[0], "members/")); err != nil {
					return err
				}
				return a.printMembers(resp.GetMembers(), resp.GetQuorum())
			})
		},
	}
	c.flags(cmd.Flags())
	cmd.Flags().BoolVar(&force, "force", false, "even if those that are left seem to have no quorum")
	return cmd
}
