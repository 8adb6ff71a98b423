package fanout

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	joiners   = 8                      // viewers that join at a time
	settle    = time.Second            // after the joins and before the first turn
	resume    = 300 * time.Millisecond // after cameras go on and before the server's turn
	quiet     = 50 * time.Millisecond  // after cameras freeze and before the floor's turn
	warmUp    = 200 * time.Millisecond // of the floor, before its first turn counts
	perSource = 200                    // viewers of one loopback address, so that a gateway's limit for an address is none of ours

	checkedEach  = 8  // spot-checked viewers of a camera
	checkedTotal = 64 // of all, unless there are more cameras
	leaveLimit   = 20 * time.Second
	joinTries    = 5 // of a viewer: a server that is overloaded refuses some
)

// bench is one measurement. Its methods are called one after another.
type bench struct {
	cfg     Config
	server  server
	own     *own // nil: a server of others
	id      *identity
	readers []*reader
	clients []*http.Client

	viewers []*viewer
	sinks   [][]string // addresses, of each camera
	before  usage      // at the end of the row before
}

// usage is what a server occupies.
type usage struct{ memory, goroutines float64 } // KiB

func run(ctx context.Context, cfg Config) (rows []Row, err error) {
	b := &bench{cfg: cfg, sinks: make([][]string, cfg.Cameras)}
	if b.id, err = newIdentity(); err != nil {
		return nil, err
	}
	if cfg.WHEP != "" {
		b.server = guest{url: cfg.WHEP, process: cfg.PID}
	} else {
		if b.own, err = newOwn(&b.cfg, cfg.Cameras*cfg.Viewers[len(cfg.Viewers)-1]); err != nil {
			return nil, err
		}
		b.server = b.own
		defer func() { err = errors.Join(err, b.own.stop()) }()
		b.say("starting the server and %d cameras", cfg.Cameras)
		if err := b.own.start(ctx); err != nil {
			return nil, err
		}
	}
	reading, cancel := context.WithCancel(context.Background())
	var work sync.WaitGroup
	failed := make(chan error, runtime.GOMAXPROCS(0)) // has a value when a reader has ended before its time
	defer func() {
		b.leave()
		cancel()
		work.Wait()
	}()
	for range min(2, runtime.GOMAXPROCS(0)) {
		r, err := newReader()
		if err != nil {
			return nil, err
		}
		b.readers = append(b.readers, r)
		work.Go(func() {
			if err := r.run(reading); err != nil {
				failed <- err
			}
		})
	}
	if b.before, err = b.usage(ctx); err != nil {
		return nil, err
	}
	for i, n := range cfg.Viewers {
		row, err := b.row(ctx, n, i == len(cfg.Viewers)-1)
		select {
		case e := <-failed:
			err = errors.Join(err, e)
		default:
		}
		if err != nil {
			return rows, fmt.Errorf("%d viewers: %w", n*cfg.Cameras, err)
		}
		rows = append(rows, row)
		cfg.Done(row)
	}
	return rows, nil
}

func (b *bench) say(format string, args ...any) { b.cfg.Progress(fmt.Sprintf(format, args...)) }

// row measures with n viewers of each camera.
func (b *bench) row(ctx context.Context, n int, last bool) (Row, error) {
	row := Row{Viewers: n * b.cfg.Cameras, Cameras: b.cfg.Cameras}
	come := row.Viewers - len(b.viewers)
	b.say("%d viewers come", come)
	began := time.Now()
	var err error
	if row.Rejoined, err = b.join(ctx, come); err != nil {
		return row, err
	}
	row.JoinsPerSecond = round(float64(come)/time.Since(began).Seconds(), 1)
	if err := errors.Join(b.spotCheck(), b.addSinks(come)); err != nil {
		return row, err
	}
	if err := sleep(ctx, settle); err != nil {
		return row, err
	}
	shape, err := b.record(ctx)
	if err != nil {
		return row, err
	}
	floor, err := startFloor(ctx, b.cfg.Binary, &floorSetup{Period: shape.period(), Frames: shape.frames, Cameras: b.sinks})
	if err != nil {
		return row, err
	}
	b.say("%d packets a picture, one each %v", packets(shape.frames)/len(shape.frames), shape.period().Round(time.Millisecond))
	err = b.turns(ctx, &row, floor, last)
	if err := errors.Join(err, floor.close()); err != nil {
		return row, err
	}
	now, err := b.usage(ctx)
	if err != nil {
		return row, err
	}
	row.MemoryPerViewer = round((now.memory-b.before.memory)/float64(come), 1)
	row.GoroutinesPerViewer = round((now.goroutines-b.before.goroutines)/float64(come), 2)
	b.before = now
	return row, nil
}

func packets(frames [][]int) (n int) {
	for _, f := range frames {
		n += len(f)
	}
	return n
}

// join has as many viewers join, some at a time, spread over the cameras. It
// returns how often one had to try again.
func (b *bench) join(ctx context.Context, come int) (again int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.gather(false)
	defer b.gather(true)
	first := len(b.viewers)
	b.viewers = append(b.viewers, make([]*viewer, come)...)
	for len(b.clients)*perSource < len(b.viewers) {
		b.clients = append(b.clients, b.newClient(len(b.clients)))
	}
	var tries atomic.Int64
	b.each(ctx, first, func(i int) {
		n, err := b.joinOne(ctx, i)
		if err != nil {
			cancel(fmt.Errorf("viewer %d: %w", i+1, err))
		}
		tries.Add(int64(n))
	})
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	return int(tries.Load()) - come, nil
}

// gather says whether readers may let packets gather.
func (b *bench) gather(on bool) {
	for _, r := range b.readers {
		r.mu.Lock()
		r.patient = on
		r.mu.Unlock()
	}
}

// joinOne has the i-th viewer join, and returns how often it tried.
func (b *bench) joinOne(ctx context.Context, i int) (tries int, err error) {
	lossy := 0.0
	// Spread evenly: the share of lossy ones grows by Lossy with each.
	if int(float64(i+1)*b.cfg.Lossy) > int(float64(i)*b.cfg.Lossy) {
		lossy = b.cfg.Loss
	}
	for tries = 1; ; tries++ {
		v, err := newViewer(b.readers[i%len(b.readers)], i%b.cfg.Cameras, lossy)
		if err != nil {
			return tries, err
		}
		err = v.join(ctx, b.client(i), b.server.endpoint(v.camera), b.id)
		if err == nil {
			b.viewers[i] = v
			return tries, nil
		}
		v.leave(ctx, b.client(i))
		var refused *refusal
		if tries == joinTries || ctx.Err() != nil || errors.As(err, &refused) && refused.final() {
			return tries, err
		}
		b.say("viewer %d tries again: %v", i+1, err)
	}
}

// each calls f for all viewers from one on, for some at a time, until ctx ends.
func (b *bench) each(ctx context.Context, first int, f func(i int)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range joiners {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := first; i < len(b.viewers) && ctx.Err() == nil; i++ {
		next <- i
	}
	close(next)
	wg.Wait()
}

// newClient returns the i-th HTTP client. To a server of our own it comes from
// an address of its own.
func (b *bench) newClient(i int) *http.Client {
	d := &net.Dialer{}
	if b.own != nil {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+i>>8), byte(1+i))}
	}
	return &http.Client{Transport: &http.Transport{DialContext: d.DialContext, MaxIdleConnsPerHost: joiners}}
}

func (b *bench) client(viewer int) *http.Client { return b.clients[viewer/perSource] }

// leave says goodbye for all viewers, some at a time.
func (b *bench) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	b.gather(false)
	b.each(ctx, 0, func(i int) {
		if v := b.viewers[i]; v != nil { // one that never joined has left already
			v.leave(ctx, b.client(i))
		}
	})
	for _, c := range b.clients {
		c.CloseIdleConnections()
	}
}

// spotCheck chooses the viewers whose packets are decrypted: of each camera
// some, from its first viewer to its last.
func (b *bench) spotCheck() error {
	per := len(b.viewers) / b.cfg.Cameras
	most := min(per, max(1, min(checkedEach, checkedTotal/b.cfg.Cameras)))
	chosen := make(map[int]bool, most)
	for i := range most {
		at := per / 2
		if most > 1 {
			at = i * (per - 1) / (most - 1)
		}
		chosen[at] = true
	}
	for i, v := range b.viewers {
		check := chosen[i/b.cfg.Cameras]
		if err := v.socket.timestamps(check); err != nil {
			return fmt.Errorf("have packets stamped: %w", err)
		}
		v.reader.mu.Lock()
		v.checked, v.picture = check, picture{}
		v.reader.mu.Unlock()
	}
	return nil
}

// addSinks opens as many sockets for the floor.
func (b *bench) addSinks(n int) error {
	have := len(b.viewers) - n
	for i := have; i < have+n; i++ {
		s, err := newSocket(&sink{})
		if err != nil {
			return err
		}
		if err := b.readers[i%len(b.readers)].add(s); err != nil {
			s.close()
			return err
		}
		b.sinks[i%b.cfg.Cameras] = append(b.sinks[i%b.cfg.Cameras], s.addr.String())
	}
	return nil
}

// record notes how a viewer's packets make up pictures.
func (b *bench) record(ctx context.Context) (*shape, error) {
	i := slices.IndexFunc(b.viewers, func(v *viewer) bool { return v.lossy == 0 })
	if i < 0 {
		i = 0
	}
	v := b.viewers[i]
	s := &shape{}
	v.reader.mu.Lock()
	v.shape = s
	v.reader.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, joinLimit)
	defer cancel()
	for {
		err := sleep(ctx, lookAgain)
		v.reader.mu.Lock()
		done := len(s.frames) == shapeFrames
		if done || err != nil {
			v.shape = nil
		}
		n := len(s.frames)
		v.reader.mu.Unlock()
		if done {
			return s, nil
		}
		if err != nil {
			return nil, fmt.Errorf("a viewer has got %d pictures: %w", n, err)
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
	var profile chan error
	if last && b.own != nil && b.cfg.CPUProfile != "" {
		profile = make(chan error, 1)
		whole := time.Duration(rounds) * (length + min(length, floorTurn) + resume + quiet)
		go func() { profile <- b.own.profile(ctx, whole, b.cfg.CPUProfile) }()
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
	if profile != nil {
		if err := <-profile; err != nil {
			return err
		}
	}
	row.CPUPerPacket, row.FloorPerPacket = round(median(cpu), 3), round(median(least), 3)
	row.Ratio = round(median(cpu)/median(least), 2)
	row.ServerCores, row.LoadCores = round(median(cores), 2), round(median(load), 2)
	return b.tally(row, begin, b.countDrops(b.count()))
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

// usage returns what the server occupies now.
func (b *bench) usage(ctx context.Context) (u usage, err error) {
	if u.memory, err = residentMemory(b.server.pid()); err == nil && b.own != nil {
		u.goroutines, err = b.own.goroutines(ctx)
	}
	return u, err
}

// residentMemory returns a process' resident memory in KiB (proc_pid_statm(5)).
func residentMemory(pid int) (float64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	if err != nil {
		return 0, fmt.Errorf("memory of process %d: %w", pid, err)
	}
	fields := bytes.Fields(data)
	if len(fields) < 2 {
		return 0, fmt.Errorf("memory of process %d: %q", pid, data)
	}
	pages, err := strconv.ParseFloat(string(fields[1]), 64)
	return pages * float64(os.Getpagesize()) / 1024, err
}
