// Asking and answering. One run per conversation; it goes on when another conversation is opened, and its words land in
// the tree whether or not somebody looks. Views listen to:
//   "structure"  messages came or went, a run began or ended        "delta"  the running answer grew
//
// An answer's node: {content, reasoning, model, params, finish, usage, timing: {firstMs, totalMs, chunks}, thoughtMs,
// error: {kind, title, message, until}, inside: tokens recorded}. `finish`: stop | length | stopped (by the person) | error.

import { ApiError } from "./api.js";
import { InsideRecorder } from "./inside_data.js";
import { addNode, ancestry, removeSubtree, restoreNodes, siblings, titleFrom, toMessages } from "./tree.js";

const UNDO_TIME = 30_000; // ms after which a deleted answer's expert record goes too
const SAVE_EVERY = 1000; // ms while streaming: a crash or reload loses no more than this

export class Chat {
  constructor({ api, library, settings }) {
    this.api = api;
    this.library = library;
    this.settings = settings; // {request(): parameters to send, problem(): string | null}
    this.model = null; // filled by app.js
    this.modelProblem = null; // why it is not there, for a person
    this.conversation = null;
    this.runs = new Map(); // conversation id -> {abort, node, recorder}
    this.recorders = new Map(); // message id -> InsideRecorder, of this session
    this.listeners = { structure: new Set(), delta: new Set(), done: new Set() };
    library.isBusy = (id) => this.runs.has(id);
  }

  on(event, listener) {
    this.listeners[event].add(listener);
  }

  #emit(event, ...details) {
    for (const listener of this.listeners[event]) listener(...details);
  }

  changed() {
    this.#emit("structure");
  }

  get run() {
    return this.conversation ? (this.runs.get(this.conversation.id) ?? null) : null;
  }

  async open(id) {
    const conversation = await this.library.get(id);
    if (!conversation) return false;
    this.conversation = conversation;
    this.#emit("structure");
    return true;
  }

  openNew(system) {
    this.conversation = this.library.create(system);
    this.#emit("structure");
  }

  /** A question below `parent` (null: the first one). */
  send(text, parent) {
    const { conversation } = this;
    if (this.run || !text.trim()) return;
    const node = addNode(conversation, parent, "user", text);
    if (!conversation.title) conversation.title = titleFrom(text);
    this.#answer(conversation, node.id);
  }

  /** Another question instead of this one: a new branch beside it. */
  edit(node, text) {
    this.send(text, node.parent);
  }

  /** Another answer to the same question; one that failed without a word is replaced. */
  regenerate(node) {
    if (this.run) return;
    const { parent } = node;
    if (node.error && !node.content && !node.reasoning) {
      const taken = removeSubtree(this.conversation, node.id);
      this.library.save(this.conversation, { touch: false, removed: taken.map(({ id }) => id) });
    }
    this.#answer(this.conversation, parent);
  }

  select(node) {
    this.conversation.selected[node.parent ?? "root"] = node.id;
    this.library.save(this.conversation, { touch: false });
    this.#emit("structure");
  }

  /** Takes the message and what follows it; returns an undo function. */
  remove(node) {
    const { conversation } = this;
    if (this.run && ancestry(conversation, this.run.node.id).some((above) => above.id === node.id)) this.stop();
    const taken = removeSubtree(conversation, node.id);
    const ids = taken.map(({ id }) => id);
    this.library.save(conversation, { touch: false, removed: ids });
    this.#emit("structure");
    const forget = setTimeout(() => this.library.storage.removeInside(ids).catch(() => {}), UNDO_TIME);
    return () => {
      clearTimeout(forget);
      restoreNodes(conversation, taken);
      this.library.save(conversation, { touch: false, restored: ids });
      this.#emit("structure");
    };
  }

  stop(id = this.conversation?.id) {
    this.runs.get(id)?.abort.abort();
  }

  siblings(node) {
    return siblings(this.conversation, node);
  }

  /** While an answer comes: {tokens, seconds since the first, exact: counted by the engine, not by pieces}, or null. */
  progress(node) {
    const { run } = this;
    if (run?.node !== node || !run.first) return null;
    const seconds = (performance.now() - run.first) / 1000;
    return { tokens: run.recorder?.length ?? node.timing.chunks, seconds, exact: run.recorder !== null };
  }

  /** {id, texts, drafted} of an answer's tokens, without packing a record that is still growing. */
  async tokens(node) {
    return this.recorders.get(node.id) ?? this.inside(node);
  }

  /** The expert record of an answer: the live one, or the stored one, or null. */
  async inside(node) {
    const live = this.recorders.get(node.id);
    if (live) return live.record;
    return (await this.library.storage.getInside(node.id).catch(() => null)) ?? null;
  }

  async #answer(conversation, parent) {
    const params = this.settings.request();
    const messages = toMessages(conversation, parent);
    const node = addNode(conversation, parent, "assistant", "", { reasoning: "", model: this.model?.id ?? "", params });
    const run = {
      abort: new AbortController(),
      node,
      recorder: null,
      started: performance.now(),
      saved: performance.now(),
    };
    this.runs.set(conversation.id, run);
    this.library.save(conversation);
    this.#emit("structure");
    try {
      const body = { model: this.model?.id ?? "default", messages, ...params };
      for await (const event of this.api.stream(body, run.abort.signal)) this.#take(conversation, run, event);
      node.finish ??= "stop";
    } catch (error) {
      this.#failed(node, error);
    }
    node.timing = { ...node.timing, totalMs: performance.now() - run.started };
    if (node.reasoning && !node.thoughtMs) node.thoughtMs = performance.now() - run.thoughtBegan;
    this.runs.delete(conversation.id);
    if (run.recorder && conversation.nodes[node.id]) await this.#storeInside(run.recorder);
    await this.library.save(conversation);
    this.#emit("structure");
    this.#emit("done", node, conversation);
  }

  async #storeInside(recorder) {
    try {
      await this.library.storage.putInside(recorder.record);
      this.recorders.delete(recorder.id); // read back when asked for: packed it is a tenth of the size
    } catch {
      // no room: it stays in memory, for this session
    }
  }

  #take(conversation, run, event) {
    const { node } = run;
    const now = performance.now();
    if (event.tokens) {
      if (!run.recorder) {
        run.recorder = new InsideRecorder(node.id);
        this.recorders.set(node.id, run.recorder);
      }
      run.recorder.push(event.tokens);
      node.inside = run.recorder.length;
    }
    if (event.reasoning || event.content) {
      run.first ??= now;
      node.timing ??= { firstMs: now - run.started, chunks: 0 };
      node.timing.chunks += 1;
    }
    if (event.reasoning) {
      run.thoughtBegan ??= now;
      node.reasoning += event.reasoning;
    }
    if (event.content) {
      if (node.reasoning && !node.thoughtMs) node.thoughtMs = now - run.thoughtBegan;
      node.content += event.content;
    }
    if (event.finish) node.finish = event.finish;
    if (event.usage) node.usage = event.usage;
    if (now - run.saved > SAVE_EVERY) {
      run.saved = now;
      this.library.save(conversation, { touch: false });
    }
    if (conversation === this.conversation) this.#emit("delta", node);
  }

  #failed(node, error) {
    if (error.name === "AbortError") {
      node.finish = "stopped";
      return;
    }
    const known =
      error instanceof ApiError
        ? error
        : new ApiError("server", "Something went wrong in the page", String(error?.message ?? error));
    const { kind, title, message, retryAfter } = known;
    node.finish = "error";
    node.error = { kind, title, message, until: retryAfter === null ? null : Date.now() + retryAfter * 1000 };
  }
}
