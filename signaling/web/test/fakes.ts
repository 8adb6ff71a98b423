// Stand-ins for the browser's websocket, peer connection and screen, which do
// as little as the player notices.

import type { Socket } from "../src/connection.ts";
import type { Media } from "../src/peer.ts";
import type { Picture, Screen } from "../src/playback.ts";

/** The gateway's end of a websocket. */
export class FakeSocket implements Socket {
  readyState = 0;
  onopen: ((event: Event) => void) | null = null;
  onmessage: ((event: MessageEvent) => void) | null = null;
  onclose: ((event: CloseEvent) => void) | null = null;
  readonly url: URL;
  readonly protocols: string[];
  readonly sent: Record<string, unknown>[] = [];
  closedByPlayer = false;
  closeCode: number | undefined;

  constructor(url: URL, protocols: string[]) {
    this.url = url;
    this.protocols = protocols;
  }

  send(data: string): void {
    if (this.readyState !== 1) throw new Error("the socket is not open");
    this.sent.push(JSON.parse(data));
  }

  close(code?: number): void {
    this.closedByPlayer = true;
    this.closeCode = code;
    this.readyState = 3;
  }

  /** Accepts the websocket and says welcome. */
  welcome(iceServers: unknown[] = []): void {
    this.readyState = 1;
    this.say({ type: "welcome", protocol: "fanlight.v1", ice_servers: iceServers });
  }

  say(message: unknown): void {
    this.onmessage?.({ data: JSON.stringify(message) } as MessageEvent);
  }

  /** The gateway, or the network, closes it. */
  lose(code = 1006, reason = ""): void {
    this.readyState = 3;
    this.onclose?.({ code, reason } as CloseEvent);
  }

  /** The messages of a type. */
  of(type: string): Record<string, unknown>[] {
    return this.sent.filter((message) => message.type === type);
  }
}

/** Collects the websockets that are opened. */
export class FakeGateway {
  readonly sockets: FakeSocket[] = [];
  readonly open = (url: URL, protocols: string[]): FakeSocket => {
    const socket = new FakeSocket(url, protocols);
    this.sockets.push(socket);
    return socket;
  };

  get last(): FakeSocket {
    const socket = this.sockets.at(-1);
    if (!socket) throw new Error("no websocket was opened");
    return socket;
  }
}

type Transport = { state: string; onstatechange: (() => void) | null };

export class FakePeer {
  readonly config: RTCConfiguration;
  readonly transceivers: { kind: string; direction: string | undefined; codecs: string[] }[] = [];
  readonly added: RTCIceCandidateInit[] = [];
  readonly offers: (RTCOfferOptions | undefined)[] = [];
  readonly transport: Transport = { state: "new", onstatechange: null };
  localDescription: { type: string; sdp: string } | null = null;
  remote: string[] = [];
  connectionState = "new";
  closed = false;
  onicecandidate: ((event: unknown) => void) | null = null;
  ontrack: ((event: unknown) => void) | null = null;
  onconnectionstatechange: (() => void) | null = null;
  report: [string, unknown][] = [];
  /** Makes setRemoteDescription fail. */
  refuseAnswer = false;
  readonly #tracks: object[] = [];
  readonly #stream = { getTracks: () => this.#tracks };

  constructor(config: RTCConfiguration) {
    this.config = config;
  }

  addTransceiver(kind: string, init?: RTCRtpTransceiverInit) {
    const transceiver = { kind, direction: init?.direction, codecs: [] as string[] };
    this.transceivers.push(transceiver);
    return {
      receiver: { jitterBufferTarget: null },
      setCodecPreferences: (codecs: { mimeType: string }[]) => {
        transceiver.codecs = codecs.map(({ mimeType }) => mimeType);
      },
    };
  }

  async createOffer(options?: RTCOfferOptions) {
    this.offers.push(options);
    return { type: "offer", sdp: `offer ${this.offers.length}` };
  }

  async setLocalDescription(description: { type: string; sdp: string }) {
    this.localDescription = description;
    // Candidates may come before the caller goes on.
    this.onicecandidate?.({ candidate: { toJSON: () => ({ candidate: "candidate:early", sdpMid: "0" }) } });
  }

  async setRemoteDescription(description: { sdp: string }) {
    if (this.refuseAnswer) throw new Error("cannot be parsed");
    this.remote.push(description.sdp);
  }

  async addIceCandidate(candidate: RTCIceCandidateInit) {
    this.added.push(candidate);
    if (candidate.candidate === "candidate:garbage") throw new Error("cannot be parsed");
  }

  getReceivers() {
    return [{ transport: this.transport }];
  }

  async getStats() {
    return new Map(this.report);
  }

  close(): void {
    this.closed = true;
  }

  become(state: string): void {
    this.connectionState = state;
    this.onconnectionstatechange?.();
  }

  /** The node says farewell: a DTLS alert. */
  farewell(): void {
    this.transport.state = "closed";
    this.transport.onstatechange?.();
  }

  /** A track of the node's one stream begins. */
  track(): void {
    const track = {};
    this.#tracks.push(track);
    this.ontrack?.({ track, streams: [this.#stream] });
  }
}

export class FakeMedia implements Media {
  available = true;
  readonly peers: FakePeer[] = [];
  codecs: string[] = ["video/VP8", "video/rtx", "video/H264", "video/H264", "video/AV1", "video/red"];

  connect(config: RTCConfiguration): RTCPeerConnection {
    const peer = new FakePeer(config);
    this.peers.push(peer);
    return peer as unknown as RTCPeerConnection;
  }

  videoCodecs(): RTCRtpCodec[] {
    return this.codecs.map((mimeType) => ({ mimeType, clockRate: 90_000 }));
  }

  get last(): FakePeer {
    const peer = this.peers.at(-1);
    if (!peer) throw new Error("no peer connection was made");
    return peer;
  }
}

export class FakePicture implements Picture {
  shown = false;
  closed = false;
  readonly firstFrame: () => void;

  constructor(firstFrame: () => void) {
    this.firstFrame = firstFrame;
  }

  show(): void {
    this.shown = true;
  }

  close(): void {
    this.closed = true;
  }
}

export class FakeScreen implements Screen {
  readonly pictures: FakePicture[] = [];

  load(_stream: MediaStream, firstFrame: () => void): Picture {
    const picture = new FakePicture(firstFrame);
    this.pictures.push(picture);
    return picture;
  }

  clear(): void {
    for (const picture of this.pictures) picture.close();
  }

  /** The pictures on the screen: in front, or being prepared. */
  get present(): FakePicture[] {
    return this.pictures.filter((picture) => !picture.closed);
  }
}

/** Lets promises that are settled have their say. */
export async function settle(): Promise<void> {
  for (let i = 0; i < 20; i++) await Promise.resolve();
}
