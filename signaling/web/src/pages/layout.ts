// The wall's arithmetic and words.

import type { TileSummary } from "./tile.ts";

/** How many columns a wall of so many tiles has where there is room for them. */
export function columns(tiles: number): number {
  return Math.min(6, Math.max(1, Math.ceil(Math.sqrt(tiles))));
}

/** The one before or after, round the end; undefined: there is no other. */
export function stepped(cameras: readonly string[], from: string, by: 1 | -1): string | undefined {
  if (cameras.length === 0) return undefined;
  const at = cameras.indexOf(from);
  const next = at < 0 ? cameras[0] : cameras[(at + by + cameras.length) % cameras.length];
  return next === from ? undefined : next;
}

/** "12 cameras · 10 live · 24.1 Mbit/s" */
export function summaryText(tiles: readonly TileSummary[], bitrate: (bps: number) => string): string {
  if (tiles.length === 0) return "";
  const live = tiles.filter(({ tone }) => tone === "live").length;
  const bps = tiles.reduce((sum, tile) => sum + tile.bitrateBps, 0);
  const parts = [tiles.length === 1 ? "1 camera" : `${tiles.length} cameras`, `${live} live`];
  if (bps > 0) parts.push(bitrate(bps));
  return parts.join(" · ");
}

/** The command that adds a camera to the fleet whose page was loaded from the host, in the parts that a line may break between. */
export function addCommand(host: string): string[] {
  return ["fanlight camera add lobby", "--url rtsp://CAMERA-ADDRESS/stream", `--server ${host}:9090`];
}
