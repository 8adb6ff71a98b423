// One session: one peer connection, from its offer to its end. It never comes
// back from its end; playback.ts begins a new one.

import type { Connection } from "./connection.ts";
import { codecNames, type Media, preferH264, receiver } from "./peer.ts";
import type { ErrorMessage, SessionMessage, SessionReport, StateMessage, Viewport } from "./wire.ts";

/** Why a session ended. */
export interface Failure {
  reason: string;
  message: string;
}

/** What a session tells its owner; nothing after `failed` or close. */
export interface SessionEvents {
  /** The camera's media, once. */
  stream(stream: MediaStream): void;
  /** What the gateway says of the camera. */
  state(state: StateMessage): void;
  /** The camera moves: begin a new session, and keep this one until that has a picture. */
  move(): void;
  /** The session is over. */
  failed(failure: Failure): void;
}

export interface SessionOptions {
  connection: Connection;
  camera: string;
  iceServers: RTCIceServer[];
  audio: boolean;
  viewport: Viewport;
  media: Media;
  events: SessionEvents;
}

/** The gateway has so long to say anything of a new session, milliseconds. The answer itself may wait for a node. */
const ANSWER_TIMEOUT = 15_000;
/** If it says nothing at all for so long, of no session, the websocket is dead: the gateway's machine is gone. */
const SILENCE_TIMEOUT = 5_000;
/** A busy page may come to its timers before it comes to what the gateway said: it gets so long to catch up. */
const CATCH_UP = 3_000;
/** ICE and DTLS have so long after the answer. */
const CONNECT_TIMEOUT = 15_000;
/** A peer connection that is "disconnected" gets so long to recover by itself before ICE is restarted. */
const DISCONNECT_GRACE = 1_500;
/** An ICE restart has so long. */
const RESTART_TIMEOUT = 6_000;

export class Session {
  readonly #options: SessionOptions;
  readonly #events: SessionEvents;
  readonly #connection: Connection;
  readonly #id: string;
  readonly #pc: RTCPeerConnection;
  readonly #remote: RTCIceCandidateInit[] = [];
  readonly #local: (RTCIceCandidateInit | null)[] = [];
  readonly #beganAt = Date.now();
  #offered = false;
  #heard = false;
  #answered = false;
  #restarting = false;
  #closed = false;
  #detached = false;
  #error: ErrorMessage | undefined;
  #stream: MediaStream | undefined;
  #viewport: Viewport;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** Throws if the browser refuses a peer connection. */
  constructor(options: SessionOptions) {
    this.#options = options;
    this.#events = options.events;
    this.#connection = options.connection;
    this.#viewport = options.viewport;
    this.#pc = receiver(options.media, options.iceServers, options.audio);
    this.#id = this.#connection.claim((message) => this.#received(message));
    this.#pc.onicecandidate = (event) => this.#gathered(event.candidate);
    this.#pc.ontrack = (event) => this.#tracked(event);
    this.#pc.onconnectionstatechange = () => this.#changed();
  }

  /** The id on the websocket. */
  get id(): string {
    return this.#id;
  }

  /** Makes the offer and sends it. Reports what fails as an event. */
  async start(): Promise<void> {
    const catchUp = () => this.#within(CATCH_UP, () => this.#unanswered());
    this.#within(SILENCE_TIMEOUT, () => {
      if (this.#isDead) catchUp();
      else this.#within(ANSWER_TIMEOUT - SILENCE_TIMEOUT, catchUp);
    });
    try {
      await this.#pc.setLocalDescription(await this.#pc.createOffer());
    } catch (error) {
      this.#fail("bad_offer", text(error));
      return;
    }
    if (this.#closed) return;
    const { camera, media } = this.#options;
    const sent = this.#connection.send({
      type: "watch",
      session: this.#id,
      camera,
      offer: this.#pc.localDescription?.sdp ?? "",
      viewport: this.#viewport,
      codecs: codecNames(preferH264(media.videoCodecs() ?? [])),
    });
    if (!sent) {
      this.#fail("gateway_lost", "");
      return;
    }
    this.#offered = true;
    for (const candidate of this.#local.splice(0)) this.#sendCandidate(candidate);
  }

  /** Tells how the picture is shown, if that changed. */
  setViewport(viewport: Viewport): void {
    const { width, height, visible } = this.#viewport;
    if (viewport.width === width && viewport.height === height && viewport.visible === visible) return;
    this.#viewport = viewport;
    if (this.#offered) this.#send({ type: "viewport", session: this.#id, ...viewport });
  }

  /** Tells what was measured. */
  report(report: SessionReport): void {
    this.#send({ type: "stats", session: this.#id, ...report });
  }

  /** Returns the browser's report on the peer connection. */
  getStats(): Promise<RTCStatsReport> {
    return this.#pc.getStats();
  }

  /** The websocket is gone, and the gateway's side of the session with it; what media still flows is shown. */
  detach(): void {
    this.#detached = true;
    this.#connection.release(this.#id);
  }

  /** Ends the session on both sides. */
  close(): void {
    if (this.#closed) return;
    if (this.#offered) this.#send({ type: "leave", session: this.#id });
    this.#end();
  }

  #received(message: SessionMessage | ErrorMessage): void {
    if (!this.#heard) {
      this.#heard = true;
      clearTimeout(this.#timer);
    }
    switch (message.type) {
      case "answer":
        void this.#answer(message.sdp);
        break;
      case "candidate":
        if (this.#answered) this.#add(message.candidate);
        else this.#remote.push(message.candidate);
        break;
      case "state":
        if (message.state === "ended") this.#ended(message.reason, message.message);
        else this.#events.state(message);
        break;
      case "move":
        this.#events.move();
        break;
      case "error":
        // About one message, a candidate perhaps; the end of the session is said as a state.
        this.#error = message;
        if (this.#restarting) this.#lost();
        break;
    }
  }

  /** The gateway ended the session: nothing is left there to leave. */
  #ended(reason: string, message: string): void {
    this.#offered = false;
    if (reason === "" && this.#error) this.#fail(this.#error.reason, this.#error.message);
    else this.#fail(reason, message);
  }

  async #answer(sdp: string): Promise<void> {
    try {
      await this.#pc.setRemoteDescription({ type: "answer", sdp });
    } catch (error) {
      this.#fail("bad_answer", text(error));
      return;
    }
    if (this.#closed) return;
    this.#answered = true;
    for (const candidate of this.#remote.splice(0)) this.#add(candidate);
    this.#watchTransport();
    if (this.#pc.connectionState === "connected") this.#changed();
    else this.#within(this.#restarting ? RESTART_TIMEOUT : CONNECT_TIMEOUT, () => this.#lost());
  }

  /** The node's farewell (a DTLS alert) is seen at the transport long before ICE notices. */
  #watchTransport(): void {
    const transport = this.#pc.getReceivers()[0]?.transport;
    if (!transport) return;
    transport.onstatechange = () => {
      if (transport.state === "closed" || transport.state === "failed") this.#lost();
    };
  }

  #add(candidate: RTCIceCandidateInit): void {
    // One candidate that the browser cannot use leaves the others.
    this.#pc.addIceCandidate(candidate).catch(() => {});
  }

  #gathered(candidate: RTCIceCandidate | null): void {
    const init = candidate?.toJSON() ?? null;
    if (this.#offered) this.#sendCandidate(init);
    else this.#local.push(init);
  }

  #sendCandidate(candidate: RTCIceCandidateInit | null): void {
    this.#send({ type: "candidate", session: this.#id, candidate });
  }

  #tracked(event: RTCTrackEvent): void {
    if (!this.#stream) {
      this.#stream = event.streams[0] ?? new MediaStream();
      if (event.streams.length === 0) this.#stream.addTrack(event.track);
      this.#events.stream(this.#stream);
    } else if (!this.#stream.getTracks().includes(event.track)) {
      this.#stream.addTrack(event.track);
    }
  }

  #changed(): void {
    switch (this.#pc.connectionState) {
      case "connected":
        this.#restarting = false;
        clearTimeout(this.#timer);
        break;
      case "disconnected":
        if (!this.#restarting) this.#within(DISCONNECT_GRACE, () => void this.#restart());
        break;
      case "failed":
        if (this.#restarting || !this.#answered) this.#lost();
        else void this.#restart();
        break;
    }
  }

  /** Tries other paths for the same peer connection (RFC 8445 §2.4). */
  async #restart(): Promise<void> {
    if (this.#closed || this.#restarting) return;
    if (this.#detached) {
      this.#lost();
      return;
    }
    this.#restarting = true;
    this.#answered = false;
    this.#within(RESTART_TIMEOUT, () => this.#lost());
    try {
      await this.#pc.setLocalDescription(await this.#pc.createOffer({ iceRestart: true }));
    } catch {
      this.#lost();
      return;
    }
    const offer = this.#pc.localDescription?.sdp ?? "";
    if (!this.#closed && !this.#send({ type: "restart", session: this.#id, offer })) this.#lost();
  }

  /** The websocket looks open but nothing comes back on it, for nobody: the path is dead. */
  get #isDead(): boolean {
    return this.#connection.heardAt <= this.#beganAt;
  }

  #unanswered(): void {
    const dead = this.#isDead;
    this.#fail("no_answer", "");
    if (dead) this.#connection.renew("no_answer");
  }

  #lost(): void {
    this.#fail("peer_connection_failed", "");
  }

  #fail(reason: string, message: string): void {
    if (this.#closed) return;
    if (this.#offered) this.#send({ type: "leave", session: this.#id });
    this.#end();
    this.#events.failed({ reason, message });
  }

  #end(): void {
    this.#closed = true;
    clearTimeout(this.#timer);
    this.#connection.release(this.#id);
    const pc = this.#pc;
    pc.onicecandidate = pc.ontrack = pc.onconnectionstatechange = null;
    const transport = pc.getReceivers()[0]?.transport;
    if (transport) transport.onstatechange = null;
    pc.close();
  }

  #send(message: Parameters<Connection["send"]>[0]): boolean {
    return !this.#detached && this.#connection.send(message);
  }

  #within(milliseconds: number, then: () => void): void {
    clearTimeout(this.#timer);
    this.#timer = setTimeout(then, milliseconds);
  }
}

function text(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
