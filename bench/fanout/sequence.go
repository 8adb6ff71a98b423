package fanout

// window is how far back packets may come late, in sequence numbers. A power of
// two.
const window = 1024

// sequence counts the packets of one RTP stream by their sequence numbers (RFC
// 3550 §A.1). Owned by whoever reads the stream.
type sequence struct {
	begun bool
	first uint32              // extended: rollovers counted since the first packet, then 16 bits
	last  uint32              // the highest, extended
	got   uint64              // packets, each once
	late  uint64              // of these, those that came after later ones
	seen  [window / 64]uint64 // of the last window packets
}

// arrival is what a packet was.
type arrival int

const (
	inOrder arrival = iota
	late            // came after later ones, as the first of its number
	again           // or too old to tell
)

// add counts a packet. skipped is how many numbers are missing right before it,
// of a packet in order.
func (s *sequence) add(number uint16) (what arrival, skipped int) {
	if !s.begun {
		s.begun, s.first, s.last = true, uint32(number), uint32(number)
		s.mark(s.last)
		s.got++
		return inOrder, 0
	}
	ahead := int(int16(number - uint16(s.last)))
	if ahead <= 0 {
		ext := s.last + uint32(ahead)
		if -ahead >= window || int64(s.last)+int64(ahead) < int64(s.first) || s.marked(ext) {
			return again, 0
		}
		s.mark(ext)
		s.got++
		s.late++
		return late, 0
	}
	if ahead >= window {
		s.seen = [window / 64]uint64{}
	} else {
		for n := s.last + 1; n != s.last+uint32(ahead); n++ {
			s.seen[n%window/64] &^= 1 << (n % 64)
		}
	}
	s.last += uint32(ahead)
	s.mark(s.last)
	s.got++
	return inOrder, ahead - 1
}

func (s *sequence) mark(ext uint32)        { s.seen[ext%window/64] |= 1 << (ext % 64) }
func (s *sequence) marked(ext uint32) bool { return s.seen[ext%window/64]&(1<<(ext%64)) != 0 }

// expected returns how many packets there should have been.
func (s *sequence) expected() uint64 {
	if !s.begun {
		return 0
	}
	return uint64(s.last-s.first) + 1
}

// rollovers returns how often the numbers started over (RFC 3711 §3.3.1).
func (s *sequence) rollovers() uint32 { return s.last >> 16 }
