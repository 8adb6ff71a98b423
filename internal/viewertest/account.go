package viewertest

import (
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
)

// Report is what a viewer has seen so far.
type Report struct {
	State string // of the peer connection, in W3C's words
	Video Track
	Audio Track
}

// String returns the report in a line.
func (r Report) String() string {
	return fmt.Sprintf("%s; video %v; audio %v", r.State, r.Video, r.Audio)
}

// Perfect tells whether every packet of the video from the first on has come,
// once and in order.
func (t Track) Perfect() bool {
	return t.Packets > 0 && t.Missing == 0 && t.Late == 0 && t.Duplicates == 0
}

// Track is the account of one track. Counters are since the first packet.
type Track struct {
	Codec       string // MIME type: "video/H264"; empty: nothing has come
	PayloadType uint8
	SSRC        uint32

	Packets    int
	Bytes      int // of payload
	Missing    int // not come, though later ones have
	Late       int // come after later ones: reordered, or repaired
	Duplicates int // come again
	Frames     int // markers
	Keyframes  int // IDR pictures begun (H264)

	First, Last    uint16 // sequence numbers
	FirstTimestamp uint32
	LastTimestamp  uint32
	Backwards      int // timestamps before that of the packet before
	MaxStep        uint32
	FirstArrival   time.Time
	LastArrival    time.Time
	Latencies      []time.Duration // from each SEI stamp to its arrival
	Reports        []SenderReport
}

// String returns the account in a few words.
func (t Track) String() string {
	if t.Packets == 0 {
		return "none"
	}
	return fmt.Sprintf("%s: %d packets %d..%d, %d missing, %d late, %d duplicates, %d frames, %d keyframes, %d steps back",
		t.Codec, t.Packets, t.First, t.Last, t.Missing, t.Late, t.Duplicates, t.Frames, t.Keyframes, t.Backwards)
}

// SenderReport says that an RTP timestamp was at a time (RFC 3550 §6.4.1).
type SenderReport struct {
	Time    time.Time
	RTPTime uint32
	Packets uint32
}

// Picture is a frame of H264 video that a decoder could show: all its packets
// have come, to the marker, and so have those of all frames back to a keyframe.
type Picture struct {
	Key           bool      // an IDR picture
	ParameterSets bool      // SPS and PPS are in it
	Timestamp     uint32    // RTP
	Sent          time.Time // by the camera's stamp; zero: it has none, or Config.Stamp is nil
	Arrival       time.Time // of the packet that made it whole
}

// account keeps a track's books. Guarded by Viewer.mu.
type account struct {
	t       Track
	missing map[uint16]struct{}
	keyTime uint32 // timestamp of the latest keyframe
	keyed   bool
}

func (a *account) add(p *rtp.Packet, now time.Time, stamp func([]byte) (time.Time, bool)) {
	t := &a.t
	t.Packets++
	t.Bytes += len(p.Payload)
	t.LastArrival = now
	if t.Packets == 1 {
		t.First, t.Last, t.FirstTimestamp, t.LastTimestamp, t.FirstArrival = p.SequenceNumber, p.SequenceNumber, p.Timestamp, p.Timestamp, now
		t.PayloadType, t.SSRC = p.PayloadType, p.SSRC
	} else if !a.order(p) {
		return
	}
	if p.Marker {
		t.Frames++
	}
	if t.Codec == webrtc.MimeTypeH264 {
		a.h264(p, now, stamp)
	}
}

// order notes where the packet belongs. It returns false for a duplicate.
func (a *account) order(p *rtp.Packet) bool {
	t := &a.t
	ahead := int16(p.SequenceNumber - t.Last)
	if ahead <= 0 {
		if _, ok := a.missing[p.SequenceNumber]; !ok {
			t.Duplicates++
			return false
		}
		delete(a.missing, p.SequenceNumber)
		t.Missing--
		t.Late++
		return true
	}
	for seq := t.Last + 1; seq != p.SequenceNumber; seq++ {
		a.missing[seq] = struct{}{}
		t.Missing++
	}
	t.Last = p.SequenceNumber
	step := int32(p.Timestamp - t.LastTimestamp)
	if step < 0 {
		t.Backwards++
	} else {
		t.MaxStep = max(t.MaxStep, uint32(step))
	}
	t.LastTimestamp = p.Timestamp
	return true
}

// NAL unit types (ITU-T H.264 table 7-1, RFC 6184 §5.2).
const (
	nalIDR   = 5
	nalSEI   = 6
	nalSPS   = 7
	nalPPS   = 8
	nalSTAPA = 24
	nalFUA   = 28
)

func (a *account) h264(p *rtp.Packet, now time.Time, stamp func([]byte) (time.Time, bool)) {
	eachNAL(p.Payload, func(kind byte, nal []byte, whole bool) {
		if whole {
			a.unit(p, nal, kind, now, stamp)
		} else {
			a.unit(p, nal, kind, now, nil)
		}
	})
}

func (a *account) unit(p *rtp.Packet, nal []byte, kind byte, now time.Time, stamp func([]byte) (time.Time, bool)) {
	switch {
	case kind == nalIDR && (!a.keyed || a.keyTime != p.Timestamp):
		a.keyed, a.keyTime = true, p.Timestamp
		a.t.Keyframes++
	case kind == nalSEI && stamp != nil:
		if at, ok := stamp(nal); ok {
			a.t.Latencies = append(a.t.Latencies, now.Sub(at))
		}
	}
}

// read is called by pion for each track that comes, in a goroutine.
func (v *Viewer) read(t *webrtc.TrackRemote, r *webrtc.RTPReceiver) {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return
	}
	v.readers.Add(1) // not while Close waits, for closed is looked at under mu
	defer v.readers.Done()
	kind := t.Kind().String()
	a := &account{t: Track{Codec: t.Codec().MimeType}, missing: map[uint16]struct{}{}}
	v.tracks[kind] = a
	v.mu.Unlock()

	v.readers.Go(func() { v.readRTCP(kind, r) })
	first := v.cfg.OnFirst
	if kind != "video" {
		first = nil
	}
	var pictures *assembler // nil: nobody wants them
	if v.cfg.OnPicture != nil && a.t.Codec == webrtc.MimeTypeH264 {
		pictures = newAssembler()
	}
	for {
		p, _, err := t.ReadRTP()
		if err != nil {
			return
		}
		now := time.Now()
		if first != nil {
			first(now)
			first = nil
		}
		if pictures != nil {
			v.assemble(pictures, p, now)
		}
		if v.cfg.OnPacket != nil {
			v.cfg.OnPacket(kind, p, now)
		}
		v.mu.Lock()
		a.add(p, now, v.cfg.Stamp)
		v.wakeAll()
		v.mu.Unlock()
	}
}

// assemble tells of the pictures that are whole with a packet.
func (v *Viewer) assemble(a *assembler, p *rtp.Packet, now time.Time) {
	one := h264Piece(p.Payload, v.cfg.Stamp)
	one.timestamp, one.marker = p.Timestamp, p.Marker
	done, _, _ := a.add(p.SequenceNumber, one, now)
	for _, d := range done {
		v.cfg.OnPicture(Picture{Key: d.key, ParameterSets: d.sps && d.pps, Timestamp: d.time, Sent: d.sent, Arrival: now})
	}
}

func (v *Viewer) readRTCP(kind string, r *webrtc.RTPReceiver) {
	for {
		packets, _, err := r.ReadRTCP()
		if err != nil {
			return
		}
		for _, p := range packets {
			sr, ok := p.(*rtcp.SenderReport)
			if !ok {
				continue
			}
			v.mu.Lock()
			v.reports[kind] = append(v.reports[kind], SenderReport{Time: ntpTime(sr.NTPTime), RTPTime: sr.RTPTime, Packets: sr.PacketCount})
			v.wakeAll()
			v.mu.Unlock()
		}
	}
}

// ntpTime reads 32.32 bits of seconds since 1900 (RFC 5905 §6).
func ntpTime(n uint64) time.Time {
	const from1900 = 2_208_988_800
	return time.Unix(int64(n>>32)-from1900, int64(n&0xffffffff*uint64(time.Second)>>32))
}

// Report returns the account so far.
func (v *Viewer) Report() Report {
	r := Report{State: v.State()}
	v.mu.Lock()
	defer v.mu.Unlock()
	r.Video, r.Audio = v.track("video"), v.track("audio")
	return r
}

// track returns a copy. The caller holds mu.
func (v *Viewer) track(kind string) Track {
	a := v.tracks[kind]
	if a == nil {
		return Track{}
	}
	t := a.t
	t.Latencies = append([]time.Duration(nil), t.Latencies...)
	t.Reports = append([]SenderReport(nil), v.reports[kind]...)
	return t
}

// lossyConn is the viewer's socket with a bad network behind it.
type lossyConn struct {
	*net.UDPConn
	drop      func(*rtp.Header) bool
	unplugged atomic.Bool
}

// ReadFrom returns the next datagram that got through.
func (c *lossyConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := c.UDPConn.ReadFrom(b)
		if err != nil || (!c.unplugged.Load() && !c.lost(b[:n])) {
			return n, from, err
		}
	}
}

// WriteTo sends a datagram.
func (c *lossyConn) WriteTo(b []byte, to net.Addr) (int, error) {
	if c.unplugged.Load() {
		return len(b), nil
	}
	return c.UDPConn.WriteTo(b, to)
}

// lost tells whether an RTP packet is to be dropped. STUN, DTLS and RTCP never
// are (RFC 7983 §7, RFC 5761 §4).
func (c *lossyConn) lost(b []byte) bool {
	if c.drop == nil || len(b) < 12 || b[0] < 128 || b[0] > 191 || (b[1] >= 192 && b[1] <= 223) {
		return false
	}
	var h rtp.Header
	if _, err := h.Unmarshal(b); err != nil {
		return false
	}
	return c.drop(&h)
}
