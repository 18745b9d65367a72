// The shape of the sound: decoded here in the page, one lane for each side of the call.

import { ask, recordingPath } from "./api.js";
import { h } from "./dom.js";
import { peaksOfWav } from "./wav.js";

/** The most that is loaded for a drawing; longer ones have a plain line. Decoding
 * takes many times the room of the file, a WAV is read as it comes. */
const MAX_BYTES = { mp3: 16_000_000, wav: 64_000_000 };
/** Telephone speech has nothing above 4 kHz. */
const SAMPLE_RATE = 8_000;
const PEAKS = 600;
const BAR = 3;
const GAP = 2;
const LANES_MAX = 2;

/** The drawing; `link` asks for a link. `showAt(part)` marks what was played. */
export function waveform(recording, link) {
  const drawing = new Drawing();
  const over = new AbortController();
  if (recording.size_bytes <= (MAX_BYTES[recording.format] ?? 0)) {
    lanesOf(recording, link, over.signal).then(
      (lanes) => drawing.draw(lanes),
      () => drawing.draw(null),
    );
  } else {
    drawing.draw(null);
  }
  const leave = () => {
    over.abort();
    drawing.leave();
  };
  return { node: drawing.node, showAt: (part) => drawing.showAt(part), leave };
}

async function lanesOf(recording, link, signal) {
  const response = await load(recording, link, signal);
  const lanes = recording.format === "wav" ? await peaksOfWav(response.body, PEAKS, LANES_MAX) : await decoded(response, signal);
  const loudest = Math.max(...lanes.flatMap((lane) => [...lane]), 0.01);
  return lanes.map((lane) => lane.map((peak) => peak / loudest));
}

async function decoded(response, signal) {
  const audio = await new OfflineAudioContext(1, 1, SAMPLE_RATE).decodeAudioData(await response.arrayBuffer());
  const lanes = [];
  for (let lane = 0; lane < Math.min(audio.numberOfChannels, LANES_MAX); lane += 1) {
    lanes.push(await peaksOf(audio.getChannelData(lane), signal));
  }
  return lanes;
}

/** From the bucket where it lets pages read; else through the service. */
async function load({ recording_sid: sid }, link, signal) {
  try {
    const { url } = await (await link(signal)).json();
    const response = await fetch(url, { signal, credentials: "omit" });
    if (response.ok) return response;
  } catch (error) {
    if (signal.aborted) throw error;
  }
  const response = await ask(`${recordingPath(sid)}/content`, { signal });
  if (!response.ok) throw new Error(`the content answers ${response.status}`);
  return response;
}

/** How loud each piece is. Gives way now and then, so that the page never stands still. */
async function peaksOf(samples, signal) {
  const peaks = new Float32Array(PEAKS);
  const piece = Math.max(1, samples.length / PEAKS);
  for (let at = 0; at < PEAKS && !signal.aborted; at += 1) {
    const end = Math.min(samples.length, Math.floor((at + 1) * piece));
    for (let sample = Math.floor(at * piece); sample < end; sample += 1) {
      peaks[at] = Math.max(peaks[at], Math.abs(samples[sample]));
    }
    if (at % 50 === 49) await new Promise((resolve) => setTimeout(resolve));
  }
  return peaks;
}

class Drawing {
  #lanes = null;
  #state = "loading";
  #part = 0;
  #resized = new ResizeObserver(() => this.#paint());
  #theme = matchMedia("(prefers-color-scheme: dark)");
  #painted = () => this.#paint();

  constructor() {
    this.node = h("canvas", { "aria-hidden": "true", class: "loading" });
    this.#resized.observe(this.node);
    this.#theme.addEventListener("change", this.#painted);
  }

  leave() {
    this.#resized.disconnect();
    this.#theme.removeEventListener("change", this.#painted);
  }

  /** Draws these lanes; null is a plain line. */
  draw(lanes) {
    this.#lanes = lanes;
    this.#state = lanes ? "drawn" : "plain";
    this.node.className = this.#state;
    this.node.dataset.lanes = lanes?.length ?? 0;
    this.#paint();
  }

  showAt(part) {
    this.#part = part;
    this.#paint();
  }

  #paint() {
    const { clientWidth: width, clientHeight: height } = this.node;
    if (width === 0) return;
    const scale = devicePixelRatio || 1;
    this.node.width = Math.round(width * scale);
    this.node.height = Math.round(height * scale);
    const pen = this.node.getContext("2d");
    pen.scale(scale, scale);
    const style = getComputedStyle(this.node);
    const colors = ["--wave-played", "--wave-coming"].map((name) => style.getPropertyValue(name).trim());
    const bars = Math.floor(width / (BAR + GAP));
    const lanes = this.#lanes ?? [null];
    const laneHeight = height / lanes.length;
    lanes.forEach((lane, at) => {
      const middle = laneHeight * (at + 0.5);
      for (let bar = 0; bar < bars; bar += 1) {
        const tall = Math.max(BAR, barOf(lane, bar, bars) * (laneHeight - 8));
        pen.fillStyle = (bar + 0.5) / bars <= this.#part ? colors[0] : colors[1];
        pen.beginPath();
        pen.roundRect(bar * (BAR + GAP), middle - tall / 2, BAR, tall, BAR / 2);
        pen.fill();
      }
    });
  }
}

/** The loudest of what one bar stands for, from 0 to 1; quiet speech is seen, too. */
function barOf(lane, bar, bars) {
  if (!lane) return 0;
  const [from, to] = [Math.floor((bar / bars) * PEAKS), Math.max(Math.floor(((bar + 1) / bars) * PEAKS), Math.floor((bar / bars) * PEAKS) + 1)];
  return Math.sqrt(Math.max(...lane.subarray(from, to)));
}
