// Package stream holds the live media of one profile of a camera in memory and
// fans it out.
//
// A source publishes its tracks and writes RTP packets in; a subscription, for one
// viewer or for many, takes bursts of packets out. Writing never blocks: a slow
// subscription loses its oldest bursts and resumes at the next keyframe, and
// every loss is counted by its reason. A watch is told what is seen of the camera.
//
// What leaves is normalized once for all viewers:
//
//   - Packets fit into the MTU. What is too large is cut: NAL units of H264 (RFC
//     6184, packetization modes 0 and 1) into FU-A packets, of H265 (RFC 7798, not
//     interleaved, the base layer) into fragmentation units, frames of VP8 (RFC
//     7741) and VP9 (RFC 9628, flexible mode or not) with their payload
//     descriptor, OBUs of AV1 (RTP Payload Format For AV1) into fragments. Packets
//     that are a little too large are cut anew, across one another. An aggregate
//     (STAP-A, AP) that is too large becomes single NAL units.
//   - The last packet of an access unit has the marker bit: of a picture of H264 or
//     H265, a frame of VP8, a picture of VP9 with its layers, a temporal unit of AV1.
//   - Parameter sets and access unit delimiters of H264 and H265 are taken out,
//     aggregated or not. An IDR or IRAP picture, and one that came with new sets,
//     leaves as the parameter sets, from the SDP or from the packets before; then
//     what the camera sent ahead of its first slice, SEI and the like; then the
//     slices; all with its timestamp. SEI without a picture is dropped.
//   - So it is with the sequence header of AV1 and its metadata before a shown
//     keyframe, whose packet has the N bit whether the camera set it or not.
//     Temporal delimiters and padding are dropped.
//   - A keyframe of VP8 and VP9 is as the camera sent it. VP9 that says of each
//     frame that it is predicted from no other is told by the frame's own header.
//   - An IDR or IRAP picture whose beginning was lost, and a keyframe whose parameter
//     sets or sequence header are not known, leave for who is watching already, and
//     are no keyframes to start with.
//   - H264 B-frames that no picture refers to are left out, for browsers cannot
//     play pictures in another order than they come. Of B-frames that others refer
//     to the stream tells (Stream.BFrames), and passes them on as they are.
//   - When packets of video are missing, what is left of the access unit, and all
//     that follows, stays here until a keyframe begins, which the camera is asked
//     for: it would be smears, or refers to what is missing. Viewers see one number
//     missing if a part of the access unit has left already, and none else. A
//     packet missing within a B-frame that is left out anyway harms nobody.
//   - Sequence numbers and timestamps go on where they were over reconnects and
//     over a camera's clock that leaps or is set back. What the camera's
//     sequence of audio lacks stays a gap, at most 32 packets wide.
//   - OPUS, G722, PCMU and PCMA pass as they are.
//
// A burst is flushed by the marker bit, by the 17th packet of its access unit, by
// a keyframe that begins, or by the first packet of the next access unit. There is
// no timer: what a camera without marker bits sends leaves one frame later, and what
// a camera sent of an access unit before it fell silent leaves with its next packet.
//
// Packets are immutable once they are handed out, and nobody copies a payload.
// The latest are kept for viewers who missed them (Subscription.Retained), once
// for all, while anybody subscribes.
//
// Packets that arrive late are dropped, for reordering is the source's part
// (gortsplib has it for UDP); malformed ones are dropped and counted.
//
// What video came since the last keyframe is kept too, bounded in bytes and time,
// whether or not anybody subscribes (Subscription.Recent): who begins in between
// begins with that. It goes with the connection. A subscription that does not want
// it, or for which there is none, starts with the next keyframe. The camera is
// asked for one, each second until it begins, when a subscription says so, has
// lost its place by an overflow, or sees a new connection that does not begin with
// one, and when packets were lost while anybody subscribes.
//
// The package knows neither RTSP nor WebRTC and performs no I/O. It starts no
// goroutine.
package stream
