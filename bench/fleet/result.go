package fleet

import (
	"math"
	"time"
)

// Result is what was measured. The first seven are the point of it.
type Result struct {
	Register     float64 `json:"register_s"`        // to create all cameras
	AllAssigned  float64 `json:"all_assigned_s"`    // from the first node to all cameras at one
	NodeDeathP50 float64 `json:"node_death_p50_ms"` // from a node's death to its last camera at another
	NodeDeathP99 float64 `json:"node_death_p99_ms"`
	LeaderDeath  float64 `json:"leader_death_ms"` // from the leader's death to the next camera at a node
	MovesOnJoin  int     `json:"moves_on_join"`   // of cameras, because one node joined
	RSS          float64 `json:"rss_mib"`         // of all replicas together, at the most

	RSSMax float64 `json:"rss_max_mib"` // of the largest replica, at the most
	CPU    float64 `json:"cpu_s"`       // of all replicas, over the whole measurement
	CPUMax float64 `json:"cpu_max_s"`   // of the busiest replica

	JoinSettled      float64 `json:"join_settled_s"`     // from the join to its last move
	MovesOnReconnect int     `json:"moves_on_reconnect"` // while all nodes reconnected, once
	MovesOnLeader    int     `json:"moves_on_leader_death"`

	Cameras  int `json:"cameras"`
	Nodes    int `json:"nodes"`
	Replicas int `json:"replicas"`
	Deaths   int `json:"deaths"` // nodes ended

	// How much else the machine had to do: what the simulated nodes used, and how
	// busy all cores were, 0 to 1; 0 where it is not known.
	NodesCPU    float64 `json:"simulation_cpu_s"`
	MachineBusy float64 `json:"machine_busy"`
	Duration    float64 `json:"duration_s"`
}

func seconds(d time.Duration) float64 { return round(d.Seconds(), 3) }

func milliseconds(d time.Duration) float64 {
	return round(float64(d)/float64(time.Millisecond), 1)
}

func round(v float64, digits int) float64 {
	p := math.Pow10(digits)
	return math.Round(v*p) / p
}

// percentile returns the value that so many percent of a sorted list do not
// exceed: the nearest rank.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}
