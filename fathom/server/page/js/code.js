// Code blocks: a bar with the language and a copy button, colours from highlight.js (its output escapes the code).

import hljs from "../vendor/highlight.js";
import { copyWithMark, h, iconButton } from "./dom.js";

const TOO_LONG = 60_000; // characters; above it, colouring would stall the page

export function dressCode(root) {
  for (const code of root.querySelectorAll("pre > code")) {
    const pre = code.parentElement;
    const text = code.textContent.replace(/\n$/, "");
    const language = code.className.replace("language-", "");
    if (language && hljs.getLanguage(language) && text.length < TOO_LONG) {
      code.innerHTML = hljs.highlight(text, { language, ignoreIllegals: true }).value;
    } else {
      code.textContent = text;
    }
    pre.tabIndex = 0; // wide code scrolls by keyboard
    const button = iconButton("copy", "Copy code", () => copyWithMark(button, text));
    const box = h(
      "div",
      { class: "code-box" },
      h("div", { class: "code-bar" }, h("span", {}, language || "text"), button),
    );
    pre.replaceWith(box);
    box.append(pre);
  }
}
