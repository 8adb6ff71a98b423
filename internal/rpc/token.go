package rpc

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"time"
)

// tokenFileCheck is how long a change of the file may go unnoticed.
const tokenFileCheck = time.Second

// TokenFile is the file of the operators' bearer tokens. It holds no token,
// only what is needed to recognize one; each line is
//
//	NAME sha256:HEX
//
// with the SHA-256 of the token as 64 hex digits. Empty lines and lines that
// begin with "#" are ignored. A file that changed is read anew within a
// second; one that then cannot be read or is malformed is reported in the log
// and the tokens stay as they were.
//
// Tokens are 256 random bits (see [NewToken]), which is why an unsalted hash
// will do; passwords would not be safe here.
type TokenFile struct {
	// Static after OpenTokenFile.
	path string
	log  *slog.Logger

	mu      sync.Mutex // guards the rest
	tokens  []tokenHash
	stamp   fileStamp
	checked time.Time
}

type tokenHash struct {
	name string
	sum  [sha256.Size]byte
}

// fileStamp tells whether a file has changed.
type fileStamp struct {
	mod  time.Time
	size int64
}

// OpenTokenFile reads the file. log may be nil.
func OpenTokenFile(path string, log *slog.Logger) (*TokenFile, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	f := &TokenFile{path: path, log: log}
	if err := f.load(); err != nil {
		return nil, fmt.Errorf("operator tokens: %w", err)
	}
	return f, nil
}

// Lookup returns the name of the operator whose token it is. It takes the
// same time whichever token it is.
func (f *TokenFile) Lookup(token string) (name string, ok bool) {
	sum := sha256.Sum256([]byte(token))
	for _, t := range f.current() {
		if subtle.ConstantTimeCompare(sum[:], t.sum[:]) == 1 {
			name, ok = t.name, true
		}
	}
	return name, ok
}

// current returns the tokens after a look at the file, if one is due.
func (f *TokenFile) current() []tokenHash {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.checked) < tokenFileCheck {
		return f.tokens
	}
	f.checked = time.Now()
	st, err := stampOf(f.path)
	if err == nil && st == f.stamp {
		return f.tokens
	}
	if err == nil {
		err = f.load()
	}
	if err != nil {
		f.log.Error("operator tokens not reloaded", "error", err)
		f.stamp = st
	}
	return f.tokens
}

// load replaces the tokens by those in the file. f.mu is held, or f is new.
func (f *TokenFile) load() error {
	st, err := stampOf(f.path)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(f.path)
	if err != nil {
		return err
	}
	tokens, err := parseTokens(data)
	if err != nil {
		return fmt.Errorf("%s: %w", f.path, err)
	}
	f.tokens, f.stamp, f.checked = tokens, st, time.Now()
	return nil
}

func stampOf(path string) (fileStamp, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileStamp{}, err
	}
	return fileStamp{info.ModTime(), info.Size()}, nil
}

func parseTokens(data []byte) ([]tokenHash, error) {
	var tokens []tokenHash
	names := map[string]bool{}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		t, err := parseToken(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		if names[t.name] {
			return nil, fmt.Errorf("line %d: the name %q is there twice", n, t.name)
		}
		names[t.name] = true
		tokens = append(tokens, t)
	}
	return tokens, lines.Err()
}

var errTokenLine = errors.New(`must be NAME sha256:HEX, as "fanlight token operator" prints it`)

// parseToken never quotes the line: it might be a token in clear.
func parseToken(line string) (tokenHash, error) {
	fields := strings.Fields(line)
	if len(fields) != 2 {
		return tokenHash{}, errTokenLine
	}
	digits, ok := strings.CutPrefix(fields[1], "sha256:")
	sum, err := hex.DecodeString(digits)
	if !ok || err != nil || len(sum) != sha256.Size {
		return tokenHash{}, errTokenLine
	}
	t := tokenHash{name: fields[0]}
	copy(t.sum[:], sum)
	return t, nil
}

// NewToken returns a fresh bearer token: "fl_" and 256 random bits.
func NewToken() string {
	b := make([]byte, 32)
	rand.Read(b) // never fails
	return "fl_" + base64.RawURLEncoding.EncodeToString(b)
}

// TokenLine returns the line of a [TokenFile] that recognizes token. The name
// is for logs and audit, one word.
func TokenLine(name, token string) (string, error) {
	if name == "" || strings.ContainsAny(name, " \t\r\n#") {
		return "", fmt.Errorf("token name %q must be one word", name)
	}
	sum := sha256.Sum256([]byte(token))
	return name + " sha256:" + hex.EncodeToString(sum[:]), nil
}
