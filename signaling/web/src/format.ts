// Figures as people read them. Units are SI: 1 kbit/s is 1,000 bit/s.

const NOTHING = "–";

/** 2_140_000 → "2.14 Mbit/s". Unknown: a dash. */
export function bitrate(bps: number | undefined): string {
  if (bps === undefined || !Number.isFinite(bps)) return NOTHING;
  if (bps < 1_000) return `${Math.round(bps)} bit/s`;
  if (bps < 999_500) return `${Math.round(bps / 1_000)} kbit/s`;
  if (bps < 999_500_000) return `${significant(bps / 1_000_000)} Mbit/s`;
  return `${significant(bps / 1_000_000_000)} Gbit/s`;
}

/** 236.4 → "236 pkt/s". */
export function packetRate(perSecond: number | undefined): string {
  if (perSecond === undefined || !Number.isFinite(perSecond)) return NOTHING;
  return `${count(Math.round(perSecond))} pkt/s`;
}

/** 24.97 → "25 fps", 12.5 → "12.5 fps". */
export function frameRate(perSecond: number | undefined): string {
  if (perSecond === undefined || !Number.isFinite(perSecond)) return NOTHING;
  const tenths = Math.round(perSecond * 10) / 10;
  // Real cameras waver by a fraction around their nominal rate.
  const shown = Math.abs(perSecond - Math.round(perSecond)) < 0.3 ? Math.round(perSecond) : tenths;
  return `${shown} fps`;
}

/** "1920×1080"; unknown: a dash. */
export function resolution(width: number, height: number): string {
  return width > 0 && height > 0 ? `${width}×${height}` : NOTHING;
}

/** 1234567 → "1,234,567". */
export function count(value: number | undefined): string {
  if (value === undefined || !Number.isFinite(value)) return NOTHING;
  return value.toLocaleString("en-US", { maximumFractionDigits: 0 });
}

/** 0.1234 → "12 %", 0.0123 → "1.2 %". */
export function share(value: number | undefined): string {
  if (value === undefined || !Number.isFinite(value)) return NOTHING;
  return value === 0 || value >= 0.0995 ? `${Math.round(value * 100)} %` : `${(value * 100).toFixed(1)} %`;
}

/** 84.4 → "84 ms". */
export function milliseconds(value: number | undefined): string {
  if (value === undefined || !Number.isFinite(value)) return NOTHING;
  return value < 10_000 ? `${Math.round(value)} ms` : `${Math.round(value / 1000)} s`;
}

/** Three significant digits, without an exponent. */
function significant(value: number): string {
  if (value >= 100) return value.toFixed(0);
  return value >= 10 ? value.toFixed(1) : value.toFixed(2);
}
