package controlplane

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"

	"fanlight/internal/fleet"
)

const (
	defaultPage = 100
	maxPage     = 1000
	// maxAnswer bounds an answer's encoded size, so that a page or an event batch
	// stays below what gRPC clients take by default, 4 MiB. A page may end early.
	maxAnswer = 2 << 20
)

// pageSize returns how many things a page has.
func pageSize(asked int32) (int, error) {
	switch {
	case asked < 0:
		return 0, invalid("page_size", "is %d; use 0 for the default, or a positive number", asked)
	case asked == 0:
		return defaultPage, nil
	}
	return min(int(asked), maxPage), nil
}

// pageToken says after which id the next page begins, for a list with this
// query.
func pageToken(query []byte, last string) string {
	return base64.RawURLEncoding.EncodeToString(append(queryHash(query), last...))
}

// afterToken returns the id after which a page begins; "" for the first.
func afterToken(token string, query []byte) (string, error) {
	if token == "" {
		return "", nil
	}
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) <= 8 || len(b) > 8+63 {
		return "", fmt.Errorf("page_token: %w", fleet.InvalidPageToken)
	}
	if !slices.Equal(b[:8], queryHash(query)) {
		return "", fmt.Errorf("page_token is of a list with another filter; begin this one without it: %w", fleet.InvalidPageToken)
	}
	return string(b[8:]), nil
}

func queryHash(b []byte) []byte {
	h := fnv.New64a()
	_, _ = h.Write(b) // never fails
	return h.Sum(nil)
}

// queryBytes returns what tells the query of a list from others.
func queryBytes(kind string, m proto.Message) []byte {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		return []byte(kind) // of no message that came over gRPC
	}
	return append([]byte(kind+"\x00"), b...)
}

// page collects a page's items.
type page struct {
	size, left, bytes int
	last              string
}

// add tells whether an item fits into the page; the first always does.
func (p *page) add(id string, m proto.Message) bool {
	n := proto.Size(m)
	if p.left == 0 || p.left < p.size && p.bytes+n > maxAnswer {
		return false
	}
	p.left--
	p.bytes += n
	p.last = id
	return true
}

// resumeToken says through which revision of which cluster a watch is complete;
// it is empty of revision 0, from where a watch starts over.
func resumeToken(cluster uint64, revision int64) string {
	if revision == 0 {
		return ""
	}
	b := binary.BigEndian.AppendUint64(nil, cluster)
	b = binary.BigEndian.AppendUint64(b, uint64(revision))
	return base64.RawURLEncoding.EncodeToString(b)
}

// resumeRevision returns the revision of a token.
func resumeRevision(token string, cluster uint64) (int64, error) {
	b, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil || len(b) != 16 || b[8]&0x80 != 0 {
		return 0, fmt.Errorf("resume_token: %w", fleet.InvalidResumeToken)
	}
	if binary.BigEndian.Uint64(b) != cluster {
		return 0, fmt.Errorf("resume_token is of another control plane; start over without it: %w", fleet.InvalidResumeToken)
	}
	return int64(binary.BigEndian.Uint64(b[8:])), nil // the sign bit is not set
}

// matchPattern tells whether "*" in pattern can stand for what makes it s.
func matchPattern(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	s, ok := strings.CutPrefix(s, head)
	if !ok {
		return false
	}
	for {
		part, next, more := strings.Cut(rest, "*")
		if !more {
			return strings.HasSuffix(s, part)
		}
		_, s, ok = strings.Cut(s, part)
		if !ok {
			return false
		}
		rest = next
	}
}
