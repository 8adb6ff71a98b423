package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

var protoJSON = protojson.MarshalOptions{UseProtoNames: true, EmitDefaultValues: true}

// jsonOf returns a message as JSON with no spaces: protojson's own vary from
// one build to the next.
func jsonOf(m proto.Message) (json.RawMessage, error) {
	data, err := protoJSON.Marshal(m)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// printJSON prints one message, indented.
func printJSON(w io.Writer, m proto.Message) error {
	data, err := jsonOf(m)
	if err != nil {
		return err
	}
	return printIndented(w, data)
}

// printJSONList prints {"key": [messages]}.
func printJSONList[M proto.Message](w io.Writer, key string, ms []M) error {
	list := make([]json.RawMessage, 0, len(ms))
	for _, m := range ms {
		data, err := jsonOf(m)
		if err != nil {
			return err
		}
		list = append(list, data)
	}
	data, err := json.Marshal(map[string]any{key: list})
	if err != nil {
		return err
	}
	return printIndented(w, data)
}

// printJSONLine prints one message on one line.
func printJSONLine(w io.Writer, m proto.Message) error {
	data, err := jsonOf(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, "%s\n", data)
	return err
}

func printIndented(w io.Writer, data []byte) error {
	var b bytes.Buffer
	if err := json.Indent(&b, data, "", "  "); err != nil {
		return err
	}
	b.WriteByte('\n')
	_, err := w.Write(b.Bytes())
	return err
}

// printTable prints rows under a header, columns two spaces apart.
func printTable(w io.Writer, header []string, rows [][]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range append([][]string{header}, rows...) {
		for i, cell := range r {
			r[i] = orDash(cell)
		}
		if _, err := fmt.Fprintln(t, strings.Join(r, "\t")); err != nil {
			return err
		}
	}
	return t.Flush()
}

// printFields prints "key: value" lines; those without a value are left out.
func printFields(w io.Writer, fields [][2]string) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, f := range fields {
		if f[1] == "" {
			continue
		}
		if _, err := fmt.Fprintf(t, "%s:\t%s\n", f[0], f[1]); err != nil {
			return err
		}
	}
	return t.Flush()
}

// orDash also keeps what came over the wire from steering the terminal.
func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return printable(s)
}

// printable replaces control characters.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, s)
}

// labelText returns labels as "a=b,c=d".
func labelText(labels map[string]string) string {
	parts := make([]string, 0, len(labels))
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		parts = append(parts, k+"="+labels[k])
	}
	return strings.Join(parts, ",")
}

// enumText returns the name of an enum's value without its prefix, in lower
// case: "live". Empty for the unspecified one.
func enumText(name, prefix string) string {
	s := strings.TrimPrefix(name, prefix)
	if s == "UNSPECIFIED" {
		return ""
	}
	return strings.ToLower(s)
}

// bitrateText returns bits per second for people.
func bitrateText(bps int64) string {
	switch {
	case bps <= 0:
		return ""
	case bps < 1_000_000:
		return fmt.Sprintf("%d kbit/s", (bps+500)/1000)
	default:
		return fmt.Sprintf("%.1f Mbit/s", float64(bps)/1e6)
	}
}
