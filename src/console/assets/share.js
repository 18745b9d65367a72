// Giving a recording away: a URL that plays without a key, for a time.

import { json, recordingPath } from "./api.js";
import { copyButton, h, icon, say } from "./dom.js";
import { moment } from "./format.js";
import { problemInWords } from "./words.js";

const LIVES = [
  ["1 hour", 3_600],
  ["1 day", 86_400],
  ["7 days", 7 * 86_400],
  ["30 days", 30 * 86_400],
];

/** Asks for how long, and shows the URL. Nothing is kept. */
export function shareDialog({ recording_sid: sid }) {
  const life = h("select", { id: "life" }, LIVES.map(([words, seconds]) => h("option", { value: seconds }, words)));
  life.value = "86400";
  const result = h("div", { class: "result", role: "status" });
  const make = h("button", { type: "submit", class: "button primary" }, "Create the link");
  const close = h("button", { type: "button", class: "button quiet only", "aria-label": "Close", onclick: () => dialog.close() }, icon("close"));
  const form = h(
    "form",
    {},
    h("div", { class: "dialog-head" }, h("h2", { id: "share" }, "Share this recording"), close),
    h("p", { class: "muted" }, "Whoever has the link can listen without a key, until it ends. Its end cannot be moved."),
    h("div", { class: "line" }, h("div", { class: "field grow" }, h("label", { for: "life" }, "It lives for"), life), make),
    result,
  );
  const dialog = h("dialog", { "aria-labelledby": "share" }, form);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    make.disabled = true;
    result.replaceChildren(...(await shared(sid, Number(life.value))));
    make.disabled = false;
    result.querySelector("button")?.focus();
  });
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
}

async function shared(sid, seconds) {
  try {
    const share = await json(`${recordingPath(sid)}/share`, { method: "POST", body: { expires_in: seconds } });
    const shown = h("code", { class: "url", tabindex: "0" }, share.url);
    say("The link is there.");
    return [shown, h("div", { class: "line" }, copyButton("Copy the link", () => share.url, shown), h("span", { class: "muted" }, `Ends ${moment(share.expires_at)}`))];
  } catch (problem) {
    return [h("p", { class: "wrong" }, problemInWords(problem))];
  }
}
