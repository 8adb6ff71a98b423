package stream

import "time"

const (
	// keyframeRequestInterval is how often a camera is asked for a keyframe in the
	// long run, and how soon it is asked again if none has come.
	keyframeRequestInterval = time.Second
	// keyframeRequestBurst is how many times it is asked in a row when keyframes
	// do come, for viewers who arrive one after the other, as when all move to
	// this node, and keyframeRequestSpacing the least time between two.
	keyframeRequestBurst   = 4
	keyframeRequestSpacing = 100 * time.Millisecond
)

// keyframes coalesces the requests for keyframes. Guarded by Stream.mu.
type keyframes struct {
	ask      func() // nil: the camera cannot be asked
	asked    time.Time
	answered bool      // a keyframe has begun since asked
	rested   time.Time // when the whole burst will be there again
	pending  bool      // somebody wants one, and none has begun since

	// pictures have begun to come on this connection: before, there is nothing
	// to ask for, for most cameras begin with a keyframe.
	pictures bool
}

// connect returns what there is of k on a new connection of the camera. wanted:
// somebody waits for a keyframe of it.
func (k *keyframes) connect(wanted bool) keyframes {
	return keyframes{asked: k.asked, answered: true, rested: k.rested, pending: wanted}
}

// published begins a connection, or ends one if ask is nil.
func (k *keyframes) published(ask func()) { k.ask = ask }

// wanted says that a subscription waits for a keyframe. The camera is asked when
// its next packet has been taken.
func (k *keyframes) wanted() { k.pending = true }

// begun says that a keyframe begins.
func (k *keyframes) begun() { k.pending, k.answered = false, true }

// due returns what is to be called, without the lock, to ask the camera; nil if
// nobody wants a keyframe or the last request is too recent. The writer asks when
// it is time, and again, for requests get lost, until a keyframe has begun.
func (k *keyframes) due(now time.Time) func() {
	if !k.pending || !k.pictures || k.ask == nil {
		return nil
	}
	least := keyframeRequestInterval
	if k.answered {
		least = keyframeRequestSpacing
	}
	if now.Sub(k.asked) < least || k.rested.Sub(now) > (keyframeRequestBurst-1)*keyframeRequestInterval {
		return nil
	}
	if k.rested.Before(now) {
		k.rested = now
	}
	k.asked, k.answered, k.rested = now, false, k.rested.Add(keyframeRequestInterval)
	return k.ask
}

// RequestKeyframe asks the camera for a keyframe, if it can be asked: at once, or
// when its first picture has begun to come, or some time after it was asked last:
// 100 ms if a keyframe has come since, four times in a row, else a second. It is
// asked again each second until a keyframe begins.
func (sub *Subscription) RequestKeyframe() {
	s := sub.stream
	now := s.clock()
	s.mu.Lock()
	s.keys.wanted()
	ask := s.keys.due(now)
	s.mu.Unlock()
	if ask != nil {
		ask()
	}
}
