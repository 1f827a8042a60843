// Colours for pictures. Both scales grow steadily in lightness, so they survive every kind of colour blindness and a
// black-and-white printer: pale to deep blue on the light page, cividis (deep blue to yellow) on the dark one.

const SCALES = {
  light: ["#dfe9ec", "#bdd6df", "#8dbccd", "#559cb9", "#2a7a9f", "#10557d", "#072f55"],
  dark: ["#1b3350", "#2f4a6b", "#4d6076", "#6f7780", "#98906f", "#c7b25c", "#fbe44f"],
};

const mode = () => (document.documentElement.dataset.theme === "dark" ? "dark" : "light");

const channels = (hex) => [1, 3, 5].map((i) => Number.parseInt(hex.slice(i, i + 2), 16));

const TABLES = Object.fromEntries(
  Object.entries(SCALES).map(([name, stops]) => {
    const colors = stops.map(channels);
    const table = Array.from({ length: 65 }, (_, i) => {
      const place = (i / 64) * (colors.length - 1);
      const low = Math.min(colors.length - 2, Math.floor(place));
      const mixed = colors[low].map((c, j) => Math.round(c + (colors[low + 1][j] - c) * (place - low)));
      return `rgb(${mixed.join(" ")})`;
    });
    return [name, table];
  }),
);

/** Colour of a part in 0..1. */
export const colorAt = (part) => TABLES[mode()][Math.round(64 * Math.min(1, Math.max(0, part)))];

export const gradient = () => `linear-gradient(to right, ${SCALES[mode()].join(", ")})`;

/** A colour of the style sheet: --pic-NAME */
export const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--pic-${name}`).trim();
