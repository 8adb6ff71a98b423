//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
)

// matrix is what TestCompatibility has seen. The cells' keys are a camera's and
// a client's name with a space between.
type matrix struct {
	versions map[string]string // of the clients, as they say
	cells    map[string]outcome
	said     map[string]string // the text beside a reason
}

// renewal is the command that writes the document.
const renewal = "make compatibility"

// check writes the document, or compares its matrix with what was seen. Versions
// and texts change with the machine, and are not compared.
func (m *matrix) check(t *testing.T) {
	t.Helper()
	if len(m.cells) < len(compatCameras)*len(compatClients) {
		t.Log("not every client has played: the document is left as it is")
		return
	}
	if *update {
		if t.Failed() {
			t.Fatalf("%s is not written: the cells are not what they should be", compatDoc)
		}
		if err := os.WriteFile(compatDoc, []byte(m.document()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	doc, err := os.ReadFile(compatDoc)
	if err != nil {
		t.Fatalf("%v; %q writes it", err, renewal)
	}
	if !strings.Contains(string(doc), m.table()) {
		t.Errorf("the matrix in %s is not what was seen; %q renews it. Seen:\n%s", compatDoc, renewal, m.table())
	}
}

// table returns the matrix in Markdown.
func (m *matrix) table() string {
	var b strings.Builder
	b.WriteString("| camera |")
	for _, client := range compatClients {
		fmt.Fprintf(&b, " %s |", client.name)
	}
	b.WriteString("\n|---|" + strings.Repeat("---|", len(compatClients)) + "\n")
	for _, camera := range compatCameras {
		fmt.Fprintf(&b, "| %s |", camera.Title)
		for _, client := range compatClients {
			cell := m.cells[camera.Name+" "+client.name]
			switch cell {
			case plays, withSound, silent, gaps, thinned:
				fmt.Fprintf(&b, " %s |", cell)
			default:
				fmt.Fprintf(&b, " `%s` |", cell)
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}

// document returns docs/compatibility.md.
func (m *matrix) document() string {
	var b strings.Builder
	fmt.Fprintf(&b, `# Compatibility

Which cameras play in which clients, as `+"`TestCompatibility`"+` of [e2e](../e2e) has seen it. The test generates this page; do not edit it.
Every run of the end-to-end tests compares the matrix with what it sees, and fails if they differ; `+"`%[1]s`"+` renews the page.

Each camera is a clip made by FFmpeg in a loop, sent by gst-rtsp-server over RTSP to one Fanlight in one process, and each client watches
all of them over WHEP, by default settings on both sides.

- **plays**: at least %[2]d pictures were decoded within %[3]d s of joining; *with sound*: and at least %[4]d buffers or packets of sound.
- **plays, no sound**: the picture does, and the camera's status says why there is no sound.
- **plays, B-frames left out**: the picture does, and the camera's status says what becomes of its B-frames.
- **plays with gaps**: pictures that the loss has damaged are left out until the next keyframe. How many are left differs from run to run; where it is fewer than %[2]d, the verdict blames the camera, or its status has how many packets were lost.
- Anything else is the reason that the client, or the camera's state, was given: [errors.md](errors.md) explains it.

`, renewal, compatFrames, int(compatPatience.Seconds()), compatSounds)
	b.WriteString(m.table())
	b.WriteString("\n## The clients\n\n")
	for _, client := range compatClients {
		fmt.Fprintf(&b, "- **%s**, %s. %s\n", client.name, m.versions[client.name], client.about)
	}
	b.WriteString("\n## The cameras\n\nAll but the one with 4K have 15 pictures a second with a keyframe each second; where nothing is said, H264 baseline over RTSP in TCP.\n\n")
	for _, camera := range compatCameras {
		fmt.Fprintf(&b, "- **%s**: %s\n", camera.Title, camera.About)
	}
	b.WriteString("\n## What was said\n\nThe texts beside the reasons, which may be put into other words at any time.\n\n")
	m.writeSaid(&b)
	return b.String()
}

// writeSaid writes each text once, with the cameras and the clients that it was
// about.
func (m *matrix) writeSaid(b *strings.Builder) {
	var texts []string
	cameras, clients := map[string][]string{}, map[string][]string{}
	for _, camera := range compatCameras {
		for _, client := range compatClients {
			cell := camera.Name + " " + client.name
			text, ok := m.said[cell]
			if !ok || m.cells[cell] == gaps {
				continue
			}
			if cameras[text] == nil {
				texts = append(texts, text)
			}
			if !slices.Contains(cameras[text], camera.Title) {
				cameras[text] = append(cameras[text], camera.Title)
			}
			if !slices.Contains(clients[text], client.name) {
				clients[text] = append(clients[text], client.name)
			}
		}
	}
	for _, text := range texts {
		of := cameras[text][0]
		if n := len(cameras[text]); n > 1 {
			of = fmt.Sprintf("%d cameras", n)
		}
		fmt.Fprintf(b, "- %s in %s: %s\n", of, strings.Join(clients[text], ", "), text)
	}
}
