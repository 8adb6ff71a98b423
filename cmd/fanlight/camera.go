package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"fanlight/internal/fleet"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// listPage is how many resources a list asks for at a time: a page of cameras
// with every field in use must fit into a message.
const listPage = 200

// updateTries is how often an update is made again when somebody else was
// faster.
const updateTries = 5

func newCamera(a *app) *cobra.Command {
	cmd := group("camera", "Add, list, change and watch cameras")
	cmd.Aliases = []string{"cameras"}
	cmd.AddCommand(newCameraAdd(a), newCameraList(a), newCameraGet(a), newCameraUpdate(a), newCameraDelete(a), newCameraRetry(a), newCameraWatch(a))
	return cmd
}

// cameraName returns "cameras/lobby" for what the user typed, "lobby" or
// "cameras/lobby".
func cameraName(arg string) (string, error) {
	id, err := fleet.ParseCameraID(strings.TrimPrefix(arg, "cameras/"))
	if err != nil {
		return "", usageError{err}
	}
	return id.Name(), nil
}

func newCameraAdd(a *app) *cobra.Command {
	c := client{app: a}
	var cf cameraFlags
	cmd := &cobra.Command{
		Use:   "add NAME --url rtsp://host/path",
		Short: "Register a camera",
		Long: `Register a camera. It is durable once the command returns, and a node begins to
pull it at once.

A user name and password in the URL are taken out of it and stored apart from
it, as --username and --password do.`,
		Example: `  fanlight camera add lobby --url rtsp://192.0.2.7/main
  fanlight camera add gate --url rtsp://192.0.2.8/h264 --username viewer --password-file gate.txt --label site=north`,
		Args: oneName("camera"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := cameraName(args[0])
			if err != nil {
				return err
			}
			if cf.url == "" {
				return usagef("--url is missing: where the camera's picture is, as rtsp://host[:port]/path")
			}
			if err := cf.resolve(a.stdin, a.stderr); err != nil {
				return err
			}
			cam := &controlv1.Camera{Name: name}
			if _, err := cf.apply(cam); err != nil {
				return err
			}
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				resp, err := controlv1.NewCameraServiceClient(cc).CreateCamera(ctx, &controlv1.CreateCameraRequest{Camera: cam})
				if err != nil {
					return err
				}
				return c.result(resp.GetCamera(), "added")
			})
		},
	}
	cf.register(cmd.Flags())
	c.flags(cmd.Flags())
	return cmd
}

// result says what became of a camera.
func (c *client) result(cam *controlv1.Camera, done string) error {
	if c.output == "json" {
		return printJSON(c.app.stdout, cam)
	}
	_, err := fmt.Fprintf(c.app.stdout, "camera %s %s\n", strings.TrimPrefix(cam.GetName(), "cameras/"), done)
	return err
}

func newCameraList(a *app) *cobra.Command {
	c := client{app: a}
	var f filterFlags
	cmd := &cobra.Command{
		Use:     "list",
		Short:   "List cameras",
		Example: "  fanlight camera list --state failed\n  fanlight camera list --label site=north -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.filter()
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				cams, err := listCameras(ctx, controlv1.NewCameraServiceClient(cc), filter)
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printJSONList(a.stdout, "cameras", cams)
				}
				if len(cams) == 0 {
					_, err := fmt.Fprintln(a.stderr, "no cameras")
					return err
				}
				rows := make([][]string, 0, len(cams))
				for _, cam := range cams {
					rows = append(rows, cameraRow(cam))
				}
				return printTable(a.stdout, cameraHeader(), rows)
			})
		},
	}
	f.register(cmd)
	c.flags(cmd.Flags())
	return cmd
}

// listCameras returns all pages.
func listCameras(ctx context.Context, svc controlv1.CameraServiceClient, filter *controlv1.CameraFilter) ([]*controlv1.Camera, error) {
	var all []*controlv1.Camera
	req := &controlv1.ListCamerasRequest{PageSize: listPage, Filter: filter}
	for {
		resp, err := svc.ListCameras(ctx, req)
		if err != nil {
			return nil, err
		}
		all = append(all, resp.GetCameras()...)
		if req.PageToken = resp.GetNextPageToken(); req.GetPageToken() == "" {
			return all, nil
		}
	}
}

// filterFlags select cameras.
type filterFlags struct {
	labels map[string]string
	states []string
	node   string
}

func (f *filterFlags) register(cmd *cobra.Command) {
	cmd.Flags().StringToStringVar(&f.labels, "label", nil, "only cameras with the label `key=value`; several: all of them")
	cmd.Flags().StringSliceVar(&f.states, "state", nil, "only cameras in `connecting|live|failed|unassigned|idle|disabled`; several: any of them")
	cmd.Flags().StringVar(&f.node, "node", "", "only cameras on the node `name`")
}

func (f *filterFlags) filter() (*controlv1.CameraFilter, error) {
	filter := &controlv1.CameraFilter{Labels: f.labels}
	for _, s := range f.states {
		v, ok := controlv1.CameraStatus_State_value["STATE_"+strings.ToUpper(s)]
		if !ok || v == 0 {
			return nil, usagef("--state %s: must be connecting, live, failed, unassigned, idle or disabled", s)
		}
		filter.States = append(filter.States, controlv1.CameraStatus_State(v))
	}
	if f.node != "" {
		name, err := nodeName(f.node)
		if err != nil {
			return nil, err
		}
		filter.Node = name
	}
	return filter, nil
}

func newCameraGet(a *app) *cobra.Command {
	c := client{app: a}
	cmd := &cobra.Command{
		Use:   "get NAME",
		Short: "Show a camera",
		Args:  oneName("camera"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := cameraName(args[0])
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				resp, err := controlv1.NewCameraServiceClient(cc).GetCamera(ctx, &controlv1.GetCameraRequest{Name: name})
				if err != nil {
					return err
				}
				if c.output == "json" {
					return printJSON(a.stdout, resp.GetCamera())
				}
				return printFields(a.stdout, cameraFields(resp.GetCamera()))
			})
		},
	}
	c.flags(cmd.Flags())
	return cmd
}

func newCameraUpdate(a *app) *cobra.Command {
	c := client{app: a}
	var cf cameraFlags
	var etag string
	var removeLabels, removeSelector []string
	cmd := &cobra.Command{
		Use:   "update NAME",
		Short: "Change a camera",
		Long: `Change a camera: what flags are given for, and nothing else. --label and
--node-selector add to those there are or replace them; see --remove-label.
--sub-url "" removes the smaller picture, --password "" the password.

With --etag (from "camera get -o json") the change is refused if somebody else
has changed the camera since.`,
		Example: "  fanlight camera update lobby --display-name 'Main entrance' --label site=north\n  fanlight camera update lobby --disabled",
		Args:    oneName("camera"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := cameraName(args[0])
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("url") && cf.url == "" {
				return usagef("--url must not be empty")
			}
			if err := cf.resolve(a.stdin, a.stderr); err != nil {
				return err
			}
			edit := func(cam *controlv1.Camera) (*controlv1.UpdateCameraRequest, error) {
				mask, err := cf.apply(cam)
				if err != nil {
					return nil, err
				}
				for _, k := range removeLabels {
					delete(cam.GetLabels(), k)
					_ = mask.Append(cam, "labels")
				}
				for _, k := range removeSelector {
					delete(cam.GetNodeSelector(), k)
					_ = mask.Append(cam, "node_selector")
				}
				mask.Normalize()
				if len(mask.GetPaths()) == 0 {
					return nil, usagef("nothing to change: give the settings to change as flags")
				}
				if etag != "" {
					cam.Etag = etag
				}
				return &controlv1.UpdateCameraRequest{Camera: cam, UpdateMask: mask}, nil
			}
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				cam, err := updateCamera(ctx, controlv1.NewCameraServiceClient(cc), name, etag == "", edit)
				if err != nil {
					return err
				}
				return c.result(cam, "updated")
			})
		},
	}
	cf.register(cmd.Flags())
	cmd.Flags().StringSliceVar(&removeLabels, "remove-label", nil, "`key` of a label to remove; several allowed")
	cmd.Flags().StringSliceVar(&removeSelector, "remove-node-selector", nil, "`key` of a selector's label to remove; several allowed")
	cmd.Flags().StringVar(&etag, "etag", "", "change only what has this `etag`")
	c.flags(cmd.Flags())
	return cmd
}

// updateCamera reads a camera, has it edited and writes it back; again if it
// was changed in between and retry is true.
func updateCamera(ctx context.Context, svc controlv1.CameraServiceClient, name string, retry bool, edit func(*controlv1.Camera) (*controlv1.UpdateCameraRequest, error)) (*controlv1.Camera, error) {
	for try := 1; ; try++ {
		got, err := svc.GetCamera(ctx, &controlv1.GetCameraRequest{Name: name})
		if err != nil {
			return nil, err
		}
		req, err := edit(got.GetCamera())
		if err != nil {
			return nil, err
		}
		resp, err := svc.UpdateCamera(ctx, req)
		if err == nil {
			return resp.GetCamera(), nil
		}
		if !retry || try == updateTries || !errors.Is(err, fleet.ETagMismatch) {
			return nil, err
		}
	}
}

func newCameraDelete(a *app) *cobra.Command {
	c := client{app: a}
	var etag string
	cmd := &cobra.Command{
		Use:     "delete NAME",
		Aliases: []string{"remove", "rm"},
		Short:   "Remove a camera",
		Args:    oneName("camera"),
		RunE: func(cmd *cobra.Command, args []string) error {
			name, err := cameraName(args[0])
			if err != nil {
				return err
			}
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				_, err := controlv1.NewCameraServiceClient(cc).DeleteCamera(ctx, &controlv1.DeleteCameraRequest{Name: name, Etag: etag})
				if err != nil {
					return err
				}
				return c.result(&controlv1.Camera{Name: name}, "deleted")
			})
		},
	}
	cmd.Flags().StringVar(&etag, "etag", "", "delete only what has this `etag`")
	c.flags(cmd.Flags())
	return cmd
}

func newCameraRetry(a *app) *cobra.Command {
	c := client{app: a}
	cmd := &cobra.Command{
		Use:   "retry NAME...",
		Short: "Have cameras tried again at once",
		Long: `Have cameras tried again at once: a camera that failed does not wait for its next
try, it begins with the first of its URLs, and credentials that it refused are
tried again, which they are not otherwise until they are changed. It is good for
those who have just repaired what was wrong. A camera that is live on its first
URL, idle, disabled or unassigned is left as it is.`,
		Example: "  fanlight camera retry lobby gate",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return errors.New("the name of the camera is missing")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			var names []string
			for _, arg := range args {
				name, err := cameraName(arg)
				if err != nil {
					return err
				}
				names = append(names, name)
			}
			return c.call(cmd.Context(), func(ctx context.Context, cc *grpc.ClientConn) error {
				svc := controlv1.NewCameraServiceClient(cc)
				var cams []*controlv1.Camera
				var failed []error
				for _, name := range names {
					resp, err := svc.RetryCamera(ctx, &controlv1.RetryCameraRequest{Name: name})
					if err != nil {
						failed = append(failed, err)
						if errors.Is(err, fleet.CameraNotFound) {
							continue
						}
						break
					}
					cams = append(cams, resp.GetCamera())
					if c.output != "json" {
						failed = append(failed, c.result(resp.GetCamera(), "is tried at once"))
					}
				}
				if c.output == "json" {
					failed = append(failed, printJSONList(a.stdout, "cameras", cams))
				}
				return errors.Join(failed...)
			})
		},
	}
	c.flags(cmd.Flags())
	return cmd
}

func newCameraWatch(a *app) *cobra.Command {
	c := client{app: a}
	var f filterFlags
	cmd := &cobra.Command{
		Use:   "watch",
		Short: "Print cameras and every change of them until interrupted",
		Long: `Print the cameras there are, then every change, until interrupted. When the
connection is lost it is made again and goes on where it was.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.filter()
			if err != nil {
				return err
			}
			w := cameraWatch{client: &c, filter: filter}
			return c.watch(cmd.Context(), w.attempt)
		},
	}
	f.register(cmd)
	c.flags(cmd.Flags())
	return cmd
}

// cameraWatch is a watch over all its connections.
type cameraWatch struct {
	client *client
	filter *controlv1.CameraFilter
	resume string
}

func (w *cameraWatch) attempt(ctx context.Context, cc *grpc.ClientConn, received func()) error {
	stream, err := controlv1.NewCameraServiceClient(cc).WatchCameras(ctx, &controlv1.WatchCamerasRequest{Filter: w.filter, ResumeToken: w.resume})
	if err != nil {
		return err
	}
	for {
		resp, err := stream.Recv()
		if errors.Is(err, fleet.ResumeTokenTooOld) && w.resume != "" {
			w.resume = ""
			return w.attempt(ctx, cc, received)
		}
		if err != nil {
			return err
		}
		received()
		if err := w.print(resp); err != nil {
			return err
		}
		w.resume = resp.GetResumeToken()
	}
}

func (w *cameraWatch) print(resp *controlv1.WatchCamerasResponse) error {
	out := w.client.app.stdout
	for _, e := range resp.GetEvents() {
		if w.client.output == "json" {
			if err := printJSONLine(out, e); err != nil {
				return err
			}
			continue
		}
		if _, err := fmt.Fprintln(out, time.Now().Format("15:04:05"), cameraEventText(e)); err != nil {
			return err
		}
	}
	if resp.GetSnapshotComplete() && w.client.output == "json" {
		_, err := fmt.Fprintln(out, `{"snapshot_complete":true}`)
		return err
	}
	return nil
}
