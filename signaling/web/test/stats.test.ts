import { describe, expect, it } from "vitest";
import { rates, readReport } from "../src/stats.ts";

function report(seconds: number, values: { bytes: number; packets: number; frames: number; delay?: number }) {
  const timestamp = 1_000_000 + seconds * 1000;
  return new Map<string, unknown>([
    [
      "V",
      {
        id: "V",
        type: "inbound-rtp",
        kind: "video",
        timestamp,
        bytesReceived: values.bytes,
        headerBytesReceived: values.packets * 20,
        packetsReceived: values.packets,
        packetsLost: 3,
        framesReceived: values.frames,
        framesDecoded: values.frames,
        framesDropped: 1,
        freezeCount: 2,
        frameWidth: 1280,
        frameHeight: 720,
        jitterBufferDelay: values.delay ?? 0,
        jitterBufferEmittedCount: values.frames,
        codecId: "C",
      },
    ],
    [
      "A",
      {
        id: "A",
        type: "inbound-rtp",
        kind: "audio",
        timestamp,
        bytesReceived: 1000 * seconds,
        packetsReceived: 50 * seconds,
      },
    ],
    ["C", { id: "C", type: "codec", mimeType: "video/H264" }],
    [
      "P1",
      { id: "P1", type: "candidate-pair", state: "succeeded", nominated: false, currentRoundTripTime: 9 },
    ],
    [
      "P2",
      { id: "P2", type: "candidate-pair", state: "succeeded", nominated: true, currentRoundTripTime: 0.012 },
    ],
  ]);
}

const sample = (...args: Parameters<typeof report>) => {
  const read = readReport(report(...args));
  if (!read) throw new Error("no video in the report");
  return read;
};

describe("rates", () => {
  it("are those between two reports, video and audio together", () => {
    const before = sample(0, { bytes: 10_000, packets: 100, frames: 10, delay: 1 });
    const after = sample(2, { bytes: 510_000, packets: 500, frames: 60, delay: 2 });
    expect(rates(before, after, 140)).toEqual({
      // 500,000 of video, 8,000 of its headers and 2,000 of audio in two seconds.
      bitrateBps: (510_000 * 8) / 2,
      packetsPerSecond: (400 + 100) / 2,
      framesPerSecond: 25,
      width: 1280,
      height: 720,
      codec: "H264",
      packetsLost: 3,
      framesDecoded: 60,
      framesDropped: 1,
      freezes: 2,
      jitterBufferMs: 20,
      roundTripMs: 12,
      firstFrameMs: 140,
    });
  });

  it("are not made of one moment, of time that went back, or of another peer connection", () => {
    const sampleAt = (seconds: number, bytes: number) => sample(seconds, { bytes, packets: 1, frames: 1 });
    expect(rates(sampleAt(1, 10), sampleAt(1, 20), undefined)).toBeUndefined();
    expect(rates(sampleAt(2, 10), sampleAt(1, 20), undefined)).toBeUndefined();
    expect(rates(sampleAt(1, 90_000), sampleAt(2, 20), undefined)).toBeUndefined();
  });

  it("have no jitter buffer where no frame came", () => {
    const stats = rates(
      sample(0, { bytes: 1, packets: 1, frames: 5 }),
      sample(1, { bytes: 1, packets: 1, frames: 5 }),
      undefined,
    );
    expect(stats?.jitterBufferMs).toBeUndefined();
    expect(stats?.framesPerSecond).toBe(0);
  });
});

describe("readReport", () => {
  it("needs video", () => {
    expect(readReport(new Map([["A", { id: "A", type: "inbound-rtp", kind: "audio" }]]))).toBeUndefined();
  });

  it("takes fields that a browser leaves out for nothing", () => {
    const read = readReport(new Map([["V", { id: "V", type: "inbound-rtp", kind: "video", timestamp: 5 }]]));
    expect(read).toMatchObject({ bytes: 0, framesDecoded: 0, width: 0, codec: "", roundTripTime: undefined });
  });
});
