// The player: a waveform to seek in, the usual buttons, and the module that
// keeps links fresh, which is the one that applications get.

import { ask, recordingPath } from "./api.js";
import { attach } from "./callvault-player.js";
import { h } from "./dom.js";
import { length, spoken } from "./format.js";
import { waveform } from "./waveform.js";
import { problemInWords } from "./words.js";

const STEP_SECONDS = 5;
const SKIP_SECONDS = 10;
const SPEEDS = [0.75, 1, 1.25, 1.5, 2];

/** A player for a stored recording, and how it is left. */
export function player(recording) {
  const shown = new Player(recording);
  return { node: shown.node, leave: () => shown.leave() };
}

class Player {
  #audio = h("audio", { preload: "metadata" });
  #duration;

  constructor(recording) {
    this.#duration = recording.duration_seconds ?? 0;
    this.status = h("p", { class: "status muted", role: "status" });
    this.play = h("button", { type: "button", class: "play", "aria-label": "Play", onclick: () => this.#toggle() }, playIcon());
    this.time = h("span", { class: "time" }, h("span", { class: "now" }, "0:00"), " / ", h("span", { class: "whole" }, length(this.#duration)));
    this.range = h("input", { type: "range", min: 0, max: this.#duration, step: "any", value: 0, "aria-label": "Position" });
    const link = (signal) => ask(`${recordingPath(recording.recording_sid)}/link`, { query: { wait: 10 }, signal });
    this.wave = waveform(recording, link);
    this.node = h(
      "div",
      { class: "player" },
      h("div", { class: "wave" }, this.wave.node, this.range),
      h(
        "div",
        { class: "controls" },
        h("div", { class: "buttons" }, this.#skip(-SKIP_SECONDS), this.play, this.#skip(SKIP_SECONDS)),
        this.time,
        this.status,
        this.#speed(),
      ),
      this.#audio,
    );
    this.#listen();
    this.detach = attach(this.#audio, link);
  }

  leave() {
    this.detach();
    this.wave.leave();
  }

  #listen() {
    const on = (names, then) => names.split(" ").forEach((name) => this.#audio.addEventListener(name, then));
    on("timeupdate seeking seeked", () => this.#show());
    on("durationchange", () => this.#learn());
    on("play pause ended emptied playing", () => this.#showButton());
    on("pending", () => this.#tell("Getting a link…"));
    on("ready playing seeked canplay", () => this.#tell(""));
    on("waiting", () => this.#tell("Loading…"));
    on("failed", ({ detail }) => this.#tell(problemInWords({ message: detail.title ?? "It cannot be played", detail: detail.detail })));
    on("erased", () => this.#tell("It was erased, and will not come back."));
    this.range.addEventListener("input", () => this.#seek(Number(this.range.value)));
    this.range.addEventListener("keydown", (event) => this.#key(event));
  }

  /** What the element knows is better than what Twilio said in whole seconds. */
  #learn() {
    const { duration } = this.#audio;
    if (!Number.isFinite(duration) || duration === 0) return;
    this.#duration = duration;
    this.range.max = duration;
    this.time.querySelector(".whole").textContent = length(Math.round(duration));
    this.#show();
  }

  #show() {
    const at = this.#audio.currentTime;
    this.range.value = at;
    this.range.setAttribute("aria-valuetext", `${spoken(at)} of ${spoken(this.#duration)}`);
    this.time.querySelector(".now").textContent = length(at);
    this.wave.showAt(this.#duration > 0 ? at / this.#duration : 0);
  }

  #showButton() {
    const paused = this.#audio.paused;
    this.play.setAttribute("aria-label", paused ? "Play" : "Pause");
    this.play.classList.toggle("playing", !paused);
  }

  #tell(text) {
    this.status.textContent = text;
  }

  #toggle() {
    if (this.#audio.paused) this.#audio.play().catch(() => {});
    else this.#audio.pause();
  }

  #seek(to) {
    this.#audio.currentTime = Math.max(0, Math.min(to, this.#duration));
    this.#show();
  }

  #key(event) {
    const at = this.#audio.currentTime;
    const to = {
      ArrowLeft: at - STEP_SECONDS,
      ArrowDown: at - STEP_SECONDS,
      ArrowRight: at + STEP_SECONDS,
      ArrowUp: at + STEP_SECONDS,
      PageDown: at - 6 * STEP_SECONDS,
      PageUp: at + 6 * STEP_SECONDS,
      Home: 0,
      End: this.#duration,
    }[event.key];
    if (event.key === " ") this.#toggle();
    else if (to !== undefined) this.#seek(to);
    else return;
    event.preventDefault();
  }

  #skip(seconds) {
    const label = seconds < 0 ? `Back ${-seconds} seconds` : `Forward ${seconds} seconds`;
    const text = `${seconds < 0 ? "−" : "+"}${Math.abs(seconds)}`;
    return h("button", { type: "button", class: "skip-by", "aria-label": label, onclick: () => this.#seek(this.#audio.currentTime + seconds) }, text);
  }

  #speed() {
    const options = SPEEDS.map((speed) => h("option", { value: speed, selected: speed === 1 }, `${speed}×`));
    const select = h("select", { class: "speed", "aria-label": "Speed" }, options);
    select.addEventListener("change", () => {
      this.#audio.defaultPlaybackRate = this.#audio.playbackRate = Number(select.value);
    });
    return select;
  }
}

function playIcon() {
  return h("span", { class: "play-icon", "aria-hidden": "true" });
}
