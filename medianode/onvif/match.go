package onvif

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// findProfile returns the token of the profile whose stream is the one that is
// pulled: the only one there is, the one with the same URL, the first with the
// same codec and picture, or else the first, for most cameras force keyframes on
// all of them.
func (c *Client) findProfile(ctx context.Context, s service, p Picture) (string, error) {
	b, err := c.authorized(ctx, s.url, s.namespace+"/GetProfiles", getProfiles(s.namespace))
	if err != nil {
		return "", fmt.Errorf("get profiles: %w", err)
	}
	profiles := slices.DeleteFunc(b.Profiles, func(p profile) bool { return p.Token == "" })
	if len(profiles) == 0 {
		return "", fmt.Errorf("get profiles: there is none: %w", ErrUnsupported)
	}
	if len(profiles) == 1 {
		return profiles[0].Token, nil
	}
	best, token := 0, ""
	for _, p := range profiles[:min(len(profiles), maxProfiles)] {
		b, err := c.authorized(ctx, s.url, s.namespace+"/GetStreamUri", getStreamURI(s.namespace, p.Token))
		if errors.Is(err, ErrUnsupported) {
			continue // this profile has no stream
		}
		if err != nil {
			return "", fmt.Errorf("get stream uri: %w", err)
		}
		if score := similarity(c.cfg.StreamURL, b.StreamURI+b.StreamURI2); score > best {
			best, token = score, p.Token
		}
	}
	if token != "" {
		return token, nil
	}
	for _, candidate := range profiles {
		if candidate.shows(p) {
			c.log.Debug("no onvif profile has the stream's url: taking the first with its codec and picture", "profiles", len(profiles))
			return candidate.Token, nil
		}
	}
	c.log.Debug("no onvif profile has the stream's url, nor its codec and picture: taking the first", "profiles", len(profiles))
	return profiles[0].Token, nil
}

// shows tells whether a profile's video is the picture, as far as that is known.
func (p profile) shows(want Picture) bool {
	for _, e := range []encoder{p.Encoder, p.Encoder2} {
		if e.Width == 0 || want.Width == 0 || e.Width != want.Width || e.Height != want.Height {
			continue
		}
		if want.Codec == "" || strings.EqualFold(strings.TrimSpace(e.Encoding), want.Codec) {
			return true
		}
	}
	return false
}

// similarity compares the URL that a stream is pulled from with one that the
// camera names: 0, they are of different streams. Hosts are not compared, nor
// credentials: cameras name addresses that are not theirs. Parameters that the
// camera adds are common ("transportmode=unicast"), and so is another order.
func similarity(pulled, named string) int {
	a, errA := url.Parse(strings.TrimSpace(pulled))
	b, errB := url.Parse(strings.TrimSpace(named))
	if errA != nil || errB != nil || b.Host == "" || trimPath(a) != trimPath(b) {
		return 0
	}
	ours, theirs := a.Query(), b.Query()
	for key, values := range ours {
		if !slices.Equal(values, theirs[key]) {
			return 0
		}
	}
	score := 1
	if len(ours) == len(theirs) {
		score += 2
	}
	if rtspPort(a) == rtspPort(b) {
		score++
	}
	return score
}

func trimPath(u *url.URL) string { return strings.ToLower(strings.Trim(u.Path, "/")) }

func rtspPort(u *url.URL) string {
	switch {
	case u.Port() != "":
		return u.Port()
	case u.Scheme == "rtsps":
		return "322"
	default:
		return "554"
	}
}
