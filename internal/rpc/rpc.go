// Package rpc makes the gRPC clients and servers that Fanlight's processes
// talk through, so that every one of them authenticates, authorizes, limits,
// recovers and reports errors in the same way.
//
// # Who is calling
//
// A caller has one [Role] and a name. They come from, in this order:
//
//   - the process itself, when the call came through a [Pipe]: every role;
//   - a verified client certificate, whose only URI of scheme "fanlight" is
//     the identity: fanlight://node/NAME, fanlight://gateway/NAME,
//     fanlight://controlplane/NAME, fanlight://operator/NAME or
//     fanlight://monitor/NAME;
//   - a bearer token in the "authorization" metadata, found in the server's
//     [TokenFile]: an operator;
//   - [ServerConfig.AllowAny], meant for loopback with no keys configured:
//     every role.
//
// Anyone else is refused with UNAUTHENTICATED. A wrong token is refused even
// where none would have been needed.
//
// # What they may call
//
// Authorization is a property of the service: [ServerConfig.Services] says
// which role may call each, and a service that is not in the table may be
// called by nobody (PERMISSION_DENIED). grpc.health and server reflection may
// be called by every authenticated caller. What a role may do to which object
// is the service's to decide, with [IdentityFrom].
//
// # Errors
//
// Servers return errors that wrap a [fleet.Error]; clients get errors that
// wrap the same one, so that errors.Is works on both sides. See [Status] and
// [FromStatus].
//
// # Liveness
//
// A server pings each connection every second and gives up after two without
// an answer. A client gives a connection up when nothing at all, ping or
// data, has come for four seconds: gRPC itself lets clients ping no more often
// than every ten. Both sides thereby notice a vanished host about as fast as
// a node's lease runs out.
package rpc

import (
	"context"
	"slices"
)

// Role is what a caller is.
type Role string

// The roles.
const (
	RoleOperator     Role = "operator"     // people and their tools: CameraService, NodeService
	RoleNode         Role = "node"         // media nodes: AgentService
	RoleGateway      Role = "gateway"      // signaling gateways: RouteService, SessionService
	RoleControlPlane Role = "controlplane" // control plane replicas
	RoleMonitor      Role = "monitor"      // what reads metrics; it may call no service
)

// Roles lists every role.
func Roles() []Role {
	return []Role{RoleOperator, RoleNode, RoleGateway, RoleControlPlane, RoleMonitor}
}

// Valid tells whether r is one of [Roles].
func (r Role) Valid() bool { return slices.Contains(Roles(), r) }

// Identity is who is calling.
type Identity struct {
	Role Role
	// Name is the name in the certificate or of the token. Empty: the caller
	// did not say, and Any is true.
	Name string
	// Any is true of callers that may be everything: those in the same process,
	// and everyone on a server with AllowAny. Their name is not checked.
	Any bool
}

// Is tells whether the caller has the role.
func (id Identity) Is(r Role) bool { return id.Any || id.Role == r }

// MaySpeakFor tells whether the caller has the role and that name; callers
// that may be everything may be called anything.
func (id Identity) MaySpeakFor(r Role, name string) bool {
	return id.Any || id.Role == r && id.Name == name
}

// String returns the identity for the log: "node/node-1", "any".
func (id Identity) String() string {
	switch {
	case id.Role != "":
		return string(id.Role) + "/" + id.Name
	case id.Any:
		return "any"
	default:
		return "none"
	}
}

type identityKey struct{}

// IdentityFrom returns who makes the call that ctx belongs to; the zero
// Identity, which has no role, if ctx is not one that a [Server] made.
func IdentityFrom(ctx context.Context) Identity {
	id, _ := ctx.Value(identityKey{}).(Identity)
	return id
}

// WithIdentity returns a context for a handler that is called directly, as
// the server's interceptors make it.
func WithIdentity(ctx context.Context, id Identity) context.Context {
	return context.WithValue(ctx, identityKey{}, id)
}

// Sizes of messages in bytes.
const (
	maxMessage    = 4 << 20  // any message but the next
	maxDesiredSet = 64 << 20 // AgentService.Sync, received by a node: all its cameras
)
