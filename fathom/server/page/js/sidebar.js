// The list of conversations: by day, searchable, with rename, export and delete in a menu; import and export of all.

import { $, h, iconButton } from "./dom.js";
import { openMenu } from "./menu.js";
import { toast } from "./problems.js";
import { download, exportText, fileName, parseImport } from "./transfer.js";

export class Sidebar {
  /** open(id), openNew(): switch the conversation */
  constructor({ library, chat, open, openNew, dialogs }) {
    Object.assign(this, { library, chat, open, openNew, dialogs });
    this.list = $("#conversations");
    this.query = $("#search");
    this.searchNumber = 0;
    this.query.addEventListener("input", () => this.render());
    this.query.addEventListener("keydown", (event) => this.#searchKey(event));
    this.list.addEventListener("keydown", (event) => this.#listKey(event));
    $("#import-file").addEventListener("change", (event) => this.#import(event.target));
    $("#library-menu").addEventListener("click", (event) => this.#libraryMenu(event.currentTarget));
    library.onChange(() => this.render());
    chat.on("structure", () => this.render());
  }

  async render() {
    const query = this.query.value.trim();
    const number = ++this.searchNumber;
    if (!query) {
      this.#show(
        this.library.entries.map((entry) => ({ entry, snippet: "" })),
        true,
      );
      return;
    }
    await new Promise((resolve) => setTimeout(resolve, 60)); // do not search for every letter of a fast typist
    if (number !== this.searchNumber) return;
    const found = await this.library.search(query, () => number === this.searchNumber);
    if (number === this.searchNumber) this.#show(found, false, query);
  }

  #show(found, grouped, query = "") {
    const renaming = this.list.querySelector("input");
    if (renaming) return; // do not take the field away under the typing hand
    const focused = document.activeElement?.closest?.(".conversation")?.dataset.id;
    const parts = [];
    let group = "";
    for (const { entry, snippet } of found) {
      const name = grouped ? dayGroup(entry.updated) : "";
      if (name !== group) parts.push(h("h2", { class: "list-heading" }, (group = name)));
      parts.push(this.#row(entry, snippet, query));
    }
    if (!found.length)
      parts.push(
        h(
          "p",
          { class: "list-empty" },
          query ? "Nothing found." : "Conversations you start appear here. They stay in this browser.",
        ),
      );
    this.list.replaceChildren(...parts);
    if (focused) this.list.querySelector(`[data-id="${CSS.escape(focused)}"] .conversation-open`)?.focus();
  }

  #row(entry, snippet, query) {
    const current = entry.id === this.chat.conversation?.id;
    const running = this.chat.runs.has(entry.id);
    const menu = iconButton("more", `Actions for ${entry.title}`, () => this.#menu(menu, entry), {
      "aria-haspopup": "menu",
    });
    return h(
      "div",
      { class: `conversation${current ? " current" : ""}${running ? " busy" : ""}`, dataset: { id: entry.id } },
      h(
        "button",
        {
          type: "button",
          class: "conversation-open",
          "aria-current": current ? "true" : null,
          title: entry.title,
          onclick: () => this.open(entry.id),
          ondblclick: () => this.#rename(entry),
        },
        h("span", { class: "conversation-title" }, emphasised(entry.title || "Untitled", query)),
        snippet ? h("span", { class: "conversation-snippet" }, emphasised(snippet, query)) : null,
      ),
      running ? h("span", { class: "busy-dot", title: "Answering" }) : null,
      menu,
    );
  }

  #menu(anchor, entry) {
    openMenu(anchor, [
      { label: "Rename", icon: "edit", run: () => this.#rename(entry) },
      { label: "Export", icon: "download", run: async () => this.#export([await this.library.get(entry.id)]) },
      { label: "Delete", icon: "trash", danger: true, run: () => this.#remove(entry) },
    ]);
  }

  #libraryMenu(anchor) {
    const some = this.library.entries.length > 0;
    openMenu(anchor, [
      { label: "Import…", icon: "upload", run: () => $("#import-file").click() },
      {
        label: "Export all",
        icon: "download",
        disabled: !some,
        run: async () => this.#export(await this.library.all()),
      },
      { label: "Delete all…", icon: "trash", danger: true, disabled: !some, run: () => this.#removeAll() },
    ]);
  }

  #rename(entry) {
    const row = this.list.querySelector(`[data-id="${CSS.escape(entry.id)}"]`);
    if (!row) return;
    const input = h("input", {
      class: "rename",
      type: "text",
      value: entry.title,
      maxlength: "200",
      "aria-label": "New title",
    });
    let done = false;
    const finish = async (save) => {
      if (done) return;
      done = true;
      const title = input.value;
      input.remove();
      if (save) await this.library.rename(entry.id, title);
      this.render();
    };
    input.addEventListener("keydown", (event) => {
      if (event.key === "Enter") finish(true);
      else if (event.key === "Escape") {
        event.stopPropagation();
        finish(false);
      }
    });
    input.addEventListener("blur", () => finish(true));
    row.replaceChildren(input);
    input.focus();
    input.select();
  }

  async #remove(entry) {
    this.chat.stop(entry.id);
    const removed = await this.library.remove(entry.id);
    if (!removed) return;
    if (this.chat.conversation?.id === entry.id) this.openNew();
    toast(`Deleted “${entry.title}”.`, {
      action: { label: "Undo", run: () => this.library.restore(removed).then(() => this.open(removed.id)) },
    });
  }

  async #removeAll() {
    const { length } = this.library.entries;
    const sure = await this.dialogs.confirm(
      `Delete all ${length} conversations?`,
      "They are only in this browser: this cannot be undone. Export them first if in doubt.",
      "Delete all",
    );
    if (!sure) return;
    for (const { id } of [...this.library.entries]) {
      this.chat.stop(id);
      await this.library.remove(id);
    }
    this.openNew();
  }

  #export(conversations) {
    download(fileName(conversations), exportText(conversations));
  }

  async #import(input) {
    const [file] = input.files;
    input.value = ""; // the same file may be chosen again
    if (!file) return;
    try {
      const conversations = parseImport(await file.text());
      for (const conversation of conversations) await this.library.restore(conversation);
      toast(`Imported ${conversations.length} conversation${conversations.length === 1 ? "" : "s"}.`);
      if (conversations.length) this.open(conversations[0].id);
    } catch (error) {
      this.dialogs.tell("Nothing was imported", error.message);
    }
  }

  #listKey(event) {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (!step || !event.target.matches(".conversation-open")) return;
    event.preventDefault();
    const all = [...this.list.querySelectorAll(".conversation-open")];
    const to = all.indexOf(event.target) + step;
    (to < 0 ? this.query : (all[to] ?? event.target)).focus();
  }

  /** Down from the search field goes into the list; Escape clears it. */
  #searchKey(event) {
    if (event.key === "ArrowDown" || event.key === "Enter") {
      event.preventDefault();
      const first = this.list.querySelector(".conversation-open");
      event.key === "Enter" ? first?.click() : first?.focus();
    } else if (event.key === "Escape" && this.query.value) {
      event.stopPropagation();
      this.query.value = "";
      this.render();
    }
  }
}

function emphasised(text, query) {
  const words = query.toLowerCase().split(/\s+/).filter(Boolean);
  const lower = text.toLowerCase();
  const parts = [];
  let from = 0;
  while (words.length && from < text.length) {
    const hits = words
      .map((word) => [lower.indexOf(word, from), word])
      .filter(([at]) => at >= 0)
      .sort((a, b) => a[0] - b[0]);
    if (!hits.length) break;
    const [at, word] = hits[0];
    parts.push(text.slice(from, at), h("mark", {}, text.slice(at, at + word.length)));
    from = at + word.length;
  }
  return [...parts, text.slice(from)];
}

function dayGroup(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  const day = 86_400_000;
  if (time >= midnight) return "Today";
  if (time >= midnight - day) return "Yesterday";
  if (time >= midnight - 7 * day) return "Last 7 days";
  if (time >= midnight - 30 * day) return "Last 30 days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}
