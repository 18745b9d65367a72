// One recording: whether it plays, what happened to it, and what comes next.

import { json, recordingPath } from "./api.js";
import { button, h, icon, say } from "./dom.js";
import { facts } from "./facts.js";
import { actions } from "./actions.js";
import { story } from "./story.js";
import { player } from "./player.js";
import { badge, sidText } from "./row.js";
import { ON_ITS_WAY, STATES, next, notPlayable, problemInWords } from "./words.js";

/** What is on its way changes without an event: an attempt begins, or fails. */
const LOOK_AGAIN_MS = 2_000;
const COUNT_DOWN_MS = 1_000;

export function recordingView(sid) {
  const shown = new RecordingPage(sid);
  return {
    title: `Recording ${sid.slice(-6)}`,
    node: shown.node,
    shown: () => shown.begin(),
    leave: () => shown.leave(),
    heard: (events) => shown.heard(events),
    isAt: (place) => place.sid === sid,
  };
}

class RecordingPage {
  #sid;
  #recording = null;
  #over = new AbortController();
  #timers = [];
  #player = null;
  #asking = false;
  #again = false;
  #parts = new Map();

  constructor(sid) {
    this.#sid = sid;
    this.head = h("div", { class: "head" }, h("h1", { tabindex: "-1" }, h("span", { class: "skeleton" }, "Call")));
    this.playing = h("section", { class: "card", "aria-label": "Player" }, h("div", { class: "skeleton block" }));
    this.doing = h("div", { class: "actions" });
    this.telling = h("section", { class: "card", "aria-labelledby": "story" }, h("div", { class: "skeleton block" }));
    this.knowing = h("section", { class: "card", "aria-labelledby": "facts" }, h("div", { class: "skeleton block" }));
    this.node = h(
      "div",
      { class: "page" },
      h("a", { href: "#/", class: "back" }, icon("back"), "All recordings"),
      this.head,
      this.playing,
      this.doing,
      h("div", { class: "columns" }, this.telling, this.knowing),
    );
  }

  begin() {
    this.#load();
    this.#timers = [
      setInterval(() => !document.hidden && ON_ITS_WAY.has(this.#recording?.state) && this.#load(), LOOK_AGAIN_MS),
      setInterval(() => this.#countDown(), COUNT_DOWN_MS),
    ];
  }

  leave() {
    this.#over.abort();
    this.#timers.forEach(clearInterval);
    this.#player?.leave();
  }

  heard(events) {
    const concerns = events === null || events.some(({ recording }) => recording?.recording_sid === this.#sid);
    if (concerns) this.#load();
  }

  /** One question at a time: an older answer never follows a newer one. */
  async #load() {
    this.#again = this.#asking;
    if (this.#asking) return;
    this.#asking = true;
    await this.#ask();
    this.#asking = false;
    if (this.#again && !this.#over.signal.aborted) this.#load();
  }

  async #ask() {
    try {
      const recording = await json(recordingPath(this.#sid), { signal: this.#over.signal });
      if (this.#over.signal.aborted) return;
      const before = this.#recording;
      this.#recording = recording;
      if (before && before.state !== recording.state) say(`It is now: ${STATES[recording.state]}.`);
      this.#show(recording);
    } catch (problem) {
      // What is shown already stays until the service answers again.
      if (!this.#over.signal.aborted && !this.#recording) this.#showProblem(problem);
    }
  }

  // ---- showing ----

  #show(recording) {
    const { state, sha256, history, hold, last_asked_at: _, ...rest } = recording;
    this.#part("head", [state, hold, rest.call_sid], () => this.head.replaceChildren(...this.#title(recording)));
    this.#part("player", [state === "stored" ? sha256 : state, rest.last_error?.code], () => this.#showPlayer(recording));
    this.#part("doing", [state], () => this.doing.replaceChildren(...actions(recording, () => this.#load())));
    this.#part("story", [history, state, rest.next_attempt_at, hold], () => this.telling.replaceChildren(...story(recording)));
    this.#part("facts", [state, sha256, hold, rest], () => this.knowing.replaceChildren(...facts(recording)));
    this.#countDown();
  }

  /** Makes a part anew where what it shows is another: whoever stands in it is not disturbed. */
  #part(name, shows, make) {
    const now = JSON.stringify(shows);
    if (this.#parts.get(name) === now) return;
    this.#parts.set(name, now);
    make();
  }

  #title(recording) {
    const [what, sid] = recording.call_sid
      ? ["Call", recording.call_sid]
      : recording.conference_sid
        ? ["Conference", recording.conference_sid]
        : ["Recording", recording.recording_sid];
    const focused = this.head.querySelector("h1") === document.activeElement;
    const title = h("h1", { tabindex: "-1" }, `${what} `, sidText(sid));
    if (focused) queueMicrotask(() => title.focus());
    return [title, h("div", { class: "badges" }, badge(recording), recording.hold ? h("span", { class: "badge held" }, "Held") : null)];
  }

  #showPlayer(recording) {
    this.#player?.leave();
    this.#player = null;
    const { state } = recording;
    if (state === "stored") {
      this.#player = player(recording);
      this.playing.replaceChildren(this.#player.node);
    } else if (state === "evicted") {
      const text = "Nobody asked for it for a long time, so it is at Twilio only.";
      const fetchIt = button("retry", "Fetch it again", () => this.#fetchEvicted(fetchIt), { class: "button primary" });
      this.playing.replaceChildren(h("div", { class: "silence" }, icon("wave"), h("p", {}, text), fetchIt));
    } else {
      const moving = ON_ITS_WAY.has(state) ? " moving" : "";
      this.playing.replaceChildren(h("div", { class: `silence${moving}` }, icon("wave"), h("p", {}, notPlayable(recording))));
    }
  }

  /** Asking for its link has it fetched. */
  async #fetchEvicted(from) {
    from.disabled = true;
    await json(`${recordingPath(this.#sid)}/link`, { query: { wait: 0 }, signal: this.#over.signal }).catch((problem) => {
      if (!this.#over.signal.aborted) say(problemInWords(problem));
    });
    from.disabled = false;
    this.#load();
  }

  #countDown() {
    const line = document.getElementById("next");
    const text = this.#recording && next(this.#recording);
    if (line && line.textContent !== text) line.textContent = text;
  }

  #showProblem(problem) {
    const unknown = problem.status === 404;
    const title = unknown ? "No such recording" : problem.message;
    const text = unknown ? "callvault does not know it, or this key may not see it." : problem.detail;
    const again = unknown ? null : button("retry", "Try again", () => this.#load());
    this.head.replaceChildren(h("h1", { tabindex: "-1" }, title));
    this.playing.replaceChildren(h("div", { class: "silence" }, icon("search"), h("p", {}, text), again));
    this.telling.hidden = this.knowing.hidden = !this.#recording;
    say(title);
  }
}
