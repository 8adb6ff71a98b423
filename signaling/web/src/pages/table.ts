// The figures' order and sums.

import type { StatsEntry } from "./api.ts";

export type Column = keyof StatsEntry;

/** Returns the entries in the order of a column; equal ones by camera. */
export function sorted(entries: readonly StatsEntry[], column: Column, descending: boolean): StatsEntry[] {
  const direction = descending ? -1 : 1;
  return [...entries].sort(
    (a, b) => direction * compare(a[column], b[column]) || compare(a.camera, b.camera),
  );
}

function compare(a: string | number, b: string | number): number {
  if (typeof a === "number" && typeof b === "number") return a - b;
  // "demo-2" before "demo-10".
  return String(a).localeCompare(String(b), "en", { numeric: true });
}

export interface Totals {
  cameras: number;
  live: number;
  nodes: number;
  bitrateBps: number;
  packetsPerSecond: number;
  viewers: number;
  packets: number;
  packetsLost: number;
  /** Cameras whose picture is not good. */
  blamed: number;
}

/** Adds the cameras up. */
export function totals(entries: readonly StatsEntry[]): Totals {
  const sum: Totals = {
    cameras: entries.length,
    live: 0,
    nodes: new Set(entries.map(({ node }) => node).filter(Boolean)).size,
    bitrateBps: 0,
    packetsPerSecond: 0,
    viewers: 0,
    packets: 0,
    packetsLost: 0,
    blamed: 0,
  };
  for (const entry of entries) {
    if (entry.state === "live") sum.live++;
    sum.bitrateBps += entry.bitrateBps;
    sum.packetsPerSecond += entry.packetsPerSecond;
    sum.viewers += entry.viewers;
    sum.packets += entry.packets;
    sum.packetsLost += entry.packetsLost;
    if (entry.verdict !== "") sum.blamed++;
  }
  return sum;
}
