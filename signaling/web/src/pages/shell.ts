// What the pages have in common: the head of the page, the banner, and the
// viewer's token.

import { h, icon, setText } from "../dom.ts";

/** The gateway's base address: the pages are at its root, wherever a proxy puts that. */
export const base = new URL(".", document.baseURI);

const TOKEN_KEY = "fanlight.token";

/** The token is kept for the tab, not beyond: sessionStorage ends with it. */
export const storedToken = {
  get(): string {
    try {
      return sessionStorage.getItem(TOKEN_KEY) ?? "";
    } catch {
      return "";
    }
  },
  set(token: string): void {
    try {
      if (token === "") sessionStorage.removeItem(TOKEN_KEY);
      else sessionStorage.setItem(TOKEN_KEY, token);
    } catch {
      // Storage is forbidden: the token lasts until the page is left.
    }
  },
};

/** Removes what comes along when a token is copied: spaces, line ends, quotes, "Bearer". */
export function cleanToken(pasted: string): string {
  return pasted
    .trim()
    .replace(/^bearer\s+/i, "")
    .replace(/^["']|["']$/g, "")
    .replace(/\s+/g, "");
}

/** The head of a page: the name, the way to the other page, and what the page adds. */
export function header(page: "wall" | "stats", ...extra: Element[]): HTMLElement {
  const link = (name: string, href: string, current: boolean) =>
    h("a", { href, attributes: current ? { "aria-current": "page" } : {} }, name);
  const mark = icon("M3 18a9 9 0 0 1 18 0z", "M12 18V9", "m12 18-6.4-6.4", "m12 18 6.4-6.4");
  const home = h("a", { className: "brand", href: "./", attributes: { "aria-label": "Fanlight" } });
  home.append(mark, "Fanlight");
  return h(
    "header",
    { className: "head" },
    home,
    h(
      "nav",
      { attributes: { "aria-label": "Pages" } },
      link("Cameras", "./", page === "wall"),
      link("Statistics", "./stats", page === "stats"),
    ),
    ...extra,
  );
}

/** A line across the page that says what is wrong, as long as it is. */
export class Banner {
  readonly element = h("div", { className: "banner", hidden: true, attributes: { role: "status" } });

  show(message: string): void {
    setText(this.element, message);
    this.element.hidden = false;
  }

  hide(): void {
    this.element.hidden = true;
  }
}

/** Asks for a viewer token. */
export class TokenDialog {
  readonly element: HTMLDialogElement;
  readonly #input: HTMLTextAreaElement;
  readonly #error: HTMLElement;
  #onToken: (token: string) => void;

  constructor(onToken: (token: string) => void) {
    this.#onToken = onToken;
    this.#input = h("textarea", {
      id: "token",
      rows: 4,
      spellcheck: false,
      autocomplete: "off",
      required: true,
      placeholder: "eyJhbGciOi…",
      attributes: { autocapitalize: "off", "aria-describedby": "token-help token-error" },
    });
    this.#error = h("p", { className: "error", id: "token-error", attributes: { role: "alert" } });
    const form = h(
      "form",
      { method: "dialog" },
      h("h2", { id: "token-title" }, "Viewer token"),
      h(
        "p",
        { id: "token-help" },
        "This gateway shows its cameras to viewers with a token. Whoever runs it can make one with ",
        h("code", {}, "fanlight token viewer"),
        ". It is kept in this tab only.",
      ),
      h("label", { htmlFor: "token" }, "Token"),
      this.#input,
      this.#error,
      h("button", { type: "submit", className: "primary" }, "Show cameras"),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      const token = cleanToken(this.#input.value);
      if (token === "") return;
      this.#input.value = "";
      this.close();
      this.#onToken(token);
    });
    this.element = h(
      "dialog",
      { className: "token", attributes: { "aria-labelledby": "token-title" } },
      form,
    );
    // Without a token there is nothing behind the dialog to go back to.
    this.element.addEventListener("cancel", (event) => event.preventDefault());
  }

  /** Opens it. The message says why the token before was refused; empty: there was none. */
  open(message: string): void {
    setText(this.#error, message);
    if (!this.element.open) this.element.showModal();
  }

  close(): void {
    if (this.element.open) this.element.close();
  }
}
