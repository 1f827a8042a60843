// An answer as its tokens: accepted drafts underlined, one token selected (hover, click, arrow keys), the tokens of a
// chosen expert tinted. The list holds one <span> per token and only ever appends while the answer streams.

import { h } from "./dom.js";

export class TokenView {
  /** onSelect(t, pinned): pinned for click and keys, not for hover */
  constructor(onSelect) {
    this.onSelect = onSelect;
    this.selected = -1; // shown now: under the pointer, else the pinned one
    this.pinned = -1;
    this.marked = new Set();
    this.el = h("div", {
      class: "tokens",
      role: "listbox",
      tabIndex: 0,
      "aria-label": "Tokens of the answer; arrow keys select one",
    });
    this.el.addEventListener("pointerover", (event) => this.#hover(event));
    this.el.addEventListener(
      "pointerleave",
      () => this.pinned >= 0 && this.pinned !== this.selected && this.onSelect(this.pinned, false),
    );
    this.el.addEventListener("click", (event) => this.#click(event));
    this.el.addEventListener("keydown", (event) => this.#key(event));
    this.el.addEventListener("focus", () => {
      // by keyboard only: a click says itself which token it means
      if (this.selected < 0 && this.length && this.el.matches(":focus-visible")) this.#pin(0);
    });
  }

  get length() {
    return this.el.children.length;
  }

  /** Appends what came since; needs only {id, texts, drafted} of a record. */
  show(record) {
    const have = this.length;
    const fresh = [];
    for (let t = have; t < record.texts.length; t++) fresh.push(this.#span(record, t));
    this.el.append(...fresh);
  }

  #span(record, t) {
    const text = record.texts[t];
    const drafted = record.drafted[t] === 1;
    const shown = text === "" ? "·" : text.replaceAll("\n", "↵\n");
    const id = `${record.id}-t${t}`;
    return h(
      "span",
      { class: `token${drafted ? " drafted" : ""}${text === "" ? " silent" : ""}`, role: "option", id, dataset: { t } },
      shown,
    );
  }

  select(t) {
    this.el.children[this.selected]?.removeAttribute("aria-selected");
    this.selected = t;
    const span = this.el.children[t];
    span?.setAttribute("aria-selected", "true");
    if (span) this.el.setAttribute("aria-activedescendant", span.id);
    else this.el.removeAttribute("aria-activedescendant");
  }

  mark(tokens) {
    for (const t of this.marked) this.el.children[t]?.classList.remove("routed");
    this.marked = new Set(tokens);
    for (const t of this.marked) this.el.children[t]?.classList.add("routed");
  }

  #indexOf(event) {
    const span = event.target.closest?.(".token");
    return span ? Number(span.dataset.t) : -1;
  }

  #hover(event) {
    const t = this.#indexOf(event);
    const { x, y } = this.clickedAt ?? { x: -9, y: -9 };
    const moved = Math.abs(event.clientX - x) + Math.abs(event.clientY - y) > 2;
    if (t >= 0 && moved && event.pointerType === "mouse") this.onSelect(t, false);
  }

  #click(event) {
    const t = this.#indexOf(event);
    this.clickedAt = { x: event.clientX, y: event.clientY }; // opening the panel moves the words under a resting pointer
    if (t >= 0 && String(getSelection()) === "") this.#pin(t);
  }

  #pin(t) {
    this.pinned = t;
    this.onSelect(t, true);
  }

  #key(event) {
    const last = this.el.children.length - 1;
    const t = {
      ArrowRight: this.selected + 1,
      ArrowLeft: this.selected - 1,
      ArrowDown: this.selected + 10,
      ArrowUp: this.selected - 10,
      Home: 0,
      End: last,
    }[event.key];
    if (t === undefined || last < 0 || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    const to = Math.min(last, Math.max(0, t));
    this.#pin(to);
    this.el.children[to].scrollIntoView({ block: "nearest" });
  }
}
