// The panel "inside": for the selected token, the experts it chose in every MoE layer; for the answer, how the work was
// spread over the experts. Pointing at an expert tells its load; clicking it tints the tokens it worked on.

import { $, h, iconButton } from "./dom.js";
import { HeatMap } from "./heatmap.js";
import { choices, expertCount, insideJson, loadOf, tokensOf } from "./inside_data.js";
import { gradient } from "./palette.js";
import { formatCount, percent } from "./stats.js";
import { download } from "./transfer.js";

const quoted = (text) => (text === "" ? "(no text yet)" : `“${text.replaceAll("\n", "↵")}”`);

export class InsidePanel {
  /** onSelect(node, t): the thread marks the token; onExpert(node, tokens): the thread tints them */
  constructor({ chat, onSelect, onExpert }) {
    Object.assign(this, { chat, onSelect, onExpert });
    this.node = null;
    this.record = null;
    this.token = -1;
    this.pinned = null; // {l, e}
    this.loadedAt = -1;
    this.turn = 0;
    this.tokenMap = new HeatMap($("#token-map"), { onPoint: (l, e) => this.#readToken(l, e) });
    this.loadMap = new HeatMap($("#load-map"), { bars: true, onPoint: (l, e, kind) => this.#readLoad(l, e, kind) });
    $("#token-nav").append(
      iconButton("left", "Previous token", () => this.#step(-1)),
      iconButton("right", "Next token", () => this.#step(1)),
    );
    $("#inside-save").addEventListener("click", () =>
      download(`fathom-inside-${this.node.id}.json`, insideJson(this.record, chat.model)),
    );
    document.addEventListener("themechange", () => this.record && this.#legend());
  }

  /** Show an answer; t: which token (default: keep, or the first). */
  async show(node, t = null) {
    const turn = ++this.turn;
    const known = this.node === node && this.record?.texts.length === node?.inside; // hovering must not read from disk
    const record = known ? this.record : node ? await this.chat.inside(node) : null;
    if (turn !== this.turn) return;
    const changed = this.node !== node;
    this.node = node;
    this.record = record;
    $("#inside-empty").hidden = record !== null;
    $("#inside-body").hidden = record === null;
    if (!record) {
      $("#inside-empty").textContent = node?.inside
        ? "The expert record of this answer is not stored: records do not travel with imports and undone deletions, and they go first when the browser's storage is full."
        : "Switch on “Inside” below the message field and ask something. For each token of the answer, this panel then shows which experts worked on it.";
      return;
    }
    if (changed) this.pinned = this.loadMap.pinned = null;
    if (changed || this.loadedAt !== record.texts.length) this.#showLoad();
    const token = t ?? (changed || this.token < 0 ? 0 : this.token);
    this.#showToken(Math.min(token, record.texts.length - 1));
  }

  /** More tokens came for the shown answer. Every 400 ms is often enough for the load. */
  grow(node) {
    if (this.node?.id !== node.id && (this.node !== null || !node.inside)) return;
    if (this.waiting) return;
    this.waiting = true;
    setTimeout(() => {
      this.waiting = false;
      this.show(node);
    }, 400);
  }

  #step(by) {
    const to = Math.min(this.record.texts.length - 1, Math.max(0, this.token + by));
    this.#showToken(to);
    this.onSelect(this.node, to);
  }

  // ---- one token ----

  #showToken(t) {
    const { record } = this;
    this.token = t;
    if (t < 0) return;
    const chosen = choices(record, t);
    const sets = chosen.map((list) => new Set(list));
    const experts = expertCount(record, this.chat.model);
    $("#token-name").textContent = quoted(record.texts[t]);
    const draft = record.drafted[t] === 1 ? "an accepted draft" : "from the main model";
    $("#token-facts").textContent =
      `token ${formatCount(t + 1)} of ${formatCount(record.texts.length)}, id ${record.ids[t]}, ${draft}`;
    const none = chosen.every((list) => list.length === 0);
    this.tokenMap.show({ layers: record.layers, experts, value: null, chosen: (l, e) => sets[l].has(e) });
    this.tokenMap.canvas.setAttribute(
      "aria-label",
      `Experts chosen for token ${quoted(record.texts[t])}: ${none ? "no record" : `${record.k} in each of ${record.layers} MoE layers`}; listed as text below`,
    );
    $("#token-list").replaceChildren(
      ...chosen.map((list, l) =>
        h("div", {}, h("dt", {}, `layer ${l}`), h("dd", {}, list.length ? list.join(", ") : "none")),
      ),
    );
    this.#readToken(null, null);
  }

  #readToken(l, e) {
    if (!this.record) return;
    const text =
      l === null
        ? "Rows: MoE layers. Columns: experts."
        : `MoE layer ${l}, expert ${e}${choices(this.record, this.token)[l].includes(e) ? ": chosen" : ""}. This token chose ${choices(this.record, this.token)[l].join(", ") || "none"}.`;
    $("#token-readout").textContent = text;
  }

  // ---- the whole answer ----

  #showLoad() {
    const { record } = this;
    const experts = expertCount(record, this.chat.model);
    this.load = loadOf(record, experts);
    this.loadedAt = record.texts.length;
    const { counts, mean, ratio, peak, layers, idle } = this.load;
    const value = (l, e) => {
      const n = counts[l * experts + e];
      return n === 0 ? null : Math.sqrt(n / mean[l] / peak);
    };
    this.loadMap.show({ layers, experts, value, ratio });
    const sorted = [...ratio].sort((a, b) => a - b);
    const worst = ratio.indexOf(sorted.at(-1));
    const drafted = record.drafted.reduce((a, b) => a + b, 0);
    const total = record.texts.length;
    const facts = [
      ["tokens", formatCount(total)],
      ["from accepted drafts", `${formatCount(drafted)} (${percent(drafted, total)})`],
      ["MoE layers × experts", `${layers} × ${experts}, ${record.k} per token`],
      ["max/mean load, worst layer", layers ? `${sorted.at(-1).toFixed(2)} (layer ${worst})` : "none"],
      ["max/mean load, median layer", layers ? sorted[Math.floor(layers / 2)].toFixed(2) : "none"],
      [
        "never chosen",
        `${percent(
          idle.reduce((a, b) => a + b, 0),
          layers * experts || 1,
        )} of the experts`,
      ],
    ];
    $("#inside-facts").replaceChildren(
      ...facts.map(([name, text]) => h("div", {}, h("dt", {}, name), h("dd", {}, text))),
    );
    this.loadMap.canvas.setAttribute(
      "aria-label",
      `Load of ${experts} experts in ${layers} MoE layers over ${total} tokens. ${facts[3][0]}: ${facts[3][1]}. Arrow keys move, Enter marks the tokens of an expert.`,
    );
    this.#legend();
    this.#readLoad(null, null, "leave");
  }

  #legend() {
    $("#legend-bar").style.background = gradient();
    $("#legend-mean").style.left = `${100 * Math.sqrt(1 / Math.max(1, this.load.peak))}%`;
    $("#legend-max").textContent = `${this.load.peak.toFixed(1)} × mean`;
  }

  #readLoad(l, e, kind) {
    if (!this.record) return;
    if (kind === "click") this.#pin(l, e);
    const cell = l === null ? this.pinned : { l, e };
    $("#load-readout").textContent = cell
      ? this.#loadText(cell)
      : "Point at an expert for its load; click it to tint its tokens.";
  }

  #loadText({ l, e }) {
    const n = this.load.counts[l * this.load.experts + e];
    const times = this.load.mean[l] ? (n / this.load.mean[l]).toFixed(2) : "0";
    const words = tokensOf(this.record, l, e)
      .slice(0, 6)
      .map((t) => quoted(this.record.texts[t].trim()));
    const seen = n === 0 ? "no token" : `${formatCount(n)} token${n === 1 ? "" : "s"}, ${times} × mean`;
    return `MoE layer ${l} (max/mean ${this.load.ratio[l].toFixed(2)}), expert ${e}: ${seen}. ${words.join(" ")}${n > 6 ? " …" : ""}`;
  }

  #pin(l, e) {
    const same = this.pinned?.l === l && this.pinned?.e === e;
    this.pinned = this.loadMap.pinned = same ? null : { l, e };
    this.loadMap.draw();
    this.onExpert(this.node, same ? [] : tokensOf(this.record, l, e));
  }
}
