// The video elements of a player: the picture in front, and behind it the one
// that will take its place.

import type { Picture, Screen } from "./playback.ts";

/** Frames can be told one by one (WICG video-rvfc). */
type FrameVideo = HTMLVideoElement & {
  requestVideoFrameCallback?: (callback: () => void) => number;
  cancelVideoFrameCallback?: (handle: number) => void;
};

/** The first data without a frame callback: the page is hidden, or the frame is off the screen. Milliseconds. */
const FRAME_PATIENCE = 300;

export class VideoScreen implements Screen {
  readonly #container: HTMLElement;
  readonly #onMutedByBrowser: () => void;
  readonly #pictures = new Set<VideoPicture>();
  #front: VideoPicture | undefined;
  #muted: boolean;

  /** onMutedByBrowser: the browser plays with sound only after a gesture. */
  constructor(container: HTMLElement, muted: boolean, onMutedByBrowser: () => void) {
    this.#container = container;
    this.#muted = muted;
    this.#onMutedByBrowser = onMutedByBrowser;
  }

  get muted(): boolean {
    return this.#muted;
  }

  set muted(muted: boolean) {
    this.#muted = muted;
    if (this.#front) this.#front.muted = muted;
  }

  /** Whether there is a picture, be it a last frame. */
  get hasPicture(): boolean {
    return this.#front !== undefined;
  }

  load(stream: MediaStream, firstFrame: () => void): Picture {
    const picture = new VideoPicture(stream, firstFrame, {
      show: () => this.#show(picture),
      close: () => this.#close(picture),
    });
    this.#pictures.add(picture);
    this.#container.prepend(picture.element);
    picture.play(() => {});
    return picture;
  }

  clear(): void {
    for (const picture of [...this.#pictures]) picture.close();
  }

  #show(picture: VideoPicture): void {
    // Told by a class: an element that is moved in the document stops playing.
    this.#front?.element.classList.remove("front");
    picture.element.classList.add("front");
    this.#front = picture;
    // Only the picture in front is heard.
    picture.muted = this.#muted;
    picture.play(() => {
      this.#muted = true;
      picture.muted = true;
      picture.play(() => {});
      this.#onMutedByBrowser();
    });
  }

  #close(picture: VideoPicture): void {
    this.#pictures.delete(picture);
    if (this.#front === picture) this.#front = undefined;
    picture.element.remove();
  }
}

class VideoPicture implements Picture {
  readonly element: HTMLVideoElement;
  readonly #owner: { show: () => void; close: () => void };
  readonly #firstFrame: () => void;
  #frameHandle: number | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;

  constructor(stream: MediaStream, firstFrame: () => void, owner: { show: () => void; close: () => void }) {
    this.#owner = owner;
    this.#firstFrame = firstFrame;
    const video: FrameVideo = document.createElement("video");
    video.part.add("video");
    video.muted = true;
    video.playsInline = true;
    video.autoplay = true;
    video.disableRemotePlayback = true;
    // The overlay and the player's own label speak for the picture.
    video.setAttribute("aria-hidden", "true");
    video.tabIndex = -1;
    video.srcObject = stream;
    this.element = video;
    this.#frameHandle = video.requestVideoFrameCallback?.(() => this.#arrived());
    video.onloadeddata = () => {
      const patience = this.#frameHandle === undefined || document.hidden ? 0 : FRAME_PATIENCE;
      this.#timer = setTimeout(() => this.#arrived(), patience);
    };
  }

  set muted(muted: boolean) {
    this.element.muted = muted;
  }

  /** Plays; onBlocked: the browser does not let it, for its sound. */
  play(onBlocked: () => void): void {
    // play() is refused for want of a gesture, or because the element is gone by now.
    this.element.play().catch((error: unknown) => {
      if (error instanceof DOMException && error.name === "NotAllowedError" && !this.element.muted)
        onBlocked();
    });
  }

  show(): void {
    this.#owner.show();
  }

  close(): void {
    this.#stopWaiting();
    this.#owner.close();
    this.element.srcObject = null;
  }

  #arrived(): void {
    this.#stopWaiting();
    this.#firstFrame();
  }

  #stopWaiting(): void {
    clearTimeout(this.#timer);
    const video: FrameVideo = this.element;
    if (this.#frameHandle !== undefined) video.cancelVideoFrameCallback?.(this.#frameHandle);
    this.#frameHandle = undefined;
    video.onloadeddata = null;
  }
}
