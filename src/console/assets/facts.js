// What is known of a recording.

import { copyButton, h } from "./dom.js";
import { NOTHING, length, moment, size } from "./format.js";
import { errorInWords } from "./words.js";

const SOURCES = {
  DialVerb: "Dial",
  Conference: "Conference",
  OutboundAPI: "Outbound call",
  Trunking: "SIP trunk",
  RecordVerb: "Record",
  StartCallRecordingAPI: "Started by API",
  StartConferenceRecordingAPI: "Started by API (conference)",
};

export function facts(recording) {
  const rows = [
    ["Call", name(recording.call_sid)],
    ["Conference", recording.conference_sid && name(recording.conference_sid)],
    ["Recording", name(recording.recording_sid)],
    ["Account", name(recording.account_sid)],
    ["Recorded", moment(recording.recorded_at)],
    ["Length", length(recording.duration_seconds ?? Number.NaN)],
    ["Channels", channels(recording)],
    ["Made by", recording.recording_source && (SOURCES[recording.recording_source] ?? recording.recording_source)],
    ["Stored", recording.stored_at && moment(recording.stored_at)],
    ["Format", recording.format && `${recording.format.toUpperCase()}, ${size(recording.size_bytes)}`],
    ["SHA-256", recording.sha256 && name(recording.sha256)],
    ["In the bucket", recording.key && name(`${recording.bucket}/${recording.key}`)],
    ["Attempts", String(recording.attempts)],
    ["Last trouble", recording.last_error && trouble(recording.last_error)],
    ["Last asked for", recording.last_asked_at && moment(recording.last_asked_at)],
  ];
  const known = rows.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return [
    h("h2", { id: "facts" }, "What is known"),
    h("dl", { class: "facts" }, known.map(([label, value]) => h("div", {}, h("dt", {}, label), h("dd", {}, value)))),
  ];
}

/** A name that can be copied. */
function name(text) {
  if (!text) return NOTHING;
  const shown = h("code", {}, text);
  const copies = copyButton("Copy", () => text, shown);
  copies.classList.add("tiny");
  copies.setAttribute("aria-label", `Copy ${text}`);
  copies.title = "Copy";
  return [shown, copies];
}

function channels({ channels: count, track }) {
  if (count === null) return NOTHING;
  const words = count === 2 ? "2, one for each side" : String(count);
  return track && track !== "both" ? `${words} (${track})` : words;
}

function trouble({ code, at }) {
  const words = errorInWords(code);
  return `${words[0].toUpperCase()}${words.slice(1)} · ${moment(at)}`;
}
