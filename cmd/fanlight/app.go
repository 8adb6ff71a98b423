package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"fanlight/internal/service"
)

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

// app is what a command has of the process that it runs in.
type app struct {
	environ []string
	stdin   io.Reader
	stdout  io.Writer
	stderr  io.Writer

	logFormat, logLevel string // flags of servers
}

// note says something to the person at the terminal. That it cannot be said is
// no reason to fail.
func (a *app) note(format string, args ...any) {
	_, _ = fmt.Fprintf(a.stderr, format+"\n", args...)
}

// quietClose closes what has nothing to say at its end: connections to servers,
// files that were read, listeners that their server has closed already.
func quietClose(c io.Closer) { _ = c.Close() }

// usageError is an error in what the user typed: exit code 2.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// run runs one command line and returns its exit code.
func run(args []string, a *app) int {
	root := newRoot(a)
	root.SetArgs(args)
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	cmd, err := root.ExecuteC()
	if err == nil {
		return exitOK
	}
	a.note("fanlight: %v", err)
	var usage usageError
	if errors.As(err, &usage) || errors.Is(err, service.ErrConfig) {
		a.note("See %q.", cmd.CommandPath()+" --help")
		return exitUsage
	}
	return exitFailure
}

func newRoot(a *app) *cobra.Command {
	root := group("fanlight", "RTSP cameras to browsers over WebRTC")
	root.Long = `Fanlight brings RTSP cameras to browsers over WebRTC, on one machine or a fleet.

Each setting is a flag (--log-level), an environment variable
(FANLIGHT_LOG_LEVEL) and a key in the YAML file that --config names
(log-level: debug). Flags win over variables, variables over the file.

Exit codes: 0 success, 1 failure, 2 wrong command line or configuration.`
	root.SilenceErrors = true
	root.SilenceUsage = true
	root.CompletionOptions.DisableDefaultCmd = true
	root.PersistentFlags().String(service.ConfigFlag, "", "YAML `file` with settings")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		cfg := service.Config{Environ: a.environ, Known: append(settings(root), tokenSetting)}
		return cfg.Apply(cmd.Flags())
	}
	root.AddCommand(
		newUp(a), newControlPlane(a), newMediaNode(a), newSignaling(a),
		newCamera(a), newNode(a), newCluster(a), newBench(a),
		newSimcam(a), newToken(a), newCerts(a), newHealth(a), newVersion(a),
	)
	usageArgs(root)
	return root
}

// settings returns the names of all flags of all commands.
func settings(cmd *cobra.Command) []string {
	var names []string
	cmd.LocalFlags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	for _, c := range cmd.Commands() {
		names = append(names, settings(c)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// group makes a command that only has others.
func group(use, short string) *cobra.Command {
	return &cobra.Command{
		Use:   use,
		Short: short,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			hint := ""
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				hint = fmt.Sprintf("; did you mean %q?", s[0])
			}
			return fmt.Errorf("%q is not a command of %q%s", args[0], cmd.CommandPath(), hint)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
}

// usageArgs makes usage errors of what the commands say of their arguments.
func usageArgs(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError{err}
			}
			return nil
		}
	}
	if cmd.SuggestionsMinimumDistance == 0 {
		cmd.SuggestionsMinimumDistance = 2
	}
	for _, c := range cmd.Commands() {
		usageArgs(c)
	}
}

// oneName is the Args of commands that take a resource's name.
func oneName(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return fmt.Errorf("the name of the %s is missing", what)
		case len(args) > 1:
			return fmt.Errorf("one name of a %s is expected, not %d arguments (%s)", what, len(args), strings.Join(args, " "))
		default:
			return nil
		}
	}
}

// logFlags adds the flags of commands that keep a log.
func (a *app) logFlags(flags *pflag.FlagSet) {
	flags.StringVar(&a.logFormat, "log-format", "text", "log as `text|json`")
	flags.StringVar(&a.logLevel, "log-level", "info", "log from `debug|info|warn|error`")
}

func (a *app) logger() (*slog.Logger, error) {
	log, err := service.NewLogger(a.stderr, a.logFormat, a.logLevel)
	if err != nil {
		return nil, usageError{err}
	}
	return log, nil
}
