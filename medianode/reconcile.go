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
		desired, err := fromDesired(d)
		if desired.ID != "" {
			keep[desired.ID] = true
		}
		if err == nil {
			err = n.want(ctx, desired, d.GetGeneration())
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
func (n *Node) want(ctx context.Context, desired fleet.Camera, generation int64) error {
	if seen := n.seen[desired.ID]; generation < seen {
		return fmt.Errorf("generation %d of camera %q is older than %d: %w", generation, desired.ID, seen, fleet.StaleGeneration)
	}
	n.seen[desired.ID] = generation
	if c := n.cameras[desired.ID]; c != nil {
		c.change(desired, generation)
		c.setSuspended(false)
		n.changes.add(c.id)
		return nil
	}
	c := newCamera(n, desired, generation)
	ctx, c.cancel = context.WithCancel(ctx)
	before := n.leaving[c.id]
	n.cameras[c.id] = c
	n.running.Go(func() { c.run(ctx, before) })
	n.changes.add(c.id)
	c.log.Info("camera assigned", "generation", generation)
	return nil
}

// letGo ends a camera that is no longer in n.cameras, and its sessions with the
// reason given. The caller holds n.mu.
func (n *Node) letGo(c *camera, reason fleet.Error) {
	c.stream.Close(fmt.Errorf("camera %q: %w", c.id, reason))
	c.cancel()
	n.leaving[c.id] = c
	n.running.Go(func() {
		<-c.done
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.leaving[c.id] == c {
			delete(n.leaving, c.id)
		}
	})
	c.log.Info("camera let go", "reason", string(reason))
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
func fromDesired(d *controlv1.DesiredCamera) (fleet.Camera, error) {
	in := d.GetCamera()
	id, err := fleet.ParseCameraName(in.GetName())
	if err != nil {
		return fleet.Camera{}, err
	}
	out := fleet.Camera{
		ID: id, Credentials: fleet.Credentials{Username: in.GetUsername(), Password: d.GetPassword()},
		IdleTimeout: defaultIdleTimeout, MaxSessions: int(in.GetMaxSessions()),
	}
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
