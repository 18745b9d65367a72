// The peaks of a WAV as it comes in: telephone calls of an hour have a hundred
// megabytes, and nobody needs them in memory at once.

const PCM = 1;
/** Where the sound begins lies in the first few bytes; what is further in is no file of Twilio's. */
const HEADER_MAX_BYTES = 64_000;

/** For each channel, how loud each of `count` pieces is. Throws where it is no 16-bit PCM. */
export async function peaksOfWav(body, count, lanesMax) {
  const reader = body.getReader();
  let [head, format] = [new Uint8Array(0), null];
  while (!format) {
    const { done, value } = await reader.read();
    if (done || head.length > HEADER_MAX_BYTES) throw new Error("no WAV");
    head = joined(head, value);
    format = formatOf(head);
  }
  const lanes = Array.from({ length: Math.min(format.channels, lanesMax) }, () => new Float32Array(count));
  const frames = Math.max(1, Math.floor(format.bytes / (2 * format.channels)));
  let [frame, rest] = [0, head.subarray(format.at)];
  for (;;) {
    const view = new DataView(rest.buffer, rest.byteOffset, rest.byteLength);
    const here = Math.min(Math.floor(rest.length / (2 * format.channels)), frames - frame);
    for (let at = 0; at < here; at += 1, frame += 1) {
      const piece = Math.floor((frame / frames) * count);
      lanes.forEach((lane, channel) => {
        const loud = Math.abs(view.getInt16(2 * (at * format.channels + channel), true)) / 32_768;
        if (loud > lane[piece]) lane[piece] = loud;
      });
    }
    const { done, value } = await reader.read();
    if (done || frame === frames) return lanes;
    rest = joined(rest.subarray(here * 2 * format.channels), value);
  }
}

function joined(one, other) {
  if (one.length === 0) return other;
  const both = new Uint8Array(one.length + other.length);
  both.set(one);
  both.set(other, one.length);
  return both;
}

/** Channels, and where the sound lies; null while too little has come (RIFF, chunk by chunk). */
function formatOf(head) {
  if (head.length < 12) return null;
  const view = new DataView(head.buffer, head.byteOffset, head.byteLength);
  const name = (at) => String.fromCharCode(...head.subarray(at, at + 4));
  if (name(0) !== "RIFF" || name(8) !== "WAVE") throw new Error("no WAV");
  let channels = 0;
  for (let at = 12; at + 8 <= head.length; ) {
    const bytes = view.getUint32(at + 4, true);
    if (name(at) === "data") {
      if (channels === 0) throw new Error("no format");
      return { channels, at: at + 8, bytes };
    }
    if (name(at) === "fmt ") {
      if (at + 24 > head.length) return null;
      if (view.getUint16(at + 8, true) !== PCM || view.getUint16(at + 22, true) !== 16) throw new Error("no 16-bit PCM");
      channels = view.getUint16(at + 10, true);
    }
    at += 8 + bytes + (bytes % 2);
  }
  return null;
}
