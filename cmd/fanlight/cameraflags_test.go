package main

import (
	"strings"
	"testing"
)

func TestSplitURL(t *testing.T) {
	for _, tt := range []struct{ in, out, user, password string }{
		{"rtsp://h/p", "rtsp://h/p", "", ""},
		{"rtsp://u:pw@h:554/p", "rtsp://h:554/p", "u", "pw"},
		{"rtsp://u@h/p", "rtsp://h/p", "u", ""},
		{"rtsp://u:p%40%2Fw@h/p", "rtsp://h/p", "u", "p@/w"},
		{"rtsp://u:p@w@h/p", "rtsp://h/p", "u", "p@w"},
		{"rtsp://u:pw@[2001:db8::1]:554/p", "rtsp://[2001:db8::1]:554/p", "u", "pw"},
		{"rtsp://u:pw@h", "rtsp://h", "u", "pw"},
		{"rtsp://u:pw@h?x=a%40b", "rtsp://h?x=a%40b", "u", "pw"},
		{"RTSP://u:pw@h/Cam Era/%7e?channel=1&subtype=0", "RTSP://h/Cam Era/%7e?channel=1&subtype=0", "u", "pw"},
		{"", "", "", ""},
	} {
		s := tt.in
		user, err := splitURL(&s)
		if err != nil {
			t.Errorf("%s: %v", tt.in, err)
			continue
		}
		password, _ := user.Password()
		if s != tt.out || user.Username() != tt.user || password != tt.password {
			t.Errorf("%s became %s with %q and %q", tt.in, s, user.Username(), password)
		}
	}
	for _, bad := range []string{
		"rtsp://u:s3cret#x@h/p", "rtsp://u:s3cret/x@h/p", "rtsp://u:s3cret%zz@h/p", "rtsp://u:s3cret@h:port/p",
		"rtsp://u:12345/s3cret@127.0.0.1/path", "rtsp://u:1234?s3cret@h/", "rtsp://u:1234#s3cret@h/", "rtsp://u:1@s3cret/x@h/", "rtsp://h/s3cret@x",
	} {
		s := bad
		if _, err := splitURL(&s); err == nil || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: error is %v", bad, err)
		}
	}
}

func FuzzSplitURL(f *testing.F) {
	f.Add("rtsp://u:pw@h/p")
	f.Add("rtsp://u:p@w@h?x")
	f.Add("://@/")
	f.Add("rtsp:u@h")
	f.Add("//u:p@h")
	f.Fuzz(func(t *testing.T, in string) {
		s := in
		user, err := splitURL(&s)
		if err != nil || user == nil {
			if s != in {
				t.Errorf("%q became %q", in, s)
			}
			return
		}
		if again, err := splitURL(&s); err != nil || again != nil {
			t.Errorf("%q became %q, which has %v, %v", in, s, again, err)
		}
	})
}

func TestText(t *testing.T) {
	if got := printable("a\x1b[31mb\nc\u009bd é"); got != "a?[31mb?c?d é" {
		t.Errorf("printable: %q", got)
	}
	for bps, want := range map[int64]string{0: "", -1: "", 400: "0 kbit/s", 499_600: "500 kbit/s", 1_250_000: "1.2 Mbit/s", 25_000_000: "25.0 Mbit/s"} {
		if got := bitrateText(bps); got != want {
			t.Errorf("bitrate %d is %q, want %q", bps, got, want)
		}
	}
	if got := labelText(map[string]string{"b": "2", "a": "1"}); got != "a=1,b=2" {
		t.Errorf("labels: %q", got)
	}
}
