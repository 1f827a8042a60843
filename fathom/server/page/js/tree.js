// A conversation is a tree of messages; what the thread shows is one path through it.
// Editing a question or asking for another answer adds a sibling, so nothing is ever overwritten.
//   conversation = {id, title, named, created, updated, system, nodes: {id: node}, selected: {parent id or "root": child id}}
//   node = {id, parent, role, content, created, ...}     what an answer adds is in chat.js
// Children are found through `parent` alone: a second list of them could contradict it.

export const newId = (prefix) =>
  prefix + Array.from(crypto.getRandomValues(new Uint8Array(12)), (b) => (b % 36).toString(36)).join("");

export function newConversation(system = "") {
  const now = Date.now();
  return { id: newId("c"), title: "", named: false, created: now, updated: now, system, nodes: {}, selected: {} };
}

export function addNode(conversation, parent, role, content, more = {}) {
  const node = { id: newId("m"), parent, role, content, created: Date.now(), ...more };
  conversation.nodes[node.id] = node;
  conversation.selected[parent ?? "root"] = node.id;
  return node;
}

export function childrenOf(conversation, parent) {
  return Object.values(conversation.nodes).filter((node) => node.parent === parent);
}

/** The shown messages, first to last. */
export function path(conversation) {
  const byParent = new Map();
  for (const node of Object.values(conversation.nodes)) {
    if (!byParent.has(node.parent)) byParent.set(node.parent, []);
    byParent.get(node.parent).push(node);
  }
  const shown = [];
  for (let parent = null; byParent.has(parent);) {
    const options = byParent.get(parent);
    const wanted = conversation.selected[parent ?? "root"];
    const node = options.find((option) => option.id === wanted) ?? options.at(-1);
    shown.push(node);
    parent = node.id;
  }
  return shown;
}

/** Messages from the root to this node, whatever branch is shown. */
export function ancestry(conversation, id) {
  const line = [];
  for (let node = conversation.nodes[id]; node; node = conversation.nodes[node.parent]) line.unshift(node);
  return line;
}

export function siblings(conversation, node) {
  const all = childrenOf(conversation, node.parent);
  return { all, index: all.findIndex((other) => other.id === node.id) };
}

/** Takes a message and everything below it out of the tree; returns the nodes, for undo. */
export function removeSubtree(conversation, id) {
  const taken = [];
  const { all, index } = siblings(conversation, conversation.nodes[id]);
  const walk = (node) => {
    for (const child of childrenOf(conversation, node.id)) walk(child);
    taken.push(node);
  };
  walk(conversation.nodes[id]);
  for (const node of taken) {
    delete conversation.nodes[node.id];
    delete conversation.selected[node.id];
  }
  const next = all[index + 1] ?? all[index - 1];
  const key = taken.at(-1).parent ?? "root";
  if (next) conversation.selected[key] = next.id;
  else delete conversation.selected[key];
  return taken.reverse();
}

export function restoreNodes(conversation, nodes) {
  for (const node of nodes) {
    conversation.nodes[node.id] = node;
    conversation.selected[node.parent ?? "root"] = node.id;
  }
}

/** A title from the first question: its first line, cut at a word. */
export function titleFrom(text) {
  const line = text
    .trim()
    .split("\n")[0]
    .replace(/[#*`>]+/g, "")
    .replace(/\s+/g, " ")
    .trim();
  if (line.length <= 56) return line || "Untitled";
  return line.slice(0, 56).replace(/\s+\S*$/, "") + "…";
}

/** The messages to send: system text, then the path; answers without text (errors, stops) have nothing to say. */
export function toMessages(conversation, lastId) {
  const messages = conversation.system.trim() ? [{ role: "system", content: conversation.system }] : [];
  for (const node of ancestry(conversation, lastId)) {
    if (node.role === "user" || node.content) messages.push({ role: node.role, content: node.content });
  }
  return messages;
}
