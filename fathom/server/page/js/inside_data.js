// What the engine reports about each generated token, and what follows from it. No drawing here.
//   record = {id (message), layers L, k, texts [T], ids Int32 [T], drafted Uint8 [T], experts Uint16 [T, L, k]}
// Packed in typed arrays: 2,000 tokens of DeepSeek-V3 (58 MoE layers, 8 experts each) are 1.9 MB instead of 40.

export const NONE = 0xffff; // a token without a record (nothing was routed for it, or the server sent none)

/** Grows while an answer streams; `record` is a snapshot to draw or to store. */
export class InsideRecorder {
  constructor(id) {
    this.id = id;
    this.texts = [];
    this.ids = [];
    this.drafted = [];
    this.rows = []; // per token: [L][k] or null
    this.layers = 0;
    this.k = 0;
    this.packed = null;
  }

  push(tokens) {
    for (const token of tokens) {
      this.texts.push(String(token.text ?? ""));
      this.ids.push(Number(token.id) || 0);
      this.drafted.push(token.drafted ? 1 : 0);
      const experts = Array.isArray(token.experts) ? token.experts : null;
      this.rows.push(experts);
      if (experts) {
        this.layers = Math.max(this.layers, experts.length);
        for (const chosen of experts) this.k = Math.max(this.k, chosen.length);
      }
    }
    this.packed = null;
  }

  get length() {
    return this.texts.length;
  }

  get record() {
    return (this.packed ??= this.#pack());
  }

  #pack() {
    const { layers, k, rows } = this;
    const experts = new Uint16Array(rows.length * layers * k).fill(NONE);
    rows.forEach((row, t) =>
      row?.forEach((chosen, l) => chosen.forEach((e, i) => (experts[(t * layers + l) * k + i] = e))),
    );
    return {
      id: this.id,
      layers,
      k,
      texts: [...this.texts],
      ids: Int32Array.from(this.ids),
      drafted: Uint8Array.from(this.drafted),
      experts,
    };
  }
}

/** How many experts there are: the model says; a record from another model may know of more. */
export function expertCount(record, model) {
  let highest = -1;
  for (const e of record.experts) if (e !== NONE && e > highest) highest = e;
  return Math.max(model?.experts ?? 0, highest + 1);
}

/** [L][k] expert numbers of token t. */
export function choices(record, t) {
  const { layers, k, experts } = record;
  return Array.from({ length: layers }, (_, l) => {
    const at = (t * layers + l) * k;
    return [...experts.subarray(at, at + k)].filter((e) => e !== NONE);
  });
}

/**
 * Load of each expert over the answer.
 * counts [L * E]: tokens that chose it; mean [L]: tokens * k / E, what a perfectly even router would give;
 * ratio [L]: max / mean, the report's measure of imbalance; idle [L]: experts never chosen.
 */
export function loadOf(record, experts) {
  const { layers, k } = record;
  const counts = new Uint32Array(layers * experts);
  const total = new Uint32Array(layers);
  for (let i = 0; i < record.experts.length; i++) {
    const e = record.experts[i];
    if (e === NONE) continue;
    const layer = Math.floor(i / k) % layers;
    counts[layer * experts + e] += 1;
    total[layer] += 1;
  }
  const rows = Array.from({ length: layers }, (_, l) => counts.subarray(l * experts, (l + 1) * experts));
  const mean = Array.from(total, (n) => n / experts);
  const most = rows.map((row) => row.reduce((a, b) => Math.max(a, b), 0));
  const ratio = most.map((m, l) => (mean[l] ? m / mean[l] : 0));
  const idle = rows.map((row) => row.reduce((n, c) => n + (c === 0 ? 1 : 0), 0));
  const peak = Math.max(0, ...most.map((m, l) => (mean[l] ? m / mean[l] : 0)));
  return { counts, mean, ratio, idle, peak, layers, experts };
}

/** The tokens that expert e of layer l worked on. */
export function tokensOf(record, l, e) {
  const { layers, k, experts, texts } = record;
  const found = [];
  for (let t = 0; t < texts.length; t++) {
    const at = (t * layers + l) * k;
    for (let i = at; i < at + k; i++) if (experts[i] === e) found.push(t);
  }
  return found;
}

/** Plain JSON for download: everything the page knows about one answer. */
export function insideJson(record, model) {
  const tokens = record.texts.map((text, t) => ({
    id: record.ids[t],
    text,
    drafted: record.drafted[t] === 1,
    experts: choices(record, t),
  }));
  return JSON.stringify({
    fathom: "inside",
    version: 1,
    model: model?.id ?? null,
    moe_layers: record.layers,
    experts: expertCount(record, model),
    tokens,
  });
}
