package source

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode"

	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"

	"fanlight/internal/fleet"
)

// failure is why a connection ended or did not come about.
type failure struct {
	reason         fleet.Reason
	message        string // what to change; no credentials, no path of a URL: what others said is quoted
	err            error  // nil: there is no more to it
	otherTransport bool   // another transport may work
	wasLive        bool   // media had come
	again          bool   // none really: to be tried again soon, and not to be told
}

func (f *failure) Error() string {
	if f.message == "" {
		return string(f.reason)
	}
	return string(f.reason) + ": " + f.message
}

func (f *failure) Unwrap() error { return f.err }

func failed(reason fleet.Reason, message string) *failure {
	return &failure{reason: reason, message: message}
}

// tryOther marks a failure that another transport may not have.
func (f *failure) tryOther() *failure {
	f.otherTransport = true
	return f
}

// classify turns an error of the network, of TLS or of gortsplib into a failure.
// host is the host and port of the URL, quoted.
func classify(err error, host string, creds fleet.Credentials) *failure {
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	f = classifyRTSP(err, creds)
	if f == nil {
		f = classifyNetwork(err, host, creds)
	}
	if f == nil {
		f = failed(fleet.ReasonProtocolError, "the camera's answer cannot be used: "+quote(err.Error(), creds))
	}
	f.err = err
	return f
}

// classifyNetwork returns nil for an error that is none of the network's.
func classifyNetwork(err error, host string, creds fleet.Credentials) *failure {
	var dns *net.DNSError
	var certificate *tls.CertificateVerificationError
	var record tls.RecordHeaderError
	var alert tls.AlertError
	var timeout net.Error
	switch {
	case errors.As(err, &dns):
		return failed(fleet.ReasonHostNotFound, fmt.Sprintf("the host name %s cannot be resolved: check the URL, or use the camera's address", quote(dns.Name, creds)))
	case errors.As(err, &certificate):
		return failed(fleet.ReasonTLSFailed, "the camera's certificate is not valid for the host in the URL, or not signed by an authority "+
			"that this machine knows; if it is the camera's own, pin its SHA-256 fingerprint"+fingerprintOf(certificate))
	case errors.As(err, &record), errors.As(err, &alert):
		return noTLS(host)
	case errors.Is(err, syscall.ECONNREFUSED):
		return failed(fleet.ReasonConnectionRefused, "nothing listens on "+host+": check the URL's port, and that the camera is on and has RTSP enabled")
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return failed(fleet.ReasonTimeout, host+" cannot be reached from this node: check the camera's power and network, and the routes")
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return failed(fleet.ReasonTimeout, host+" does not answer: check the camera's power and network, and firewalls between it and this node")
	case cut(err), errors.Is(err, net.ErrClosed):
		return failed(fleet.ReasonConnectionClosed, "the camera closed the connection")
	}
	return nil
}

// cut tells whether the other side has ended the connection.
func cut(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}

// noTLS is the failure of a camera that does not answer a TLS handshake with one.
// host is quoted.
func noTLS(host string) *failure {
	return failed(fleet.ReasonTLSFailed, "the camera does not speak TLS on "+host+": use rtsp://, or the port of its rtsps service")
}

// classifyRTSP returns nil for an error that gortsplib has no type for.
func classifyRTSP(err error, creds fleet.Credentials) *failure {
	var status liberrors.ErrClientBadStatusCode
	switch {
	case errors.As(err, &status):
		return classifyStatus(status.Code, quote(status.Message, creds), creds)
	case errors.As(err, &liberrors.ErrClientAuthSetup{}):
		return failed(fleet.ReasonAuthenticationFailed, "the camera asks for a kind of authentication other than Basic and Digest: set one of these on the camera")
	case errors.As(err, &liberrors.ErrClientRequestTimedOut{}):
		return failed(fleet.ReasonTimeout, "the camera accepted the connection but does not answer requests: check that the port is its RTSP port")
	case errors.As(err, &liberrors.ErrClientTCPTimeout{}), errors.As(err, &liberrors.ErrClientUDPTimeout{}):
		return failed(fleet.ReasonNoMedia, "the camera stopped sending")
	case errors.As(err, &liberrors.ErrClientServerRequestedTCP{}), errors.As(err, &liberrors.ErrClientServerPortsNotProvided{}):
		return failed(fleet.ReasonTransportUnsupported, "the camera does not send over UDP: set transport to tcp or auto").tryOther()
	case errors.As(err, &liberrors.ErrClientServerRequestedUDP{}):
		return failed(fleet.ReasonTransportUnsupported, "the camera does not send over TCP: set transport to udp or auto").tryOther()
	case errors.As(err, &liberrors.ErrClientTerminated{}):
		return failed(fleet.ReasonConnectionClosed, "the connection was closed")
	}
	return nil
}

// classifyStatus explains an RTSP status code (RFC 2326 §11).
func classifyStatus(code base.StatusCode, text string, creds fleet.Credentials) *failure {
	switch code {
	case base.StatusUnauthorized:
		if creds.IsZero() {
			return failed(fleet.ReasonAuthenticationFailed, "the camera asks for a user name and password: set them")
		}
		return failed(fleet.ReasonAuthenticationFailed, "the camera refused the user name or password: set the right ones")
	case base.StatusForbidden:
		return failed(fleet.ReasonAuthenticationFailed, "the camera does not let this user watch (403): give the user the right to live view, or use another")
	case base.StatusNotFound, base.StatusGone:
		return failed(fleet.ReasonStreamNotFound, fmt.Sprintf("the camera has no stream at this path (%d): check the path of the URL", code))
	case base.StatusNotEnoughBandwidth, base.StatusServiceUnavailable:
		return failed(fleet.ReasonCameraBusy, fmt.Sprintf("the camera has no session left (%d %s): end other clients, or raise its limit", code, text))
	case base.StatusUnsupportedTransport:
		return failed(fleet.ReasonTransportUnsupported, "the camera refused the transport (461): set transport to another one, or to auto").tryOther()
	default:
		return failed(fleet.ReasonProtocolError, fmt.Sprintf("the camera answered %d %s", code, text))
	}
}

// fingerprintOf returns the fingerprint of a certificate that was refused, so
// that the operator can compare and pin it.
func fingerprintOf(err *tls.CertificateVerificationError) string {
	if len(err.UnverifiedCertificates) == 0 {
		return ""
	}
	sum := sha256.Sum256(err.UnverifiedCertificates[0].Raw)
	return " (it has " + hex.EncodeToString(sum[:]) + ")"
}

// quote makes text of a camera's fit for a message and for the log: short,
// printable, and without the password, which a camera may echo as it is, in other
// letters, quoted, as in a URL, or as in an Authorization header (Basic, RFC 7617
// §2).
func quote(s string, creds fleet.Credentials) string {
	const most = 120
	if creds.Password != "" {
		quoted := strconv.Quote(creds.Password)
		for _, secret := range []string{
			base64.StdEncoding.EncodeToString([]byte(creds.Username + ":" + creds.Password)),
			quoted[1 : len(quoted)-1],
			strings.TrimPrefix(url.UserPassword("", creds.Password).String(), ":"),
			creds.Password,
		} {
			s = hide(s, secret)
		}
	}
	s = strings.ToValidUTF8(s, "?")
	s = strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, s)
	if r := []rune(s); len(r) > most {
		s = string(r[:most]) + "…"
	}
	return s
}

// hide replaces a secret wherever it is in s, in upper or lower case.
func hide(s, secret string) string {
	pattern, err := regexp.Compile("(?i)" + regexp.QuoteMeta(secret))
	if err != nil { // not UTF-8
		return strings.ReplaceAll(s, secret, hidden)
	}
	return pattern.ReplaceAllLiteralString(s, hidden)
}

const hidden = "[hidden]"

// noMedia is the failure of a camera that sends no video.
func noMedia(t fleet.Transport, waited time.Duration, wasLive bool) *failure {
	f := failed(fleet.ReasonNoMedia, fmt.Sprintf("the camera is connected but no video came for %v", waited))
	if t == fleet.TransportUDP && !wasLive {
		f.message += ": let UDP through from the camera to this node, or set transport to tcp"
		return f.tryOther()
	}
	f.message += ": check the camera's encoder"
	return f
}
