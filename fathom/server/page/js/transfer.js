// Export and import of conversations as JSON. A file is a stranger's until it is checked: every field that the page will
// read is verified and copied, nothing else is taken over, and a refusal names the place.
//   {"fathom": "conversations", "version": 1, "exported": ISO date, "conversations": [conversation, ...]}
// Also accepted: {"messages": [{role, content}, ...]}, as chat APIs take them; it becomes one conversation.

import { addNode, newConversation, newId, titleFrom } from "./tree.js";

const LIMITS = { bytes: 64 * 2 ** 20, conversations: 20_000, nodes: 20_000, text: 4 * 2 ** 20, title: 200 };

export class ImportError extends Error {}

export function exportText(conversations) {
  return JSON.stringify(
    { fathom: "conversations", version: 1, exported: new Date().toISOString(), conversations },
    null,
    1,
  );
}

export function fileName(conversations) {
  const day = new Date().toISOString().slice(0, 10);
  if (conversations.length !== 1) return `fathom-conversations-${day}.json`;
  const words = conversations[0].title
    .toLowerCase()
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 40);
  return `fathom-${words || "conversation"}-${day}.json`;
}

export function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

/** The conversations of a file's text, checked; throws ImportError with a sentence for the person. */
export function parseImport(text) {
  if (text.length > LIMITS.bytes) refuse(`the file is larger than ${LIMITS.bytes / 2 ** 20} MB`);
  let data;
  try {
    data = JSON.parse(text);
  } catch (error) {
    refuse(`it is not JSON (${error.message})`);
  }
  if (isObject(data) && Array.isArray(data.messages) && !data.fathom) return [fromMessages(data.messages)];
  if (!isObject(data) || data.fathom !== "conversations")
    refuse('it is not an export of this page (no "fathom": "conversations")');
  if (data.version !== 1) refuse(`its version is ${show(data.version)}; this page reads version 1`);
  if (!Array.isArray(data.conversations)) refuse('"conversations" is not a list');
  if (data.conversations.length > LIMITS.conversations)
    refuse(`it holds more than ${LIMITS.conversations} conversations`);
  return data.conversations.map((conversation, i) => checkConversation(conversation, `conversation ${i + 1}`));
}

function refuse(why) {
  throw new ImportError(`This file was not imported: ${why}.`);
}

const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);
const show = (value) => JSON.stringify(value)?.slice(0, 60) ?? "missing";

function string(value, where, limit = LIMITS.text) {
  if (typeof value !== "string") refuse(`${where} is ${show(value)}; it must be text`);
  if (value.length > limit) refuse(`${where} is longer than ${limit} characters`);
  return value;
}

const time = (value, fallback) => (Number.isFinite(value) && value > 0 && value < 1e14 ? value : fallback);

function checkConversation(value, where) {
  if (!isObject(value)) refuse(`${where} is not an object`);
  if (!isObject(value.nodes)) refuse(`${where} has no messages ("nodes")`);
  const entries = Object.entries(value.nodes);
  if (entries.length > LIMITS.nodes) refuse(`${where} has more than ${LIMITS.nodes} messages`);
  const fresh = newConversation(string(value.system ?? "", `${where}: system`));
  const ids = new Map(entries.map(([id]) => [id, newId("m")])); // own ids: a file cannot collide with what is here
  for (const [i, [id, node]] of entries.entries()) {
    const checked = checkNode(node, ids, `${where}, message ${i + 1}`);
    checked.id = ids.get(id);
    fresh.nodes[checked.id] = checked;
  }
  if (hasCycle(fresh.nodes)) refuse(`${where}: its messages form a circle`);
  for (const [parent, child] of Object.entries(isObject(value.selected) ? value.selected : {})) {
    const key = parent === "root" ? "root" : ids.get(parent);
    if (key && ids.has(child)) fresh.selected[key] = ids.get(child);
  }
  fresh.title = string(value.title ?? "", `${where}: title`, 10_000).slice(0, LIMITS.title) || "Imported";
  fresh.named = value.named === true;
  fresh.created = time(value.created, fresh.created);
  fresh.updated = time(value.updated, fresh.updated);
  return fresh;
}

function checkNode(node, ids, where) {
  if (!isObject(node)) refuse(`${where} is not an object`);
  if (node.role !== "user" && node.role !== "assistant")
    refuse(`${where}: role is ${show(node.role)}; it must be "user" or "assistant"`);
  if (node.parent !== null && !ids.has(node.parent)) refuse(`${where} answers a message that is not in the file`);
  const checked = {
    parent: node.parent === null ? null : ids.get(node.parent),
    role: node.role,
    content: string(node.content, `${where}: content`),
    created: time(node.created, Date.now()),
  };
  if (node.role === "assistant") {
    if (node.reasoning) checked.reasoning = string(node.reasoning, `${where}: reasoning`);
    if (node.model) checked.model = string(node.model, `${where}: model`, 1000);
    if (Number.isFinite(node.thoughtMs)) checked.thoughtMs = node.thoughtMs;
    if (["stop", "length", "stopped"].includes(node.finish)) checked.finish = node.finish;
    if (isObject(node.usage)) checked.usage = numbersOf(node.usage);
    if (isObject(node.timing)) checked.timing = numbersOf(node.timing);
  }
  return checked;
}

/** A copy with nothing in it but numbers, two levels deep: what usage records are made of. */
function numbersOf(record, depth = 2) {
  const copy = {};
  for (const [key, value] of Object.entries(record).slice(0, 40)) {
    if (Number.isFinite(value)) copy[key] = value;
    else if (depth > 1 && isObject(value)) copy[key] = numbersOf(value, depth - 1);
  }
  return copy;
}

function hasCycle(nodes) {
  const good = new Set();
  for (const start of Object.values(nodes)) {
    const seen = new Set();
    for (let node = start; node && !good.has(node.id); node = nodes[node.parent]) {
      if (seen.has(node.id)) return true;
      seen.add(node.id);
    }
    for (const id of seen) good.add(id);
  }
  return false;
}

function fromMessages(messages) {
  if (messages.length > LIMITS.nodes) refuse(`it has more than ${LIMITS.nodes} messages`);
  const conversation = newConversation();
  let parent = null;
  for (const [i, message] of messages.entries()) {
    const where = `message ${i + 1}`;
    if (!isObject(message)) refuse(`${where} is not an object`);
    const content = string(message.content, `${where}: content`);
    if (message.role === "system" && i === 0) conversation.system = content;
    else if (message.role === "user" || message.role === "assistant")
      parent = addNode(conversation, parent, message.role, content).id;
    else refuse(`${where}: role is ${show(message.role)}; it must be "user" or "assistant" (or "system", first)`);
  }
  if (parent === null) refuse("it has no messages");
  conversation.title = titleFrom(Object.values(conversation.nodes)[0].content);
  return conversation;
}
