"""A recording that left the bucket, as the console tells it, and how it is had again."""

import json
import sys

from common import chromium, eventually, new_page

world = json.loads(sys.argv[1])
call, recording = world["evicted"]["call"], world["evicted"]["recording"]

with chromium() as browser:
    page = new_page(browser)
    page.goto(f"{world['service']}/console#/?state=evicted")
    page.get_by_label("API key").fill(world["key"])
    page.get_by_role("button", name="Sign in").click()
    page.locator(f"tr:has([title={call}])[data-state=evicted]").wait_for()
    page.goto(f"{world['service']}/console#/recordings/{recording}")
    page.get_by_text("Nobody asked for it for a long time, so it is at Twilio only.").wait_for()
    page.get_by_text("its object left the bucket. Twilio still has it.").wait_for()
    page.get_by_text("Whoever asks for it has it fetched from Twilio again.").wait_for()
    assert page.locator("audio").count() == 0 and page.get_by_role("button", name="Download").count() == 0
    # Who asks for it hears it, without loading the page anew.
    page.evaluate("window.stays = true")
    page.get_by_role("button", name="Fetch it again").click()
    page.get_by_role("button", name="Play").click()
    eventually("it plays", lambda: page.evaluate("document.querySelector('audio').currentTime") > 0.3)
    assert page.evaluate("window.stays"), "the page was loaded anew"
    assert not page.wrong, page.wrong
