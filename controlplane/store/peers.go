package store

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"

	"fanlight/internal/fleet"
)

// peerTimeout bounds one question to a peer.
const peerTimeout = time.Second

// errOtherCluster says that a peer is a member of another etcd cluster.
var errOtherCluster = errors.New("it is a member of another cluster")

// peers asks the other members whether they are there, where etcd's own
// connections between members lead.
type peers struct {
	transport *http.Transport
	client    *http.Client
}

func newPeers(m *Member) (*peers, error) {
	t := &http.Transport{
		DialContext:           (&net.Dialer{Timeout: peerTimeout}).DialContext,
		ResponseHeaderTimeout: peerTimeout,
		MaxIdleConnsPerHost:   1,
	}
	if m.CertFile != "" {
		info := transport.TLSInfo{CertFile: m.CertFile, KeyFile: m.KeyFile, TrustedCAFile: m.CAFile}
		cfg, err := info.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("certificate for the other members: %w", err)
		}
		t.TLSClientConfig = cfg
	}
	return &peers{transport: t, client: &http.Client{Transport: t, Timeout: peerTimeout}}, nil
}

func (p *peers) close() { p.transport.CloseIdleConnections() }

// ask returns nil if a member of the cluster answers at the URL.
func (p *peers) ask(ctx context.Context, peerURL, cluster string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, peerURL+"/members", http.NoBody)
	if err != nil {
		return fmt.Errorf("ask a member: %w", err)
	}
	resp, err := p.client.Do(req)
	if err != nil {
		var u *url.Error
		if errors.As(err, &u) {
			err = u.Err // without the URL, which the caller has
		}
		return err
	}
	_, err = io.Copy(io.Discard, io.LimitReader(resp.Body, 1<<20)) // so that the connection is used again
	if cerr := resp.Body.Close(); err != nil || cerr != nil {
		return errors.Join(err, cerr)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("it answers with %s", resp.Status)
	}
	if id := resp.Header.Get("X-Etcd-Cluster-Id"); id != cluster {
		return errOtherCluster
	}
	return nil
}

// refused tells whether an error of ask says that nobody listens there, so that
// the process is gone, as opposed to slow or cut off.
func refused(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// isLearner tells whether this member has no vote. Etcd's own function panics
// when the member was removed.
func (e *embedded) isLearner() bool {
	own := e.etcd.Server.Cluster().Member(e.etcd.Server.MemberID())
	return own != nil && own.IsLearner
}

// others returns the members but this one.
func (e *embedded) others() []*membership.Member {
	own := e.etcd.Server.MemberID()
	return slices.DeleteFunc(e.etcd.Server.Cluster().Members(), func(m *membership.Member) bool { return m.ID == own })
}

// askMember asks one member at all of its URLs.
func (e *embedded) askMember(ctx context.Context, m *membership.Member) error {
	if e.peers == nil {
		return errors.New("this one is not one of several: start it with --name and --initial-cluster")
	}
	err := errors.New("it has no peer URL")
	for _, u := range m.PeerURLs {
		if err = e.peers.ask(ctx, u, e.etcd.Server.Cluster().ID().String()); err == nil {
			return nil
		}
	}
	return err
}

// askAll asks members at the same time.
func (e *embedded) askAll(ctx context.Context, members []*membership.Member) []error {
	errs := make([]error, len(members))
	var wait sync.WaitGroup
	for i, m := range members {
		wait.Go(func() { errs[i] = e.askMember(ctx, m) })
	}
	wait.Wait()
	return errs
}

// peerProblems says which members can't be reached. The error is for what
// waiting does not help.
func (e *embedded) peerProblems(ctx context.Context) (string, error) {
	if e.peers == nil {
		if n := len(e.others()); n > 0 {
			return "", e.severalMembers(n)
		}
		return "", nil
	}
	others := e.others()
	var problems []string
	for i, err := range e.askAll(ctx, others) {
		if err == nil {
			continue
		}
		where := fmt.Sprintf("%s (%s)", orText(others[i].Name, others[i].ID.String()), strings.Join(others[i].PeerURLs, ", "))
		if errors.Is(err, errOtherCluster) {
			return "", fmt.Errorf("the member %s is of another cluster: is the address right, and is --cluster-token the same? "+
				"If one of the two was started by mistake, stop it and remove its data directory", where)
		}
		problems = append(problems, where+": "+peerErrorText(err))
	}
	return strings.Join(problems, "; "), nil
}

func (e *embedded) severalMembers(others int) error {
	return fmt.Errorf("data directory %s is of one of %d members: give --name and --initial-cluster", e.dir, others+1)
}

// peerErrorText says what to do about a peer that does not answer.
func peerErrorText(err error) string {
	var unknown x509.UnknownAuthorityError
	var host x509.HostnameError
	var timeout net.Error
	switch {
	case errors.As(err, &unknown):
		return err.Error() + ": --peer-ca must have signed every member's --peer-cert"
	case errors.As(err, &host):
		return err.Error() + ": issue its --peer-cert for the host of its URL"
	case strings.Contains(err.Error(), "remote error: tls"):
		return err.Error() + ": it does not accept this one's --peer-cert"
	case errors.Is(err, syscall.ECONNREFUSED):
		return "connection refused: it does not run, or listens elsewhere"
	case errors.As(err, &timeout) && timeout.Timeout():
		return "no answer: is the network, or a firewall, in the way?"
	default:
		return err.Error()
	}
}

// belongs checks that the member is what the configuration says it is, and
// tells the others where it is now.
func (e *embedded) belongs(m *Member) error {
	others := e.others()
	if m == nil {
		if len(others) > 0 {
			return e.severalMembers(len(others))
		}
		return nil
	}
	for _, o := range others {
		if o.Name == m.Name {
			return fmt.Errorf("the cluster has another member %q, at %s: give --name what this one's is, or the --data of %s",
				m.Name, strings.Join(o.PeerURLs, ", "), m.Name)
		}
	}
	return nil
}

// moved tells the cluster where this member is, if that has changed: it was
// alone without an address, or is on another machine.
func (s *Store) moved(ctx context.Context, m *Member) error {
	if m == nil {
		return nil
	}
	server := s.embedded.etcd.Server
	own := server.Cluster().Member(server.MemberID())
	want := strings.TrimSuffix(m.InitialCluster[m.Name], "/")
	if own == nil || len(own.PeerURLs) == 1 && own.PeerURLs[0] == want {
		return nil
	}
	ctx, cancel := s.call(ctx)
	defer cancel()
	if _, err := s.client.MemberUpdate(ctx, uint64(own.ID), []string{want}); err != nil {
		return fmt.Errorf("tell the other members that this one is at %s now: %w", want, s.unavailable(ctx, err))
	}
	s.log.Info("member moved", "member", m.Name, "address", want)
	return nil
}

// explainStart says what to change about an error of etcd's start.
func explainStart(err error, m *Member) error {
	text := err.Error()
	if m == nil {
		return err
	}
	switch {
	case strings.Contains(text, "member count is unequal"), strings.Contains(text, "no match found for existing member"),
		strings.Contains(text, "unmatched member"):
		return fmt.Errorf("--initial-cluster is not what the cluster has: give it as \"fanlight cluster add\" printed it, this member included, "+
			"and add a member before starting it: %w", err)
	case strings.Contains(text, "already been bootstrapped"):
		return fmt.Errorf("the member %q has been started before, and this data directory is not its: give it its own --data; if that is lost, "+
			"\"fanlight cluster remove %s\" and \"fanlight cluster add %s\", then start it with --join: %w", m.Name, m.Name, m.Name, err)
	case strings.Contains(text, "cannot fetch cluster info"), strings.Contains(text, "could not retrieve cluster information"):
		return fmt.Errorf("--join: none of the other members in --initial-cluster answers, and %w: %w", fleet.Unavailable, err)
	default:
		return err
	}
}
