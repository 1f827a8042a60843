// How the page speaks about what went wrong: error cards in the thread, notices of a reached limit, toasts.

import { h, icon } from "./dom.js";
import { formatCount } from "./stats.js";

/** What happened, and the one thing to do about it. */
export function errorCard(error, { retry, askKey }) {
  const wait = h("span", { class: "error-wait" });
  const button =
    error.kind === "key"
      ? h("button", { type: "button", class: "button primary", onclick: askKey }, "Enter the API key")
      : h("button", { type: "button", class: "button", onclick: retry }, "Try again");
  if (error.until) countDown(error.until, wait);
  return h(
    "div",
    { class: `card error-card error-${error.kind}`, role: "alert" },
    icon("warning"),
    h(
      "div",
      {},
      h("strong", {}, error.title),
      h("p", {}, error.message),
      h("div", { class: "form-row" }, button, wait),
    ),
  );
}

function countDown(until, slot) {
  const show = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    slot.textContent = left > 0 ? `The server asks to wait ${left} s.` : "It may be free again now.";
    if (left > 0) setTimeout(() => slot.isConnected && show(), 1000);
  };
  show();
  setTimeout(show, 0); // once more when it stands in the page
}

/** The answer ended at a limit: which one, and by the numbers. */
export function lengthNotice(node) {
  const { context_used: used, context_limit: limit } = node.usage?.fathom ?? {};
  const full = Number.isFinite(used) && used >= limit;
  const text = full
    ? `The context is full: ${formatCount(used)} of ${formatCount(limit)} tokens are used. Start a new conversation, or branch from an earlier message.`
    : `The answer ended at its token limit${node.usage ? ` (${formatCount(node.usage.completion_tokens)} tokens)` : ""}. Raise “Maximum tokens” in the settings and regenerate.`;
  return h(
    "div",
    { class: "card notice-card", role: "status", dataset: { notice: full ? "context" : "length" } },
    icon("warning"),
    h("p", {}, text),
  );
}

/** A short message at the bottom; `action` = {label, run} adds a button (undo). */
export function toast(text, { action = null, seconds = 7 } = {}) {
  const host = document.getElementById("toasts");
  const close = () => el.remove();
  const button =
    action &&
    h("button", { type: "button", class: "toast-button", onclick: () => (close(), action.run()) }, action.label);
  const el = h("div", { class: "toast" }, h("span", {}, text), button);
  host.append(el);
  while (host.children.length > 3) host.firstElementChild.remove();
  setTimeout(close, seconds * 1000);
}

/** Says something to screen readers only. */
export function announce(text) {
  document.getElementById("announcer").textContent = text;
}
