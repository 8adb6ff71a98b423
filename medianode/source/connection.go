package source

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/headers"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"

	"fanlight/internal/fleet"
	"fanlight/medianode/stream"
)

// connection is one RTSP connection. Its callbacks are called from gortsplib's
// goroutines: hooks of requests from one, packets of each track from one.
type connection struct {
	// Static after newConnection.
	source *Source
	target target
	addrs  []netip.Addr // of the target's host, in the order in which they are dialled
	client *gortsplib.Client
	start  time.Time

	// Owned by the goroutine that opens it.
	statuses     []fleet.TrackStatus // of the tracks that there are; nil: not known
	audioRefused bool                // the camera has refused to set its audio up, here or before; it is not asked again

	// Owned by the client's goroutine for requests; read by the opener's after a
	// request.
	local    net.Addr   // of the TCP connection
	remote   netip.Addr // of the TCP connection
	location string     // where the camera redirects to
	noTracks bool       // the camera's description has none

	// Static after setup.
	tracks []stream.Track
	video  *description.Media

	// Owned by the goroutine of the video's packets after Play.
	sizeKnown bool

	writer    atomic.Pointer[stream.Writer] // nil: nothing has come yet; stored with source.handover held
	again     atomic.Bool                   // the stream is to be taken again; stored with source.handover held
	played    atomic.Bool                   // the camera has accepted PLAY
	lastVideo atomic.Int64                  // nanoseconds after start
	videoSSRC atomic.Uint32                 // of the last packet
	firstOnce sync.Once
	first     chan struct{}           // closed at the first packet of video
	size      chan [2]int             // gets the picture's width and height when the SDP did not tell
	broken    chan *failure           // gets what ends the connection besides gortsplib; one
	problem   atomic.Pointer[failure] // the same, for those who don't wait

	replaces *connection // that goes on until this one has the stream; nil: there is none; guarded by source.handover

	wg      sync.WaitGroup
	closing chan struct{} // closed by close
	ended   chan error    // gets why the client has ended; one
	gone    chan struct{} // closed when it has

	cancel context.CancelFunc // of the connection's context, called by close; nil: it has none of its own
}

// newConnection makes a connection that has not been used yet: it resolves the
// target's host, waits for its turn there and starts the client. waiting, if not
// nil, is told when the turn comes. The connection is the caller's to close, and
// ends with ctx.
func (s *Source) newConnection(ctx context.Context, to target, waiting func(time.Time)) (*connection, *failure) {
	addrs, err := s.resolve(ctx, to.url.Hostname())
	if err != nil {
		return nil, classify(err, hostPort(to.url, s.cfg.Credentials), s.cfg.Credentials)
	}
	if !s.cfg.Hosts.wait(ctx, addrs[0], waiting) {
		return nil, failed(fleet.ReasonConnectionClosed, "the node stopped")
	}
	c := &connection{
		source: s, target: to, addrs: addrs, start: time.Now(),
		first: make(chan struct{}), size: make(chan [2]int, 1), broken: make(chan *failure, 1),
		closing: make(chan struct{}), ended: make(chan error, 1), gone: make(chan struct{}),
	}
	c.client = c.newClient()
	if err := c.client.Start(); err != nil {
		return nil, c.failure(err)
	}
	c.wg.Go(func() {
		select {
		case <-ctx.Done():
		case <-c.closing:
		}
		c.client.Close()
	})
	c.wg.Go(func() {
		c.ended <- c.client.Wait()
		close(c.gone)
	})
	return c, nil
}

// close ends the connection and its part in the stream. It is called once.
func (c *connection) close() {
	close(c.closing)
	c.wg.Wait()
	if c.cancel != nil {
		c.cancel()
	}
	c.source.keys.disconnected(c)
	if w := c.writer.Load(); w != nil {
		w.Close()
	}
}

// newClient returns the RTSP client, which has not been started.
func (c *connection) newClient() *gortsplib.Client {
	s, u := c.source, c.target.url
	protocol := gortsplib.ProtocolTCP
	switch c.target.transport {
	case fleet.TransportUDP:
		protocol = gortsplib.ProtocolUDP
	case fleet.TransportMulticast:
		protocol = gortsplib.ProtocolUDPMulticast
	default: // auto has been resolved
	}
	timeouts := s.cfg.Timeouts
	return &gortsplib.Client{
		Scheme:       u.Scheme,
		Host:         u.Host,
		Protocol:     &protocol,
		ReadTimeout:  timeouts.Request,
		WriteTimeout: min(timeouts.Request, 3*time.Second), // Run's end waits for a TEARDOWN to be written
		// The watchdog is ours: it knows video from audio.
		InitialUDPReadTimeout: timeouts.Media + timeouts.UDP + time.Second,
		UserAgent:             "Fanlight",
		DialContext:           c.dial,
		DialTLSContext:        c.dialTLS,
		ListenPacket:          c.listenPacket,
		ResolveIPAddr: func(_, host string) (*net.IPAddr, error) {
			return nil, fmt.Errorf("the camera names %q for media: only addresses are taken", quote(host, s.cfg.Credentials))
		},
		OnResponse:        func(res *base.Response) { c.guard(func() { c.onResponse(res) }) },
		OnTransportSwitch: func(error) {},
		OnPacketsLost:     func(n uint64) { s.counters.lost.Add(int64(min(n, 1<<16))) },
		OnDecodeError:     func(error) { s.counters.malformed.Add(1) },
	}
}

// failure explains an error of the client's.
func (c *connection) failure(err error) *failure {
	if f := c.problem.Load(); f != nil {
		return f
	}
	if c.location != "" {
		return &failure{reason: fleet.ReasonProtocolError, message: "the camera redirects", err: &redirectError{c.location}}
	}
	return classify(err, hostPort(c.target.url, c.source.cfg.Credentials), c.source.cfg.Credentials)
}

// hostPort is what messages say of a URL.
func hostPort(u *base.URL, creds fleet.Credentials) string {
	if u.Port() != "" {
		return quote(u.Host, creds)
	}
	port := "554"
	if u.Scheme == "rtsps" {
		port = "322"
	}
	return quote(net.JoinHostPort(u.Hostname(), port), creds)
}

// fail ends the connection from a callback. The first failure counts.
func (c *connection) fail(f *failure) {
	if c.problem.CompareAndSwap(nil, f) {
		c.broken <- f
	}
}

// guard keeps a panic in a callback from ending the process: it ends the
// connection.
func (c *connection) guard(callback func()) {
	defer func() {
		if r := recover(); r != nil {
			c.source.counters.panics.Add(1)
			c.source.log.Error("panic while handling what a camera sent", "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			c.fail(failed(fleet.ReasonProtocolError, "what the camera sent could not be handled: this is a fault of Fanlight's, please report it"))
		}
	}()
	callback()
}

func (c *connection) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.source.dial(ctx, network, address, c.addrs)
	return c.dialled(conn, err)
}

func (c *connection) dialTLS(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := c.source.dialTLS(ctx, network, address, c.addrs)
	return c.dialled(conn, err)
}

func (c *connection) dialled(conn net.Conn, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	c.local = conn.LocalAddr()
	if remote, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		c.remote = remote.AddrPort().Addr().Unmap()
	}
	return conn, nil
}

// listenPacket opens a UDP socket on the address that the camera is reached
// from, not on all of them, and with room for a large keyframe.
func (c *connection) listenPacket(network, address string) (net.PacketConn, error) {
	host, port, err := net.SplitHostPort(address)
	if local, ok := c.local.(*net.TCPAddr); ok && err == nil && host == "" {
		address = net.JoinHostPort(local.AddrPort().Addr().Unmap().String(), port)
	}
	var lc net.ListenConfig
	conn, err := lc.ListenPacket(context.Background(), network, address) // an address: nothing that takes time
	if err != nil {
		return nil, err
	}
	if udp, ok := conn.(*net.UDPConn); ok {
		_ = udp.SetReadBuffer(1 << 20) // the system may allow less, which does for most cameras
	}
	return conn, nil
}

// onResponse changes responses before gortsplib acts on them.
func (c *connection) onResponse(res *base.Response) {
	// Redirects are followed by connect, by its rules.
	if location := res.Header["Location"]; res.StatusCode >= 300 && res.StatusCode < 400 && len(location) > 0 {
		c.location = location[0]
		delete(res.Header, "Location")
	}
	if contentBase, ok := res.Header["Content-Base"]; ok && !usableBase(contentBase) {
		delete(res.Header, "Content-Base") // the URL of the request stands for it
	}
	// Media may come from, and RTCP go to, another address only where that was
	// allowed by name; an address that is not the camera's is otherwise more
	// likely that of a camera behind address translation, or an attack.
	var transport headers.Transport
	if v := res.Header["Transport"]; len(v) > 0 && transport.Unmarshal(v) == nil && transport.Source2 != nil && !c.sourceAllowed(*transport.Source2) {
		transport.Source2 = nil
		res.Header["Transport"] = transport.Marshal()
	}
	if len(res.Body) > 0 && res.StatusCode == base.StatusOK {
		_, sections := splitSDP(res.Body)
		c.noTracks = len(sections) == 0 && bytes.HasPrefix(res.Body, []byte("v="))
		res.Body = repairSDP(res.Body)
	}
}

func (c *connection) sourceAllowed(source string) bool {
	addr, err := netip.ParseAddr(source)
	return err == nil && (addr.Unmap().WithZone("") == c.remote.WithZone("") || c.source.inNetworks(addr))
}

// describe asks for the tracks, and returns those to play.
func (c *connection) describe() (*description.Session, []track, error) {
	creds := c.source.cfg.Credentials
	desc, _, err := c.client.Describe(c.target.url)
	if err != nil {
		switch {
		case !errors.As(err, &liberrors.ErrClientSDPInvalid{}):
			return nil, nil, err
		case c.noTracks:
			return nil, nil, noVideo()
		default:
			return nil, nil, &failure{
				reason: fleet.ReasonProtocolError, err: err,
				message: "the camera's description of its stream (SDP) cannot be read: " + quote(err.Error(), creds),
			}
		}
	}
	tracks, statuses, problem := chooseTracks(desc, creds)
	c.statuses = statuses
	if problem != nil {
		return nil, nil, problem
	}
	return desc, tracks, nil
}

// open asks for the tracks, sets them up and plays.
func (c *connection) open() error {
	s := c.source
	desc, tracks, err := c.describe()
	if err != nil {
		return err
	}
	c.sizeKnown = c.statuses[0].Width > 0
	if tracks, err = c.setup(desc, tracks); err != nil {
		return err
	}
	c.video = tracks[0].media
	for i, t := range tracks {
		c.tracks = append(c.tracks, t.track)
		c.receive(i, t)
	}
	if _, err := c.client.Play(nil); err != nil {
		return err
	}
	s.counters.plays.Add(1)
	c.played.Store(true)
	if w := c.writer.Load(); w != nil {
		c.heed(w)
	}
	return nil
}

// setup sets the tracks up. It returns those that were: audio that the camera
// refuses is left out.
func (c *connection) setup(desc *description.Session, tracks []track) ([]track, error) {
	var done []track
	for i, t := range tracks {
		if i > 0 && c.audioRefused {
			c.refuseAudio()
			continue
		}
		// gortsplib would not survive a control attribute that makes no URL.
		if u, err := t.media.URL(desc.BaseURL); err != nil || u == nil {
			return nil, failed(fleet.ReasonProtocolError, "the camera's description of its stream (SDP) has a control attribute that is no URL")
		}
		if c.target.url.Scheme == "rtsps" && c.target.transport != fleet.TransportTCP && t.media.Profile != headers.TransportProfileSAVP {
			return nil, failed(fleet.ReasonTransportUnsupported, "the camera would send unencrypted media over "+c.target.transport.String()+": set transport to tcp or auto")
		}
		_, err := c.client.Setup(desc.BaseURL, t.media, 0, 0)
		if i > 0 && errors.As(err, &liberrors.ErrClientBadStatusCode{}) {
			c.audioRefused = true // a camera may close the connection over it; the next one is without
			c.refuseAudio()
			continue
		}
		if err != nil {
			return nil, err
		}
		done = append(done, t)
	}
	return done, nil
}

// refuseAudio says in the status that the audio track is not passed on.
func (c *connection) refuseAudio() {
	for i := range c.statuses[1:] { // the video is the first
		if status := &c.statuses[1+i]; status.UnsupportedReason == "" {
			status.UnsupportedReason = "the camera refused to set it up"
		}
	}
}

// receive passes a track's packets on to the stream, which is the connection's
// from its first packet of video on.
func (c *connection) receive(index int, t track) {
	handle := func(p *rtp.Packet) {
		if w := c.writer.Load(); w != nil {
			w.WriteRTP(index, p)
		}
	}
	if t.track.Kind == stream.Video {
		handle = func(p *rtp.Packet) {
			w := c.writer.Load()
			if w == nil || c.again.Load() {
				if w = c.publish(); w == nil {
					return
				}
			}
			c.onVideo(p)
			w.WriteRTP(index, p)
		}
	}
	c.client.OnPacketRTP(t.media, t.format, func(p *rtp.Packet) { c.guard(func() { handle(p) }) })
	c.client.OnPacketRTCP(t.media, func(p rtcp.Packet) {
		w := c.writer.Load()
		if report, ok := p.(*rtcp.SenderReport); ok && report.NTPTime != 0 && w != nil {
			c.guard(func() { w.WriteSenderReport(index, ntpTime(report.NTPTime), report.RTPTime) })
		}
	})
}

// publish makes the stream the connection's. It returns nil if it cannot be.
func (c *connection) publish() *stream.Writer {
	c.source.handover.Lock()
	defer c.source.handover.Unlock()
	if w := c.writer.Load(); w != nil && !c.again.Load() {
		return w // another has taken the stream meanwhile
	}
	w, err := c.source.cfg.Stream.Publish(c.tracks)
	if err != nil {
		c.fail(&failure{reason: fleet.ReasonProtocolError, message: "the stream cannot be passed on", err: err})
		return nil
	}
	c.writer.Store(w)
	c.again.Store(false)
	if c.replaces != nil {
		c.replaces.again.Store(false)
	}
	if c.played.Load() {
		c.heed(w)
	}
	return w
}

// giveBack has the connection that this one was to replace take the stream again,
// with its next packet of video, if this one had taken it. It is called after
// close.
func (c *connection) giveBack() {
	c.source.handover.Lock()
	defer c.source.handover.Unlock()
	if c.writer.Load() != nil {
		c.replaces.again.Store(true)
	}
}

// settle says that the connection has replaced the other.
func (c *connection) settle() {
	c.source.handover.Lock()
	defer c.source.handover.Unlock()
	c.replaces = nil
}

// heed has the camera asked for the keyframes that the stream wants. Until PLAY
// has been accepted nothing can be written to the camera.
func (c *connection) heed(w *stream.Writer) {
	c.source.keys.connected(c, func() { c.guard(func() { c.requestKeyframe(c.video) }) })
	w.OnKeyframeRequest(c.source.keys.ask)
}

// onVideo notes what the watchdog and the status need.
func (c *connection) onVideo(p *rtp.Packet) {
	if hook := c.source.onVideo; hook != nil {
		hook()
	}
	c.lastVideo.Store(int64(time.Since(c.start)))
	c.videoSSRC.Store(p.SSRC)
	first := false
	c.firstOnce.Do(func() { close(c.first); first = true })
	if first || c.sizeKnown { // the stream has nothing of this connection yet
		return
	}
	if stats := c.source.cfg.Stream.Stats(); stats.Width > 0 {
		c.sizeKnown = true
		c.size <- [2]int{stats.Width, stats.Height}
	}
}

// requestKeyframe sends a picture loss indication (RFC 4585 §6.3.1). It does not
// block.
func (c *connection) requestKeyframe(media *description.Media) {
	pli := &rtcp.PictureLossIndication{SenderSSRC: rand.Uint32(), MediaSSRC: c.videoSSRC.Load()}
	if err := c.client.WritePacketRTCP(media, pli); err != nil {
		c.source.countKeyframe(askFailed)
		c.source.log.Debug("keyframe not requested", "error", err)
		return
	}
	c.source.countKeyframe(askedRTCP)
}

// ntpTime decodes a 64-bit NTP timestamp (RFC 3550 §4) of the era that began in
// 1900.
func ntpTime(v uint64) time.Time {
	const unixEpoch = 2_208_988_800 // seconds from 1900 to 1970
	return time.Unix(int64(v>>32)-unixEpoch, int64(v&0xffff_ffff*1_000_000_000>>32))
}
