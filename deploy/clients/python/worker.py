"""A worker that is told of each stored recording and reads it from the bucket itself.

    CALLVAULT_URL=… CALLVAULT_API_KEY=… python worker.py --cursor-file worker.cursor

It follows callvault's events, pulls each object with boto3 and your own credentials
(AWS_ACCESS_KEY_ID and the rest of boto3's chain; for MinIO and the like also
AWS_ENDPOINT_URL_S3), checks its SHA-256, decodes it, and hands the samples to
`transcribe`: put your model there. It prints one line of JSON for each recording.

WAV is decoded by the standard library, MP3 by ffmpeg. Without ffmpeg, let callvault
fetch WAV first: CALLVAULT_FORMATS=wav,mp3,base.

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
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import wave
from array import array
from collections.abc import Mapping
from typing import Any

import boto3
import botocore.exceptions

from callvault_client import CallvaultError, RecordingPending, follow, forget, get_recording_file

BLOCK_SECONDS = 30

log = logging.getLogger("worker")


class Undecodable(Exception):
    """The audio is not what this worker can decode."""


def transcribe(audio: wave.Wave_read) -> dict[str, Any]:
    """Here your transcription begins: 16-bit samples, block by block, however long the call was.

    Twilio's two-channel recordings have one party on each channel: `samples[0::2]` is
    the first, `samples[1::2]` the second. What stands here only measures.
    """
    frames, peak = 0, 0
    while block := audio.readframes(BLOCK_SECONDS * audio.getframerate()):
        samples = array("h", block)
        if sys.byteorder == "big":
            samples.byteswap()
        frames += len(samples) // audio.getnchannels()
        peak = max(peak, max(samples), -min(samples))
    return {"seconds": round(frames / audio.getframerate(), 2), "channels": audio.getnchannels(), "peak": peak}


def decoded(path: str, folder: str) -> wave.Wave_read:
    """The audio as 16-bit samples; what is no plain WAV goes through ffmpeg."""
    with contextlib.suppress(wave.Error, EOFError):
        audio = wave.open(path, "rb")
        if audio.getsampwidth() == 2:
            return audio
        audio.close()
    if shutil.which("ffmpeg") is None:
        raise Undecodable("this is no plain WAV, and ffmpeg is not installed (see the top of worker.py)")
    plain = os.path.join(folder, "decoded.wav")
    command = ["ffmpeg", "-nostdin", "-v", "error", "-y", "-i", path, "-c:a", "pcm_s16le", plain]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise Undecodable(ended.stderr.strip())
    return wave.open(plain, "rb")


def pulled(s3: Any, recording: Mapping[str, Any], folder: str) -> str | None:
    """The recording as a file: from the bucket, else by way of callvault."""
    path = os.path.join(folder, f"recording.{recording['format']}")
    try:
        if recording["state"] == "stored" and download(s3, recording, path) == recording["sha256"]:
            return path
        log.warning("%s is not in the bucket as the event says", recording["recording_sid"])
    except (botocore.exceptions.BotoCoreError, botocore.exceptions.ClientError) as error:
        log.warning("%s is not to be had from the bucket: %s", recording["recording_sid"], type(error).__name__)
    # Evicted or fetched anew since the event, perhaps: callvault knows, and gives it.
    return get_recording_file(recording["recording_sid"])


def download(s3: Any, recording: Mapping[str, Any], path: str) -> str:
    """Writes the object to that path, and gives the SHA-256 of what was written."""
    digest = hashlib.sha256()
    with s3.get_object(Bucket=recording["bucket"], Key=recording["key"])["Body"] as body, open(path, "wb") as file:
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
    """Does what an event asks for. Only a recording that cannot be decoded is passed over."""
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
        except (Undecodable, CallvaultError) as error:
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
    with tempfile.NamedTemporaryFile("w", dir=folder, prefix=".cursor-", delete=False, encoding="utf-8") as file:
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
    parser.add_argument("--cursor-file", default="worker.cursor", help="where to keep how far it has come")
    parser.add_argument("--from-now", action="store_true", help="without a cursor yet: leave out what was stored before")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
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
