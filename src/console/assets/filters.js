// What a list is to show: the form, and the same in the address.

import { h, icon } from "./dom.js";
import { kindOfSid } from "./format.js";
import { STATES } from "./words.js";

const NAMES = ["q", "state", "from", "to"];

/** What the form says, read from an address. */
export function filterOf(query) {
  return Object.fromEntries(NAMES.map((name) => [name, query.get(name) ?? ""]));
}

/** The address of a list with that filter. */
export function hashOf(filter) {
  const query = new URLSearchParams(NAMES.filter((name) => filter[name]).map((name) => [name, filter[name]]));
  return query.size > 0 ? `#/?${query}` : "#/";
}

export function isEmpty(filter) {
  return NAMES.every((name) => !filter[name]);
}

/** What is wrong with the search, or null. */
export function wrongSearch({ q }) {
  if (q === "" || kindOfSid(q)) return null;
  return "Enter a whole SID: CA (call), RE (recording), CF (conference) or AC (account), and 32 of 0–9 and a–f.";
}

const midnight = (date, days = 0) => {
  const [year, month, dayOfMonth] = date.split("-").map(Number);
  return new Date(year, month - 1, dayOfMonth + days).toISOString();
};

/** The filter as the service's list takes it. Days are the reader's own. */
export function queryOf({ q, state, from, to }) {
  const kind = kindOfSid(q);
  return {
    conference_sid: kind === "CF" ? q : null,
    account_sid: kind === "AC" ? q : null,
    state,
    since: from && midnight(from),
    until: to && midnight(to, 1),
  };
}

/** Whether a recording is one that the list shows. */
export function passes(recording, filter) {
  const query = queryOf(filter);
  const at = Date.parse(recording.recorded_at ?? recording.accepted_at);
  // A call tells of its erased ones; a list only where they are asked for.
  const inState = kindOfSid(filter.q) === "CA" || recording.state !== "erased";
  return (
    (filter.state ? recording.state === filter.state : inState) &&
    (!query.conference_sid || recording.conference_sid === query.conference_sid) &&
    (!query.account_sid || recording.account_sid === query.account_sid) &&
    (!query.since || at >= Date.parse(query.since)) &&
    (!query.until || at < Date.parse(query.until))
  );
}

/** The form. `changed(filter)` is called when it says something else. */
export function filterForm(filter, changed) {
  const q = h("input", {
    id: "q",
    type: "search",
    placeholder: "CA…",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    "aria-describedby": "q-wrong",
  });
  const wrong = h("p", { id: "q-wrong", class: "wrong", role: "alert" });
  const states = Object.entries(STATES).map(([state, word]) => h("option", { value: state }, word));
  const state = h("select", { id: "state" }, h("option", { value: "" }, "Any state"), states);
  const [from, to] = ["from", "to"].map((id) => h("input", { id, type: "date" }));
  const inputs = { q, state, from, to };
  for (const name of NAMES) inputs[name].value = filter[name];

  const read = ({ finished }) => {
    const said = Object.fromEntries(NAMES.map((name) => [name, inputs[name].value.trim()]));
    const problem = wrongSearch(said);
    // Nobody is scolded while they are typing.
    wrong.textContent = problem && finished ? problem : "";
    q.toggleAttribute("aria-invalid", Boolean(problem && finished));
    if (!problem) changed(said);
  };
  q.addEventListener("input", () => read({ finished: false }));
  for (const input of [state, from, to]) input.addEventListener("change", () => read({ finished: true }));
  const form = h(
    "form",
    { class: "filters", role: "search", "aria-label": "Find recordings" },
    h("div", { class: "field grow" }, h("label", { for: "q" }, "Call SID"), h("div", { class: "search" }, icon("search"), q)),
    h("div", { class: "field" }, h("label", { for: "state" }, "State"), state),
    h("div", { class: "field" }, h("label", { for: "from" }, "From"), from),
    h("div", { class: "field" }, h("label", { for: "to" }, "To"), to),
    wrong,
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    read({ finished: true });
  });
  return form;
}
