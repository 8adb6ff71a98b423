package fanout

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	resume = 300 * time.Millisecond // after cameras go on and before the server's turn
	quiet  = 50 * time.Millisecond  // after cameras freeze and before the floor's turn
	warmUp = 200 * time.Millisecond // of the floor, before its first turn counts

	recorded    = 8 // viewers from whose packets the floor's are made
	recordLimit = 30 * time.Second
)

// record notes how packets make up pictures: those of the viewer that has enough
// of them first, of some that are looked at.
func (b *bench) record(ctx context.Context) (*shape, error) {
	shapes := make(map[*viewer]*shape)
	for i := range min(recorded, len(b.viewers)) {
		shapes[b.viewers[i*len(b.viewers)/min(recorded, len(b.viewers))]] = &shape{}
	}
	set := func(v *viewer, s *shape) {
		v.reader.mu.Lock()
		v.shape = s
		v.reader.mu.Unlock()
	}
	for v, s := range shapes {
		set(v, s)
	}
	defer func() {
		for v := range shapes {
			set(v, nil)
		}
	}()
	before := b.count()
	ctx, cancel := context.WithTimeout(ctx, recordLimit)
	defer cancel()
	for {
		err := sleep(ctx, lookAgain)
		for v, s := range shapes {
			v.reader.mu.Lock()
			done := len(s.frames) == shapeFrames
			v.reader.mu.Unlock()
			if done {
				return s, nil // nothing is added to it any more
			}
		}
		if err != nil {
			silent := 0
			for i, now := range b.count().viewers {
				if now.packets == before.viewers[i].packets {
					silent++
				}
			}
			return nil, fmt.Errorf("no viewer that was looked at has got %d pictures, and %d of %d got nothing: %w", shapeFrames, silent, len(b.viewers), err)
		}
	}
}

// counts are sums over all viewers.
type counts struct {
	packets, checks, late, repaired uint64
	viewers                         []viewerCounts
}

type viewerCounts struct{ packets, expected, got, drops uint64 }

func (b *bench) count() counts {
	var c counts
	for _, r := range b.readers {
		r.mu.Lock()
	}
	for _, v := range b.viewers {
		c.packets += v.packets
		c.checks += v.checks
		c.late += v.seq.late
		c.repaired += v.repaired
		c.viewers = append(c.viewers, viewerCounts{packets: v.packets, expected: v.seq.expected(), got: v.seq.got})
	}
	for _, r := range b.readers {
		r.mu.Unlock()
	}
	return c
}

// countDrops adds what the sockets dropped.
func (b *bench) countDrops(c counts) counts {
	for i, v := range b.viewers {
		c.viewers[i].drops = v.socket.drops()
	}
	return c
}

// turns measures server and floor in turns.
func (b *bench) turns(ctx context.Context, row *Row, floor *floorProcess, last bool) error {
	rounds := max(1, int((b.cfg.Duration+serverTurn/2)/serverTurn))
	length := b.cfg.Duration / time.Duration(rounds)
	profiled := func() error { return nil }
	if last && b.own != nil && b.cfg.CPUProfile != "" {
		whole := time.Duration(rounds) * (length + min(length, floorTurn) + resume + quiet)
		profiling, cancel := context.WithCancel(ctx)
		profiled = b.profile(profiling, whole)
		defer func() {
			cancel()
			_ = profiled() // asked for below, unless there is another error
		}()
	}
	if _, err := floor.turn(warmUp); err != nil {
		return err
	}
	begin := b.countDrops(b.count())
	b.takeLatencies()
	var cpu, least, cores, load []float64
	for i := range rounds {
		t, err := b.serverTurn(ctx, length)
		if err != nil {
			return err
		}
		f, err := b.floorTurn(ctx, floor, min(length, floorTurn))
		if err != nil {
			return err
		}
		b.say("%d viewers, turn %d of %d: %.2f µs a packet, the floor %.2f", row.Viewers, i+1, rounds, t.cpu, f)
		cpu, least, cores, load = append(cpu, t.cpu), append(least, f), append(cores, t.cores), append(load, t.load)
		row.Packets += t.packets
	}
	if err := profiled(); err != nil {
		return err
	}
	row.CPUPerPacket, row.FloorPerPacket = round(median(cpu), 3), round(median(least), 3)
	row.Ratio = round(median(cpu)/median(least), 2)
	row.ServerCores, row.LoadCores = round(median(cores), 2), round(median(load), 2)
	return b.tally(row, begin, b.countDrops(b.count()))
}

// profile begins to fetch the server's profile. The function that it returns
// waits until it is there; a second call returns the same.
func (b *bench) profile(ctx context.Context, length time.Duration) (wait func() error) {
	done := make(chan error, 1)
	go func() { done <- b.own.profile(ctx, length, b.cfg.CPUProfile) }()
	return sync.OnceValue(func() error { return <-done })
}

// turn is what a turn of the server cost.
type turn struct {
	cpu, cores, load float64 // µs a packet, cores, cores
	packets          uint64
}

func (b *bench) serverTurn(ctx context.Context, length time.Duration) (t turn, err error) {
	b.sample(true)
	defer b.sample(false)
	cpu, err := processCPU(b.server.pid())
	if err != nil {
		return t, err
	}
	own, err := processCPU(os.Getpid())
	if err != nil {
		return t, err
	}
	began, before := time.Now(), b.count().packets
	if err := sleep(ctx, length); err != nil {
		return t, err
	}
	took, after := time.Since(began), b.count().packets
	cpu2, err := processCPU(b.server.pid())
	if err != nil {
		return t, err
	}
	own2, err := processCPU(os.Getpid())
	if err != nil {
		return t, err
	}
	if t.packets = after - before; t.packets == 0 {
		return t, errors.New("no packets come")
	}
	t.cpu = float64((cpu2 - cpu).Nanoseconds()) / 1e3 / float64(t.packets)
	t.cores, t.load = float64(cpu2-cpu)/float64(took), float64(own2-own)/float64(took)
	return t, nil
}

// floorTurn returns the floor's µs a packet, while the cameras are frozen.
func (b *bench) floorTurn(ctx context.Context, floor *floorProcess, length time.Duration) (float64, error) {
	if err := b.server.freeze(ctx, true); err != nil {
		return 0, err
	}
	if err := sleep(ctx, quiet); err != nil {
		return 0, err
	}
	res, err := floor.turn(length)
	if err := errors.Join(err, b.server.freeze(ctx, false)); err != nil {
		return 0, err
	}
	if res.Packets == 0 {
		return 0, errors.New("the floor has sent nothing")
	}
	return float64(res.CPU.Nanoseconds()) / 1e3 / float64(res.Packets), sleep(ctx, resume)
}

// sample says whether latencies count.
func (b *bench) sample(on bool) {
	for _, r := range b.readers {
		r.mu.Lock()
		r.sampling = on
		r.mu.Unlock()
	}
}

// takeLatencies returns the latencies of whole pictures, and of stamps, since
// the last call, sorted.
func (b *bench) takeLatencies() (whole, stamps []time.Duration) {
	for _, r := range b.readers {
		r.mu.Lock()
		whole, stamps = append(whole, r.latency...), append(stamps, r.stamps...)
		r.latency, r.stamps = nil, nil
		r.mu.Unlock()
	}
	slices.Sort(whole)
	slices.Sort(stamps)
	return whole, stamps
}

// tally adds up what came of the packets from one count to another.
func (b *bench) tally(row *Row, begin, end counts) error {
	for i, e := range end.viewers {
		a := begin.viewers[i]
		missing := int64(e.expected-a.expected) - int64(e.got-a.got)
		dropped := min(max(missing, 0), int64(e.drops-a.drops)*maxSegments)
		row.Lost += uint64(max(missing, 0) - dropped)
		row.Dropped += uint64(dropped)
		if e.packets == a.packets {
			row.Silent++
		}
	}
	row.Late, row.Repaired, row.Checked = end.late-begin.late, end.repaired-begin.repaired, end.checks-begin.checks
	whole, stamps := b.takeLatencies()
	row.LatencyP50, row.LatencyP99, row.StampP50 = ms(quantile(whole, 0.5)), ms(quantile(whole, 0.99)), ms(quantile(stamps, 0.5))
	for _, r := range b.readers {
		r.mu.Lock()
		err := r.failed
		r.mu.Unlock()
		if err != nil {
			return err
		}
	}
	switch {
	case row.Checked == 0:
		return errors.New("no packet was decrypted")
	case b.own != nil && len(whole) == 0:
		return errors.New("no picture with a time stamp was whole")
	case b.own != nil:
		return b.own.crashed()
	}
	return nil
}
