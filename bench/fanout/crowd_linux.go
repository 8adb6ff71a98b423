package fanout

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

const (
	joiners   = 8   // viewers that join or leave at a time
	joinTries = 5   // of a viewer: a server that is overloaded refuses some
	perSource = 200 // viewers of one loopback address, so that a gateway's limit for an address is none of ours

	checkedEach  = 8  // spot-checked viewers of a camera
	checkedTotal = 64 // of all, unless there are more cameras

	leaveLimit = 20 * time.Second
)

// join has as many viewers join, some at a time, spread over the cameras. It
// returns how often one had to try again.
func (b *bench) join(ctx context.Context, come int) (again int, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	b.gather(false)
	defer b.gather(true)
	first := len(b.viewers)
	b.viewers = append(b.viewers, make([]*viewer, come)...)
	for len(b.clients)*perSource < len(b.viewers) {
		b.clients = append(b.clients, b.newClient(len(b.clients)))
	}
	var tries atomic.Int64
	b.each(ctx, first, func(i int) {
		n, err := b.joinOne(ctx, i)
		if err != nil {
			cancel(fmt.Errorf("viewer %d: %w", i+1, err))
		}
		tries.Add(int64(n))
	})
	if err := context.Cause(ctx); err != nil {
		return 0, err
	}
	return int(tries.Load()) - come, nil
}

// gather says whether readers may let packets gather.
func (b *bench) gather(on bool) {
	for _, r := range b.readers {
		r.mu.Lock()
		r.patient = on
		r.mu.Unlock()
	}
}

// joinOne has the i-th viewer join, and returns how often it tried.
func (b *bench) joinOne(ctx context.Context, i int) (tries int, err error) {
	lossy := 0.0
	// Spread evenly: the share of lossy ones grows by Lossy with each.
	if int(float64(i+1)*b.cfg.Lossy) > int(float64(i)*b.cfg.Lossy) {
		lossy = b.cfg.Loss
	}
	for tries = 1; ; tries++ {
		v, err := newViewer(b.readers[i%len(b.readers)], i%b.cfg.Cameras, lossy)
		if err != nil {
			return tries, err
		}
		err = v.join(ctx, b.client(i), b.server.endpoint(v.camera), b.id)
		if err == nil {
			b.viewers[i] = v
			return tries, nil
		}
		v.leave(ctx, b.client(i))
		var refused *refusal
		if tries == joinTries || ctx.Err() != nil || errors.As(err, &refused) && refused.final() {
			return tries, err
		}
		b.say("viewer %d tries again: %v", i+1, err)
	}
}

// each calls f for all viewers from one on, for some at a time, until ctx ends.
func (b *bench) each(ctx context.Context, first int, f func(i int)) {
	next := make(chan int)
	var wg sync.WaitGroup
	for range joiners {
		wg.Go(func() {
			for i := range next {
				f(i)
			}
		})
	}
	for i := first; i < len(b.viewers) && ctx.Err() == nil; i++ {
		next <- i
	}
	close(next)
	wg.Wait()
}

// newClient returns the i-th HTTP client. To a server of our own it comes from
// an address of its own.
func (b *bench) newClient(i int) *http.Client {
	d := &net.Dialer{}
	if b.own != nil {
		d.LocalAddr = &net.TCPAddr{IP: net.IPv4(127, 0, byte(1+i>>8), byte(1+i))}
	}
	return &http.Client{Transport: &http.Transport{DialContext: d.DialContext, MaxIdleConnsPerHost: joiners}}
}

func (b *bench) client(viewer int) *http.Client { return b.clients[viewer/perSource] }

// leave says goodbye for all viewers, some at a time.
func (b *bench) leave() {
	ctx, cancel := context.WithTimeout(context.Background(), leaveLimit)
	defer cancel()
	b.gather(false)
	b.each(ctx, 0, func(i int) {
		if v := b.viewers[i]; v != nil { // one that never joined has left already
			v.leave(ctx, b.client(i))
		}
	})
	for _, c := range b.clients {
		c.CloseIdleConnections()
	}
}

// spotCheck chooses the viewers whose packets are decrypted: of each camera
// some, from its first viewer to its last.
func (b *bench) spotCheck() error {
	per := len(b.viewers) / b.cfg.Cameras
	most := min(per, max(1, min(checkedEach, checkedTotal/b.cfg.Cameras)))
	chosen := make(map[int]bool, most)
	for i := range most {
		at := per / 2
		if most > 1 {
			at = i * (per - 1) / (most - 1)
		}
		chosen[at] = true
	}
	for i, v := range b.viewers {
		check := chosen[i/b.cfg.Cameras]
		if err := v.socket.timestamps(check); err != nil {
			return fmt.Errorf("have packets stamped: %w", err)
		}
		v.reader.mu.Lock()
		v.checked, v.picture = check, picture{}
		v.reader.mu.Unlock()
	}
	return nil
}

// addSinks opens as many sockets for the floor.
func (b *bench) addSinks(n int) error {
	have := len(b.viewers) - n
	for i := have; i < have+n; i++ {
		s, err := newSocket(&sink{}, !b.cfg.Cut)
		if err != nil {
			return err
		}
		if err := b.readers[i%len(b.readers)].add(s); err != nil {
			s.close()
			return err
		}
		b.sinks[i%b.cfg.Cameras] = append(b.sinks[i%b.cfg.Cameras], s.addr.String())
	}
	return nil
}
