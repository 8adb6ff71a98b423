package deploy

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// What the READMEs have people type is accepted.
func TestReadmeCommands(t *testing.T) {
	tried := 0
	for _, name := range []string{"README.md", "helm/fanlight/README.md"} {
		data, err := os.ReadFile(filepath.Join(root, "deploy", name))
		if err != nil {
			t.Fatal(err)
		}
		command := regexp.MustCompile(`(?m)^    (?:fanlight|docker compose run --rm fanlight) (.*)$`)
		for _, m := range command.FindAllStringSubmatch(string(data), -1) {
			line, _, _ := strings.Cut(m[1], "  #")
			args := strings.Fields(line)
			// The name of a camera comes before the flags.
			var flags, words []string
			for i := range args {
				if strings.HasPrefix(args[i], "--") {
					flags = append(flags, args[i:]...)
					break
				}
				words = append(words, args[i])
			}
			if len(words) > 2 {
				words = words[:2]
			}
			tried++
			if err := tryProcess(process{where: name + ": " + m[0], args: append(words, flags...)}); err != nil {
				t.Error(err)
			}
		}
	}
	if tried < 7 {
		t.Errorf("only %d commands found", tried)
	}
}
