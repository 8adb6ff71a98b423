// What the player reads in a viewer's token: when it ends. The gateway alone
// says whether it is good.

/** Returns a JWT's expiry (RFC 7519 §4.1.4), milliseconds since the epoch; undefined: it has none, or is no JWT. */
export function expiry(token: string): number | undefined {
  const payload = token.split(".")[1];
  if (payload === undefined) return undefined;
  try {
    const claims: unknown = JSON.parse(atob(payload.replaceAll("-", "+").replaceAll("_", "/")));
    const exp = (claims as { exp?: unknown } | null)?.exp;
    return typeof exp === "number" && Number.isFinite(exp) ? exp * 1000 : undefined;
  } catch {
    return undefined;
  }
}

/** How long to wait before a token that ends then is replaced: most of its life is over, and time is left to try again. */
export function refreshIn(expires: number, now: number): number {
  return Math.max(5_000, (expires - now) * 0.8);
}
