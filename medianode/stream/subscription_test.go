package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"fanlight/internal/fleet"
)

// names says what is queued: K for the beginning of a keyframe, P for a
// picture, A for audio, with the size of the first payload.
func names(bursts []*Burst) []string {
	var out []string
	for _, b := range bursts {
		name := "P"
		switch {
		case b.Keyframe:
			name = "K"
		case b.Kind == Audio:
			name = "A"
		}
		out = append(out, fmt.Sprintf("%s%d", name, len(b.Packets[len(b.Packets)-1].Payload)))
	}
	return out
}

// What a subscription gets of a stream that is written without its reading, and
// what is counted of the rest.
func TestQueue(t *testing.T) {
	audio := func(c *camera, size int) { c.packet(1, false, make([]byte, size)) }
	key := func(c *camera, size int) { c.unit(sps, pps, idr(size)) }
	inters := func(c *camera, sizes ...int) {
		for _, size := range sizes {
			c.unit(inter(size))
		}
	}
	for _, c := range []struct {
		name  string
		opt   SubscribeOptions
		write func(*camera)
		want  []string
		drops Drops // in packets
	}{
		{
			name: "starts at a keyframe, with audio", write: func(c *camera) { inters(c, 10); audio(c, 1); key(c, 20); audio(c, 2); inters(c, 11) },
			want: []string{"K20", "A2", "P11"}, drops: Drops{AwaitingKeyframe: 2},
		},
		{
			name: "full: resumes at the keyframe that is queued", opt: SubscribeOptions{QueueBursts: 4},
			write: func(c *camera) { key(c, 20); inters(c, 10, 11); key(c, 21); inters(c, 12) },
			want:  []string{"K21", "P12"}, drops: Drops{Overflow: 4},
		},
		{
			name: "full: resumes at the keyframe that comes", opt: SubscribeOptions{QueueBursts: 3},
			write: func(c *camera) { key(c, 20); inters(c, 10, 11); key(c, 21); inters(c, 12) },
			want:  []string{"K21", "P12"}, drops: Drops{Overflow: 4},
		},
		{
			name: "full without a keyframe: waits for one", opt: SubscribeOptions{QueueBursts: 3},
			write: func(c *camera) { key(c, 20); inters(c, 10, 11, 12, 13); key(c, 21); inters(c, 14) },
			want:  []string{"K21", "P14"}, drops: Drops{Overflow: 5, AwaitingKeyframe: 1},
		},
		{
			name: "full by bytes", opt: SubscribeOptions{QueueBytes: 100},
			write: func(c *camera) { key(c, 20); inters(c, 20, 60); key(c, 30); inters(c, 10) },
			want:  []string{"K30", "P10"}, drops: Drops{Overflow: 4, AwaitingKeyframe: 0},
		},
		{
			name: "audio goes on while video waits", opt: SubscribeOptions{QueueBursts: 2},
			write: func(c *camera) { key(c, 20); inters(c, 10, 11); audio(c, 1); inters(c, 12); audio(c, 2) },
			want:  []string{"A1", "A2"}, drops: Drops{Overflow: 4, AwaitingKeyframe: 1},
		},
		{
			name: "audio overflows", opt: SubscribeOptions{QueueBursts: 3},
			write: func(c *camera) { key(c, 20); audio(c, 1); audio(c, 2); audio(c, 3); inters(c, 10) },
			want:  []string{"A3"}, drops: Drops{Overflow: 4, AwaitingKeyframe: 1},
		},
		{
			name: "audio overflows while video waits", opt: SubscribeOptions{QueueBursts: 2},
			write: func(c *camera) {
				key(c, 20)
				inters(c, 10, 11)
				audio(c, 1)
				audio(c, 2)
				audio(c, 3)
				inters(c, 12)
			},
			want: []string{"A3"}, drops: Drops{Overflow: 6, AwaitingKeyframe: 1},
		},
		{
			name: "one burst is larger than the queue", opt: SubscribeOptions{QueueBytes: 50},
			write: func(c *camera) { key(c, 60); inters(c, 10); key(c, 20); inters(c, 11) },
			want:  []string{"K20", "P11"}, drops: Drops{Overflow: 2, AwaitingKeyframe: 1},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := New(Config{})
			sub := s.Subscribe(c.opt)
			c.write(publish(t, s, videoTrack, audioTrack))
			if diff := cmp.Diff(c.want, names(drain(t, sub))); diff != "" {
				t.Errorf("bursts (-want +got):\n%s", diff)
			}
			if got := sub.Dropped(); got != c.drops {
				t.Errorf("the subscription's drops %+v, want %+v", got, c.drops)
			}
			if got := s.Stats().Drops; got != c.drops {
				t.Errorf("the stream's drops %+v, want %+v", got, c.drops)
			}
		})
	}
}

// A slow subscription delays nobody: another gets every packet.
func TestSlowSubscription(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const frames = 1000
		s := New(Config{})
		fast, slow := s.Subscribe(SubscribeOptions{}), s.Subscribe(SubscribeOptions{QueueBursts: 30})
		defer fast.Close()
		defer slow.Close()
		read := func(sub *Subscription, pause time.Duration, got *[]*Burst) func() {
			return func() {
				for {
					b, err := sub.Next(t.Context())
					if err != nil {
						return
					}
					*got = append(*got, b)
					time.Sleep(pause)
				}
			}
		}
		var fastGot, slowGot []*Burst
		done := make(chan struct{}, 2)
		for _, f := range []func(){read(fast, 0, &fastGot), read(slow, time.Second, &slowGot)} {
			go func() { f(); done <- struct{}{} }()
		}
		cam := publish(t, s)
		begun := time.Now()
		for i := range frames {
			if i%25 == 0 {
				cam.unit(sps, pps, idr(500))
			} else {
				cam.unit(inter(500))
			}
			time.Sleep(40 * time.Millisecond)
		}
		if took := time.Since(begun); took != frames*40*time.Millisecond {
			t.Errorf("writing took %v", took)
		}
		synctest.Wait()
		s.Close(nil)
		<-done
		<-done
		if len(fastGot) != frames {
			t.Errorf("%d bursts of %d", len(fastGot), frames)
		}
		drops := slow.Dropped()
		if len(slowGot) < 30 || drops.Overflow == 0 {
			t.Errorf("the slow one got %d bursts and lost %+v", len(slowGot), drops)
		}
		next := slowGot[0].Packets[0].Index
		for i, b := range slowGot {
			if b.Packets[0].Index != next && !b.Keyframe {
				t.Errorf("burst %d resumes between keyframes", i)
			}
			next = b.Packets[len(b.Packets)-1].Index + 1
		}
	})
}

func TestNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		sub := s.Subscribe(SubscribeOptions{})
		events := make(chan any)
		go func() {
			defer close(events)
			for {
				ev, err := sub.Next(t.Context())
				if err != nil {
					events <- err
					return
				}
				events <- ev
			}
		}()
		cam := publish(t, s)
		cam.unit(sps, pps, idr(20))
		if b, ok := (<-events).(*Burst); !ok || !b.Keyframe || b.Codec != "H264" || b.Bytes() != 20+len(stap(sps, pps)) || b.Damaged {
			t.Errorf("burst %+v", b)
		}
		synctest.Wait() // it blocks
		cam.seq++
		cam.unit(inter(20)) // refers to what is missing
		cam.unit(idr(20))
		if b, ok := (<-events).(*Burst); !ok || !b.Keyframe || !b.Damaged {
			t.Errorf("burst %+v", b)
		}
		s.Close(fleet.CameraMoved)
		s.Close(nil)
		if err, _ := (<-events).(error); !errors.Is(err, fleet.CameraMoved) {
			t.Errorf("error %v", err)
		}
		<-events
		cam.unit(sps, pps, idr(20)) // nobody there
		if _, err := s.Subscribe(SubscribeOptions{}).Next(t.Context()); !errors.Is(err, fleet.CameraMoved) {
			t.Errorf("error of a subscription to a closed stream: %v", err)
		}
	})
}

func TestNextEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		sub := s.Subscribe(SubscribeOptions{})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := sub.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("error %v after the context's end", err)
		}
		go func() {
			time.Sleep(time.Second)
			sub.Close()
		}()
		if _, err := sub.Next(t.Context()); !errors.Is(err, io.EOF) {
			t.Errorf("error %v after Close", err)
		}
		sub.Close()
	})
}

// A watch is told of what a viewer may know, and of the end.
func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(Config{})
		failed := fleet.CameraStatus{State: fleet.CameraFailed, Reason: fleet.ReasonTimeout}
		s.SetStatus(failed)
		w := s.Watch()
		check := func(want fleet.CameraStatus) {
			t.Helper()
			<-w.Changed()
			if got, err := w.Status(); err != nil || !cmp.Equal(got, want) {
				t.Errorf("status %v, %v, want %v", got, err, want)
			}
		}
		check(failed) // as it is at the start
		live := fleet.CameraStatus{State: fleet.CameraLive}
		s.SetStatus(live)
		check(live)
		s.SetStatus(fleet.CameraStatus{State: fleet.CameraLive, Viewers: 3}) // nothing a viewer may know
		select {
		case <-w.Changed():
			t.Error("told of what it may not know")
		default:
		}
		s.Close(fleet.CameraMoved)
		<-w.Changed()
		if _, err := w.Status(); !errors.Is(err, fleet.CameraMoved) {
			t.Errorf("error %v", err)
		}
		w.Close()
		w.Close()
		late := s.Watch()
		<-late.Changed()
		if _, err := late.Status(); !errors.Is(err, fleet.CameraMoved) {
			t.Errorf("error %v of a watch of a closed stream", err)
		}
	})
}

// What was handed out lately can be had again, whoever missed it, while somebody
// watches.
func TestRetained(t *testing.T) {
	s := New(Config{})
	cam := publish(t, s, videoTrack, audioTrack)
	cam.unit(sps, pps, idr(20)) // nobody watches
	sub, other := s.Subscribe(SubscribeOptions{}), s.Subscribe(SubscribeOptions{})
	const frames = 2 * retainedVideo
	for i := range frames {
		if i%25 == 0 {
			cam.unit(sps, pps, idr(20))
		} else {
			cam.unit(inter(20 + i%100))
		}
		cam.packet(1, false, []byte{byte(i)})
	}
	bursts := drain(t, sub)
	last := map[Kind]*Packet{}
	for _, b := range bursts {
		last[b.Kind] = &b.Packets[len(b.Packets)-1]
	}
	for kind, p := range last {
		for _, back := range []int{0, 1, RetainedPackets(kind) - 1} {
			if got := other.Retained(kind, p.Index-uint64(back)); got == nil || got.Index != p.Index-uint64(back) {
				t.Errorf("%s: the packet %d back is %v", kind, back, got)
			}
		}
		for _, index := range []uint64{p.Index - uint64(RetainedPackets(kind)), p.Index + 1, 0} {
			if got := other.Retained(kind, index); got != nil {
				t.Errorf("%s: index %d is kept, %d is the latest", kind, index, p.Index)
			}
		}
		if got := other.Retained(kind, p.Index); got != p {
			t.Errorf("%s: the packet was copied", kind)
		}
	}
	if got := other.Retained(kinds, 0); got != nil {
		t.Error("there is a packet of no kind")
	}
	index := last[Video].Index
	sub.Close()
	other.Close()
	if got := s.Subscribe(SubscribeOptions{}).Retained(Video, index); got != nil {
		t.Error("packets are kept that nobody could have missed")
	}
}

// A subscription that many viewers share is told when there is something to take.
func TestPoll(t *testing.T) {
	s := New(Config{})
	woken := 0
	sub := s.Subscribe(SubscribeOptions{Wake: func() { woken++ }})
	if b, err := sub.Poll(); b != nil || err != nil {
		t.Errorf("a burst %v, %v of nothing", b, err)
	}
	cam := publish(t, s)
	cam.unit(sps, pps, idr(20))
	if b, err := sub.Poll(); b == nil || err != nil || woken == 0 {
		t.Errorf("no burst: %v, woken %d times", err, woken)
	}
	woken = 0
	s.Close(nil)
	if _, err := sub.Poll(); !errors.Is(err, io.EOF) || woken == 0 {
		t.Errorf("after the end: %v, woken %d times", err, woken)
	}
}

func TestClosedSubscriptionsGetNothing(t *testing.T) {
	s := New(Config{})
	var subs []*Subscription
	for range 5 {
		subs = append(subs, s.Subscribe(SubscribeOptions{}))
	}
	cam := publish(t, s)
	for _, i := range []int{1, 4, 0, 3} {
		subs[i].Close()
		cam.unit(sps, pps, idr(20))
	}
	if got := drain(t, subs[2]); len(got) != 4 {
		t.Errorf("%d bursts, want 4", len(got))
	}
	if got := s.Stats().Subscriptions; got != 1 {
		t.Errorf("%d viewers, want 1", got)
	}
	subs[2].Close()
	if slices.ContainsFunc(s.subs, func(*Subscription) bool { return true }) {
		t.Error("subscriptions are left")
	}
}

func TestRing(t *testing.T) {
	var r ring
	in, out := 0, 0
	for i := range 200 {
		for range i % 7 {
			r.push(&Burst{Track: in})
			in++
		}
		for range min(i%5, r.len()) {
			if got := r.pop().Track; got != out {
				t.Fatalf("popped %d, want %d", got, out)
			}
			out++
		}
		if r.len() != in-out || r.len() > 0 && (r.at(0).Track != out || r.at(r.len()-1).Track != in-1) {
			t.Fatalf("%d bursts, want %d", r.len(), in-out)
		}
	}
}
