// Everything that the service says in codes, in words for people.

export const STATES = {
  announced: "Recording",
  pending: "Waiting",
  fetching: "Fetching",
  stored: "Stored",
  evicted: "At Twilio",
  absent: "No audio",
  failed: "Failed",
  erased: "Erased",
};

/** States that may change by themselves. */
export const ON_ITS_WAY = new Set(["announced", "pending", "fetching"]);

const BY = {
  callback: "Twilio called back",
  put: "your application named it",
  reconcile: "it was in Twilio’s list",
  request: "someone asked for its call",
  backfill: "it was brought in from Twilio’s list",
  reindex: "its object was in the bucket",
};

const STATUSES = {
  completed: "the recording is complete",
  "in-progress": "the call is being recorded",
  processing: "the recording is being made",
  absent: "there is no audio: the call was too short, or silent",
  failed: "the recording failed",
  deleted: "the recording was deleted",
};

const ERRORS = {
  not_ready: "Twilio does not have the audio yet (404)",
  rate_limited: "Twilio asked for fewer requests (429)",
  upstream_error: "Twilio could not be reached, or had trouble",
  unauthorized: "Twilio refused the account’s credentials",
  not_audio: "what Twilio sent was no audio",
  truncated: "the audio broke off before its end",
  empty: "Twilio sent nothing",
  too_large: "the recording is larger than is allowed here",
  refused_redirect: "Twilio pointed to a place that is not trusted",
  store_error: "the bucket did not take it",
  interrupted: "the node that fetched it stopped",
  decryption_failed: "it is encrypted, and no key opens it",
  object_lost: "its object was missing in the bucket",
  twilio_failed: "Twilio says that it failed",
};

const lower = (text) => (text ? text[0].toLowerCase() + text.slice(1) : text);
const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}.`;

/** Why something failed. */
export function errorInWords(code) {
  return ERRORS[code] ?? code ?? "nobody knows why";
}

function said(who, { status, twilio_error_code: code }) {
  const what = STATUSES[status] ?? `its status is “${status}”`;
  return `${who}: ${what}${code ? ` (Twilio’s error ${code})` : ""}.`;
}

const STORIES = {
  "recording.accepted": ({ by }) => `callvault learned of it: ${BY[by] ?? by ?? "someone told"}.`,
  callback: (detail) => said("Twilio’s callback", detail),
  put: ({ call_sid: call }) => `Your application named it for call ${call}.`,
  reconcile: (detail) => said("Twilio’s list", detail),
  request: (detail) => said("Twilio, asked for the call", detail),
  backfill: (detail) => said("Twilio’s list, in a backfill", detail),
  attempt: ({ code, times }) =>
    `${times > 1 ? `${times} attempts` : "An attempt"} to fetch it failed: ${errorInWords(code)}.`,
  handed_back: () => "The node that was fetching it stopped in good order and handed it back.",
  fetch_requested: () => "Someone asked for another try.",
  "recording.stored": ({ adopted, previous_sha256: previous }) => {
    const how = adopted ? "It was found whole in the bucket, checked, and taken over." : "It was fetched, checked and stored in the bucket.";
    return previous ? `${how} The audio differs from what was stored before.` : how;
  },
  "recording.lost": ({ code }) => sentence(`${errorInWords(code ?? "object_lost")}; it is being fetched again`),
  "recording.absent": ({ twilio_error_code: code }) =>
    `Twilio recorded nothing: the call was too short, or silent${code ? ` (Twilio’s error ${code})` : ""}.`,
  "recording.failed": ({ code }) => `It was given up: ${errorInWords(code)}.`,
  "recording.evicted": () => "Nobody asked for it for a long time: its object left the bucket. Twilio still has it.",
  "recording.held": () => "A legal hold was put on it: it cannot be erased.",
  "recording.released": () => "The legal hold was released.",
  deleted_at_twilio: () => "Twilio’s own copy was deleted, after the stored one was read back and matched.",
  "recording.erased": ({ by, at_twilio: atTwilio }) => {
    const why = by === "retention" ? "Its time was over, and it was erased, for good" : "It was erased, for good";
    return `${why}${atTwilio ? ", at Twilio too" : ""}.`;
  },
};

/** One entry of a history: a sentence, what was answered, and how it went. */
export function tell({ type, detail }) {
  const known = detail ?? {};
  const story = STORIES[type];
  const technical = typeof known.detail === "string" && known.detail !== "" ? known.detail : null;
  const rest = story ? technical : detail && JSON.stringify(detail);
  return { text: story ? story(known) : type, answered: rest, tone: toneOf(type) };
}

function toneOf(type) {
  if (type === "recording.stored") return "good";
  if (type === "recording.failed" || type === "recording.lost") return "bad";
  if (type === "attempt" || type === "recording.absent") return "doubt";
  return "plain";
}

/** What comes next for a recording, at that moment. */
export function next(recording, now = Date.now()) {
  const { state, hold, next_attempt_at: at, last_error: error } = recording;
  switch (state) {
    case "announced":
      return "Twilio is still recording. It is fetched as soon as it is complete.";
    case "pending": {
      if (error?.code === "unauthorized") return "It waits until Twilio takes the account’s credentials again.";
      const seconds = at ? Math.ceil((Date.parse(at) - now) / 1_000) : 0;
      return seconds > 0 ? `The next attempt comes ${inWords(seconds)}.` : "The next attempt is due now.";
    }
    case "fetching":
      return "It is being fetched from Twilio right now.";
    case "stored":
      return hold ? "It plays from the bucket, and a legal hold keeps it." : "Nothing: it plays from the bucket.";
    case "evicted":
      return "Whoever asks for it has it fetched from Twilio again.";
    case "absent":
      return "Nothing, unless Twilio calls back that it is complete after all.";
    case "failed":
      return "Nothing, unless someone asks for another try.";
    case "erased":
      return "Nothing. It will never come back.";
    default:
      return `It is ${state}.`;
  }
}

function inWords(seconds) {
  if (seconds < 90) return `in ${seconds} s`;
  if (seconds < 5_400) return `in ${Math.round(seconds / 60)} min`;
  return `in ${Math.round(seconds / 3_600)} h`;
}

/** What a listener is told where there is nothing to play. */
export function notPlayable({ state, last_error: error }) {
  switch (state) {
    case "announced":
      return "The call is still being recorded.";
    case "pending":
      return error ? `Not here yet: ${errorInWords(error.code)}.` : "Not here yet: it is about to be fetched from Twilio.";
    case "fetching":
      return "It is being fetched from Twilio. It can be played in a moment.";
    case "absent":
      return "There is nothing to hear: the call was too short, or silent.";
    case "failed":
      return `It could not be fetched: ${errorInWords(error?.code)}.`;
    case "erased":
      return "It was erased, and will not come back.";
    default:
      return null;
  }
}

/** What went wrong with a request. */
export function problemInWords(problem) {
  const detail = problem.detail && lower(problem.detail);
  return detail ? `${problem.message}: ${detail}` : `${problem.message}.`;
}
