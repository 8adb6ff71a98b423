package main

import (
	"bytes"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"fanlight/internal/rpc"
	"fanlight/signaling/viewer"
)

func newToken(a *app) *cobra.Command {
	cmd := group("token", "Make tokens for viewers and operators")
	cmd.AddCommand(newTokenViewer(a), newTokenOperator(a))
	return cmd
}

func newTokenViewer(a *app) *cobra.Command {
	var g viewer.Grant
	var keyFile string
	cmd := &cobra.Command{
		Use:   "viewer",
		Short: "Make a viewer's token",
		Long: `Make a token (JWT) that lets whoever has it watch cameras until it expires. The
key file is the one that gateways are given by --viewer-key-file: a secret of 32
bytes or more (HS256). Where gateways have an Ed25519 public key, it is the PEM
file of the private one (EdDSA).`,
		Example: `  head -c 32 /dev/urandom | base64 > viewer.key
  fanlight token viewer --camera lobby,plant-* --ttl 8h --key-file viewer.key`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if len(g.Cameras) == 0 {
				return usagef("--camera is missing: the cameras that may be watched, as names or patterns (\"plant-*\")")
			}
			token, err := signViewer(keyFile, g)
			if err != nil {
				return usageError{err}
			}
			_, err = fmt.Fprintln(a.stdout, token)
			return err
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&g.Cameras, "camera", nil, "camera `name` or pattern (\"plant-*\"); several allowed (required)")
	f.DurationVar(&g.TTL, "ttl", time.Hour, "how `long` the token is valid")
	f.StringVar(&keyFile, "key-file", "", "`file` with the secret, or the Ed25519 private key in PEM (required)")
	f.StringVar(&g.Subject, "subject", "", "`who` watches, for the log")
	f.IntVar(&g.MaxSessions, "max-sessions", 0, "`how many` sessions at once (0: as many as the gateway allows)")
	f.StringVar(&g.Issuer, "issuer", "", "the `iss` claim, where gateways have --viewer-issuer")
	f.StringVar(&g.Audience, "audience", "", "the `aud` claim, where gateways have --viewer-audience")
	requireFlags(cmd, "key-file")
	return cmd
}

func signViewer(keyFile string, g viewer.Grant) (string, error) {
	pem, err := isPEM(keyFile)
	if err != nil {
		return "", err
	}
	if pem {
		key, err := viewer.ReadPrivateKey(keyFile)
		if err != nil {
			return "", err
		}
		return viewer.SignEd25519(key, g)
	}
	secret, err := viewer.ReadSecret(keyFile)
	if err != nil {
		return "", err
	}
	return viewer.SignHMAC(secret, g)
}

// isPEM tells a PEM file from a plain secret.
func isPEM(path string) (bool, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return false, err
	}
	return bytes.HasPrefix(bytes.TrimSpace(data), []byte("-----BEGIN ")), nil
}

func newTokenOperator(a *app) *cobra.Command {
	var name string
	cmd := &cobra.Command{
		Use:   "operator",
		Short: "Make an operator's token",
		Long: `Make a token for an operator. The token is printed once, on the standard output,
for the operator to keep; the line on the standard error output goes into the
file that control planes are given by --operator-tokens. It only recognizes the
token.`,
		Example: "  fanlight token operator --name alice > alice.token 2>> operators.txt",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			token := rpc.NewToken()
			line, err := rpc.TokenLine(name, token)
			if err != nil {
				return usageError{err}
			}
			if _, err := fmt.Fprintln(a.stdout, token); err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.stderr, line)
			return err
		},
	}
	cmd.Flags().StringVar(&name, "name", "", "the operator's `name`, one word (required)")
	requireFlags(cmd, "name")
	return cmd
}
