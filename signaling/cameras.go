package signaling

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
	"fanlight/signaling/route"
	"fanlight/signaling/viewer"
)

// maxPage is how many cameras a page has at most.
const maxPage = 1000

// camera is a camera in the list of what a viewer may watch.
type camera struct {
	Camera      string            `json:"camera"`
	DisplayName string            `json:"display_name"`
	Labels      map[string]string `json:"labels"`
	State       string            `json:"state"`
	Reason      fleet.Reason      `json:"reason"`
	Message     string            `json:"message"`
}

// cameraPage is a page of them.
type cameraPage struct {
	Cameras       []camera `json:"cameras"`
	NextPageToken string   `json:"next_page_token"`
}

// page is which part of a list is asked for.
type page struct {
	size  int32
	token string
}

func readPage(q url.Values, size int32) (page, error) {
	p := page{size: size, token: q.Get("page_token")}
	if s := q.Get("page_size"); s != "" {
		n, err := strconv.ParseInt(s, 10, 32)
		if err != nil || n < 0 {
			return p, fmt.Errorf("page_size is a number from 0 to %d: %w", maxPage, fleet.InvalidArgument)
		}
		if n > 0 {
			p.size = int32(min(n, maxPage))
		}
	}
	if len(p.token) > 1024 {
		return p, fmt.Errorf("page_token is too long: %w", fleet.InvalidPageToken)
	}
	return p, nil
}

// serveCameras lists what the viewer may watch.
func (g *Gateway) serveCameras(w http.ResponseWriter, r *http.Request) {
	v, err := g.bearer(r)
	if err != nil {
		g.problem(w, r, err)
		return
	}
	p, err := readPage(r.URL.Query(), 100)
	if err != nil {
		g.problem(w, r, err)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), askTimeout)
	defer cancel()
	resp, err := browse(ctx, g.control, v, p)
	if err != nil {
		g.problem(w, r, err)
		return
	}
	out := cameraPage{Cameras: []camera{}, NextPageToken: resp.GetNextPageToken()}
	for _, m := range resp.GetCameras() {
		id, err := fleet.ParseCameraName(m.GetName())
		if err != nil {
			continue
		}
		labels := m.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		reason := route.Reason(m.GetStatus().GetReason())
		out.Cameras = append(out.Cameras, camera{
			Camera: string(id), DisplayName: m.GetDisplayName(), Labels: labels,
			State:  cameraStateName(m.GetStatus().GetState()),
			Reason: reason, Message: reasonSentence(reason),
		})
	}
	writeJSON(w, out)
}

// browse asks the control plane what a viewer may watch.
func browse(ctx context.Context, control controlv1.RouteServiceClient, v viewer.Viewer, p page) (*controlv1.BrowseCamerasResponse, error) {
	if len(v.Cameras) == 0 {
		return &controlv1.BrowseCamerasResponse{}, nil
	}
	resp, err := control.BrowseCameras(ctx, &controlv1.BrowseCamerasRequest{Patterns: v.Cameras, PageSize: p.size, PageToken: p.token})
	if err == nil {
		return resp, nil
	}
	if reasonOf(err) == fleet.InvalidPageToken {
		return nil, fmt.Errorf("page_token is not one that this list returned: %w", fleet.InvalidPageToken)
	}
	// The control plane's other errors are about the gateway, not the viewer.
	return nil, &spoken{reason: fleet.Unavailable, text: "the control plane cannot be asked for the cameras at the moment; try again"}
}

// cameraStateName is a camera's state as viewers see it: "live".
func cameraStateName(s controlv1.CameraStatus_State) string {
	if s == controlv1.CameraStatus_STATE_UNSPECIFIED {
		return "connecting"
	}
	return strings.ToLower(strings.TrimPrefix(s.String(), "STATE_"))
}
