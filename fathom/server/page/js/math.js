// LaTeX in Markdown: $..$, $$..$$, \(..\), \[..\]. marked only marks the stretch (so that * and _ inside are left
// alone); KaTeX draws it after the sanitiser ran.
//
// A single $ is also money. Pandoc's rule decides: the opening $ touches the formula, the closing one too and is not
// followed by a digit; so "$5 and $10" stays text.

import "../vendor/katex/katex.min.js"; // sets globalThis.katex

const INLINE = [
  [/^\$\$((?:[^$\\]|\\[\s\S]|\$(?!\$))+?)\$\$/, true],
  [/^\$(?![\s$])((?:[^$\\\n]|\\[^\n])+?)(?<!\s)\$(?![\d$])/, false],
  [/^\\\(([\s\S]+?)\\\)/, false],
  [/^\\\[([\s\S]+?)\\\]/, true],
];
const BLOCK = [/^ {0,3}\$\$([\s\S]+?)\$\$[ \t]*(?:\n+|$)/, /^ {0,3}\\\[([\s\S]+?)\\\][ \t]*(?:\n+|$)/];
const OPEN = /^ {0,3}(?:\$\$|\\\[)[\s\S]*$/; // a formula that is still being written

export function mathExtensions(escapeHtml) {
  const span = (display, tex) =>
    `<span class="math ${display ? "math-display" : "math-inline"}">${escapeHtml(tex)}</span>`;
  return [
    {
      name: "blockMath",
      level: "block",
      start: (src) => src.match(/^ {0,3}(?:\$\$|\\\[)/m)?.index,
      tokenizer(src) {
        for (const rule of BLOCK) {
          const found = rule.exec(src);
          if (found) return { type: "blockMath", raw: found[0], tex: found[1] };
        }
        const open = OPEN.exec(src);
        if (open && !/\$\$|\\\]/.test(src.trimStart().slice(2))) return { type: "blockMath", raw: src, tex: null };
        return undefined;
      },
      renderer: ({ tex, raw }) =>
        tex === null ? `<p class="math-open">${escapeHtml(raw)}</p>` : `<div>${span(true, tex)}</div>`,
    },
    {
      name: "inlineMath",
      level: "inline",
      start: (src) => src.match(/\$|\\[([]/)?.index,
      tokenizer(src) {
        for (const [rule, display] of INLINE) {
          const found = rule.exec(src);
          if (found) return { type: "inlineMath", raw: found[0], tex: found[1], display };
        }
        return undefined;
      },
      renderer: ({ tex, display }) => span(display, tex),
    },
  ];
}

// bounded: a hostile formula may neither loop nor cover the page; trust off: no \href, \includegraphics, \htmlStyle
const OPTIONS = {
  throwOnError: false,
  trust: false,
  strict: false,
  maxSize: 12,
  maxExpand: 300,
  errorColor: "currentColor",
};

export function renderMath(root) {
  for (const slot of root.querySelectorAll(".math")) {
    const tex = slot.textContent;
    try {
      globalThis.katex.render(tex, slot, { ...OPTIONS, displayMode: slot.classList.contains("math-display") });
    } catch {
      slot.textContent = tex;
    }
  }
}
