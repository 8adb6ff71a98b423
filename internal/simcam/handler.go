package simcam

import (
	"net"
	"strings"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/pion/rtcp"

	"fanlight/internal/fleet"
)

// handler is what gortsplib calls: requests of one connection one after the
// other, those of others at the same time.
type handler struct{ s *Server }

// OnDescribe answers DESCRIBE.
func (h *handler) OnDescribe(ctx *gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	cam, res, err := h.admit(ctx.Conn, ctx.Request, ctx.Path)
	if cam == nil {
		return res, nil, err
	}
	return res, cam.stream, nil
}

// OnSetup answers SETUP.
func (h *handler) OnSetup(ctx *gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	cam, res, err := h.admit(ctx.Conn, ctx.Request, ctx.Path)
	if cam == nil {
		return res, nil, err
	}
	want, got := h.s.cfg.Transport, ctx.Transport.Protocol
	if (want == fleet.TransportTCP && got != gortsplib.ProtocolTCP) || (want == fleet.TransportUDP && got != gortsplib.ProtocolUDP) {
		return &base.Response{StatusCode: base.StatusUnsupportedTransport}, nil, nil
	}
	return res, cam.stream, nil
}

// OnPlay answers PLAY.
func (h *handler) OnPlay(ctx *gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	cam, res, err := h.admit(ctx.Conn, ctx.Request, ctx.Path)
	if cam == nil {
		return res, err
	}
	ctx.Session.OnPacketRTCPAny(func(_ *description.Media, pkt rtcp.Packet) { cam.onRTCP(pkt) })
	cam.mu.Lock()
	defer cam.mu.Unlock()
	cam.plays++
	cam.keyframeWanted = cam.keyframeWanted || h.s.cfg.KeyframeAtPlay
	cam.sessions[ctx.Session] = struct{}{}
	cam.peak = max(cam.peak, len(cam.sessions))
	h.s.log.Info("play", "camera", cam.name, "remote", ctx.Conn.NetConn().RemoteAddr().String())
	return res, nil
}

// OnSessionClose is called when a session has ended.
func (h *handler) OnSessionClose(ctx *gortsplib.ServerHandlerOnSessionCloseCtx) {
	for _, cam := range h.s.cameras {
		cam.mu.Lock()
		delete(cam.sessions, ctx.Session)
		cam.mu.Unlock()
	}
}

// OnStreamWriteError is called for each packet that a reader was too slow for.
func (h *handler) OnStreamWriteError(ctx *gortsplib.ServerHandlerOnStreamWriteErrorCtx) {
	h.s.log.Debug("packet dropped", "error", ctx.Error)
}

// OnPacketsLost is called for media from clients, of which there is none.
func (h *handler) OnPacketsLost(*gortsplib.ServerHandlerOnPacketsLostCtx) {}

// OnDecodeError is called for a packet from a client that cannot be read.
func (h *handler) OnDecodeError(ctx *gortsplib.ServerHandlerOnDecodeErrorCtx) {
	h.s.log.Debug("packet unreadable", "error", ctx.Error)
}

// admit returns the camera that a request is for, or nil and the response.
func (h *handler) admit(conn *gortsplib.ServerConn, req *base.Request, path string) (*camera, *base.Response, error) {
	cam, ok := h.s.camera(strings.Trim(path, "/"))
	if !ok {
		return nil, &base.Response{StatusCode: base.StatusNotFound}, nil
	}
	cam.mu.Lock()
	fault := cam.currentFault(time.Now())
	cam.mu.Unlock()
	switch fault {
	case Stop:
		hangUp(conn.NetConn())
		return nil, &base.Response{StatusCode: base.StatusServiceUnavailable}, nil
	case NotFound:
		return nil, &base.Response{StatusCode: base.StatusNotFound}, nil
	case Busy:
		return nil, &base.Response{StatusCode: base.StatusNotEnoughBandwidth}, nil
	case Unauthorized:
		conn.VerifyCredentials(req, "nobody", "") // makes the nonce that the response needs
		return nil, &base.Response{StatusCode: base.StatusUnauthorized}, liberrors.ErrServerAuth{}
	default: // the others are of the media
	}
	if h.s.cfg.Username != "" && !conn.VerifyCredentials(req, h.s.cfg.Username, h.s.cfg.Password) {
		return nil, &base.Response{StatusCode: base.StatusUnauthorized}, liberrors.ErrServerAuth{}
	}
	return cam, &base.Response{StatusCode: base.StatusOK}, nil
}

// hangUp closes a connection before the response can be written.
func hangUp(conn net.Conn) {
	_ = conn.Close() // the error would be that it is closed already
}
