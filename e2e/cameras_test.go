//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// TestForeignCameras shows that the cameras of the other tests are what these
// tests take them for: otherwise a test "over UDP" might be one over TCP.
func TestForeignCameras(t *testing.T) {
	tests := []struct {
		name            string
		camera          func(t *testing.T) *rtspCamera
		speaks, refuses string
	}{
		{"gst-rtsp-server over TCP", func(t *testing.T) *rtspCamera { return gstCamera(t, "tcp", "digest") }, "tcp", "udp"},
		{"gst-rtsp-server over UDP", func(t *testing.T) *rtspCamera { return gstCamera(t, "udp", "digest") }, "udp", "tcp"},
		{"VLC", vlcCamera, "udp", "tcp"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := tt.camera(t)
			if out, err := probeRTSP(t, c.url, tt.speaks, username, password); err != nil || !strings.Contains(out, "h264") {
				t.Errorf("over %s: %v\n%s", tt.speaks, err, out)
			}
			if out, err := probeRTSP(t, c.url, tt.refuses, username, password); err == nil {
				t.Errorf("over %s: not refused\n%s", tt.refuses, out)
			}
			if out, err := probeRTSP(t, c.url, tt.speaks, username, "wrong"); err == nil || !strings.Contains(out, "401") {
				t.Errorf("with a wrong password: %v\n%s", err, out)
			}
			if got := challenge(t, c.url); !strings.EqualFold(got, c.auth) {
				t.Errorf("asks for %q authentication, want %q", got, c.auth)
			}
		})
	}
}

// probeRTSP plays a camera with ffprobe, and returns what it found.
func probeRTSP(t *testing.T, url, transport, user, pass string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	url = strings.Replace(url, "rtsp://", fmt.Sprintf("rtsp://%s:%s@", user, pass), 1)
	out, err := exec.CommandContext(ctx, "ffprobe", "-v", "error", "-rtsp_transport", transport, "-timeout", "10000000",
		"-show_entries", "stream=codec_name", "-of", "csv=p=0", url).CombinedOutput()
	return string(out), err
}

// challenge returns the authentication scheme that a camera asks for.
func challenge(t *testing.T, url string) string {
	t.Helper()
	host := strings.Split(strings.TrimPrefix(url, "rtsp://"), "/")[0]
	conn, err := net.DialTimeout("tcp", host, 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := fmt.Fprintf(conn, "DESCRIBE %s RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\n\r\n", url); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	var schemes []string
	for line := range strings.Lines(string(buf[:n])) {
		name, value, _ := strings.Cut(line, ":")
		if strings.EqualFold(name, "WWW-Authenticate") {
			schemes = append(schemes, strings.Fields(value)[0])
		}
	}
	return strings.Join(schemes, "+")
}

// listens tells whether somebody listens on a TCP address.
func listens(addr string) (bool, string) {
	conn, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false, err.Error()
	}
	if err := conn.Close(); err != nil {
		return false, err.Error()
	}
	return true, ""
}
