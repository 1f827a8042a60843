// The smallest helper that makes building DOM pleasant, and the icons.
// Text always goes in as a text node, never as HTML: only markdown.js turns strings into HTML, after sanitising.

/** h("button", {class: "x", onclick: f, "aria-label": "y"}, child, "text", null) */
export function h(tag, props = {}, ...children) {
  const el = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) el.addEventListener(key.slice(2), value);
    else if (key === "class") el.className = value;
    else if (key === "dataset") Object.assign(el.dataset, value);
    else if (key in el && typeof value !== "string" && key !== "list") el[key] = value;
    else el.setAttribute(key, value === true ? "" : value);
  }
  el.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return el;
}

export const $ = (selector, root = document) => root.querySelector(selector);

// 20 x 20, stroke only, drawn for this page
const PATHS = {
  menu: "M3 5.5h14M3 10h14M3 14.5h14",
  plus: "M10 4v12M4 10h12",
  search: "M9 14.5a5.5 5.5 0 1 0 0-11 5.5 5.5 0 0 0 0 11zM13 13l4 4",
  close: "M5 5l10 10M15 5L5 15",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  copy: "M7 7h9v9H7zM4 13V4h9",
  check: "M4 10.5l4 4 8-9",
  retry: "M15.5 6.5A6.5 6.5 0 1 0 16.5 11M16 3v4h-4",
  edit: "M4 16l.8-3.2L13.5 4l2.5 2.5-8.8 8.7zM11.5 6l2.5 2.5",
  trash: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6M8.7 9v4.5M11.3 9v4.5",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  more: "M4.5 10h.01M10 10h.01M15.5 10h.01",
  sun: "M10 13.5a3.5 3.5 0 1 0 0-7 3.5 3.5 0 0 0 0 7zM10 2v2M10 16v2M2 10h2M16 10h2M4.3 4.3l1.4 1.4M14.3 14.3l1.4 1.4M4.3 15.7l1.4-1.4M14.3 5.7l1.4-1.4",
  moon: "M16 12.2A6.5 6.5 0 0 1 7.8 4a6.5 6.5 0 1 0 8.2 8.2z",
  sliders: "M4 6h6M14 6h2M4 14h2M10 14h6M12 4v4M8 12v4",
  inside:
    "M3.5 3.5h3v3h-3zM8.5 3.5h3v3h-3zM13.5 3.5h3v3h-3zM3.5 8.5h3v3h-3zM8.5 8.5h3v3h-3zM13.5 8.5h3v3h-3zM3.5 13.5h3v3h-3zM8.5 13.5h3v3h-3zM13.5 13.5h3v3h-3z",
  thought: "M7 13.5c-2-1-3-2.7-3-4.7A5.8 5.8 0 0 1 10 3a5.8 5.8 0 0 1 6 5.8c0 2-1 3.7-3 4.7V15H7zM8 17.5h4",
  upload: "M10 13V4M6 8l4-4 4 4M4 16h12",
  download: "M10 4v9M6 9l4 4 4-4M4 16h12",
  widen: "M7 6l-4 4 4 4M13 6l4 4-4 4M3 10h14",
  keyboard: "M2.5 5.5h15v9h-15zM5.5 8.5h.01M8.5 8.5h.01M11.5 8.5h.01M14.5 8.5h.01M6.5 11.5h7",
  warning: "M10 3.5l7 12.5H3zM10 8v4M10 14h.01",
};

export function icon(name) {
  const ns = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(ns, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(ns, "path");
  path.setAttribute("d", PATHS[name]);
  svg.append(path);
  return svg;
}

/** A button that shows an icon; the label is its name for screen readers and its tooltip. */
export function iconButton(name, label, onclick, props = {}) {
  return h(
    "button",
    { type: "button", class: "icon-button", "aria-label": label, title: label, onclick, ...props },
    icon(name),
  );
}

/** Fill every <span data-icon="name"> of the static page. */
export function fillIcons(root = document) {
  for (const slot of root.querySelectorAll("[data-icon]")) slot.replaceWith(icon(slot.dataset.icon));
}

/** Calls f once per animation frame at most, however often the result is called. */
export function perFrame(f) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      f();
    });
  };
}

/** Text areas as tall as their text, where the browser cannot do it itself (`field-sizing`). */
export function growWithText(area) {
  if (CSS.supports("field-sizing", "content")) return;
  const fit = () => {
    area.style.height = "auto";
    area.style.height = `${area.scrollHeight + 2}px`;
  };
  area.addEventListener("input", fit);
  requestAnimationFrame(fit);
}

export async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // http:// on another host than localhost has no clipboard API: the old way
    const area = h("textarea", { class: "off-screen" });
    area.value = text;
    const before = document.activeElement;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    before?.focus?.();
    return done;
  }
}

/** Copies and says so on the button itself for a moment. */
export async function copyWithMark(button, text) {
  const done = await copyText(text);
  const old = [...button.childNodes];
  const label = button.getAttribute("aria-label");
  button.replaceChildren(icon(done ? "check" : "warning"));
  button.setAttribute("aria-label", done ? "Copied" : "The browser refused to copy");
  setTimeout(() => {
    button.replaceChildren(...old);
    button.setAttribute("aria-label", label);
  }, 1400);
}
