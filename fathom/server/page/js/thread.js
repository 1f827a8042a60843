// The shown path of the conversation as a column of messages; keeps the newest words in sight while they come, unless
// the reader scrolled up.

import { $, h } from "./dom.js";
import { MessageView } from "./message.js";
import { path } from "./tree.js";
import { formatCount } from "./stats.js";

const AT_ONCE = 8; // messages rendered before the first paint of a conversation
const idle = globalThis.requestIdleCallback ?? ((f) => setTimeout(f, 8));
const NEAR = 80; // px from the bottom that count as "at the bottom"
const STARTERS = [
  // for models whose card suggests nothing
  "What is the capital of France?",
  "Explain in simple words why the sky is blue.",
  "Write a short story about a lighthouse.",
  "Give me five ideas for a rainy day.",
];

export class Thread {
  constructor({ chat, actions }) {
    this.chat = chat;
    this.actions = actions;
    this.scroller = $("#thread");
    this.column = $("#messages");
    this.empty = $("#empty");
    this.jump = $("#jump");
    this.views = new Map();
    this.conversationId = null;
    this.following = true;
    this.nextGrow = 0;
    this.growing = false;
    this.scroller.addEventListener("scroll", () => this.#scrolled(), { passive: true });
    this.jump.addEventListener("click", () => this.toBottom());
    new ResizeObserver(() => this.following && this.toBottom()).observe(this.column);
    chat.on("structure", () => this.render());
    chat.on("delta", (node) => this.grow(node));
  }

  render() {
    const { conversation } = this.chat;
    if (conversation.id !== this.conversationId) {
      this.conversationId = conversation.id;
      this.views.clear();
      this.following = true;
    }
    const nodes = path(conversation);
    const views = nodes.map((node) => this.#viewOf(node));
    const elements = views.map((view) => view.el);
    const same =
      elements.length === this.column.children.length && elements.every((el, i) => el === this.column.children[i]);
    if (!same) this.column.replaceChildren(...elements);
    this.#postpone(views);
    for (const view of views) view.update();
    this.empty.hidden = nodes.length > 0;
    if (!nodes.length) this.#renderEmpty();
    if (this.chat.run) this.following = true;
    if (this.following) this.toBottom();
  }

  /** Opening a long conversation shows its end at once; Markdown and formulas above it follow in idle time, upwards. */
  #postpone(views) {
    const waiting = views
      .slice(0, -AT_ONCE)
      .filter((view) => view.node.role === "assistant" && view.state === undefined);
    for (const view of waiting) view.later = true;
    const next = () => {
      const view = waiting.pop();
      if (!view?.el.isConnected) return;
      view.later = false;
      view.words.replaceChildren(); // the plain text that stood in for it
      view.grow();
      idle(next);
    };
    if (waiting.length) idle(next);
  }

  #viewOf(node) {
    let view = this.views.get(node.id);
    if (view?.node !== node) {
      view = new MessageView(node, this.actions);
      this.views.set(node.id, view);
    }
    return view;
  }

  view(node) {
    return this.views.get(node.id);
  }

  /** Long answers cost more to render; the pause between two renderings grows with it, so typing stays smooth. */
  grow(node) {
    if (this.growing) return;
    this.growing = true;
    setTimeout(
      () =>
        requestAnimationFrame(() => {
          this.growing = false;
          const start = performance.now();
          this.views.get(node.id)?.grow();
          const cost = performance.now() - start;
          this.nextGrow = start + Math.max(30, 5 * cost);
        }),
      Math.max(0, this.nextGrow - performance.now()),
    );
  }

  toBottom() {
    this.following = true;
    this.scroller.scrollTop = this.scroller.scrollHeight;
    this.jump.hidden = true;
  }

  #scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this.scroller;
    this.following = scrollHeight - scrollTop - clientHeight < NEAR;
    this.jump.hidden = this.following;
  }

  /** An empty conversation shows what it will be talking to, and what can be said to it. */
  #renderEmpty() {
    const { model, modelProblem } = this.chat;
    $("#empty-title").textContent = model ? `What shall ${model.id} say?` : (modelProblem ?? "Looking for the model…");
    $("#starters").replaceChildren(
      ...starters(model).map((text) =>
        h("li", {}, h("button", { type: "button", onclick: () => this.actions.start(text) }, text)),
      ),
    );
    $("#empty-facts").replaceChildren(
      ...modelFacts(model).map(([value, name]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    );
  }
}

/** What the model's card suggests, else a set of our own; nothing while there is no model. */
function starters(model) {
  if (!model) return [];
  return model.starters?.length ? model.starters : STARTERS;
}

/** [[value, name]] of what /v1/models tells about the model. */
export function modelFacts(model) {
  if (!model) return [];
  const facts = [];
  if (model.max_model_len) facts.push([`${formatCount(model.max_model_len)} tokens`, "context"]);
  if (model.moe_layers) facts.push([`${model.moe_layers} × ${model.experts}`, "MoE layers × experts"]);
  if (model.experts_per_token) facts.push([String(model.experts_per_token), "experts per token"]);
  if (model.mtp_depth !== undefined) facts.push([model.mtp_depth ? String(model.mtp_depth) : "none", "MTP depth"]);
  if (model.dtype) facts.push([model.dtype, "weights"]);
  return facts;
}
