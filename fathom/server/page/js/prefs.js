// Small settings in localStorage, and the API key. A browser may refuse storage (private mode, policy, full):
// then everything works until the tab is closed.

const read = (storage, name) => {
  try {
    return window[storage].getItem(name);
  } catch {
    return null;
  }
};

const write = (storage, name, value) => {
  try {
    if (value === null) window[storage].removeItem(name);
    else window[storage].setItem(name, value);
    return true;
  } catch {
    return false;
  }
};

const PREFS = "fathom.prefs";

export class Prefs {
  constructor() {
    let stored = {};
    try {
      stored = JSON.parse(read("localStorage", PREFS) ?? "{}");
    } catch {
      // unreadable: start fresh
    }
    this.values = typeof stored === "object" && stored !== null ? stored : {};
  }

  get(name, fallback = null) {
    return this.values[name] ?? fallback;
  }

  set(name, value) {
    this.values[name] = value;
    write("localStorage", PREFS, JSON.stringify(this.values));
  }
}

/** Unsent text of a conversation: survives a reload, not the tab. */
export const drafts = {
  get: (id) => read("sessionStorage", `fathom.draft.${id}`) ?? "",
  set: (id, text) => write("sessionStorage", `fathom.draft.${id}`, text || null),
};

const KEY = "fathom.key";

/** The key stays in this tab unless the user asks to remember it. */
export class Keys {
  constructor() {
    this.value = read("sessionStorage", KEY) ?? read("localStorage", KEY) ?? "";
    this.remembered = read("localStorage", KEY) !== null;
  }

  get() {
    return this.value;
  }

  set(value, remember) {
    this.value = value.trim();
    this.remembered = remember && this.value !== "";
    write("sessionStorage", KEY, this.value || null);
    write("localStorage", KEY, this.remembered ? this.value : null);
  }
}

const THEME = "fathom.theme";

export const theme = {
  current: () => document.documentElement.dataset.theme,
  /** "dark", "light", or null to follow the system */
  set(name) {
    write("localStorage", THEME, name);
    theme.apply();
  },
  chosen: () => read("localStorage", THEME),
  apply() {
    const dark = theme.chosen() ? theme.chosen() === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "dark" : "light";
    document.dispatchEvent(new Event("themechange"));
  },
};
