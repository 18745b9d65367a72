// What happened to a recording, told in words, and what comes next.

import { h } from "./dom.js";
import { moment } from "./format.js";
import { next, tell } from "./words.js";

export function story(recording) {
  const entries = (recording.history ?? []).map((entry) => {
    const { text, answered, tone } = tell(entry);
    return h(
      "li",
      { class: tone },
      h("p", {}, text),
      answered ? h("p", { class: "answered" }, answered) : null,
      h("time", { class: "muted", datetime: entry.at, title: entry.at }, moment(entry.at)),
    );
  });
  return [
    h("h2", { id: "story" }, "What happened"),
    h("ol", { class: "story" }, entries),
    h("div", { class: "next" }, h("h3", {}, "What comes next"), h("p", { id: "next" }, next(recording))),
  ];
}
