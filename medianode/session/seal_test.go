package session

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"

	"fanlight/medianode/transport"
)

var sealProfiles = []struct {
	profile   srtp.ProtectionProfile
	key, salt int // bytes
}{
	{srtp.ProtectionProfileAeadAes128Gcm, 16, 12},
	{srtp.ProtectionProfileAeadAes256Gcm, 32, 12},
	{srtp.ProtectionProfileAes128CmHmacSha1_80, 16, 14},
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// What is sealed here opens with pion's SRTP: over a round of sequence numbers,
// with what RTX puts before the payload, and out of order.
func TestSeal(t *testing.T) {
	for _, p := range sealProfiles {
		t.Run(p.profile.String(), func(t *testing.T) {
			keys := &transport.Keys{Profile: p.profile, Key: randomBytes(p.key), Salt: randomBytes(p.salt)}
			c, err := newCryptor(keys)
			if err != nil {
				t.Fatal(err)
			}
			viewer, err := srtp.CreateContext(keys.Key, keys.Salt, p.profile)
			if err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 1600)
			for i := range uint64(70_000) {
				index := 1000 + i
				if i%97 == 5 {
					index -= 3 // again
				}
				if i > 200 && i < 69_000 && i%1000 > 2 && index&0xffff > 100 && index&0xffff < 65_500 {
					continue // most of them
				}
				h := image{index: index, timestamp: uint32(3600 * i), ssrc: 7, payload: 102, marker: i%2 == 0}
				before, payload := randomBytes(int(i%2)*2), randomBytes(int(i%1200)+1)
				n, err := c.seal(buf, &h, before, payload)
				if err != nil {
					t.Fatal(err)
				}
				var header rtp.Header
				plain, err := viewer.DecryptRTP(nil, buf[:n], &header)
				if err != nil {
					t.Fatalf("packet %d: %v", index, err)
				}
				want := rtp.Header{Version: 2, Marker: h.marker, PayloadType: 102, SequenceNumber: uint16(index), Timestamp: h.timestamp, SSRC: 7}
				if fmt.Sprint(header) != fmt.Sprint(want) || !bytes.Equal(plain[headerSize:], append(before, payload...)) {
					t.Fatalf("packet %d: header %+v, want %+v; %d bytes of %d", index, header, want, len(plain)-headerSize, len(before)+len(payload))
				}
			}
		})
	}
}

// No two packets have the same nonce, whatever their index and SSRC.
func TestSealNonces(t *testing.T) {
	keys := &transport.Keys{Profile: srtp.ProtectionProfileAeadAes128Gcm, Key: randomBytes(16), Salt: randomBytes(12)}
	c, err := newCryptor(keys)
	if err != nil {
		t.Fatal(err)
	}
	seen := map[[12]byte]image{}
	buf := make([]byte, 100)
	for _, ssrc := range []uint32{1, 1 << 16, 1<<32 - 1} {
		for _, index := range []uint64{0, 1, 1 << 15, 1 << 16, 1<<16 + 1, 1 << 32, 1<<32 + 1, 1<<48 - 1} {
			h := image{index: index, ssrc: ssrc}
			if _, err := c.seal(buf, &h, nil, []byte{1}); err != nil {
				t.Fatal(err)
			}
			if other, ok := seen[c.iv]; ok {
				t.Errorf("%+v and %+v have the same nonce", h, other)
			}
			seen[c.iv] = h
		}
	}
}

func TestSealAllocatesNothing(t *testing.T) {
	for _, p := range sealProfiles[:2] { // the third is pion's, with a pool
		c, err := newCryptor(&transport.Keys{Profile: p.profile, Key: randomBytes(p.key), Salt: randomBytes(p.salt)})
		if err != nil {
			t.Fatal(err)
		}
		buf, payload, before := make([]byte, 1600), randomBytes(1200), []byte{1, 2}
		h := image{index: 1, ssrc: 7}
		if n := testing.AllocsPerRun(100, func() {
			for _, b := range [][]byte{nil, before} {
				h.index++
				if _, err := c.seal(buf, &h, b, payload); err != nil {
					t.Fatal(err)
				}
			}
		}); n != 0 {
			t.Errorf("%v: %v allocations for two packets", p.profile, n)
		}
	}
}

func BenchmarkSeal(b *testing.B) {
	for _, p := range sealProfiles {
		b.Run(p.profile.String(), func(b *testing.B) {
			c, err := newCryptor(&transport.Keys{Profile: p.profile, Key: randomBytes(p.key), Salt: randomBytes(p.salt)})
			if err != nil {
				b.Fatal(err)
			}
			buf, payload := make([]byte, 1600), randomBytes(1200)
			h := image{ssrc: 7}
			b.SetBytes(int64(len(payload)))
			b.ReportAllocs()
			for b.Loop() {
				h.index++
				if _, err := c.seal(buf, &h, nil, payload); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
