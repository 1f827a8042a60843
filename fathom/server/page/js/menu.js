// A small menu under a button: arrow keys, Escape, focus returns to the button.

import { h, icon } from "./dom.js";

let closeOpen = null;

/** items: [{label, icon, run, danger, disabled}] */
export function openMenu(anchor, items) {
  const again = closeOpen?.anchor === anchor;
  closeOpen?.();
  if (again) return;
  const buttons = items.map((item) =>
    h(
      "button",
      {
        type: "button",
        role: "menuitem",
        class: `menu-item${item.danger ? " danger" : ""}`,
        disabled: Boolean(item.disabled),
        onclick: () => (close(), item.run()),
      },
      icon(item.icon),
      item.label,
    ),
  );
  const menu = h("div", { class: "menu", role: "menu" }, buttons);
  const usable = buttons.filter((button) => !button.disabled);
  const close = () => {
    if (menu.contains(document.activeElement)) anchor.focus();
    menu.remove();
    anchor.removeAttribute("aria-expanded");
    document.removeEventListener("pointerdown", outside, true);
    closeOpen = null;
  };
  const outside = (event) => {
    if (!menu.contains(event.target) && !anchor.contains(event.target)) close();
  };
  menu.addEventListener("keydown", (event) => {
    const at = usable.indexOf(document.activeElement);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: -1 }[event.key];
    if (to !== undefined) {
      event.preventDefault();
      usable.at(to % usable.length)?.focus();
    } else if (event.key === "Escape" || event.key === "Tab") {
      event.stopPropagation();
      close();
    }
  });
  document.body.append(menu);
  place(menu, anchor.getBoundingClientRect());
  document.addEventListener("pointerdown", outside, true);
  anchor.setAttribute("aria-expanded", "true");
  close.anchor = anchor;
  closeOpen = close;
  usable[0]?.focus();
}

function place(menu, at) {
  const { offsetWidth: width, offsetHeight: height } = menu;
  const left = Math.min(Math.max(8, at.right - width), innerWidth - width - 8);
  const below = at.bottom + 4 + height < innerHeight;
  menu.style.left = `${left}px`;
  menu.style.top = `${below ? at.bottom + 4 : Math.max(8, at.top - height - 4)}px`;
}
