package viewertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"time"

	"github.com/pion/ice/v4"
	"github.com/pion/interceptor"
	"github.com/pion/logging"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
	"github.com/pion/transport/v5"
	"github.com/pion/transport/v5/stdnet"
	"github.com/pion/webrtc/v4"
)

// take is one session of a Follower: one peer connection. It does not come back
// from its end.
type take struct {
	// Static.
	id    string
	pc    *webrtc.PeerConnection
	began time.Time

	// Owned by the loop.
	offered    bool
	heard      bool // the gateway has said something of it
	answered   bool
	restarting bool
	live       bool         // the gateway says so
	ours       []*Candidate // not sent yet
	theirs     []Candidate  // that wait for the answer
	timer      *alarm

	// Guarded by Follower.mu.
	orphaned bool      // its websocket is gone
	dead     bool      // it is over; at most its last frame is left
	remote   string    // the node's address, host:port; empty: not connected yet
	first    time.Time // frame; zero: none yet
	moved    time.Time // the last frame, or when one could first be expected
}

// followerAPI makes peer connections that receive H264 over UDP, and do nothing
// else: no audio, no interceptors.
func followerAPI(network netip.Prefix) (*webrtc.API, error) {
	media := new(webrtc.MediaEngine)
	err := errors.Join(
		media.RegisterCodec(webrtc.RTPCodecParameters{
			RTPCodecCapability: webrtc.RTPCodecCapability{
				MimeType: webrtc.MimeTypeH264, ClockRate: 90000,
				SDPFmtpLine:  "level-asymmetry-allowed=1;packetization-mode=1;profile-level-id=42e01f",
				RTCPFeedback: []webrtc.RTCPFeedback{{Type: "nack"}, {Type: "nack", Parameter: "pli"}},
			},
			PayloadType: 96,
		}, webrtc.RTPCodecTypeVideo),
		media.RegisterCodec(webrtc.RTPCodecParameters{
			RTPCodecCapability: webrtc.RTPCodecCapability{MimeType: webrtc.MimeTypeRTX, ClockRate: 90000, SDPFmtpLine: "apt=96"},
			PayloadType:        97,
		}, webrtc.RTPCodecTypeVideo),
	)
	if err != nil {
		return nil, err
	}
	base, err := stdnet.NewNet()
	if err != nil {
		return nil, err
	}
	silent := logging.NewDefaultLoggerFactory()
	silent.DefaultLogLevel = logging.LogLevelDisabled
	var se webrtc.SettingEngine
	se.LoggerFactory = silent
	se.SetNet(roomyNet{base})
	se.SetIncludeLoopbackCandidate(true)
	se.SetIPFilter(func(ip net.IP) bool {
		a, ok := netip.AddrFromSlice(ip)
		return ok && network.Contains(a.Unmap())
	})
	se.SetICEMulticastDNSMode(ice.MulticastDNSModeDisabled)
	se.SetNetworkTypes([]webrtc.NetworkType{webrtc.NetworkTypeUDP4})
	return webrtc.NewAPI(webrtc.WithSettingEngine(se), webrtc.WithMediaEngine(media), webrtc.WithInterceptorRegistry(new(interceptor.Registry))), nil
}

// roomyNet gives sockets room for what comes while this process does not run.
type roomyNet struct{ transport.Net }

// ListenUDP opens a socket.
func (n roomyNet) ListenUDP(network string, addr *net.UDPAddr) (transport.UDPConn, error) {
	c, err := n.Net.ListenUDP(network, addr)
	if err == nil {
		_ = c.SetReadBuffer(2 << 20) // what the system grants will do
	}
	return c, err
}

// both returns the session whose picture is shown and the one that is to
// replace it.
func (f *Follower) both() (shown, pending *take) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.shown, f.pending
}

// watch begins a session beside the one that is shown.
func (f *Follower) watch(ctx context.Context) {
	f.cancel(f.retryAlarm)
	f.mu.Lock()
	old := f.pending
	f.pending = nil
	f.mu.Unlock()
	f.discard(old)
	if !f.welcomed || ctx.Err() != nil {
		return
	}
	f.sessions++
	t := &take{id: fmt.Sprintf("s%d", f.sessions), began: time.Now()}
	t.moved = t.began
	if err := f.begin(ctx, t); err != nil {
		f.failed(ctx, t, err.Error())
	}
}

// begin makes a session's offer and sends it.
func (f *Follower) begin(ctx context.Context, t *take) error {
	pc, err := f.api.NewPeerConnection(webrtc.Configuration{})
	if err != nil {
		return err
	}
	t.pc = pc
	f.mu.Lock()
	f.pending = t
	f.mu.Unlock()
	f.takes[t.id] = t
	pc.OnICECandidate(func(c *webrtc.ICECandidate) {
		if c != nil {
			j := c.ToJSON()
			f.post(func() { f.gathered(t, &Candidate{j.Candidate, j.SDPMid, j.SDPMLineIndex, j.UsernameFragment}) })
		}
	})
	pc.OnTrack(func(track *webrtc.TrackRemote, _ *webrtc.RTPReceiver) { f.read(t, track) })
	pc.OnConnectionStateChange(func(s webrtc.PeerConnectionState) { f.post(func() { f.changed(ctx, t, s) }) })
	if _, err := pc.AddTransceiverFromKind(webrtc.RTPCodecTypeVideo, webrtc.RTPTransceiverInit{Direction: webrtc.RTPTransceiverDirectionRecvonly}); err != nil {
		return err
	}
	offer, err := pc.CreateOffer(nil)
	if err == nil {
		err = pc.SetLocalDescription(offer)
	}
	if err != nil {
		return err
	}
	f.note(EventWatch, t.id, "")
	t.timer = f.after(answerTimeout, func() { f.failed(ctx, t, "no_answer") })
	box := f.viewport
	if !f.send(toGateway{
		Type: "watch", Session: t.id, Camera: f.cfg.Camera, Offer: offer.SDP,
		Viewport: &box, Codecs: []string{"H264"},
	}) {
		return errors.New("gateway_lost")
	}
	t.offered = true
	for _, c := range t.ours {
		f.send(toGateway{Type: "candidate", Session: t.id, Candidate: c})
	}
	return nil
}

func (f *Follower) gathered(t *take, c *Candidate) {
	switch {
	case !t.offered:
		t.ours = append(t.ours, c)
	case f.takes[t.id] == t:
		f.send(toGateway{Type: "candidate", Session: t.id, Candidate: c})
	}
}

// answered takes the node's answer.
func (f *Follower) answered(ctx context.Context, t *take, sdp string) {
	if err := t.pc.SetRemoteDescription(webrtc.SessionDescription{Type: webrtc.SDPTypeAnswer, SDP: sdp}); err != nil {
		f.failed(ctx, t, "bad_answer")
		return
	}
	t.answered = true
	for _, c := range t.theirs {
		f.candidate(t, c)
	}
	t.theirs = nil
	wait := connectTimeout
	if t.restarting {
		wait = restartTimeout
	}
	f.cancel(t.timer)
	t.timer = f.after(wait, func() { f.failed(ctx, t, "peer_connection_failed") })
	f.changed(ctx, t, t.pc.ConnectionState())
}

// candidate takes one of the node's candidates. One that cannot be used leaves
// the others.
func (f *Follower) candidate(t *take, c Candidate) {
	if !t.answered {
		t.theirs = append(t.theirs, c)
		return
	}
	_ = t.pc.AddICECandidate(webrtc.ICECandidateInit{
		Candidate: c.Candidate, SDPMid: c.SDPMid, SDPMLineIndex: c.SDPMLineIndex, UsernameFragment: c.UsernameFragment,
	})
}

func (f *Follower) state(t *take, state string) {
	live := state == "live"
	if live && !t.live {
		f.mu.Lock()
		t.moved = time.Now()
		f.mu.Unlock()
	}
	t.live = live
}

// changed takes the peer connection's state.
func (f *Follower) changed(ctx context.Context, t *take, s webrtc.PeerConnectionState) {
	if f.over(t) {
		return
	}
	switch s {
	case webrtc.PeerConnectionStateConnected:
		if t.answered {
			f.connected(t)
			f.cancel(t.timer)
			t.timer, t.restarting = nil, false
		}
	case webrtc.PeerConnectionStateDisconnected:
		if !t.restarting {
			f.cancel(t.timer)
			t.timer = f.after(grace, func() { f.restart(ctx, t) })
		}
	case webrtc.PeerConnectionStateFailed:
		if t.restarting || !t.answered {
			f.failed(ctx, t, "peer_connection_failed")
		} else {
			f.restart(ctx, t)
		}
	case webrtc.PeerConnectionStateClosed: // the node said goodbye
		f.failed(ctx, t, "peer_connection_failed")
	default:
	}
}

// connected notes which address of the node media comes from.
func (f *Follower) connected(t *take) {
	if t.timer == nil {
		return // said already
	}
	remote := ""
	if pair, err := t.pc.SCTP().Transport().ICETransport().GetSelectedCandidatePair(); err == nil && pair != nil {
		remote = net.JoinHostPort(pair.Remote.Address, strconv.Itoa(int(pair.Remote.Port)))
	}
	f.mu.Lock()
	t.remote = remote
	f.mu.Unlock()
	f.note(EventConnected, t.id, remote)
}

// restart tries other paths for the same peer connection (RFC 8445 §2.4).
func (f *Follower) restart(ctx context.Context, t *take) {
	if f.over(t) || t.restarting {
		return
	}
	if f.takes[t.id] != t { // its gateway is gone
		f.failed(ctx, t, "peer_connection_failed")
		return
	}
	t.restarting, t.answered = true, false
	f.cancel(t.timer)
	t.timer = f.after(restartTimeout, func() { f.failed(ctx, t, "peer_connection_failed") })
	offer, err := t.pc.CreateOffer(&webrtc.OfferOptions{ICERestart: true})
	if err == nil {
		err = t.pc.SetLocalDescription(offer)
	}
	if err != nil || !f.send(toGateway{Type: "restart", Session: t.id, Offer: offer.SDP}) {
		f.failed(ctx, t, "peer_connection_failed")
	}
}

// over tells whether a session has ended.
func (f *Follower) over(t *take) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return t.dead
}

// failed ends a session. Another follows after a wait, unless one is on its way
// already.
func (f *Follower) failed(ctx context.Context, t *take, reason string) {
	if f.over(t) {
		return
	}
	f.note(EventEnded, t.id, reason)
	f.mu.Lock()
	shown, pending := f.shown == t, f.pending == t || f.pending == nil && f.shown != t
	if f.pending == t {
		f.pending = nil
	}
	another := f.pending != nil
	stable := shown && time.Since(t.first) >= stablePicture
	f.mu.Unlock()
	f.discard(t)
	if stable {
		f.sessionPause.reset()
	}
	if !shown && !pending || another || !f.welcomed {
		return // another session, or the websocket's return, is the next try
	}
	wait := f.sessionPause.next(jitter)
	if lasting(reason) {
		wait = lastingWait + jitter(lastingWait/2)
	}
	f.cancel(f.retryAlarm)
	f.retryAlarm = f.after(wait, func() { f.watch(ctx) })
}

// lasting tells whether a reason will hardly pass (docs/errors.md).
func lasting(reason string) bool {
	switch reason {
	case "camera_not_found", "camera_deleted", "camera_forbidden", "camera_disabled", "codec_unsupported", "no_video_section",
		"bad_offer", "invalid_argument", "too_many_sessions", "node_full", "origin_forbidden", "unauthenticated", "token_expired":
		return true
	default:
		return false
	}
}

// discard leaves a session and closes its peer connection, without waiting.
func (f *Follower) discard(t *take) {
	if t == nil {
		return
	}
	f.mu.Lock()
	t.dead = true
	f.mu.Unlock()
	f.cancel(t.timer)
	if f.takes[t.id] == t {
		delete(f.takes, t.id)
		if t.offered {
			f.send(toGateway{Type: "leave", Session: t.id})
		}
	}
	if t.pc != nil {
		f.workers.Go(func() { _ = t.pc.GracefulClose() })
	}
}

// checkStall looks for a picture that should move and does not.
func (f *Follower) checkStall(ctx context.Context) {
	now := time.Now()
	f.mu.Lock()
	shown, pending := f.shown, f.pending
	late := func(t *take, limit time.Duration) bool { return t != nil && !t.dead && now.Sub(t.moved) > limit }
	noFrame := f.viewport.Visible && late(pending, frameTimeout)
	stalled := f.viewport.Visible && pending == nil && late(shown, stallRenew)
	f.mu.Unlock()
	switch {
	case noFrame && pending.live:
		f.failed(ctx, pending, "no_frames")
	case stalled && (shown.live || shown.orphaned):
		f.watch(ctx)
	}
}

// read takes a track's packets. It is called by pion in a goroutine.
func (f *Follower) read(t *take, track *webrtc.TrackRemote) {
	f.mu.Lock()
	if f.closed {
		f.mu.Unlock()
		return
	}
	f.workers.Add(1) // not while Run waits, for closed is looked at under mu
	f.mu.Unlock()
	defer f.workers.Done()
	f.note(EventMedia, t.id, "")
	frames := newAssembler()
	buf := make([]byte, 2048)
	var p rtp.Packet
	for {
		n, _, err := track.Read(buf)
		if err != nil {
			return
		}
		now := time.Now()
		if p.Unmarshal(buf[:n]) != nil || len(p.Payload) == 0 {
			continue
		}
		got := h264Piece(p.Payload, f.cfg.Stamp)
		got.timestamp, got.marker = p.Timestamp, p.Marker
		done, missing, broken := frames.add(p.SequenceNumber, got, now)
		if len(missing) > 0 {
			_ = t.pc.WriteRTCP([]rtcp.Packet{&rtcp.TransportLayerNack{MediaSSRC: p.SSRC, Nacks: rtcp.NackPairsFromSequenceNumbers(missing)}})
		}
		if broken {
			f.note(EventLoss, t.id, fmt.Sprintf("%d packets so far", frames.lost))
			_ = t.pc.WriteRTCP([]rtcp.Packet{&rtcp.PictureLossIndication{MediaSSRC: p.SSRC}})
		}
		if len(done) > 0 {
			f.frames(t, done, now)
		}
	}
}

// frames notes complete frames of a session: the first of a pending one makes
// it the one that is shown.
func (f *Follower) frames(t *take, done []picture, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if t.dead {
		return
	}
	t.moved = now
	if f.pending == t {
		old := f.shown
		f.shown, f.pending, t.first = t, nil, now
		f.series.events = append(f.series.events, Event{Time: now, Kind: EventShown, Session: t.id})
		first := float64(now.Sub(t.began).Milliseconds())
		f.workers.Go(func() {
			f.post(func() {
				f.discard(old)
				if f.takes[t.id] == t {
					f.send(toGateway{Type: "stats", Session: t.id, FirstFrameMS: &first})
				}
			})
		})
	}
	if f.shown != t {
		return
	}
	for _, p := range done {
		f.series.frame(now, p)
	}
	close(f.wake)
	f.wake = make(chan struct{})
}
