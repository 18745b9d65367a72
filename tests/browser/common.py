"""What the tests in a real Chromium share: the browser, waiting, and asking the test for something."""

import contextlib
import json
import shutil
import sys
import time

from playwright.sync_api import sync_playwright

CHROMIUM = shutil.which("chromium") or sys.exit("chromium is not installed: run tests/install-tools.sh")
ARGS = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--mute-audio"]
PATIENCE_MS = 90_000


@contextlib.contextmanager
def chromium():
    """A browser that ends with the block."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        try:
            yield browser
        except BaseException:
            tell_what_is_shown(browser)
            raise
        finally:
            browser.close()


def tell_what_is_shown(browser):
    """What a person would look at first when a test fails."""
    for page in [page for context in browser.contexts for page in context.pages]:
        print(f"--- {page.url}: {getattr(page, 'wrong', '')}\n{page.inner_text('body')[:2000]}", file=sys.stderr)


def new_page(browser, **options):
    """A page that notes what goes wrong in it, in `page.wrong`."""
    context = browser.new_context(**options)
    page = context.new_page()
    page.set_default_timeout(PATIENCE_MS)
    page.wrong = []
    page.on("pageerror", lambda error: page.wrong.append(f"error: {error}"))
    page.on("console", lambda message: is_wrong(message) and page.wrong.append(message.text))
    return page


def is_wrong(message):
    # That a server said no is told by what the page shows then.
    return message.type in ("error", "warning") and not message.text.startswith("Failed to load resource")


def eventually(what, holds, patience_s=PATIENCE_MS / 1000):
    """What `holds` gives once it gives something true."""
    until = time.monotonic() + patience_s
    while True:
        value = holds()
        if value:
            return value
        assert time.monotonic() < until, f"waited in vain for: {what}"
        time.sleep(0.05)


def please(action, **details):
    """Has the test that started this do something outside the browser, and gives its answer."""
    print(json.dumps({"please": action, **details}), flush=True)
    line = sys.stdin.readline()
    assert line, f"the test ended before it did: {action}"
    return json.loads(line)
