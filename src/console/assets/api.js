// Asking this service. Every path is below the page's own, so that a proxy may
// put the service below a path of its own.

import { session } from "./session.js";

/** An answer that was no success: a problem document, or none at all. */
export class Problem extends Error {
  constructor(status, { code = "unreachable", title = "The service does not answer", detail = "" } = {}) {
    super(title);
    Object.assign(this, { status, code, detail });
  }
}

/** The whole URL of a path such as `v1/recordings`. */
export function urlOf(path, query = {}) {
  const url = new URL(path, document.baseURI);
  for (const [name, value] of Object.entries(query)) {
    if (value !== null && value !== undefined && value !== "") url.searchParams.append(name, value);
  }
  return url;
}

/** The answer as it came, whatever its status. */
export async function ask(path, { query, signal, method = "GET", body, key = session.key } = {}) {
  const headers = { Authorization: `Bearer ${key}` };
  if (body) headers["Content-Type"] = "application/json";
  const response = await fetch(urlOf(path, query), {
    method,
    headers,
    body: body && JSON.stringify(body),
    signal,
    cache: "no-store",
    credentials: "omit",
  });
  if (response.status === 401 && key === session.key) window.dispatchEvent(new Event("signed-out"));
  return response;
}

/** The JSON of a success; everything else is thrown as a problem. */
export async function json(path, options = {}) {
  let response;
  try {
    response = await ask(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "Is it running, and is this computer online?" });
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok) {
    const nothing = { code: `http_${response.status}`, title: `The service answered with ${response.status}` };
    throw new Problem(response.status, answer ?? nothing);
  }
  if (answer === null) throw new Problem(response.status, { code: "unreadable", title: "The answer makes no sense" });
  return answer;
}

export const recordingPath = (sid) => `v1/recordings/${encodeURIComponent(sid)}`;
export const callPath = (sid) => `v1/calls/${encodeURIComponent(sid)}`;
