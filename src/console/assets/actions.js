// What can be done with a recording: download, share, copy the curl, try again.

import { json, recordingPath, urlOf } from "./api.js";
import { button, copyButton, h, say } from "./dom.js";
import { shareDialog } from "./share.js";
import { problemInWords } from "./words.js";

/** The buttons that make sense for it as it stands. `changed` is called when one changed it. */
export function actions(recording, changed) {
  const { state } = recording;
  const answer = h("p", { class: "answer", role: "status" });
  const buttons = [];
  if (state === "stored") buttons.push(downloadButton(recording, answer));
  if (!["erased", "absent", "failed"].includes(state)) {
    buttons.push(button("share", "Share", () => shareDialog(recording)));
  }
  if (state === "stored") buttons.push(...curlButton(recording));
  if (["failed", "absent"].includes(state)) buttons.push(retryButton(recording, answer, changed));
  return buttons.length > 0 ? [...buttons, answer] : [];
}

function downloadButton({ recording_sid: sid }, answer) {
  const download = button("download", "Download", async () => {
    download.disabled = true;
    answer.textContent = "";
    try {
      const link = await json(`${recordingPath(sid)}/link`, { query: { disposition: "attachment", wait: 0 } });
      if (!link.url) throw new Error("It is not here at the moment");
      h("a", { href: link.url, download: "", rel: "noreferrer" }).click();
    } catch (problem) {
      answer.textContent = problemInWords(problem);
    }
    download.disabled = false;
  });
  return download;
}

/** For a terminal. The key is not in it: it would stay in the shell's history. */
export function curlOf({ recording_sid: sid, format }) {
  const url = urlOf(`${recordingPath(sid)}/content`);
  return `curl --fail --header "Authorization: Bearer $CALLVAULT_API_KEY" --output ${sid}.${format} '${url}'`;
}

/** The button, and the text for browsers that do not let a page copy. */
function curlButton(recording) {
  const shown = h("code", { class: "unseen" }, curlOf(recording));
  return [copyButton("Copy as curl", () => curlOf(recording), shown), shown];
}

function retryButton({ recording_sid: sid }, answer, changed) {
  const retry = button("retry", "Try again", async () => {
    retry.disabled = true;
    try {
      await json(`${recordingPath(sid)}/fetch`, { method: "POST" });
      say("It is tried again.");
      changed();
    } catch (problem) {
      answer.textContent = problem.status === 403 ? "This key may not do that: it needs the scope admin." : problemInWords(problem);
    }
    retry.disabled = false;
  });
  return retry;
}
