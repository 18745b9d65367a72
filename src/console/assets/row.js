// One recording in a list, and what a state looks like.

import { h, icon } from "./dom.js";
import { NOTHING, clock, day, length, size } from "./format.js";
import { STATES } from "./words.js";

export function badge({ state }) {
  return h("span", { class: `badge ${state}` }, h("span", { class: "dot" }), STATES[state] ?? state);
}

export function sidText(sid) {
  return h("span", { class: "sid", title: sid }, sid);
}

const cell = (name, ...children) => h("td", { class: name, role: "cell" }, ...children);

export function row(recording) {
  const name = recording.call_sid ?? recording.conference_sid ?? recording.recording_sid;
  const at = recording.recorded_at ?? recording.accepted_at;
  const link = h("a", { href: `#/recordings/${recording.recording_sid}` }, sidText(name));
  return h(
    "tr",
    { role: "row", "data-sid": recording.recording_sid, "data-state": recording.state },
    cell("call", link),
    cell("when", h("time", { datetime: at, title: at }, h("span", {}, day(at)), " ", h("span", { class: "muted" }, clock(at)))),
    cell("number", length(recording.duration_seconds ?? Number.NaN)),
    cell("number size", size(recording.size_bytes)),
    cell("state", badge(recording), recording.hold ? h("span", { class: "badge held" }, "Held") : null),
    cell("go", icon("chevron")),
  );
}

export function heading() {
  const column = (name, text) => h("th", { scope: "col", role: "columnheader", class: name }, text);
  return h(
    "thead",
    { role: "rowgroup" },
    h(
      "tr",
      { role: "row" },
      column("call", "Call"),
      column("when", "Recorded"),
      column("number", "Length"),
      column("number size", "Size"),
      column("state", "State"),
      h("td", { class: "go", role: "cell" }),
    ),
  );
}

/** What stands in for rows that are on their way. */
export function skeletonRow() {
  const line = (name) => h("td", { class: name, role: "cell" }, h("span", { class: "skeleton" }, NOTHING));
  return h("tr", { role: "row", "aria-hidden": "true" }, ["call", "when", "number", "number size", "state", "go"].map(line));
}
