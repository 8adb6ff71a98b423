package controlplane_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

func TestCreate(t *testing.T) {
	r := start(t, options{})
	got := r.create(camera("lobby"))
	if got.GetEtag() == "" || got.GetCreateTime() == nil || got.GetUpdateTime() == nil || got.GetProfiles()[0].GetId() != "main" {
		t.Errorf("created: %v", got)
	}
	create := func(id, request string) (*controlv1.Camera, error) {
		resp, err := r.cameras.CreateCamera(r.ctx(), &controlv1.CreateCameraRequest{Camera: camera(id), RequestId: request})
		return resp.GetCamera(), err
	}
	if _, err := create("lobby", ""); !errors.Is(err, fleet.CameraExists) {
		t.Errorf("created twice: %v", err)
	}
	if _, err := create("lobby", "r1"); !errors.Is(err, fleet.CameraExists) {
		t.Errorf("another request's camera: %v", err)
	}
	first, err := create("yard", "r1")
	if err != nil {
		t.Fatal(err)
	}
	second, err := create("yard", "r1")
	if err != nil || second.GetEtag() != first.GetEtag() {
		t.Errorf("a retry: %v, %v", second, err)
	}
	if _, err := create("yard", "r2"); !errors.Is(err, fleet.CameraExists) {
		t.Errorf("another request: %v", err)
	}
	if _, err := create("hall", strings.Repeat("x", 65)); !errors.Is(err, fleet.InvalidArgument) {
		t.Errorf("long request id: %v", err)
	}
	bad := camera("hall")
	bad.Profiles[0].Url = "http://192.0.2.1/"
	if _, err := r.cameras.CreateCamera(r.ctx(), &controlv1.CreateCameraRequest{Camera: bad}); !errors.Is(err, fleet.InvalidURL) || !strings.Contains(err.Error(), "profiles[0].url") {
		t.Errorf("bad URL: %v", err)
	}
	if _, err := r.cameras.GetCamera(r.ctx(), &controlv1.GetCameraRequest{Name: "cameras/hall"}); !errors.Is(err, fleet.CameraNotFound) {
		t.Errorf("get of nobody: %v", err)
	}
	if _, err := r.cameras.GetCamera(r.ctx(), &controlv1.GetCameraRequest{Name: "hall"}); !errors.Is(err, fleet.InvalidArgument) {
		t.Errorf("get without a name: %v", err)
	}
}

func TestUpdate(t *testing.T) {
	r := start(t, options{})
	c := camera("lobby")
	c.Username, c.Password, c.Labels = "admin", "one", map[string]string{"a": "b"}
	c = r.create(c)
	update := func(to *controlv1.Camera, mask ...string) (*controlv1.Camera, error) {
		to.Name = "cameras/lobby"
		resp, err := r.cameras.UpdateCamera(r.ctx(), &controlv1.UpdateCameraRequest{Camera: to, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}})
		return resp.GetCamera(), err
	}
	got, err := update(&controlv1.Camera{DisplayName: "Lobby", Etag: c.GetEtag()}, "display_name")
	if err != nil || got.GetDisplayName() != "Lobby" || got.GetUsername() != "admin" || !got.GetPasswordSet() || got.GetLabels()["a"] != "b" || got.GetEtag() == c.GetEtag() {
		t.Fatalf("got %v, %v", got, err)
	}
	if r.get("lobby").GetDisplayName() != "Lobby" {
		t.Error("own update not read")
	}
	if _, err := update(&controlv1.Camera{DisplayName: "No", Etag: c.GetEtag()}, "display_name"); !errors.Is(err, fleet.ETagMismatch) {
		t.Errorf("old etag: %v", err)
	}
	same, err := update(&controlv1.Camera{DisplayName: "Lobby"}, "display_name")
	if err != nil || same.GetEtag() != got.GetEtag() {
		t.Errorf("an update that changes nothing: %v, %v", same, err)
	}
	for mask, want := range map[string]fleet.Error{
		"name": fleet.InvalidArgument, "status": fleet.InvalidArgument, "labels.a": fleet.InvalidArgument, "*": fleet.InvalidArgument,
		"username": fleet.InvalidArgument, // there is a password
		"profiles": fleet.InvalidArgument,
	} {
		if _, err := update(&controlv1.Camera{}, mask); !errors.Is(err, want) {
			t.Errorf("mask %q: %v", mask, err)
		}
	}
	// No mask: everything but the password.
	full := camera("lobby")
	full.Username = "root"
	full.Profiles[0].Url = "rtsp://192.0.2.1:554/other"
	got, err = update(full)
	if err != nil || got.GetDisplayName() != "" || len(got.GetLabels()) != 0 || !got.GetPasswordSet() || got.GetUsername() != "root" {
		t.Errorf("got %v, %v", got, err)
	}
	got, err = update(&controlv1.Camera{}, "password", "username")
	if err != nil || got.GetPasswordSet() || got.GetUsername() != "" {
		t.Errorf("password removed: %v, %v", got, err)
	}
	if _, err := r.cameras.UpdateCamera(r.ctx(), &controlv1.UpdateCameraRequest{Camera: camera("nobody")}); !errors.Is(err, fleet.CameraNotFound) {
		t.Errorf("update of nobody: %v", err)
	}
	if _, err := r.cameras.UpdateCamera(r.ctx(), &controlv1.UpdateCameraRequest{}); !errors.Is(err, fleet.InvalidArgument) {
		t.Errorf("update of nothing: %v", err)
	}
}

// A stored password can't be read by having it sent elsewhere.
func TestPasswordStays(t *testing.T) {
	r := start(t, options{})
	c := camera("lobby")
	c.Profiles[0].FallbackUrls = []string{"rtsp://192.0.2.2:8554/x"}
	c.Username, c.Password = "admin", "hunter2"
	c = r.create(c)
	update := func(change func(*controlv1.Camera), mask ...string) (*controlv1.Camera, error) {
		to := proto.CloneOf(c)
		to.Etag = ""
		change(to)
		resp, err := r.cameras.UpdateCamera(r.ctx(), &controlv1.UpdateCameraRequest{Camera: to, UpdateMask: &fieldmaskpb.FieldMask{Paths: mask}})
		return resp.GetCamera(), err
	}
	for name, change := range map[string]func(*controlv1.Camera){
		"host":     func(c *controlv1.Camera) { c.Profiles[0].Url = "rtsp://192.0.2.66/lobby" },
		"port":     func(c *controlv1.Camera) { c.Profiles[0].Url = "rtsp://192.0.2.1:555/lobby" },
		"scheme":   func(c *controlv1.Camera) { c.Profiles[0].Url = "rtsps://192.0.2.1:554/lobby" },
		"fallback": func(c *controlv1.Camera) { c.Profiles[0].FallbackUrls = []string{"rtsp://attacker/"} },
		"profile": func(c *controlv1.Camera) {
			c.Profiles = append(c.Profiles, &controlv1.Profile{Id: "sub", Url: "rtsp://attacker/"})
		},
	} {
		for _, mask := range [][]string{nil, {"profiles"}, {"profiles", "username"}} {
			_, err := update(change, mask...)
			if !errors.Is(err, fleet.InvalidArgument) || !strings.Contains(err.Error(), "--password-file") {
				t.Errorf("%s by %v: %v", name, mask, err)
			}
		}
	}
	if got := r.get("lobby"); got.GetEtag() != c.GetEtag() {
		t.Errorf("a refused update changed the camera: %v", got)
	}
	if _, err := update(func(c *controlv1.Camera) {
		c.Profiles[0].Url, c.Profiles[0].FallbackUrls = "RTSP://192.0.2.2:8554/y", []string{"rtsp://192.0.2.1:554/z"}
	}, "profiles"); err != nil {
		t.Errorf("addresses that had the password before: %v", err)
	}
	if got, err := update(func(c *controlv1.Camera) { c.Profiles[0].Url, c.Password = "rtsp://192.0.2.3/", "hunter3" }, "profiles", "password"); err != nil || !got.GetPasswordSet() {
		t.Errorf("with the password: %v, %v", got, err)
	}
	if got, err := update(func(c *controlv1.Camera) { c.Profiles[0].Url, c.Password = "rtsp://192.0.2.4/", "" }, "profiles", "password"); err != nil || got.GetPasswordSet() {
		t.Errorf("without a password: %v, %v", got, err)
	}
	if _, err := update(func(c *controlv1.Camera) { c.Profiles[0].Url = "rtsp://192.0.2.5/" }, "profiles"); err != nil {
		t.Errorf("nothing to protect: %v", err)
	}
}

// What was written is read at once.
func TestOwnWritesAreRead(t *testing.T) {
	r := start(t, options{})
	for i := range 50 {
		id := fmt.Sprintf("c-%d", i)
		r.create(camera(id))
		if got := len(r.list(t, &controlv1.ListCamerasRequest{})); got != 1 {
			t.Fatalf("%d cameras after a creation", got)
		}
		for _, name := range []string{"x", "y"} {
			if _, err := r.cameras.UpdateCamera(r.ctx(), &controlv1.UpdateCameraRequest{
				Camera: &controlv1.Camera{Name: "cameras/" + id, DisplayName: name}, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"display_name"}},
			}); err != nil {
				t.Fatal(err)
			}
			if got := r.get(id).GetDisplayName(); got != name {
				t.Fatalf("read %q after writing %q", got, name)
			}
		}
		if _, err := r.cameras.DeleteCamera(r.ctx(), &controlv1.DeleteCameraRequest{Name: "cameras/" + id}); err != nil {
			t.Fatal(err)
		}
		if _, err := r.cameras.GetCamera(r.ctx(), &controlv1.GetCameraRequest{Name: "cameras/" + id}); !errors.Is(err, fleet.CameraNotFound) {
			t.Fatalf("read after its deletion: %v", err)
		}
	}
}

// Updates of different fields at the same time all count.
func TestConcurrentUpdates(t *testing.T) {
	r := start(t, options{})
	r.create(camera("lobby"))
	updates := map[string]*controlv1.Camera{
		"display_name":         {DisplayName: "x"},
		"labels":               {Labels: map[string]string{"a": "b"}},
		"max_sessions":         {MaxSessions: 2},
		"expected_bitrate_bps": {ExpectedBitrateBps: 5},
	}
	var wg sync.WaitGroup
	for mask, c := range updates {
		c.Name = "cameras/lobby"
		ctx := r.ctx()
		wg.Go(func() {
			if _, err := r.cameras.UpdateCamera(ctx, &controlv1.UpdateCameraRequest{Camera: c, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{mask}}}); err != nil {
				t.Errorf("%s: %v", mask, err)
			}
		})
	}
	wg.Wait()
	c := r.get("lobby")
	if c.GetDisplayName() != "x" || c.GetLabels()["a"] != "b" || c.GetMaxSessions() != 2 || c.GetExpectedBitrateBps() != 5 {
		t.Errorf("an update was lost: %v", c)
	}
}

func TestDelete(t *testing.T) {
	r := start(t, options{})
	c := r.create(camera("lobby"))
	remove := func(etag string) error {
		_, err := r.cameras.DeleteCamera(r.ctx(), &controlv1.DeleteCameraRequest{Name: "cameras/lobby", Etag: etag})
		return err
	}
	if err := remove("0"); !errors.Is(err, fleet.ETagMismatch) {
		t.Errorf("wrong etag: %v", err)
	}
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	g := n.until("lobby")["cameras/lobby"].GetGeneration()
	if err := remove(c.GetEtag()); err != nil {
		t.Fatal(err)
	}
	if err := remove(""); !errors.Is(err, fleet.CameraNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if err := remove("1"); !errors.Is(err, fleet.CameraNotFound) {
		t.Errorf("deleted twice with an etag: %v", err)
	}
	n.until()
	// A camera of the same name is another one, and newer.
	r.create(camera("lobby"))
	if got := n.until("lobby")["cameras/lobby"].GetGeneration(); got <= g {
		t.Errorf("generation %d after %d", got, g)
	}
	entries, _, err := r.store.Load(r.ctx())
	if err != nil {
		t.Fatal(err)
	}
	assignments := 0
	for _, e := range entries {
		if e.Assignment != nil {
			assignments++
		}
	}
	if assignments != 1 {
		t.Errorf("%d assignments are left", assignments)
	}
}

func TestBatchCreate(t *testing.T) {
	r := start(t, options{})
	r.create(camera("c-5"))
	n := r.connect(&controlv1.Hello{Node: "nodes/n1"})
	n.until("c-5")
	req := &controlv1.BatchCreateCamerasRequest{}
	for i := range 400 {
		req.Requests = append(req.Requests, &controlv1.CreateCameraRequest{Camera: camera(fmt.Sprintf("c-%d", i))})
	}
	req.Requests[7].Camera.Profiles[0].Url = "rtsp://admin:hunter2@192.0.2.1/"
	req.Requests[8].Camera.Name = "cameras/c-9"
	req.Requests[9].Camera.Name = "cameras/c-9"
	resp, err := r.cameras.BatchCreateCameras(r.ctx(), req)
	if err != nil {
		t.Fatal(err)
	}
	want := map[int]fleet.Error{5: fleet.CameraExists, 7: fleet.InvalidURL, 9: fleet.CameraExists}
	for i, res := range resp.GetResults() {
		f := res.GetFailure()
		if fleet.Error(f.GetReason()) != want[i] {
			t.Errorf("%d: %v", i, res)
		}
		if f != nil && (codes.Code(f.GetCode()) == codes.OK || f.GetMessage() == "" || strings.Contains(f.GetMessage(), "hunter2")) {
			t.Errorf("%d: %v", i, f)
		}
		if f == nil && res.GetCamera().GetEtag() == "" {
			t.Errorf("%d: %v", i, res)
		}
	}
	for set := n.set(); len(set.GetCameras()) < 398; set = n.set() {
	}
	for _, count := range []int{0, 1001} {
		_, err := r.cameras.BatchCreateCameras(r.ctx(), &controlv1.BatchCreateCamerasRequest{Requests: make([]*controlv1.CreateCameraRequest, count)})
		if !errors.Is(err, fleet.InvalidArgument) {
			t.Errorf("%d requests: %v", count, err)
		}
	}
}

func TestList(t *testing.T) {
	r := start(t, options{})
	for i := range 25 {
		c := camera(fmt.Sprintf("c-%02d", i))
		c.Labels = map[string]string{"parity": []string{"even", "odd"}[i%2], "site": "x"}
		c.Disabled = i >= 20
		r.create(c)
	}
	n := r.connect(&controlv1.Hello{Node: "nodes/n1", Capacity: &controlv1.NodeCapacity{Cameras: 10}})
	for set := n.set(); len(set.GetCameras()) < 10; set = n.set() {
	}
	r.eventually("all are decided", func() bool {
		return !slices.ContainsFunc(r.list(t, &controlv1.ListCamerasRequest{PageSize: 1000}), func(c *controlv1.Camera) bool {
			return c.GetStatus().GetReason() == controlv1.Reason_REASON_NO_NODE
		})
	})
	for _, tt := range []struct {
		name   string
		filter *controlv1.CameraFilter
		want   int
	}{
		{"all", nil, 25},
		{"label", &controlv1.CameraFilter{Labels: map[string]string{"parity": "odd"}}, 12},
		{"labels", &controlv1.CameraFilter{Labels: map[string]string{"parity": "odd", "site": "y"}}, 0},
		{"label that is missing", &controlv1.CameraFilter{Labels: map[string]string{"floor": ""}}, 0},
		{"node", &controlv1.CameraFilter{Node: "nodes/n1"}, 10},
		{"other node", &controlv1.CameraFilter{Node: "nodes/n2"}, 0},
		{"disabled", &controlv1.CameraFilter{States: []controlv1.CameraStatus_State{disabled}}, 5},
		{"states", &controlv1.CameraFilter{States: []controlv1.CameraStatus_State{connecting, unassigned}}, 20},
		{"state and node", &controlv1.CameraFilter{States: []controlv1.CameraStatus_State{unassigned}, Node: "nodes/n1"}, 0},
	} {
		for _, size := range []int32{0, 1, 7, 25, 5000} {
			got := r.list(t, &controlv1.ListCamerasRequest{PageSize: size, Filter: tt.filter})
			if len(got) != tt.want {
				t.Errorf("%s by %d: %d cameras, want %d", tt.name, size, len(got), tt.want)
			}
			if !slices.IsSortedFunc(got, func(a, b *controlv1.Camera) int { return strings.Compare(a.GetName(), b.GetName()) }) {
				t.Errorf("%s by %d: not sorted", tt.name, size)
			}
		}
	}
	first, err := r.cameras.ListCameras(r.ctx(), &controlv1.ListCamerasRequest{PageSize: 2})
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		req  *controlv1.ListCamerasRequest
		want fleet.Error
	}{
		"negative":     {&controlv1.ListCamerasRequest{PageSize: -1}, fleet.InvalidArgument},
		"garbage":      {&controlv1.ListCamerasRequest{PageToken: "garbage"}, fleet.InvalidPageToken},
		"other filter": {&controlv1.ListCamerasRequest{PageToken: first.GetNextPageToken(), Filter: &controlv1.CameraFilter{Node: "nodes/n1"}}, fleet.InvalidPageToken},
		"no node":      {&controlv1.ListCamerasRequest{Filter: &controlv1.CameraFilter{Node: "n1"}}, fleet.InvalidArgument},
		"no state":     {&controlv1.ListCamerasRequest{Filter: &controlv1.CameraFilter{States: []controlv1.CameraStatus_State{77}}}, fleet.InvalidArgument},
	} {
		if _, err := r.cameras.ListCameras(r.ctx(), tt.req); !errors.Is(err, tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// list reads all pages.
func (r *replica) list(t *testing.T, req *controlv1.ListCamerasRequest) []*controlv1.Camera {
	t.Helper()
	var all []*controlv1.Camera
	for {
		resp, err := r.cameras.ListCameras(r.ctx(), req)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, resp.GetCameras()...)
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			return all
		}
	}
}

// A page of large cameras ends before it is too large to be received.
func TestPageFits(t *testing.T) {
	r := start(t, options{})
	for i := range 100 {
		c := camera(fmt.Sprintf("c-%02d", i))
		for range 8 {
			c.Profiles[0].FallbackUrls = append(c.Profiles[0].FallbackUrls, "rtsp://192.0.2.1/"+strings.Repeat("x", 2000))
		}
		for j := range 7 {
			c.Profiles = append(c.Profiles, &controlv1.Profile{Id: fmt.Sprintf("p%d", j), Url: "rtsp://h/", FallbackUrls: c.GetProfiles()[0].GetFallbackUrls()})
		}
		r.create(c)
	}
	if got := r.list(t, &controlv1.ListCamerasRequest{PageSize: 1000}); len(got) != 100 {
		t.Errorf("got %d cameras", len(got))
	}
	w := r.watch(t, &controlv1.WatchCamerasRequest{})
	if w.snapshot(); len(w.have) != 100 {
		t.Errorf("a watch has %d cameras", len(w.have))
	}
}
