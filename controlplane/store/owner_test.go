package store

import (
	"io/fs"
	"testing"
)

func TestMayHaveKey(t *testing.T) {
	const self = 65532
	for _, tt := range []struct {
		mode  fs.FileMode
		owner int
		want  bool
	}{
		{0o600, self, true},
		{0o400, self, true},
		{0o640, self, false},
		{0o640, 0, true}, // root's, for a group: how Kubernetes and systemd hand secrets over
		{0o440, 0, true},
		{0o660, 0, false},
		{0o644, 0, false},
		{0o604, 0, false},
		{0o440, 1000, false},
		{0o440, -1, false},
	} {
		if got := mayHaveKey(tt.mode, tt.owner, self); got != tt.want {
			t.Errorf("mode %04o of %d: %v", tt.mode, tt.owner, got)
		}
	}
	if mayHaveKey(0o440, 0, 0) {
		t.Error("root needs no group to read its own file")
	}
}
