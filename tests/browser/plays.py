"""Opens a link in Chromium as a person would, plays it, seeks, and says what happened."""

import json
import sys

from common import chromium

PLAY = """async () => {
  const media = document.querySelector("video, audio");
  const until = (what, holds) => new Promise((resolve, reject) => {
    const look = () => holds() ? resolve() : media.error ? reject(media.error.message) : setTimeout(look, 20);
    setTimeout(() => reject("waited in vain for " + what), 30000);
    look();
  });
  await until("metadata", () => media.readyState >= 1);
  await media.play();
  await until("playing", () => media.currentTime > 0.3);
  media.currentTime = 5;
  await until("playing on after the seek", () => media.currentTime > 5.2 && !media.seeking);
  return {duration: media.duration, at: media.currentTime};
}"""

with chromium() as browser:
    page = browser.new_page()
    page.goto(sys.argv[1])
    print(json.dumps(page.evaluate(PLAY)))
