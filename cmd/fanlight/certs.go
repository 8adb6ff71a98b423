package main

import (
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"fanlight/internal/certs"
	"fanlight/internal/rpc"
)

func newCerts(a *app) *cobra.Command {
	cmd := group("certs", "Make certificates for those who have no authority")
	cmd.AddCommand(newCertsInit(a), newCertsIssue(a))
	return cmd
}

func newCertsInit(a *app) *cobra.Command {
	var dir, name string
	var validity time.Duration
	cmd := &cobra.Command{
		Use:     "init",
		Short:   "Make a certificate authority in a directory",
		Example: "  fanlight certs init --dir ./pki",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if err := certs.Init(dir, name, validity); err != nil {
				return fmt.Errorf("certificate authority: %w", err)
			}
			_, err := fmt.Fprintf(a.stdout, "authority  %s\nkey        %s (keep it off the servers)\n",
				filepath.Join(dir, certs.CAFile), filepath.Join(dir, certs.CAKeyFile))
			return err
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "", "`directory` of the authority, created if need be (required)")
	cmd.Flags().StringVar(&name, "common-name", "Fanlight CA", "the authority's `name`, for people")
	cmd.Flags().DurationVar(&validity, "validity", certs.DefaultCAValidity, "how `long` it is valid")
	requireFlags(cmd, "dir")
	return cmd
}

func newCertsIssue(a *app) *cobra.Command {
	var dir, out string
	var req certs.Request
	var role string
	cmd := &cobra.Command{
		Use:   "issue",
		Short: "Issue a certificate to one process or person",
		Long: `Issue a certificate to one process or person. It serves as a client's and, but
for operators, as a server's. Its URI, fanlight://ROLE/NAME, says who the owner is; the hosts
say where servers are reached. An existing certificate of that name is replaced,
and the processes that use its files pick the new one up without a restart.`,
		Example: `  fanlight certs issue --dir ./pki --role controlplane --name cp-1 --host cp-1.example,192.0.2.10
  fanlight certs issue --dir ./pki --role node --name node-1 --host 192.0.2.11
  fanlight certs issue --dir ./pki --role operator --name alice
  fanlight certs issue --dir ./pki --role monitor --name prometheus`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			req.Role = rpc.Role(role)
			if !req.Role.Valid() {
				return usagef("--role %q: must be one of %v", role, rpc.Roles())
			}
			ca, err := certs.Open(dir)
			if err != nil {
				return err
			}
			if out == "" {
				out = dir
			}
			if err := os.MkdirAll(out, 0o700); err != nil {
				return err
			}
			base := filepath.Join(out, role+"-"+req.Name)
			if err := ca.Issue(req, base+".pem", base+"-key.pem"); err != nil {
				return usageError{err}
			}
			_, err = fmt.Fprintf(a.stdout, "certificate  %s.pem\nkey          %s-key.pem\nidentity     %s\n", base, base, rpc.IdentityURI(req.Role, req.Name))
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "", "`directory` of the authority (required)")
	f.StringVar(&out, "out", "", "`directory` for the files (default: that of the authority)")
	f.StringVar(&role, "role", "", "`operator|node|gateway|controlplane|monitor` (required)")
	f.StringVar(&req.Name, "name", "", "the owner's `name`; a node's is its name in the fleet (required)")
	f.StringSliceVar(&req.Hosts, "host", nil, "host names and IP `addresses` it is reached at (default: localhost, 127.0.0.1, ::1; none for operators and monitors)")
	f.DurationVar(&req.Validity, "validity", certs.DefaultValidity, "how `long` it is valid")
	requireFlags(cmd, "dir", "role", "name")
	return cmd
}

// requireFlags has a command refuse to run without flags, whether they come
// from the command line, the environment or the file.
func requireFlags(cmd *cobra.Command, names ...string) {
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error {
		for _, n := range names {
			if cmd.Flags().Lookup(n).Value.String() == "" {
				return usagef("--%s is missing", n)
			}
		}
		return nil
	}
}
