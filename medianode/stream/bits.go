package stream

// headerReader reads the beginning of a header. Past its end it reads zeros, and
// has failed.
type headerReader struct {
	buf    []byte
	pos    int // in bits
	failed bool
}

// u reads n bits, 32 at most, the first the most significant.
func (r *headerReader) u(n int) (v uint32) {
	if n > 8*len(r.buf)-r.pos {
		r.pos, r.failed = 8*len(r.buf), true
		return 0
	}
	for end := r.pos + n; r.pos < end; r.pos++ {
		v = v<<1 | uint32(r.buf[r.pos/8]>>(7-r.pos%8))&1
	}
	return v
}

// flag reads one bit.
func (r *headerReader) flag() bool { return r.u(1) == 1 }

// skip passes over n bits.
func (r *headerReader) skip(n int) {
	if r.pos += n; r.pos > 8*len(r.buf) {
		r.pos, r.failed = 8*len(r.buf), true
	}
}

// zeros counts the zero bits up to the next one bit, which it passes over. More
// than 31 are a failure.
func (r *headerReader) zeros() (n int) {
	for !r.failed && !r.flag() {
		if n++; n > 31 {
			r.failed = true
		}
	}
	return n
}

// ue reads an Exp-Golomb code (H.265 §9.2), which AV1 calls uvlc (§4.10.3).
func (r *headerReader) ue() uint32 {
	n := r.zeros()
	if r.failed {
		return 0
	}
	return 1<<n - 1 + r.u(n)
}

// withoutEmulation appends to dst what a NAL unit's payload says: without the
// bytes that keep start codes from occurring (H.265 §7.4.2). It stops when dst
// is full.
func withoutEmulation(dst, payload []byte) []byte {
	zeros := 0
	for _, b := range payload {
		if len(dst) == cap(dst) {
			break
		}
		if zeros >= 2 && b == 3 {
			zeros = 0
			continue
		}
		if zeros++; b != 0 {
			zeros = 0
		}
		dst = append(dst, b)
	}
	return dst
}
