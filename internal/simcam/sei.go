package simcam

import (
	"encoding/binary"
	"time"
)

// timestampUUID marks the SEI messages of this package: uuid_iso_iec_11578 of
// user_data_unregistered (ITU-T H.264 §D.2.7).
var timestampUUID = [16]byte{0x8d, 0x2f, 0x6a, 0x41, 0x0c, 0x7b, 0x4e, 0x53, 0x9a, 0xe6, 0x31, 0xd4, 0x5f, 0xc8, 0x72, 0xb9}

const (
	seiUserDataUnregistered = 5
	timestampSize           = len(timestampUUID) + 8
)

// TimestampSEI returns an H264 NAL unit, without start code, that says when an
// access unit was sent, to the microsecond. It stands after the parameter sets
// and before the slices. Its content is 16 bytes of UUID and 8 bytes of
// microseconds since 1970 UTC, in network order.
func TimestampSEI(t time.Time) []byte {
	payload := make([]byte, 0, timestampSize)
	payload = append(payload, timestampUUID[:]...)
	payload = binary.BigEndian.AppendUint64(payload, uint64(t.UnixMicro()))

	nal := make([]byte, 0, 3+timestampSize+timestampSize/2+1)
	nal = append(nal, nalSEI, seiUserDataUnregistered, byte(timestampSize))
	nal = appendEscaped(nal, payload)
	return append(nal, 0x80) // rbsp_trailing_bits
}

// ParseTimestamp returns the time in a NAL unit that [TimestampSEI] made, or
// false for any other. An SEI NAL unit may have other messages as well.
func ParseTimestamp(nal []byte) (time.Time, bool) {
	if len(nal) == 0 || nal[0]&0x1f != nalSEI {
		return time.Time{}, false
	}
	// A timestamp is within the first bytes; a hostile SEI is not worth more.
	rbsp := unescape(nal[1:min(len(nal), 1024)])
	for len(rbsp) > 2 {
		kind, rest, ok := seiNumber(rbsp)
		if !ok {
			return time.Time{}, false
		}
		size, rest, ok := seiNumber(rest)
		if !ok || size > len(rest) {
			return time.Time{}, false
		}
		message := rest[:size]
		if kind == seiUserDataUnregistered && size == timestampSize && [16]byte(message) == timestampUUID {
			return time.UnixMicro(int64(binary.BigEndian.Uint64(message[16:]))), true
		}
		rbsp = rest[size:]
	}
	return time.Time{}, false
}

// seiNumber reads a type or size: 255 for each 0xff, then the rest (ITU-T H.264
// §7.3.2.3.1).
func seiNumber(b []byte) (n int, rest []byte, ok bool) {
	for i, v := range b {
		n += int(v)
		if v != 0xff {
			return n, b[i+1:], true
		}
	}
	return 0, nil, false
}

// appendEscaped appends payload with emulation prevention (ITU-T H.264 §7.4.1):
// 0, 0, x becomes 0, 0, 3, x where x is 3 at most. What stands in dst already
// must not end in 0.
func appendEscaped(dst, payload []byte) []byte {
	zeros := 0
	for _, v := range payload {
		if zeros == 2 && v <= 3 {
			dst = append(dst, 3)
			zeros = 0
		}
		dst = append(dst, v)
		if v == 0 {
			zeros++
		} else {
			zeros = 0
		}
	}
	return dst
}

// unescape undoes appendEscaped.
func unescape(b []byte) []byte {
	out := make([]byte, 0, len(b))
	zeros := 0
	for _, v := range b {
		if zeros == 2 && v == 3 {
			zeros = 0
			continue
		}
		out = append(out, v)
		if v == 0 {
			zeros++
		} else {
			zeros = 0
		}
	}
	return out
}
