package onvif

import (
	"bytes"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // what WS-Security's PasswordDigest is made with
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"fanlight/internal/fleet"
)

// The namespaces, which are the beginning of the actions too.
const (
	deviceNamespace = "http://www.onvif.org/ver10/device/wsdl"
	mediaNamespace  = "http://www.onvif.org/ver10/media/wsdl"
	media2Namespace = "http://www.onvif.org/ver20/media/wsdl"
	schemaNamespace = "http://www.onvif.org/ver10/schema"

	soapNamespace = "http://www.w3.org/2003/05/soap-envelope"
	wssNamespace  = "http://docs.oasis-open.org/wss/2004/01/oasis-200401-wss-"
)

// errNoProfile is the fault of a camera that does not know the profile; it is
// ErrUnsupported to others.
var errNoProfile = fmt.Errorf("%w: no such profile", ErrUnsupported)

// envelope returns a SOAP 1.2 message.
func envelope(header, operation string) string {
	if header != "" {
		header = "<s:Header>" + header + "</s:Header>"
	}
	return xml.Header + `<s:Envelope xmlns:s="` + soapNamespace + `">` + header + "<s:Body>" + operation + "</s:Body></s:Envelope>"
}

// escape makes text fit for an element.
func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

// usernameToken returns the header of WS-Security's Username Token Profile 1.0
// §3.1, with the password digested.
func usernameToken(creds fleet.Credentials, now time.Time) string {
	nonce := make([]byte, 16)
	_, _ = rand.Read(nonce) // never fails
	created := now.UTC().Format("2006-01-02T15:04:05.000Z")
	return `<wsse:Security s:mustUnderstand="1" xmlns:wsse="` + wssNamespace + `wssecurity-secext-1.0.xsd" xmlns:wsu="` + wssNamespace + `wssecurity-utility-1.0.xsd">` +
		`<wsse:UsernameToken><wsse:Username>` + escape(creds.Username) + `</wsse:Username>` +
		`<wsse:Password Type="` + wssNamespace + `username-token-profile-1.0#PasswordDigest">` + passwordDigest(nonce, created, creds.Password) + `</wsse:Password>` +
		`<wsse:Nonce EncodingType="` + wssNamespace + `soap-message-security-1.0#Base64Binary">` + base64.StdEncoding.EncodeToString(nonce) + `</wsse:Nonce>` +
		`<wsu:Created>` + created + `</wsu:Created></wsse:UsernameToken></wsse:Security>`
}

func passwordDigest(nonce []byte, created, password string) string {
	h := sha1.New() //nolint:gosec // see above
	h.Write(nonce)
	io.WriteString(h, created+password) //nolint:errcheck // a hash takes everything
	return base64.StdEncoding.EncodeToString(h.Sum(nil))
}

// The operations of the device service.
const (
	getSystemDateAndTime = `<m:GetSystemDateAndTime xmlns:m="` + deviceNamespace + `"/>`
	getServices          = `<m:GetServices xmlns:m="` + deviceNamespace + `"><m:IncludeCapability>false</m:IncludeCapability></m:GetServices>`
	getCapabilities      = `<m:GetCapabilities xmlns:m="` + deviceNamespace + `"><m:Category>Media</m:Category></m:GetCapabilities>`
)

func setSynchronizationPoint(namespace, token string) string {
	return `<m:SetSynchronizationPoint xmlns:m="` + namespace + `"><m:ProfileToken>` + escape(token) + `</m:ProfileToken></m:SetSynchronizationPoint>`
}

func getProfiles(namespace string) string {
	if namespace == media2Namespace {
		return `<m:GetProfiles xmlns:m="` + namespace + `"><m:Type>VideoEncoder</m:Type></m:GetProfiles>`
	}
	return `<m:GetProfiles xmlns:m="` + namespace + `"/>`
}

func getStreamURI(namespace, token string) string {
	if namespace == media2Namespace {
		return `<m:GetStreamUri xmlns:m="` + namespace + `"><m:Protocol>RTSP</m:Protocol><m:ProfileToken>` + escape(token) + `</m:ProfileToken></m:GetStreamUri>`
	}
	return `<m:GetStreamUri xmlns:m="` + namespace + `" xmlns:tt="` + schemaNamespace + `"><m:StreamSetup><tt:Stream>RTP-Unicast</tt:Stream>` +
		`<tt:Transport><tt:Protocol>RTSP</tt:Protocol></tt:Transport></m:StreamSetup><m:ProfileToken>` + escape(token) + `</m:ProfileToken></m:GetStreamUri>`
}

// body is the SOAP body of any of the answers, by local names: cameras get
// namespaces wrong.
type body struct {
	Fault *fault `xml:"Fault"`

	DateAndTime dateAndTime `xml:"GetSystemDateAndTimeResponse>SystemDateAndTime>UTCDateTime"`
	Services    []struct {
		Namespace string `xml:"Namespace"`
		XAddr     string `xml:"XAddr"`
	} `xml:"GetServicesResponse>Service"`
	MediaXAddr string    `xml:"GetCapabilitiesResponse>Capabilities>Media>XAddr"`
	Profiles   []profile `xml:"GetProfilesResponse>Profiles"`
	StreamURI  string    `xml:"GetStreamUriResponse>MediaUri>Uri"`
	StreamURI2 string    `xml:"GetStreamUriResponse>Uri"`
}

// profile is a media profile, of ver10 or ver20.
type profile struct {
	Token    string  `xml:"token,attr"`
	Encoder  encoder `xml:"VideoEncoderConfiguration"`
	Encoder2 encoder `xml:"Configurations>VideoEncoder"`
}

type encoder struct {
	Encoding string `xml:"Encoding"`
	Width    int    `xml:"Resolution>Width"`
	Height   int    `xml:"Resolution>Height"`
}

type dateAndTime struct {
	Year   int `xml:"Date>Year"`
	Month  int `xml:"Date>Month"`
	Day    int `xml:"Date>Day"`
	Hour   int `xml:"Time>Hour"`
	Minute int `xml:"Time>Minute"`
	Second int `xml:"Time>Second"`
}

// time returns the time, if it is one that a camera could have.
func (d dateAndTime) time() (time.Time, bool) {
	if d.Year < 1970 || d.Year > 9999 || d.Month < 1 || d.Month > 12 || d.Day < 1 || d.Day > 31 {
		return time.Time{}, false
	}
	return time.Date(d.Year, time.Month(d.Month), d.Day, d.Hour, d.Minute, d.Second, 0, time.UTC), true
}

// fault is a fault of SOAP 1.2 (part 1 §5.4), or of 1.1, which some answer with.
type fault struct {
	Code    string `xml:"Code>Value"`
	Subcode string `xml:"Code>Subcode>Value"`
	Detail  string `xml:"Code>Subcode>Subcode>Value"`
	Old     string `xml:"faultcode"`
}

// err says what a fault means (ONVIF Core Specification §5.8.2.3). Only names
// that are known here reach the error: a camera could repeat a password.
func (f *fault) err() error {
	for _, code := range []string{f.Detail, f.Subcode, f.Code, f.Old} {
		switch code = local(code); code {
		case "NotAuthorized", "FailedAuthentication", "FailedCheck", "InvalidSecurity", "InvalidSecurityToken":
			return refused(code)
		case "NoProfile", "InvalidArgVal":
			return errNoProfile
		case "ActionNotSupported", "OptionalActionNotImplemented":
			return fmt.Errorf("%w (%s)", ErrUnsupported, code)
		case "Receiver", "Server":
			return fmt.Errorf("%w: the camera has a fault", ErrUnavailable)
		}
	}
	return fmt.Errorf("%w: the camera does not know the request", ErrUnsupported)
}

// local returns a qualified name's local part.
func local(name string) string {
	name = strings.TrimSpace(name)
	return name[strings.LastIndex(name, ":")+1:]
}

// parse reads a SOAP message. Entities that it declares are not expanded, and
// nothing is fetched: encoding/xml knows neither.
func parse(text []byte) (*body, error) {
	d := xml.NewDecoder(bytes.NewReader(text))
	// Names and tokens in other character sets are of no interest.
	d.CharsetReader = func(_ string, r io.Reader) (io.Reader, error) { return ascii{r}, nil }
	var e struct {
		XMLName xml.Name
		Body    *body `xml:"Body"`
	}
	if err := d.Decode(&e); err != nil {
		return nil, err
	}
	if e.XMLName.Local != "Envelope" || e.Body == nil {
		return nil, errors.New("not a soap message")
	}
	return e.Body, nil
}

// ascii reads what is ASCII, and a question mark for each other byte.
type ascii struct{ r io.Reader }

func (a ascii) Read(p []byte) (int, error) {
	n, err := a.r.Read(p)
	for i, b := range p[:n] {
		if b >= 0x80 {
			p[i] = '?'
		}
	}
	return n, err //nolint:wrapcheck // io.EOF must stay itself
}
