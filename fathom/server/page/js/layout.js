// The two side columns: conversations on the left, settings and inside on the right. On narrow screens they are drawers
// over the thread: one at a time, closed by Escape or a tap beside them, and the thread behind them cannot be reached.

import { $ } from "./dom.js";

const NARROW = matchMedia("(max-width: 860px)");
const PANEL_OVER = matchMedia("(max-width: 1180px)");
const WIDTH = { min: 320, start: 420, wide: 820, step: 24 };

export class Layout {
  constructor({ prefs, onPanel }) {
    this.prefs = prefs;
    this.onPanel = onPanel; // (tab | null) after a change
    this.sidebar = $("#sidebar");
    this.panel = $("#panel");
    this.scrim = $("#scrim");
    this.sidebarOpen = !NARROW.matches && prefs.get("sidebar", true);
    this.tab = null;
    $("#sidebar-toggle").addEventListener("click", () => this.toggleSidebar());
    $("#sidebar-close").addEventListener("click", () => this.toggleSidebar(false));
    $("#panel-close").addEventListener("click", () => this.openPanel(null));
    this.scrim.addEventListener("click", () => this.closeDrawers());
    for (const tab of ["settings", "inside"]) {
      $(`#open-${tab}`).addEventListener("click", () => this.openPanel(this.tab === tab ? null : tab));
      $(`#tab-${tab}`).addEventListener("click", () => this.openPanel(tab));
    }
    this.panel.addEventListener("keydown", (event) => this.#tabKey(event));
    NARROW.addEventListener("change", () => {
      this.sidebarOpen = !NARROW.matches && this.prefs.get("sidebar", true);
      this.#apply();
    });
    PANEL_OVER.addEventListener("change", () => this.#apply());
    this.#wireResize();
    this.#apply();
  }

  toggleSidebar(open = !this.sidebarOpen) {
    this.sidebarOpen = open;
    if (NARROW.matches && open) this.tab = null;
    if (!NARROW.matches) this.prefs.set("sidebar", open);
    this.#apply();
    if (NARROW.matches) (open ? $("#search") : $("#sidebar-toggle")).focus({ preventScroll: true });
  }

  openPanel(tab) {
    const before = this.tab;
    this.tab = tab;
    if (NARROW.matches && tab) this.sidebarOpen = false;
    this.#apply();
    if (tab && PANEL_OVER.matches) $(`#tab-${tab}`).focus({ preventScroll: true });
    else if (!tab && before && this.panel.contains(document.activeElement)) $(`#open-${before}`).focus();
    this.onPanel(tab);
  }

  /** After choosing something in a drawer. */
  settle() {
    if (NARROW.matches && this.sidebarOpen) this.toggleSidebar(false);
  }

  /** True when there was one to close. */
  closeDrawers() {
    if (this.tab && PANEL_OVER.matches) this.openPanel(null);
    else if (this.sidebarOpen && NARROW.matches) this.toggleSidebar(false);
    else return false;
    return true;
  }

  #apply() {
    const { tab } = this;
    const app = $("#app");
    app.classList.toggle("with-sidebar", this.sidebarOpen);
    app.classList.toggle("with-panel", tab !== null);
    this.sidebar.inert = !this.sidebarOpen;
    this.panel.inert = tab === null;
    const covered = (this.sidebarOpen && NARROW.matches) || (tab !== null && PANEL_OVER.matches);
    this.scrim.hidden = !covered;
    $("#main").inert = covered;
    $("#sidebar-toggle").setAttribute("aria-expanded", String(this.sidebarOpen));
    for (const name of ["settings", "inside"]) {
      const shown = tab === name;
      $(`#open-${name}`).setAttribute("aria-pressed", String(shown));
      $(`#tab-${name}`).setAttribute("aria-selected", String(shown));
      $(`#tab-${name}`).tabIndex = shown ? 0 : -1;
      $(`#pane-${name}`).hidden = !shown;
    }
  }

  #tabKey(event) {
    if (event.target.role !== "tab" || !["ArrowLeft", "ArrowRight"].includes(event.key)) return;
    const other = this.tab === "settings" ? "inside" : "settings";
    this.openPanel(other);
    $(`#tab-${other}`).focus();
  }

  /** The panel's left edge can be dragged, or moved with the arrow keys. */
  #wireResize() {
    const handle = $("#panel-resize");
    const limit = () => Math.max(WIDTH.min, innerWidth - 440);
    const set = (width) => {
      const fitting = Math.round(Math.min(limit(), Math.max(WIDTH.min, width)));
      document.documentElement.style.setProperty("--panel-wanted", `${fitting}px`);
      handle.setAttribute("aria-valuenow", String(fitting));
      $("#panel-widen").setAttribute("aria-pressed", String(fitting > WIDTH.start));
      return fitting;
    };
    let width = set(this.prefs.get("panelWidth", WIDTH.start));
    const keep = (to) => {
      width = set(to);
      this.prefs.set("panelWidth", width);
    };
    $("#panel-widen").addEventListener("click", () => keep(width > WIDTH.start ? WIDTH.start : WIDTH.wide));
    handle.addEventListener("pointerdown", (event) => {
      handle.setPointerCapture(event.pointerId);
      const move = (to) => (width = set(innerWidth - to.clientX));
      handle.addEventListener("pointermove", move);
      const end = () => {
        handle.removeEventListener("pointermove", move);
        keep(width);
      };
      handle.addEventListener("lostpointercapture", end, { once: true });
    });
    handle.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: WIDTH.step, ArrowRight: -WIDTH.step }[event.key];
      if (!by) return;
      event.preventDefault();
      keep(width + by);
    });
  }
}
