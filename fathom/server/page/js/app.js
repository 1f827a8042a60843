// The page's wiring: builds the parts, connects them, and owns what is left (model, address, theme).

import { Api } from "./api.js";
import { Chat } from "./chat.js";
import { Composer } from "./composer.js";
import { dialogs } from "./dialogs.js";
import { $, copyText, fillIcons, icon } from "./dom.js";
import { InsidePanel } from "./inside_panel.js";
import { Layout } from "./layout.js";
import { Library } from "./library.js";
import { Keys, Prefs, theme } from "./prefs.js";
import { announce, toast } from "./problems.js";
import { Settings } from "./settings.js";
import { wireShortcuts } from "./shortcuts.js";
import { Sidebar } from "./sidebar.js";
import { asCurl, formatCount } from "./stats.js";
import { openStorage } from "./storage.js";
import { Thread } from "./thread.js";
import { path, toMessages } from "./tree.js";

fillIcons();
const prefs = new Prefs();
const keys = new Keys();
const storage = await openStorage();
const library = new Library(storage, (message) => toast(message, { seconds: 20 }));
const api = new Api(keys);
const settings = new Settings({ prefs, keys, library, reload: () => loadModel() });
const chat = new Chat({ api, library, settings });

// ---- one conversation to the other ----

async function open(id) {
  if (!(await chat.open(id))) return openNew();
  history.replaceState(null, "", `#${id}`);
  layout.settle();
  return undefined;
}

function openNew() {
  chat.openNew(prefs.get("system", ""));
  history.replaceState(null, "", location.pathname + location.search);
  layout.settle();
  composer.focus();
}

// ---- what a message can ask for ----

const actions = {
  start: (text) => composer.ask(text),
  isRunning: (node) => chat.run?.node === node,
  siblings: (node) => chat.siblings(node),
  select: (node) => chat.select(node),
  /** Whether it was sent; a refused text stays in its field. */
  edit(node, text) {
    if (chat.run) {
      toast("Stop the running answer first.");
      return false;
    }
    chat.edit(node, text);
    return true;
  },
  regenerate(node) {
    if (chat.run) toast("Stop the running answer first.");
    else if (settings.problem()) settings.showProblem();
    else chat.regenerate(node);
  },
  remove(node) {
    const undo = chat.remove(node);
    toast("Deleted.", { action: { label: "Undo", run: undo } });
  },
  curl: (node) => asCurl(node, toMessages(chat.conversation, node.parent), keys.get() !== ""),
  async askKey(node) {
    if (!(await dialogs.askKey(keys, node.error.message))) return;
    settings.showKey();
    await loadModel();
    chat.regenerate(node);
  },
  tokens: (node) => chat.tokens(node),
  progress: (node) => chat.progress(node),
  insideView: () => prefs.get("insideView", "tokens"),
  setInsideView: (view) => prefs.set("insideView", view),
  openInside(node) {
    layout.openPanel("inside");
    inside.show(node);
  },
  selectToken(node, t, pinned) {
    markToken(node, t);
    if (layout.tab === "inside" || pinned) {
      if (pinned && layout.tab !== "inside" && innerWidth > 1180) layout.openPanel("inside");
      if (layout.tab === "inside") inside.show(node, t);
    }
  },
};

function markToken(node, t) {
  for (const view of thread.views.values()) view.tokens?.select(view.node === node ? t : -1);
}

const lastAnswer = () => path(chat.conversation).findLast((node) => node.role === "assistant") ?? null;

// ---- parts that need the above ----

const layout = new Layout({
  prefs,
  onPanel(tab) {
    if (tab !== "inside") return;
    const shown =
      inside.node && chat.conversation.nodes[inside.node.id]
        ? inside.node
        : path(chat.conversation).findLast((node) => node.inside);
    inside.show(shown ?? null);
  },
});
settings.openPanel = () => layout.openPanel("settings");
const thread = new Thread({ chat, actions });
const composer = new Composer({ chat, settings, onEditLast: () => editLast() });
const inside = new InsidePanel({
  chat,
  onSelect: markToken,
  onExpert(node, tokens) {
    const view = thread.view(node);
    if (!view) return;
    if (tokens.length && !view.showsTokens) view.showView("tokens");
    view.tokens?.mark(tokens);
  },
});
const sidebar = new Sidebar({ library, chat, open, openNew, dialogs });

function editLast() {
  const last = path(chat.conversation).findLast((node) => node.role === "user");
  if (last) thread.view(last).edit();
}

chat.on("structure", () => {
  settings.showConversation(chat.conversation);
  document.title = chat.conversation.title ? `${chat.conversation.title} · Fathom` : "Fathom";
  $("#title").textContent = chat.conversation.title;
  if (Object.keys(chat.conversation.nodes).length) history.replaceState(null, "", `#${chat.conversation.id}`);
  if (chat.run) announce("The answer begins.");
  if (layout.tab === "inside" && inside.node && !chat.conversation.nodes[inside.node.id]) layout.onPanel("inside");
});
chat.on("delta", (node) => {
  if (layout.tab !== "inside" || !node.inside) return;
  if (inside.node !== node) inside.show(node, 0);
  else inside.grow(node);
});
chat.on("done", (node, conversation) => {
  const tokens = node.usage?.completion_tokens;
  announce(node.error ? node.error.title : `The answer is complete${tokens ? `: ${formatCount(tokens)} tokens` : ""}.`);
  if (conversation !== chat.conversation)
    toast(`“${conversation.title}” has its answer.`, { action: { label: "Open", run: () => open(conversation.id) } });
  if (inside.node === node) inside.show(node);
  if (["network", "request"].includes(node.error?.kind)) loadModel(); // the server may be another one by now
});
library.onChange((changedElsewhere) => {
  $("#title").textContent = chat.conversation?.title ?? "";
  if (!changedElsewhere || changedElsewhere !== chat.conversation?.id) return;
  if (library.live.has(changedElsewhere)) chat.changed();
  else openNew(); // another tab deleted it
});

// ---- the model ----

async function loadModel() {
  const badge = $("#model");
  try {
    chat.model = await api.model();
    chat.modelProblem = null;
    settings.setModel(chat.model);
    badge.textContent = chat.model.id;
    badge.classList.remove("offline");
    badge.title = "The model that answers";
  } catch (error) {
    chat.modelProblem = error.message;
    badge.textContent = error.kind === "key" ? "key needed" : "no server";
    badge.classList.add("offline");
    badge.title = `${error.message} Click to try again.`;
    if (error.kind === "key" && !$("#key-dialog").open && (await dialogs.askKey(keys, error.message))) {
      settings.showKey();
      return loadModel();
    }
  }
  chat.changed();
  return undefined;
}

$("#model").addEventListener("click", () => loadModel());
addEventListener("hashchange", () => location.hash.length > 1 && open(location.hash.slice(1)));
$(".skip-link").addEventListener("click", (event) => {
  event.preventDefault(); // its #prompt would be taken for a conversation
  composer.focus();
});
addEventListener("online", () => loadModel());
addEventListener("focus", () => chat.model ?? ($("#key-dialog").open || loadModel()));

// ---- theme, buttons, keys ----

function toggleTheme() {
  const next = theme.current() === "dark" ? "light" : "dark";
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  theme.set(next === system ? null : next); // back at the system's choice: follow it again
}

function showTheme() {
  const dark = theme.current() === "dark";
  $("#theme").replaceChildren(icon(dark ? "sun" : "moon"));
  $("#theme").setAttribute("aria-label", dark ? "Light theme" : "Dark theme");
  $("#theme").title = dark ? "Light theme" : "Dark theme";
}

document.addEventListener("themechange", showTheme);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => theme.apply());
$("#theme").addEventListener("click", toggleTheme);
for (const id of ["#new", "#new-top"]) $(id).addEventListener("click", openNew);
$("#key-cancel").addEventListener("click", () => $("#key-dialog").close(""));

wireShortcuts({
  newConversation: openNew,
  search() {
    layout.toggleSidebar(true);
    $("#search").focus();
    $("#search").select();
  },
  toggleSidebar: () => layout.toggleSidebar(),
  toggleSettings: () => layout.openPanel(layout.tab === "settings" ? null : "settings"),
  toggleInside: () => layout.openPanel(layout.tab === "inside" ? null : "inside"),
  toggleTheme,
  regenerate: () => lastAnswer() && actions.regenerate(lastAnswer()),
  copyLast: async () =>
    lastAnswer() &&
    toast((await copyText(lastAnswer().content)) ? "Copied the last answer." : "The browser refused to copy."),
  focusPrompt: () => composer.focus(),
  escape: () => layout.closeDrawers() || chat.stop(),
});

// ---- start ----

showTheme();
if (!storage.lasting)
  toast("This browser keeps no data for this page: conversations end with the tab.", { seconds: 20 });
await library.load();
const wanted = location.hash.slice(1);
if (wanted) await open(wanted);
else openNew();
await sidebar.render();
document.documentElement.dataset.ready = "yes";
await loadModel();
