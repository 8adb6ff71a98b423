// Package join measures how soon somebody who begins to watch a camera has a
// picture, and how soon that picture is the camera's newest.
//
// It starts a server ("fanlight up" with its embedded etcd, or with
// [Config.Apart] a control plane, a media node and a gateway), and simulated
// cameras ([fanlight/internal/simcam]) in this process. For each interval between
// keyframes there is a row ([Row]): viewers come one after the other, each at a
// moment of its own. A row has as many cameras as its interval has seconds, each
// with its keyframes a second after those of the one before; a viewer takes any
// of them after any wait up to a second, so that the moments are spread evenly
// over the whole interval and a row of 10 s takes no longer than one of 1 s.
//
// Cameras do not answer a picture loss indication unless [Config.AnswerPLI] is
// set: few real ones do, and a camera that does hides what is measured here.
//
// # A join
//
// The viewer is made before: its offer, for WHEP with all candidates, and the
// connection to the gateway. The clock starts right before the offer is sent
// (POST, or "watch" over a websocket), and stops when the first keyframe is
// whole: all its packets are there and decrypted, from the first with the
// parameter sets to the marker, without a gap. A decoder could show it then; no
// decoder runs. On the way the clock is read when the answer has come, when the
// peer connection is up (ICE and DTLS), and at the first packet.
//
// A keyframe may be seconds old when it comes: the viewer is live when a whole
// picture comes that is as new as those of a viewer who has watched for long, by
// the time that the cameras stamp on each picture: at most a frame later than is
// usual there. What comes before is counted as frames to catch up with.
//
// The viewers who have watched for long, one of each camera, came right after a
// keyframe. Ten seconds after some of the joins, the arrivals of the same
// pictures at both viewers are compared: whoever joined at a bad moment must not
// be behind for it.
//
// # Other servers
//
// With [Config.WHEP] nothing is started, and a running installation on this
// machine is measured, for media is received on loopback. Whether a viewer is
// live is known only if its camera is simcam's.
package join

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"
)

// Config is what is measured. Binary and Dir are needed, unless WHEP is set.
type Config struct {
	Log    *slog.Logger // nil: nothing is logged
	Binary string       // the fanlight to run
	Dir    string       // of logs and data

	Intervals []time.Duration // between keyframes, a row each, whole seconds from 1 to 10; nil: 1, 4 and 10 s
	Joins     int             // of each row, each round; 0: 100
	Rounds    int             // through all rows; 0: 1
	Parallel  int             // joins under way at once; 0: 1
	Watch     int             // of each row's joins, each round, those that stay for the comparison after 10 s; 0: 5, -1: none
	Bitrate   int             // of each camera, bits a second; 0: 2,000,000
	AnswerPLI bool            // cameras send a keyframe when they are asked for one
	Websocket bool            // viewers watch over the websocket; false: WHEP
	Apart     bool            // control plane, media node and gateway are processes; false: all in one

	WHEP  string // measure the server at this URL, whose camera has the only interval of Intervals; "": start one
	Token string // of viewers, with WHEP; "": none

	// Progress is told what is being done, a line each; nil: nobody is.
	Progress func(line string)
}

// The longest times that things take on a machine that has others to do.
const (
	startLimit = 2 * time.Minute
	joinLimit  = 15 * time.Second // beside two keyframe intervals
	stopLimit  = 20 * time.Second
)

func (c *Config) defaults() error {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Progress == nil {
		c.Progress = func(string) {}
	}
	if len(c.Intervals) == 0 {
		c.Intervals = []time.Duration{time.Second, 4 * time.Second, 10 * time.Second}
	}
	for _, n := range []struct {
		value *int
		zero  int
	}{{&c.Joins, 100}, {&c.Rounds, 1}, {&c.Parallel, 1}, {&c.Watch, 5}, {&c.Bitrate, 2_000_000}} {
		if *n.value == 0 {
			*n.value = n.zero
		}
	}
	c.Watch = max(0, min(c.Watch, c.Joins))
	for _, d := range c.Intervals {
		if d%time.Second != 0 || d < time.Second || d > 10*time.Second {
			return fmt.Errorf("keyframe interval %v: must be whole seconds from 1 to 10", d)
		}
	}
	switch {
	case c.Joins < 0 || c.Rounds < 0 || c.Parallel < 0 || c.Bitrate < 0:
		return errors.New("a number is negative")
	case c.WHEP == "" && (c.Binary == "" || c.Dir == ""):
		return errors.New("a binary and a directory are needed")
	case c.WHEP != "" && len(c.Intervals) != 1:
		return errors.New("a server of others has one keyframe interval")
	}
	return nil
}

// Run measures. It returns a row for each interval, over all rounds, when all
// that it started has ended; also with an error, what was measured before. A
// viewer that had no picture in time is no error but counted in its row.
func Run(ctx context.Context, cfg Config) (rows []Row, err error) {
	if err := cfg.defaults(); err != nil {
		return nil, fmt.Errorf("measure joins: %w", err)
	}
	b := &bench{cfg: cfg, joins: make([][]outcome, len(cfg.Intervals))}
	if err := b.run(ctx); err != nil {
		return b.rows(), fmt.Errorf("measure joins: %w", err)
	}
	return b.rows(), nil
}

// bench is one measurement. Its methods are called one after another.
type bench struct {
	cfg   Config
	site  site
	joins [][]outcome // of each row
}

func (b *bench) say(format string, args ...any) { b.cfg.Progress(fmt.Sprintf(format, args...)) }

func (b *bench) run(ctx context.Context) (err error) {
	if b.cfg.WHEP != "" {
		if b.site, err = newGuest(b.cfg.WHEP, b.cfg.Token); err != nil {
			return err
		}
	} else {
		var o *own
		if o, err = newOwn(&b.cfg); err != nil {
			return err
		}
		b.site = o
		defer func() { err = errors.Join(err, o.stop()) }()
		b.say("starting the server")
		if err := o.start(ctx); err != nil {
			return err
		}
	}
	for round := range b.cfg.Rounds {
		for i, interval := range b.cfg.Intervals {
			b.say("round %d: a keyframe every %v", round+1, interval)
			list, err := b.row(ctx, round, interval)
			b.joins[i] = append(b.joins[i], list...)
			if err != nil {
				return fmt.Errorf("a keyframe every %v: %w", interval, err)
			}
		}
	}
	return ctx.Err()
}

// rows sums up.
func (b *bench) rows() []Row {
	rows := make([]Row, 0, len(b.joins))
	for i, list := range b.joins {
		if len(list) > 0 {
			rows = append(rows, sum(b.cfg.Intervals[i], list))
		}
	}
	return rows
}
