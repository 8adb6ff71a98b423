package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// identityFile names the member that a data directory is of. Etcd itself would
// rename the member of whatever directory it is given.
const identityFile = "member"

// checkIdentity refuses a data directory of another member. One that is alone
// has no name that matters: it may become any.
func checkIdentity(dir string, m *Member) error {
	data, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	name := strings.TrimSpace(string(data))
	switch {
	case m == nil:
		return fmt.Errorf("data directory %s is of the member %q of a cluster: give --name %s and --initial-cluster, "+
			"or another --data", dir, name, name)
	case name != m.Name:
		return fmt.Errorf("data directory %s is of the member %q, not of %q: give --name %s, or the --data of %s",
			dir, name, m.Name, name, m.Name)
	}
	return nil
}

// keepIdentity writes down whose data directory it is, once.
func keepIdentity(dir string, m *Member) error {
	if m == nil {
		return nil
	}
	path := filepath.Join(dir, identityFile)
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	if err := os.WriteFile(path, []byte(m.Name+"\n"), 0o600); err != nil {
		return fmt.Errorf("data directory: %w", err)
	}
	return syncDir(dir)
}
