package stream

import "time"

// keyframeRequestInterval is how often a camera is asked for a keyframe.
const keyframeRequestInterval = time.Second

// keyframes coalesces the requests for keyframes. Guarded by Stream.mu.
type keyframes struct {
	ask     func() // nil: the camera cannot be asked
	asked   time.Time
	pending bool // somebody wants one, and none has begun since

	// pictures have begun to come on this connection: before, there is nothing
	// to ask for, for most cameras begin with a keyframe.
	pictures bool
}

// published begins a connection, or ends one if ask is nil.
func (k *keyframes) published(ask func()) { k.ask = ask }

// wanted says that a subscription waits for a keyframe. The camera is asked when
// its next packet has been taken.
func (k *keyframes) wanted() { k.pending = true }

// due returns what is to be called, without the lock, to ask the camera; nil if
// nobody wants a keyframe or the last request is too recent. The writer asks when
// it is time, and again, for requests get lost, until a keyframe has begun.
func (k *keyframes) due(now time.Time) func() {
	if !k.pending || !k.pictures || k.ask == nil || now.Sub(k.asked) < keyframeRequestInterval {
		return nil
	}
	k.asked = now
	return k.ask
}

// RequestKeyframe asks the camera for a keyframe, if it can be asked: at once, or
// when its first picture has begun to come, or a second after it was asked last.
// It is asked again each second until a keyframe begins.
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
