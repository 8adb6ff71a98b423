package session

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"

	"github.com/pion/rtp"
	"github.com/pion/srtp/v3"

	"fanlight/medianode/transport"
)

// headerSize is that of our RTP packets, without extensions (RFC 3550 §5.1).
const headerSize = 12

// withExtensions is the X bit of the first byte.
const withExtensions = 0x10

// cryptor seals one session's RTP and RTCP. It is owned by the session's shard.
type cryptor struct {
	aead    cipher.AEAD   // nil: context seals RTP too
	salt    [12]byte      // of the session
	iv      [12]byte      // of the packet under way; here because a parameter would escape
	context *srtp.Context // RTCP, and RTP with AES128_CM_HMAC_SHA1_80
	header  rtp.Header    // of context's RTP
}

// newCryptor derives the session keys. AEAD_AES_128_GCM and AEAD_AES_256_GCM
// (RFC 7714) are done here, for half of what a packet costs is this: the payload is
// read once and written once, into the batch that it leaves in. The rest is
// pion's.
func newCryptor(k *transport.Keys) (*cryptor, error) {
	context, err := srtp.CreateContext(k.Key, k.Salt, k.Profile)
	if err != nil {
		return nil, fmt.Errorf("make an SRTP context: %w", err)
	}
	c := &cryptor{context: context}
	if k.Profile != srtp.ProtectionProfileAeadAes128Gcm && k.Profile != srtp.ProtectionProfileAeadAes256Gcm {
		return c, nil
	}
	const encryption, salting = 0, 2 // labels (RFC 3711 §4.3.1)
	key, err := derive(k, encryption, len(k.Key))
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("make an AES cipher: %w", err)
	}
	if c.aead, err = cipher.NewGCM(block); err != nil {
		return nil, fmt.Errorf("make an AES-GCM cipher: %w", err)
	}
	salt, err := derive(k, salting, len(c.salt))
	if err != nil {
		return nil, err
	}
	copy(c.salt[:], salt)
	return c, nil
}

// derive returns size bytes of key material (RFC 3711 §4.3.3; §4.3.1 with a key
// derivation rate of 0): AES in counter mode over zeros.
func derive(k *transport.Keys, label byte, size int) ([]byte, error) {
	block, err := aes.NewCipher(k.Key)
	if err != nil {
		return nil, fmt.Errorf("derive SRTP keys: %w", err)
	}
	var iv [aes.BlockSize]byte
	copy(iv[:14], k.Salt) // 96 bits of salt are followed by zeros (RFC 7714 §11)
	iv[7] ^= label
	out := make([]byte, size)
	cipher.NewCTR(block, iv[:]).XORKeyStream(out, out)
	return out, nil
}

// image is what an RTP header says.
type image struct {
	index     uint64 // rollover counter and sequence number (RFC 3711 §3.3.1): 48 bits
	timestamp uint32
	ssrc      uint32
	payload   uint8 // type
	marker    bool
	extension []byte // in 32-bit words, with its own header (RFC 3550 §5.3.1); nil: none
}

// seal writes a sealed packet to dst and returns its size. before goes before
// the payload: what RTX says (RFC 4588 §4), or nothing.
func (c *cryptor) seal(dst []byte, h *image, before, payload []byte) (int, error) {
	kind := h.payload
	if h.marker {
		kind |= 0x80
	}
	_ = dst[headerSize-1]
	dst[0], dst[1] = 0x80, kind
	binary.BigEndian.PutUint16(dst[2:], uint16(h.index))
	binary.BigEndian.PutUint32(dst[4:], h.timestamp)
	binary.BigEndian.PutUint32(dst[8:], h.ssrc)
	size := headerSize
	if len(h.extension) > 0 {
		dst[0] |= withExtensions
		size += copy(dst[size:], h.extension)
	}
	if c.aead == nil {
		n := size + copy(dst[size:], before)
		n += copy(dst[n:], payload)
		out, err := c.context.EncryptRTP(dst, dst[:n], &c.header)
		if err != nil {
			return 0, fmt.Errorf("seal a packet: %w", err)
		}
		return len(out), nil
	}
	// RFC 7714 §8.1: two zeros, the SSRC, the index; xored with the salt.
	binary.BigEndian.PutUint16(c.iv[0:], 0)
	binary.BigEndian.PutUint32(c.iv[2:], h.ssrc)
	binary.BigEndian.PutUint16(c.iv[6:], uint16(h.index>>32))
	binary.BigEndian.PutUint32(c.iv[8:], uint32(h.index))
	for i, b := range c.salt {
		c.iv[i] ^= b
	}
	plain := payload
	if len(before) > 0 {
		n := copy(dst[size:], before)
		n += copy(dst[size+n:], payload)
		plain = dst[size : size+n]
	}
	return size + len(c.aead.Seal(dst[size:size], c.iv[:], plain, dst[:size])), nil
}

// sealRTCP writes a sealed compound packet to dst and returns its size.
func (c *cryptor) sealRTCP(dst, plain []byte) (int, error) {
	out, err := c.context.EncryptRTCP(dst[:0], plain, nil)
	if err != nil {
		return 0, fmt.Errorf("seal a report: %w", err)
	}
	return len(out), nil
}
