// What happens, as it happens: follows the service's feed by long poll, and
// asks every few seconds where there is no feed to follow.

import { ask } from "./api.js";

const WAIT_SECONDS = 25;
/** A connection that died without a word is given up. */
const GIVE_UP_MS = 40_000;
const LIMIT = 100;
/** How often lists are asked again where the feed cannot be followed. */
const POLL_MS = 4_000;
const RETRY_MAX_MS = 20_000;

/**
 * Follows until the signal. `heard(events)` gets what happened; null stands for
 * "anything may have". `stands(how)` gets `live`, `polling` or `away`.
 */
export async function follow({ heard, stands, signal }) {
  let [cursor, failures] = [null, 0];
  while (!signal.aborted) {
    await untilSeen(signal);
    try {
      // Back again is told at once, not when something happens.
      const page = await nextPage(cursor, failures > 0 ? 0 : WAIT_SECONDS, signal);
      if (page === null) {
        stands("polling");
        heard(null);
        cursor = null;
        await pause(POLL_MS, signal);
        continue;
      }
      stands("live");
      // What happened before the first cursor, or in an outage, is in no page.
      if (cursor === null || failures > 0) heard(null);
      else if (page.events.length > 0) heard(page.events.length < LIMIT ? page.events : null);
      [cursor, failures] = [page.next, 0];
    } catch {
      if (signal.aborted) return;
      stands("away");
      failures += 1;
      await pause(Math.min(1_000 * 2 ** (failures - 1), RETRY_MAX_MS), signal);
    }
  }
}

/** A page of the feed; null where the service has none for us now. */
async function nextPage(cursor, wait, signal) {
  const query = cursor === null ? { after: "latest", wait: 0 } : { after: cursor, wait, limit: LIMIT };
  const over = new AbortController();
  const giveUp = () => over.abort();
  const timer = setTimeout(giveUp, GIVE_UP_MS);
  window.addEventListener("offline", giveUp, { once: true });
  try {
    const response = await ask("v1/events", { query, signal: AbortSignal.any([signal, over.signal]) });
    return response.ok ? await response.json() : null;
  } finally {
    clearTimeout(timer);
    window.removeEventListener("offline", giveUp);
  }
}

/** A tab that nobody looks at asks nothing. */
function untilSeen(signal) {
  if (!document.hidden) return null;
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", resolve, { once: true, signal });
    signal.addEventListener("abort", resolve, { once: true });
  });
}

/** Some time, or until the computer is online again. */
function pause(ms, signal) {
  return new Promise((resolve) => {
    const ended = new AbortController();
    const end = () => (clearTimeout(timer), ended.abort(), resolve());
    const timer = setTimeout(end, ms);
    signal.addEventListener("abort", end, { signal: ended.signal });
    window.addEventListener("online", end, { signal: ended.signal });
  });
}
