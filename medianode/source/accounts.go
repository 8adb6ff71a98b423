package source

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/url"
	"strings"
	"sync"
	"time"

	"fanlight/internal/fleet"
	"fanlight/medianode/onvif"
)

// Accounts is what the sources of a node know of the accounts that they use over
// ONVIF, so that a wrong password is tried once, not once for each camera: a
// recorder has one account for all its channels, which are cameras of their own,
// and locks it after a few failures.
//
// An account is a user name and password at the host and port of an ONVIF device
// service. Until one has been accepted it is tried by one source at a time; the
// others wait for what comes of it. One that was refused is not tried again, but
// after [Source.Retry]. The zero value knows nothing. Its methods may be called
// from any goroutine.
type Accounts struct {
	mu       sync.Mutex // guards the rest
	accounts map[accountKey]*account
}

const (
	// maxAccounts is how many are remembered, apart from those that are being tried.
	maxAccounts = 4096
	// trustFor is how long an account that was accepted may be used by several
	// sources at once: the password may be changed at the device.
	trustFor = time.Minute
	// forgiveAfter is how long a refusal counts whatever is retried: who retries all
	// cameras of a recorder has the account tried once.
	forgiveAfter = time.Minute
)

// accountKey is a hash: a password is kept no longer than it is used.
type accountKey [sha256.Size]byte

// newAccountKey returns the key of an account at a device service.
func newAccountKey(deviceURL string, creds fleet.Credentials) accountKey {
	host := deviceURL
	if u, err := url.Parse(deviceURL); err == nil {
		host = strings.ToLower(u.Hostname()) + " " + u.Port()
		if u.Port() == "" {
			host += map[string]string{"http": "80", "https": "443"}[u.Scheme]
		}
	}
	var text []byte
	for _, part := range []string{host, creds.Username, creds.Password} {
		text = append(binary.BigEndian.AppendUint64(text, uint64(len(part))), part...)
	}
	return sha256.Sum256(text)
}

// account is what is known of one; one of which nothing is known is not kept.
type account struct {
	refused bool
	at      time.Time // when it was last accepted, or refused
	trial   *trial    // nil: nobody tries it
}

// trial is the use of an account by the only source that may.
type trial struct {
	done   chan struct{} // closed when it is over
	inVain bool          // static when done is closed: the device was not reached, or has no ONVIF
}

// errUntried is the outcome of a use in which nothing was asked.
var errUntried = errors.New("the account was not used")

// refused tells whether an account is not to be used.
func (a *Accounts) refused(key accountKey) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	acc := a.accounts[key]
	return acc != nil && acc.refused
}

// begin waits until the account may be used, and tells whether it may: it may not
// when it has been refused, when the source that had the turn has tried in vain,
// and when ctx has ended. end must be called with what came of it: nil is that the
// camera has accepted the account, errUntried that it was not asked.
func (a *Accounts) begin(ctx context.Context, key accountKey) (end func(error), ok bool) {
	for {
		mine, other := a.turn(key, time.Now())
		switch {
		case mine == nil && other == nil:
			return nil, false
		case mine != nil:
			return func(err error) { a.end(key, mine, time.Now(), err) }, true
		}
		select {
		case <-other.done:
			if other.inVain {
				return nil, false
			}
		case <-ctx.Done():
			return nil, false
		}
	}
}

// turn returns the use of an account that the caller may make; or whose end it is
// to wait for; or neither, if the account was refused.
func (a *Accounts) turn(key accountKey, now time.Time) (mine, other *trial) {
	a.mu.Lock()
	defer a.mu.Unlock()
	acc := a.accounts[key]
	switch {
	case acc == nil:
		a.makeRoom()
		acc = &account{}
		a.accounts[key] = acc
	case acc.refused:
		return nil, nil
	case !acc.at.IsZero() && now.Sub(acc.at) < trustFor:
		return &trial{}, nil
	case acc.trial != nil:
		return nil, acc.trial
	}
	acc.trial = &trial{done: make(chan struct{})}
	return acc.trial, nil
}

// end takes what came of a use.
func (a *Accounts) end(key accountKey, t *trial, now time.Time, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	acc := a.accounts[key]
	if acc == nil { // it was trusted, and forgotten for others
		a.makeRoom()
		acc = &account{}
		a.accounts[key] = acc
	}
	switch {
	case errors.Is(err, onvif.ErrRefused):
		acc.refused, acc.at = true, now
	case err == nil && !acc.refused: // a refusal since it began counts
		acc.at = now
	case err != nil && !errors.Is(err, errUntried):
		t.inVain = true
	}
	if t.done != nil {
		acc.trial = nil
		close(t.done)
	}
	if acc.trial == nil && acc.at.IsZero() {
		delete(a.accounts, key)
	}
}

// makeRoom has room for one more account: it forgets the one that was accepted
// longest ago, or if there is none, refused. The caller holds a.mu.
func (a *Accounts) makeRoom() {
	if a.accounts == nil {
		a.accounts = make(map[accountKey]*account)
	}
	if len(a.accounts) < maxAccounts {
		return
	}
	var oldest *account
	var key accountKey
	for k, acc := range a.accounts {
		if acc.trial == nil && (oldest == nil || !acc.refused && oldest.refused || acc.refused == oldest.refused && acc.at.Before(oldest.at)) {
			oldest, key = acc, k
		}
	}
	if oldest != nil {
		delete(a.accounts, key)
	}
}

// forgive has an account that was refused tried again, unless that was just now.
func (a *Accounts) forgive(key accountKey, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if acc := a.accounts[key]; acc != nil && acc.refused && acc.trial == nil && now.Sub(acc.at) >= forgiveAfter {
		delete(a.accounts, key)
	}
}
