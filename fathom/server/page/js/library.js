// All conversations: the list, the live copies, saving, searching. Views subscribe; storage.js does the writing.
// A conversation that is open or being answered has exactly one live object here, so two views never disagree.

import { newConversation } from "./tree.js";

export class Library {
  constructor(storage, notify) {
    this.storage = storage;
    this.notify = notify; // (message) => void, for a person
    this.entries = []; // newest first
    this.live = new Map();
    this.listeners = new Set();
    this.full = false;
    this.isBusy = () => false; // chat.js knows
    this.removed = new Set(); // ids of messages taken out, here or in another tab: a copy that still has them is old
    this.saving = new Map(); // id -> promise: writes of one conversation stay in order
    this.channel = typeof BroadcastChannel === "function" ? new BroadcastChannel("fathom") : null;
    if (this.channel) this.channel.onmessage = ({ data }) => this.#changedElsewhere(data);
  }

  async load() {
    this.entries = (await this.storage.index()).sort((a, b) => b.updated - a.updated);
    this.#emit();
  }

  onChange(listener) {
    this.listeners.add(listener);
  }

  #emit(changedElsewhere = null) {
    for (const listener of this.listeners) listener(changedElsewhere);
  }

  create(system) {
    const conversation = newConversation(system);
    this.live.set(conversation.id, conversation);
    return conversation;
  }

  async get(id) {
    if (!this.live.has(id)) {
      const stored = await this.storage.get(id);
      if (!stored) return null;
      if (!this.live.has(id)) this.live.set(id, stored); // somebody may have loaded it meanwhile
    }
    return this.live.get(id);
  }

  /** Saves and moves to the top. `touch: false` keeps its place (renaming, switching branches, periodic saves).
   *  `removed`, `restored`: ids of messages that were taken out or put back; other tabs do the same. */
  async save(conversation, { touch = true, removed = [], restored = [] } = {}) {
    this.#note(removed, restored);
    if (this.live.get(conversation.id) !== conversation) return; // it was deleted while an answer was still arriving
    if (touch) conversation.updated = Date.now();
    const { id, title, updated, nodes } = conversation;
    const entry = { id, title, updated, count: Object.keys(nodes).length };
    const old = this.entries.find((other) => other.id === id);
    const at = this.entries.findIndex((other) => other.id === id);
    if (at >= 0) this.entries[at] = entry;
    else this.entries.push(entry);
    this.entries.sort((a, b) => b.updated - a.updated);
    if (old?.title !== title || old.updated !== updated) this.#emit(); // the list shows nothing else
    const before = this.saving.get(id) ?? Promise.resolve();
    const write = before.then(() => this.#write(conversation, { id, removed, restored }));
    this.saving.set(id, write);
    await write;
  }

  async #write(conversation, change) {
    try {
      await this.storage.put(conversation);
      this.full = false;
      this.channel?.postMessage(change);
    } catch (error) {
      if (this.full) return; // said once
      this.full = true;
      const why =
        error?.name === "QuotaExceededError"
          ? "The browser's storage is full"
          : `The browser could not store it (${error?.message ?? error})`;
      this.notify(`${why}: this conversation lives only in this tab. Export it, or delete old ones.`);
    }
  }

  async rename(id, title) {
    const conversation = await this.get(id);
    if (!conversation || !title.trim()) return;
    conversation.title = title.trim().slice(0, 200);
    conversation.named = true;
    await this.save(conversation, { touch: false });
  }

  /** Returns the conversation, for undo. Its expert records go with it. */
  async remove(id) {
    const conversation = await this.get(id);
    if (!conversation) return null;
    this.live.delete(id);
    this.entries = this.entries.filter((entry) => entry.id !== id);
    this.#emit();
    await this.saving.get(id);
    await this.storage.remove(conversation).catch(() => {});
    this.channel?.postMessage({ id });
    return conversation;
  }

  async restore(conversation) {
    this.live.set(conversation.id, conversation);
    await this.save(conversation, { touch: false });
  }

  async all() {
    const found = [];
    for (const { id } of this.entries) found.push(await this.get(id));
    return found.filter(Boolean);
  }

  /** [{entry, snippet}] whose title or any message holds every word of the query. `current()` false ends it early. */
  async search(query, current) {
    const words = query.toLowerCase().split(/\s+/).filter(Boolean);
    const found = new Map();
    const visit = (conversation) => {
      if (!current()) return false;
      const texts = [conversation.title, ...Object.values(conversation.nodes).map((node) => node.content)];
      const lower = texts.map((text) => text.toLowerCase());
      if (!words.every((word) => lower.some((text) => text.includes(word)))) return true;
      const at = lower.findIndex((text, i) => i > 0 && text.includes(words[0]));
      found.set(conversation.id, at < 0 ? "" : snippet(texts[at], lower[at].indexOf(words[0])));
      return true;
    };
    await this.storage.scan((stored) => visit(this.live.get(stored.id) ?? stored));
    return this.entries
      .filter((entry) => found.has(entry.id))
      .map((entry) => ({ entry, snippet: found.get(entry.id) }));
  }

  #note(removed, restored) {
    for (const id of removed) this.removed.add(id);
    for (const id of restored) this.removed.delete(id);
  }

  /** Another tab wrote or deleted a conversation. What both have said is kept: messages have ids of their own. */
  async #changedElsewhere({ id, removed = [], restored = [] }) {
    this.#note(removed, restored);
    const live = this.live.get(id);
    const stored = live && (await this.storage.get(id));
    if (!stored) this.live.delete(id);
    else if (merge(live, stored, this.removed) && !this.isBusy(id)) this.save(live, { touch: false }); // it wrote over them
    this.entries = (await this.storage.index()).sort((a, b) => b.updated - a.updated);
    this.#emit(id);
  }
}

/** Takes over into `live` what another tab has stored or removed. Returns whether `live` has messages that it lacks. */
function merge(live, stored, removed) {
  for (const id of Object.keys(live.nodes)) if (removed.has(id)) delete live.nodes[id];
  for (const [id, node] of Object.entries(stored.nodes)) {
    if (removed.has(id)) continue;
    const mine = live.nodes[id];
    const newer = mine && (mine.content.length < node.content.length || (node.finish && !mine.finish));
    if (!mine || newer) live.nodes[id] = node;
  }
  const { title, named, system, updated, selected } = stored;
  const shown = Object.entries(live.selected).filter(([, child]) => live.nodes[child]); // the branches looked at here
  Object.assign(live, { title, named, system, updated: Math.max(updated, live.updated) });
  live.selected = { ...selected, ...Object.fromEntries(shown) };
  return Object.keys(live.nodes).some((id) => !stored.nodes[id]);
}

function snippet(text, at) {
  const from = Math.max(0, at - 24);
  return (from ? "…" : "") + text.slice(from, at + 90).replace(/\s+/g, " ");
}
