// One message of the thread. `update` rebuilds what is around the words; `grow` only touches the words and is what runs
// while an answer streams.

import { copyWithMark, growWithText, h, icon, iconButton } from "./dom.js";
import { errorCard, lengthNotice } from "./problems.js";
import { renderMarkdown } from "./markdown.js";
import { formatSeconds, progressText, statsView } from "./stats.js";
import { TokenView } from "./tokens.js";

export class MessageView {
  /** actions: {copy, edit, regenerate, remove, select, siblings, isRunning, curl, askKey, inside, insideView, ...} of thread.js */
  constructor(node, actions) {
    this.node = node;
    this.actions = actions;
    this.words = h("div", { class: node.role === "user" ? "bubble" : "prose", dir: "auto" });
    this.foot = h("div", { class: "message-foot" });
    this.above = h("div", { class: "message-above" });
    this.below = h("div", { class: "message-below" });
    const label = node.role === "user" ? "Your message" : "Answer";
    this.el = h(
      "article",
      { class: `message ${node.role}`, "aria-label": label, dataset: { id: node.id } },
      this.above,
      this.words,
      this.below,
      this.foot,
    );
    this.thought = null;
    this.tokens = null;
    this.later = false; // thread.js: render the Markdown when there is time
  }

  update() {
    const { node, actions } = this;
    this.running = actions.isRunning(node);
    const { all, index } = actions.siblings(node);
    const state = [
      this.running,
      node.finish,
      node.error?.title,
      Boolean(node.content),
      Boolean(node.usage),
      index,
      all.length,
    ].join();
    if (state === this.state) return; // keeps what is open, and does not read an error out twice
    this.state = state;
    this.el.classList.toggle("running", this.running);
    if (node.role === "user") this.words.textContent = node.content;
    else this.#updateAnswer();
    this.foot.replaceChildren(...this.#footParts());
  }

  #updateAnswer() {
    const { node, actions } = this;
    this.below.replaceChildren();
    if (node.error)
      this.below.append(
        errorCard(node.error, { retry: () => actions.regenerate(node), askKey: () => actions.askKey(node) }),
      );
    else if (node.finish === "length") this.below.append(lengthNotice(node));
    else if (node.finish === "stopped") this.below.append(h("p", { class: "aside-note" }, "Stopped."));
    else if (!node.finish && !this.running)
      this.below.append(
        h("p", { class: "aside-note" }, "Interrupted: the page was closed while this answer was arriving."),
      );
    this.grow();
  }

  /** Show the words there are now. */
  grow() {
    const { node } = this;
    this.#growThought();
    this.#growSwitch();
    this.#growWait();
    if (this.running) this.foot.textContent = progressText(this.actions.progress(node));
    if (this.showsTokens) {
      if (this.tokens.length !== node.inside)
        this.actions.tokens(node).then((record) => record && this.tokens.show(record));
    } else if (this.later) {
      this.words.textContent = node.content; // found by the browser's search, until it is this answer's turn
    } else if (this.shown !== node.content) {
      this.shown = node.content;
      renderMarkdown(this.words, node.content);
    }
  }

  /** Before the first word: a pulse, and after some seconds how long it has been (a long prompt takes its time). */
  #growWait() {
    const { node } = this;
    const waiting = this.running && !node.content && !node.reasoning;
    this.el.classList.toggle("waiting", waiting);
    if (!waiting || this.ticking) return;
    const began = performance.now();
    const tick = () => {
      const still = this.el.classList.contains("waiting") && this.el.isConnected;
      const seconds = Math.round((performance.now() - began) / 1000);
      this.words.dataset.wait = still && seconds >= 3 ? `waiting for the first token, ${seconds} s` : "";
      if (!still) clearInterval(this.ticking);
    };
    this.ticking = setInterval(tick, 1000);
  }

  #growThought() {
    const { node } = this;
    if (!node.reasoning) return;
    if (!this.thought) {
      this.thoughtTitle = h("span", { class: "thought-title" });
      this.thoughtWords = h("div", { class: "prose thought-words" });
      this.thought = h(
        "details",
        { class: "thought", ontoggle: () => this.grow() },
        h("summary", {}, icon("thought"), this.thoughtTitle),
        this.thoughtWords,
      );
      this.above.append(this.thought);
    }
    const busy = this.running && !node.content;
    this.thought.classList.toggle("busy", busy);
    const time = Number.isFinite(node.thoughtMs) ? ` for ${formatSeconds(node.thoughtMs / 1000)}` : "";
    this.thoughtTitle.textContent = busy ? "Thinking…" : `Thought${time}`;
    if (this.thought.open && this.thoughtShown !== node.reasoning) {
      this.thoughtShown = node.reasoning;
      renderMarkdown(this.thoughtWords, node.reasoning);
    }
  }

  /** Text | Tokens, for answers whose tokens were recorded. */
  #growSwitch() {
    const { node, actions } = this;
    if (!node.inside || this.switch) return;
    const choose = (view) => {
      actions.setInsideView(view);
      this.showView(view);
    };
    const option = (view, label) =>
      h("button", { type: "button", onclick: () => choose(view), dataset: { view } }, label);
    const look = h(
      "button",
      { type: "button", class: "quiet-button", onclick: () => actions.openInside(node) },
      icon("inside"),
      "Inside",
    );
    this.switch = h(
      "div",
      { class: "view-row" },
      h(
        "div",
        { class: "segmented", role: "group", "aria-label": "Show the answer as" },
        option("text", "Text"),
        option("tokens", "Tokens"),
      ),
      look,
      h("span", { class: "draft-key" }, h("span", { class: "draft-sample" }, "draft"), " accepted"),
    );
    this.above.append(this.switch);
    this.showView(actions.insideView());
  }

  get showsTokens() {
    return this.tokens !== null && !this.tokens.el.hidden;
  }

  showView(view) {
    for (const button of this.switch.querySelectorAll("[data-view]"))
      button.setAttribute("aria-pressed", String(button.dataset.view === view));
    if (view === "tokens" && !this.tokens) {
      this.tokens = new TokenView((t, pinned) => this.actions.selectToken(this.node, t, pinned));
      this.words.after(this.tokens.el);
    }
    if (this.tokens) this.tokens.el.hidden = view !== "tokens";
    this.words.hidden = view === "tokens";
    if (this.thought) this.thought.hidden = view === "tokens"; // its tokens are in the list
    this.grow();
  }

  #footParts() {
    const { node, actions } = this;
    if (this.running) return [progressText(actions.progress(node))];
    const answer = node.role === "assistant";
    const copy = iconButton("copy", answer ? "Copy answer" : "Copy message", () => copyWithMark(copy, node.content));
    const buttons = [
      this.#branches(),
      node.content ? copy : null,
      answer
        ? iconButton("retry", "Regenerate", () => actions.regenerate(node))
        : iconButton("edit", "Edit and branch", () => this.edit()),
      iconButton("trash", "Delete from here on", () => actions.remove(node)),
    ];
    const tools = h("div", { class: "message-tools" }, buttons);
    return answer ? [statsView(node, () => actions.curl(node)), tools].filter(Boolean) : [tools];
  }

  #branches() {
    const { all, index } = this.actions.siblings(this.node);
    if (all.length < 2) return null;
    const step = (by) => this.actions.select(all[index + by]);
    return h(
      "span",
      { class: "branches", role: "group", "aria-label": `Version ${index + 1} of ${all.length}` },
      iconButton("left", "Previous version", () => step(-1), { disabled: index === 0 }),
      h("span", { class: "branch-count" }, `${index + 1}/${all.length}`),
      iconButton("right", "Next version", () => step(1), { disabled: index === all.length - 1 }),
    );
  }

  /** Turn the question into a text field. */
  edit() {
    if (this.el.classList.contains("editing")) return;
    const area = h("textarea", { class: "edit-area", "aria-label": "Edit your message", rows: "1" });
    area.value = this.node.content;
    const close = () => {
      this.el.classList.remove("editing");
      form.remove();
      this.words.hidden = this.foot.hidden = false;
    };
    const submit = (event) => {
      event?.preventDefault();
      if (!area.value.trim()) return;
      if (this.actions.edit(this.node, area.value)) close();
    };
    const form = h(
      "form",
      { class: "edit-form", onsubmit: submit },
      area,
      h(
        "div",
        { class: "form-row" },
        h("button", { type: "button", class: "button", onclick: close }, "Cancel"),
        h("button", { type: "submit", class: "button primary" }, "Send as new branch"),
      ),
    );
    area.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) submit(event);
    });
    this.el.classList.add("editing");
    this.words.hidden = this.foot.hidden = true;
    this.words.after(form);
    growWithText(area);
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }
}
