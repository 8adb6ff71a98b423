// Package onviftest is an ONVIF camera for tests: an HTTP server that answers the
// operations which Fanlight asks for, and fails the test over every request that
// is not as the schema and the specifications have it.
//
// It has what real cameras are found with: a clock that is wrong, a media service
// at another port, path or host than it says, Media2 alone, HTTP Digest alone, and
// whatever [Config.Override] makes of an operation.
//
// Each request is held against the schemas in schema/, which are an extract of
// ONVIF's written for these tests, by xmllint (Debian's libxml2-utils). The answers
// are too.
package onviftest

import (
	"embed"
	"encoding/xml"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// The namespaces of the services.
const (
	Device = "http://www.onvif.org/ver10/device/wsdl"
	Media  = "http://www.onvif.org/ver10/media/wsdl"
	Media2 = "http://www.onvif.org/ver20/media/wsdl"
)

// Auth is how a camera asks for the password.
type Auth int

// The ways.
const (
	AuthToken  Auth = iota // WS-Security user name token
	AuthDigest             // HTTP Digest, MD5, user name tokens are ignored
	AuthSHA256             // HTTP Digest, SHA-256
)

// Profile is a media profile.
type Profile struct {
	Token, URL    string
	Encoding      string // "": H264
	Width, Height int
}

// Config says what the camera is like. The zero value has ver10 alone, no profile
// and no password.
type Config struct {
	Username, Password string
	Auth               Auth
	Clock              time.Duration // the camera's, ahead of ours

	Services   []string  // namespaces of the media services; none: Media
	NoServices bool      // GetServices is not supported
	Media      string    // URL that the media service is said to be at; "": the device service's
	Profiles   []Profile // at least one

	// OnKeyframe is called with the profile's token at each SetSynchronizationPoint.
	OnKeyframe func(token string)
	// Override, if it returns true, has answered an operation in place of the camera.
	Override func(w http.ResponseWriter, r *http.Request, operation string) bool
}

// Camera is the server.
type Camera struct {
	// Static after Run.
	t      testing.TB
	cfg    Config
	server *httptest.Server

	mu     sync.Mutex // guards the rest
	calls  []string   // operations, as "GetProfiles" or "ver20 GetProfiles"
	nonces map[string]bool
	count  int // of the last answer to the challenge
	fresh  string
	clock  time.Duration
	texts  []string // messages, to be held against the schema
}

//go:embed schema
var schema embed.FS

// Run runs a camera until the test ends.
func Run(t testing.TB, cfg Config) *Camera {
	t.Helper()
	if len(cfg.Services) == 0 {
		cfg.Services = []string{Media}
	}
	c := &Camera{t: t, cfg: cfg, nonces: make(map[string]bool), fresh: "nonce-1", clock: cfg.Clock}
	c.server = httptest.NewServer(c)
	t.Cleanup(func() {
		c.server.Close()
		c.validate()
	})
	return c
}

// URL returns the address of the device service.
func (c *Camera) URL() string { return c.server.URL + "/onvif/device_service" }

// Handler returns what answers the requests, for another server.
func (c *Camera) Handler() http.Handler { return c }

// Calls returns how often an operation was called; "": any of them.
func (c *Camera) Calls(operation string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, call := range c.calls {
		if operation == "" || call == operation {
			n++
		}
	}
	return n
}

// SetClock sets how far the camera's clock is ahead of ours.
func (c *Camera) SetClock(ahead time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.clock = ahead
}

// Expire has the next answer to an HTTP Digest challenge refused as stale.
func (c *Camera) Expire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.fresh += "+"
}

// request is what is read of a message.
type request struct {
	Token *struct {
		Username string `xml:"Username"`
		Password string `xml:"Password"`
		Nonce    string `xml:"Nonce"`
		Created  string `xml:"Created"`
	} `xml:"Header>Security>UsernameToken"`
	Body struct {
		Operation struct {
			XMLName      xml.Name
			ProfileToken string `xml:"ProfileToken"`
		} `xml:",any"`
	} `xml:"Body"`
}

// ServeHTTP answers a request.
func (c *Camera) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	var q request
	if err == nil {
		err = xml.Unmarshal(text, &q)
	}
	if err != nil {
		c.t.Errorf("request that cannot be read: %v", err)
		return
	}
	name := q.Body.Operation.XMLName
	c.checkHTTP(r, name)
	call := name.Local
	if name.Space == Media2 {
		call = "ver20 " + call
	}
	c.mu.Lock()
	c.texts = append(c.texts, string(text))
	c.calls = append(c.calls, call)
	c.mu.Unlock()
	if c.cfg.Password != "" && strings.Contains(string(text), c.cfg.Password) {
		c.t.Error("a request has the password in it")
	}
	if c.cfg.Override != nil && c.cfg.Override(w, r, name.Local) {
		return
	}
	public := name.Local == "GetSystemDateAndTime" || name.Local == "GetServices" || name.Local == "GetCapabilities"
	if public && (q.Token != nil || r.Header.Get("Authorization") != "") {
		c.t.Errorf("%s has credentials, which it does not need", name.Local)
	}
	if !public && c.cfg.Username != "" && !c.admit(w, r, &q) {
		return
	}
	if name.Space != Device && !slices.Contains(c.cfg.Services, name.Space) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	c.answer(w, r, &q)
}

// checkHTTP checks the binding of SOAP 1.2 to HTTP (part 2 §7, RFC 3902).
func (c *Camera) checkHTTP(r *http.Request, operation xml.Name) {
	media, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || media != "application/soap+xml" || !strings.EqualFold(params["charset"], "utf-8") {
		c.t.Errorf("content type %q", r.Header.Get("Content-Type"))
	}
	if want := operation.Space + "/" + operation.Local; params["action"] != want {
		c.t.Errorf("action %q, want %q", params["action"], want)
	}
	if r.Method != http.MethodPost {
		c.t.Errorf("method %s", r.Method)
	}
}

func (c *Camera) answer(w http.ResponseWriter, r *http.Request, q *request) {
	name := q.Body.Operation.XMLName
	switch name.Local {
	case "GetSystemDateAndTime":
		c.reply(w, c.date())
	case "GetServices":
		if c.cfg.NoServices {
			c.Fault(w, http.StatusInternalServerError, "s:Receiver", "ter:ActionNotSupported")
			return
		}
		out := c.service(Device, r)
		for _, s := range c.cfg.Services {
			out += c.service(s, r)
		}
		c.reply(w, "<tds:GetServicesResponse>"+out+"</tds:GetServicesResponse>")
	case "GetCapabilities":
		c.reply(w, "<tds:GetCapabilitiesResponse><tds:Capabilities><tt:Media><tt:XAddr>"+c.xaddr(r)+
			"</tt:XAddr><tt:StreamingCapabilities/></tt:Media></tds:Capabilities></tds:GetCapabilitiesResponse>")
	case "GetProfiles":
		c.reply(w, "<m:GetProfilesResponse xmlns:m=\""+name.Space+"\">"+c.profiles(name.Space)+"</m:GetProfilesResponse>")
	default:
		i := slices.IndexFunc(c.cfg.Profiles, func(p Profile) bool { return p.Token == q.Body.Operation.ProfileToken })
		if i < 0 {
			c.Fault(w, http.StatusBadRequest, "s:Sender", "ter:InvalidArgVal", "ter:NoProfile")
			return
		}
		c.answerProfile(w, name, c.cfg.Profiles[i])
	}
}

func (c *Camera) answerProfile(w http.ResponseWriter, operation xml.Name, p Profile) {
	switch operation.Local {
	case "GetStreamUri":
		uri := escape(p.URL)
		if operation.Space == Media2 {
			c.reply(w, "<tr2:GetStreamUriResponse><tr2:Uri>"+uri+"</tr2:Uri></tr2:GetStreamUriResponse>")
			return
		}
		c.reply(w, "<trt:GetStreamUriResponse><trt:MediaUri><tt:Uri>"+uri+"</tt:Uri><tt:InvalidAfterConnect>false</tt:InvalidAfterConnect>"+
			"<tt:InvalidAfterReboot>false</tt:InvalidAfterReboot><tt:Timeout>PT0S</tt:Timeout></trt:MediaUri></trt:GetStreamUriResponse>")
	case "SetSynchronizationPoint":
		if c.cfg.OnKeyframe != nil {
			c.cfg.OnKeyframe(p.Token)
		}
		c.reply(w, `<m:SetSynchronizationPointResponse xmlns:m="`+operation.Space+`"/>`)
	default:
		c.t.Errorf("operation %s is not expected", operation.Local)
	}
}

func (c *Camera) date() string {
	c.mu.Lock()
	now := time.Now().Add(c.clock).UTC()
	c.mu.Unlock()
	return fmt.Sprintf("<tds:GetSystemDateAndTimeResponse><tds:SystemDateAndTime><tt:DateTimeType>Manual</tt:DateTimeType><tt:DaylightSavings>false</tt:DaylightSavings>"+
		"<tt:UTCDateTime><tt:Time><tt:Hour>%d</tt:Hour><tt:Minute>%d</tt:Minute><tt:Second>%d</tt:Second></tt:Time>"+
		"<tt:Date><tt:Year>%d</tt:Year><tt:Month>%d</tt:Month><tt:Day>%d</tt:Day></tt:Date></tt:UTCDateTime></tds:SystemDateAndTime></tds:GetSystemDateAndTimeResponse>",
		now.Hour(), now.Minute(), now.Second(), now.Year(), now.Month(), now.Day())
}

func (c *Camera) service(namespace string, r *http.Request) string {
	xaddr := "http://" + r.Host + "/onvif/device_service"
	if namespace != Device {
		xaddr = c.xaddr(r)
	}
	return "<tds:Service><tds:Namespace>" + namespace + "</tds:Namespace><tds:XAddr>" + xaddr +
		"</tds:XAddr><tds:Version><tt:Major>2</tt:Major><tt:Minor>60</tt:Minor></tds:Version></tds:Service>"
}

func (c *Camera) xaddr(r *http.Request) string {
	if c.cfg.Media != "" {
		return escape(c.cfg.Media)
	}
	return "http://" + r.Host + "/onvif/device_service"
}

func (c *Camera) profiles(namespace string) string {
	var out strings.Builder
	for _, p := range c.cfg.Profiles {
		encoding := p.Encoding
		if encoding == "" {
			encoding = "H264"
		}
		common := `token="e" ><tt:Name>e</tt:Name><tt:UseCount>1</tt:UseCount><tt:Encoding>` + encoding + fmt.Sprintf(
			"</tt:Encoding><tt:Resolution><tt:Width>%d</tt:Width><tt:Height>%d</tt:Height></tt:Resolution><tt:Quality>1</tt:Quality>", p.Width, p.Height)
		if namespace == Media2 {
			fmt.Fprintf(&out, `<tr2:Profiles token="%s"><tr2:Name>p</tr2:Name><tr2:Configurations><tr2:VideoEncoder %s</tr2:VideoEncoder></tr2:Configurations></tr2:Profiles>`, escape(p.Token), common)
			continue
		}
		fmt.Fprintf(&out, `<trt:Profiles token="%s"><tt:Name>p</tt:Name><tt:VideoEncoderConfiguration %s<tt:Multicast><tt:Address><tt:Type>IPv4</tt:Type>`+
			`<tt:IPv4Address>0.0.0.0</tt:IPv4Address></tt:Address><tt:Port>0</tt:Port><tt:TTL>1</tt:TTL><tt:AutoStart>false</tt:AutoStart></tt:Multicast>`+
			`<tt:SessionTimeout>PT60S</tt:SessionTimeout></tt:VideoEncoderConfiguration></trt:Profiles>`, escape(p.Token), common)
	}
	return out.String()
}

// reply writes a SOAP message.
func (c *Camera) reply(w http.ResponseWriter, body string) {
	c.write(w, http.StatusOK, body)
}

// Fault answers with a SOAP fault: its code and subcodes, one within the other.
func (c *Camera) Fault(w http.ResponseWriter, status int, code string, subcodes ...string) {
	sub := ""
	for _, s := range slices.Backward(subcodes) {
		sub = "<s:Subcode><s:Value>" + s + "</s:Value>" + sub + "</s:Subcode>"
	}
	c.write(w, status, "<s:Fault><s:Code><s:Value>"+code+"</s:Value>"+sub+`</s:Code><s:Reason><s:Text xml:lang="en">`+
		escape("no: "+c.cfg.Password)+`</s:Text></s:Reason></s:Fault>`)
}

func (c *Camera) write(w http.ResponseWriter, status int, body string) {
	text := xml.Header + `<s:Envelope xmlns:s="http://www.w3.org/2003/05/soap-envelope" xmlns:tt="http://www.onvif.org/ver10/schema" xmlns:tds="` + Device +
		`" xmlns:trt="` + Media + `" xmlns:tr2="` + Media2 + `" xmlns:ter="http://www.onvif.org/ver10/error"><s:Body>` + body + `</s:Body></s:Envelope>`
	c.mu.Lock()
	c.texts = append(c.texts, text)
	c.mu.Unlock()
	w.Header().Set("Content-Type", "application/soap+xml; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, text) //nolint:gosec // a test's own text; whoever asked may be gone
}

func escape(s string) string {
	var b strings.Builder
	_ = xml.EscapeText(&b, []byte(s)) // a strings.Builder takes everything
	return b.String()
}

// HasXMLLint tells whether messages can be held against the schema. Under CI they
// must be.
func HasXMLLint(t testing.TB) bool {
	t.Helper()
	_, err := exec.LookPath("xmllint")
	if err != nil && os.Getenv("CI") != "" {
		t.Fatal("xmllint is missing: install libxml2-utils")
	}
	return err == nil
}

// validate holds all messages against the schema.
func (c *Camera) validate() {
	c.mu.Lock()
	texts := slices.Compact(c.texts)
	c.mu.Unlock()
	if len(texts) == 0 {
		return
	}
	if !HasXMLLint(c.t) {
		c.t.Log("messages not held against the schema: xmllint is missing")
		return
	}
	if err := Validate(c.t.TempDir(), texts); err != nil {
		c.t.Error(err)
	}
}

// Validate holds messages against the schema, with a directory to write into.
func Validate(dir string, texts []string) error {
	if err := os.CopyFS(dir, schema); err != nil {
		return err
	}
	args := []string{"--noout", "--nonet", "--schema", filepath.Join(dir, "schema", "all.xsd")}
	for i, text := range texts {
		file := filepath.Join(dir, fmt.Sprintf("message-%d.xml", i))
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			return err
		}
		args = append(args, file)
	}
	out, err := exec.Command("xmllint", args...).CombinedOutput() //nolint:gosec,noctx // our own arguments, and it ends by itself
	if err != nil {
		return fmt.Errorf("messages that are not as the schema has them: %w\n%s", err, out)
	}
	return nil
}

// Host returns the host and port of the camera.
func (c *Camera) Host() string {
	u, err := url.Parse(c.server.URL)
	if err != nil {
		c.t.Fatal(err)
	}
	return u.Host
}
