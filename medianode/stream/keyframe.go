package stream

import "time"

// keyframeRequestInterval is how often a camera is asked for a keyframe.
const keyframeRequestInterval = time.Second

// keyframes coalesces the requests for keyframes. Guarded by Stream.mu.
type keyframes struct {
	ask     func() // nil: the camera cannot be asked
	asked   time.Time
	pending bool // somebody wants one, and none has begun since
}

// published begins a connection, or ends one if ask is nil.
func (k *keyframes) published(ask func()) { k.ask = ask }

// due returns what is to be called, without the lock, to ask the camera; nil if
// nobody wants a keyframe or the last request is too recent. A request that
// came too soon is made by the writer when it is time, if no keyframe has begun.
func (k *keyframes) due(now time.Time) func() {
	if !k.pending || k.ask == nil || now.Sub(k.asked) < keyframeRequestInterval {
		return nil
	}
	k.pending, k.asked = false, now
	return k.ask
}

// RequestKeyframe asks the camera for a keyframe, if it can be asked and has
// not been within the last second; then, the request is made when the second is
// over, unless a keyframe has begun by then.
func (sub *Subscription) RequestKeyframe() {
	s := sub.stream
	now := s.clock()
	s.mu.Lock()
	s.keys.pending = true
	ask := s.keys.due(now)
	s.mu.Unlock()
	if ask != nil {
		ask()
	}
}
