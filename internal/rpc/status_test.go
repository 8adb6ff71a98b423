package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"fanlight/internal/fleet"
	"fanlight/internal/rpc"
)

func TestEveryErrorHasACodeAndSurvivesTheWire(t *testing.T) {
	for _, reason := range fleet.Errors() {
		t.Run(string(reason), func(t *testing.T) {
			code := rpc.Code(reason)
			if code == codes.OK || code == codes.Unknown || code == codes.Internal && reason != fleet.Internal {
				t.Errorf("code is %v: the reason is missing in the table", code)
			}
			sent := rpc.Status(fmt.Errorf("get camera %q: %w", "lobby", reason))
			st := status.Convert(sent)
			if st.Code() != code {
				t.Errorf("status has code %v, want %v", st.Code(), code)
			}
			var infos []*errdetails.ErrorInfo
			for _, d := range st.Details() {
				if info, ok := d.(*errdetails.ErrorInfo); ok {
					infos = append(infos, info)
				}
			}
			if len(infos) != 1 || infos[0].GetReason() != string(reason) || infos[0].GetDomain() != "fanlight" {
				t.Errorf("error infos are %v, want one with reason %s and domain fanlight", infos, reason)
			}
			got := rpc.FromStatus(sent)
			if !errors.Is(got, reason) {
				t.Errorf("%v does not wrap %s", got, string(reason))
			}
			if reason == fleet.Internal {
				if strings.Contains(got.Error(), "lobby") {
					t.Errorf("internal error tells %q", got)
				}
			} else if want := fmt.Sprintf("get camera %q: %v", "lobby", reason); got.Error() != want {
				t.Errorf("text is %q, want %q", got, want)
			}
			if again := rpc.Status(fmt.Errorf("node: %w", got)); status.Code(again) != code {
				t.Errorf("passed on, the code is %v, want %v", status.Code(again), code)
			}
		})
	}
}

func TestStatusOfOtherErrors(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		code codes.Code
		text string
	}{
		{"nil", nil, codes.OK, ""},
		{"unknown", errors.New("dial etcd with password s3cret"), codes.Internal, "internal error"},
		{"canceled", fmt.Errorf("read s3cret: %w", context.Canceled), codes.Canceled, "canceled"},
		{"deadline", fmt.Errorf("read s3cret: %w", context.DeadlineExceeded), codes.DeadlineExceeded, "took longer than the caller allowed"},
		{"status", status.Error(codes.NotFound, "no such thing"), codes.NotFound, "no such thing"},
		{"fleet error in a canceled call", fmt.Errorf("%w: %w", context.Canceled, fleet.NodeStopping), codes.Unavailable, "context canceled: the node is stopping"},
		{"internal with text", fmt.Errorf("s3cret: %w", fleet.Internal), codes.Internal, "internal error"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			st := status.Convert(rpc.Status(tt.err))
			if st.Code() != tt.code || st.Message() != tt.text {
				t.Errorf("got %v %q, want %v %q", st.Code(), st.Message(), tt.code, tt.text)
			}
		})
	}
}

func TestFromStatusOfGRPCsOwnErrors(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.Unavailable:      fleet.Unavailable,
		codes.Unauthenticated:  fleet.Unauthenticated,
		codes.PermissionDenied: fleet.PermissionDenied,
		codes.InvalidArgument:  fleet.InvalidArgument,
		codes.Internal:         fleet.Internal,
		codes.Canceled:         context.Canceled,
		codes.DeadlineExceeded: context.DeadlineExceeded,
	} {
		got := rpc.FromStatus(status.Error(code, "text"))
		if !errors.Is(got, want) || status.Code(got) != code || got.Error() != "text" {
			t.Errorf("%v became %v, want one that wraps %v", code, got, want)
		}
	}
	if err := errors.New("not gRPC's"); !errors.Is(rpc.FromStatus(err), err) {
		t.Error("an error that is not gRPC's was changed")
	}
	if rpc.FromStatus(nil) != nil {
		t.Error("FromStatus(nil) is not nil")
	}
}

// What the server's handler returned is told apart from what gRPC says of a lost
// connection.
func TestAnswered(t *testing.T) {
	for name, tt := range map[string]struct {
		err  error
		want bool
	}{
		"a reason of the server's": {rpc.FromStatus(rpc.Status(fmt.Errorf("sync: %w", fleet.Unavailable))), true},
		"the end of a stream":      {io.EOF, true},
		"a lost connection":        {rpc.FromStatus(status.Error(codes.Unavailable, "error reading from server: EOF")), false},
		"the caller's own end":     {rpc.FromStatus(status.Error(codes.Canceled, "context canceled")), false},
		"not gRPC's":               {errors.New("x"), false},
	} {
		if got := rpc.Answered(tt.err); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
