package session

import (
	"math"
	"testing"
	"time"
)

func TestNTPTime(t *testing.T) {
	tests := []struct {
		at   time.Time
		want uint64
	}{
		{time.Unix(0, 0), 2_208_988_800 << 32},
		{time.Unix(1, 500_000_000), 2_208_988_801<<32 | 1<<31},
		{time.Unix(0, 999_999_999), 2_208_988_800<<32 | 0xfffffffb},
	}
	for _, tt := range tests {
		if got := ntpTime(tt.at); got != tt.want {
			t.Errorf("ntpTime(%v) = %x, want %x", tt.at, got, tt.want)
		}
	}
}

// Timestamps and times go over into each other, forwards, backwards and across
// the wrap.
func TestTicks(t *testing.T) {
	tests := []struct {
		d    time.Duration
		rate uint32
		want uint32
	}{
		{0, 90000, 0},
		{time.Second, 90000, 90000},
		{-time.Second, 8000, math.MaxUint32 - 7999},
		{20 * time.Millisecond, 48000, 960},
	}
	for _, tt := range tests {
		if got := ticks(tt.d, tt.rate); got != tt.want {
			t.Errorf("ticks(%v, %d) = %d, want %d", tt.d, tt.rate, got, tt.want)
		}
		if got := span(tt.want, tt.rate); got != tt.d {
			t.Errorf("span(%d, %d) = %v, want %v", tt.want, tt.rate, got, tt.d)
		}
	}
	if got, want := ticks(math.MaxInt64, 90000), uint32(3600*90000); got != want {
		t.Errorf("a clock gone mad gives %d ticks, want %d", got, want)
	}
}
