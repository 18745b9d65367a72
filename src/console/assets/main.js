// The page: who is signed in, which view the address names, and what happens
// meanwhile. Views are made anew for each address; they know nothing of each other.

import { ask } from "./api.js";
import { button, h, icon } from "./dom.js";
import { follow } from "./feed.js";
import { listView } from "./list.js";
import { recordingView } from "./recording.js";
import { session } from "./session.js";
import { signInView } from "./sign-in.js";

const main = document.getElementById("main");
const bar = document.getElementById("bar");
let view = null;
let following = null;

/** What the address names: `#/?q=…` or `#/recordings/RE…`. */
function place() {
  const [path, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const sid = /^recordings\/(RE[0-9a-fA-F]{32})$/.exec(path)?.[1];
  return { sid, path, query: new URLSearchParams(query) };
}

function viewOf({ sid, path, query }, why) {
  if (!session.key) return signInView(begin, why);
  if (sid) return recordingView(sid);
  const call = /^calls\/(CA[0-9a-fA-F]{32})$/.exec(path)?.[1];
  return listView(call ? new URLSearchParams({ q: call }) : query);
}

function show({ first = false, why = "" } = {}) {
  view?.leave?.();
  view = viewOf(place(), why);
  main.replaceChildren(view.node);
  document.title = view.title ? `${view.title} · callvault` : "callvault";
  // A screen reader goes on at what is new, as after a page was loaded.
  if (!first) main.querySelector("h1")?.focus();
  view.shown?.();
  window.scrollTo(0, 0);
}

function begin() {
  stopFollowing();
  following = new AbortController();
  showBar();
  show();
  follow({
    heard: (events) => view?.heard?.(events),
    stands: showStand,
    signal: following.signal,
  });
}

function stopFollowing() {
  following?.abort();
  following = null;
}

function signOut(why) {
  if (!session.key && !following) return;
  session.signOut();
  stopFollowing();
  showBar();
  show({ why });
}

const STANDS = {
  connecting: ["Connecting", "What happens will be shown by itself."],
  live: ["Live", "What happens is shown as it happens."],
  polling: ["Every few seconds", "The feed cannot be followed: the service is asked every few seconds."],
  away: ["Not connected", "The service does not answer; trying again."],
};

function showStand(stand) {
  const pill = document.getElementById("stand");
  if (!pill || pill.dataset.stand === stand) return;
  const [word, meaning] = STANDS[stand];
  pill.dataset.stand = stand;
  pill.title = meaning;
  pill.lastChild.textContent = word;
}

function showBar() {
  const home = h("a", { href: "#/", class: "brand" }, h("span", { class: "mark" }, icon("wave")), "callvault");
  if (!session.key) {
    bar.replaceChildren(home);
    return;
  }
  const stand = h("span", { id: "stand", class: "stand", role: "status" }, h("span", { class: "dot" }), h("span"));
  const out = button("leave", "Sign out", () => signOut(""), { class: "button quiet" });
  bar.replaceChildren(home, stand, out);
  showStand("connecting");
}

window.addEventListener("hashchange", () => {
  // A list that wrote its own filters into the address shows them already.
  if (view?.isAt?.(place())) return;
  show();
});
// The address says what is shown: it is not the place for where to read on.
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  main.focus();
});
window.addEventListener("signed-out", () => signOut("The key is not known any more."));
document.addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input, select, textarea, dialog");
  if (event.key !== "/" || typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const search = document.getElementById("q");
  if (!search) return;
  event.preventDefault();
  search.focus();
});

if (session.key) {
  const known = await ask("v1/recordings", { query: { limit: 1 } }).then(({ status }) => status !== 401, () => true);
  if (known && session.key) begin();
}
if (!following && !view) {
  showBar();
  show({ first: true });
}
