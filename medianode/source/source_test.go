package source

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/medianode/stream"
)

func TestTransports(t *testing.T) {
	for _, c := range []struct {
		name   string
		camera simcam.Config
		ask    fleet.Transport
		want   fleet.Transport
		plays  int
	}{
		{"auto", simcam.Config{}, fleet.TransportAuto, fleet.TransportUDP, 1},
		{"tcp", simcam.Config{}, fleet.TransportTCP, fleet.TransportTCP, 1},
		{"udp", simcam.Config{}, fleet.TransportUDP, fleet.TransportUDP, 1},
		{"auto, camera refuses UDP", simcam.Config{Transport: fleet.TransportTCP}, fleet.TransportAuto, fleet.TransportTCP, 1},
		{"auto, camera refuses TCP", simcam.Config{Transport: fleet.TransportUDP}, fleet.TransportAuto, fleet.TransportUDP, 1},
		{"auto, UDP gets lost", simcam.Config{LoseUDP: true}, fleet.TransportAuto, fleet.TransportTCP, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			sim, _ := runSim(t, c.camera)
			r := pull(t, Config{
				Profile:  fleet.Profile{URL: sim.URL("cam"), Transport: c.ask},
				Timeouts: Timeouts{UDP: 500 * time.Millisecond},
			})
			status, _ := r.waitLive(t, 0)
			r.waitPicture(t, 2)
			profile := status.Profiles[0]
			if profile.ID != "main" || profile.Transport != c.want {
				t.Errorf("profile %q over %v, want main over %v", profile.ID, profile.Transport, c.want)
			}
			if len(profile.Tracks) != 1 || profile.Tracks[0] != (fleet.TrackStatus{Codec: "H264", Width: 640, Height: 360}) {
				t.Errorf("tracks %+v, want H264 640x360", profile.Tracks)
			}
			if n := sim.Plays("cam"); n != c.plays {
				t.Errorf("%d PLAY requests, want %d", n, c.plays)
			}
			if got := r.stream.Board().Status(); got.State != fleet.CameraLive {
				t.Errorf("the stream's status is %v", got.State)
			}
			if stats := r.stream.Stats(); stats.PacketsLost != 0 {
				t.Errorf("%d packets lost on the loopback", stats.PacketsLost)
			}
			r.stop()
			eventually(t, "the RTSP session ends", func() bool { return sim.Sessions("cam") == 0 })
		})
	}
}

// After UDP has failed once, a return to the camera doesn't wait for it again.
func TestTransportRemembered(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{LoseUDP: true})
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam")}, Timeouts: Timeouts{UDP: 300 * time.Millisecond}})
	_, n := r.waitLive(t, 0)
	sim.SetFault("cam", simcam.Drop)
	_, n = r.waitFailed(t, n, fleet.ReasonConnectionClosed)
	r.waitLive(t, n)
	if plays := sim.Plays("cam"); plays != 3 {
		t.Errorf("%d PLAY requests, want 3: UDP, TCP, TCP", plays)
	}
}

// A camera whose RTP came over TCP elsewhere is not asked for UDP first.
func TestTransportRememberedElsewhere(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{LoseUDP: true})
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam")}, TCPFirst: true})
	r.waitLive(t, 0)
	if plays := sim.Plays("cam"); plays != 1 {
		t.Errorf("%d PLAY requests, want 1: TCP", plays)
	}
}

func TestAudioAndSenderReports(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{Audio: true})
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam"), Transport: fleet.TransportTCP}})
	status, _ := r.waitLive(t, 0)
	want := []fleet.TrackStatus{{Codec: "H264", Width: 640, Height: 360}, {Codec: "PCMA"}}
	if got := status.Profiles[0].Tracks; len(got) != 2 || got[0] != want[0] || got[1] != want[1] {
		t.Errorf("tracks %+v, want %+v", got, want)
	}
	if tracks := r.stream.Tracks(); len(tracks) != 2 || tracks[1].Codec != "PCMA" || tracks[1].ClockRate != 8000 {
		t.Errorf("stream's tracks %+v", tracks)
	}
	eventually(t, "a sender report", func() bool {
		ntp, _, ok := r.stream.SenderClock(stream.Video)
		if ok && time.Since(ntp).Abs() > time.Minute {
			t.Errorf("sender report of %v", ntp)
		}
		return ok
	})
}

func TestParameterSetsInBandOnly(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{OmitParameterSets: true})
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam")}})
	_, n := r.waitLive(t, 0)
	r.waitPicture(t, 1)
	r.waitStatus(t, n-1, "the size of the picture", func(s fleet.CameraStatus) bool {
		return s.State == fleet.CameraLive && s.Profiles[0].Tracks[0].Width == 640 && s.Profiles[0].Tracks[0].Height == 360
	})
}

func TestKeyframeRequest(t *testing.T) {
	for _, transport := range []fleet.Transport{fleet.TransportTCP, fleet.TransportUDP} {
		t.Run(transport.String(), func(t *testing.T) {
			sim, _ := runSim(t, simcam.Config{KeyframeInterval: 10 * time.Second})
			r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam"), Transport: transport}})
			r.waitLive(t, 0)
			sub := r.stream.Subscribe(stream.SubscribeOptions{})
			defer sub.Close()
			eventually(t, "a picture loss indication at the camera", func() bool {
				sub.RequestKeyframe()
				return sim.KeyframeRequests("cam") > 0
			})
			r.waitPicture(t, 1)
		})
	}
}

func TestCredentials(t *testing.T) {
	const user, password = "ope rator", `p@ss/w;rd%20?#"ß` // a colon, which simcam can't take with Basic, is in TestBasicPasswordWithColon
	for name, auth := range map[string]simcam.Auth{"any": simcam.AuthAny, "basic": simcam.AuthBasic, "digest": simcam.AuthDigest} {
		t.Run(name, func(t *testing.T) {
			sim, _ := runSim(t, simcam.Config{Username: user, Password: password, Auth: auth})
			r := pull(t, Config{
				Profile: fleet.Profile{URL: sim.URL("cam")}, Credentials: fleet.Credentials{Username: user, Password: password},
			})
			r.waitLive(t, 0)
		})
	}
	t.Run("wrong", func(t *testing.T) {
		sim, _ := runSim(t, simcam.Config{Username: user, Password: password})
		r := pull(t, Config{
			Profile:     fleet.Profile{URL: sim.URL("cam"), FallbackURLs: []string{sim.URL("cam")}},
			Credentials: fleet.Credentials{Username: user, Password: "wrong-password"},
		})
		n := 0
		for i := range authTries {
			var status fleet.CameraStatus
			if i < authTries-1 {
				status, n = r.waitFailed(t, n, fleet.ReasonAuthenticationFailed)
			} else {
				status, n = r.waitStopped(t, n)
			}
			if strings.Contains(status.Message, "wrong-password") || strings.Contains(status.Message, user) {
				t.Errorf("credentials in %q", status.Message)
			}
		}
		if c := r.source.Counters(); c.Connects != authTries {
			t.Errorf("%d connections, want %d: the fallback URL is on the host that refused", c.Connects, authTries)
		}
	})
	for _, method := range []string{"SETUP", "PLAY"} {
		t.Run("wrong, asked for at "+method, func(t *testing.T) {
			cam := runScripted(t, func(q request) string {
				switch q.method {
				case method:
					return q.answer("401 Unauthorized", "WWW-Authenticate: Basic realm=\"x\"\r\n\r\n")
				case "DESCRIBE":
					return q.sdp(sdpHead + "m=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:t\r\n")
				case "SETUP":
					return q.answer("200 OK", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nSession: 1\r\n\r\n")
				default:
					return q.answer("200 OK", "")
				}
			})
			r := pull(t, Config{
				Profile:     fleet.Profile{URL: "rtsp://" + cam.addr + "/", Transport: fleet.TransportTCP},
				Credentials: fleet.Credentials{Username: user, Password: "wrong-password"},
			})
			n := 0
			for range authTries - 1 {
				_, n = r.waitFailed(t, n, fleet.ReasonAuthenticationFailed)
			}
			r.waitStopped(t, n)
		})
	}
	t.Run("none", func(t *testing.T) {
		sim, _ := runSim(t, simcam.Config{Username: user, Password: password})
		r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam")}})
		status, _ := r.waitFailed(t, 0, fleet.ReasonAuthenticationFailed)
		if !strings.Contains(status.Message, "asks for a user name and password") {
			t.Errorf("message %q", status.Message)
		}
	})
}

func TestFaults(t *testing.T) {
	for _, c := range []struct {
		fault  simcam.Fault
		reason fleet.Reason
	}{
		{simcam.Stop, fleet.ReasonConnectionClosed},
		{simcam.Drop, fleet.ReasonConnectionClosed},
		{simcam.Freeze, fleet.ReasonNoMedia},
	} {
		for _, transport := range []fleet.Transport{fleet.TransportTCP, fleet.TransportUDP} {
			t.Run(fmt.Sprintf("%v over %v", c.fault, transport), func(t *testing.T) {
				t.Parallel()
				sim, _ := runSim(t, simcam.Config{})
				r := pull(t, Config{
					Profile: fleet.Profile{URL: sim.URL("cam"), Transport: transport}, Timeouts: Timeouts{Media: 700 * time.Millisecond},
				})
				_, n := r.waitLive(t, 0)
				sim.SetFault("cam", c.fault)
				status, n := r.waitFailed(t, n, c.reason)
				if wait := time.Until(status.RetryTime); wait > fast.Min {
					t.Errorf("first retry in %v, want at most %v", wait, fast.Min)
				}
				if c.fault != simcam.Drop {
					r.waitFailed(t, n, c.reason)
					sim.SetFault("cam", simcam.None)
				}
				r.waitLive(t, n)
				r.waitPicture(t, 1)
			})
		}
	}
}

// At the first connection, too.
func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		fault  simcam.Fault
		reason fleet.Reason
	}{
		{simcam.Unauthorized, fleet.ReasonAuthenticationFailed},
		{simcam.NotFound, fleet.ReasonStreamNotFound},
		{simcam.Busy, fleet.ReasonCameraBusy},
		{simcam.Stop, fleet.ReasonConnectionClosed},
	} {
		t.Run(c.fault.String(), func(t *testing.T) {
			sim, _ := runSim(t, simcam.Config{})
			sim.SetFault("cam", c.fault)
			r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam")}})
			_, n := r.waitFailed(t, 0, c.reason)
			sim.SetFault("cam", simcam.None)
			r.waitLive(t, n)
		})
	}
}

// The stream hides a jump of the camera's timestamps; the connection stays.
func TestTimestampJump(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{})
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam"), Transport: fleet.TransportTCP}})
	r.waitLive(t, 0)
	r.waitPicture(t, 1)
	sim.SetFault("cam", simcam.TimestampJump)
	r.waitPicture(t, 3)
	if n := sim.Plays("cam"); n != 1 {
		t.Errorf("%d PLAY requests, want 1", n)
	}
}

func TestCameraComesBack(t *testing.T) {
	sim, stop := runSim(t, simcam.Config{})
	addr := sim.Addr().String()
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam")}})
	_, n := r.waitLive(t, 0)
	stop()
	_, n = r.waitFailed(t, n, fleet.ReasonConnectionClosed)
	status, n := r.waitFailed(t, n, fleet.ReasonConnectionRefused)
	if !strings.Contains(status.Message, addr) {
		t.Errorf("message %q does not say where", status.Message)
	}
	runSim(t, simcam.Config{Addr: addr})
	r.waitLive(t, n)
	r.waitPicture(t, 1)
}

func TestFallbackURLs(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{Cameras: []string{"main", "spare"}})
	sim.SetFault("main", simcam.NotFound)
	r := pull(t, Config{Profile: fleet.Profile{
		URL: sim.URL("main"), FallbackURLs: []string{"rtsp://127.0.0.1:1/closed", sim.URL("spare")}, Transport: fleet.TransportTCP,
	}})
	_, n := r.waitLive(t, 0)
	if sim.Plays("main") != 0 || sim.Plays("spare") != 1 {
		t.Errorf("plays %d of main, %d of spare; want 0, 1", sim.Plays("main"), sim.Plays("spare"))
	}
	sim.SetFault("spare", simcam.Stop)
	_, n = r.waitFailed(t, n, fleet.ReasonConnectionClosed)
	r.waitFailed(t, n, fleet.ReasonStreamNotFound) // all of them failed: the first one's reason
}

func TestNetworks(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{})
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam")}, Networks: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}})
	r.waitFailed(t, 0, fleet.ReasonNetworkForbidden)
	if c := r.source.Counters(); c.Connects != 0 {
		t.Errorf("%d connections to a forbidden network", c.Connects)
	}
	r = pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam")}, Networks: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}})
	r.waitLive(t, 0)
}

func TestTLS(t *testing.T) {
	certificate, leaf := newCertificate(t)
	sum := sha256.Sum256(leaf.Raw)
	fingerprint := hex.EncodeToString(sum[:])
	roots := x509.NewCertPool()
	roots.AddCert(leaf)

	sim, _ := runSim(t, simcam.Config{TLS: &tls.Config{Certificates: []tls.Certificate{certificate}, MinVersion: tls.VersionTLS12}})
	for _, c := range []struct {
		name   string
		cfg    Config
		reason fleet.Reason // empty: live
		want   string       // in the message
	}{
		{"fingerprint", Config{Profile: fleet.Profile{URL: sim.URL("cam"), TLSFingerprint: fingerprint}}, "", ""},
		{"authority", Config{Profile: fleet.Profile{URL: sim.URL("cam")}, RootCAs: roots}, "", ""},
		{"fingerprint over udp", Config{Profile: fleet.Profile{URL: sim.URL("cam"), TLSFingerprint: fingerprint, Transport: fleet.TransportUDP}}, "", ""},
		{"wrong fingerprint", Config{Profile: fleet.Profile{URL: sim.URL("cam"), TLSFingerprint: strings.Repeat("0", 64)}}, fleet.ReasonTLSFailed, fingerprint},
		{"unknown authority", Config{Profile: fleet.Profile{URL: sim.URL("cam")}}, fleet.ReasonTLSFailed, fingerprint},
		{"no TLS there", Config{Profile: fleet.Profile{URL: plaintext(t, "RTSP/1.0 400 Bad Request\r\n\r\n")}}, fleet.ReasonTLSFailed, "does not speak TLS"},
		{"cut", Config{Profile: fleet.Profile{URL: plaintext(t, "")}}, fleet.ReasonConnectionClosed, "in the TLS handshake"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := pull(t, c.cfg)
			if c.reason == "" {
				r.waitLive(t, 0)
				r.waitPicture(t, 1)
				return
			}
			status, _ := r.waitFailed(t, 0, c.reason)
			if !strings.Contains(status.Message, c.want) {
				t.Errorf("message %q does not say %q", status.Message, c.want)
			}
		})
	}
}

// plaintext is a server that answers whatever it is sent, or, with nothing to
// say, hangs up. It returns the rtsps URL.
func plaintext(t *testing.T, answer string) string {
	t.Helper()
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := lis.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				if answer == "" {
					return
				}
				_, _ = conn.Write([]byte(answer))
				_, _ = io.Copy(io.Discard, conn) // until the source has read it
			})
		}
	})
	t.Cleanup(func() {
		_ = lis.Close()
		wg.Wait()
	})
	return "rtsps://" + lis.Addr().String() + "/"
}

// newCertificate returns a certificate for 127.0.0.1 that signs itself.
func newCertificate(t *testing.T) (tls.Certificate, *x509.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, leaf
}

// A fault of ours while a packet is handled costs the connection, not the process.
func TestPanic(t *testing.T) {
	sim, _ := runSim(t, simcam.Config{})
	calls := 0
	r := pull(t, Config{Profile: fleet.Profile{URL: sim.URL("cam"), Transport: fleet.TransportTCP}}, func(s *Source) {
		s.onVideo = func() {
			if calls++; calls == 5 {
				panic("a packet that nobody thought of")
			}
		}
	})
	_, n := r.waitLive(t, 0)
	_, n = r.waitFailed(t, n, fleet.ReasonProtocolError)
	r.waitLive(t, n)
	if c := r.source.Counters(); c.Panics != 1 || c.Plays != 2 {
		t.Errorf("%+v, want 1 panic and 2 plays", c)
	}
}

// Since is when the state changed, not when anything else did.
func TestSince(t *testing.T) {
	r := pull(t, Config{Profile: fleet.Profile{URL: "rtsp://127.0.0.1:1/closed"}})
	first, n := r.waitFailed(t, 0, fleet.ReasonConnectionRefused)
	second, _ := r.waitFailed(t, n, fleet.ReasonConnectionRefused)
	if !second.Since.Equal(first.Since) {
		t.Errorf("since %v, then %v", first.Since, second.Since)
	}
	if !second.RetryTime.After(first.RetryTime) {
		t.Errorf("retry at %v, then at %v", first.RetryTime, second.RetryTime)
	}
}
