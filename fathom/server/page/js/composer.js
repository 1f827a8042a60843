// Where the question is written. Enter sends, Shift+Enter breaks the line, arrow up in an empty field edits the last
// question. On a touch screen, which has no Shift+Enter, Enter breaks the line and the button sends. The unsent text of
// each conversation is kept while the tab lives.

import { $, growWithText } from "./dom.js";
import { drafts } from "./prefs.js";
import { formatCount, percent, ring } from "./stats.js";
import { path } from "./tree.js";

/** Conversations without a message share one draft: each of them has a new id, and none an address. */
const draftKey = (conversation) => (Object.keys(conversation.nodes).length ? conversation.id : "new");

export class Composer {
  constructor({ chat, settings, onEditLast }) {
    this.chat = chat;
    this.settings = settings;
    this.area = $("#prompt");
    this.button = $("#send");
    this.onEditLast = onEditLast;
    this.conversationId = null;
    growWithText(this.area);
    $("#composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.chat.run ? this.chat.stop() : this.send();
    });
    this.area.addEventListener("input", () => this.#changed());
    this.area.addEventListener("keydown", (event) => this.#key(event));
    for (const name of ["thinking", "inside"]) {
      $(`#toggle-${name}`).addEventListener("click", () => {
        settings.toggle(name);
        this.refresh();
      });
    }
    chat.on("structure", () => this.refresh());
  }

  focus() {
    this.area.focus({ preventScroll: true });
  }

  send() {
    const text = this.area.value.trim();
    if (!text || !this.#ready()) return;
    this.area.value = "";
    this.#changed();
    this.#post(text);
  }

  /** Send a text that is not in the field; what is in it stays, as the draft of the conversation that begins. */
  ask(text) {
    if (!this.#ready()) return;
    const before = draftKey(this.chat.conversation);
    this.#post(text);
    if (draftKey(this.chat.conversation) !== before) drafts.set(before, "");
  }

  #ready() {
    const problem = this.settings.problem();
    if (problem) this.settings.showProblem(problem);
    return !problem && !this.chat.run;
  }

  #post(text) {
    this.chat.send(text, path(this.chat.conversation).at(-1)?.id ?? null);
  }

  #key(event) {
    if (event.isComposing) return;
    const plain = !event.shiftKey && !event.ctrlKey && !event.metaKey && !event.altKey;
    if (event.key === "Enter" && plain && !matchMedia("(pointer: coarse)").matches) {
      event.preventDefault();
      this.send();
    } else if (event.key === "ArrowUp" && this.area.value === "") {
      event.preventDefault();
      this.onEditLast();
    }
  }

  #changed() {
    drafts.set(draftKey(this.chat.conversation), this.area.value);
    this.button.disabled = !this.chat.run && !this.area.value.trim();
  }

  refresh() {
    const { conversation, run, model } = this.chat;
    if (conversation.id !== this.conversationId) {
      this.conversationId = conversation.id;
      this.area.value = drafts.get(draftKey(conversation));
    }
    this.button.classList.toggle("stopping", run !== null);
    this.button.setAttribute("aria-label", run ? "Stop" : "Send");
    this.button.title = run ? "Stop (Esc)" : "Send (Enter)";
    this.area.placeholder = model ? `Message ${model.id}` : "Message";
    this.#chip("thinking", Boolean(model?.thinking));
    this.#chip("inside", Boolean(model?.moe_layers));
    this.#showContext(conversation);
    this.#changed();
  }

  #chip(name, available) {
    const chip = $(`#toggle-${name}`);
    chip.hidden = !available;
    chip.setAttribute("aria-pressed", String(this.settings.on(name)));
  }

  /** How full the context was after the newest answer of the shown path. */
  #showContext(conversation) {
    const own = path(conversation).findLast((node) => node.usage?.fathom)?.usage.fathom;
    const slot = $("#context");
    slot.hidden = !own?.context_limit;
    if (slot.hidden) return;
    const { context_used: used, context_limit: limit } = own;
    slot.replaceChildren(ring(used / limit), `${formatCount(used)} / ${formatCount(limit)}`);
    slot.title = `${percent(used, limit)} of the context is used`;
    slot.classList.toggle("high", used / limit > 0.8);
  }
}
