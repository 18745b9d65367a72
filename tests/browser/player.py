"""The player module in a real Chromium, as the README says that it is used: in a page and in React.

Links of these tests live for two seconds or three.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from application import CLIENT, Application
from common import chromium, eventually, new_page, please

world = json.loads(sys.argv[1])
README = (CLIENT / "README.md").read_text()
NODE = Path(__file__).resolve().parents[2] / "target" / "test-tools" / "node"

# What the tests look at: every event, and every question for a link.
PAGE = """<!doctype html><title>a page</title><audio id="call" controls></audio><script type="module">
import { attach } from "./callvault-player.js";
const audio = document.querySelector("#call");
window.heard = [];
for (const name of ["pending", "ready", "failed", "erased"])
  audio.addEventListener(name, ({ detail }) => heard.push({ name, detail }));
window.detach = attach(audio, (signal) => fetch(location.hash.slice(1), { signal }));
</script>"""
CLOCKS = {"slow": -86_400_000, "fast": 86_400_000}


def block(language):
    """The README's own example in that language."""
    return re.search(rf"^```{language}\n(.*?)^```$", README, re.M | re.S).group(1)


def at(page):
    return page.evaluate("document.querySelector('audio').currentTime")


def play(page):
    # What is interrupted by a new source is played from there: that is the claim.
    page.evaluate("void document.querySelector('audio').play().catch(() => {})")


def heard(page, name):
    return [event for event in page.evaluate("heard") if event["name"] == name]


def source(page):
    return page.evaluate("document.querySelector('audio').src")


def is_over(link):
    try:
        with urllib.request.urlopen(urllib.request.Request(link, headers={"Range": "bytes=0-0"})):
            return False
    except urllib.error.HTTPError as error:
        assert error.code == 403, error.code
        return True


def plays_on(page, what, beyond):
    eventually(f"{what}: playing on beyond {beyond} s", lambda: at(page) > beyond + 0.2 and
               page.evaluate("!document.querySelector('audio').paused && !document.querySelector('audio').seeking"))


def plays_past_the_end_of_its_link(page, what):
    """The claim of all of them: play, pause until the link is over, seek, and it goes on playing there."""
    play(page)
    plays_on(page, what, at(page))
    page.evaluate("document.querySelector('audio').pause()")
    old = source(page)
    eventually("the link's end", lambda: is_over(old))
    page.evaluate("document.querySelector('audio').currentTime = 900")
    play(page)
    plays_on(page, what, 900)
    assert at(page) < 960, f"{what}: it went elsewhere, to {at(page)}"
    assert source(page) != old or not is_over(old)
    # And while it plays.
    old = source(page)
    eventually("the next link's end", lambda: is_over(old))
    page.evaluate("document.querySelector('audio').currentTime = 300")
    plays_on(page, what, 300)
    assert at(page) < 360, f"{what}: it went elsewhere, to {at(page)}"


def open_page(browser, application, call, **options):
    page = new_page(browser, **options)
    application.files["/page"] = PAGE
    page.goto(f"{application.url}/page#/calls/{call}/link")
    return page


def waits_while_it_is_on_its_way(browser, application):
    page = open_page(browser, application, world["late"])
    eventually("pending is told", lambda: heard(page, "pending"))
    assert heard(page, "pending")[0]["detail"]["state"] in ("pending", "fetching")
    please("let the late one come")
    eventually("ready is told", lambda: heard(page, "ready"))
    play(page)
    plays_on(page, "what was late", 0)


def a_wrong_clock_changes_nothing(browser, application):
    for name, ms in CLOCKS.items():
        page = new_page(browser)
        page.add_init_script(f"const now = Date.now.bind(Date); Date.now = () => now() + {ms};")
        application.files["/page"] = PAGE
        page.goto(f"{application.url}/page#/calls/{world['long']}/link")
        plays_past_the_end_of_its_link(page, f"with a {name} clock")
        asked = application.asked
        page.evaluate("document.querySelector('audio').pause()")
        page.wait_for_timeout(4_000)
        # One may have been under way.
        assert application.asked <= asked + 1, "it asks for links though nobody listens"


def trouble_with_the_next_link_is_waited_out(browser, application):
    page = open_page(browser, application, world["long"])
    play(page)
    plays_on(page, "at first", 0)
    page.evaluate("document.querySelector('audio').pause()")
    old = source(page)
    eventually("the link's end", lambda: is_over(old))
    application.troubles += [(503, {"code": "unavailable", "title": "Not possible at the moment"}), "broken off",
                             (502, b"<html>no JSON</html>"), (429, {"code": "too_many_requests"})]
    page.evaluate("document.querySelector('audio').currentTime = 900")
    play(page)
    eventually("trouble is met", lambda: len(application.troubles) < 3)
    # Whoever seeks meanwhile is taken where they want to be now.
    page.evaluate("document.querySelector('audio').currentTime = 1100")
    plays_on(page, "after the trouble", 1100)
    assert at(page) < 1160 and not application.troubles
    assert not heard(page, "failed")


def what_is_loaded_is_not_touched(browser, application):
    page = open_page(browser, application, world["short"])
    play(page)
    eventually("its end", lambda: page.evaluate("document.querySelector('audio').ended"))
    assert is_over(source(page)), "the link lived as long as the recording"
    assert len(heard(page, "ready")) == 1, "the source was swapped though all was there"


def the_end_is_told_for_good(browser, application):
    page = open_page(browser, application, world["failed"])
    problem = eventually("failed is told", lambda: heard(page, "failed"))[0]["detail"]
    assert problem["code"] == "recording_failed", problem

    page = open_page(browser, application, world["long"])
    play(page)
    plays_on(page, "what will be erased", 0)
    old = source(page)
    eventually("the link's end", lambda: is_over(old))
    application.troubles += [(410, {"code": "erased", "title": "The recording was erased", "status": 410})]
    page.evaluate("document.querySelector('audio').currentTime = 900")
    eventually("erased is told", lambda: heard(page, "erased"))
    assert page.evaluate("document.querySelector('audio').getAttribute('src')") is None
    asked = application.asked
    page.wait_for_timeout(1_500)
    assert application.asked == asked, "it asks on"


def detach_ends_all_of_it(browser, application):
    page = open_page(browser, application, world["long"])
    play(page)
    plays_on(page, "before it is detached", 0)
    page.evaluate("detach()")
    asked, told = application.asked, len(page.evaluate("heard"))
    play(page)
    page.wait_for_timeout(4_000)
    assert application.asked == asked and len(page.evaluate("heard")) == told
    assert page.evaluate("document.querySelector('audio').getAttribute('src')") is None


def the_page_of_the_readme_plays(browser, application):
    page = new_page(browser)
    application.files["/readme"] = "<!doctype html><title>a page</title>" + block("html").replace("CA…", world["long"])
    page.goto(f"{application.url}/readme")
    plays_past_the_end_of_its_link(page, "the README's page")
    assert not page.wrong, page.wrong


def the_react_component_plays(browser, application):
    component = block("jsx")
    assert len(component.splitlines()) <= 15, "it has grown"
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "Recording.jsx").write_text(component)
        (folder / "callvault-player.js").write_text((CLIENT / "callvault-player.js").read_text())
        (folder / "main.jsx").write_text("""
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import { Recording } from "./Recording.jsx";
function Page() {
  const [link, setLink] = useState(location.hash.slice(1));
  window.setLink = setLink;
  return <StrictMode>{link && <Recording link={link} />}</StrictMode>;
}
createRoot(document.body).render(<Page />);
""")
        built = subprocess.run([NODE / "node_modules/.bin/esbuild", "main.jsx", "--bundle", "--jsx=automatic",
                                "--format=esm", "--log-level=warning"],
                               cwd=folder, env={**os.environ, "NODE_PATH": str(NODE / "node_modules")},
                               capture_output=True, text=True)
        assert built.returncode == 0 and not built.stderr, built.stderr
    application.files["/react.js"] = built.stdout
    application.files["/react"] = "<!doctype html><title>React</title><body><script type=module src=react.js></script>"
    page = new_page(browser)
    page.goto(f"{application.url}/react#/calls/{world['long']}/link")
    page.wait_for_selector("figure[data-state=ready] audio")
    plays_past_the_end_of_its_link(page, "in React")
    # Another recording in the same element, and none at all.
    page.evaluate(f"setLink('/calls/{world['failed']}/link')")
    page.wait_for_selector("figure[data-state=failed]")
    assert page.evaluate("document.querySelector('audio').getAttribute('src')") is None
    page.evaluate("setLink(null)")
    page.wait_for_selector("figure", state="detached")
    assert not page.wrong, page.wrong


CLAIMS = [waits_while_it_is_on_its_way, the_page_of_the_readme_plays, the_react_component_plays,
          a_wrong_clock_changes_nothing, trouble_with_the_next_link_is_waited_out, what_is_loaded_is_not_touched,
          the_end_is_told_for_good, detach_ends_all_of_it]

with chromium() as browser:
    for claim in CLAIMS:
        print(claim.__name__, flush=True)
        claim(browser, Application(world["service"], world["key"]))
