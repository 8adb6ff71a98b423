package main

import (
	"fmt"
	"log/slog"
	"maps"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"fanlight/controlplane/store"
	"fanlight/internal/certs"
	"fanlight/internal/rpc"
)

// etcdFlags say where a control plane keeps its state.
type etcdFlags struct {
	data         string
	endpoints    []string
	files        certs.Files
	username     string
	passwordFile string
	prefix       string
	keyFile      string

	member      string
	cluster     map[string]string
	listenPeer  string
	join        bool
	clusterName string
	election    time.Duration
	peers       certs.Files

	minFree int64 // MiB
}

func (e *etcdFlags) dataFlags(flags *pflag.FlagSet) {
	flags.StringVar(&e.data, "data", "./fanlight-data", "`directory` of the state")
	flags.StringVar(&e.keyFile, "key-file", "", "`file` with the 32 bytes that seal the cameras' passwords (default: secret.key in the data directory, made if missing)")
	flags.Int64Var(&e.minFree, "min-free-disk", 128, "`MiB` that must be free in the file system of --data; with less, changes by operators are refused (0: none)")
}

func (e *etcdFlags) clusterFlags(flags *pflag.FlagSet) {
	flags.StringSliceVar(&e.endpoints, "etcd-endpoints", nil, "`URLs` of an etcd elsewhere, https://host:port, in place of --data; needs --key-file")
	flags.StringVar(&e.files.CA, "etcd-ca", "", "PEM `file` of the authority that signed its certificates")
	flags.StringVar(&e.files.Cert, "etcd-cert", "", "PEM `file` of this process' certificate for it")
	flags.StringVar(&e.files.Key, "etcd-key", "", "PEM `file` of its key")
	flags.StringVar(&e.username, "etcd-username", "", "its user `name`")
	flags.StringVar(&e.passwordFile, "etcd-password-file", "", "`file` with its password")
	flags.StringVar(&e.prefix, "etcd-prefix", "", "`prefix` of all keys, ending with \"/\" (default \"/fanlight/\"); the etcd should be Fanlight's own, for its history is compacted under every prefix")
	e.memberFlags(flags)
}

// memberFlags are those of one of several control planes.
func (e *etcdFlags) memberFlags(flags *pflag.FlagSet) {
	flags.StringToStringVar(&e.cluster, "initial-cluster", nil, "control planes that keep the state among themselves: `name=https://host:port`, each")
	flags.StringVar(&e.member, "name", "", "this control plane's `name` in --initial-cluster, and in the log")
	flags.StringVar(&e.listenPeer, "listen-peer", "", "`URL` at which this one listens to the others (default: its own in --initial-cluster)")
	flags.BoolVar(&e.join, "join", false, "this one is added to a cluster that exists")
	flags.DurationVar(&e.election, "election-timeout", 500*time.Millisecond, "how `long` control planes wait for a leader of theirs that has gone silent; the same for all")
	flags.StringVar(&e.clusterName, "cluster-token", "", "`word` that tells clusters apart (default \"fanlight\")")
	flags.StringVar(&e.peers.Cert, "peer-cert", "", "PEM `file` of this one's certificate for the others")
	flags.StringVar(&e.peers.Key, "peer-key", "", "PEM `file` of its key")
	flags.StringVar(&e.peers.CA, "peer-ca", "", "PEM `file` of the authority that signed theirs")
}

// config returns the store's configuration. dataGiven tells whether --data was
// given, and is not the default.
func (e *etcdFlags) config(log *slog.Logger, dataGiven bool) (store.Config, error) {
	cfg := store.Config{Log: log.With("component", "store"), KeyFile: e.keyFile, Prefix: e.prefix, MinFreeDisk: e.minFree << 20, Version: buildVersion()}
	if e.minFree <= 0 {
		cfg.MinFreeDisk = -1
	}
	if len(e.endpoints) > 0 {
		return e.external(cfg, dataGiven)
	}
	cfg.DataDir = e.data
	if len(e.cluster) == 0 {
		return cfg, nil
	}
	if _, ok := e.cluster[e.member]; !ok {
		return cfg, usagef("--name %q is not in --initial-cluster", e.member)
	}
	cfg.Member = &store.Member{
		Name: e.member, InitialCluster: e.cluster, ListenPeer: e.listenPeer, Join: e.join, Token: e.clusterName, Election: e.election,
		CertFile: e.peers.Cert, KeyFile: e.peers.Key, CAFile: e.peers.CA,
	}
	return cfg, nil
}

// exposure refuses to speak to other machines in the clear, as a member or as
// a client, and URLs with credentials in them: etcd writes URLs into its log.
func (e *etcdFlags) exposure(sec *security) error {
	if len(e.endpoints) > 0 {
		return e.endpointExposure(sec)
	}
	if len(e.cluster) == 0 {
		return nil
	}
	if e.listenPeer != "" {
		if err := peerExposure(sec, "listen-peer", e.listenPeer); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.cluster)) {
		if err := peerExposure(sec, "initial-cluster", e.cluster[name]); err != nil {
			return err
		}
	}
	return nil
}

func peerExposure(sec *security, flag, s string) error {
	u, err := etcdURL(flag, s)
	if err != nil {
		return err
	}
	if u.Scheme == "https" || sec.insecure || rpc.IsLoopback(u.Host) {
		return nil
	}
	return usagef("--%s http://%s is in the clear to other machines: write https:// and add --peer-cert, --peer-key and --peer-ca; --insecure does without", flag, u.Host)
}

func (e *etcdFlags) endpointExposure(sec *security) error {
	scheme := ""
	for _, s := range e.endpoints {
		u, err := etcdURL("etcd-endpoints", s)
		if err != nil {
			return err
		}
		// The client speaks to all as to the first.
		if scheme != "" && u.Scheme != scheme {
			return usagef("--etcd-endpoints: give all as https:// or all as http://")
		}
		scheme = u.Scheme
		if u.Scheme == "http" && !sec.insecure && !rpc.IsLoopback(u.Host) {
			return usagef("--etcd-endpoints http://%s is in the clear to another machine: write https:// and add --etcd-ca; --insecure does without", u.Host)
		}
	}
	return nil
}

// etcdURL reads a URL of etcd. Its errors don't quote it: there may be a
// password in it.
func etcdURL(flag, s string) (*url.URL, error) {
	u, err := url.Parse(s)
	switch {
	case err == nil && u.User != nil || strings.Contains(s, "@"):
		return nil, usagef("--%s: a URL has a user name or password in it, which etcd would log; give them by --etcd-username and --etcd-password-file (members know each other by certificates)", flag)
	case err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Hostname() == "" || u.Port() == "":
		return nil, usagef("--%s: must be https://host:port or http://host:port", flag)
	case strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "":
		return nil, usagef("--%s: must end after the port", flag)
	}
	return u, nil
}

func (e *etcdFlags) external(cfg store.Config, dataGiven bool) (store.Config, error) {
	switch {
	case dataGiven:
		return cfg, usagef("give --data or --etcd-endpoints, not both")
	case e.keyFile == "":
		return cfg, usagef("--etcd-endpoints needs --key-file: 32 random bytes, the same on every control plane")
	}
	cfg.Endpoints, cfg.Username = e.endpoints, e.username
	if e.passwordFile != "" {
		password, err := readPassword(e.passwordFile, strings.NewReader(""))
		if err != nil {
			return cfg, usagef("--etcd-password-file: %w", err)
		}
		cfg.Password = password
	}
	if e.files != (certs.Files{}) {
		tlsConfig, err := e.files.ClientTLS(func(err error) { cfg.Log.Error("certificate", "error", err) })
		if err != nil {
			return cfg, usageError{fmt.Errorf("etcd: %w", err)}
		}
		cfg.TLS = tlsConfig
	}
	return cfg, nil
}
