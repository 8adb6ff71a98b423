package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"
)

// patience is for what takes milliseconds on a machine that has nothing else
// to do.
const patience = 60 * time.Second

func TestMain(m *testing.M) {
	testscript.Main(leakChecked{m}, map[string]func(){"fanlight": main})
}

// leakChecked runs the tests and then looks for goroutines that they left.
type leakChecked struct{ m *testing.M }

func (l leakChecked) Run() int {
	code := l.m.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// TestScripts runs the command lines in testdata/script. Next to testscript's
// own commands there are:
//
//	start NAME LINES CMD…   start a server and wait for its first LINES lines,
//	                        whose last words become $NAME_1, $NAME_2 …
//	halt NAME               SIGTERM; it must end within 5 s with code 0. What it
//	                        wrote is in NAME.log (errors) and NAME.out
//	crash NAME              kill -9
//	terminate NAME          SIGTERM alone
//	await NAME              it must end by itself within 30 s with code 0
//	rc CODE CMD…            run a command that must end with that code
//	eventually PATTERN CMD… run a command until its output matches
//	absent TEXT PATH…       no file under the paths may have the text in it
func TestScripts(t *testing.T) {
	var mu sync.Mutex
	servers := map[*testscript.TestScript]map[string]*server{}
	of := func(ts *testscript.TestScript) map[string]*server {
		mu.Lock()
		defer mu.Unlock()
		if servers[ts] == nil {
			servers[ts] = map[string]*server{}
		}
		return servers[ts]
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script",
		Setup: func(env *testscript.Env) error {
			env.Setenv("LOOPBACK", "--http=127.0.0.1:0 --grpc=127.0.0.1:0 --media=127.0.0.1:0")
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"start": func(ts *testscript.TestScript, _ bool, args []string) { of(ts)[args[0]] = start(ts, args) },
			"halt": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(of(ts)[args[0]].end(syscall.SIGTERM))
			},
			"crash": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(of(ts)[args[0]].end(syscall.SIGKILL))
			},
			"terminate": func(ts *testscript.TestScript, _ bool, args []string) {
				ts.Check(of(ts)[args[0]].cmd.Process.Signal(syscall.SIGTERM))
			},
			"await": func(ts *testscript.TestScript, _ bool, args []string) {
				s := of(ts)[args[0]]
				select {
				case <-s.done:
					ts.Check(s.err)
				case <-time.After(30 * time.Second):
					ts.Fatalf("%s still runs", s.name)
				}
			},
			"rc":         exitCode,
			"eventually": eventually,
			"absent":     absent,
		},
	})
}

// server is a process of the test.
type server struct {
	name string
	cmd  *exec.Cmd
	log  string // path
	done chan struct{}
	err  error // of the process, after done
}

// command makes a command in the script's directory and environment. $LOOPBACK
// is three arguments.
func command(ts *testscript.TestScript, args []string) *exec.Cmd {
	var split []string
	for _, a := range args {
		if strings.HasPrefix(a, "--http=127.0.0.1:0 ") {
			split = append(split, strings.Fields(a)...)
		} else {
			split = append(split, a)
		}
	}
	path := split[0]
	for _, dir := range filepath.SplitList(ts.Getenv("PATH")) {
		if p := filepath.Join(dir, split[0]); fileExists(p) {
			path = p
			break
		}
	}
	cmd := exec.Command(path, split[1:]...)
	cmd.Dir = ts.MkAbs(".")
	cmd.Env = environment(ts)
	return cmd
}

func fileExists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && !info.IsDir()
}

// environment returns what the scripts' commands need to know.
func environment(ts *testscript.TestScript) []string {
	var env []string
	for _, k := range []string{
		"PATH", "HOME", "TMPDIR", "GORACE", "FANLIGHT_TOKEN", "FANLIGHT_LOG_LEVEL", "FANLIGHT_LOG_FORMAT",
		"FANLIGHT_HTTP", "FANLIGHT_GRPC", "FANLIGHT_TLS_CERT", "FANLIGHT_TLS_KEY", "FANLIGHT_TLS_CA",
		"FANLIGHT_SERVER", "FANLIGHT_LABEL", "FANLIGHT_HTPP", "FANLIGHT_SERVICE_HOST", "FANLIGHT_OUTPUT",
	} {
		if v := ts.Getenv(k); v != "" {
			env = append(env, k+"="+v)
		}
	}
	return env
}

func start(ts *testscript.TestScript, args []string) *server {
	if len(args) < 3 {
		ts.Fatalf("usage: start NAME LINES CMD…")
	}
	lines, err := strconv.Atoi(args[1])
	ts.Check(err)
	s := &server{name: args[0], cmd: command(ts, args[2:]), log: ts.MkAbs(args[0] + ".log"), done: make(chan struct{})}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	s.cmd.Stderr = log
	stdout, err := os.OpenFile(ts.MkAbs(args[0]+".out"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	ts.Check(err)
	out, err := s.cmd.StdoutPipe()
	ts.Check(err)
	ts.Check(s.cmd.Start())
	said := make(chan string, 100)
	go func() {
		defer close(s.done)
		for sc := bufio.NewScanner(io.TeeReader(out, stdout)); sc.Scan(); {
			select {
			case said <- sc.Text():
			default: // nobody listens any more
			}
		}
		close(said)
		s.err = s.cmd.Wait()
		_ = errors.Join(log.Close(), stdout.Close())
	}()
	ts.Defer(func() {
		_ = s.cmd.Process.Kill()
		<-s.done
		if data, err := os.ReadFile(s.log); err == nil && strings.Contains(string(data), "DATA RACE") {
			ts.Fatalf("%s: %s", s.name, data)
		}
	})
	timeout := time.After(patience)
	for i := range lines {
		select {
		case line, ok := <-said:
			if !ok {
				<-s.done
				data, _ := os.ReadFile(s.log)
				ts.Fatalf("%s ended (%v):\n%s", s.name, s.err, data)
			}
			words := strings.Fields(line)
			ts.Setenv(fmt.Sprintf("%s_%d", s.name, i+1), words[len(words)-1])
		case <-timeout:
			data, _ := os.ReadFile(s.log)
			ts.Fatalf("%s says nothing:\n%s", s.name, data)
		}
	}
	return s
}

// end ends a server and waits for it.
func (s *server) end(sig syscall.Signal) error {
	began := time.Now()
	if err := s.cmd.Process.Signal(sig); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	select {
	case <-s.done:
	case <-time.After(patience):
		return fmt.Errorf("%s still runs", s.name)
	}
	if sig == syscall.SIGKILL {
		return nil
	}
	if d := time.Since(began); d > 5*time.Second {
		return fmt.Errorf("%s took %v to stop", s.name, d)
	}
	if s.err != nil {
		return fmt.Errorf("%s: %w", s.name, s.err)
	}
	return nil
}

// exitCode runs a command and checks its code; what it wrote is in the script's
// stdout and stderr.
func exitCode(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: rc CODE CMD…")
	}
	want, err := strconv.Atoi(args[0])
	ts.Check(err)
	cmd := command(ts, args[1:])
	cmd.Stdout, cmd.Stderr = ts.Stdout(), ts.Stderr()
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		ts.Fatalf("%v", err)
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		ts.Fatalf("exit code is %d, want %d", got, want)
	}
}

func eventually(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: eventually PATTERN CMD…")
	}
	pattern, err := regexp.Compile("(?m)" + args[0])
	ts.Check(err)
	for deadline := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		out, err := command(ts, args[1:]).CombinedOutput()
		if err == nil && pattern.Match(out) {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("never matched %q:\n%s", args[0], out)
		}
	}
}

func absent(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: absent TEXT PATH…")
	}
	seen := 0
	for _, root := range args[1:] {
		ts.Check(filepath.WalkDir(ts.MkAbs(root), func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			data, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			seen += len(data)
			if bytes.Contains(data, []byte(args[0])) {
				return fmt.Errorf("%q is in %s", args[0], path)
			}
			return nil
		}))
	}
	if seen == 0 {
		ts.Fatalf("there is nothing to look through")
	}
}
