package store

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	storev1 "fanlight/proto/fanlight/store/v1"
)

// Members is the etcd cluster as it is seen from here.
type Members struct {
	All      []*controlv1.Member // by name
	External bool                // the etcd is elsewhere
	Quorum   int
}

func voters(members []*membership.Member) int {
	n := 0
	for _, m := range members {
		if !m.IsLearner {
			n++
		}
	}
	return n
}

// Members returns the members of the etcd cluster, and asks each whether it is
// there, for a second at most. Without a quorum it knows less, but answers.
func (s *Store) Members(ctx context.Context) (Members, error) {
	if s.embedded == nil {
		return s.externalMembers(ctx)
	}
	server := s.embedded.etcd.Server
	all := server.Cluster().Members()
	reports, places := s.reports(ctx)
	errs := s.embedded.askAll(ctx, s.embedded.others())
	out := Members{Quorum: voters(all)/2 + 1}
	asked := 0
	for _, m := range all {
		r := reports[m.ID.String()]
		o := &controlv1.Member{
			Name: memberName(cmp.Or(m.Name, r.GetName(), m.ID.String())), Id: m.ID.String(), PeerUrls: m.PeerURLs,
			Leader: m.ID == server.Leader(), Started: m.IsStarted(), Learner: m.IsLearner,
			State: controlv1.Member_STATE_OK, Version: r.GetVersion(), DbSize: r.GetDbSize(), DbInUse: r.GetDbInUse(),
			DiskFree: r.GetDiskFree(), ReportTime: r.GetReportTime(),
		}
		o.Places = places != "" && places == m.Name
		if m.ID == server.MemberID() {
			s.describe(o)
		} else {
			describeOther(o, r, errs[asked])
			asked++
		}
		out.All = append(out.All, o)
	}
	slices.SortFunc(out.All, func(a, b *controlv1.Member) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

func memberName(name string) string { return "members/" + name }

// describe fills in what this member knows of itself.
func (s *Store) describe(o *controlv1.Member) {
	h := s.Health()
	if len(o.GetPeerUrls()) == 1 && o.GetPeerUrls()[0] == alonePeer {
		o.PeerUrls = nil
	}
	o.Version, o.DbSize, o.DbInUse, o.DiskFree = s.version, h.DBSize, h.DBInUse, max(0, h.FreeDisk)
	o.ReportTime = timestamppb.Now()
	if o.State = stateOf(h.Err); h.Err != nil {
		o.Message = h.Err.Error()
	}
}

// stateOf returns the state of a member with a health. One that has no quorum
// is itself well.
func stateOf(err error) controlv1.Member_State {
	var t *trouble
	switch {
	case errors.Is(err, fleet.StoreFull):
		return controlv1.Member_STATE_FULL
	case errors.As(err, &t) && t.slow:
		return controlv1.Member_STATE_SLOW
	default:
		return controlv1.Member_STATE_OK
	}
}

// describeOther fills in how another member is: it answered or not, and what
// it last said of itself.
func describeOther(o *controlv1.Member, r *storev1.Replica, err error) {
	switch {
	case !o.GetStarted():
		o.State = controlv1.Member_STATE_NOT_STARTED
		o.Message = "start it with the flags that \"cluster add\" printed"
	case err != nil:
		o.State, o.Message = controlv1.Member_STATE_UNREACHABLE, peerErrorText(err)
	case r.GetState() != controlv1.Member_STATE_UNSPECIFIED:
		o.State, o.Message = r.GetState(), r.GetMessage()
	}
	if o.GetState() == controlv1.Member_STATE_OK && o.GetLearner() {
		o.Message = "it is catching up, and becomes a full member by itself"
	}
}

// reports returns what members last said of themselves, by id, and the name of
// the replica that leads placement; as far as this member knows.
func (s *Store) reports(ctx context.Context) (map[string]*storev1.Replica, string) {
	ctx, cancel := context.WithTimeout(ctx, peerTimeout)
	defer cancel()
	out := make(map[string]*storev1.Replica)
	resp, err := s.client.Get(ctx, s.prefix+membersKey, clientv3.WithPrefix(), clientv3.WithSerializable())
	if err != nil {
		return out, ""
	}
	for _, kv := range resp.Kvs {
		r := &storev1.Replica{}
		if proto.Unmarshal(kv.GetValue(), r) == nil {
			out[strings.TrimPrefix(string(kv.GetKey()), s.prefix+membersKey)] = r
		}
	}
	holder, err := s.holder(ctx)
	if err != nil || holder == nil {
		return out, ""
	}
	return out, string(holder.GetValue())
}

// externalMembers are those of an etcd elsewhere.
func (s *Store) externalMembers(ctx context.Context) (Members, error) {
	ctx, cancel := s.call(ctx)
	defer cancel()
	resp, err := s.client.MemberList(ctx, clientv3.WithSerializable())
	if err != nil {
		return Members{}, fmt.Errorf("list etcd's members: %w", s.unavailable(ctx, err))
	}
	out := Members{External: true, All: make([]*controlv1.Member, len(resp.Members))}
	var wait sync.WaitGroup
	votes := 0
	for i, m := range resp.Members {
		id := strconv.FormatUint(m.GetID(), 16)
		o := &controlv1.Member{
			Name: memberName(cmp.Or(m.GetName(), id)), Id: id, PeerUrls: m.GetPeerURLs(), Learner: m.GetIsLearner(), Started: m.GetName() != "",
		}
		out.All[i] = o
		if !m.GetIsLearner() {
			votes++
		}
		wait.Go(func() { s.describeExternal(ctx, o, m) })
	}
	wait.Wait()
	out.Quorum = votes/2 + 1
	slices.SortFunc(out.All, func(a, b *controlv1.Member) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return out, nil
}

func (s *Store) describeExternal(ctx context.Context, o *controlv1.Member, m *etcdserverpb.Member) {
	if !o.GetStarted() {
		o.State = controlv1.Member_STATE_NOT_STARTED
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	o.State, o.Message = controlv1.Member_STATE_UNREACHABLE, "it has no client URL"
	for _, u := range m.GetClientURLs() {
		st, err := s.client.Status(ctx, u)
		if err != nil {
			o.Message = unavailable(err).Error()
			continue
		}
		o.State, o.Message = controlv1.Member_STATE_OK, strings.Join(st.Errors, "; ")
		if strings.Contains(o.GetMessage(), "NOSPACE") {
			o.State = controlv1.Member_STATE_FULL
		}
		o.Version, o.DbSize, o.DbInUse, o.Leader = st.Version, st.DbSize, st.DbSizeInUse, st.Leader == m.GetID()
		o.ReportTime = timestamppb.Now()
		return
	}
}

var errExternal = fmt.Errorf("%w: the etcd is elsewhere (--etcd-endpoints): change its members with its own tools, as etcdctl member", fleet.ClusterChangeRefused)

// healthyAfter is a little longer than the time for which etcd's members must
// have been connected to each other before they agree to a change.
const healthyAfter = 7 * time.Second

var errUnhealthy = fmt.Errorf("%w: the members have not all been connected to each other for 5 s: see \"cluster members\", and try again", fleet.ClusterChangeRefused)

// whenHealthy makes a change as soon as etcd agrees to it.
func whenHealthy(ctx context.Context, change func() error) error {
	late := time.NewTimer(healthyAfter)
	defer late.Stop()
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for {
		err := change()
		if !errors.Is(err, rpctypes.ErrUnhealthy) {
			return err
		}
		select {
		case <-tick.C:
		case <-late.C:
			return err
		case <-ctx.Done():
			return err
		}
	}
}

// AddMember adds a member as a learner, and returns the flags to start it with.
// The error wraps [fleet.InvalidArgument], [fleet.MemberExists] or
// [fleet.ClusterChangeRefused].
func (s *Store) AddMember(ctx context.Context, name, peerURL string) (flags []string, id string, err error) {
	if s.embedded == nil {
		return nil, "", errExternal
	}
	if err := s.mayAdd(name, peerURL); err != nil {
		return nil, "", err
	}
	peerURL = strings.TrimSuffix(peerURL, "/")
	cluster := []string{name + "=" + peerURL}
	for _, m := range s.embedded.etcd.Server.Cluster().Members() {
		cluster = append(cluster, m.Name+"="+m.PeerURLs[0])
	}
	slices.Sort(cluster)
	call, cancel := s.write(ctx)
	defer cancel()
	var resp *clientv3.MemberAddResponse
	err = whenHealthy(call, func() (err error) {
		resp, err = s.client.MemberAddAsLearner(call, []string{peerURL})
		return err
	})
	switch {
	case errors.Is(err, rpctypes.ErrPeerURLExist), errors.Is(err, rpctypes.ErrMemberExist):
		return nil, "", fmt.Errorf("add %q at %s: %w", name, peerURL, fleet.MemberExists)
	case errors.Is(err, rpctypes.ErrTooManyLearners):
		return nil, "", fmt.Errorf("%w: another replica is still being added: start it, or remove it", fleet.ClusterChangeRefused)
	case errors.Is(err, rpctypes.ErrUnhealthy):
		return nil, "", errUnhealthy
	case err != nil:
		return nil, "", fmt.Errorf("add %q: %w", name, s.unavailable(call, err))
	}
	// Etcd learns a member's name when it starts.
	id = strconv.FormatUint(resp.Member.GetID(), 16)
	if value, err := encode(&storev1.Replica{Name: name}); err == nil {
		if _, err := s.client.Put(call, s.prefix+membersKey+id, value); err != nil {
			s.log.Warn("name of the new member not stored", "member", name, "error", err)
		}
	}
	flags = []string{"--name=" + name, "--initial-cluster=" + strings.Join(cluster, ","), "--join"}
	return flags, id, nil
}

// mayAdd refuses what would not work, or would hurt.
func (s *Store) mayAdd(name, peerURL string) error {
	u, err := url.Parse(peerURL)
	if err != nil || u.User != nil || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" || (u.Scheme != "https" && u.Scheme != "http") {
		return fmt.Errorf("%w: peer_url must be https://host:port", fleet.InvalidArgument)
	}
	members := s.embedded.etcd.Server.Cluster().Members()
	if s.embedded.peers == nil {
		return fmt.Errorf("%w: this control plane is alone, and no other can reach it: start it again with --name NAME, "+
			"--initial-cluster NAME=https://HOST:2380, --peer-cert, --peer-key and --peer-ca, which keeps its data; then add the other", fleet.ClusterChangeRefused)
	}
	for _, m := range members {
		switch {
		case m.Name == name:
			return fmt.Errorf("add %q: %w", name, fleet.MemberExists)
		case m.IsLearner || !m.IsStarted():
			return fmt.Errorf("%w: %s is still being added: start it with the flags that \"cluster add\" printed, or remove it",
				fleet.ClusterChangeRefused, orText(m.Name, m.ID.String()))
		case len(m.PeerURLs) > 0 && !strings.HasPrefix(m.PeerURLs[0], u.Scheme+"://"):
			return fmt.Errorf("%w: the other members use %s", fleet.InvalidArgument, m.PeerURLs[0])
		}
	}
	return nil
}

// RemoveMember takes a member out of the cluster, by name or id. The error
// wraps [fleet.MemberNotFound] or [fleet.ClusterChangeRefused].
func (s *Store) RemoveMember(ctx context.Context, name string, force bool) error {
	if s.embedded == nil {
		return errExternal
	}
	all, err := s.Members(ctx)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(all.All, func(m *controlv1.Member) bool { return m.GetName() == memberName(name) || m.GetId() == name })
	if i < 0 {
		return fmt.Errorf("member %q: %w", name, fleet.MemberNotFound)
	}
	target := all.All[i]
	if err := mayRemove(all.All, target, force); err != nil {
		return err
	}
	id, err := strconv.ParseUint(target.GetId(), 16, 64)
	if err != nil {
		return fmt.Errorf("member %q: %w", name, err)
	}
	call, cancel := s.write(ctx)
	defer cancel()
	err = whenHealthy(call, func() error {
		_, err := s.client.MemberRemove(call, id)
		return err
	})
	switch {
	case errors.Is(err, rpctypes.ErrUnhealthy):
		return errUnhealthy
	case errors.Is(err, rpctypes.ErrMemberNotFound):
		return fmt.Errorf("member %q: %w", name, fleet.MemberNotFound)
	case errors.Is(err, rpctypes.ErrMemberNotEnoughStarted):
		return fmt.Errorf("%w: etcd itself refuses, for those that are left would have no quorum: start the others first (%w)", fleet.ClusterChangeRefused, err)
	case err != nil:
		return fmt.Errorf("remove %q: %w", name, s.unavailable(call, err))
	}
	if _, err := s.client.Delete(call, s.prefix+membersKey+target.GetId()); err != nil {
		s.log.Warn("report of the removed member not deleted", "member", name, "error", err)
	}
	return nil
}

// mayRemove refuses to leave a cluster without a quorum.
func mayRemove(all []*controlv1.Member, target *controlv1.Member, force bool) error {
	votes, alive := 0, 0
	for _, m := range all {
		if m == target || m.GetLearner() {
			continue
		}
		votes++
		if s := m.GetState(); s == controlv1.Member_STATE_OK || s == controlv1.Member_STATE_FULL {
			alive++
		}
	}
	switch {
	case votes == 0 && !target.GetLearner():
		return fmt.Errorf("%w: %s is the only member; to end it, stop its process", fleet.ClusterChangeRefused, target.GetName())
	case target.GetLearner() || force || alive > votes/2:
		return nil
	}
	return fmt.Errorf("%w: without %s there would be %d members, of which %d can be reached, and %d must be: start the others first, "+
		"or remove one that can't be reached", fleet.ClusterChangeRefused, target.GetName(), votes, alive, votes/2+1)
}
