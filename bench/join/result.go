package join

import (
	"math"
	"slices"
	"time"
)

// maxReasons bounds how many failures a row describes.
const maxReasons = 5

// Row is what was measured with one interval between keyframes. Times are in
// milliseconds unless they say otherwise. The names of its fields in JSON are for
// programs, and stay.
type Row struct {
	Interval float64 `json:"keyframe_interval_s"`
	Joins    int     `json:"joins"`
	Failed   int     `json:"failed"` // of these, those without a picture

	// From the offer to the first whole keyframe.
	P50 float64 `json:"p50_ms"`
	P95 float64 `json:"p95_ms"`
	Max float64 `json:"max_ms"`

	// The parts of that, each from the end of the one before.
	Answer   Spread `json:"answer"`       // POST or watch, to the answer
	Connect  Spread `json:"connected"`    // ICE and DTLS
	Packet   Spread `json:"first_packet"` // to the first packet of media
	Keyframe Spread `json:"keyframe"`     // to the keyframe's last

	// From the offer to the first picture that is as new as those of a viewer who
	// has watched for long. 0 where pictures have no stamps.
	Live       Spread  `json:"live"`
	NotLive    int     `json:"not_live"` // joins whose pictures stayed behind
	CatchUp    float64 `json:"catch_up_frames_p50"`
	CatchUpMax int     `json:"catch_up_frames_max"` // pictures before that one

	// Ten seconds after a join, of those that stayed so long: how much later the
	// same pictures came than to the viewer who has watched for long, medians of
	// each join, and of these the median and the greatest by size; and the median
	// of how much later they came than their RTP timestamps say, counted from the
	// first picture.
	Compared        int     `json:"compared"`
	LatencyDiff     float64 `json:"latency_difference_ms"`
	LatencyDiffMax  float64 `json:"latency_difference_max_ms"`
	TimestampsShift float64 `json:"timestamp_shift_ms"`

	Failures []string `json:"failures,omitempty"` // of the first that failed, why
}

// Spread is how a time is spread over the joins.
type Spread struct {
	P50 float64 `json:"p50_ms"`
	P95 float64 `json:"p95_ms"`
	Max float64 `json:"max_ms"`
}

// sum makes a row of joins.
func sum(interval time.Duration, list []outcome) Row {
	r := Row{Interval: interval.Seconds(), Joins: len(list)}
	var total, answer, connect, packet, keyframe, live, laters, shifts []time.Duration
	var catchUp []int
	for i := range list {
		o := &list[i]
		if o.err != nil {
			r.Failed++
			if len(r.Failures) < maxReasons {
				r.Failures = append(r.Failures, o.err.Error())
			}
			continue
		}
		total, answer, connect = append(total, o.total), append(answer, o.answer), append(connect, o.connect)
		packet, keyframe = append(packet, o.packet), append(keyframe, o.keyframe)
		switch {
		case !o.stamped:
		case o.live == 0:
			r.NotLive++
		default:
			live, catchUp = append(live, o.live), append(catchUp, o.catchUp)
		}
		if o.compared {
			laters, shifts = append(laters, o.later), append(shifts, o.shift)
		}
	}
	all := spread(total)
	r.P50, r.P95, r.Max = all.P50, all.P95, all.Max
	r.Answer, r.Connect, r.Packet, r.Keyframe, r.Live = spread(answer), spread(connect), spread(packet), spread(keyframe), spread(live)
	if len(catchUp) > 0 {
		slices.Sort(catchUp)
		r.CatchUp, r.CatchUpMax = float64(catchUp[(len(catchUp)-1)/2]), catchUp[len(catchUp)-1]
	}
	r.Compared = len(laters)
	r.LatencyDiff, r.TimestampsShift = ms(quantile(laters, 0.5)), ms(quantile(shifts, 0.5))
	for _, d := range laters {
		if v := ms(d); math.Abs(v) > math.Abs(r.LatencyDiffMax) {
			r.LatencyDiffMax = v
		}
	}
	return r
}

func spread(values []time.Duration) Spread {
	return Spread{ms(quantile(values, 0.5)), ms(quantile(values, 0.95)), ms(quantile(values, 1))}
}

// quantile returns the value that a share q of the values does not exceed; 0 of
// none.
func quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	i := int(math.Ceil(q*float64(len(s)))) - 1
	return s[min(max(i, 0), len(s)-1)]
}

// ms is a duration in milliseconds, to a tenth.
func ms(d time.Duration) float64 {
	return float64(d.Round(100*time.Microsecond)) / float64(time.Millisecond)
}
