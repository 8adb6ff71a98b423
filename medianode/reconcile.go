package medianode

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// defaultIdleTimeout is how long a camera on demand is pulled after its last
// session, if its operator does not say.
const defaultIdleTimeout = 10 * time.Second

// apply makes the node's cameras those of a desired set, and says which could
// not be applied. Applying a set again changes nothing. A camera that cannot be
// applied stays as it was, if the node has it.
func (n *Node) apply(ctx context.Context, set *controlv1.DesiredSet) *controlv1.Applied {
	result := &controlv1.Applied{Generation: set.GetGeneration()}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.stopping {
		return result
	}
	n.suspend = false
	keep := make(map[fleet.CameraID]bool, len(set.GetCameras()))
	for _, d := range set.GetCameras() {
		want, err := fromDesired(d)
		if want.ID != "" {
			keep[want.ID] = true
		}
		if err == nil {
			err = n.want(ctx, want)
		}
		if err != nil {
			result.Errors = append(result.Errors, applyError(d.GetCamera().GetName(), err))
		}
	}
	for id, c := range n.cameras {
		if !keep[id] {
			delete(n.cameras, id)
			n.letGo(c, fleet.CameraMoved)
		}
	}
	close(n.applied)
	n.applied = make(chan struct{})
	return result
}

// applyError says why a camera was not applied.
func applyError(name string, err error) *controlv1.ApplyError {
	e := &controlv1.ApplyError{Camera: name, Reason: controlv1.Reason_REASON_PROTOCOL_ERROR, Message: err.Error()}
	if errors.Is(err, fleet.StaleGeneration) {
		e.Reason = controlv1.Reason_REASON_MOVING
	}
	return e
}

// want makes one camera as desired. The caller holds n.mu.
func (n *Node) want(ctx context.Context, d desired) error {
	if seen := n.seen[d.ID]; d.generation < seen {
		return fmt.Errorf("generation %d of camera %q is older than %d: %w", d.generation, d.ID, seen, fleet.StaleGeneration)
	}
	n.seen[d.ID] = d.generation
	if c := n.cameras[d.ID]; c != nil {
		c.change(d)
		c.setSuspended(false)
		n.changes.add(c.id)
		return nil
	}
	before := n.ending[d.ID]
	if d.part == partHandOver {
		if before == nil { // nothing of it is left, or ever was in this process
			n.released.add(d.ID, d.generation)
			n.changes.poke()
		}
		return nil
	}
	n.released.remove(d.ID, d.generation)
	c := newCamera(n, d)
	ctx, c.cancel = context.WithCancel(ctx)
	n.cameras[c.id] = c
	n.running.Go(func() { c.run(ctx, before) })
	n.changes.add(c.id)
	c.log.Info("camera assigned", "generation", d.generation, "part", partNames[d.part])
	return nil
}

// partNames are the parts in the log.
var partNames = map[part]string{partTakeOver: "take over", partHandOver: "hand over", partAwaitHandOver: "await hand-over"}

// letGo ends a camera that is no longer in n.cameras, and its sessions with the
// reason given. When its source has ended it is reported as released. The caller
// holds n.mu.
func (n *Node) letGo(c *camera, reason fleet.Error) {
	c.close(fmt.Errorf("camera %q: %w", c.id, reason))
	c.cancel()
	n.ending[c.id] = c
	generation, _ := c.move()
	n.running.Go(func() {
		<-c.done
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.ending[c.id] != c {
			return // it was pulled again and let go again: what that ends with counts
		}
		delete(n.ending, c.id)
		again := n.cameras[c.id]
		if again == nil {
			generation = max(generation, n.seen[c.id]) // it was to be handed over under a later one
		} else if now, _ := again.move(); now == generation {
			return
		}
		n.released.add(c.id, generation)
		n.changes.poke()
	})
	c.log.Info("camera let go", "reason", string(reason))
}

// handedOver lets a camera go whose hand-over is complete, or has taken too
// long.
func (n *Node) handedOver(c *camera) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cameras[c.id] == c && c.next(time.Now()).handedOver {
		delete(n.cameras, c.id)
		n.letGo(c, fleet.CameraMoved)
	}
}

// leaseExpired stops pulling the cameras that another node may be about to.
func (n *Node) leaseExpired() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.suspend {
		return
	}
	n.suspend = true
	n.log.Warn("no control plane for longer than the lease")
	for _, c := range n.cameras {
		c.setSuspended(true)
	}
}

// fromDesired checks what the control plane said of a camera. The id is set if
// it can be read, also with an error.
func fromDesired(d *controlv1.DesiredCamera) (desired, error) {
	in := d.GetCamera()
	id, err := fleet.ParseCameraName(in.GetName())
	if err != nil {
		return desired{}, err
	}
	out := desired{generation: d.GetGeneration(), part: d.GetPart(), Camera: fleet.Camera{
		ID: id, Credentials: fleet.Credentials{Username: in.GetUsername(), Password: d.GetPassword()},
		IdleTimeout: defaultIdleTimeout, MaxSessions: int(in.GetMaxSessions()),
		TCPFirst: d.GetLastTransport() == controlv1.Profile_TRANSPORT_TCP,
		ONVIFURL: in.GetOnvifUrl(), Retry: d.GetRetry(),
	}}
	if in.GetPullPolicy() == controlv1.Camera_PULL_POLICY_ON_DEMAND {
		out.PullPolicy = fleet.PullOnDemand
	}
	if t := in.GetIdleTimeout().AsDuration(); t > 0 {
		out.IdleTimeout = t
	}
	if len(in.GetProfiles()) == 0 {
		return out, fmt.Errorf("camera %q has no profiles: %w", id, fleet.InvalidArgument)
	}
	for i, p := range in.GetProfiles() {
		if p.GetUrl() == "" {
			return out, fmt.Errorf("profile %d of camera %q has no URL: %w", i, id, fleet.InvalidURL)
		}
		profile := fleet.Profile{
			ID: p.GetId(), URL: p.GetUrl(), FallbackURLs: p.GetFallbackUrls(), Transport: transports[p.GetTransport()],
			TLSFingerprint: strings.ToLower(strings.ReplaceAll(p.GetTlsFingerprint(), ":", "")),
		}
		if profile.ID == "" && i == 0 {
			profile.ID = "main"
		}
		out.Profiles = append(out.Profiles, profile)
	}
	return out, nil
}

// transports are the API's; what is not here is automatic.
var transports = map[controlv1.Profile_Transport]fleet.Transport{
	controlv1.Profile_TRANSPORT_TCP:       fleet.TransportTCP,
	controlv1.Profile_TRANSPORT_UDP:       fleet.TransportUDP,
	controlv1.Profile_TRANSPORT_MULTICAST: fleet.TransportMulticast,
}
