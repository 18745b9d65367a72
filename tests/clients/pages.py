"""Runs what the pages for users say, block by block, in their order.

    python pages.py moving | readme

The blocks are taken from the page as it is; only what stands for the reader's own is
put in its place. The environment names the parts (see tests/it/clients.rs).
"""

import base64
import ctypes
import functools
import hashlib
import hmac
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import types
import unittest.mock
import urllib.error
import urllib.parse
import urllib.request
import xml.etree.ElementTree

import callvault_client
import celery
import flask
import flask_view

CLIENTS = pathlib.Path(__file__).parents[2] / "deploy" / "clients"
PATIENCE_SECONDS = 120
# Commands that run until they are ended; each is the last of its block.
SERVERS = ("callvault serve", "python worker.py")


def eventually(what, condition):
    """What the condition gives, once it gives something."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not (found := condition()):
        if time.monotonic() > until:
            raise AssertionError(f"waited in vain for: {what}")
        time.sleep(0.02)
    return found


def blocks(page):
    """The fenced blocks of a page: language and text."""
    text = (CLIENTS / page).read_text(encoding="utf-8")
    return re.findall(r"^```(\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def after(diff):
    """What a diff leaves."""
    return "".join(line[1:] for line in diff.splitlines(keepends=True) if not line.startswith("-"))


class Shell:
    """One terminal: what a block exports is there in the next one."""

    def __init__(self, instead):
        self.env, self.instead, self.servers = dict(os.environ), instead, []

    def run(self, text):
        for theirs, ours in self.instead.items():
            text = text.replace(theirs, ours)
        *lines, last = text.strip().splitlines()
        serves = last.startswith(SERVERS)
        script = "\n".join(lines if serves else [*lines, last])
        command = ["sh", "-ec", f"{script}\nenv -0 >.exported"]
        ended = subprocess.run(command, env=self.env, capture_output=True, text=True, check=False)
        if ended.returncode != 0:
            raise AssertionError(f"{script}\n{ended.stdout}{ended.stderr}")
        exported = pathlib.Path(".exported").read_text(encoding="utf-8").split("\0")
        self.env = dict(pair.split("=", 1) for pair in exported if pair)
        os.environ.update(self.env)
        return self.serve(last) if serves else ended.stdout

    def serve(self, command):
        process = subprocess.Popen(["sh", "-ec", f"exec {command}"], env=self.env, stdout=subprocess.PIPE, preexec_fn=end_with_parent)
        self.servers.append(process)
        return process

    def end(self):
        for process in self.servers:
            process.terminate()
            process.wait()


def end_with_parent():
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def get(path):
    """A GET with the application's key: status and JSON."""
    request = urllib.request.Request(os.environ["SERVICE_URL"] + path)
    request.add_header("Authorization", f"Bearer {os.environ.get('CALLVAULT_API_KEY', '')}")
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as answer:
        return answer.code, json.load(answer)
    except urllib.error.URLError:
        return 0, {}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def call(number):
    return f"CA{number:032x}"


def url_of(number):
    return f"https://api.twilio.com/2010-04-01/Accounts/{os.environ['ACCOUNT']}/Recordings/RE{number:032x}"


def stored(number):
    """The recording of that number, once it is stored."""

    def look():
        _, shown = get(f"/v1/recordings/RE{number:032x}")
        return shown if shown.get("state") == "stored" else None

    return eventually(f"recording {number} is stored", look)


def application(user):
    """An application as the page takes it for granted: what its snippets name."""
    app = flask.Flask("application")

    def login_required(view):
        return functools.wraps(view)(lambda *args, **named: view(*args, **named) if user else flask.abort(401))

    def find_call_log(sid):
        number = int(sid[2:], 16)
        return types.SimpleNamespace(call_sid=sid, recording_url=url_of(number), duration="-1") if number < 100 else flask.abort(404)

    def run_model(path):
        return sha256(pathlib.Path(path).read_bytes())

    tasks = celery.Celery("application", broker="memory://")
    return {
        "app": app, "celery": tasks, "request": flask.request, "redirect": flask.redirect, "abort": flask.abort,
        "login_required": login_required, "find_call_log": find_call_log, "run_model": run_model,
    }


def call_back(document, number):
    """Does what Twilio does with that TwiML once the recording is complete."""
    url = xml.etree.ElementTree.fromstring(document).find("Dial").get("recordingStatusCallback").split("#")[0]
    fields = {
        "AccountSid": os.environ["ACCOUNT"], "CallSid": call(number), "RecordingSid": f"RE{number:032x}",
        "RecordingUrl": url_of(number), "RecordingStatus": "completed",
    }
    signed = url + "".join(name + fields[name] for name in sorted(fields))
    mac = hmac.new(os.environ["AUTH_TOKEN"].encode(), signed.encode(), hashlib.sha1).digest()
    request = urllib.request.Request(url, urllib.parse.urlencode(fields).encode())
    request.add_header("X-Twilio-Signature", base64.b64encode(mac).decode())
    with urllib.request.urlopen(request) as answer:
        assert answer.status == 204, answer.status


def moving():
    """MOVING.md, from the first command to the last, and what each step promises."""
    shell = Shell({
        "https://recordings.example.com": os.environ["SERVICE_URL"], "AC…": os.environ["ACCOUNT"],
        "http://callvault.internal:8080": os.environ["SERVICE_URL"],
        "TOKEN=…": f"TOKEN={os.environ['AUTH_TOKEN']}", "CA…": call(1),
    })
    user, ran = [], []
    names = application(user)
    try:
        for language, text in blocks("MOVING.md"):
            ran.append(language)
            if language == "sh":
                told = shell.run(text)
                if isinstance(told, subprocess.Popen):
                    eventually("the service is ready", lambda: get("/readyz")[0] == 200)
            elif language == "xml":
                call_back(text.replace("https://recordings.example.com", os.environ["SERVICE_URL"]), 2)
            else:
                exec(compile(after(text) if language == "diff" else text, "MOVING.md", "exec"), names)
        expected = os.environ["SHA256"]
        # The call of last week came by asking, the next one by Twilio's callback.
        assert sha256(pathlib.Path("last-week.mp3").read_bytes()) == expected
        assert json.loads(told)["recordings"][0]["sha256"] == expected, told
        assert stored(2)["sha256"] == expected
        check_application(names, user, expected)
        assert ran == ["sh", "sh", "sh", "xml", "python", "diff", "diff", "sh"], ran
    finally:
        shell.end()


def check_application(names, user, expected):
    """The application of the page: its own callback, its view, its task."""
    browser = names["app"].test_client()
    form = {"CallSid": call(3), "RecordingUrl": url_of(3), "RecordingDuration": "-1"}
    assert browser.post("/twilio/recording-done", data=form).status_code == 204
    assert stored(3)["sha256"] == expected
    other = flask.Flask("other")
    flask_view.add_download(other, names["login_required"], names["find_call_log"])
    for page in (browser, other.test_client()):
        user.clear()
        assert page.get(f"/api/calls/{call(3)}/download").status_code == 401
        user.append("somebody")
        answer = page.get(f"/api/calls/{call(3)}/download")
        assert answer.status_code == 302, answer.status_code
        with urllib.request.urlopen(answer.headers["Location"]) as played:
            assert sha256(played.read()) == expected
        assert page.get(f"/api/calls/{call(404)}/download").status_code == 404
    for raised, status in [(callvault_client.RecordingPending, 404), (callvault_client.ServiceUnavailable, 503)]:
        with unittest.mock.patch("flask_view.play_url", side_effect=raised("not now", 7)):
            answer = other.test_client().get(f"/api/calls/{call(3)}/download")
        assert (answer.status_code, answer.headers["Retry-After"]) == (status, "7")
    # A new call, and one that Twilio has no audio of.
    assert names["transcribe"].apply(args=[call(4)]).get() == expected
    assert names["transcribe"].apply(args=[call(5)]).get() == "no recording"


def readme():
    """python/README.md: each snippet in turn, and the worker as it is started there."""
    os.chdir(CLIENTS / "python")
    body = json.dumps({"id": "1", "type": "recording.stored"}).encode()
    sent_at = str(int(time.time()))
    mac = hmac.new(b"a secret", f"evt.{sent_at}.".encode() + body, hashlib.sha256).digest()
    names = {
        "call_log": types.SimpleNamespace(call_sid=call(1), recording_url=url_of(1)),
        "headers": {"webhook-id": "evt", "webhook-timestamp": sent_at, "webhook-signature": f"v1,{base64.b64encode(mac).decode()}"},
        "body": body, "secret": f"whsec_{base64.b64encode(b'a secret').decode()}",
    }
    python = [text for language, text in blocks("python/README.md") if language == "python"]
    for text in python:
        exec(compile(text, "README.md", "exec"), names)
    assert len(python) == 5, len(python)
    assert os.path.basename(names["path"]).startswith(f"RE{1:032x}")
    assert names["event"] == json.loads(body) and names["cursor"]


def started_worker():
    """The command with which python/README.md starts the worker, by a shell that takes it as it stands."""
    (text,) = [text for language, text in blocks("python/README.md") if language == "sh"]
    print(text.replace("http://minio.internal:9000", os.environ["AWS_ENDPOINT_URL_S3"]))


if __name__ == "__main__":
    {"moving": moving, "readme": readme, "worker": started_worker}[sys.argv[1]]()
