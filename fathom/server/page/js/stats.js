// The line under an answer: speed, first token, context, drafts; opened, every number the server sent.
// Numbers come from `usage.fathom`; where the server did not get to send them (stopped, lost) the page's own clock speaks
// and says so.

import { copyWithMark, h } from "./dom.js";

const count = new Intl.NumberFormat("en");
export const formatCount = (n) => count.format(n);
export const formatSeconds = (s) =>
  s < 0.1
    ? `${Math.round(s * 1000)} ms`
    : s < 10
      ? `${s.toFixed(2)} s`
      : s < 60
        ? `${s.toFixed(1)} s`
        : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
export const formatRate = (r) => (r < 10 ? r.toFixed(2) : r < 100 ? r.toFixed(1) : formatCount(Math.round(r)));
export const percent = (part, whole) => `${Math.round((100 * part) / whole)} %`;

const known = Number.isFinite;

/** [{text, title, meter?}] of one answer, most wanted first. */
function headline(node) {
  const own = node.usage?.fathom ?? {};
  const items = [];
  if (known(own.tokens_per_second))
    items.push({
      text: `${formatRate(own.tokens_per_second)} tok/s`,
      title: "Generated tokens per second, measured by the engine",
      name: "speed",
    });
  else if (node.timing?.chunks > 1) {
    const seconds = (node.timing.totalMs - node.timing.firstMs) / 1000;
    if (seconds > 0)
      items.push({
        text: `≈ ${formatRate(node.timing.chunks / seconds)} tok/s`,
        title: "Counted in this page: one received piece taken as one token",
        name: "speed",
      });
  }
  if (known(own.time_to_first_token))
    items.push({
      text: `${formatSeconds(own.time_to_first_token)} to first token`,
      title: "From the engine taking the request to its first token",
      name: "first",
    });
  else if (node.timing?.firstMs)
    items.push({
      text: `≈ ${formatSeconds(node.timing.firstMs / 1000)} to first token`,
      title: "Measured in this page, network included",
      name: "first",
    });
  if (known(own.context_used)) {
    const limit = own.context_limit;
    items.push({
      text: `${formatCount(own.context_used)} / ${formatCount(limit)} context`,
      title: `${percent(own.context_used, limit)} of the context is used`,
      meter: own.context_used / limit,
      name: "context",
    });
  }
  if (own.drafted > 0) {
    items.push({
      text: `${percent(own.accepted, own.drafted)} of drafts accepted`,
      title: `Multi-token prediction: ${formatCount(own.accepted)} of ${formatCount(own.drafted)} drafted tokens were accepted`,
      name: "drafts",
    });
  } else if (own.drafted === 0) {
    items.push({ text: "no drafts", title: "Multi-token prediction was not used for this answer", name: "drafts" });
  }
  return items;
}

function rows(node) {
  const { usage = {}, timing = {} } = node;
  const own = usage.fathom ?? {};
  const table = [];
  const add = (name, value, format = formatCount) => known(value) && table.push([name, format(value)]);
  if (node.model) table.push(["model", node.model]);
  add("prompt tokens", usage.prompt_tokens);
  add("… from the prefix cache", usage.prompt_tokens_details?.cached_tokens);
  add("generated tokens", usage.completion_tokens);
  add("… of them reasoning", usage.completion_tokens_details?.reasoning_tokens);
  add("drafted by MTP", own.drafted);
  add("… accepted", own.accepted);
  add("waited in the queue", own.queue_seconds, formatSeconds);
  add("whole answer, seen from here", timing.totalMs === undefined ? undefined : timing.totalMs / 1000, formatSeconds);
  if (node.finish)
    table.push([
      "ended by",
      { stop: "the model", length: "the token limit", stopped: "you", error: "an error" }[node.finish] ?? node.finish,
    ]);
  return table;
}

/** The request as a shell command. The key is left to the shell. */
export function asCurl(node, messages, needsKey) {
  const body = JSON.stringify({ model: node.model || "default", messages, ...node.params }).replaceAll("'", "'\\''");
  const key = needsKey ? ' \\\n  -H "Authorization: Bearer $FATHOM_API_KEY"' : "";
  return `curl ${location.origin}${location.pathname.replace(/[^/]*$/, "")}v1/chat/completions \\\n  -H 'Content-Type: application/json'${key} \\\n  -d '${body}'`;
}

/** <details> whose summary is the headline. `curl()` gives the command to copy. */
export function statsView(node, curl) {
  const items = headline(node);
  if (!items.length && !node.usage) return null;
  const summary = items.map(({ text, title, meter, name }) =>
    h("span", { class: "stat", title, dataset: { stat: name } }, meter === undefined ? null : ring(meter), text),
  );
  const copy = h(
    "button",
    {
      type: "button",
      class: "quiet-button",
      "aria-label": "Copy the request as a curl command",
      onclick: () => copyWithMark(copy, curl()),
    },
    "Copy as curl",
  );
  return h(
    "details",
    { class: "stats" },
    h("summary", { "aria-label": `Figures: ${items.map((item) => item.text).join(", ")}` }, summary),
    h(
      "dl",
      {},
      rows(node).map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))),
    ),
    h("div", { class: "stats-tools" }, copy),
  );
}

/** The line under an answer that is still coming. */
export function progressText(progress) {
  if (!progress || progress.seconds < 0.3) return "";
  const { tokens, seconds, exact } = progress;
  return `${exact ? "" : "≈ "}${formatRate((tokens - 1) / seconds)} tok/s, ${formatCount(tokens)} tokens`;
}

/** A small ring filled to `part`: how full the context is. */
export function ring(part) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 16 16");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("class", `ring${part > 0.97 ? " ring-full" : part > 0.8 ? " ring-high" : ""}`);
  for (const name of ["ring-track", "ring-value"]) {
    const circle = document.createElementNS(ns, "circle");
    for (const [key, value] of Object.entries({ cx: 8, cy: 8, r: 6, class: name, pathLength: 100 }))
      circle.setAttribute(key, value);
    if (name === "ring-value") circle.setAttribute("stroke-dasharray", `${Math.min(100, 100 * part)} 100`);
    svg.append(circle);
  }
  return svg;
}
