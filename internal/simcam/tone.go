package simcam

import "github.com/pion/rtp"

const (
	tonePayloadType = 8 // PCMA (RFC 3551 table 4)
	toneRate        = 8000
	toneSamples     = toneRate / frameRate // in a packet: as long as a picture
)

// tonePeriod is one period of 1 kHz at 8 kHz, a sine of 7 % of full scale, in
// A-law (ITU-T G.711).
var tonePeriod = [8]byte{0xd5, 0xec, 0x94, 0xec, 0xd5, 0x6c, 0x14, 0x6c}

// tone makes the packets of a continuous tone.
type tone struct {
	sequence  uint16
	timestamp uint32
}

func (t *tone) next() *rtp.Packet {
	t.sequence++
	t.timestamp += toneSamples
	payload := make([]byte, toneSamples)
	for i := range payload {
		payload[i] = tonePeriod[i%len(tonePeriod)]
	}
	return &rtp.Packet{
		Header:  rtp.Header{Version: 2, PayloadType: tonePayloadType, SequenceNumber: t.sequence, Timestamp: t.timestamp},
		Payload: payload,
	}
}
