package rpc

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"fanlight/internal/fleet"
)

// identityScheme is the scheme of the URI that names the owner of a
// certificate.
const identityScheme = "fanlight"

// IdentityURI returns the URI that names role and name in a certificate:
// "fanlight://node/node-1".
func IdentityURI(r Role, name string) string {
	return identityScheme + "://" + string(r) + "/" + name
}

// CertificateIdentity returns whom a certificate names: its only URI of scheme
// "fanlight". An error says what is wrong with a certificate that names nobody
// or several. It does not verify the certificate.
func CertificateIdentity(cert *x509.Certificate) (Identity, error) {
	var id Identity
	for _, u := range cert.URIs {
		if u.Scheme != identityScheme {
			continue
		}
		if id.Role != "" {
			return Identity{}, errors.New("the certificate has more than one fanlight:// URI")
		}
		name := strings.TrimPrefix(u.Path, "/")
		id = Identity{Role: Role(u.Host), Name: name}
		if !id.Role.Valid() || name == "" || strings.Contains(name, "/") || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return Identity{}, fmt.Errorf("the certificate's URI %q is not fanlight://ROLE/NAME", u.Redacted())
		}
	}
	if id.Role == "" {
		return Identity{}, errors.New("the certificate has no fanlight://ROLE/NAME URI")
	}
	return id, nil
}

// pipeInfo is the AuthInfo of a connection through a Pipe.
type pipeInfo struct{ credentials.CommonAuthInfo }

func (pipeInfo) AuthType() string { return "pipe" }

// serverCredentials lets connections through a Pipe pass and treats all others
// as the credentials that it wraps do.
type serverCredentials struct {
	credentials.TransportCredentials
}

func (c serverCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	if _, ok := conn.(pipeConn); ok {
		return conn, pipeInfo{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}, nil
	}
	return c.TransportCredentials.ServerHandshake(conn)
}

func (c serverCredentials) Clone() credentials.TransportCredentials {
	return serverCredentials{c.TransportCredentials.Clone()}
}

// authenticate returns who makes the call of ctx. The error wraps
// fleet.Unauthenticated and says what was missing.
func (s *Server) authenticate(ctx context.Context) (Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, fmt.Errorf("%w: the call came over no connection", fleet.Unauthenticated)
	}
	var id Identity
	var certErr error
	switch info := p.AuthInfo.(type) {
	case pipeInfo:
		return Identity{Any: true}, nil
	case credentials.TLSInfo:
		id, certErr = verifiedIdentity(info)
	}
	if id.Role == "" {
		named, err := s.operator(ctx)
		if err != nil {
			return Identity{}, err
		}
		id = named
	}
	id.Any = s.cfg.AllowAny
	switch {
	case id.Any || id.Role != "":
		return id, nil
	case certErr != nil:
		return Identity{}, fmt.Errorf("%w: %w", fleet.Unauthenticated, certErr)
	default:
		return Identity{}, fmt.Errorf("%w: give a client certificate or an operator token", fleet.Unauthenticated)
	}
}

// verifiedIdentity returns whom the client's certificate names; nobody if
// there is none.
func verifiedIdentity(info credentials.TLSInfo) (Identity, error) {
	if len(info.State.VerifiedChains) == 0 || len(info.State.VerifiedChains[0]) == 0 {
		return Identity{}, nil
	}
	return CertificateIdentity(info.State.VerifiedChains[0][0])
}

// operator returns whose token the call carries; nobody if it carries none.
func (s *Server) operator(ctx context.Context) (Identity, error) {
	values := metadata.ValueFromIncomingContext(ctx, "authorization")
	if len(values) == 0 || s.cfg.OperatorTokens == nil {
		return Identity{}, nil
	}
	scheme, token, _ := strings.Cut(values[0], " ")
	if len(values) > 1 || !strings.EqualFold(scheme, "bearer") {
		return Identity{}, fmt.Errorf("%w: the authorization metadata must be one \"Bearer TOKEN\"", fleet.Unauthenticated)
	}
	name, ok := s.cfg.OperatorTokens.Lookup(token)
	if !ok {
		return Identity{}, fmt.Errorf("%w: the operator token is not one that the server knows", fleet.Unauthenticated)
	}
	return Identity{Role: RoleOperator, Name: name}, nil
}

// Services that every authenticated caller may call.
var openServices = map[string]bool{
	"grpc.health.v1.Health":                    true,
	"grpc.reflection.v1.ServerReflection":      true,
	"grpc.reflection.v1alpha.ServerReflection": true,
}

// authorize refuses a method whose service is not in the table, or is there
// for another role.
func (s *Server) authorize(id Identity, fullMethod string) error {
	service, _, ok := strings.Cut(strings.TrimPrefix(fullMethod, "/"), "/")
	if !ok || fullMethod[0] != '/' {
		return fmt.Errorf("%w: malformed method name", fleet.PermissionDenied)
	}
	if openServices[service] {
		return nil
	}
	role, ok := s.cfg.Services[service]
	if !ok {
		return fmt.Errorf("%w: nobody may call %s here", fleet.PermissionDenied, service)
	}
	if !id.Is(role) {
		return fmt.Errorf("%w: %s is for the role %s, and the caller is %s", fleet.PermissionDenied, service, role, id)
	}
	return nil
}
