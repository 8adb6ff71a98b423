package viewertest

import (
	"testing"
	"time"

	"github.com/pion/interceptor"
	"github.com/pion/interceptor/pkg/gcc"
	"github.com/pion/interceptor/pkg/twcc"
	"github.com/pion/rtp"
)

// BenchmarkTransportCC is what it would cost a sender to estimate a viewer's path
// by transport-wide congestion control, with pion's GCC and no pacer: an operation
// is one packet that is sent, with its share of a feedback packet for each 100 ms of
// 236 packets a second. docs/adr/0012 compares it with REMB, which costs the sender
// eight bytes of a packet and a report now and then.
func BenchmarkTransportCC(b *testing.B) {
	const (
		extension = 3
		rate      = 236
		perReport = rate / 10
	)
	estimator, err := gcc.NewSendSideBWE(gcc.SendSideBWEPacer(gcc.NewNoOpPacer()), gcc.SendSideBWEInitialBitrate(2_000_000))
	if err != nil {
		b.Fatal(err)
	}
	defer func() {
		if err := estimator.Close(); err != nil {
			b.Error(err)
		}
	}()
	writer := estimator.AddStream(&interceptor.StreamInfo{
		SSRC: 1, RTPHeaderExtensions: []interceptor.RTPHeaderExtension{{URI: "http://www.ietf.org/id/draft-holmer-rmcat-transport-wide-cc-extensions-01", ID: extension}},
	}, interceptor.RTPWriterFunc(func(_ *rtp.Header, payload []byte, _ interceptor.Attributes) (int, error) { return len(payload), nil }))
	recorder := twcc.NewRecorder(1)
	payload := make([]byte, 1200)
	began := time.Now()
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		header := rtp.Header{Version: 2, SSRC: 1, SequenceNumber: uint16(i)}
		ext, err := (&rtp.TransportCCExtension{TransportSequence: uint16(i)}).Marshal()
		if err != nil {
			b.Fatal(err)
		}
		if err := header.SetExtension(extension, ext); err != nil {
			b.Fatal(err)
		}
		if _, err := writer.Write(&header, payload, interceptor.Attributes{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer() // what follows is the browser's part, until the report
		recorder.Record(1, uint16(i), time.Since(began).Microseconds())
		if i%perReport == perReport-1 {
			report := recorder.BuildFeedbackPacket()
			b.StartTimer()
			if err := estimator.WriteRTCP(report, interceptor.Attributes{}); err != nil {
				b.Fatal(err)
			}
			continue
		}
		b.StartTimer()
	}
}
