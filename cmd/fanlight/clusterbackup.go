package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"fanlight/controlplane/store"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

func oneFile(_ *cobra.Command, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("one file is expected, not %d arguments", len(args))
	}
	return nil
}

func newClusterBackup(a *app) *cobra.Command {
	c := client{app: a}
	cmd := &cobra.Command{
		Use:   "backup FILE",
		Short: "Back up all that is stored",
		Long: `Write all that is stored, as of one moment, into a file that does not exist yet.
It is taken from one control plane while all go on, and needs no quorum.

The cameras' passwords are in it sealed: keep the key file (secret.key, or
--key-file of the control planes) as well, and apart from it. Without the key
file the passwords of a restored fleet are lost.`,
		Args: oneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGTERM, syscall.SIGINT)
			defer stop()
			b, err := c.backup(ctx, args[0])
			if err != nil {
				return err
			}
			if c.output == "json" {
				data, err := json.Marshal(b)
				if err != nil {
					return err
				}
				return printIndented(a.stdout, data)
			}
			_, err = fmt.Fprintf(a.stdout, "%s  %s, sha256 %s\n", b.File, sizeText(b.Bytes), b.SHA256)
			a.note("The cameras' passwords are sealed in it: keep the control planes' key file (secret.key) too, apart from it.")
			return err
		},
	}
	c.flags(cmd.Flags())
	return cmd
}

// backedUp is what a backup is.
type backedUp struct {
	File   string `json:"file"`
	Bytes  int64  `json:"bytes"`
	SHA256 string `json:"sha256"` // of the whole file
}

// backup writes a backup to a file that is whole or not there at all.
func (c *client) backup(ctx context.Context, path string) (_ backedUp, err error) {
	if _, err := os.Lstat(path); err == nil {
		return backedUp{}, fmt.Errorf("%s is there already: choose another name", path)
	}
	cc, err := c.dial()
	if err != nil {
		return backedUp{}, err
	}
	defer quietClose(cc)
	f, err := os.CreateTemp(filepath.Dir(path), ".backup-*") // mode 0600
	if err != nil {
		return backedUp{}, fmt.Errorf("backup: %w", err)
	}
	defer os.Remove(f.Name()) // gone after a success
	defer quietClose(f)
	stream, err := controlv1.NewClusterServiceClient(cc).Backup(ctx, &controlv1.BackupRequest{})
	if err != nil {
		return backedUp{}, c.explain(err)
	}
	n, sum, err := receive(stream, f)
	if err != nil {
		return backedUp{}, c.explain(err)
	}
	if err := f.Sync(); err != nil {
		return backedUp{}, fmt.Errorf("backup: %w", err)
	}
	if _, err := store.CheckBackup(f.Name()); err != nil {
		return backedUp{}, fmt.Errorf("backup: %w", err)
	}
	if err := os.Link(f.Name(), path); err != nil { // unlike a rename, it replaces nothing
		return backedUp{}, fmt.Errorf("backup: %w", err)
	}
	return backedUp{path, n, hex.EncodeToString(sum)}, nil
}

// receive writes the parts of a backup, and compares its checksum.
func receive(stream interface {
	Recv() (*controlv1.BackupResponse, error)
}, w io.Writer,
) (n int64, sum []byte, err error) {
	h := sha256.New()
	var want []byte
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 0, nil, err
		}
		if _, err := io.MultiWriter(w, h).Write(part.GetData()); err != nil {
			return 0, nil, fmt.Errorf("backup: %w", err)
		}
		n += int64(len(part.GetData()))
		if len(part.GetSha256()) > 0 {
			want = part.GetSha256()
		}
	}
	if sum = h.Sum(nil); !bytes.Equal(sum, want) {
		return 0, nil, errors.New("the backup was damaged or cut short on its way: try again")
	}
	return n, sum, nil
}

func newClusterRestore(a *app) *cobra.Command {
	var e etcdFlags
	cmd := &cobra.Command{
		Use:   "restore FILE",
		Short: "Make a data directory from a backup",
		Long: `Make a control plane's data directory from a backup, on its machine, with no
control plane running. Without --initial-cluster it is the data of a control
plane that is alone, to which others are then added ("cluster add"): the simplest
way. With --initial-cluster and --name it is that of one of several; each is then
restored on its own machine from the same file with the same --initial-cluster.

The restored control planes are a new cluster: those of the old one must not run
any more. What happened after the backup is lost. Nodes and gateways need nothing:
they come back by themselves.

The cameras' passwords are sealed under the key file of the control planes that
were backed up: a control plane does not start on the data without it. --key-file
checks that it is the right one, and copies it into the data directory.`,
		Example: `  fanlight cluster restore backup.db --data /var/lib/fanlight --key-file secret.key
  fanlight controlplane --data /var/lib/fanlight`,
		Args: oneFile,
		RunE: func(_ *cobra.Command, args []string) error {
			log, err := a.logger()
			if err != nil {
				return err
			}
			return a.restore(log, &e, args[0])
		},
	}
	e.dataFlags(cmd.Flags())
	e.memberFlags(cmd.Flags())
	cmd.Flags().StringVar(&e.prefix, "etcd-prefix", "", "`prefix` of all keys, if the control planes had another than \"/fanlight/\"")
	a.logFlags(cmd.Flags())
	return cmd
}

func (a *app) restore(log *slog.Logger, e *etcdFlags, file string) error {
	cfg, err := e.config(log, true)
	if err != nil {
		return err
	}
	if _, err := store.CheckBackup(file); err != nil {
		return err
	}
	if e.keyFile != "" {
		if err := store.CheckBackupKey(file, e.keyFile, e.prefix); err != nil {
			return err
		}
	}
	if err := store.Restore(store.Restoring{Log: log, Backup: file, DataDir: e.data, Member: cfg.Member}); err != nil {
		return err
	}
	target := filepath.Join(e.data, "secret.key")
	if e.keyFile == "" {
		a.note("The cameras' passwords are sealed: put the key file of the control planes that were backed up at %s (mode 0600),\n"+
			"or start with --key-file. Without it the control plane does not start.", target)
	} else if err := copyKey(e.keyFile, target); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.stdout, "%s is restored; start it with: fanlight controlplane %s\n", e.data, e.startFlags())
	return err
}

// startFlags returns the flags to start a restored control plane with.
func (e *etcdFlags) startFlags() string {
	s := "--data " + e.data
	if e.member != "" {
		var members []string
		for _, name := range slices.Sorted(maps.Keys(e.cluster)) {
			members = append(members, name+"="+e.cluster[name])
		}
		s += " --name " + e.member + " --initial-cluster " + strings.Join(members, ",")
	}
	return s
}

// copyKey copies a key file to where there is none.
func copyKey(from, to string) error {
	if from == "" {
		return nil
	}
	key, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	f, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		if old, rerr := os.ReadFile(to); rerr == nil && bytes.Equal(old, key) {
			return nil
		}
		return fmt.Errorf("the data is restored, but %s is there already and is another key: replace it by %s", to, from)
	}
	if err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	_, err = f.Write(key)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("key file: %w", err)
	}
	return nil
}
