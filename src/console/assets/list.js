// The list of recordings: found by what the form says, and moving by itself.

import { callPath, json } from "./api.js";
import { button, h, icon, say } from "./dom.js";
import { filterForm, filterOf, hashOf, isEmpty, passes, queryOf, wrongSearch } from "./filters.js";
import { kindOfSid } from "./format.js";
import { heading, row, skeletonRow } from "./row.js";
import { ON_ITS_WAY, STATES, problemInWords } from "./words.js";

const PAGE = 50;
/** Someone is still typing. */
const TYPING_MS = 250;
/** What is on its way changes without an event: an attempt begins, or fails. */
const LOOK_AGAIN_MS = 5_000;
/** News that come in a storm are shown together. */
const GATHER_MS = 300;

const order = (a, b) => {
  const at = (recording) => Date.parse(recording.recorded_at ?? recording.accepted_at);
  return at(b) - at(a) || (a.recording_sid < b.recording_sid ? 1 : -1);
};

export function listView(query) {
  const list = new List(filterOf(query));
  return {
    title: "Recordings",
    node: list.node,
    shown: () => list.begin(),
    leave: () => list.leave(),
    heard: (events) => list.heard(events),
    isAt: ({ path, query: asked }) => path === "" && hashOf(filterOf(asked)) === hashOf(list.filter),
  };
}

class List {
  #shown = new Map();
  #next = null;
  #asked = new AbortController();
  #typing = null;
  #looking = null;
  #gathering = null;
  #isLooking = false;
  #missed = false; // something happened while the list was asked for

  constructor(filter) {
    this.filter = filter;
    this.body = h("tbody", { role: "rowgroup" });
    this.table = h("table", { role: "table", "aria-label": "Recordings", class: "list" }, heading(), this.body);
    this.notice = h("div", { class: "notice" });
    this.more = h("div", { class: "more" });
    this.node = h(
      "div",
      { class: "page" },
      h("h1", { tabindex: "-1" }, "Recordings"),
      filterForm(filter, (said) => this.#refilter(said)),
      h("section", { class: "card flush", "aria-label": "What was found" }, this.table, this.notice, this.more),
    );
  }

  begin() {
    if (kindOfSid(this.filter.q) === "RE") location.replace(`#/recordings/${this.filter.q}`);
    else this.#load();
    this.#looking = setInterval(() => this.#lookAgain(), LOOK_AGAIN_MS);
  }

  leave() {
    this.#asked.abort();
    clearInterval(this.#looking);
    clearTimeout(this.#typing);
    clearTimeout(this.#gathering);
  }

  #refilter(said) {
    if (hashOf(said) === hashOf(this.filter)) return;
    clearTimeout(this.#typing);
    this.#typing = setTimeout(() => {
      if (kindOfSid(said.q) === "RE") {
        location.hash = `#/recordings/${said.q}`;
        return;
      }
      this.filter = said;
      history.replaceState(null, "", hashOf(said));
      this.#load();
    }, TYPING_MS);
  }

  // ---- asking ----

  async #load() {
    this.#asked.abort();
    this.#asked = new AbortController();
    const { signal } = this.#asked;
    this.#wait();
    try {
      const page = await this.#page(signal, null);
      this.#shown = new Map(page.recordings.map((recording) => [recording.recording_sid, recording]));
      this.#next = page.next;
      this.#show();
      say(this.#shown.size === 0 ? "Nothing was found." : `${this.#shown.size}${this.#next ? " and more" : ""} found.`);
      this.#lookAtMissed();
    } catch (problem) {
      if (!signal.aborted) this.#showProblem(problem);
    }
  }

  async #page(signal, after) {
    if (wrongSearch(this.filter)) return { recordings: [], next: null };
    if (kindOfSid(this.filter.q) !== "CA") {
      return json("v1/recordings", { query: { ...queryOf(this.filter), limit: PAGE, after }, signal });
    }
    // A call is found under the SIDs of its other legs, too.
    const call = await json(callPath(this.filter.q), { signal }).catch((problem) => {
      if (problem.status === 404) return { recordings: [] };
      throw problem;
    });
    return { recordings: call.recordings.filter((recording) => passes(recording, this.filter)), next: null };
  }

  async #loadMore(from) {
    from.disabled = true;
    try {
      const page = await this.#page(this.#asked.signal, this.#next);
      this.#next = page.next;
      for (const recording of page.recordings) this.#shown.set(recording.recording_sid, recording);
      const first = page.recordings[0]?.recording_sid;
      this.#show();
      this.body.querySelector(`[data-sid="${first}"] a`)?.focus();
      say(`${page.recordings.length} more.`);
    } catch (problem) {
      from.disabled = false;
      say(problemInWords(problem));
    }
  }

  // ---- what happens meanwhile ----

  heard(events) {
    if (this.table.ariaBusy === "true" || this.#isLooking) {
      this.#missed = true;
    } else if (events === null) {
      this.#lookAgain({ all: true });
    } else {
      for (const { recording } of events) if (recording) this.#take(recording);
      this.#gathering ??= setTimeout(() => {
        this.#gathering = null;
        if (this.table.ariaBusy !== "true") this.#show();
      }, GATHER_MS);
    }
  }

  #take(recording) {
    const sid = recording.recording_sid;
    const known = this.#shown.get(sid);
    const ofCall = kindOfSid(this.filter.q) === "CA" && recording.call_sid !== this.filter.q;
    if (!passes(recording, this.filter) || (ofCall && !known)) {
      this.#shown.delete(sid);
      return;
    }
    // What belongs behind the end of what was loaded comes with the next page.
    const last = [...this.#shown.values()].sort(order).at(-1);
    if (!known && this.#next && last && order(recording, last) > 0) return;
    if (known && known.state !== recording.state) say(`Call ${recording.call_sid ?? ""}: ${STATES[recording.state]}.`);
    this.#shown.set(sid, recording);
  }

  async #lookAgain({ all = false } = {}) {
    const moving = [...this.#shown.values()].some(({ state }) => ON_ITS_WAY.has(state));
    if (document.hidden || this.#isLooking || this.table.ariaBusy === "true" || !(all || moving)) return;
    const { signal } = this.#asked;
    this.#isLooking = true;
    try {
      const page = await this.#page(signal, null);
      const oldest = page.next && page.recordings.toSorted(order).at(-1);
      // What the first page reaches over and does not have is there no more.
      for (const [sid, known] of this.#shown) {
        if (!oldest || order(known, oldest) <= 0) this.#shown.delete(sid);
      }
      for (const recording of page.recordings) this.#shown.set(recording.recording_sid, recording);
      if (!oldest) this.#next = null;
      else this.#next ??= page.next;
      this.#show();
    } catch {
      // The next look is soon; what is shown stays.
    }
    this.#isLooking = false;
    this.#lookAtMissed();
  }

  #lookAtMissed() {
    if (!this.#missed || this.table.ariaBusy === "true" || this.#asked.signal.aborted) return;
    this.#missed = false;
    this.#lookAgain({ all: true });
  }

  // ---- showing ----

  #wait() {
    this.table.ariaBusy = "true";
    this.table.hidden = false;
    this.notice.replaceChildren();
    this.more.replaceChildren();
    this.body.replaceChildren(...Array.from({ length: 6 }, skeletonRow));
  }

  #show() {
    this.table.ariaBusy = "false";
    const recordings = [...this.#shown.values()].sort(order);
    this.#showRows(recordings);
    this.table.hidden = recordings.length === 0;
    this.notice.replaceChildren(...(recordings.length === 0 ? [this.#nothing()] : []));
    const more = button("retry", "Show more", (event) => this.#loadMore(event.currentTarget));
    if (!this.#next) this.more.replaceChildren();
    else if (!this.more.hasChildNodes()) this.more.append(more);
    else this.more.firstChild.disabled = false;
  }

  /** Changes only the rows that are others now: whoever stands in one stays there. */
  #showRows(recordings) {
    const old = new Map([...this.body.children].filter((tr) => tr.dataset.sid).map((tr) => [tr.dataset.sid, tr]));
    const rows = recordings.map((recording) => {
      const [known, made] = [old.get(recording.recording_sid), row(recording)];
      if (known && looksLike(known, made)) return known;
      if (known || old.size > 0) made.classList.add("moved");
      if (known?.contains(document.activeElement)) queueMicrotask(() => made.querySelector("a").focus());
      return made;
    });
    for (const tr of [...this.body.children]) if (!rows.includes(tr)) tr.remove();
    // A row that is moved loses the focus: only what is new or elsewhere is put in.
    rows.forEach((tr, at) => {
      if (this.body.children[at] !== tr) this.body.insertBefore(tr, this.body.children[at] ?? null);
    });
  }

  #nothing() {
    const { q } = this.filter;
    if (kindOfSid(q) === "CA") return this.#unknownCall(q);
    if (!isEmpty(this.filter)) {
      const clear = button("close", "Show all", () => (location.hash = "#/"));
      return empty("search", "No recording is like that", "Try another state or another time.", clear);
    }
    const how = "They appear here by themselves as soon as Twilio calls back, or your application names one.";
    return empty("wave", "No recordings yet", how);
  }

  /** The service can ask Twilio for a call that it does not know. */
  #unknownCall(call) {
    const filtered = this.filter.state || this.filter.from || this.filter.to;
    const answer = h("p", { class: "muted", role: "status" });
    const ask = button("retry", "Ask Twilio for it", async () => {
      ask.disabled = true;
      answer.textContent = "Twilio is being asked…";
      const told = await json(`${callPath(call)}/link`, { query: { wait: 15 }, signal: this.#asked.signal }).catch((problem) => problem);
      if (told.status === 404 && told.code === "not_found") {
        answer.textContent = "Twilio knows no recording of this call, or this key may not see it.";
        ask.disabled = false;
      } else if (told.code === "unavailable" || told.code === "unreachable") {
        answer.textContent = problemInWords(told);
        ask.disabled = false;
      } else if (!this.#asked.signal.aborted) {
        this.#load();
      }
    });
    const why = filtered ? "Nothing of this call is in that state and time." : "callvault has no recording of this call.";
    return empty("search", "Nothing of this call", why, ask, answer);
  }

  #showProblem(problem) {
    this.table.ariaBusy = "false";
    this.table.hidden = true;
    this.body.replaceChildren();
    const again = button("retry", "Try again", () => this.#load());
    this.notice.replaceChildren(empty("close", problem.message, problem.detail, again));
    say(problemInWords(problem));
  }
}

/** Whether two rows say the same. */
function looksLike(one, other) {
  return [...one.children].every((cell, at) => cell.isEqualNode(other.children[at]));
}

function empty(name, title, text, ...more) {
  return h("div", { class: "empty" }, h("span", { class: "mark pale" }, icon(name)), h("h2", {}, title), h("p", { class: "muted" }, text), ...more);
}
