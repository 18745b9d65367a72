"""The console in a real Chromium: signing in, finding, playing, what changes by itself, and who can use it."""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from common import chromium, eventually, new_page, please

world = json.loads(sys.argv[1])
TOOLS = Path(__file__).resolve().parents[2] / "target" / "test-tools"
AXE = (TOOLS / "node/node_modules/axe-core/axe.min.js").read_text()
DESKTOP = {"width": 1280, "height": 860}
PHONE = {"width": 390, "height": 844}
URL = world["service"] + "/console"


def signed_in(browser, at="", key=None, **options):
    page = new_page(browser, **{"viewport": DESKTOP, "locale": "en-GB", "timezone_id": "Europe/Berlin", **options})
    page.goto(URL + at)
    page.get_by_label("API key").fill(key or world["key"])
    page.get_by_role("button", name="Sign in").click()
    page.get_by_role("button", name="Sign out").wait_for()
    return page


def row(page, call):
    return page.locator(f"tr:has([title={call}])")


def state_of(page, call):
    return row(page, call).get_attribute("data-state")


def audio(page, what):
    return page.evaluate(f"document.querySelector('audio').{what}")


def no_serious_finding(page, where):
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    serious = [(finding["id"], finding["help"], [node["target"] for node in finding["nodes"]])
               for finding in found if finding["impact"] in ("serious", "critical")]
    assert not serious, f"{where}: {serious}"


def clean(page):
    assert not page.wrong, page.wrong
    page.context.close()


def the_page_is_strict_and_from_the_service_alone(browser):
    page = new_page(browser)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    answer = page.goto(URL)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'" and policy["script-src"] == "'self'" == policy["style-src"]
    assert "unsafe" not in str(policy)
    assert world["media"] in policy["media-src"].split(), policy
    page.get_by_label("API key").wait_for()
    assert all(url.startswith(world["service"]) for url in requests), requests
    # What a page of an attacker would try.
    blocked = page.evaluate("""() => new Promise((resolve) => {
      document.addEventListener("securitypolicyviolation", (event) => resolve(event.effectiveDirective));
      fetch("https://elsewhere.example/").catch(() => {});
    })""")
    assert blocked == "connect-src", blocked
    page.context.close()


def only_a_known_key_gets_in_and_it_stays_in_the_tab(browser):
    page = new_page(browser, viewport=DESKTOP)
    page.goto(f"{URL}#/recordings/{world['stored']['recording']}")
    page.get_by_label("API key").wait_for()
    no_serious_finding(page, "signing in")
    page.get_by_role("button", name="Sign in").click()
    page.get_by_text("Enter an API key.").wait_for()
    for wrong in ("wrong", "schlüssel"):
        page.get_by_label("API key").fill(wrong)
        page.keyboard.press("Enter")
        page.get_by_text("That key is not known here." if wrong == "wrong" else "That is no API key").wait_for()
    page.get_by_label("API key").fill(world["key"])
    page.keyboard.press("Enter")
    # On to where the address led.
    page.get_by_role("heading", name=f"Call {world['stored']['call']}").wait_for()
    kept = page.evaluate("[JSON.stringify(localStorage), document.cookie, location.href]")
    assert world["key"] not in str(kept), "the key is kept beyond the tab"
    page.reload()
    page.get_by_role("heading", name=f"Call {world['stored']['call']}").wait_for()
    other = page.context.new_page()
    other.goto(URL)
    other.get_by_label("API key").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_label("API key").wait_for()
    page.reload()
    page.get_by_label("API key").wait_for()
    clean(page)


def a_key_that_ends_is_told(browser):
    page = signed_in(browser, key=world["key"])
    row(page, world["stored"]["call"]).wait_for()
    page.route("**/v1/**", lambda route: route.fulfill(status=401, json={"code": "unauthorized", "title": "An API key is needed"}))
    page.get_by_label("State").select_option("stored")
    page.get_by_text("The key is not known any more.").wait_for()
    assert page.evaluate("sessionStorage.length") == 0
    page.context.close()


def recordings_are_found(browser):
    page = signed_in(browser)
    row(page, world["stored"]["call"]).wait_for()
    no_serious_finding(page, "the list")
    search = page.get_by_label("Call SID")
    # One of another call goes from the list, and the address says what is shown.
    search.fill(world["stored"]["call"])
    row(page, world["failed"]["call"]).wait_for(state="detached")
    row(page, world["stored"]["call"]).wait_for()
    assert row(page, world["failed"]["call"]).count() == 0
    assert f"q={world['stored']['call']}" in page.url
    # By another leg's SID.
    search.fill(world["alias"])
    row(page, world["long"]["call"]).wait_for()
    # What nobody knows; Twilio is asked on request.
    search.fill(world["at_twilio"]["call"])
    page.get_by_role("button", name="Ask Twilio for it").click()
    row(page, world["at_twilio"]["call"]).wait_for()
    search.fill("CA" + "f" * 32)
    page.get_by_role("button", name="Ask Twilio for it").click()
    page.get_by_text("Twilio knows no recording of this call").wait_for()
    no_serious_finding(page, "an unknown call")
    search.fill("nonsense")
    search.press("Enter")
    page.get_by_text("Enter a whole SID").wait_for()
    search.fill("")
    page.get_by_label("State").select_option("failed")
    row(page, world["failed"]["call"]).wait_for()
    assert row(page, world["stored"]["call"]).count() == 0
    # The address can be pasted.
    page.goto(page.url)
    page.reload()
    row(page, world["failed"]["call"]).wait_for()
    page.get_by_label("State").select_option("")
    page.get_by_label("To", exact=True).fill("2001-01-01")
    page.get_by_text("No recording is like that").wait_for()
    page.get_by_role("button", name="Show all").click()
    row(page, world["stored"]["call"]).wait_for()
    search = page.get_by_label("Call SID")
    search.fill(world["stored"]["recording"])
    page.get_by_role("heading", name=f"Call {world['stored']['call']}").wait_for()
    clean(page)


def what_happens_is_seen_without_reloading(browser):
    page = signed_in(browser)
    row(page, world["stored"]["call"]).wait_for()
    page.evaluate("window.stays = true")
    new = please("a new recording")
    row(page, new["call"]).wait_for()
    # Whoever stands somewhere stays there.
    link = row(page, world["stored"]["call"]).locator("a")
    link.focus()
    eventually("it waits", lambda: state_of(page, new["call"]) == "pending")
    please("let it come", **new)
    eventually("it is stored", lambda: state_of(page, new["call"]) == "stored")
    assert link.evaluate("link => link === document.activeElement"), "the focus was lost"

    # One recording, from waiting to playing.
    other = please("a new recording")
    row(page, other["call"]).locator("a").click()
    page.get_by_text("Not here yet").first.wait_for()
    page.get_by_text("attempt to fetch it failed: Twilio does not have the audio yet").or_(
        page.get_by_text("attempts to fetch it failed: Twilio does not have the audio yet")).wait_for()
    no_serious_finding(page, "a recording on its way")
    please("let it come", **other)
    page.get_by_role("button", name="Play").wait_for()
    page.get_by_text("It was fetched, checked and stored in the bucket.").wait_for()
    page.get_by_text("Nothing: it plays from the bucket.").wait_for()
    assert page.evaluate("window.stays"), "the page was loaded anew"
    clean(page)


def it_plays_and_seeks_after_the_link_is_over(browser):
    page = signed_in(browser, f"#/recordings/{world['long']['recording']}")
    page.get_by_role("button", name="Play").click()
    eventually("it plays", lambda: audio(page, "currentTime") > 0.3)
    page.get_by_role("button", name="Pause").click()
    eventually("it is paused", lambda: audio(page, "paused"))
    old = audio(page, "src")
    eventually("the link's end", lambda: please("is it over", link=old))
    # A click at three fifths of the waveform.
    slider = page.get_by_role("slider", name="Position")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] * 0.6, box["y"] + box["height"] / 2)
    page.get_by_role("button", name="Play").click()
    eventually("it plays on there", lambda: 880 < audio(page, "currentTime") < 960 and not audio(page, "seeking")
               and audio(page, "played.length") and audio(page, "readyState") >= 3)
    at = audio(page, "currentTime")
    eventually("it goes on", lambda: audio(page, "currentTime") > at + 0.3)
    assert audio(page, "src") != old
    clean(page)


def its_sound_is_seen(browser):
    page = signed_in(browser, f"#/recordings/{world['stored']['recording']}")
    canvas = page.locator("canvas.drawn")
    canvas.wait_for()
    loud = """canvas => {
      const {width, height} = canvas, drawn = canvas.getContext("2d").getImageData(0, 0, width, height).data;
      const tall = [];
      for (let x = 1; x < width - 5; x += 5) {
        tall.push(Array.from({length: height}, (_, y) => drawn[(y * width + x) * 4 + 3] > 0).filter(Boolean).length);
      }
      return [Math.min(...tall), Math.max(...tall)];
    }"""
    quiet, loudest = canvas.evaluate(loud)
    assert loudest > 60 > 20 > quiet, f"that is not the shape of speech: {quiet} to {loudest}"
    # Through the service, where the bucket does not let pages read.
    page.route(lambda url: "X-Amz-Signature" in url,
               lambda route: route.abort() if route.request.resource_type == "fetch" else route.continue_())
    with page.expect_response("**/content"):
        page.reload()
    page.locator("canvas.drawn").wait_for()
    page.unroute_all()
    # A lane for each side; and half an hour of noise is drawn, too.
    for name, lanes in [("dual", 2), ("long", 1)]:
        page.goto(f"{URL}#/recordings/{world[name]['recording']}")
        page.locator(f"canvas.drawn[data-lanes='{lanes}']").wait_for()
        quiet, loudest = page.locator("canvas.drawn").evaluate(loud)
        assert loudest > 40 and (quiet < 20) == (name == "dual"), f"{name}: {quiet} to {loudest}"
    clean(page)


def what_is_over_is_told_honestly(browser):
    page = signed_in(browser, f"#/recordings/{world['failed']['recording']}")
    page.get_by_text("It could not be fetched: Twilio says that it failed.").wait_for()
    page.get_by_text("It was given up").wait_for()
    page.get_by_text("Nothing, unless someone asks for another try.").wait_for()
    assert page.locator("audio").count() == 0 and page.get_by_role("button", name="Download").count() == 0
    no_serious_finding(page, "a failed recording")
    # Who may, has it tried again.
    page.goto(f"{URL}#/recordings/{world['to_try_again']['recording']}")
    page.get_by_text("It was given up").wait_for()
    page.get_by_role("button", name="Try again").click()
    page.get_by_text("Someone asked for another try.").wait_for()
    page.get_by_role("button", name="Play").wait_for()
    page.goto(f"{URL}#/recordings/{world['absent']['recording']}")
    page.get_by_text("There is nothing to hear").wait_for()
    # Erased while someone looks at it.
    page.goto(f"{URL}#/recordings/{world['to_erase']['recording']}")
    page.get_by_role("button", name="Play").wait_for()
    please("erase", **world["to_erase"])
    page.get_by_text("It was erased, and will not come back.").wait_for()
    page.get_by_text("It was erased, for good.").wait_for()
    assert page.locator("audio").count() == 0 and page.get_by_role("button", name="Share").count() == 0
    page.goto(f"{URL}#/recordings/RE{'f' * 32}")
    page.get_by_role("heading", name="No such recording").wait_for()
    clean(page)


def it_is_downloaded_shared_and_copied(browser):
    page = signed_in(browser, f"#/recordings/{world['stored']['recording']}")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert download.value.suggested_filename.endswith(".mp3")
    assert Path(download.value.path()).read_bytes()[:3] in (b"ID3", b"\xff\xfb\x90", b"\xff\xf3\x48") or \
        Path(download.value.path()).stat().st_size == world["stored"]["size"]

    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy as curl").click()
    page.get_by_role("button", name="Copied").wait_for()
    command = page.evaluate("navigator.clipboard.readText()")
    assert world["key"] not in command
    with tempfile.TemporaryDirectory() as folder:
        ran = subprocess.run(["sh", "-c", command + " --silent --show-error"], cwd=folder, capture_output=True, text=True,
                             env={"CALLVAULT_API_KEY": world["key"], "PATH": "/usr/bin:/bin"})
        assert ran.returncode == 0, ran.stderr
        assert (Path(folder) / shlex.split(command)[5]).stat().st_size == world["stored"]["size"]

    page.get_by_role("button", name="Share").click()
    dialog = page.get_by_role("dialog", name="Share this recording")
    no_serious_finding(page, "sharing")
    dialog.get_by_label("It lives for").select_option("1 hour")
    dialog.get_by_role("button", name="Create the link").click()
    dialog.get_by_role("button", name="Copy the link").click()
    share = page.evaluate("navigator.clipboard.readText()")
    assert "/s/" in share, share
    # It plays for someone without a key.
    stranger = new_page(browser)
    stranger.goto(share)
    eventually("the share plays", lambda: stranger.evaluate("document.querySelector('audio, video')?.readyState >= 1"))
    stranger.context.close()
    page.keyboard.press("Escape")
    dialog.wait_for(state="detached")
    clean(page)


def everything_is_done_by_keyboard(browser):
    page = new_page(browser, viewport=DESKTOP)
    page.goto(URL)
    page.get_by_label("API key").wait_for()
    page.keyboard.type(world["key"])
    page.keyboard.press("Enter")
    row(page, world["stored"]["call"]).wait_for()
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "q"
    page.keyboard.type(world["stored"]["call"])
    row(page, world["failed"]["call"]).wait_for(state="detached")
    row(page, world["stored"]["call"]).wait_for()

    def tab_to(what, holds):
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate(holds):
                # Whoever cannot see where they are is nowhere.
                ring = page.evaluate("""() => [document.activeElement, document.activeElement.parentElement]
                  .some((part) => [null, "::after"].some((pseudo) => getComputedStyle(part, pseudo).outlineStyle === "solid"))""")
                assert ring, f"no ring around {what}"
                return
        raise AssertionError(f"{what} is not reached by Tab")

    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main" and world["stored"]["call"] in page.url
    tab_to("the recording", "document.activeElement.matches('tr a')")
    page.keyboard.press("Enter")
    heading = page.get_by_role("heading", name=f"Call {world['stored']['call']}")
    heading.wait_for()
    tab_to("the slider", "document.activeElement.type === 'range'")
    page.keyboard.press(" ")
    eventually("it plays", lambda: audio(page, "currentTime") > 0.1 and not audio(page, "paused"))
    page.keyboard.press(" ")
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    eventually("five seconds on", lambda: abs(audio(page, "currentTime") - 5) < 0.5)
    said = page.evaluate("document.activeElement.getAttribute('aria-valuetext')")
    assert said.startswith("5 seconds of 6 seconds"), said
    tab_to("the play button", "document.activeElement.matches('.play')")
    page.keyboard.press("Enter")
    eventually("it plays", lambda: not audio(page, "paused"))
    tab_to("sharing", "document.activeElement.textContent === 'Share'")
    page.keyboard.press("Enter")
    page.get_by_role("dialog").wait_for()
    page.keyboard.press("Escape")
    page.get_by_role("dialog").wait_for(state="detached")
    assert page.evaluate("document.activeElement.textContent") == "Share", "the focus does not come back"
    page.go_back()
    row(page, world["stored"]["call"]).wait_for()
    clean(page)


def away_and_back(browser):
    page = signed_in(browser)
    row(page, world["stored"]["call"]).wait_for()
    page.context.set_offline(True)
    page.get_by_text("Not connected").wait_for()
    assert row(page, world["stored"]["call"]).count() == 1, "what is shown stays"
    page.get_by_label("State").select_option("stored")
    page.get_by_role("heading", name="The service does not answer").wait_for()
    no_serious_finding(page, "a service that is away")
    page.get_by_role("button", name="Try again").click()
    page.get_by_role("heading", name="The service does not answer").wait_for()
    # Back by itself.
    page.context.set_offline(False)
    row(page, world["stored"]["call"]).wait_for()
    page.get_by_text("Not connected").wait_for(state="detached")
    page.context.close()


def it_is_looked_at(browser):
    """Pictures of it, for people, and what axe says of the same."""
    folder = Path(world["screenshots"])
    folder.mkdir(parents=True, exist_ok=True)
    long_call, stored = world["long"], world["stored"]
    for name, viewport, scheme in [("light", DESKTOP, "light"), ("dark", DESKTOP, "dark"), ("phone", PHONE, "light"),
                                   ("phone-dark", PHONE, "dark")]:
        options = {"viewport": viewport, "color_scheme": scheme, "device_scale_factor": 2, "locale": "en-GB"}
        page = new_page(browser, **options)

        def picture(view, whole=True):
            # After what moves has come to rest.
            page.wait_for_timeout(400)
            no_serious_finding(page, f"{view}, {name}")
            wide = page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")
            assert not wide, f"{view}, {name}: it does not fit the width"
            page.screenshot(path=folder / f"{view}-{name}.png", full_page=whole)

        page.goto(URL)
        page.get_by_label("API key").wait_for()
        picture("sign-in")
        page.get_by_label("API key").fill(world["key"])
        page.keyboard.press("Enter")
        row(page, stored["call"]).wait_for()
        picture("list")
        page.goto(f"{URL}#/?state=evicted")
        page.get_by_text("No recording is like that").wait_for()
        picture("empty")
        page.goto(f"{URL}#/recordings/{world['dual']['recording']}")
        page.locator("canvas.drawn").wait_for()
        page.get_by_role("slider").focus()
        for _ in range(1 if name == "light" else 0):
            page.keyboard.press("ArrowRight")
        page.get_by_role("button", name="Play").click()
        eventually("it plays", lambda: audio(page, "currentTime") > 1.5)
        page.get_by_role("button", name="Pause").click()
        picture("recording")
        page.get_by_role("button", name="Share").click()
        page.get_by_role("dialog").wait_for()
        picture("share", whole=False)
        page.keyboard.press("Escape")
        page.goto(f"{URL}#/recordings/{world['failed']['recording']}")
        page.get_by_text("It was given up").wait_for()
        picture("failed")
        page.goto(f"{URL}#/recordings/{long_call['recording']}")
        page.locator("canvas.drawn").wait_for()
        picture("long")
        clean(page)


CLAIMS = [the_page_is_strict_and_from_the_service_alone, only_a_known_key_gets_in_and_it_stays_in_the_tab,
          a_key_that_ends_is_told, recordings_are_found, it_plays_and_seeks_after_the_link_is_over, its_sound_is_seen,
          what_happens_is_seen_without_reloading, what_is_over_is_told_honestly, everything_is_done_by_keyboard,
          away_and_back, it_is_downloaded_shared_and_copied, it_is_looked_at]

with chromium() as browser:
    for claim in CLAIMS:
        print(claim.__name__, flush=True)
        claim(browser)
