// What is asked of the browser's WebRTC, behind an interface that tests can
// take the place of.

/** The browser's WebRTC. */
export interface Media {
  /** False: the browser has none. */
  readonly available: boolean;
  connect(config: RTCConfiguration): RTCPeerConnection;
  /** The video codecs the browser receives, undefined where it does not say. */
  videoCodecs(): RTCRtpCodec[] | undefined;
}

/** The real one. */
export const browserMedia: Media = {
  get available() {
    return typeof RTCPeerConnection === "function";
  },
  connect: (config) => new RTCPeerConnection(config),
  videoCodecs: () =>
    typeof RTCRtpReceiver === "function" ? RTCRtpReceiver.getCapabilities?.("video")?.codecs : undefined,
};

/** Formats that repair or wrap others: no codecs of their own. */
const AUXILIARY = new Set(["rtx", "red", "ulpfec", "flexfec-03"]);

/** "video/H264" → "H264" */
export function codecName(codec: { mimeType: string }): string {
  return (codec.mimeType.split("/")[1] ?? "").toUpperCase();
}

/** H264 first, which nearly every camera sends; the rest as the browser has it. */
export function preferH264<C extends { mimeType: string }>(codecs: readonly C[]): C[] {
  const isH264 = (codec: C) => codecName(codec) === "H264";
  return [...codecs.filter(isH264), ...codecs.filter((codec) => !isH264(codec))];
}

/** The names of the codecs, each once, without those that only repair or wrap others. */
export function codecNames(codecs: readonly { mimeType: string }[]): string[] {
  const names = codecs.map(codecName).filter((name) => !AUXILIARY.has(name.toLowerCase()));
  return [...new Set(names)];
}

/** Whether the browser plays H264. True where it does not say: the offer will show. */
export function hasH264(media: Media): boolean {
  return media.videoCodecs()?.some((codec) => codecName(codec) === "H264") ?? true;
}

/** Returns a peer connection that wants to receive a camera's video, and its audio if asked. */
export function receiver(media: Media, iceServers: RTCIceServer[], audio: boolean): RTCPeerConnection {
  const pc = media.connect({ iceServers, bundlePolicy: "max-bundle" });
  const transceivers = [pc.addTransceiver("video", { direction: "recvonly" })];
  if (audio) transceivers.push(pc.addTransceiver("audio", { direction: "recvonly" }));
  const codecs = media.videoCodecs();
  if (codecs) transceivers[0]?.setCodecPreferences?.(preferH264(codecs));
  for (const transceiver of transceivers) lowestLatency(transceiver.receiver);
  return pc;
}

/** A live picture is worth more than a smooth one: asks for an empty jitter buffer, in the words the browser knows. */
function lowestLatency(
  target: RTCRtpReceiver & { jitterBufferTarget?: number | null; playoutDelayHint?: number },
): void {
  if ("jitterBufferTarget" in target) target.jitterBufferTarget = 0;
  else if ("playoutDelayHint" in target) (target as { playoutDelayHint?: number }).playoutDelayHint = 0;
}
