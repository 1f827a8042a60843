// Questions that stop the page: native <dialog>, which brings focus trapping and Escape.

import { $, h } from "./dom.js";

function ask(title, body, buttons) {
  return new Promise((resolve) => {
    const dialog = h(
      "dialog",
      { class: "dialog", "aria-label": title },
      h("h2", {}, title),
      h("p", {}, body),
      h(
        "div",
        { class: "form-row end" },
        buttons.map(([label, value, kind]) =>
          h("button", { type: "button", class: `button ${kind}`, onclick: () => dialog.close(value) }, label),
        ),
      ),
    );
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

export const dialogs = {
  confirm: (title, body, yes) =>
    ask(title, body, [
      ["Cancel", "", ""],
      [yes, "yes", "danger"],
    ]),
  tell: (title, body) => ask(title, body, [["OK", "", "primary"]]),

  /** Asks for the API key; true when one was given. */
  askKey(keys, message) {
    const dialog = $("#key-dialog");
    const input = $("#key-input");
    $("#key-message").textContent = message;
    $("#key-remember").checked = keys.remembered;
    input.value = keys.get();
    dialog.returnValue = "";
    dialog.showModal();
    input.select();
    return new Promise((resolve) => {
      const closed = () => {
        if (dialog.returnValue !== "save") return resolve(false);
        keys.set(input.value, $("#key-remember").checked);
        return resolve(true);
      };
      dialog.addEventListener("close", closed, { once: true });
    });
  },
};
