// The page "/stats": the live figures of every camera, once a second.

import { h, setText } from "../dom.ts";
import { bitrate, count, frameRate, milliseconds, packetRate, resolution, share } from "../format.ts";
import { asSentence, blame } from "../messages.ts";
import { Api, type StatsEntry } from "./api.ts";
import { badge } from "./badge.ts";
import { Poll } from "./poll.ts";
import { Banner, base, header, storedToken, TokenDialog } from "./shell.ts";
import { type Column, sorted, totals } from "./table.ts";

const REFRESH = 1_000;

/** Column, heading, value, and whether it is a number. */
const COLUMNS: readonly [Column, string, (entry: StatsEntry) => string, boolean][] = [
  ["camera", "Camera", (e) => e.camera, false],
  ["node", "Node", (e) => e.node || "–", false],
  ["state", "State", (e) => badge("idle", e.state).text, false],
  ["bitrateBps", "Bit rate", (e) => bitrate(e.bitrateBps), true],
  ["packetsPerSecond", "Packets", (e) => packetRate(e.packetsPerSecond), true],
  ["framesPerSecond", "Frames", (e) => frameRate(e.framesPerSecond), true],
  ["width", "Resolution", (e) => resolution(e.width, e.height), true],
  ["viewers", "Viewers", (e) => count(e.viewers), true],
  ["packets", "Packets received", (e) => count(e.packets), true],
  ["packetsLost", "Lost", (e) => count(e.packetsLost), true],
  ["loss", "Loss", (e) => (e.state === "live" ? share(e.loss) : "–"), true],
  ["jitterMs", "Jitter", (e) => (e.state === "live" ? milliseconds(e.jitterMs) : "–"), true],
  ["verdict", "Verdict", verdict, false],
];

/** On this page "your network" is that of most viewers. */
function verdict({ verdict, viewers }: StatsEntry): string {
  if (verdict === "") return "–";
  return verdict === "viewer_network"
    ? viewers === 1
      ? "Viewer's network"
      : "Viewers' networks"
    : blame(verdict);
}

class StatsPage {
  readonly #api = new Api(base);
  readonly #banner = new Banner();
  readonly #updated = h("p", { className: "summary" });
  readonly #body = h("tbody");
  readonly #foot = h("tr");
  readonly #headings = new Map<Column, HTMLTableCellElement>();
  readonly #rows = new Map<string, HTMLTableRowElement>();
  readonly #dialog = new TokenDialog((token) => {
    this.#api.token = token;
    storedToken.set(token);
    this.#poll.now();
  });
  readonly #poll = new Poll({ ask: () => this.#ask(), interval: REFRESH });
  readonly #nothing = h("p", { className: "nothing", hidden: true }, "No cameras yet.");
  #entries: StatsEntry[] = [];
  #sort: { column: Column; descending: boolean } = { column: "camera", descending: false };

  constructor() {
    this.#api.token = storedToken.get();
    const headings = h("tr");
    for (const [column, name, , numeric] of COLUMNS) {
      const sort = h("button", { type: "button" }, name);
      sort.addEventListener("click", () => this.#sortBy(column, numeric));
      const heading = h("th", { scope: "col", className: numeric ? "number" : "" }, sort);
      this.#headings.set(column, heading);
      headings.append(heading);
    }
    const table = h(
      "table",
      {},
      h("caption", {}, "Live figures of every camera, as its media node sees them"),
      h("thead", {}, headings),
      this.#body,
      h("tfoot", {}, this.#foot),
    );
    document.body.append(
      header("stats", this.#updated),
      this.#banner.element,
      h(
        "main",
        {},
        // Wider than a phone: the table scrolls, the page does not.
        h(
          "div",
          { className: "sheet", tabIndex: 0, attributes: { role: "region", "aria-label": "Figures" } },
          table,
        ),
        this.#nothing,
      ),
      this.#dialog.element,
    );
    this.#showSort();
  }

  start(): void {
    this.#poll.start();
  }

  async #ask(): Promise<boolean> {
    const outcome = await this.#api.stats();
    switch (outcome.kind) {
      case "ok":
        this.#entries = outcome.value;
        this.#show();
        break;
      case "unauthorized":
        this.#banner.hide();
        this.#dialog.open(this.#api.token === "" ? "" : outcome.message);
        return false;
      case "failed":
        this.#banner.show(`${outcome.message} Trying again…`);
        return false;
    }
    this.#banner.hide();
    return true;
  }

  #sortBy(column: Column, numeric: boolean): void {
    const same = this.#sort.column === column;
    // The greatest figures are what one looks for first.
    this.#sort = { column, descending: same ? !this.#sort.descending : numeric };
    this.#showSort();
    this.#show();
  }

  #showSort(): void {
    for (const [column, heading] of this.#headings) {
      if (column !== this.#sort.column) heading.removeAttribute("aria-sort");
      else heading.setAttribute("aria-sort", this.#sort.descending ? "descending" : "ascending");
    }
  }

  #show(): void {
    const entries = sorted(this.#entries, this.#sort.column, this.#sort.descending);
    const present = new Set(entries.map(({ camera }) => camera));
    for (const [camera, row] of this.#rows) {
      if (present.has(camera)) continue;
      row.remove();
      this.#rows.delete(camera);
    }
    for (const [index, entry] of entries.entries()) {
      const row = this.#row(entry.camera);
      if (this.#body.children[index] !== row)
        this.#body.insertBefore(row, this.#body.children[index] ?? null);
      row.dataset.tone = badge("idle", entry.state).tone;
      for (const [cell, [, , value]] of COLUMNS.entries()) {
        const text = row.children[cell]?.querySelector(".value");
        if (text) setText(text, value(entry));
      }
      const why = row.querySelector<HTMLElement>("td.verdict");
      if (why) why.title = asSentence(entry.verdictMessage);
    }
    this.#nothing.hidden = entries.length > 0;
    this.#showTotals(entries);
  }

  #row(camera: string): HTMLTableRowElement {
    const existing = this.#rows.get(camera);
    if (existing) return existing;
    const row = h("tr");
    for (const [column, , , numeric] of COLUMNS) {
      const value = h("span", { className: "value" });
      if (column === "camera") row.append(h("th", { scope: "row" }, value));
      else if (column === "state")
        row.append(h("td", {}, h("span", { className: "badge" }, h("i", { className: "dot" }), value)));
      else if (column === "verdict") row.append(h("td", { className: "verdict" }, value));
      else row.append(h("td", { className: numeric ? "number" : "" }, value));
    }
    this.#rows.set(camera, row);
    return row;
  }

  #showTotals(entries: readonly StatsEntry[]): void {
    const sum = totals(entries);
    const cells = [
      sum.cameras === 1 ? "1 camera" : `${count(sum.cameras)} cameras`,
      sum.nodes === 1 ? "1 node" : `${count(sum.nodes)} nodes`,
      `${count(sum.live)} live`,
      bitrate(sum.bitrateBps),
      packetRate(sum.packetsPerSecond),
      "",
      "",
      count(sum.viewers),
      count(sum.packets),
      count(sum.packetsLost),
      "",
      "",
      sum.blamed === 0 ? "" : `${count(sum.blamed)} with a verdict`,
    ];
    if (this.#foot.children.length === 0) {
      for (const [index, [, , , numeric]] of COLUMNS.entries()) {
        this.#foot.append(
          index === 0 ? h("th", { scope: "row" }) : h("td", { className: numeric ? "number" : "" }),
        );
      }
    }
    for (const [index, text] of cells.entries()) {
      const cell = this.#foot.children[index];
      if (cell) setText(cell, text);
    }
    setText(this.#updated, entries.length === 0 ? "" : `${cells[2]} · ${cells[3]}`);
  }
}

new StatsPage().start();
