package fanout

import (
	"math"
	"slices"
	"time"
)

// Row is what was measured with a number of viewers. The names of its fields in
// JSON are for programs, and stay.
type Row struct {
	Viewers         int     `json:"viewers"`             // of all cameras together
	CPUPerPacket    float64 `json:"cpu_us_per_packet"`   // of the server, for each packet that arrived
	FloorPerPacket  float64 `json:"floor_us_per_packet"` // of the floor, for each packet that it sent
	Ratio           float64 `json:"ratio"`               // of the two
	Lost            uint64  `json:"lost"`                // packets that never arrived, without those dropped
	LatencyP50      float64 `json:"latency_p50_ms"`      // from the camera's stamp to the whole picture; 0: no stamps were seen
	LatencyP99      float64 `json:"latency_p99_ms"`
	MemoryPerViewer float64 `json:"kib_per_viewer"` // of the server's resident memory, by the viewers that came with this row

	GoroutinesPerViewer float64 `json:"goroutines_per_viewer"` // likewise
	JoinsPerSecond      float64 `json:"joins_per_second"`      // from the first offer to the last DTLS handshake of the row

	Silent   int `json:"silent_viewers"` // that got nothing while they should have: the server has lost them
	Rejoined int `json:"rejoined"`       // attempts to join that failed, and were followed by another

	Cameras     int     `json:"cameras"`
	Packets     uint64  `json:"packets"`         // that arrived while the server was measured
	Dropped     uint64  `json:"dropped"`         // by the viewers' own sockets: the generator's fault
	Late        uint64  `json:"late"`            // came after later ones
	Repaired    uint64  `json:"repaired"`        // came again after a NACK
	StampP50    float64 `json:"stamp_p50_ms"`    // from the camera's stamp to the packet that carries it
	Checked     uint64  `json:"checked"`         // packets that were decrypted
	ServerCores float64 `json:"server_cores"`    // that the server used
	LoadCores   float64 `json:"generator_cores"` // that this process used meanwhile
}

// median returns the value in the middle, or the mean of the two there; 0 of
// none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// quantile returns the value that a share q of the sorted values does not
// exceed; 0 of none.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	i := int(math.Ceil(q*float64(len(sorted)))) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}

// round rounds to a number of digits after the point.
func round(v float64, digits int) float64 {
	p := math.Pow10(digits)
	return math.Round(v*p) / p
}

// ms is a duration in milliseconds, to a hundredth.
func ms(d time.Duration) float64 { return round(float64(d)/float64(time.Millisecond), 2) }
