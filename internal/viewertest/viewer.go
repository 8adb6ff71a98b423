// Package viewertest is a light viewer for tests: a pion peer connection that
// receives a camera, decodes nothing, and keeps account of every RTP packet:
// order, gaps, what retransmission repaired, timestamps, delay.
//
// It knows no signaling: it gives an offer, takes an answer, and candidates go
// both ways by callbacks, so that it is used on a session directly, over the
// websocket, and, with the helper PlayWHEP, over HTTP. A network between can be
// simulated: packets dropped on purpose, or all of them from one moment on.
//
// It is for tests on loopback. pion's receiver asks again for packets that RTX
// has repaired already, so counts of NACKs are higher than a browser's.
package viewertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/interceptor/pkg/nack"
	"github.com/pion/interceptor/pkg/report"
	"github.com/pion/logging"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/webrtc/v4"
)

// Config is how a Viewer is made. The zero value receives H264 over UDP and
// drops nothing.
type Config struct {
	Audio   bool     // offer to receive audio too: OPUS, PCMU, PCMA
	H264    []string // format parameters of the H264 payload types to offer; nil: what Chromium offers
	NoH264  bool     // offer VP8 only
	More    bool     // offer H265, VP9 and AV1 too, after VP8 and H264
	TCP     bool     // ICE-TCP only
	NACK    bool     // ask for lost packets again
	Reports bool     // send receiver reports, five a second
	Trickle bool     // the offer has no candidates; OnCandidate gets them

	// OnCandidate takes this side's candidates when trickling, the end of them
	// as an empty one. It is called from pion's goroutine.
	OnCandidate func(Candidate)
	// OnPacket sees every RTP packet, in the order of arrival. It must not keep
	// the packet's payload.
	OnPacket func(kind string, p *rtp.Packet, arrival time.Time)
	// OnFirst is told when the first packet of video came, before OnPicture is.
	OnFirst func(arrival time.Time)
	// OnPicture is told of each picture of H264 when it is whole, one after the
	// other, from the goroutine that reads.
	OnPicture func(Picture)
	// OnState is told of each state of the peer connection, in W3C's words, from
	// a goroutine of pion's.
	OnState func(state string)
	// Drop decides which arriving RTP packets are lost on the way. The header
	// is all there is to see, for the rest is encrypted. UDP only.
	Drop func(h *rtp.Header) bool
	// Stamp reads the sending time out of an SEI NAL unit; nil: no latencies.
	Stamp func(nal []byte) (time.Time, bool)
}

// Candidate is an ICE candidate as RTCIceCandidateInit, in its JSON form.
type Candidate struct {
	Candidate        string  `json:"candidate"`
	SDPMid           *string `json:"sdpMid,omitempty"`
	SDPMLineIndex    *uint16 `json:"sdpMLineIndex,omitempty"`
	UsernameFragment *string `json:"usernameFragment,omitempty"`
}

// ChromiumH264 are the H264 payload types of Chromium's offers.
var ChromiumH264 = []string{
	"level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42001f",
	"level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42001f",
	"level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
	"level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=42e01f",
	"level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=4d001f",
	"level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=4d001f",
	"level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=f4001f",
	"level-asymmetry-allowed=1;packetization-mode=0;profile-level-id=f4001f",
}

// Viewer is one peer connection that receives. Its methods may be called from
// any goroutine.
type Viewer struct {
	// Static after New.
	cfg      Config
	pc       *webrtc.PeerConnection
	conn     *lossyConn    // nil: TCP
	mux      ice.UDPMux    // nil: TCP
	gathered chan struct{} // holds a token when a gathering is complete

	readers sync.WaitGroup // of tracks and RTCP

	mu      sync.Mutex // guards the rest
	closed  bool
	wake    chan struct{} // closed and replaced when anything below changes
	tracks  map[string]*account
	reports map[string][]SenderReport
	trickle bool
}

// New returns a Viewer that has asked nobody for anything yet. It must be
// closed.
func New(cfg Config) (*Viewer, error) {
	v := &Viewer{
		cfg: cfg, gathered: make(chan struct{}, 1), wake: make(chan struct{}),
		tracks: map[string]*account{}, reports: map[string][]SenderReport{}, trickle: cfg.Trickle,
	}
	api, err := v.api()
	if err != nil {
		return nil, fmt.Errorf("make a viewer: %w", err)
	}
	v.pc, err = api.NewPeerConnection(webrtc.Configuration{})
	if err == nil {
		err = v.prepare()
	}
	if err != nil {
		_ = v.Close()
		return nil, fmt.Errorf("make a viewer: %w", err)
	}
	return v, nil
}

func (v *Viewer) prepare() error {
	v.pc.OnICECandidate(v.candidate)
	v.pc.OnTrack(v.read)
	v.pc.OnConnectionStateChange(func(s webrtc.PeerConnectionState) {
		if v.cfg.OnState != nil {
			v.cfg.OnState(s.String())
		}
		v.notify()
	})
	kinds := []webrtc.RTPCodecType{webrtc.RTPCodecTypeVideo}
	if v.cfg.Audio {
		kinds = append(kinds, webrtc.RTPCodecTypeAudio)
	}
	for _, k := range kinds {
		if _, err := v.pc.AddTransceiverFromKind(k, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
			return err
		}
	}
	return nil
}

func (v *Viewer) api() (*webrtc.API, error) {
	media, err := v.mediaEngine()
	if err != nil {
		return nil, err
	}
	registry := new(interceptor.Registry)
	if v.cfg.NACK {
		f, err := nack.NewGeneratorInterceptor(nack.GeneratorInterval(20 * time.Millisecond))
		if err != nil {
			return nil, err
		}
		registry.Add(f)
	}
	if v.cfg.Reports {
		f, err := report.NewReceiverInterceptor(report.ReceiverInterval(200 * time.Millisecond))
		if err != nil {
			return nil, err
		}
		registry.Add(f)
	}
	silent := logging.NewDefaultLoggerFactory()
	silent.DefaultLogLevel = logging.LogLevelDisabled
	var se webrtc.SettingEngine
	se.LoggerFactory = silent
	se.SetIncludeLoopbackCandidate(true)
	se.SetIPFilter(func(ip net.IP) bool { return ip.IsLoopback() })
	se.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	if v.cfg.TCP {
		se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeTCP4})
	} else {
		se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
		u, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			return nil, err
		}
		_ = u.SetReadBuffer(4 << 20) // a test's keyframes come all at once; what the system grants will do
		v.conn = &lossyConn{UDPConn: u, drop: v.cfg.Drop}
		v.mux = webrtc.NewICEUDPMux(silent.NewLogger("ice"), v.conn)
		se.SetICEUDPMux(v.mux)
	}
	return webrtc.NewAPI(webrtc.WithSettingEngine(se), webrtc.WithMediaEngine(media), webrtc.WithInterceptorRegistry(registry)), nil
}

func (v *Viewer) mediaEngine() (*webrtc.MediaEngine, error) {
	m := new(webrtc.MediaEngine)
	feedback := []webrtc.RTCPFeedback{{Type: "goog-remb"}, {Type: "ccm", Parameter: "fir"}, {Type: "nack"}, {Type: "nack", Parameter: "pli"}}
	var errs []error
	add := func(kind webrtc.RTPCodecType, pt webrtc.PayloadType, mime string, rate uint32, channels uint16, fmtp string, fb []webrtc.RTCPFeedback) {
		errs = append(errs, m.RegisterCodec(webrtc.RTPCodecParameters{
			RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: mime, ClockRate: rate, Channels: channels, SDPFmtpLine: fmtp, RTCPFeedback: fb},
			PayloadType:        pt,
		}, kind))
	}
	pt := webrtc.PayloadType(96)
	video := func(mime, fmtp string) {
		add(webrtc.RTPCodecTypeVideo, pt, mime, 90000, 0, fmtp, feedback)
		add(webrtc.RTPCodecTypeVideo, pt+1, webrtc.MimeTypeRTX, 90000, 0, fmt.Sprintf("apt=%d", pt), nil)
		pt += 2
	}
	video(webrtc.MimeTypeVP8, "")
	h264 := v.cfg.H264
	if h264 == nil {
		h264 = ChromiumH264
	}
	for _, fmtp := range h264 {
		if !v.cfg.NoH264 {
			video(webrtc.MimeTypeH264, fmtp)
		}
	}
	if v.cfg.More {
		pt = 35 // where Chromium goes on when it has no more (RFC 8834 §5.1.1 leaves 35 to 63 free)
		video(webrtc.MimeTypeH265, "")
		video(webrtc.MimeTypeVP9, "profile-id=0")
		video(webrtc.MimeTypeAV1, "")
	}
	add(webrtc.RTPCodecTypeAudio, 8, webrtc.MimeTypePCMA, 8000, 0, "", nil)
	add(webrtc.RTPCodecTypeAudio, 0, webrtc.MimeTypePCMU, 8000, 0, "", nil)
	add(webrtc.RTPCodecTypeAudio, 126, webrtc.MimeTypeOpus, 48000, 2, "minptime=10;useinbandfec=1", nil)
	return m, errors.Join(errs...)
}

// Offer returns the viewer's offer, with its candidates unless it trickles.
func (v *Viewer) Offer(ctx context.Context) (string, error) { return v.offer(ctx, nil, v.cfg.Trickle) }

// Restart returns an offer that restarts ICE, with all candidates.
func (v *Viewer) Restart(ctx context.Context) (string, error) {
	v.mu.Lock()
	v.trickle = false
	v.mu.Unlock()
	select {
	case <-v.gathered:
	default:
	}
	return v.offer(ctx, &webrtc.OfferOptions{ICERestart: true}, false)
}

func (v *Viewer) offer(ctx context.Context, opt *webrtc.OfferOptions, trickle bool) (string, error) {
	o, err := v.pc.CreateOffer(opt)
	if err != nil {
		return "", fmt.Errorf("create an offer: %w", err)
	}
	if err := v.pc.SetLocalDescription(o); err != nil {
		return "", fmt.Errorf("set the offer: %w", err)
	}
	if trickle {
		return o.SDP, nil
	}
	select {
	case <-v.gathered:
	case <-ctx.Done():
		return "", fmt.Errorf("gather candidates: %w", ctx.Err())
	}
	return v.pc.LocalDescription().SDP, nil
}

// Answer takes the answer to the last offer.
func (v *Viewer) Answer(sdp string) error {
	if err := v.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: sdp}); err != nil {
		return fmt.Errorf("set the answer: %w", err)
	}
	return nil
}

// AddCandidate takes one of the other side's candidates, after the answer.
func (v *Viewer) AddCandidate(c Candidate) error {
	err := v.pc.AddICECandidate(webrtc.ICECandidateInit{
		Candidate: c.Candidate, SDPMid: c.SDPMid, SDPMLineIndex: c.SDPMLineIndex, UsernameFragment: c.UsernameFragment,
	})
	if err != nil {
		return fmt.Errorf("add a candidate: %w", err)
	}
	return nil
}

func (v *Viewer) candidate(c *webrtc.ICECandidate) {
	v.mu.Lock()
	trickle := v.trickle && v.cfg.OnCandidate != nil
	v.mu.Unlock()
	if c == nil {
		select {
		case v.gathered <- struct{}{}:
		default:
		}
		if trickle {
			v.cfg.OnCandidate(Candidate{})
		}
		return
	}
	if trickle {
		j := c.ToJSON()
		v.cfg.OnCandidate(Candidate{j.Candidate, j.SDPMid, j.SDPMLineIndex, j.UsernameFragment})
	}
}

// notify wakes whoever waits for a change.
func (v *Viewer) notify() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.wakeAll()
}

func (v *Viewer) wakeAll() {
	close(v.wake)
	v.wake = make(chan struct{})
}

// State returns the peer connection's state in W3C's words: "connected".
func (v *Viewer) State() string { return v.pc.ConnectionState().String() }

// Protocol returns what the selected candidate pair goes over, "udp" or "tcp";
// "" before there is one.
func (v *Viewer) Protocol() string {
	t := v.pc.SCTP().Transport().ICETransport()
	pair, err := t.GetSelectedCandidatePair()
	if err != nil || pair == nil {
		return ""
	}
	return pair.Remote.Protocol.String()
}

// WaitState waits until the peer connection is in one of the states.
func (v *Viewer) WaitState(ctx context.Context, states ...string) error {
	return v.Wait(ctx, func(r Report) bool {
		for _, s := range states {
			if r.State == s {
				return true
			}
		}
		return false
	})
}

// WaitFrames waits until n frames of video have come.
func (v *Viewer) WaitFrames(ctx context.Context, n int) error {
	return v.Wait(ctx, func(r Report) bool { return r.Video.Frames >= n })
}

// Wait waits until a condition of the report holds. It is looked at whenever a
// packet comes or the state changes.
func (v *Viewer) Wait(ctx context.Context, ok func(Report) bool) error {
	for {
		v.mu.Lock()
		wake := v.wake
		v.mu.Unlock()
		r := v.Report()
		if ok(r) {
			return nil
		}
		select {
		case <-wake:
		case <-ctx.Done():
			return fmt.Errorf("wait for the viewer, now %s: %w", r, ctx.Err())
		}
	}
}

// SendPLI asks the other side for a keyframe of the video.
func (v *Viewer) SendPLI() error {
	ssrc := v.Report().Video.SSRC
	if ssrc == 0 {
		return errors.New("send a PLI: no video has come yet")
	}
	return v.pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: ssrc}})
}

// SendNACK asks the other side for packets of the video again.
func (v *Viewer) SendNACK(numbers ...uint16) error {
	ssrc := v.Report().Video.SSRC
	if ssrc == 0 {
		return errors.New("send a NACK: no video has come yet")
	}
	return v.pc.WriteRTCP([]rtcp.Packet{&rtcp.TransportLayerNack{MediaSSRC: ssrc, Nacks: rtcp.NackPairsFromSequenceNumbers(numbers)}})
}

// SendRTCP sends any RTCP packets.
func (v *Viewer) SendRTCP(p ...rtcp.Packet) error { return v.pc.WriteRTCP(p) }

// Unplug makes all packets vanish, both ways, from now on, as when a cable is
// pulled: the other side hears no goodbye. UDP only.
func (v *Viewer) Unplug() {
	if v.conn != nil {
		v.conn.unplugged.Store(true)
	}
}

// Close says goodbye and waits for all goroutines.
func (v *Viewer) Close() error {
	v.mu.Lock()
	closed := v.closed
	v.closed = true
	v.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if v.pc != nil {
		err = v.pc.GracefulClose()
	}
	v.readers.Wait()
	if v.mux != nil {
		err = errors.Join(err, v.mux.Close(), v.conn.Close())
	}
	if errors.Is(err, net.ErrClosed) {
		err = nil // the mux closes the socket too
	}
	if err != nil {
		return fmt.Errorf("close the viewer: %w", err)
	}
	return nil
}
