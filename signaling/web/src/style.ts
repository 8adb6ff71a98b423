/** The player's style. A page changes it by the custom properties and the parts that README.md lists. */
export const STYLE = `
:host {
  --_background: var(--fanlight-background, #0b0d10);
  --_color: var(--fanlight-color, #f2f4f7);
  --_muted: var(--fanlight-muted-color, #a7b0bd);
  --_accent: var(--fanlight-accent, #f5b83d);
  --_veil: var(--fanlight-overlay, rgb(8 10 13 / 80%));
  --_radius: var(--fanlight-radius, 0px);
  display: block;
  position: relative;
  aspect-ratio: 16 / 9;
  overflow: hidden;
  background: var(--_background);
  border-radius: var(--_radius);
  color: var(--_color);
  font: 400 14px/1.45 var(--fanlight-font, system-ui, -apple-system, "Segoe UI", Roboto, sans-serif);
  contain: layout paint style;
}
:host([hidden]) { display: none; }
:host(:fullscreen) { aspect-ratio: auto; border-radius: 0; }

.frame { position: absolute; inset: 0; container-type: size; }
.screen, video { position: absolute; inset: 0; width: 100%; height: 100%; }
video { object-fit: contain; display: block; z-index: 0; }
video.front { z-index: 1; }
:host([object-fit="cover"]) video { object-fit: cover; }
:host([object-fit="fill"]) video { object-fit: fill; }
:host([object-fit="none"]) video { object-fit: none; }
:host([object-fit="scale-down"]) video { object-fit: scale-down; }

.overlay {
  position: absolute; inset: 0; z-index: 2;
  display: flex; flex-direction: column; align-items: center; justify-content: center;
  gap: 6px; padding: 12px; text-align: center;
  opacity: 0; visibility: hidden;
  transition: opacity .18s ease, visibility 0s linear .18s;
}
.overlay.on { opacity: 1; visibility: visible; transition-delay: 0s; }
/* A short gap is not worth a flicker while there is a last frame to look at. */
.frame.picture .overlay { background: var(--_veil); }
.frame.picture .overlay.on { transition-delay: .35s; }

.symbol { display: grid; place-items: center; width: 34px; height: 34px; color: var(--_muted); }
.symbol > * { grid-area: 1 / 1; }
.icon {
  width: 26px; height: 26px; fill: none; stroke: currentcolor;
  stroke-width: 1.6; stroke-linecap: round; stroke-linejoin: round;
}
.symbol .icon { display: none; }
.overlay[data-symbol="off"] .icon.off { display: block; }
.overlay[data-symbol="bar"] .icon.bar { display: block; }
.spinner {
  display: none; width: 22px; height: 22px; border-radius: 50%;
  border: 2px solid rgb(255 255 255 / 16%); border-top-color: var(--_accent);
  animation: turn .9s linear infinite;
}
.overlay[data-symbol="wait"] .spinner { display: block; }
@keyframes turn { to { transform: rotate(1turn); } }

.title, .message, .countdown { margin: 0; max-width: 46ch; overflow-wrap: anywhere; text-wrap: balance; }
.title { font-weight: 600; }
.message { color: var(--_muted); font-size: .93em; }
.countdown { color: var(--_muted); font-size: .86em; font-variant-numeric: tabular-nums; }
.title:empty, .message:empty, .countdown:empty { display: none; }
@container (max-width: 300px) or (max-height: 150px) {
  .overlay { gap: 2px; padding: 6px; font-size: 12px; }
  .symbol { width: 26px; height: 26px; }
  .icon { width: 20px; height: 20px; }
}
@container (max-height: 96px) { .symbol, .countdown { display: none; } }

.verdict {
  position: absolute; z-index: 2; left: 8px; top: 8px; margin: 0; max-width: calc(100% - 16px); box-sizing: border-box;
  display: flex; align-items: center; gap: 5px; padding: 2px 8px 2px 6px;
  border-radius: 999px; background: rgb(10 12 15 / 72%); color: var(--_accent);
  font-size: 12px; line-height: 18px; white-space: nowrap;
}
.verdict[hidden] { display: none; }
.verdict .icon { flex: none; width: 14px; height: 14px; stroke-width: 2; }

.toolbar {
  position: absolute; z-index: 3; right: 10px; bottom: 10px; display: flex; gap: 6px;
  opacity: .75; transition: opacity .15s ease;
}
:host(:hover) .toolbar, .toolbar:focus-within { opacity: 1; }
@media (hover: none) { .toolbar { opacity: .9; } }
.toolbar[hidden] { display: none; }
button {
  display: grid; place-items: center; width: 40px; height: 40px; padding: 0;
  border: 0; border-radius: 10px; cursor: pointer;
  background: rgb(10 12 15 / 78%); color: inherit;
}
button:hover { background: rgb(10 12 15 / 90%); }
button:focus-visible { outline: 2px solid var(--_accent); outline-offset: 2px; }
button .icon { width: 20px; height: 20px; }
button .icon.alternative, button[aria-pressed="true"] .icon.usual { display: none; }
button[aria-pressed="true"] .icon.alternative { display: block; }

.spoken { position: absolute; width: 1px; height: 1px; margin: -1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
@media (prefers-reduced-motion: reduce) {
  .spinner { animation-duration: 3s; }
  .overlay, .toolbar { transition: none; }
}
`;
