package transport

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"time"

	"github.com/pion/stun/v4"
)

// Credentials are one side's of an ICE generation (RFC 8839 §5.4).
type Credentials struct {
	Fragment string // ice-ufrag, 4 characters at least
	Password string // ice-pwd, 22 characters at least
}

// newCredentials returns random ones: 128 bits of fragment, which finds the
// session, and 130 of password.
func newCredentials() Credentials {
	return Credentials{Fragment: rand.Text()[:16], Password: rand.Text()}
}

const (
	// maxPaths bounds the addresses of one viewer that are kept. Chromium on a
	// machine with four interfaces has eight, UDP and TCP.
	maxPaths = 16
	// checkPause is how long an answer to our check is waited for before the next
	// check of the viewer brings another.
	checkPause = 50 * time.Millisecond
	// consentPause is how long a path that has answered is trusted before the next
	// check of the viewer brings another of ours (RFC 7675 §5.1: each 5 s).
	consentPause = 2 * time.Second
	// silentPath is after how long without an answer or a report another path is
	// better than the present one. Chromium checks each 2.5 s, Firefox and aiortc
	// each 5 s, and receiver reports come each second.
	silentPath = 7 * time.Second
	// nominationBurst is how long the nominations of a viewer's first checks last: a
	// browser may nominate all paths at once, and the best counts. Later ones are
	// a change of mind, and the latest counts.
	nominationBurst = 3 * time.Second
	// punches is how many times an address that the viewer named is checked.
	punches = 7
	// peerReflexive is the PRIORITY of our checks (RFC 8445 §5.1.2.1, §7.1.1):
	// type preference 110, one component.
	peerReflexive = 110<<24 | 65535<<8 | 255
)

// ice is one viewer's ICE agent. Guarded by Transport.mu.
type ice struct {
	local, remote Credentials
	own           stun.MessageIntegrity // of what we get, with the local password
	theirs        stun.MessageIntegrity // of what we answer and ask
	tieBreaker    uint64
	paths         []*Path
	punching      []punch
}

// punch is an address that the viewer named, and how often it was checked.
type punch struct {
	to    netip.AddrPort
	times int
}

func (i *ice) begin(local, remote Credentials) {
	i.local, i.remote = local, remote
	i.own, i.theirs = stun.NewShortTermIntegrity(local.Password), stun.NewShortTermIntegrity(remote.Password)
}

// request is what a check of the viewer's says.
type request struct {
	fragment string // ours
	priority uint32
	nominate bool
	conflict bool // the viewer thinks that it is controlled too
}

var errCheck = errors.New("not a check of ours")

// parseRequest reads a Binding request (RFC 8445 §7.3). Who sent it is not
// proven yet.
func parseRequest(m *stun.Message) (request, error) {
	user, err := m.Get(stun.AttrUsername)
	if err != nil {
		return request{}, errCheck
	}
	fragment, _, ok := strings.Cut(string(user), ":")
	if !ok {
		return request{}, errCheck
	}
	r := request{fragment: fragment, nominate: m.Contains(stun.AttrUseCandidate), conflict: m.Contains(stun.AttrICEControlled)}
	if v, err := m.Get(stun.AttrPriority); err == nil && len(v) == 4 {
		r.priority = binary.BigEndian.Uint32(v)
	}
	return r, nil
}

// requested takes a check that came over a path, and returns what is to be sent
// back: the answer, and a check of ours, nil if none is needed.
func (t *Transport) requested(m *stun.Message, r request, via *Path, now time.Time) (answer, check []byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || r.fragment != t.ice.local.Fragment || t.ice.own.Check(m) != nil {
		return nil, nil
	}
	if r.conflict {
		return build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingError, stun.CodeRoleConflict, t.ice.own, stun.Fingerprint), nil
	}
	p := t.keep(via)
	if p == nil {
		return nil, nil
	}
	first := p.checked.IsZero()
	if first {
		t.port.lend(p, t) // DTLS may come before the address has proven itself
	}
	p.checked, p.priority = now, r.priority
	if r.nominate {
		t.nominate(p, now)
	}
	if t.cancel == nil {
		t.handshake()
	}
	pause := checkPause
	if p.verified {
		pause = consentPause
	}
	if first || now.Sub(p.asked) >= pause {
		check = t.check(p, now)
	}
	t.choose(now)
	at := p.addr
	answer = build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess,
		&stun.XORMappedAddress{IP: at.Addr().Unmap().AsSlice(), Port: int(at.Port())}, t.ice.own, stun.Fingerprint)
	return answer, check
}

// nominate notes that the viewer wants a path. The caller holds t.mu.
func (t *Transport) nominate(p *Path, now time.Time) {
	for _, q := range t.ice.paths {
		if q != p && q.nominated && (q.rank() < p.rank() || now.Sub(q.wanted) > nominationBurst) {
			q.nominated = false
		}
	}
	p.nominated, p.wanted = true, now
}

// check returns a Binding request over a path (RFC 8445 §7.2.2). The caller
// holds t.mu.
func (t *Transport) check(p *Path, now time.Time) []byte {
	p.asked = now
	if p.transaction == ([stun.TransactionIDSize]byte{}) { // else the one before was not answered: any answer will do
		p.transaction = stun.NewTransactionID()
		t.port.expect(p.transaction, t)
	}
	var priority [4]byte
	binary.BigEndian.PutUint32(priority[:], peerReflexive)
	var tie [8]byte
	binary.BigEndian.PutUint64(tie[:], t.ice.tieBreaker)
	return build(stun.NewTransactionIDSetter(p.transaction), stun.BindingRequest,
		stun.NewUsername(t.ice.remote.Fragment+":"+t.ice.local.Fragment),
		stun.RawAttribute{Type: stun.AttrPriority, Value: priority[:]},
		stun.RawAttribute{Type: stun.AttrICEControlled, Value: tie[:]},
		t.ice.theirs, stun.Fingerprint)
}

// answered takes the answer to a check of ours.
func (t *Transport) answered(m *stun.Message, via *Path, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.ice.theirs.Check(m) != nil {
		return
	}
	for _, p := range t.ice.paths {
		if p.transaction != m.TransactionID || !p.same(via) {
			continue // RFC 8445 §7.2.5.2.1: it must come from where the check went
		}
		t.port.settle(p.transaction) // an answer counts once
		p.transaction = [stun.TransactionIDSize]byte{}
		p.heard.Store(now.UnixNano())
		t.heard.Store(now.UnixNano())
		if !p.verified {
			p.verified = true
			p.proven.Store(true)
			t.port.own(p, t)
			if t.records != nil {
				t.records.release(p)
			}
		}
		t.choose(now)
		return
	}
}

// keep returns the viewer's path that is the same as via, adding it if there is
// room: the longest silent goes, but not the one that media takes. The caller
// holds t.mu.
func (t *Transport) keep(via *Path) *Path {
	for _, p := range t.ice.paths {
		if p.same(via) {
			return p
		}
	}
	if len(t.ice.paths) >= maxPaths {
		oldest := -1
		for i, p := range t.ice.paths {
			if p != t.path.Load() && (oldest < 0 || p.heard.Load() < t.ice.paths[oldest].heard.Load()) {
				oldest = i
			}
		}
		t.drop(oldest)
	}
	p := t.port.path(via)
	if p == nil {
		return nil
	}
	t.ice.paths = append(t.ice.paths, p)
	return p
}

// drop forgets a path. The caller holds t.mu.
func (t *Transport) drop(i int) {
	p := t.ice.paths[i]
	t.ice.paths = append(t.ice.paths[:i], t.ice.paths[i+1:]...)
	t.port.forget(p, t)
	if p.tcp != nil {
		p.tcp.finish()
	}
	if t.path.Load() == p {
		t.path.Store(nil)
		t.choose(time.Now())
	}
}

// choose makes the best path that has answered the one for media. The caller
// holds t.mu.
func (t *Transport) choose(now time.Time) {
	best := t.path.Load()
	for _, p := range t.ice.paths {
		if p.verified && p != best && (best == nil || p.better(best, now)) {
			best = p
		}
	}
	if best != t.path.Load() {
		t.path.Store(best)
		signal(t.changed)
	}
}

// better tells whether media should leave q for p.
func (p *Path) better(q *Path, now time.Time) bool {
	silent := func(p *Path) bool { return now.Sub(time.Unix(0, p.heard.Load())) > silentPath }
	switch {
	case silent(p) || silent(q):
		return !silent(p)
	case p.verified != q.verified: // not since an ICE restart
		return p.verified
	case p.nominated != q.nominated:
		return p.nominated
	}
	return p.rank() > q.rank()
}

// rank orders paths: UDP before TCP, then by the viewer's priority.
func (p *Path) rank() uint64 {
	rank := uint64(p.priority)
	if p.tcp == nil {
		rank |= 1 << 32
	}
	return rank
}

// Punch checks addresses that the viewer named, each some times: the caller
// calls it now and then until there is a path. It tells whether there is more to
// check.
func (t *Transport) Punch(now time.Time) (more bool) {
	type sending struct {
		b  []byte
		to netip.AddrPort
	}
	var out []sending
	t.mu.Lock()
	if !t.closed && t.path.Load() == nil {
		left := t.ice.punching[:0]
		for _, p := range t.ice.punching {
			via := &Path{addr: p.to}
			if kept := t.named(via); kept != nil && !kept.verified {
				out = append(out, sending{t.check(kept, now), p.to})
				p.times++
			} else {
				p.times = punches
			}
			if p.times < punches {
				left = append(left, p)
			}
		}
		t.ice.punching = left
		more = len(left) > 0
	}
	t.mu.Unlock()
	for _, s := range out {
		_, _ = t.port.conn.WriteToAddrPort(s.b, s.to) // counted by the socket
	}
	return more
}

// named is keep for an address that the viewer named and that nothing has come
// from: it takes no other viewer's packets, and nobody's place. The caller holds
// t.mu.
func (t *Transport) named(via *Path) *Path {
	for _, p := range t.ice.paths {
		if p.same(via) {
			return p
		}
	}
	if len(t.ice.paths) >= maxPaths {
		return nil
	}
	p := t.port.path(via)
	if p == nil {
		return nil
	}
	t.ice.paths = append(t.ice.paths, p)
	return p
}

// AddCandidate notes an address at which the viewer may be, over UDP. Too many
// are left alone.
func (t *Transport) AddCandidate(addr netip.AddrPort) {
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	if a := addr.Addr(); !a.IsValid() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" || addr.Port() == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || len(t.ice.punching) >= maxPaths {
		return
	}
	for _, p := range t.ice.punching {
		if p.to == addr {
			return
		}
	}
	t.ice.punching = append(t.ice.punching, punch{to: addr})
	signal(t.changed)
}

// build makes a STUN message. That cannot fail but for attributes that are none.
func build(setters ...stun.Setter) []byte {
	m := new(stun.Message)
	if err := m.Build(setters...); err != nil {
		return nil
	}
	return m.Raw
}
