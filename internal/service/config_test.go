package service

import (
	"errors"
	"io/fs"
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/pflag"
)

// settings is one flag of each kind.
type settings struct {
	HTTP    string
	Demo    int
	Open    bool
	Wait    time.Duration
	Origins []string
	Labels  map[string]string
}

func flagSet(s *settings) *pflag.FlagSet {
	f := pflag.NewFlagSet("test", pflag.ContinueOnError)
	f.StringVar(&s.HTTP, "http", "default", "")
	f.IntVar(&s.Demo, "demo", 1, "")
	f.BoolVar(&s.Open, "open-door", false, "")
	f.DurationVar(&s.Wait, "wait", time.Second, "")
	f.StringSliceVar(&s.Origins, "origin", []string{"default"}, "")
	f.StringToStringVar(&s.Labels, "label", nil, "")
	f.String(ConfigFlag, "", "")
	return f
}

// apply parses a command line and completes it; file is the content of any
// file.
func apply(args []string, env []string, file string) (settings, error) {
	var s settings
	flags := flagSet(&s)
	if err := flags.Parse(args); err != nil {
		return s, err
	}
	c := Config{Environ: env, Known: []string{"token", "http", "camera"}, ReadFile: func(path string) ([]byte, error) {
		if path != "f.yaml" {
			return nil, &fs.PathError{Op: "open", Path: path, Err: fs.ErrNotExist}
		}
		return []byte(file), nil
	}}
	return s, c.Apply(flags)
}

const allInFile = `
http: file
demo: 3
open-door: true
wait: 3s
origin: [file-a, "file,b"]
label: {a: file, b: "2"}
`

func TestConfigLayers(t *testing.T) {
	allInEnv := []string{"FANLIGHT_HTTP=env", "FANLIGHT_DEMO=2", "FANLIGHT_OPEN_DOOR=true", "FANLIGHT_WAIT=2s", "FANLIGHT_ORIGIN=env-a,env-b", "FANLIGHT_LABEL=a=env", "HTTP=not ours"}
	allFlags := []string{"--http=flag", "--demo=4", "--open-door=false", "--wait=4s", "--origin=flag", "--label=a=flag"}
	defaults := settings{"default", 1, false, time.Second, []string{"default"}, nil}
	ofFile := settings{"file", 3, true, 3 * time.Second, []string{"file-a", "file,b"}, map[string]string{"a": "file", "b": "2"}}
	ofEnv := settings{"env", 2, true, 2 * time.Second, []string{"env-a", "env-b"}, map[string]string{"a": "env"}}
	ofFlags := settings{"flag", 4, false, 4 * time.Second, []string{"flag"}, map[string]string{"a": "flag"}}
	fromFile := []string{"--config=f.yaml"}
	for _, tt := range []struct {
		name string
		args []string
		env  []string
		file string
		want settings
	}{
		{"nothing", nil, nil, "", defaults},
		{"file", fromFile, nil, allInFile, ofFile},
		{"file by variable", nil, []string{"FANLIGHT_CONFIG=f.yaml"}, allInFile, ofFile},
		{"variables", nil, allInEnv, "", ofEnv},
		{"variables before the file", fromFile, allInEnv, allInFile, ofEnv},
		{"flags before both", append(allFlags, fromFile...), allInEnv, allInFile, ofFlags},
		{"empty variables", nil, []string{"FANLIGHT_HTTP=", "FANLIGHT_DEMO=", "FANLIGHT_HTPP="}, "", defaults},
		{"empty file", fromFile, nil, "", defaults},
		{"file of comments", fromFile, nil, "# nothing\n", defaults},
		{"file of null", fromFile, nil, "---\n~\n", defaults},
		{"null value", fromFile, nil, "http:\n", defaults},
		{"list as one value", fromFile, nil, "origin: a,b\nlabel: x=y", settings{"default", 1, false, time.Second, []string{"a", "b"}, map[string]string{"x": "y"}}},
		{"empty list", fromFile, nil, "origin: []\n", settings{"default", 1, false, time.Second, nil, nil}},
		{"anchor", fromFile, nil, "http: &a x\norigin: [*a, y]\nlabel: {k: *a}\n", settings{"x", 1, false, time.Second, []string{"x", "y"}, map[string]string{"k": "x"}}},
		{"variables of other commands", nil, []string{"FANLIGHT_TOKEN=x", "FANLIGHT_CAMERA=y"}, "", defaults},
		{"variables of Kubernetes", nil, []string{
			"FANLIGHT_SERVICE_HOST=10.0.0.1", "FANLIGHT_SERVICE_PORT=80", "FANLIGHT_SERVICE_PORT_GRPC=80", "FANLIGHT_PORT=tcp://10.0.0.1:80",
			"FANLIGHT_PORT_80_TCP=x", "FANLIGHT_PORT_80_TCP_ADDR=x", "FANLIGHT_PORT_80_TCP_PROTO=x", "FANLIGHT_GATEWAY_SERVICE_HOST=x", "FANLIGHT_GATEWAY_PORT_8189_UDP_PORT=x",
		}, "", defaults},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := apply(tt.args, tt.env, tt.file)
			if err != nil {
				t.Fatal(err)
			}
			if len(got.Labels) == 0 {
				got.Labels = nil
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("settings (-want +got):\n%s", d)
			}
		})
	}
}

func TestConfigErrors(t *testing.T) {
	fromFile := []string{"--config=f.yaml"}
	for name, tt := range map[string]struct {
		args []string
		env  []string
		file string
		want string
	}{
		"misspelt variable":   {nil, []string{"FANLIGHT_HTPP=x"}, "", `the environment variable FANLIGHT_HTPP is not a setting; did you mean "FANLIGHT_HTTP"?`},
		"strange variable":    {nil, []string{"FANLIGHT_COMPLETELY_DIFFERENT=x"}, "", `the environment variable FANLIGHT_COMPLETELY_DIFFERENT is not a setting`},
		"bad variable":        {nil, []string{"FANLIGHT_DEMO=many"}, "", `FANLIGHT_DEMO: "many": `},
		"misspelt key":        {fromFile, nil, "demo: 1\nopendoor: true\n", `f.yaml, line 2: "opendoor" is not a setting; did you mean "open-door"?`},
		"key with underscore": {fromFile, nil, "open_door: true\n", `did you mean "open-door"?`},
		"other command's key": {fromFile, nil, "camera: x\n", `f.yaml, line 1: camera is a setting of other commands, not of this one`},
		"config in a file":    {fromFile, nil, "config: f.yaml\n", `"config" is not a setting`},
		"key twice":           {fromFile, nil, "demo: 1\ndemo: 2\n", "demo is there twice"},
		"bad value":           {fromFile, nil, "\nwait: soon\n", `f.yaml, line 2, wait: "soon": `},
		"list for one value":  {fromFile, nil, "http: [a, b]\n", "line 1, http: must be a single value"},
		"mapping for a list":  {fromFile, nil, "origin: {a: b}\n", "origin: must be a list"},
		"list of lists":       {fromFile, nil, "origin: [[a]]\n", "must be a list of single values"},
		"list for a mapping":  {fromFile, nil, "label: [a]\n", "label: must be a mapping"},
		"mapping of lists":    {fromFile, nil, "label: {a: [b]}\n", "must be a mapping to single values"},
		"not YAML":            {fromFile, nil, "http: [", "f.yaml: "},
		"not a mapping":       {fromFile, nil, "- http\n", "line 1: must be a mapping of settings"},
		"no file":             {[]string{"--config=none.yaml"}, nil, "", "none.yaml"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := apply(tt.args, tt.env, tt.file)
			if !errors.Is(err, ErrConfig) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error is %v, want one with %q", err, tt.want)
			}
			if strings.Contains(tt.want, "FANLIGHT_COMPLETELY") && strings.Contains(err.Error(), "mean") {
				t.Errorf("%v: nothing is near", err)
			}
		})
	}
}

func TestEditDistance(t *testing.T) {
	for pair, want := range map[[2]string]int{
		{"", ""}: 0, {"a", ""}: 1, {"", "ab"}: 2, {"http", "http"}: 0, {"htpp", "http"}: 1, {"htp", "http"}: 1, {"hxxp", "http"}: 2, {"tthp", "http"}: 2, {"abcd", ""}: 4,
	} {
		if got := editDistance(pair[0], pair[1]); got != want {
			t.Errorf("distance of %q is %d, want %d", pair, got, want)
		}
	}
}

func FuzzConfigFile(f *testing.F) {
	f.Add(allInFile)
	f.Add("a: &a [*a]")
	f.Add("? [a]\n: b")
	f.Add("<<: {http: x}")
	f.Add("label: {? [x] : y}")
	f.Fuzz(func(t *testing.T, file string) {
		got, err := apply([]string{"--config=f.yaml"}, nil, file)
		if err != nil && !errors.Is(err, ErrConfig) {
			t.Errorf("%v is not a configuration error", err)
		}
		_ = maps.Clone(got.Labels)
	})
}
