package fanout

import (
	"encoding/json"
	"errors"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMedianAndQuantile(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 2}, 2}, {[]float64{4, 1, 3, 2}, 2.5}} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("median of %v: %v, want %v", tt.values, got, tt.want)
		}
	}
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, tt := range []struct {
		values []time.Duration
		q      float64
		want   time.Duration
	}{{nil, 0.5, 0}, {hundred[:1], 0.99, 1}, {hundred, 0.5, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred, 0, 1}} {
		if got := quantile(tt.values, tt.q); got != tt.want {
			t.Errorf("quantile %v of %d values: %d, want %d", tt.q, len(tt.values), got, tt.want)
		}
	}
}

// The names of a row's fields are for programs.
func TestRowJSON(t *testing.T) {
	data, err := json.Marshal(Row{})
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]float64
	if err := json.Unmarshal(data, &fields); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{
		"viewers", "cpu_us_per_packet", "floor_us_per_packet", "ratio", "lost", "latency_p50_ms", "latency_p99_ms", "kib_per_viewer",
		"goroutines_per_viewer", "joins_per_second", "dropped",
	} {
		if _, ok := fields[name]; !ok {
			t.Errorf("a row has no %q: %s", name, data)
		}
	}
}

func TestSequence(t *testing.T) {
	tests := []struct {
		name     string
		numbers  []uint16
		expected uint64
		got      uint64
		late     uint64
		skipped  int
		rolled   uint32
	}{
		{"nothing", nil, 0, 0, 0, 0, 0},
		{"in order", []uint16{7, 8, 9}, 3, 3, 0, 0, 0},
		{"a gap", []uint16{7, 10}, 4, 2, 0, 2, 0},
		{"a gap that is filled", []uint16{7, 10, 9, 8}, 4, 4, 2, 2, 0},
		{"again", []uint16{7, 8, 8, 7}, 2, 2, 0, 0, 0},
		{"before the first", []uint16{7, 6, 8}, 2, 2, 0, 0, 0},
		{"numbers start over", []uint16{65534, 65535, 0, 1}, 4, 4, 0, 0, 1},
		{"a gap where they start over", []uint16{65534, 1, 65535}, 4, 3, 1, 2, 1},
		{"a gap larger than the window", []uint16{7, 2007, 2006, 900}, 2001, 3, 1, 1999, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var s sequence
			skipped := 0
			for _, n := range tt.numbers {
				_, gap := s.add(n)
				skipped += gap
			}
			if s.expected() != tt.expected || s.got != tt.got || s.late != tt.late || skipped != tt.skipped || s.rollovers() != tt.rolled {
				t.Errorf("expected %d, got %d, late %d, skipped %d, rolled over %d; want %d, %d, %d, %d, %d",
					s.expected(), s.got, s.late, skipped, s.rollovers(), tt.expected, tt.got, tt.late, tt.skipped, tt.rolled)
			}
		})
	}
}

// A packet that comes late is known although numbers have long gone on, and one
// that was there is not counted again.
func TestSequenceWindow(t *testing.T) {
	var s sequence
	for n := range 200_000 {
		if n%10 == 5 && n > 0 {
			continue
		}
		if what, _ := s.add(uint16(n)); what != inOrder {
			t.Fatalf("packet %d: %v", n, what)
		}
		if n > window && n%10 == 9 {
			if what, _ := s.add(uint16(n - 504)); what != late {
				t.Fatalf("packet %d after %d: %v, want late", n-504, n, what)
			}
			if what, _ := s.add(uint16(n - 503)); what != again {
				t.Fatalf("packet %d after %d: %v, want again", n-503, n, what)
			}
		}
	}
}

const serverAnswer = `v=0
o=- 1 2 IN IP4 127.0.0.1
s=-
t=0 0
a=group:BUNDLE 0
a=fingerprint:sha-256 00:01:FE
m=video 9 UDP/TLS/RTP/SAVPF 96 97
c=IN IP4 0.0.0.0
a=ice-ufrag:abcd
a=ice-pwd:secretsecretsecretsecret
a=setup:passive
a=mid:0
a=sendonly
a=rtpmap:96 H264/90000
a=rtpmap:97 rtx/90000
a=fmtp:97 apt=96
a=candidate:1 1 tcp 1671430143 127.0.0.1 8189 typ host tcptype passive
a=candidate:2 1 udp 2130706431 fe80::1 8189 typ host
a=candidate:3 1 udp 2130706431 127.0.0.1 8189 typ host
a=end-of-candidates
`

func TestParseAnswer(t *testing.T) {
	text := strings.ReplaceAll(serverAnswer, "\n", "\r\n")
	got, err := parseAnswer(text)
	if err != nil {
		t.Fatal(err)
	}
	want := answer{
		ufrag: "abcd", pwd: "secretsecretsecretsecret", remote: netip.MustParseAddrPort("127.0.0.1:8189"),
		fingerprint: []byte{0, 1, 0xfe}, media: 96, rtx: 97,
	}
	if diff := cmp.Diff(&want, got, cmp.AllowUnexported(answer{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got, err = parseAnswer(strings.Replace(text, "setup:passive", "setup:active", 1)); err != nil || !got.active {
		t.Errorf("setup active: %+v, %v", got, err)
	}
	for name, change := range map[string][2]string{
		"no SDP":         {"v=0", "hello"},
		"refused":        {"m=video 9", "m=video 0"},
		"no credentials": {"a=ice-pwd", "a=x-pwd"},
		"another hash":   {"sha-256", "sha-1"},
		"no codec":       {"H264", "VP8"},
		"no candidate":   {"127.0.0.1 8189 typ host\r\na=end", "::1 8189 typ host\r\na=end"},
	} {
		if _, err := parseAnswer(strings.Replace(text, change[0], change[1], 1)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestConfig(t *testing.T) {
	cfg := Config{Binary: "x", Dir: "y"}
	if err := cfg.defaults(); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(cfg.Viewers, []int{1, 10, 100, 300, 1000}) || cfg.Cameras != 1 || cfg.Bitrate != 2_000_000 || cfg.Duration != 10*time.Second {
		t.Errorf("defaults %+v", cfg)
	}
	for name, bad := range map[string]Config{
		"no binary":         {Dir: "y"},
		"descending":        {Binary: "x", Dir: "y", Viewers: []int{2, 1}},
		"no viewers":        {Binary: "x", Dir: "y", Viewers: []int{0}},
		"negative":          {Binary: "x", Dir: "y", Cameras: -1},
		"all lost":          {Binary: "x", Dir: "y", Loss: 1},
		"no process":        {Binary: "x", Dir: "y", WHEP: "http://127.0.0.1:1/"},
		"no such processes": {Binary: "/nonexistent/fanlight", Dir: t.TempDir()},
	} {
		if _, err := Run(t.Context(), bad); err == nil {
			t.Errorf("%s: no error", name)
		} else if errors.Is(err, ErrUnsupported) {
			t.Skip(err)
		}
	}
}
