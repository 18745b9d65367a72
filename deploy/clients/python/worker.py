"""A worker that is told of each stored recording and reads it from the bucket itself.

    CALLVAULT_URL=… CALLVAULT_API_KEY=… python worker.py --cursor-file worker.cursor

It follows callvault's events, pulls each object with boto3 and your own credentials
(AWS_ACCESS_KEY_ID and the rest of boto3's chain; for MinIO and the like also
AWS_ENDPOINT_URL_S3), checks its SHA-256, and hands the samples to
`transcribe` (transcription.py). It prints one line of JSON for each recording.

The cursor is saved when a recording is done with, so a worker that is killed and
started again goes on where it was, and does the last one twice at most. Run one; for
many at once take celery_app.py, where each recording is a task.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Mapping
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from callvault_client import (
    DamagedRecording,
    RecordingPending,
    follow,
    forget,
    get_recording_file,
)
from transcription import Undecodable, decoded, transcribe

log = logging.getLogger("worker")


def pulled(s3: Any, recording: Mapping[str, Any], folder: str) -> str | None:
    """The recording as a file: from the bucket, else by way of callvault."""
    path = os.path.join(folder, f"recording.{recording['format']}")
    sid = recording["recording_sid"]
    try:
        if recording["state"] == "stored":
            if download(s3, recording, path) == recording["sha256"]:
                return path
            log.warning("what the bucket has of %s is not what was stored", sid)
    except (BotoCoreError, ClientError) as error:
        log.warning("the bucket does not give %s: %s", sid, type(error).__name__)
    # Evicted or fetched anew since the event, perhaps: callvault knows, and gives it.
    return get_recording_file(sid)


def download(s3: Any, recording: Mapping[str, Any], path: str) -> str:
    """Writes the object to that path, and gives the SHA-256 of what was written."""
    digest = hashlib.sha256()
    got = s3.get_object(Bucket=recording["bucket"], Key=recording["key"])
    with got["Body"] as body, open(path, "wb") as file:
        for chunk in iter(lambda: body.read(1 << 20), b""):
            digest.update(chunk)
            file.write(chunk)
    return digest.hexdigest()


def work(s3: Any, recording: Mapping[str, Any]) -> dict[str, Any] | None:
    """What came of a recording; None if it is gone since it was told."""
    with tempfile.TemporaryDirectory(prefix="callvault-worker-") as folder:
        path = pulled(s3, recording, folder)
        if path is None:
            return None
        with decoded(path, folder) as audio:
            return transcribe(audio)


def handle(s3: Any, event: Mapping[str, Any]) -> None:
    """Does what an event asks for; only what no repeating helps is passed over."""
    recording = event["recording"]
    if event["type"] == "recording.erased":
        forget(recording["recording_sid"])
        return
    # The event shows the recording as it is now, which may be erased.
    if recording["state"] not in ("stored", "evicted"):
        return
    names = {name: recording[name] for name in ("call_sid", "recording_sid", "sha256")}
    while True:
        try:
            result = work(s3, recording)
        except RecordingPending as pending:
            log.warning("%s; again in %d s", pending, pending.retry_after)
            time.sleep(pending.retry_after)
            continue
        except (Undecodable, DamagedRecording) as error:
            log.error("%s is passed over: %s", recording["recording_sid"], error)
            result = {"error": str(error)}
        if result is not None:
            print(json.dumps({**names, **result}), flush=True)
        return


def load(cursor_file: str) -> str | None:
    """The cursor that was saved last."""
    try:
        with open(cursor_file, encoding="utf-8") as file:
            return file.read().strip() or None
    except FileNotFoundError:
        return None


def save(cursor_file: str, cursor: str) -> None:
    """Saves it so that a power cut leaves the old cursor or the new one."""
    folder = os.path.dirname(os.path.abspath(cursor_file))
    with tempfile.NamedTemporaryFile(
        "w", dir=folder, prefix=".cursor-", delete=False, encoding="utf-8"
    ) as file:
        file.write(cursor)
        file.flush()
        os.fsync(file.fileno())
    os.replace(file.name, cursor_file)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def main() -> None:
    """Works until it is ended by SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description="Transcribes what callvault stores.")
    parser.add_argument(
        "--cursor-file",
        default="worker.cursor",
        help="where to keep how far it has come",
    )
    parser.add_argument(
        "--from-now",
        action="store_true",
        help="without a cursor yet: leave out what was stored before",
    )
    options = parser.parse_args()
    logging.basicConfig(
        level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
    )
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    s3 = boto3.client("s3")
    after = load(options.cursor_file) or ("latest" if options.from_now else None)
    events = follow(after=after, types=("recording.stored", "recording.erased"))
    for event in events:
        handle(s3, event)
        save(options.cursor_file, events.cursor)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main()
