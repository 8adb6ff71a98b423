package session

import (
	"testing"

	"github.com/pion/rtcp"

	"fanlight/medianode/stream"
)

// FuzzHear takes what a viewer reports, decrypted: any bytes. It ends no session,
// and no datagram has more packets looked for than may be.
func FuzzHear(f *testing.F) {
	const video, audio = 7, 9
	seeds := [][]rtcp.Packet{
		{&rtcp.PictureLossIndication{MediaSSRC: video}},
		{&rtcp.FullIntraRequest{MediaSSRC: video, FIR: []rtcp.FIREntry{{SSRC: video, SequenceNumber: 1}}}},
		{&rtcp.TransportLayerNack{MediaSSRC: video, Nacks: []rtcp.NackPair{{PacketID: 1, LostPackets: 0xffff}, {PacketID: 65_535, LostPackets: 1}}}},
		{&rtcp.TransportLayerNack{MediaSSRC: audio, Nacks: make([]rtcp.NackPair, 200)}},
		{
			&rtcp.ReceiverReport{SSRC: 1, Reports: []rtcp.ReceptionReport{{SSRC: video, FractionLost: 12, TotalLost: 3, LastSenderReport: 1 << 16, Delay: 99}}},
			&rtcp.SourceDescription{Chunks: []rtcp.SourceDescriptionChunk{{Source: 1, Items: []rtcp.SourceDescriptionItem{{Type: rtcp.SDESCNAME, Text: "x"}}}}},
			&rtcp.ReceiverEstimatedMaximumBitrate{SenderSSRC: 1, Bitrate: 1e6, SSRCs: []uint32{video}},
		},
		{&rtcp.TransportLayerCC{
			Header: rtcp.Header{Count: rtcp.FormatTCC, Type: rtcp.TypeTransportSpecificFeedback, Length: 5}, MediaSSRC: video, PacketStatusCount: 1,
			PacketChunks: []rtcp.PacketStatusChunk{&rtcp.RunLengthChunk{Type: rtcp.TypeTCCRunLengthChunk, PacketStatusSymbol: rtcp.TypeTCCPacketNotReceived, RunLength: 1}},
		}},
		{&rtcp.Goodbye{Sources: []uint32{1}}},
		{&rtcp.ExtendedReport{SenderSSRC: 1, Reports: []rtcp.ReportBlock{&rtcp.ReceiverReferenceTimeReportBlock{NTPTimestamp: 1 << 40}}}},
	}
	for _, packets := range seeds {
		raw, err := rtcp.Marshal(packets)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Add([]byte{0x80, 201, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := new(Session)
		for kind, ssrc := range map[stream.Kind]uint32{stream.Video: video, stream.Audio: audio} {
			s.lanes[kind] = lane{kind: kind, ssrc: ssrc, nack: true, payloads: map[string]payloadType{"H264": {media: 96}}}
		}
		s.hearAll(b)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.closed || s.failure != nil {
			t.Errorf("the session has ended: %v", s.failure)
		}
		if asked, refused := s.feedback.nacked.Load(), s.counts.refused.Load(); asked-refused > maxNacked {
			t.Errorf("%d packets are looked for", asked-refused)
		}
		if rtt := s.roundTrip(); rtt < 0 || rtt.Seconds() >= 10 {
			t.Errorf("a round trip of %v", rtt)
		}
	})
}
