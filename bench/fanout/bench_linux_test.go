package fanout

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
	"unsafe"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"
	"golang.org/x/sys/unix"

	"fanlight/internal/simcam"
)

func small(t *testing.T) Config {
	return Config{
		Binary: program, Dir: t.TempDir(), Viewers: []int{1, 2}, Duration: time.Second,
		Progress: func(line string) { t.Log(line) },
	}
}

// check looks at what must be so of any row, however slow the machine.
func check(t *testing.T, r Row, viewers int) {
	t.Helper()
	t.Logf("%+v", r)
	if r.Viewers != viewers || r.Silent != 0 || r.Packets == 0 || r.Checked == 0 || r.CPUPerPacket <= 0 || r.FloorPerPacket <= 0 || r.Ratio <= 0 || r.JoinsPerSecond <= 0 {
		t.Errorf("row %+v", r)
	}
	if r.LatencyP50 <= 0 || r.LatencyP99 < r.LatencyP50 || r.StampP50 <= 0 {
		t.Errorf("latency: stamp %v ms, whole picture %v ms, p99 %v ms", r.StampP50, r.LatencyP50, r.LatencyP99)
	}
}

// A small measurement with real processes, two cameras, and a profile.
func TestRun(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	cfg := small(t)
	cfg.Cameras, cfg.GOMAXPROCS, cfg.CPUProfile = 2, 1, filepath.Join(cfg.Dir, "cpu")
	var told []Row
	cfg.Done = func(r Row) { told = append(told, r) }
	rows, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2 || len(told) != 2 {
		t.Fatalf("%d rows, told of %d", len(rows), len(told))
	}
	for i, r := range rows {
		check(t, r, 2*(i+1))
		if r.Lost > r.Packets/10 {
			t.Errorf("%d packets of %d lost on loopback", r.Lost, r.Packets)
		}
		t.Logf("%v goroutines a viewer", r.GoroutinesPerViewer)
	}
	if data, err := os.ReadFile(cfg.CPUProfile); err != nil || !bytes.HasPrefix(data, []byte{0x1f, 0x8b}) {
		t.Errorf("the profile has %d bytes: %v", len(data), err)
	}
}

// A server that was not started here is measured as well; viewers that lose
// packets get them again.
func TestGuestAndLoss(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	host := small(t)
	if err := host.defaults(); err != nil {
		t.Fatal(err)
	}
	o, err := newOwn(&host, 10)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := o.stop(); err != nil {
			t.Error(err)
		}
	}()
	if err := o.start(ctx); err != nil {
		t.Fatal(err)
	}
	cfg := small(t)
	cfg.Viewers, cfg.WHEP, cfg.PID, cfg.Loss, cfg.Lossy = []int{2}, o.endpoint(0), o.pid(), 0.1, 0.5
	rows, err := Run(ctx, cfg)
	if err != nil {
		t.Fatal(err)
	}
	check(t, rows[0], 2)
	if rows[0].Repaired == 0 {
		t.Error("no packet was repaired")
	}
	cfg.WHEP = strings.Replace(cfg.WHEP, camera(0), "nobody", 1)
	if _, err := Run(ctx, cfg); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a camera that is not there: %v", err)
	}
}

// What the floor sends is what it was told to, and comes.
func TestFloor(t *testing.T) {
	r, stop := startReader(t)
	defer stop()
	setup := floorSetup{Period: 10 * time.Millisecond, Frames: [][]int{{1228, 1228, 300}, {100}}, Cameras: make([][]string, 2)}
	var sizes []*sized
	for i := range 6 {
		to := &sized{n: make(map[int]uint64)}
		s, err := newSocket(to, true)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.add(s); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, to)
		setup.Cameras[i%2] = append(setup.Cameras[i%2], s.addr.String())
	}
	var in, out bytes.Buffer
	enc := json.NewEncoder(&in)
	for _, v := range []any{setup, floorOrder{Length: 100 * time.Millisecond}, floorOrder{Length: 100 * time.Millisecond}} {
		if err := enc.Encode(v); err != nil {
			t.Fatal(err)
		}
	}
	if err := Floor(&in, &out); err != nil {
		t.Fatal(err)
	}
	// Ten pictures a camera and turn, every other of three packets.
	dec := json.NewDecoder(&out)
	for range 2 {
		var res floorTurnResult
		if err := dec.Decode(&res); err != nil || res.Packets != 6*(5*3+5) || res.CPU <= 0 {
			t.Errorf("a turn: %+v, %v; want 120 packets", res, err)
		}
	}
	for i, s := range sizes {
		deadline := time.Now().Add(10 * time.Second)
		for {
			r.mu.Lock()
			done := s.n[1228] == 20 && s.n[300] == 10 && s.n[100] == 10 && len(s.n) == 3
			got := len(s.n)
			r.mu.Unlock()
			if done {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("socket %d has got %v (%d sizes)", i, s.n, got)
			}
			time.Sleep(time.Millisecond)
		}
	}
	for _, bad := range []string{"", "x", "{}", `{"period":1,"frames":[[1]],"cameras":[["nowhere"]]}`} {
		if err := Floor(strings.NewReader(bad), io.Discard); err == nil {
			t.Errorf("%q: no error", bad)
		}
	}
}

// sized counts datagrams by their size.
type sized struct{ n map[int]uint64 }

func (s *sized) datagram(b []byte, _ int64) { s.n[len(b)]++ }

func startReader(t *testing.T) (*reader, func()) {
	t.Helper()
	r, err := newReader(true)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.run(ctx); err != nil {
			t.Error(err)
		}
	})
	return r, func() { cancel(); wg.Wait() }
}

// Datagrams have the kernel's time, and those that a full socket drops are
// known.
func TestSocket(t *testing.T) {
	r, stop := startReader(t)
	defer stop()
	to := &timed{at: make(chan int64, 1)}
	s, err := newSocket(to, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.timestamps(true); err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	if err := s.send([]byte("x"), s.addr); err != nil {
		t.Fatal(err)
	}
	if err := r.add(s); err != nil {
		t.Fatal(err)
	}
	if at := time.Unix(0, <-to.at); at.Before(before.Add(-time.Millisecond)) || at.After(time.Now()) {
		t.Errorf("a datagram of %v came at %v", before, at)
	}
	idle, err := newSocket(to, true)
	if err != nil {
		t.Fatal(err)
	}
	defer idle.close()
	if n := idle.drops(); n != 0 {
		t.Errorf("%d drops of nothing", n)
	}
	for range 20_000 {
		if err := s.send(make([]byte, 1200), idle.addr); err != nil {
			t.Fatal(err)
		}
		if idle.drops() > 10 {
			return
		}
	}
	t.Error("a socket that nobody reads drops nothing")
}

type timed struct{ at chan int64 }

func (t *timed) datagram(_ []byte, at int64) {
	select {
	case t.at <- at:
	default:
	}
}

func TestParseControl(t *testing.T) {
	message := func(level, kind int32, value []byte) []byte {
		h := unix.Cmsghdr{Level: level, Type: kind}
		h.SetLen(unix.CmsgLen(len(value)))
		b := append([]byte(nil), unsafe.Slice((*byte)(unsafe.Pointer(&h)), unix.SizeofCmsghdr)...)
		b = append(b, value...)
		return append(b, make([]byte, unix.CmsgSpace(len(value))-len(b))...)
	}
	size := message(unix.SOL_UDP, unix.UDP_GRO, binary.NativeEndian.AppendUint32(nil, 1228))
	ts := unix.NsecToTimespec(1_234_567_890_123)
	stamp := message(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, unsafe.Slice((*byte)(unsafe.Pointer(&ts)), unsafe.Sizeof(ts)))
	for _, tt := range []struct {
		name    string
		b       []byte
		segment int
		at      int64
	}{
		{"none", nil, 0, 0},
		{"both", append(append([]byte(nil), stamp...), size...), 1228, 1_234_567_890_123},
		{"the other way", append(append([]byte(nil), size...), stamp...), 1228, 1_234_567_890_123},
		{"cut", size[:len(size)-6], 0, 0},
		{"zeros", make([]byte, 64), 0, 0},
	} {
		if segment, at := parseControl(tt.b); segment != tt.segment || at != tt.at {
			t.Errorf("%s: %d, %d; want %d, %d", tt.name, segment, at, tt.segment, tt.at)
		}
	}
}

// A packet that is spot-checked and cannot be decrypted is not passed over.
func TestSpotCheckFails(t *testing.T) {
	profile := srtp.ProtectionProfileAeadAes128Gcm
	one, err := srtp.CreateContext(make([]byte, 16), make([]byte, 12), profile)
	if err != nil {
		t.Fatal(err)
	}
	other, err := srtp.CreateContext(bytes.Repeat([]byte{1}, 16), make([]byte, 12), profile)
	if err != nil {
		t.Fatal(err)
	}
	sent := time.UnixMicro(time.Now().UnixMicro())
	packet := rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 96, SequenceNumber: 1, SSRC: 5}, Payload: simcam.TimestampSEI(sent)}
	plain, err := packet.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	b, err := one.EncryptRTP(nil, plain, nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range map[string]*srtp.Context{"right": one, "wrong": other} {
		r := &reader{sampling: true}
		v := &viewer{reader: r, server: &answer{media: 96}, keys: &keys{in: in}, checked: true}
		v.datagram(b, sent.Add(time.Millisecond).UnixNano())
		if name == "right" && (r.failed != nil || len(r.stamps) != 1 || r.stamps[0] != time.Millisecond) {
			t.Errorf("with the right key: %v, %v", r.failed, r.stamps)
		}
		if name == "wrong" && r.failed == nil {
			t.Error("with a wrong key: no error")
		}
	}
}

func TestStampIn(t *testing.T) {
	want := time.UnixMicro(1_700_000_000_123_456)
	sei := simcam.TimestampSEI(want)
	aggregate := []byte{24}
	for _, nal := range [][]byte{{0x67, 1, 2}, sei, {0x41, 9}} {
		aggregate = append(binary.BigEndian.AppendUint16(aggregate, uint16(len(nal))), nal...)
	}
	for name, b := range map[string][]byte{"alone": sei, "aggregated": aggregate} {
		if got, ok := stampIn(b); !ok || !got.Equal(want) {
			t.Errorf("%s: %v, %v", name, got, ok)
		}
	}
	for name, b := range map[string][]byte{"empty": nil, "a slice": {0x41, 1, 2}, "cut": aggregate[:len(aggregate)-len(sei)], "a size of nothing": {24, 0, 0, 1}} {
		if _, ok := stampIn(b); ok {
			t.Errorf("%s: a stamp", name)
		}
	}
}
