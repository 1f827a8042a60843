// Keyboard shortcuts: one table serves the keys and the help dialog. Ctrl is Command on a Mac.

import { $, h } from "./dom.js";

const MAC = /Mac|iPhone|iPad/.test(navigator.platform);
const typing = (target) =>
  target.matches?.("input:not([type=range]):not([type=checkbox]), textarea, [contenteditable]");

/** actions: {name: function}; the names are those of the table. */
export function wireShortcuts(actions) {
  const table = [
    { keys: "Ctrl+Shift+O", what: "New conversation", run: actions.newConversation },
    { keys: "Ctrl+K", what: "Search conversations", run: actions.search },
    { keys: "Ctrl+B", what: "Conversations on or off", run: actions.toggleSidebar },
    { keys: "Ctrl+,", what: "Settings on or off", run: actions.toggleSettings },
    { keys: "Ctrl+I", what: "Inside panel on or off", run: actions.toggleInside },
    { keys: "Ctrl+Shift+L", what: "Dark or light", run: actions.toggleTheme },
    { keys: "Ctrl+Shift+Enter", what: "Regenerate the last answer", run: actions.regenerate },
    { keys: "Ctrl+Shift+;", what: "Copy the last answer", run: actions.copyLast },
    { keys: "/", what: "To the message field", run: actions.focusPrompt, bare: true },
    { keys: "?", what: "This list", run: () => showHelp(table), bare: true },
    { keys: "Escape", what: "Stop the answer; close what is open" },
    { keys: "Enter", what: "Send (in the message field)" },
    { keys: "Shift+Enter", what: "New line (in the message field)" },
    { keys: "↑", what: "Edit the last message (in the empty field)" },
    { keys: "← →", what: "Previous, next token (in the token view)" },
  ];
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing || $("dialog[open]")) return;
    if (event.key === "Escape") {
      actions.escape();
      return;
    }
    const entry = table.find((candidate) => candidate.run && matches(candidate, event));
    if (!entry || (entry.bare && typing(event.target))) return;
    event.preventDefault();
    entry.run();
  });
  $("#help").addEventListener("click", () => showHelp(table));
}

function matches({ keys, bare }, event) {
  if (bare) return event.key === keys && !event.ctrlKey && !event.metaKey && !event.altKey;
  const parts = keys.split("+");
  const key = parts.pop();
  const command = MAC ? event.metaKey && !event.ctrlKey : event.ctrlKey && !event.metaKey;
  if (!command || event.altKey || event.shiftKey !== parts.includes("Shift")) return false;
  return key === ";" ? event.code === "Semicolon" : event.key.toLowerCase() === key.toLowerCase();
}

function showHelp(table) {
  const caps = (keys) => keys.split(/\+(?=.)| /).map((key) => h("kbd", {}, MAC && key === "Ctrl" ? "⌘" : key));
  const close = h("button", { type: "button", class: "button", onclick: () => dialog.close() }, "Close");
  const rows = table.map(({ keys, what }) => h("div", {}, h("dt", {}, what), h("dd", {}, caps(keys))));
  const dialog = h(
    "dialog",
    { class: "dialog help-dialog", "aria-label": "Keyboard shortcuts" },
    h("h2", {}, "Keyboard shortcuts"),
    h("dl", {}, rows),
    h("div", { class: "form-row end" }, close),
  );
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}
