"""Transcription as Celery tasks: one for a call, one for a recording that was announced.

    CELERY_BROKER_URL=redis://… CALLVAULT_URL=… CALLVAULT_API_KEY=… celery -A celery_app worker

A task that comes too early goes back to the queue for as long as callvault says. Its
slot is taken for `timeout` seconds at most; a recording that callvault gives up on is
None in the end, so no task is repeated for ever.
"""

from __future__ import annotations

import os
import tempfile
from typing import Any

from callvault_client import (
    RecordingPending,
    get_recording_file,
    get_recording_file_for_call,
)
from celery import Celery, Task
from transcription import decoded, transcribe

app = Celery(
    "transcription", broker=os.environ.get("CELERY_BROKER_URL", "redis://localhost")
)
# A task whose worker dies is done by another one, and nobody hoards tasks.
app.conf.update(
    task_acks_late=True, task_reject_on_worker_lost=True, worker_prefetch_multiplier=1
)


@app.task(bind=True, max_retries=None)
def transcribe_call(
    self: Task, call_sid: str, recording_url: str | None = None
) -> dict[str, Any] | None:
    """For an application that knows its calls: ``transcribe_call.delay(call.call_sid, call.recording_url)``."""
    try:
        path = get_recording_file_for_call(
            {"call_sid": call_sid, "recording_url": recording_url}, timeout=10
        )
    except RecordingPending as pending:
        raise self.retry(countdown=pending.retry_after) from pending
    return transcript_of(path)


@app.task(bind=True, max_retries=None)
def transcribe_recording(self: Task, recording_sid: str) -> dict[str, Any] | None:
    """For a webhook, which names the recording. It may come twice: keep the result by recording."""
    try:
        path = get_recording_file(recording_sid, timeout=10)
    except RecordingPending as pending:
        raise self.retry(countdown=pending.retry_after) from pending
    return transcript_of(path)


def transcript_of(path: str | None) -> dict[str, Any] | None:
    """What is said in that file; None where there is no recording."""
    if path is None:
        return None
    with (
        tempfile.TemporaryDirectory(prefix="callvault-task-") as folder,
        decoded(path, folder) as audio,
    ):
        return transcribe(audio)
