// Rates from successive RTCPeerConnection.getStats reports.

/** What a report says of the picture, counters since the peer connection began. */
export interface Sample {
  /** Milliseconds, of the report's clock. */
  timestamp: number;
  /** Video and audio. */
  bytes: number;
  /** Video and audio. */
  packets: number;
  packetsLost: number;
  framesReceived: number;
  framesDecoded: number;
  framesDropped: number;
  freezes: number;
  /** Seconds that frames waited in the jitter buffer, summed over emitted frames. */
  jitterBufferDelay: number;
  jitterBufferEmitted: number;
  width: number;
  height: number;
  codec: string;
  /** Seconds, of the selected candidate pair. */
  roundTripTime: number | undefined;
}

/** The detail of `fanlight-stats`: rates over the time since the report before, about a second. */
export interface Stats {
  /** Bits per second of RTP payload and headers, video and audio. */
  bitrateBps: number;
  packetsPerSecond: number;
  /** Frames decoded per second. */
  framesPerSecond: number;
  /** The picture's size in pixels; 0: unknown. */
  width: number;
  height: number;
  /** "H264"; empty: unknown. */
  codec: string;
  /** Since the session began. */
  packetsLost: number;
  framesDecoded: number;
  framesDropped: number;
  freezes: number;
  /** Mean time that a frame waited in the jitter buffer, milliseconds; undefined: no frame. */
  jitterBufferMs: number | undefined;
  roundTripMs: number | undefined;
  /** From the beginning of the session to its first frame, milliseconds. */
  firstFrameMs: number | undefined;
}

/** What of a report is read. All the fields of the W3C's dictionaries are optional. */
type Entry = Record<string, unknown> & { type: string; id: string };

/** Reads a report. Undefined: it has no video yet. */
export function readReport(report: Iterable<[string, unknown]>): Sample | undefined {
  const entries = new Map<string, Entry>(report as Iterable<[string, Entry]>);
  let video: Entry | undefined;
  let bytes = 0;
  let packets = 0;
  let roundTripTime: number | undefined;
  for (const entry of entries.values()) {
    if (entry.type === "inbound-rtp") {
      bytes += number(entry.bytesReceived) + number(entry.headerBytesReceived);
      packets += number(entry.packetsReceived);
      if (entry.kind === "video") video = entry;
    } else if (entry.type === "candidate-pair" && entry.state === "succeeded" && entry.nominated === true) {
      if (typeof entry.currentRoundTripTime === "number") roundTripTime = entry.currentRoundTripTime;
    }
  }
  if (!video) return undefined;
  const mime = typeof video.codecId === "string" ? entries.get(video.codecId)?.mimeType : undefined;
  return {
    timestamp: number(video.timestamp),
    bytes,
    packets,
    packetsLost: number(video.packetsLost),
    framesReceived: number(video.framesReceived),
    framesDecoded: number(video.framesDecoded),
    framesDropped: number(video.framesDropped),
    freezes: number(video.freezeCount),
    jitterBufferDelay: number(video.jitterBufferDelay),
    jitterBufferEmitted: number(video.jitterBufferEmittedCount),
    width: number(video.frameWidth),
    height: number(video.frameHeight),
    codec: typeof mime === "string" ? (mime.split("/")[1] ?? "") : "",
    roundTripTime,
  };
}

/** Returns the rates between two samples. Undefined: they are not two points in time of one peer connection. */
export function rates(before: Sample, after: Sample, firstFrameMs: number | undefined): Stats | undefined {
  const seconds = (after.timestamp - before.timestamp) / 1000;
  if (!(seconds > 0) || after.bytes < before.bytes) return undefined;
  const emitted = after.jitterBufferEmitted - before.jitterBufferEmitted;
  return {
    bitrateBps: ((after.bytes - before.bytes) * 8) / seconds,
    packetsPerSecond: (after.packets - before.packets) / seconds,
    framesPerSecond: Math.max(0, after.framesDecoded - before.framesDecoded) / seconds,
    width: after.width,
    height: after.height,
    codec: after.codec,
    packetsLost: after.packetsLost,
    framesDecoded: after.framesDecoded,
    framesDropped: after.framesDropped,
    freezes: after.freezes,
    jitterBufferMs:
      emitted > 0 ? ((after.jitterBufferDelay - before.jitterBufferDelay) / emitted) * 1000 : undefined,
    roundTripMs: after.roundTripTime === undefined ? undefined : after.roundTripTime * 1000,
    firstFrameMs,
  };
}

function number(value: unknown): number {
  return typeof value === "number" && Number.isFinite(value) ? value : 0;
}
