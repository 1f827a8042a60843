// Markdown to DOM, the only place where a model's words become HTML. Three fences, one behind the other:
//   1. raw HTML in the text is shown as text, except a few attribute-less tags (<br>, <sub>, ...);
//   2. what marked makes goes through DOMPurify with a short list of tags and attributes (no style, no event handler,
//      links only http(s) and mailto, no images: an image is shown as a link, so nothing is fetched unasked);
//   3. the server's Content-Security-Policy forbids inline scripts and foreign sources.
// KaTeX and highlight.js run after the sanitiser, on text they escape themselves.
//
// While an answer streams, only the blocks that changed are rendered again: `renderMarkdown` keeps the source of each
// top-level block on its element.

import { Marked } from "../vendor/marked.js";
import DOMPurify from "../vendor/purify.js";
import { dressCode } from "./code.js";
import { mathExtensions, renderMath } from "./math.js";

const escapeHtml = (text) =>
  text.replace(/[&<>"']/g, (c) => ({ "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" })[c]);

const PLAIN_TAG = /&lt;(\/?(?:br|sub|sup|kbd|mark|u|b|i|em|strong|small)\s*\/?)&gt;/gi;

const renderer = {
  html: ({ text }) => escapeHtml(text).replace(PLAIN_TAG, "<$1>"),
  image({ href, text }) {
    return `<a href="${escapeHtml(href)}">${escapeHtml(text || "image")} (image, not loaded)</a>`;
  },
  checkbox: ({ checked }) => (checked ? "☑ " : "☐ "),
  code({ text, lang }) {
    const language = (lang ?? "")
      .trim()
      .split(/[\s{,:]/)[0]
      .toLowerCase()
      .replace(/[^a-z0-9+#._-]/g, "");
    return `<pre><code class="language-${escapeHtml(language)}">${escapeHtml(text)}\n</code></pre>`;
  },
};

const marked = new Marked({ gfm: true, breaks: true });
marked.use({ renderer, extensions: mathExtensions(escapeHtml) });

const purify = DOMPurify(window);
const POLICY = {
  ALLOWED_TAGS: (
    "p br hr h1 h2 h3 h4 h5 h6 strong b em i u s del mark small sub sup kbd code pre blockquote ul ol li " +
    "table thead tbody tr th td a span div"
  ).split(" "),
  ALLOWED_ATTR: ["href", "title", "class", "align", "start"],
  ADD_URI_SAFE_ATTR: ["align", "start"], // else the rule for links would judge them too
  ALLOW_DATA_ATTR: false,
  ALLOW_ARIA_ATTR: false,
  ALLOWED_URI_REGEXP: /^(?:https?:\/\/|mailto:)/i,
  RETURN_DOM_FRAGMENT: true,
};
purify.addHook("afterSanitizeAttributes", (node) => {
  if (node.tagName !== "A") return;
  node.setAttribute("target", "_blank");
  node.setAttribute("rel", "noopener noreferrer nofollow");
});

/** Sanitised DOM of one piece of Markdown tokens. */
function toFragment(tokens) {
  const fragment = purify.sanitize(marked.parser(tokens), POLICY);
  renderMath(fragment);
  dressCode(fragment);
  for (const table of fragment.querySelectorAll("table")) {
    const scroller = document.createElement("div"); // wide tables scroll in themselves, not the page
    scroller.className = "table-scroll";
    scroller.tabIndex = 0;
    table.replaceWith(scroller);
    scroller.append(table);
  }
  return fragment;
}

/** Make `element` show `text`. Blocks whose source did not change stay as they are (selection, scroll, copy buttons). */
export function renderMarkdown(element, text) {
  const blocks = marked.lexer(text).filter((token) => token.type !== "space" && token.type !== "def");
  blocks.forEach((token, i) => {
    let block = element.children[i];
    if (!block) {
      block = document.createElement("div");
      block.className = "block";
      block.dir = "auto"; // right-to-left scripts, paragraph by paragraph
      element.append(block);
    }
    if (block.source === token.raw) return;
    block.source = token.raw;
    block.replaceChildren(toFragment([token]));
  });
  while (element.children.length > blocks.length) element.lastElementChild.remove();
}
