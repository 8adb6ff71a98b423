package store

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	clientv3 "go.etcd.io/etcd/client/v3"

	"fanlight/internal/fleet"
)

const (
	keyLength    = 32 // bytes: AES-256
	sealFormat   = 1  // the first byte of what is sealed
	keyFileName  = "secret.key"
	keyCheckName = "meta/key-check"
	// keyCheckData is the associated data of the key check. No camera's id has a
	// slash, so it can't be taken for a camera's password.
	keyCheckData = "meta/key-check"
	keyCheckText = "fanlight"
)

// sealer seals with AES-256-GCM (NIST SP 800-38D). Nonces are random, 96 bits:
// good for 2^32 sealings under one key.
type sealer struct{ aead cipher.AEAD }

func newSealer(key []byte) (*sealer, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("cipher: %w", err)
	}
	aead, err := cipher.NewGCM(block)
	if err != nil {
		return nil, fmt.Errorf("cipher: %w", err)
	}
	return &sealer{aead}, nil
}

func (s *sealer) seal(text, data string) []byte {
	out := make([]byte, 1+s.aead.NonceSize(), 1+s.aead.NonceSize()+len(text)+s.aead.Overhead())
	out[0] = sealFormat
	nonce := out[1:]
	_, _ = rand.Read(nonce)                                    // never fails
	return s.aead.Seal(out, nonce, []byte(text), []byte(data)) //nolint:gosec // the nonce is random
}

func (s *sealer) unseal(sealed []byte, data string) (string, error) {
	n := 1 + s.aead.NonceSize()
	if len(sealed) < n || sealed[0] != sealFormat {
		return "", errors.New("sealed in a format that this version does not know")
	}
	text, err := s.aead.Open(nil, sealed[1:n], sealed[n:], []byte(data))
	if err != nil {
		return "", errors.New("sealed under another key, or damaged")
	}
	return string(text), nil
}

// Seal seals a camera's password; the result can be unsealed for that camera
// alone. An empty password gives nil.
func (s *Store) Seal(id fleet.CameraID, password string) []byte {
	if password == "" {
		return nil
	}
	return s.sealer.seal(password, string(id))
}

// Unseal returns a camera's password; of nil, the empty one.
func (s *Store) Unseal(id fleet.CameraID, sealed []byte) (string, error) {
	if len(sealed) == 0 {
		return "", nil
	}
	p, err := s.sealer.unseal(sealed, string(id))
	if err != nil {
		return "", fmt.Errorf("unseal the password of camera %q: %w", id, err)
	}
	return p, nil
}

// openKey reads the key file, or makes it, and compares it with the one that
// was used before.
func (s *Store) openKey(ctx context.Context, cfg Config) error {
	ctx, cancel := s.call(ctx)
	defer cancel()
	checkKey := s.prefix + keyCheckName
	got, err := s.client.Get(ctx, checkKey)
	if err != nil {
		return fmt.Errorf("read from etcd: %w", s.unavailable(ctx, err))
	}
	s.cluster = got.Header.GetClusterId()
	path := cfg.KeyFile
	if path == "" {
		path = filepath.Join(cfg.DataDir, keyFileName)
	}
	mayCreate := cfg.DataDir != "" && len(got.Kvs) == 0
	key, err := loadKey(path, mayCreate)
	if err != nil {
		return err
	}
	if s.sealer, err = newSealer(key); err != nil {
		return err
	}
	check := s.sealer.seal(keyCheckText, keyCheckData)
	resp, err := s.client.Txn(ctx).
		If(clientv3.Compare(clientv3.CreateRevision(checkKey), "=", 0)).
		Then(clientv3.OpPut(checkKey, string(check))).
		Else(clientv3.OpGet(checkKey)).
		Commit()
	if err != nil {
		return fmt.Errorf("write to etcd: %w", s.unavailable(ctx, err))
	}
	if resp.Succeeded {
		return nil
	}
	for _, kv := range resp.Responses[0].GetResponseRange().GetKvs() {
		if text, err := s.sealer.unseal(kv.GetValue(), keyCheckData); err != nil || text != keyCheckText {
			return fmt.Errorf("key file %s is not the one under which the cameras' passwords are sealed: restore that one", path)
		}
	}
	return nil
}

// loadKey reads a key file, and makes it if it is missing and that is allowed.
func loadKey(path string, mayCreate bool) ([]byte, error) {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !mayCreate {
			return nil, fmt.Errorf("key file %s is missing: the cameras' passwords are sealed under it; restore it, "+
				"or for a new installation make one with: (umask 077; head -c %d /dev/urandom > %s)", path, keyLength, path)
		}
		return createKey(path)
	}
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if perm := info.Mode().Perm(); !mayHaveKey(perm, ownerOf(info), os.Geteuid()) {
		return nil, fmt.Errorf("key file %s has mode %04o, so that others than its owner can use it: chmod 600 it", path, perm)
	}
	key, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("key file: %w", err)
	}
	if len(key) != keyLength {
		return nil, fmt.Errorf("key file %s has %d bytes: it must have exactly %d random ones", path, len(key), keyLength)
	}
	return key, nil
}

// mayHaveKey tells whether a file's mode keeps a key from others. A group may
// read it only if the file is root's and this process is not: a group is how
// Kubernetes and systemd hand a secret to a process that does not own it.
func mayHaveKey(perm fs.FileMode, owner, self int) bool {
	if owner == 0 && self != 0 {
		return perm&0o037 == 0
	}
	return perm&0o077 == 0
}

// createKey makes a key file that is whole or not there at all.
func createKey(path string) ([]byte, error) {
	key := make([]byte, keyLength)
	_, _ = rand.Read(key) // never fails
	f, err := os.CreateTemp(filepath.Dir(path), ".secret-*")
	if err != nil {
		return nil, fmt.Errorf("create key file: %w", err)
	}
	defer os.Remove(f.Name()) // gone after a success
	_, err = f.Write(key)
	err = errors.Join(err, f.Chmod(0o600), f.Sync(), f.Close())
	if err == nil {
		err = os.Link(f.Name(), path) // unlike a rename, it replaces nothing
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return nil, fmt.Errorf("create key file: %w", err)
	}
	return key, nil
}

// syncDir makes a directory's entries durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("sync directory: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}
