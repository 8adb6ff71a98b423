package service

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"
)

// EnvPrefix begins the name of every environment variable that is read.
const EnvPrefix = "FANLIGHT_"

// ConfigFlag is the flag that names the configuration file.
const ConfigFlag = "config"

// EnvName returns the variable of a flag: FANLIGHT_LOG_LEVEL for "log-level".
func EnvName(flag string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// ErrConfig is wrapped by errors in the configuration that was given.
var ErrConfig = errors.New("configuration")

// Config completes flags from the environment and a YAML file.
//
// A setting has the same name in all three: the flag --log-level is the
// variable FANLIGHT_LOG_LEVEL and the key log-level. A flag wins over the
// variable, the variable over the file, the file over the default; the values
// of a list are not merged. An empty variable counts as not set.
//
// In the file a list is a YAML list, and a flag of the form key=value is a
// mapping. Only the command's own settings are allowed there. A variable that
// begins with FANLIGHT_ must be a setting of some command, so that a
// misspelling is not ignored; those that Kubernetes makes for a Service named
// "fanlight" are.
type Config struct {
	Environ []string // as os.Environ gives it
	// Known names the settings of all commands, for variables that are not the
	// command's own.
	Known []string
	// ReadFile reads the file. nil: os.ReadFile.
	ReadFile func(string) ([]byte, error)
}

// Apply sets the flags that were not given on the command line. Every error
// wraps [ErrConfig] and names the variable, or the file and line.
func (c Config) Apply(flags *pflag.FlagSet) error {
	env, err := c.env(flags)
	if err != nil {
		return err
	}
	path, _ := flags.GetString(ConfigFlag)
	if path == "" {
		path = env[ConfigFlag]
	}
	file, err := c.file(flags, path)
	if err != nil {
		return err
	}
	flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || err != nil {
			return
		}
		if v, ok := env[f.Name]; ok {
			if serr := flags.Set(f.Name, v); serr != nil {
				err = fmt.Errorf("%w: %s: %w", ErrConfig, EnvName(f.Name), cause(serr))
			}
		} else if node, ok := file[f.Name]; ok {
			if serr := setNode(flags, f, node); serr != nil {
				err = fmt.Errorf("%w: %s, line %d, %s: %w", ErrConfig, path, node.Line, f.Name, cause(serr))
			}
		}
	})
	return err
}

// cause returns pflag's reason without the flag's name, which the caller says
// in the user's terms.
func cause(err error) error {
	var invalid *pflag.InvalidValueError
	if errors.As(err, &invalid) && invalid.GetValue() != "" {
		return fmt.Errorf("%q: %w", invalid.GetValue(), errors.Unwrap(invalid))
	}
	return err
}

// kubernetes matches the variables that Kubernetes sets in every pod for a
// Service whose name begins with "fanlight".
var kubernetes = regexp.MustCompile(`^FANLIGHT_(.+_)?(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// env returns the variables that are set, by flag.
func (c Config) env(flags *pflag.FlagSet) (map[string]string, error) {
	names := map[string]string{}
	flags.VisitAll(func(f *pflag.Flag) {
		if configurable(f.Name) || f.Name == ConfigFlag {
			names[EnvName(f.Name)] = f.Name
		}
	})
	var all []string
	for _, k := range c.Known {
		all = append(all, EnvName(k))
	}
	for n := range names {
		all = append(all, n)
	}
	set := map[string]string{}
	for _, kv := range c.Environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, EnvPrefix) || value == "" {
			continue
		}
		if flag, ok := names[name]; ok {
			set[flag] = value
		} else if !slices.Contains(all, name) && !kubernetes.MatchString(name) {
			return nil, fmt.Errorf("%w: the environment variable %s is not a setting%s", ErrConfig, name, didYouMean(name, all))
		}
	}
	return set, nil
}

// configurable tells whether a flag may be set in the file.
func configurable(flag string) bool { return flag != "help" && flag != ConfigFlag }

// file returns the settings in the file, by flag.
func (c Config) file(flags *pflag.FlagSet, path string) (map[string]*yaml.Node, error) {
	if path == "" {
		return nil, nil
	}
	read := c.ReadFile
	if read == nil {
		read = os.ReadFile
	}
	data, err := read(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("%w: %s: %s", ErrConfig, path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if doc.Kind == 0 { // an empty file
		return nil, nil
	}
	root := doc.Content[0]
	if root.Kind == yaml.ScalarNode && root.Tag == "!!null" {
		return nil, nil
	}
	if root.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("%w: %s, line %d: must be a mapping of settings, as \"http: 127.0.0.1:8080\"", ErrConfig, path, root.Line)
	}
	var valid []string
	flags.VisitAll(func(f *pflag.Flag) {
		if configurable(f.Name) {
			valid = append(valid, f.Name)
		}
	})
	set := map[string]*yaml.Node{}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key := root.Content[i]
		switch {
		case !slices.Contains(valid, key.Value) && slices.Contains(c.Known, key.Value):
			return nil, fmt.Errorf("%w: %s, line %d: %s is a setting of other commands, not of this one", ErrConfig, path, key.Line, key.Value)
		case !slices.Contains(valid, key.Value):
			return nil, fmt.Errorf("%w: %s, line %d: %q is not a setting%s", ErrConfig, path, key.Line, key.Value, didYouMean(key.Value, valid))
		case set[key.Value] != nil:
			return nil, fmt.Errorf("%w: %s, line %d: %s is there twice", ErrConfig, path, key.Line, key.Value)
		}
		set[key.Value] = root.Content[i+1]
	}
	return set, nil
}

// setNode sets a flag from YAML.
func setNode(flags *pflag.FlagSet, f *pflag.Flag, node *yaml.Node) error {
	node = resolved(node)
	slice, isSlice := f.Value.(pflag.SliceValue)
	isMap := f.Value.Type() == "stringToString"
	switch {
	case node.Kind == yaml.ScalarNode && node.Tag == "!!null":
		return nil
	case node.Kind == yaml.ScalarNode:
		return flags.Set(f.Name, node.Value)
	case node.Kind == yaml.SequenceNode && isSlice:
		var values []string
		for _, n := range node.Content {
			if n = resolved(n); n.Kind != yaml.ScalarNode {
				return errors.New("must be a list of single values")
			}
			values = append(values, n.Value)
		}
		if err := slice.Replace(values); err != nil {
			return err
		}
		f.Changed = true
		return nil
	case node.Kind == yaml.MappingNode && isMap:
		for i := 0; i+1 < len(node.Content); i += 2 {
			key, value := resolved(node.Content[i]), resolved(node.Content[i+1])
			if key.Kind != yaml.ScalarNode || value.Kind != yaml.ScalarNode {
				return errors.New("must be a mapping to single values")
			}
			if err := flags.Set(f.Name, key.Value+"="+value.Value); err != nil {
				return err
			}
		}
		return nil
	case isSlice:
		return errors.New("must be a list")
	case isMap:
		return errors.New("must be a mapping")
	default:
		return errors.New("must be a single value")
	}
}

// resolved returns what an alias stands for, and any other node itself.
func resolved(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

// didYouMean returns "; did you mean X?" for the valid name that is nearest,
// if one is near enough to be meant.
func didYouMean(name string, valid []string) string {
	best, distance := "", 1+max(2, len(name)/4)
	slices.Sort(valid)
	for _, v := range valid {
		if d := editDistance(name, v); d < distance {
			best, distance = v, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + strconv.Quote(best) + "?"
}

// editDistance returns how many insertions, deletions, substitutions and swaps
// of neighbours make b of a (optimal string alignment).
func editDistance(a, b string) int {
	rows := make([][]int, len(a)+1)
	for i := range rows {
		rows[i] = make([]int, len(b)+1)
		rows[i][0] = i
	}
	for j := range rows[0] {
		rows[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			rows[i][j] = min(rows[i-1][j]+1, rows[i][j-1]+1, rows[i-1][j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				rows[i][j] = min(rows[i][j], rows[i-2][j-2]+1)
			}
		}
	}
	return rows[len(a)][len(b)]
}
