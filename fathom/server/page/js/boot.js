// Runs before the first paint (a classic script, not a module): without it a dark page would flash white.
(() => {
  let theme = null;
  try {
    theme = localStorage.getItem("fathom.theme");
  } catch {
    // storage is blocked: follow the system
  }
  const dark = theme ? theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  document.documentElement.dataset.theme = dark ? "dark" : "light";
})();
