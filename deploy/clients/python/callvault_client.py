"""The recording of a call, as a file: what a worker needs of callvault.

    from callvault_client import RecordingPending, get_recording_file_for_call

    path = get_recording_file_for_call(call_log)      # a whole, checked file

The file is complete and its SHA-256 is the one that callvault stored, or there is
no file: ``None`` means that there never will be one, `RecordingPending` that it is
too early. Ten processes may ask for the same call at once; Twilio is asked once,
and where they share a cache folder the audio is downloaded once.

One file, the standard library only, Python 3.9 or newer, on Linux and its like. Copy
it into your application. Settings come from the environment:

    CALLVAULT_URL        where the service is, inside: http://callvault.internal:8080
    CALLVAULT_API_KEY    a key with the scopes read,ingest (read is enough where
                         no call_log has a recording_url)
    CALLVAULT_CACHE_DIR  where files are kept; a folder of your own in the system's
                         temporary folder by default

What always holds: the key goes to CALLVAULT_URL alone, never along a redirect and
never to the bucket; nothing is logged or raised that has a key or a signed URL in it.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import fcntl
import functools
import hashlib
import hmac
import http.client
import itertools
import json
import logging
import os
import random
import re
import stat
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

__all__ = [
    "AccessDenied",
    "CallvaultError",
    "Client",
    "DamagedRecording",
    "Follower",
    "InvalidWebhook",
    "RecordingPending",
    "ServiceUnavailable",
    "follow",
    "forget",
    "get_recording_file",
    "get_recording_file_for_call",
    "play_url",
    "put_recording",
    "recording_file",
    "verify_webhook",
]

#: What the cache folder may hold. Not a variable of the environment: the service
#: refuses names beginning with CALLVAULT_ that it does not know. Set it in your code.
CACHE_MAX_BYTES = 2 << 30

# The longest wait that the service takes (?wait=), and what an answer may take besides.
_WAIT_MAX_SECONDS = 30
_ANSWER_SECONDS = 5
# A download that stands still for so long is broken off and begun anew.
_STALL_SECONDS = 30
_CHUNK_BYTES = 1 << 20
# A hundred events are some hundred kilobytes.
_ANSWER_MAX_BYTES = 16 << 20
# Bytes that came whole but wrong so often are wrong in the bucket.
_DAMAGED_MAX = 3
_REDIRECTS_MAX = 5
# Nobody writes to a part that is older.
_PART_IS_STALE_SECONDS = 3600
_WEBHOOK_TOLERANCE_SECONDS = 300

# Twilio's list has a call's recording some seconds after the call: so long is one
# asked for again that nobody knows.
_UNKNOWN_SECONDS = 15
# The codes of problems that no waiting changes.
_NEVER = frozenset({"not_found", "recording_absent", "recording_failed", "erased"})
_TRANSIENT = (OSError, http.client.HTTPException)

_CALL_NAMES = ("call_sid", "twilio_call_sid", "CallSid", "sid", "twilio_sid")
_URL_NAMES = ("recording_url", "twilio_recording_url", "RecordingUrl")

_log = logging.getLogger("callvault_client")


class CallvaultError(Exception):
    """Something is wrong that waiting does not mend: the message says what."""


class AccessDenied(CallvaultError):
    """The service does not know the key, or the key lacks a scope (401, 403)."""


class DamagedRecording(CallvaultError):
    """The bytes that came are, again and again, not those that were stored.

    The bucket's copy is spoilt: `callvault verify --repair` fetches it anew.
    """


class InvalidWebhook(CallvaultError):
    """A webhook that callvault did not sign with that secret, or too long ago."""


class RecordingPending(CallvaultError):
    """Not yet. Ask again in `retry_after` seconds: ``self.retry(countdown=e.retry_after)``."""

    def __init__(self, message: str, retry_after: int) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class ServiceUnavailable(RecordingPending):
    """The service or the bucket could not be asked in all that time.

    Nothing is known of the recording then, and asking again is right: that is why
    it is a `RecordingPending`.
    """


class _Call(NamedTuple):
    sid: str
    recording_url: str | None

    @classmethod
    def of(cls, call_log: object) -> _Call:
        """The SID and the URL that a call log has, under the names that applications use."""
        if isinstance(call_log, str):
            call_log = {"call_sid": call_log}
        sid = _first(call_log, _CALL_NAMES, r"CA[0-9a-fA-F]{32}")
        if sid is None:
            raise ValueError(
                f"no call SID (CA and 32 hex digits) in any of {', '.join(_CALL_NAMES)}"
            )
        return cls(sid, _first(call_log, _URL_NAMES, r".+"))


def _first(source: object, names: Iterable[str], pattern: str) -> str | None:
    for name in names:
        value = (
            source.get(name)
            if isinstance(source, Mapping)
            else getattr(source, name, None)
        )
        text = value.strip() if isinstance(value, str) else ""
        if re.fullmatch(pattern, text):
            return text
    return None


class _Deadline:
    """A moment until which things are tried again; None is never."""

    def __init__(self, seconds: float | None) -> None:
        self._end = float("inf") if seconds is None else time.monotonic() + seconds

    def left(self) -> float:
        return max(0.0, self._end - time.monotonic())

    def wait(self) -> int:
        """What to give as ?wait=: the answer is to be here before the end."""
        return int(min(_WAIT_MAX_SECONDS, max(0.0, self.left() - 1)))

    def answer(self) -> float:
        """How long an answer is waited for."""
        return min(self.wait() + _ANSWER_SECONDS, max(1.0, self.left()))

    def sleep(self, seconds: float) -> None:
        time.sleep(min(seconds, self.left()))


def _backoff(attempt: int, at_most: float = 5.0) -> float:
    return min(at_most, 0.2 * 2 ** min(attempt, 10)) * random.uniform(0.5, 1.0)


class _Answer(NamedTuple):
    status: int
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def code(self) -> str:
        return str(self.body.get("code", ""))

    @property
    def is_pending(self) -> bool:
        return self.status == 202 or self.code == "not_ready"

    @property
    def retry_after(self) -> int:
        told = self.headers.get("Retry-After") or ""
        return max(1, int(told)) if told.isdigit() else 5

    def refused(self, what: str) -> CallvaultError:
        """The error that this answer is."""
        detail = (
            self.body.get("detail") or self.body.get("title") or "no problem document"
        )
        kind = AccessDenied if self.status in (401, 403) else CallvaultError
        return kind(f"{what}: {self.status} {self.code or 'unknown'}: {detail}")


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects come back as answers: they are followed by hand, without the key."""

    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects)


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """The answer, whatever its status."""
    try:
        return _opener.open(request, timeout=timeout)
    except urllib.error.HTTPError as answer:
        return answer


class Client:
    """callvault at one URL, with one key and one cache folder.

    The functions of this module use one that is made of the environment; make your
    own where an application talks to several. It is safe to share between threads.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        cache_dir: str | None = None,
        cache_max_bytes: int | None = None,
    ) -> None:
        if not re.match(r"https?://[^/]+", url):
            raise ValueError(
                "CALLVAULT_URL is not set to where callvault is, such as http://callvault.internal:8080"
            )
        if not api_key:
            raise ValueError(
                "CALLVAULT_API_KEY is not set to a key with the scopes read,ingest"
            )
        self._url = url.rstrip("/")
        self._api_key = api_key
        self._cache = _Cache(cache_dir, cache_max_bytes)

    def put_recording(
        self, call_log: object, timeout: float = 10
    ) -> dict[str, Any] | None:
        """Names the recording of a call, and gives it as callvault knows it.

        This is all that an application's own recordingStatusCallback has to do; a
        form with Twilio's fields is a fine `call_log`. Twilio waits 15 seconds for an
        answer, and so `timeout` is less. None: it was erased.
        """
        call = _Call.of(call_log)
        if call.recording_url is None:
            raise ValueError(f"no recording URL in any of {', '.join(_URL_NAMES)}")
        return self._put(call, _Deadline(timeout))

    def get_recording_file_for_call(
        self, call_log: object, timeout: float = 60
    ) -> str | None:
        """A local path to the call's recording: the one of `recording_url` where there is one.

        `call_log` is any object or mapping with a `call_sid` (or `twilio_call_sid`,
        `CallSid`, `sid`, `twilio_sid`) and perhaps a `recording_url` (or
        `twilio_recording_url`, `RecordingUrl`); or just the SID.

        None: never (absent, failed, erased, or neither callvault nor Twilio knows of
        any: that is asked again for 15 seconds, because Twilio tells of a recording some
        seconds after its call). Not yet after `timeout` seconds: `RecordingPending`. A download that has
        begun by then is brought to its end.

        The file is yours to read, not to change. It stays at least until the same
        thread asks for its next one; `recording_file` keeps one for as long as you like.
        """
        _let_go()
        return _keep(self._obtain_for_call(call_log, timeout))

    def get_recording_file(self, recording_sid: str, timeout: float = 60) -> str | None:
        """The same for a recording that is known by its own SID, as events name it."""
        if not re.fullmatch(r"RE[0-9a-fA-F]{32}", recording_sid):
            raise ValueError("a recording SID is RE and 32 hex digits")
        _let_go()
        path = f"/v1/recordings/{recording_sid}"
        return _keep(self._obtain(path, _Deadline(timeout)))

    @contextlib.contextmanager
    def recording_file(
        self, call_log: object, timeout: float = 60
    ) -> Iterator[str | None]:
        """The same for a block: ``with recording_file(call_log) as path:``."""
        held = self._obtain_for_call(call_log, timeout)
        if held is None:
            yield None
            return
        with held:
            yield held.name

    def play_url(
        self, call_log: object, expires_in: int | str | None = None, timeout: float = 10
    ) -> str | None:
        """A URL that plays without a key, for `<audio src>`, a CRM or a mail.

        It may be made before the audio is there. It lives `expires_in` (seconds, or
        "12h"; a day if you do not say), and ends with the key that made it. None:
        there never will be audio.
        """
        deadline = _Deadline(timeout)
        path = self._path_of(_Call.of(call_log), deadline)
        if path is None:
            return None
        body = {} if expires_in is None else {"expires_in": expires_in}
        answer = self._ask(
            "POST", f"{path}/share?wait={deadline.wait()}", deadline, body
        )
        if answer.status == 201:
            return answer.body["url"]
        if answer.is_pending:
            raise RecordingPending(
                "Twilio is being asked for the recording", answer.retry_after
            )
        if answer.code in _NEVER:
            return None
        raise answer.refused("no play URL")

    def follow(
        self,
        after: str | None = None,
        types: str | Iterable[str] = (),
        wait: int = _WAIT_MAX_SECONDS,
        account_sid: str | None = None,
        call_sid: str | None = None,
    ) -> Follower:
        """The events of the service, one after another, for ever: see `Follower`."""
        kinds = [types] if isinstance(types, str) else list(types)
        fixed = [("type", kind) for kind in kinds]
        fixed += [
            (name, value)
            for name, value in (("account_sid", account_sid), ("call_sid", call_sid))
            if value
        ]
        return Follower(self, after, fixed, wait)

    def forget(self, recording_sid: str) -> None:
        """Removes the cached files of a recording, as when `recording.erased` is told."""
        self._cache.forget(recording_sid)

    def _obtain_for_call(self, call_log: object, timeout: float) -> BinaryIO | None:
        deadline = _Deadline(timeout)
        path = self._path_of(_Call.of(call_log), deadline)
        return None if path is None else self._obtain(path, deadline)

    def _path_of(self, call: _Call, deadline: _Deadline) -> str | None:
        """What is asked for: the recording that was named, else what the call answers for."""
        if call.recording_url is None:
            return f"/v1/calls/{call.sid}"
        recording = self._put(call, deadline)
        return (
            None
            if recording is None
            else f"/v1/recordings/{recording['recording_sid']}"
        )

    def _put(self, call: _Call, deadline: _Deadline) -> dict[str, Any] | None:
        answer = self._ask(
            "PUT",
            f"/v1/calls/{call.sid}/recording",
            deadline,
            {"recording_url": call.recording_url},
        )
        if answer.status in (200, 202):
            return answer.body
        if answer.code == "erased":
            for sid in re.findall(r"RE[0-9a-fA-F]{32}", call.recording_url or ""):
                self.forget(sid)
            return None
        # Not None for a 404: it says that the key is bound to other accounts.
        raise answer.refused(f"the recording of {call.sid} was not taken")

    def _obtain(self, path: str, deadline: _Deadline) -> BinaryIO | None:
        """The file, open and in use until it is closed."""
        damaged = 0
        for attempt in itertools.count():
            link = self._link(path, deadline)
            if link is None:
                return None
            try:
                # Where the bucket cannot be reached from here, the service may.
                return self._cache.obtain(
                    link, functools.partial(self._audio, link, attempt % 2 == 1)
                )
            except _Damaged as error:
                damaged += 1
                if damaged == _DAMAGED_MAX:
                    raise DamagedRecording(
                        f"{link['recording_sid']}: {error}"
                    ) from None
            except _Interrupted as error:
                # Never before the service was asked for it, too.
                if attempt > 0 and not deadline.left():
                    raise ServiceUnavailable(
                        f"{link['recording_sid']} cannot be downloaded: {error}", 5
                    ) from None
            deadline.sleep(_backoff(attempt))

    def _link(self, path: str, deadline: _Deadline) -> dict[str, Any] | None:
        """Where the audio is, once it is stored."""
        known_by = _Deadline(_UNKNOWN_SECONDS)
        while True:
            answer = self._ask("GET", f"{path}/link?wait={deadline.wait()}", deadline)
            if answer.status == 200:
                return answer.body
            if answer.code == "not_found" and path.startswith("/v1/calls/"):
                pause = _backoff(4)
                if min(known_by.left(), deadline.left()) > pause:
                    deadline.sleep(pause)
                    continue
            if answer.code in _NEVER:
                self._forget_erased(path, answer)
                return None
            if not answer.is_pending:
                raise answer.refused("no recording")
            if deadline.left() < 1:
                raise RecordingPending(
                    f"{path.rsplit('/', 1)[-1]} is not there yet", answer.retry_after
                )
            deadline.sleep(_backoff(0))

    def _forget_erased(self, path: str, answer: _Answer) -> None:
        """What was erased is not kept here either."""
        if answer.code != "erased":
            return
        with contextlib.suppress(CallvaultError):
            shown = self._ask("GET", path, _Deadline(0)).body
            for recording in shown.get("recordings", [shown]):
                if recording.get("state") == "erased":
                    self.forget(recording["recording_sid"])

    def _audio(self, link: Mapping[str, Any], via_service: bool) -> Any:
        """The bytes as they come; only callvault itself is sent the key."""
        request = urllib.request.Request(link["url"])
        if via_service:
            request = self._request(
                "GET", f"/v1/recordings/{link['recording_sid']}/content"
            )
        for _ in range(_REDIRECTS_MAX):
            answer = _open(request, _STALL_SECONDS)
            if answer.status == 200:
                return answer
            answer.close()
            target = urllib.parse.urljoin(
                request.full_url, answer.headers.get("Location") or ""
            )
            if answer.status not in (301, 302, 303, 307, 308) or not target.startswith(
                ("http://", "https://")
            ):
                raise _Interrupted(
                    f"{'callvault' if via_service else 'the bucket'} answers {answer.status}"
                )
            request = urllib.request.Request(target)
        raise _Interrupted("too many redirects")

    def _request(
        self, method: str, path: str, body: object = None
    ) -> urllib.request.Request:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data=data, method=method)
        request.add_unredirected_header("Authorization", f"Bearer {self._api_key}")
        request.add_header("User-Agent", "callvault-client")
        if data is not None:
            request.add_header("Content-Type", "application/json")
        return request

    def _ask(
        self, method: str, path: str, deadline: _Deadline, body: object = None
    ) -> _Answer:
        """An answer of the API; while it has none to give, it is asked again until the deadline.

        Every call of the API may be repeated: what was done already changes nothing.
        """
        for attempt in itertools.count():
            pause: float = _backoff(attempt)
            try:
                request = self._request(method, path, body)
                answer = self._ask_once(request, deadline.answer())
                if answer.status != 429 and answer.status < 500:
                    return answer
                problem = f"{answer.status} {answer.code}"
                pause = max(
                    pause, answer.retry_after if "Retry-After" in answer.headers else 0
                )
            except _TRANSIENT as error:
                problem = _reason(error)
            if deadline.left() < pause:
                raise ServiceUnavailable(
                    f"callvault cannot be asked: {problem}", max(5, round(pause))
                ) from None
            _log.debug(
                "callvault cannot be asked (%s), once more in %.1f s", problem, pause
            )
            deadline.sleep(pause)

    @staticmethod
    def _ask_once(request: urllib.request.Request, timeout: float) -> _Answer:
        with _open(request, timeout) as answer:
            text = answer.read(_ANSWER_MAX_BYTES)
            if 300 <= answer.status < 400:
                raise CallvaultError(
                    "CALLVAULT_URL is answered by a redirect; set it to where that leads"
                )
            try:
                body = json.loads(text or b"{}")
            except ValueError:
                body = {}
            if not isinstance(body, dict) or (answer.status < 300 and not body):
                raise CallvaultError("what answers at CALLVAULT_URL is not callvault")
            return _Answer(answer.status, answer.headers, body)


class Follower:
    """Events of callvault as an iterator that never ends and misses nothing.

    It begins behind the cursor `after` (None: with the oldest event there is;
    ``"latest"``: from now on), waits for what is not there yet, and goes on by itself
    when the service restarts or is away. `cursor` says how far it has come: everything
    up to and including the event that was given last. Save it when that event is done
    with, and give it as `after` when you start again:

        events = follow(after=load(), types="recording.stored")
        for event in events:
            work(event["recording"])
            save(events.cursor)

    Whoever dies between the work and the save gets that event again: make work that
    may be repeated. A key without the scope raises `AccessDenied`, a cursor that is
    none `CallvaultError`.
    """

    def __init__(
        self, client: Client, after: str | None, fixed: list[tuple[str, str]], wait: int
    ) -> None:
        self.cursor = after
        self._client = client
        self._fixed = fixed
        self._wait = wait
        self._events: Iterator[dict[str, Any]] = iter(())
        self._next = after

    def __iter__(self) -> Follower:
        return self

    def __next__(self) -> dict[str, Any]:
        while True:
            event = next(self._events, None)
            if event is not None:
                self.cursor = event["id"]
                return event
            self.cursor = self._next
            page = self._read()
            self._events, self._next = iter(page["events"]), page["next"]

    def _read(self) -> dict[str, Any]:
        query = [*self._fixed, ("wait", str(self._wait)), ("limit", "100")]
        if self.cursor is not None:
            query.append(("after", self.cursor))
        answer = self._client._ask(
            "GET", f"/v1/events?{urllib.parse.urlencode(query)}", _Deadline(None)
        )
        if answer.status != 200:
            raise answer.refused("no events")
        return answer.body


class _Interrupted(Exception):
    """The bytes did not come."""


class _Damaged(Exception):
    """The bytes came, and are wrong."""


class _Cache:
    """A folder of whole files, `<RecordingSid>.<sha256>.<mp3|wav>`, shared by processes.

    A file gets its name when it is complete, checked and on disk. A lock on a file
    means that it is in use (shared), or being written or removed (exclusive); locks end
    with their process. A file's mtime is when it was last given to someone. Over the
    bound, the oldest go first, but none that is in use or newer than the one just given.
    """

    def __init__(self, folder: str | None, max_bytes: int | None) -> None:
        self._folder = folder
        self._max_bytes = max_bytes

    def obtain(self, link: Mapping[str, Any], audio: Callable[[], Any]) -> BinaryIO:
        """The file of a link, open, locked and checked; `audio()` gives the bytes if it is not here."""
        extension = "wav" if "wav" in link["content_type"] else "mp3"
        path = os.path.join(
            self._ready(), f"{link['recording_sid']}.{link['sha256']}.{extension}"
        )
        held = self._lookup(path, link["sha256"])
        if held is None:
            self._fill(path, link, audio)
            held = self._lookup(path, link["sha256"])
            if held is None:
                raise _Interrupted("it was removed from the cache folder at once")
            self._trim(newest=path)
        return held

    def forget(self, recording_sid: str) -> None:
        for entry in self._entries():
            if not entry.name.startswith(f"{recording_sid}."):
                continue
            # What is being written has a writer that will be told "erased" next.
            remove = _remove_unused if entry.name.endswith(".part") else _remove
            remove(entry.path)

    def _ready(self) -> str:
        if self._folder:
            os.makedirs(self._folder, exist_ok=True)
            return self._folder
        folder = os.path.join(tempfile.gettempdir(), f"callvault-{os.getuid()}")
        os.makedirs(folder, mode=0o700, exist_ok=True)
        # Anyone can make a folder of that name in /tmp before we do.
        found = os.lstat(folder)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise CallvaultError(
                f"{folder} belongs to somebody else; set CALLVAULT_CACHE_DIR"
            )
        return folder

    @staticmethod
    def _lookup(path: str, sha256: str) -> BinaryIO | None:
        held = _existing(path)
        if held is None:
            return None
        # Whoever has just written it or removes it holds it alone for a moment; what
        # was removed is not at its path any more.
        if _lock(held, fcntl.LOCK_SH, patience=1) and _is_at(held, path):
            if _sha256(held) == sha256:
                # Not ours to touch where another user wrote it.
                with contextlib.suppress(OSError):
                    os.utime(path)
                return held
            _remove(path)
        held.close()
        return None

    def _fill(
        self, path: str, link: Mapping[str, Any], audio: Callable[[], Any]
    ) -> None:
        """Downloads the file, or waits while another process does."""
        part = self._part(path)
        if part is None:
            return
        with part:
            try:
                _download(part, audio, link)
                part.flush()
                os.fsync(part.fileno())
                os.replace(part.name, path)
            except BaseException:
                _remove(part.name)
                raise
        _log.info("downloaded %s, %d bytes", link["recording_sid"], link["size_bytes"])

    @staticmethod
    def _part(path: str) -> BinaryIO | None:
        """A file that nobody else writes to; None if another has written it all meanwhile."""
        shared, size, seen_at = f"{path}.part", -1, time.monotonic()
        # As long as another one gets on, it is waited for.
        while time.monotonic() - seen_at < _STALL_SECONDS:
            try:
                part = _create(shared)
            except PermissionError:  # Another user's.
                break
            if _lock(part, fcntl.LOCK_EX) and _is_at(part, shared):
                if not os.path.exists(path):
                    part.truncate(0)
                    return part
                _remove(shared)
                part.close()
                return None
            now = os.fstat(part.fileno()).st_size
            part.close()
            if now != size:
                size, seen_at = now, time.monotonic()
            time.sleep(0.05)
        part = _create(f"{path}.{uuid.uuid4().hex}.part")
        _lock(part, fcntl.LOCK_EX)
        return part

    def _entries(self) -> list[os.DirEntry[str]]:
        """What is ours in the folder; other files there are left alone."""
        ours = re.compile(
            r"RE[0-9a-fA-F]{32}\.[0-9a-f]{64}\.(mp3|wav)(\.[0-9a-f]{32})?(\.part)?"
        )
        with os.scandir(self._ready()) as entries:
            return [entry for entry in entries if ours.fullmatch(entry.name)]

    def _trim(self, newest: str) -> None:
        found = []
        for entry in self._entries():
            with contextlib.suppress(OSError):
                found.append((entry.path, entry.stat()))
        limit = CACHE_MAX_BYTES if self._max_bytes is None else self._max_bytes
        total = sum(status.st_size for _, status in found)
        newest_at = max(
            (status.st_mtime for path, status in found if path == newest), default=0.0
        )
        for path, status in sorted(found, key=lambda pair: pair[1].st_mtime):
            if path.endswith(".part"):
                removable = time.time() - status.st_mtime > _PART_IS_STALE_SECONDS
            else:
                removable = (
                    total > limit and path != newest and status.st_mtime <= newest_at
                )
            if removable and _remove_unused(path):
                total -= status.st_size


def _create(path: str) -> BinaryIO:
    # Readable as the umask has it: processes of other users may share the folder.
    return open(
        path, "r+b", opener=lambda name, flags: os.open(name, flags | os.O_CREAT, 0o666)
    )


def _existing(path: str) -> BinaryIO | None:
    try:
        return open(path, "rb")
    except FileNotFoundError:
        return None


def _lock(file: BinaryIO, how: int, patience: float = 0) -> bool:
    """Locks it until it is closed, if that is possible within so many seconds."""
    until = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(file, how | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        else:
            return True


def _is_at(file: BinaryIO, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _remove(path: str) -> bool:
    try:
        os.remove(path)
    except OSError:
        return False
    return True


def _remove_unused(path: str) -> bool:
    # Files that other users wrote to a shared folder are theirs to remove. Some network
    # file systems lock exclusively what is open for writing only.
    with contextlib.suppress(OSError), open(path, "r+b") as file:
        return _lock(file, fcntl.LOCK_EX) and _is_at(file, path) and _remove(path)
    return False


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    for chunk in iter(lambda: file.read(_CHUNK_BYTES), b""):
        digest.update(chunk)
    file.seek(0)
    return digest.hexdigest()


def _download(
    part: BinaryIO, audio: Callable[[], Any], link: Mapping[str, Any]
) -> None:
    """Writes the bytes, which must be as many and the ones that the link promises."""
    digest, size = hashlib.sha256(), 0
    for chunk in _chunks(audio):
        digest.update(chunk)
        size += len(chunk)
        if size > link["size_bytes"]:
            raise _Damaged(f"more than {link['size_bytes']} bytes came")
        part.write(chunk)
    if size < link["size_bytes"]:
        raise _Interrupted(f"{size} of {link['size_bytes']} bytes came")
    if digest.hexdigest() != link["sha256"]:
        raise _Damaged("the SHA-256 is not the one that was stored")


def _chunks(audio: Callable[[], Any]) -> Iterator[bytes]:
    """What comes over the network; its trouble is told apart from the disk's."""
    try:
        answer = audio()
    except _TRANSIENT as error:
        raise _Interrupted(_reason(error)) from None
    with answer:
        while True:
            try:
                chunk = answer.read(_CHUNK_BYTES)
            except _TRANSIENT as error:
                raise _Interrupted(_reason(error)) from None
            if not chunk:
                return
            yield chunk


def _reason(error: BaseException) -> str:
    return str(getattr(error, "reason", error)) or type(error).__name__


class _InUse:
    """An open file that is closed with its owner: a thread that ends lets go of it."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def __del__(self) -> None:
        self.file.close()


_of_thread = threading.local()


def _keep(file: BinaryIO | None) -> str | None:
    """The file's path; it is in use until this thread lets go of it, or ends."""
    _of_thread.held = None if file is None else _InUse(file)
    return None if file is None else file.name


def _let_go() -> None:
    held = getattr(_of_thread, "held", None)
    _of_thread.held = None
    if held is not None:
        held.file.close()


def verify_webhook(
    headers: Mapping[str, str], body: bytes | str, secret: str
) -> dict[str, Any]:
    """The event in a webhook of callvault, if callvault signed it; else `InvalidWebhook`.

    `body` is the raw body, as it came. `secret` is what callvault has as
    CALLVAULT_EVENTS_SECRET, with `whsec_` or without. Webhooks come at least once:
    `webhook-id`, which is the event's id, tells repeats. (Standard Webhooks, v1.)
    """
    given = {name.lower(): value for name, value in headers.items()}
    try:
        event_id, sent_at = given["webhook-id"], given["webhook-timestamp"]
        signatures = given["webhook-signature"].split()
        age = abs(time.time() - int(sent_at))
    except (KeyError, ValueError):
        raise InvalidWebhook(
            "the headers webhook-id, -timestamp and -signature are not there"
        ) from None
    raw = body.encode() if isinstance(body, str) else body
    expected = hmac.new(
        _webhook_key(secret), f"{event_id}.{sent_at}.".encode() + raw, hashlib.sha256
    ).digest()
    known = base64.b64encode(expected)
    # All are compared, so that the time tells nothing.
    matches = [
        hmac.compare_digest(known, text[3:].encode())
        for text in signatures
        if text.startswith("v1,")
    ]
    if not any(matches):
        raise InvalidWebhook("it was not signed with this secret")
    if age > _WEBHOOK_TOLERANCE_SECONDS:
        raise InvalidWebhook(
            "it was sent more than five minutes ago, or a clock is wrong"
        )
    try:
        return json.loads(raw)
    except ValueError:
        raise InvalidWebhook("its body is not JSON") from None


def _webhook_key(secret: str) -> bytes:
    text = secret.removeprefix("whsec_")
    try:
        key = base64.b64decode(text, validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ValueError("the secret is not base64, with or without whsec_ before it")
    return key


@functools.lru_cache(maxsize=8)
def _client_of(url: str, api_key: str, cache_dir: str | None) -> Client:
    return Client(url, api_key, cache_dir)


def _default() -> Client:
    """The client of the environment, as it is now."""
    read = os.environ.get
    return _client_of(
        read("CALLVAULT_URL", ""),
        read("CALLVAULT_API_KEY", ""),
        read("CALLVAULT_CACHE_DIR") or None,
    )


def get_recording_file_for_call(call_log: object, timeout: float = 60) -> str | None:
    """See `Client.get_recording_file_for_call`."""
    return _default().get_recording_file_for_call(call_log, timeout)


def get_recording_file(recording_sid: str, timeout: float = 60) -> str | None:
    """See `Client.get_recording_file`."""
    return _default().get_recording_file(recording_sid, timeout)


def recording_file(
    call_log: object, timeout: float = 60
) -> contextlib.AbstractContextManager[str | None]:
    """See `Client.recording_file`."""
    return _default().recording_file(call_log, timeout)


def put_recording(call_log: object, timeout: float = 10) -> dict[str, Any] | None:
    """See `Client.put_recording`."""
    return _default().put_recording(call_log, timeout)


def play_url(
    call_log: object, expires_in: int | str | None = None, timeout: float = 10
) -> str | None:
    """See `Client.play_url`."""
    return _default().play_url(call_log, expires_in, timeout)


def follow(
    after: str | None = None,
    types: str | Iterable[str] = (),
    wait: int = _WAIT_MAX_SECONDS,
    **filters: str | None,
) -> Follower:
    """See `Client.follow` and `Follower`."""
    return _default().follow(after, types, wait, **filters)


def forget(recording_sid: str) -> None:
    """See `Client.forget`."""
    _default().forget(recording_sid)


def main(arguments: list[str]) -> int:
    """`python callvault_client.py CA… [recording URL]`: prints the path; 1 is never, 75 not yet."""
    if not 1 <= len(arguments) <= 2:
        print("usage: callvault_client.py CA… [RECORDING_URL]", file=sys.stderr)
        return 2
    try:
        call_log = dict(zip(("call_sid", "recording_url"), arguments))
        path = get_recording_file_for_call(call_log)
    except RecordingPending as error:
        print(f"{error}; ask again in {error.retry_after} s", file=sys.stderr)
        return 75
    except (CallvaultError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print("there is no recording, and will be none" if path is None else path)
    return 1 if path is None else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
