package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/types/known/fieldmaskpb"

	"fanlight/internal/fleet"
	"fanlight/internal/simcam"
	controlv1 "fanlight/proto/fanlight/control/v1"
)

// demoLabel marks the cameras that --demo made, so that it never touches
// another of the same name.
const demoLabel = "fanlight-demo"

// demo is the simulated cameras of "up --demo".
type demo struct {
	log     *slog.Logger
	cameras *simcam.Server
	names   []string
	control controlv1.CameraServiceClient
}

// newDemo opens the cameras' sockets; the demo must then be run.
func newDemo(log *slog.Logger, n int, control grpc.ClientConnInterface) (*demo, error) {
	if n > maxSimulated {
		return nil, usagef("--demo %d: at most %d", n, maxSimulated)
	}
	d := &demo{log: log, control: controlv1.NewCameraServiceClient(control)}
	for i := range n {
		d.names = append(d.names, simulatedName("demo", i))
	}
	srv, err := simcam.New(simcam.Config{Log: log.With("component", "simcam"), Cameras: d.names})
	if err != nil {
		return nil, fmt.Errorf("--demo: %w", err)
	}
	d.cameras = srv
	return d, nil
}

// register makes the control plane's cameras point at the simulated ones.
func (d *demo) register(ctx context.Context) error {
	for _, name := range d.names {
		if err := d.registerOne(ctx, fleet.CameraID(name), d.cameras.URL(name)); err != nil && ctx.Err() == nil {
			return fmt.Errorf("demo camera %s: %w", name, err)
		}
	}
	return nil
}

func (d *demo) registerOne(ctx context.Context, id fleet.CameraID, url string) error {
	profiles := []*controlv1.Profile{{Id: mainProfile, Url: url}}
	_, err := d.control.CreateCamera(ctx, &controlv1.CreateCameraRequest{Camera: &controlv1.Camera{
		Name:        id.Name(),
		DisplayName: "Demo " + strings.TrimPrefix(string(id), "demo-"),
		Profiles:    profiles,
		Labels:      map[string]string{demoLabel: "true"},
	}}, grpc.WaitForReady(true))
	if !errors.Is(err, fleet.CameraExists) {
		return err
	}
	_, err = updateCamera(ctx, d.control, id.Name(), true, func(cam *controlv1.Camera) (*controlv1.UpdateCameraRequest, error) {
		switch {
		case cam.GetLabels()[demoLabel] != "true":
			return nil, errNotDemo
		case len(cam.GetProfiles()) == 1 && cam.GetProfiles()[0].GetUrl() == url:
			return nil, errUpToDate
		}
		cam.Profiles = profiles
		return &controlv1.UpdateCameraRequest{Camera: cam, UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"profiles"}}}, nil
	})
	switch {
	case errors.Is(err, errUpToDate):
		return nil
	case errors.Is(err, errNotDemo):
		d.log.Warn("demo camera left as it is", "camera", id, "why", "it has no label "+demoLabel+": somebody else made it")
		return nil
	default:
		return err
	}
}

// Why a demo camera is not changed.
var (
	errNotDemo  = errors.New("not a demo camera")
	errUpToDate = errors.New("up to date")
)
