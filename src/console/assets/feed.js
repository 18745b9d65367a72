// What happens, as it happens: follows the service's feed by long poll, and
// asks every few seconds where there is no feed to follow.

import { ask } from "./api.js";

const WAIT_SECONDS = 25;
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
      const page = await nextPage(cursor, signal);
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
async function nextPage(cursor, signal) {
  const query = cursor === null ? { after: "latest", wait: 0 } : { after: cursor, wait: WAIT_SECONDS, limit: LIMIT };
  const response = await ask("v1/events", { query, signal });
  return response.ok ? response.json() : null;
}

/** A tab that nobody looks at asks nothing. */
function untilSeen(signal) {
  if (!document.hidden) return null;
  return new Promise((resolve) => {
    document.addEventListener("visibilitychange", resolve, { once: true, signal });
    signal.addEventListener("abort", resolve, { once: true });
  });
}

export function pause(ms, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
