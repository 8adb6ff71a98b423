import type { PlayerState } from "../playback.ts";

/** A state in a word, and the colour it has. */
export interface Badge {
  tone: "live" | "wait" | "bad" | "off";
  text: string;
}

const BY_PLAYER: Readonly<Partial<Record<PlayerState, Badge>>> = {
  live: { tone: "live", text: "Live" },
  moving: { tone: "live", text: "Live" },
  connecting: { tone: "wait", text: "Connecting" },
  reconnecting: { tone: "wait", text: "Reconnecting" },
  camera_offline: { tone: "bad", text: "Offline" },
  ended: { tone: "bad", text: "No picture" },
};

const BY_CAMERA: Readonly<Record<string, Badge>> = {
  live: { tone: "live", text: "Live" },
  connecting: { tone: "wait", text: "Connecting" },
  failed: { tone: "bad", text: "Offline" },
  camera_offline: { tone: "bad", text: "Offline" },
  unassigned: { tone: "bad", text: "No node" },
  idle: { tone: "off", text: "Asleep" },
  disabled: { tone: "off", text: "Disabled" },
};

const UNKNOWN: Badge = { tone: "off", text: "Unknown" };

/**
 * What to call a camera: what the viewer sees of it if it is being watched,
 * else what the gateway says. A disabled camera is disabled, whatever a player
 * makes of it.
 */
export function badge(player: PlayerState, camera: string): Badge {
  const byCamera = BY_CAMERA[camera];
  if (camera === "disabled" && byCamera) return byCamera;
  return BY_PLAYER[player] ?? byCamera ?? UNKNOWN;
}
