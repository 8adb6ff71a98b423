package source

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	"fanlight/medianode/onvif"
	"fanlight/medianode/onvif/onviftest"
	"fanlight/medianode/stream"
)

// The channels of a recorder are cameras with one account: a wrong password is
// tried there once, however many need a keyframe at once; a right one is all
// channels' at once.
func TestRecorderAccount(t *testing.T) {
	t.Parallel()
	const channels = 12
	for _, password := range []string{"r1ght", "wr0ng"} {
		t.Run(password, func(t *testing.T) {
			t.Parallel()
			var names []string
			var profiles []onviftest.Profile
			for i := range channels {
				name := fmt.Sprintf("ch%d", i)
				names = append(names, name)
				profiles = append(profiles, onviftest.Profile{Token: name, URL: "rtsp://192.0.2.1/" + name})
			}
			sim, _ := runSim(t, simcam.Config{Cameras: names, KeyframeInterval: 10 * time.Second, IgnorePLI: true})
			cam := onviftest.Run(t, onviftest.Config{
				Username: "admin", Password: "r1ght", Profiles: profiles, OnKeyframe: func(token string) { sim.Keyframe(token) },
			})
			var accounts Accounts
			var rigs []*rig
			var subs []*stream.Subscription
			for _, name := range names {
				r := pull(t, Config{
					Profile: fleet.Profile{URL: sim.URL(name), Transport: fleet.TransportTCP}, ONVIFURL: cam.URL(),
					Credentials: fleet.Credentials{Username: "admin", Password: password}, Accounts: &accounts,
				})
				r.waitLive(t, 0)
				sim.Keyframe(name)
				r.waitPicture(t, 1)
				rigs = append(rigs, r)
			}
			for _, r := range rigs {
				sub := r.stream.Subscribe(stream.SubscribeOptions{})
				defer sub.Close()
				subs = append(subs, sub)
			}
			eventually(t, "an outcome for each channel", func() bool {
				done := 0
				for i, r := range rigs {
					subs[i].RequestKeyframe()
					c := r.source.Counters().Keyframes
					if c.ONVIF > 0 || c.RTCP > 1 && !r.source.keys.possible(time.Now()) {
						done++
					}
				}
				return done == channels
			})
			var failed, accepted int64
			for _, r := range rigs {
				c := r.source.Counters().Keyframes
				failed, accepted = failed+c.Failed, accepted+c.ONVIF
				r.stop()
				if log := r.log.String(); strings.Contains(log, password) {
					t.Error("the password is in the log")
				}
			}
			if password == "wr0ng" {
				if n := cam.Calls("GetProfiles"); n != 1 || failed != 1 || accepted != 0 {
					t.Errorf("%d requests with a wrong password, %d failures, %d accepted; want 1, 1, 0", n, failed, accepted)
				}
				return
			}
			if failed != 0 || accepted < channels {
				t.Errorf("%d failures and %d accepted, want 0 and %d at least", failed, accepted, channels)
			}
		})
	}
}

// Who may use an account when.
func TestAccountTurns(t *testing.T) {
	key := newAccountKey("http://nvr/onvif/device_service", fleet.Credentials{Username: "u", Password: "p"})
	for _, tt := range []struct {
		name    string
		outcome error
		tried   int64 // by 64 sources, the first of which has that outcome, and the others none
		most    int64 // at once, after the first
	}{
		{"refused", fmt.Errorf("get profiles: %w", onvif.ErrRefused), 1, 0},
		{"accepted", nil, 64, 63},
		{"not reached", onvif.ErrUnavailable, 1, 0},
		{"no ONVIF", onvif.ErrUnsupported, 1, 0},
		{"not used", errUntried, 64, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var a Accounts
				var tried, now, most atomic.Int64
				var mu sync.Mutex
				var wg sync.WaitGroup
				for range 64 {
					wg.Go(func() {
						end, ok := a.begin(t.Context(), key)
						if !ok {
							return
						}
						first := tried.Add(1) == 1
						mu.Lock()
						if n := now.Add(1); !first {
							most.Store(max(most.Load(), n))
						} else if n != 1 {
							t.Error("the first is not alone")
						}
						mu.Unlock()
						time.Sleep(time.Second)
						now.Add(-1)
						if first {
							end(tt.outcome)
						} else {
							end(errUntried)
						}
					})
				}
				wg.Wait()
				if tried.Load() != tt.tried || most.Load() != tt.most {
					t.Errorf("%d have tried, %d at once; want %d, %d", tried.Load(), most.Load(), tt.tried, tt.most)
				}
				if want := errors.Is(tt.outcome, onvif.ErrRefused); a.refused(key) != want {
					t.Errorf("refused is %v", !want)
				}
				if kept := tt.outcome == nil || a.refused(key); (len(a.accounts) == 1) != kept {
					t.Errorf("%d accounts are kept", len(a.accounts))
				}
			})
		})
	}
}

// An account that was accepted is tried by one source again after a while, a
// refusal stays, and who waits can give up.
func TestAccountInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var a Accounts
		key := newAccountKey("http://nvr/", fleet.Credentials{Username: "u", Password: "p"})
		begin := func() (func(error), bool) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return a.begin(ctx, key)
		}
		end, ok := begin()
		if !ok {
			t.Fatal("the first may not")
		}
		end(nil)
		early, ok1 := begin()
		late, ok2 := begin()
		if !ok1 || !ok2 {
			t.Fatal("an account that was accepted may not be used twice at once")
		}
		early(nil)
		time.Sleep(trustFor)
		end, ok = begin()
		if _, second := begin(); !ok || second {
			t.Fatalf("after %v: the first may %v, the second %v", trustFor, ok, second)
		}
		end(onvif.ErrRefused)
		late(nil) // was sent before
		if _, ok := begin(); ok || !a.refused(key) {
			t.Error("a refusal is forgotten")
		}
		a.forgive(key, time.Now())
		if !a.refused(key) {
			t.Error("a refusal is forgiven at once")
		}
		time.Sleep(365 * 24 * time.Hour)
		if !a.refused(key) {
			t.Error("a refusal is forgotten with time")
		}
		s := New(Config{
			Profile: fleet.Profile{URL: "rtsp://nvr/1"}, Credentials: fleet.Credentials{Username: "u", Password: "p"},
			Accounts: &a, Stream: stream.New(stream.Config{}),
		})
		if s.keys.possible(time.Now()) {
			t.Error("another source of the account's may use it")
		}
		s.Retry()
		if !s.keys.possible(time.Now()) {
			t.Error("a refusal outlives a retry")
		}
	})
}

// How many accounts are remembered is bounded; refusals are kept longest.
func TestAccountsForget(t *testing.T) {
	var a Accounts
	now := second(0)
	use := func(i int, err error) accountKey {
		key := newAccountKey(fmt.Sprintf("http://cam%d/", i), fleet.Credentials{})
		if mine, _ := a.turn(key, now); mine != nil {
			a.end(key, mine, now, err)
		}
		now = now.Add(time.Second)
		return key
	}
	refused := use(-1, onvif.ErrRefused)
	trying := newAccountKey("http://trying/", fleet.Credentials{})
	mine, _ := a.turn(trying, now)
	for i := range maxAccounts + 100 {
		use(i, nil)
	}
	if len(a.accounts) > maxAccounts || !a.refused(refused) || a.accounts[trying] == nil {
		t.Errorf("%d accounts, refused %v, trying %v", len(a.accounts), a.refused(refused), a.accounts[trying])
	}
	a.end(trying, mine, now, errUntried)
	for i := range maxAccounts + 100 {
		use(10_000+i, onvif.ErrRefused)
	}
	if len(a.accounts) > maxAccounts || a.refused(refused) {
		t.Errorf("%d accounts, the oldest refusal is kept: %v", len(a.accounts), a.refused(refused))
	}
}

func TestAccountKey(t *testing.T) {
	creds := fleet.Credentials{Username: "u", Password: "p"}
	key := newAccountKey("http://nvr/onvif/device_service", creds)
	for _, same := range []string{"http://NVR:80/onvif/2", "http://nvr"} {
		if newAccountKey(same, creds) != key {
			t.Errorf("%s has another account", same)
		}
	}
	for _, other := range []string{"http://nvr:8080/onvif/device_service", "https://nvr/", "http://nvr2/"} {
		if newAccountKey(other, creds) == key {
			t.Errorf("%s has the same account", other)
		}
	}
	for _, other := range []fleet.Credentials{{}, {Username: "u"}, {Username: "up"}, {Username: "", Password: "up"}} {
		if newAccountKey("http://nvr/", other) == key {
			t.Errorf("%q has the same account", other.Username)
		}
	}
}
