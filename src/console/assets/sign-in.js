// Signing in: a key is tried, and kept where it is known.

import { json } from "./api.js";
import { h, icon } from "./dom.js";
import { session } from "./session.js";
import { problemInWords } from "./words.js";

/** The view that asks for a key; `done` is called once there is a good one. `why` is why it is asked again. */
export function signInView(done, why = "") {
  const key = h("input", {
    id: "key",
    type: "password",
    autocomplete: "off",
    spellcheck: "false",
    required: true,
    "aria-describedby": "key-help key-wrong",
  });
  const wrong = h("p", { id: "key-wrong", class: "wrong", role: "alert" }, why);
  const enter = h("button", { type: "submit", class: "button primary wide" }, "Sign in");
  const form = h(
    "form",
    { class: "card sign-in", novalidate: true },
    h("span", { class: "mark large" }, icon("wave")),
    h("h1", { tabindex: "-1" }, "Sign in to callvault"),
    h("p", { id: "key-help", class: "muted" }, "With an API key that may read. It is kept in this tab alone, and forgotten when the tab is closed."),
    h("label", { for: "key" }, "API key"),
    key,
    wrong,
    enter,
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const problem = await tried(key.value.trim(), enter);
    wrong.textContent = problem ?? "";
    key.toggleAttribute("aria-invalid", problem !== null);
    if (problem === null) done();
    else key.focus();
  });
  return { title: "Sign in", node: h("div", { class: "middle" }, form), shown: () => key.focus() };
}

/** Tries a key; what is wrong with it, or null. */
async function tried(key, enter) {
  if (key === "") return "Enter an API key.";
  // A header takes nothing else; no key has anything else.
  if (!/^[\x21-\x7e]+$/.test(key)) return "That is no API key: it has letters that no key has.";
  enter.disabled = true;
  try {
    await json("v1/recordings", { query: { limit: 1 }, key });
    session.signIn(key);
    return null;
  } catch (problem) {
    if (problem.status === 401) return "That key is not known here.";
    if (problem.status === 403) return "That key may not read. Ask for one with the scope read.";
    return problemInWords(problem);
  } finally {
    enter.disabled = false;
  }
}
