package main

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/pflag"

	"fanlight/internal/certs"
	"fanlight/internal/rpc"
)

// security is how a server is protected.
type security struct {
	files          certs.Files
	operatorTokens string
	insecure       bool
	calls          *rpc.Metrics // of its servers and dialers; nil: none are kept
}

func (s *security) flags(flags *pflag.FlagSet) {
	flags.StringVar(&s.files.Cert, "tls-cert", "", "PEM `file` of this process' certificate")
	flags.StringVar(&s.files.Key, "tls-key", "", "PEM `file` of its key")
	flags.StringVar(&s.files.CA, "tls-ca", "", "PEM `file` of the authority that signed the certificates of nodes, gateways and control planes")
	flags.BoolVar(&s.insecure, "insecure", false, "allow addresses that other machines can reach without TLS and without keys")
}

func (s *security) tokenFlag(flags *pflag.FlagSet) {
	flags.StringVar(&s.operatorTokens, "operator-tokens", "", "`file` with the hashes of the operators' tokens, see \"fanlight token operator\"")
}

// webTLS returns the configuration of the TLS server for browsers, which are
// not asked for certificates; nil: plaintext.
func (s *security) webTLS(log *slog.Logger) (*tls.Config, error) {
	web := *s
	web.files.CA = ""
	return web.serverTLS(log)
}

// serverTLS returns the configuration of the TLS server for other processes and
// operators; nil: plaintext.
func (s *security) serverTLS(log *slog.Logger) (*tls.Config, error) {
	if (s.files.Cert == "") != (s.files.Key == "") {
		return nil, usagef("give --tls-cert and --tls-key together")
	}
	if s.files.Cert == "" {
		return nil, nil
	}
	cfg, err := s.files.ServerTLS(func(err error) { log.Error("certificate", "error", err) })
	if err != nil {
		return nil, usageError{err}
	}
	return cfg, nil
}

// controlPlanes and nodes are the roles of those that are dialled as such: the
// certificate of an "up", which is a node as well, is a control plane's.
func controlPlanes() []rpc.Role { return []rpc.Role{rpc.RoleControlPlane} }
func nodes() []rpc.Role         { return []rpc.Role{rpc.RoleNode, rpc.RoleControlPlane} }

// dialer returns a dialer for the other processes of the fleet that have one of
// the roles. It speaks TLS where there is a --tls-ca, and plaintext to loopback
// otherwise.
func (s *security) dialer(log *slog.Logger, roles []rpc.Role) (*rpc.Dialer, error) {
	d := &rpc.Dialer{Insecure: s.insecure, Log: log, Metrics: s.calls}
	if s.files.CA == "" {
		return d, nil
	}
	cfg, err := s.files.ClientTLS(func(err error) { log.Error("certificate", "error", err) })
	if err != nil {
		return nil, usageError{err}
	}
	certs.RequireRole(cfg, false, roles...)
	d.TLS = cfg
	return d, nil
}

// rpcServer returns the server of a process' services. Callers need no keys
// where none are configured; that is for loopback, and was refused elsewhere.
func (s *security) rpcServer(log *slog.Logger, services ...map[string]rpc.Role) (*rpc.Server, error) {
	cfg := rpc.ServerConfig{Log: log, Services: map[string]rpc.Role{}, AllowAny: s.anyone(), Metrics: s.calls}
	for _, table := range services {
		for service, role := range table {
			cfg.Services[service] = role
		}
	}
	var err error
	if cfg.TLS, err = s.serverTLS(log); err != nil {
		return nil, err
	}
	if s.operatorTokens != "" {
		if cfg.OperatorTokens, err = rpc.OpenTokenFile(s.operatorTokens, log); err != nil {
			return nil, usagef("--operator-tokens: %w", err)
		}
	}
	return rpc.NewServer(cfg), nil
}

// anyone tells whether callers of the gRPC services need no keys.
func (s *security) anyone() bool { return s.files.CA == "" && s.operatorTokens == "" }

// exposed says that a listener can be reached by other machines although
// something is missing that would make this safe.
type exposed struct {
	flag, addr string
	missing    []string // flags to add, in words
}

// exposure returns what is missing for a listener: nil if it is on loopback, or
// has all that it needs. A need is flags in words; "" if it is met.
func (s *security) exposure(flag, addr string, needs ...string) error {
	if s.insecure || rpc.IsLoopback(addr) {
		return nil
	}
	e := exposed{flag: flag, addr: addr}
	for _, n := range needs {
		if n != "" {
			e.missing = append(e.missing, n)
		}
	}
	if len(e.missing) == 0 {
		return nil
	}
	return usageError{e}
}

func (e exposed) Error() string {
	return fmt.Sprintf("--%s %s can be reached by other machines: add %s, or listen on 127.0.0.1; --insecure does without",
		e.flag, e.addr, strings.Join(e.missing, " and "))
}

// needTLS is met by a certificate.
func (s *security) needTLS() string {
	if s.files.Cert != "" && s.files.Key != "" {
		return ""
	}
	return "--tls-cert and --tls-key"
}

// needPeers is met by an authority for the certificates of other processes.
func (s *security) needPeers() string {
	if s.files.CA != "" {
		return ""
	}
	return "--tls-ca"
}

// needOperators is met by any way to know an operator.
func (s *security) needOperators() string {
	if s.operatorTokens != "" || s.files.CA != "" {
		return ""
	}
	return "--operator-tokens or --tls-ca"
}
