// Layers x experts as a picture on a canvas: row l, column e. Two uses: the experts one token chose, and the load of each
// expert over the answer. Works from 5 x 32 to 61 x 384: cells shrink to 1 px before the picture scrolls, rows keep at
// least 5 px, and a chosen cell is never drawn narrower than 3 px.

import { perFrame } from "./dom.js";
import { colorAt, ink } from "./palette.js";

const LEFT = 26; // layer numbers
const TOP = 16; // expert numbers
const BAR = 58; // max / mean beside the rows
const GAP = 10;

export class HeatMap {
  /** onPoint(layer, expert | null, event kind: "hover" | "leave" | "click") */
  constructor(canvas, { bars = false, onPoint = () => {} } = {}) {
    Object.assign(this, { canvas, bars, onPoint });
    this.data = null; // {layers, experts, value(l, e) 0..1 or null, chosen(l, e) bool, ratio: [L]}
    this.cursor = null; // {l, e}
    this.pinned = null;
    this.draw = perFrame(() => this.#paint());
    new ResizeObserver(() => this.draw()).observe(canvas.parentElement);
    document.addEventListener("themechange", () => this.draw());
    canvas.addEventListener("pointermove", (event) => this.#point(event, "hover"));
    canvas.addEventListener("pointerdown", (event) => this.#point(event, "click"));
    canvas.addEventListener("pointerleave", () => this.#move(null, "leave"));
    canvas.addEventListener("keydown", (event) => this.#key(event));
    canvas.addEventListener("blur", () => this.#move(null, "leave"));
  }

  show(data) {
    this.data = data;
    this.draw();
  }

  #layout() {
    const { layers, experts } = this.data;
    const room = this.canvas.parentElement.clientWidth;
    const right = this.bars ? BAR + GAP : 0;
    const cellWidth = Math.max(1, (room - LEFT - right) / experts);
    const cellHeight = layers <= 8 ? 18 : layers <= 16 ? 13 : layers <= 32 ? 9 : 6;
    return {
      cellWidth,
      cellHeight,
      width: LEFT + cellWidth * experts + right,
      height: TOP + cellHeight * layers + 2,
      right: LEFT + cellWidth * experts + GAP,
    };
  }

  #paint() {
    if (!this.data || !this.canvas.parentElement.clientWidth) return;
    const at = this.#layout();
    const scale = devicePixelRatio || 1;
    const { canvas } = this;
    canvas.width = Math.round(at.width * scale);
    canvas.height = Math.round(at.height * scale);
    canvas.style.width = `${at.width}px`;
    canvas.style.height = `${at.height}px`;
    const pen = canvas.getContext("2d");
    pen.scale(scale, scale);
    pen.font = `10px ${getComputedStyle(canvas).fontFamily}`;
    this.#paintCells(pen, at);
    this.#paintScales(pen, at);
    if (this.bars) this.#paintBars(pen, at);
    for (const [cell, color] of [
      [this.pinned, ink("chosen")],
      [this.cursor, ink("text")],
    ]) {
      if (cell) this.#frame(pen, at, cell, color);
    }
  }

  #paintCells(pen, { cellWidth, cellHeight }) {
    const { layers, experts, value, chosen } = this.data;
    const gapX = cellWidth >= 5 ? 1 : 0;
    const gapY = cellHeight >= 5 ? 1 : 0;
    for (let l = 0; l < layers; l++) {
      const y = TOP + l * cellHeight;
      pen.fillStyle = ink("cell");
      if (!gapX) pen.fillRect(LEFT, y, cellWidth * experts, cellHeight - gapY);
      for (let e = 0; e < experts; e++) {
        const x = LEFT + e * cellWidth;
        const part = value?.(l, e) ?? null;
        if (part !== null || gapX) {
          pen.fillStyle = part === null ? ink("cell") : colorAt(part);
          pen.fillRect(x, y, cellWidth - gapX + (gapX ? 0 : 0.3), cellHeight - gapY);
        }
      }
      pen.fillStyle = ink("chosen");
      for (let e = 0; chosen && e < experts; e++) {
        if (!chosen(l, e)) continue;
        const wide = Math.max(3, cellWidth - gapX);
        pen.fillRect(LEFT + (e + 0.5) * cellWidth - gapX / 2 - wide / 2, y, wide, cellHeight - gapY);
      }
    }
  }

  #paintScales(pen, { cellWidth, cellHeight }) {
    const { layers, experts } = this.data;
    pen.fillStyle = ink("faint");
    pen.textBaseline = "middle";
    pen.textAlign = "right";
    const every = cellHeight >= 11 ? 1 : 5;
    for (let l = 0; l < layers; l += every) pen.fillText(String(l), LEFT - 6, TOP + (l + 0.5) * cellHeight - 0.5);
    pen.textAlign = "center";
    const step = [1, 2, 4, 8, 16, 32, 64, 128].find((n) => n * cellWidth >= 30) ?? 256;
    for (let e = 0; e < experts; e += step) pen.fillText(String(e), LEFT + (e + 0.5) * cellWidth, TOP / 2 - 1);
  }

  /** How uneven each layer is: a bar from 1 (even) to the worst layer's max / mean. */
  #paintBars(pen, { cellHeight, right }) {
    const { layers, ratio } = this.data;
    const worst = Math.max(1.001, ...ratio);
    const numbers = cellHeight >= 11;
    const room = numbers ? BAR - 24 : BAR;
    pen.fillStyle = ink("faint");
    pen.textAlign = "left";
    pen.fillText("max/mean", right, TOP / 2 - 1);
    for (let l = 0; l < layers; l++) {
      const y = TOP + l * cellHeight;
      const wide = Math.max(1, (room * ratio[l]) / worst);
      pen.fillStyle = ink("bar");
      pen.fillRect(right, y + cellHeight * 0.2, wide, cellHeight * 0.6 - 0.5);
      if (!numbers) continue;
      pen.fillStyle = ink("faint");
      pen.fillText(ratio[l].toFixed(1), right + wide + 4, y + cellHeight / 2 - 0.5);
    }
  }

  #frame(pen, { cellWidth, cellHeight }, { l, e }, color) {
    pen.strokeStyle = color;
    pen.lineWidth = 1.5;
    const wide = Math.max(5, cellWidth);
    pen.strokeRect(LEFT + (e + 0.5) * cellWidth - wide / 2 - 0.5, TOP + l * cellHeight - 1, wide, cellHeight + 1);
  }

  // ---- pointing ----

  #point(event, kind) {
    if (!this.data) return;
    const at = this.#layout();
    const e = Math.floor((event.offsetX - LEFT) / at.cellWidth);
    const l = Math.floor((event.offsetY - TOP) / at.cellHeight);
    const { layers, experts } = this.data;
    const inside = l >= 0 && l < layers && e >= 0 && e < experts;
    this.#move(inside ? { l, e } : null, inside ? kind : "leave");
  }

  #move(cell, kind) {
    this.cursor = cell;
    this.draw();
    this.onPoint(cell?.l ?? null, cell?.e ?? null, kind);
  }

  #key(event) {
    if (!this.data) return;
    const { layers, experts } = this.data;
    const { l, e } = this.cursor ?? { l: 0, e: 0 };
    const to = {
      ArrowLeft: [l, e - 1],
      ArrowRight: [l, e + 1],
      ArrowUp: [l - 1, e],
      ArrowDown: [l + 1, e],
      Home: [l, 0],
      End: [l, experts - 1],
    }[event.key];
    if (to) {
      event.preventDefault();
      this.#move(
        { l: Math.min(layers - 1, Math.max(0, to[0])), e: Math.min(experts - 1, Math.max(0, to[1])) },
        "hover",
      );
    } else if (event.key === "Enter" && this.cursor) {
      event.preventDefault();
      this.#move(this.cursor, "click");
    }
  }
}
