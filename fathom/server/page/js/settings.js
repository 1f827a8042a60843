// The settings panel: system prompt of this conversation, sampling for all, the API key. An empty field is not sent: the
// server's default holds, and the placeholder shows it where it is known. A value outside its range is never sent; the
// field says what is allowed.

import { $, h } from "./dom.js";

// slider: where it stands while neither the person nor the server named a value (the neutral one)
const FIELDS = [
  {
    name: "temperature",
    label: "Temperature",
    min: 0,
    max: 2,
    step: 0.05,
    slider: 1,
    help: "0 is greedy: always the likeliest token.",
  },
  {
    name: "top_p",
    label: "Top-p",
    min: 0.01,
    max: 1,
    step: 0.01,
    slider: 1,
    help: "Sample from the likeliest tokens that hold this much probability together.",
  },
  {
    name: "min_p",
    label: "Min-p",
    min: 0,
    max: 1,
    step: 0.01,
    slider: 0,
    help: "Drop tokens less likely than this share of the likeliest.",
  },
  { name: "top_k", label: "Top-k", min: 1, integer: true, help: "Sample from the k likeliest tokens only." },
  {
    name: "max_tokens",
    label: "Maximum tokens",
    min: 1,
    integer: true,
    help: "Length limit of an answer, reasoning included.",
  },
  {
    name: "seed",
    label: "Seed",
    min: 0,
    max: Number.MAX_SAFE_INTEGER,
    integer: true,
    help: "The same seed and settings give the same answer.",
  },
  {
    name: "presence_penalty",
    label: "Presence penalty",
    min: -2,
    max: 2,
    step: 0.1,
    help: "Above 0: disfavours tokens that occurred at all.",
  },
  {
    name: "frequency_penalty",
    label: "Frequency penalty",
    min: -2,
    max: 2,
    step: 0.1,
    help: "Above 0: disfavours tokens by how often they occurred.",
  },
  {
    name: "repetition_penalty",
    label: "Repetition penalty",
    min: 0.01,
    max: 2,
    step: 0.05,
    help: "Divides the score of tokens seen before; 1 is off.",
  },
];

export class Settings {
  constructor({ prefs, keys, library, reload }) {
    Object.assign(this, { prefs, keys, library, reload });
    this.model = null;
    this.conversation = null;
    this.rows = new Map();
    this.values = { ...prefs.get("sampling", {}) }; // name -> text as typed
    $("#sampling").append(...FIELDS.map((field) => this.#row(field)), this.#stopRow());
    $("#sampling-reset").addEventListener("click", () => this.#reset());
    this.#wireSystem();
    this.#wireKey();
  }

  // ---- sampling ----

  #row(field) {
    const id = `field-${field.name}`;
    const input = h("input", {
      id,
      type: "text",
      inputmode: field.integer ? "numeric" : "decimal",
      autocomplete: "off",
      "aria-describedby": `${id}-help`,
    });
    input.value = this.values[field.name] ?? "";
    const slider =
      field.slider !== undefined &&
      h("input", {
        type: "range",
        min: String(field.min),
        max: String(field.max),
        step: String(field.step),
        "aria-label": `${field.label}, slider`,
      });
    const help = h("p", { class: "field-help", id: `${id}-help` });
    input.addEventListener("input", () => this.#typed(field, input.value));
    slider && slider.addEventListener("input", () => ((input.value = slider.value), this.#typed(field, slider.value)));
    const row = h("div", { class: "field" }, h("label", { for: id }, field.label), slider || null, input, help);
    this.rows.set(field.name, { field, input, slider, help, row });
    this.#refreshRow(field.name);
    return row;
  }

  #stopRow() {
    const area = h("textarea", {
      id: "field-stop",
      rows: "2",
      placeholder: "none",
      "aria-describedby": "field-stop-help",
      spellcheck: "false",
    });
    area.value = this.values.stop ?? "";
    area.addEventListener("input", () => this.#store("stop", area.value));
    this.stopArea = area;
    return h(
      "div",
      { class: "field tall" },
      h("label", { for: "field-stop" }, "Stop strings"),
      area,
      h("p", { class: "field-help", id: "field-stop-help" }, "One per line, 16 at most; the answer ends before them."),
    );
  }

  #typed(field, text) {
    this.#store(field.name, text);
    this.#refreshRow(field.name);
  }

  #store(name, text) {
    if (text.trim() === "") delete this.values[name];
    else this.values[name] = text;
    this.prefs.set("sampling", this.values);
  }

  #limits(field) {
    const max =
      field.name === "max_tokens"
        ? (this.model?.max_model_len ?? Infinity)
        : field.name === "top_k"
          ? Infinity
          : field.max;
    return { min: field.min, max };
  }

  /** null when fine or empty, else the sentence that says what is allowed */
  #problemOf(field) {
    const text = this.values[field.name];
    if (text === undefined) return null;
    const value = Number(text);
    const { min, max } = this.#limits(field);
    const range =
      max === Infinity
        ? `${min} or more`
        : max === Number.MAX_SAFE_INTEGER
          ? `${min} or more`
          : `between ${min} and ${max}`;
    if (!Number.isFinite(value) || (field.integer && !Number.isInteger(value)))
      return `${field.label} is “${text}”; it must be a ${field.integer ? "whole " : ""}number.`;
    if (value < min || value > max) return `${field.label} is ${text}; it must be ${range}.`;
    return null;
  }

  #refreshRow(name) {
    const { field, input, slider, help, row } = this.rows.get(name);
    const problem = this.#problemOf(field);
    help.textContent = problem ?? field.help;
    row.classList.toggle("wrong", problem !== null);
    row.classList.toggle("unset", this.values[name] === undefined);
    input.setAttribute("aria-invalid", String(problem !== null));
    const preset = this.model?.default?.[name];
    input.placeholder = preset === undefined || preset === null ? "default" : String(preset);
    if (slider) slider.value = this.values[name] ?? String(preset ?? field.slider);
  }

  #reset() {
    this.values = {};
    this.prefs.set("sampling", {});
    this.stopArea.value = "";
    for (const [name, { input }] of this.rows) {
      input.value = "";
      this.#refreshRow(name);
    }
  }

  setModel(model) {
    this.model = model;
    for (const name of this.rows.keys()) this.#refreshRow(name);
  }

  // ---- what chat.js and composer.js ask ----

  problem() {
    return FIELDS.map((field) => this.#problemOf(field)).find(Boolean) ?? null;
  }

  showProblem() {
    this.openPanel?.();
    for (const { field, input } of this.rows.values()) {
      if (this.#problemOf(field)) return input.focus();
    }
    return undefined;
  }

  /** The parameters to send: only what was set. */
  request() {
    const params = {};
    for (const field of FIELDS) {
      if (this.values[field.name] !== undefined && !this.#problemOf(field))
        params[field.name] = Number(this.values[field.name]);
    }
    const stop = (this.values.stop ?? "")
      .split("\n")
      .filter((line) => line !== "")
      .slice(0, 16);
    if (stop.length) params.stop = stop;
    if (this.model?.thinking) params.thinking = this.on("thinking");
    if (this.model?.moe_layers && this.on("inside")) params.inside = true;
    return params;
  }

  on(name) {
    return this.prefs.get(name, false);
  }

  toggle(name) {
    this.prefs.set(name, !this.on(name));
  }

  // ---- system prompt and key ----

  #wireSystem() {
    const area = $("#system");
    area.addEventListener("input", () => {
      this.conversation.system = area.value;
      if (Object.keys(this.conversation.nodes).length) this.library.save(this.conversation, { touch: false });
      if ($("#system-keep").checked) this.prefs.set("system", area.value);
    });
    $("#system-keep").addEventListener("change", (event) =>
      this.prefs.set("system", event.target.checked ? area.value : ""),
    );
  }

  showConversation(conversation) {
    if (this.conversation === conversation) return;
    this.conversation = conversation;
    $("#system").value = conversation.system;
    const kept = this.prefs.get("system", "");
    $("#system-keep").checked = kept !== "" && kept === conversation.system;
  }

  #wireKey() {
    const field = $("#panel-key");
    const remember = $("#panel-remember");
    const store = () => {
      this.keys.set(field.value, remember.checked);
      this.reload();
    };
    field.addEventListener("change", store);
    remember.addEventListener("change", store);
    this.showKey();
  }

  showKey() {
    $("#panel-key").value = this.keys.get();
    $("#panel-remember").checked = this.keys.remembered;
  }
}
