"""What the Python client does when the service, the bucket or the disk is not at its best.

Each test is a claim. Nothing here needs callvault: what it says is scripted.
"""

import base64
import fcntl
import hashlib
import hmac
import http.server
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import types
import unittest
import unittest.mock

import callvault_client
from callvault_client import (
    AccessDenied,
    CallvaultError,
    Client,
    DamagedRecording,
    RecordingPending,
    ServiceUnavailable,
)

from scripted import AUDIO, CALL, RECORDING, Scripted, problem

KEY = "a-key-of-the-tests"
CALL_LINK, RECORDING_LINK = f"/v1/calls/{CALL}/link", f"/v1/recordings/{RECORDING}/link"
URL = f"https://api.twilio.com/2010-04-01/Accounts/AC{1:032x}/Recordings/{RECORDING}"
OK = (200, AUDIO, {})


class Staged(unittest.TestCase):
    """A scripted service, a scripted bucket, a cache folder."""

    def setUp(self):
        self.service, self.bucket = Scripted(), Scripted()
        for server in (self.service, self.bucket):
            self.addCleanup(server.server_close)
            self.addCleanup(server.shutdown)
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.addCleanup(callvault_client._let_go)
        self.folder = folder.name
        self.client = Client(self.service.url, KEY, self.folder)
        self.service.answers[CALL_LINK] = [self.service.link(self.bucket)]
        self.bucket.answers[f"/{RECORDING}"] = [OK]

    def get(self, call_log=CALL, timeout=5):
        return self.client.get_recording_file_for_call(call_log, timeout)

    def files(self):
        return sorted(os.listdir(self.folder))

    def assert_is_audio(self, path, audio=AUDIO):
        with open(path, "rb") as file:
            self.assertEqual(file.read(), audio)


class Asking(Staged):
    def test_the_key_goes_to_the_service_alone(self):
        elsewhere = Scripted()
        self.addCleanup(elsewhere.server_close)
        self.addCleanup(elsewhere.shutdown)
        elsewhere.answers["/moved"] = [OK]
        self.bucket.answers[f"/{RECORDING}"] = [(307, b"", {"Location": f"{elsewhere.url}/moved"})]
        self.assert_is_audio(self.get())
        self.assertEqual(self.service.seen[0][3]["Authorization"], f"Bearer {KEY}")
        for server in (self.bucket, elsewhere):
            self.assertEqual(len(server.seen), 1)
            self.assertNotIn(KEY, str(server.seen))

    def test_content_that_redirects_to_the_bucket_is_followed_without_the_key(self):
        self.service.answers[CALL_LINK] = [self.service.link(self.bucket, url="http://127.0.0.1:1/gone")]
        content = f"/v1/recordings/{RECORDING}/content"
        self.service.answers[content] = [(307, b"", {"Location": f"{self.bucket.url}/{RECORDING}"})]
        self.assert_is_audio(self.get())
        self.assertEqual(len(self.service.asked(content)), 1)
        self.assertNotIn(KEY, str(self.bucket.seen))

    def test_a_service_that_redirects_is_not_sent_the_key_elsewhere(self):
        self.service.answers[CALL_LINK] = [(307, b"", {"Location": f"{self.bucket.url}/link"})]
        with self.assertRaisesRegex(CallvaultError, "redirect"):
            self.get()
        self.assertEqual(self.bucket.seen, [])

    def test_a_bucket_that_cannot_be_reached_is_read_by_way_of_the_service(self):
        self.service.answers[CALL_LINK] = [self.service.link(self.bucket, url="http://127.0.0.1:1/gone")]
        self.service.answers[f"/v1/recordings/{RECORDING}/content"] = [OK]
        self.assert_is_audio(self.get())

    def test_trouble_that_passes_is_waited_out(self):
        trouble = [
            problem(503, "unavailable"),
            (500, b"<html>", {}),
            (None, b"", {}),
            problem(429, "too_many_requests"),
        ]
        self.service.answers[CALL_LINK] = [*trouble, self.service.link(self.bucket)]
        self.assert_is_audio(self.get(timeout=20))
        self.assertEqual(len(self.service.seen), 5)

    def test_trouble_that_stays_is_told_as_something_to_ask_again(self):
        self.service.answers[CALL_LINK] = [problem(503, "unavailable", Retry_After="40")]
        with self.assertRaises(ServiceUnavailable) as raised:
            self.get(timeout=1)
        self.assertIsInstance(raised.exception, RecordingPending)
        self.assertEqual(raised.exception.retry_after, 40)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            nobody = Client(f"http://127.0.0.1:{unused.getsockname()[1]}", KEY, self.folder)
            with self.assertRaises(ServiceUnavailable):
                nobody.get_recording_file_for_call(CALL, timeout=1)

    def test_a_service_that_never_answers_is_not_waited_for_much_longer_than_asked(self):
        over = threading.Event()
        self.addCleanup(over.set)
        self.service.answers[CALL_LINK] = [lambda: over.wait(60)]
        with unittest.mock.patch("callvault_client._ANSWER_SECONDS", 0.5):
            began = time.monotonic()
            with self.assertRaises(ServiceUnavailable):
                self.get(timeout=1)
        self.assertLess(time.monotonic() - began, 20)

    def test_not_yet_is_raised_with_when_to_ask_again(self):
        for not_yet in [
            (202, b'{"state":"pending","recording_sid":null,"retry_after_seconds":7}', {"Retry-After": "7"}),
            problem(404, "not_ready", Retry_After="7"),
        ]:
            self.service.answers[CALL_LINK] = [not_yet]
            with self.assertRaises(RecordingPending) as raised:
                self.get(timeout=1)
            self.assertEqual(raised.exception.retry_after, 7)
            self.assertNotIsInstance(raised.exception, ServiceUnavailable)

    def test_not_yet_becomes_the_file_within_the_timeout(self):
        self.service.answers[CALL_LINK].insert(0, problem(404, "not_ready", Retry_After="1"))
        self.assert_is_audio(self.get())
        waits = [int(asked[2]["wait"][0]) for asked in self.service.seen]
        self.assertTrue(all(3 <= wait <= 5 for wait in waits), waits)

    def test_never_is_none(self):
        for status, code in [(404, "recording_absent"), (424, "recording_failed"), (410, "erased")]:
            self.service.answers[CALL_LINK] = [problem(status, code)]
            self.assertIsNone(self.get(), code)
            self.assertEqual(len(self.service.asked(CALL_LINK)), 1)
            self.service.seen.clear()
        self.service.answers[f"/v1/calls/{CALL}/recording"] = [problem(410, "erased")]
        self.assertIsNone(self.get({"call_sid": CALL, "recording_url": URL}))

    def test_a_call_that_nobody_knows_yet_is_asked_for_again_before_it_is_never(self):
        unknown = problem(404, "not_found")
        self.service.answers[CALL_LINK] = [unknown, unknown, self.service.link(self.bucket)]
        self.assert_is_audio(self.get(timeout=20))
        self.service.answers[CALL_LINK] = [unknown]
        with unittest.mock.patch("callvault_client._UNKNOWN_SECONDS", 3):
            self.assertIsNone(self.get(timeout=20))
        # An event named it: it was known, and is not any more.
        self.service.seen.clear()
        self.assertIsNone(Client(self.service.url, KEY, self.folder).get_recording_file(RECORDING))
        self.assertEqual(len(self.service.seen), 1)

    def test_naming_a_recording_takes_no_longer_than_it_may(self):
        over = threading.Event()
        self.addCleanup(over.set)
        self.service.answers[f"/v1/calls/{CALL}/recording"] = [lambda: over.wait(60)]
        began = time.monotonic()
        with self.assertRaises(ServiceUnavailable):
            Client(self.service.url, KEY, self.folder).put_recording({"call_sid": CALL, "recording_url": URL}, timeout=2)
        self.assertLess(time.monotonic() - began, 4)

    def test_what_is_wrong_with_the_set_up_is_never_taken_for_never(self):
        for status, code in [(401, "unauthorized"), (403, "forbidden")]:
            self.service.answers[CALL_LINK] = [problem(status, code)]
            with self.assertRaisesRegex(AccessDenied, code):
                self.get()
        for answer in [
            (404, b"<html>no such page</html>", {}),
            (200, b"<html>hello</html>", {}),
            problem(400, "invalid_request"),
        ]:
            self.service.answers[CALL_LINK] = [answer]
            with self.assertRaises(CallvaultError) as raised:
                self.get()
            self.assertNotIsInstance(raised.exception, RecordingPending)
        # The key is bound to another account.
        with self.assertRaisesRegex(CallvaultError, "not_found"):
            self.get({"call_sid": CALL, "recording_url": URL})

    def test_nothing_that_is_raised_has_the_key_or_a_signature_in_it(self):
        self.service.answers[CALL_LINK] = [self.service.link(self.bucket)]
        self.bucket.answers[f"/{RECORDING}"] = [(403, b"", {})]
        with self.assertRaises(CallvaultError) as raised:
            self.get(timeout=1)
        for secret in (KEY, "X-Amz-Signature"):
            self.assertNotIn(secret, str(raised.exception))

    def test_the_recording_that_was_named_is_the_one_that_is_read(self):
        other = f"RE{2:032x}"
        put = f"/v1/calls/{CALL}/recording"
        self.service.answers[put] = [(202, json.dumps({"recording_sid": other}).encode(), {})]
        self.service.answers[f"/v1/recordings/{other}/link"] = [self.service.link(self.bucket, b"other", other)]
        self.bucket.answers[f"/{other}"] = [(200, b"other", {})]
        call_log = types.SimpleNamespace(call_sid=CALL, recording_url=URL, duration="-1")
        self.assert_is_audio(self.get(call_log), b"other")
        self.assertEqual(json.loads(self.service.asked(put)[0][4]), {"recording_url": URL})

    def test_call_logs_of_all_kinds_are_understood(self):
        put = f"/v1/calls/{CALL}/recording"
        self.service.answers[put] = [(200, json.dumps({"recording_sid": RECORDING}).encode(), {})]
        self.service.answers[RECORDING_LINK] = [self.service.link(self.bucket)]
        named = [
            types.SimpleNamespace(twilio_call_sid=CALL, twilio_recording_url=URL),
            {"CallSid": CALL, "RecordingUrl": URL},
            types.SimpleNamespace(id=7, sid=CALL, recording_url=f" {URL} "),
        ]
        for puts, call_log in enumerate(named, 1):
            self.assert_is_audio(self.get(call_log))
            self.assertEqual(len(self.service.asked(put)), puts)
        for call_log in [
            CALL,
            types.SimpleNamespace(call_sid=CALL, recording_url=None),
            {"call_sid": CALL, "recording_url": ""},
        ]:
            self.assert_is_audio(self.get(call_log))
        self.assertEqual(len(self.service.asked(put)), len(named))
        for call_log in [None, 7, "", "CA1", {"call_sid": "../x"}, types.SimpleNamespace(recording_url=URL)]:
            with self.assertRaisesRegex(ValueError, "call SID"):
                self.get(call_log)
        with self.assertRaisesRegex(ValueError, "RE"):
            self.client.get_recording_file("../recordings")


class Files(Staged):
    def test_a_file_is_downloaded_once_and_then_taken_from_the_folder(self):
        first = self.get()
        self.assertEqual(first, self.get())
        self.assertEqual(len(self.bucket.seen), 1)
        self.assertEqual(self.files(), [f"{RECORDING}.{hashlib.sha256(AUDIO).hexdigest()}.wav"])

    def test_a_body_that_breaks_off_is_never_a_file(self):
        cut = (200, AUDIO[:1000], {"Content-Length": str(len(AUDIO))})
        self.bucket.answers[f"/{RECORDING}"] = [cut, (200, AUDIO[:1000], {}), OK]
        self.service.answers[f"/v1/recordings/{RECORDING}/content"] = [problem(503, "unavailable")]
        self.assert_is_audio(self.get(timeout=20))
        self.assertEqual(len(self.files()), 1)
        self.bucket.answers[f"/{RECORDING}"] = [cut]
        self.client.forget(RECORDING)
        with self.assertRaises(ServiceUnavailable):
            self.get(timeout=1)
        self.assertEqual(self.files(), [])

    def test_wrong_bytes_are_never_a_file(self):
        spoilt = (200, AUDIO[:-1] + b"x", {})
        self.bucket.answers[f"/{RECORDING}"] = [spoilt]
        self.service.answers[f"/v1/recordings/{RECORDING}/content"] = [(200, AUDIO + b"x", {})]
        with self.assertRaises(DamagedRecording):
            self.get(timeout=20)
        self.assertEqual(self.files(), [])
        self.assertEqual(len(self.bucket.seen) + len(self.service.asked(f"/v1/recordings/{RECORDING}/content")), 3)

    def test_a_cached_file_that_rotted_is_fetched_again(self):
        path = self.get()
        with open(path, "r+b") as file:
            file.write(b"rot")
        self.assert_is_audio(self.get())

    def test_what_was_erased_is_removed_here_too(self):
        self.get()
        self.service.answers[CALL_LINK] = [problem(410, "erased")]
        shown = {"call_sid": CALL, "recordings": [{"recording_sid": RECORDING, "state": "erased"}]}
        self.service.answers[f"/v1/calls/{CALL}"] = [(200, json.dumps(shown).encode(), {})]
        self.assertIsNone(self.get())
        self.assertEqual(self.files(), [])

    def recording(self, number, size):
        """Another call with a recording of that size, and its file's path once it was got."""
        call, recording, audio = f"CA{number:032x}", f"RE{number:032x}", bytes([number]) * size
        self.service.answers[f"/v1/calls/{call}/link"] = [self.service.link(self.bucket, audio, recording)]
        self.bucket.answers[f"/{recording}"] = [(200, audio, {})]
        return call

    def age(self, path, seconds):
        then = time.time() - seconds
        os.utime(path, (then, then))

    def test_the_folder_is_bounded_and_the_oldest_go_first(self):
        self.client = Client(self.service.url, KEY, self.folder, cache_max_bytes=2500)
        stranger = os.path.join(self.folder, "notes.txt")
        with open(stranger, "w", encoding="utf-8") as file:
            file.write("x" * 10_000)
        paths = []
        for number in range(1, 7):
            paths.append(self.get(self.recording(number, 1000)))
            self.age(paths[-1], 100 - number)
            self.assertTrue(os.path.exists(paths[-1]))
        self.assertEqual([os.path.exists(path) for path in paths], [False] * 4 + [True] * 2)
        self.assertTrue(os.path.exists(stranger))

    def test_a_file_in_use_stays(self):
        self.client = Client(self.service.url, KEY, self.folder, cache_max_bytes=1)
        with self.client.recording_file(self.recording(1, 1000)) as kept:
            self.age(kept, 1000)
            last = self.get(self.recording(2, 1000))
            self.age(last, 500)
            elsewhere = []
            other = threading.Thread(target=lambda: elsewhere.append(self.get(self.recording(3, 1000))))
            other.start()
            other.join()
            # This thread's last one, too, though another thread has got one since.
            self.assertTrue(os.path.exists(kept) and os.path.exists(last) and os.path.exists(elsewhere[0]))
        newest = self.get(self.recording(4, 1000))
        self.assertEqual(self.files(), [os.path.basename(newest)])

    def test_what_was_given_to_others_later_stays(self):
        self.client = Client(self.service.url, KEY, self.folder, cache_max_bytes=1)
        later = self.get(self.recording(1, 1000))
        self.age(later, -1000)
        callvault_client._let_go()
        self.get(self.recording(2, 1000))
        self.assertTrue(os.path.exists(later))

    def test_a_process_that_was_killed_leaves_nothing_in_the_way(self):
        half = threading.Event()

        def slow():
            half.set()
            return 200, AUDIO[:1000], {"Content-Length": str(len(AUDIO))}

        # It says half and then holds the connection open.
        held = threading.Event()
        finish = http.server.BaseHTTPRequestHandler.finish
        handler = type("Holding", (self.bucket.RequestHandlerClass,), {"finish": lambda s: (held.wait(30), finish(s))})
        self.bucket.RequestHandlerClass = handler
        self.bucket.answers[f"/{RECORDING}"] = [slow, OK]
        env = {
            **os.environ,
            "CALLVAULT_URL": self.service.url,
            "CALLVAULT_API_KEY": KEY,
            "CALLVAULT_CACHE_DIR": self.folder,
        }
        command = [sys.executable, callvault_client.__file__, CALL]
        with subprocess.Popen(command, env=env, stdout=subprocess.PIPE) as process:
            self.assertTrue(half.wait(30))
            while not any(name.endswith(".part") for name in self.files()):
                time.sleep(0.01)
            process.kill()
        held.set()
        self.assertEqual([name[-5:] for name in self.files()], [".part"])
        self.assert_is_audio(self.get())
        self.assertEqual(len(self.files()), 1)

    def test_a_file_that_is_held_alone_for_a_moment_is_waited_for(self):
        path = self.get()
        with open(path, "rb") as file:
            callvault_client._let_go()
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            threading.Timer(0.2, file.close).start()
            self.assertEqual(self.get(timeout=0), path)
        self.assertEqual(len(self.bucket.seen), 1)

    def test_forgetting_leaves_what_is_being_written(self):
        part = os.path.join(self.folder, f"{RECORDING}.{'0' * 64}.mp3.part")
        with open(part, "wb") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self.client.forget(RECORDING)
            self.assertEqual(len(self.files()), 1)
        self.client.forget(RECORDING)
        self.assertEqual(self.files(), [])

    def test_old_parts_are_cleared_away(self):
        stale = os.path.join(self.folder, f"{RECORDING}.{'0' * 64}.mp3.part")
        with open(stale, "wb") as file:
            file.write(b"x")
        self.age(stale, 5000)
        self.get()
        self.assertFalse(os.path.exists(stale))

    def test_ten_threads_download_once(self):
        with self.assertLogs("callvault_client", logging.INFO) as logs:
            threads = [threading.Thread(target=lambda: self.assert_is_audio(self.get())) for _ in range(10)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        self.assertEqual(len(self.bucket.seen), 1)
        self.assertEqual(len(logs.output), 1)

    def test_a_folder_of_somebody_else_is_not_used(self):
        temporary = tempfile.mkdtemp(dir=self.folder)
        target = tempfile.mkdtemp(dir=self.folder)
        os.symlink(target, os.path.join(temporary, f"callvault-{os.getuid()}"))
        before, tempfile.tempdir = tempfile.tempdir, temporary
        self.addCleanup(setattr, tempfile, "tempdir", before)
        with self.assertRaisesRegex(CallvaultError, "CALLVAULT_CACHE_DIR"):
            Client(self.service.url, KEY).get_recording_file_for_call(CALL)
        os.remove(os.path.join(temporary, f"callvault-{os.getuid()}"))
        path = Client(self.service.url, KEY).get_recording_file_for_call(CALL)
        self.assertEqual(os.stat(os.path.dirname(path)).st_mode & 0o777, 0o700)


class Following(Staged):
    def page(self, ids, then):
        events = [{"id": name, "type": "recording.stored", "recording": {}} for name in ids]
        return 200, json.dumps({"events": events, "next": then}).encode(), {}

    def test_it_goes_on_through_restarts_and_gives_each_event_once(self):
        self.service.answers["/v1/events"] = [
            self.page(["1", "2"], "2"),
            (None, b"", {}),
            problem(503, "unavailable"),
            self.page([], "7"),
            self.page(["8"], "8"),
        ]
        events = self.client.follow(types=("recording.stored", "recording.erased"), wait=3)
        self.assertEqual([next(events)["id"] for _ in range(3)], ["1", "2", "8"])
        self.assertEqual(events.cursor, "8")
        asked = [request[2] for request in self.service.seen]
        self.assertEqual([query.get("after") for query in asked], [None, ["2"], ["2"], ["2"], ["7"]])
        self.assertEqual(asked[0]["type"], ["recording.stored", "recording.erased"])
        self.assertEqual(asked[0]["wait"], ["3"])

    def test_the_cursor_never_runs_ahead_of_what_was_given(self):
        self.service.answers["/v1/events"] = [self.page(["3", "4"], "9")]
        events = self.client.follow(after="1")
        self.assertEqual(events.cursor, "1")
        next(events)
        self.assertEqual(events.cursor, "3")
        next(events)
        self.assertEqual(events.cursor, "4")

    def test_what_repeating_does_not_mend_is_raised(self):
        self.service.answers["/v1/events"] = [problem(401, "unauthorized"), problem(400, "invalid_request")]
        with self.assertRaises(AccessDenied):
            next(self.client.follow())
        with self.assertRaisesRegex(CallvaultError, "invalid_request"):
            next(self.client.follow(after="nonsense"))


class Webhooks(unittest.TestCase):
    SECRET = base64.b64encode(b"a secret of thirty-two bytes ...").decode()

    def signed(self, body=b'{"id":"1","type":"recording.stored"}', at=None, secret=b"a secret of thirty-two bytes ..."):
        sent_at = str(int(time.time()) if at is None else at)
        mac = hmac.new(secret, b"evt_1." + sent_at.encode() + b"." + body, hashlib.sha256).digest()
        return {
            "Webhook-Id": "evt_1",
            "webhook-timestamp": sent_at,
            "WEBHOOK-SIGNATURE": "v1," + base64.b64encode(mac).decode(),
        }

    def verify(self, headers, body=b'{"id":"1","type":"recording.stored"}', secret=None):
        return callvault_client.verify_webhook(headers, body, secret or f"whsec_{self.SECRET}")

    def test_what_was_signed_is_given(self):
        event = {"id": "1", "type": "recording.stored"}
        self.assertEqual(self.verify(self.signed()), event)
        self.assertEqual(self.verify(self.signed(), secret=self.SECRET), event)
        self.assertEqual(self.verify(self.signed(), body='{"id":"1","type":"recording.stored"}'), event)

    def test_any_of_several_signatures_is_enough(self):
        headers = self.signed()
        headers["WEBHOOK-SIGNATURE"] = f"v1a,AAAA v1,{'A' * 43}= {headers['WEBHOOK-SIGNATURE']}"
        self.assertEqual(self.verify(headers)["id"], "1")

    def test_everything_else_is_refused(self):
        good = self.signed()
        refused = [
            {},
            {**good, "webhook-timestamp": "x"},
            {**good, "Webhook-Id": "evt_2"},
            {**good, "WEBHOOK-SIGNATURE": ""},
            {**good, "WEBHOOK-SIGNATURE": good["WEBHOOK-SIGNATURE"].replace("v1,", "v2,")},
            self.signed(secret=b"another secret"),
            self.signed(body=b'{"id":"2"}'),
            self.signed(at=int(time.time()) - 301),
            self.signed(at=int(time.time()) + 302),
        ]
        for headers in refused:
            with self.assertRaises(callvault_client.InvalidWebhook):
                self.verify(headers)
        for secret in ("whsec_", "no base64!"):
            with self.assertRaises(ValueError):
                self.verify(good, secret=secret)


if __name__ == "__main__":
    unittest.main()
