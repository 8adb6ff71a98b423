package store

import (
	"errors"
	"fmt"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"
)

// CheckBackupKey tells whether a key file is the one under which the passwords
// in a backup are sealed. prefix is that of the keys; empty: "/fanlight/".
func CheckBackupKey(backup, keyFile, prefix string) error {
	if prefix == "" {
		prefix = "/fanlight/"
	}
	sealed, err := keyCheckOf(backup, prefix+keyCheckName)
	if err != nil {
		return err
	}
	key, err := loadKey(keyFile, false)
	if err != nil {
		return err
	}
	s, err := newSealer(key)
	if err != nil {
		return err
	}
	if text, err := s.unseal(sealed, keyCheckData); err != nil || text != keyCheckText {
		return fmt.Errorf("key file %s is not the one under which the cameras' passwords in %s are sealed: give that one", keyFile, backup)
	}
	return nil
}

// errFound ends a search.
var errFound = errors.New("found")

// keyCheckOf returns the key check in a backup.
func keyCheckOf(backup, checkKey string) ([]byte, error) {
	db, err := bolt.Open(backup, 0o400, &bolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, fmt.Errorf("%s is not a backup: %w", backup, err)
	}
	defer db.Close()
	var sealed []byte
	err = db.View(func(tx *bolt.Tx) error {
		keys := tx.Bucket([]byte("key")) // etcd's, from revisions to values
		if keys == nil {
			return nil
		}
		return keys.ForEach(func(_, v []byte) error {
			var kv mvccpb.KeyValue
			if err := proto.Unmarshal(v, &kv); err == nil && string(kv.GetKey()) == checkKey && len(kv.GetValue()) > 0 {
				sealed = kv.GetValue() // a copy, written once
				return errFound
			}
			return nil
		})
	})
	switch {
	case err != nil && !errors.Is(err, errFound):
		return nil, fmt.Errorf("read %s: %w", backup, err)
	case sealed == nil:
		return nil, fmt.Errorf("%s has nothing of Fanlight under %q: is it another etcd's, or was --etcd-prefix another?", backup, checkKey)
	}
	return sealed, nil
}
