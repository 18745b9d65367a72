"""Receives callvault's webhooks and enqueues a task for each stored recording.

    EVENTS_SECRET=whsec_… CELERY_BROKER_URL=redis://… flask --app webhook_receiver run

Where callvault runs: CALLVAULT_EVENTS_URL=https://your.app/hooks/callvault and the
same secret as CALLVAULT_EVENTS_SECRET. What is not answered by 2xx is sent again, so
nothing is acknowledged before it is in the queue.
"""

from __future__ import annotations

import os

from callvault_client import InvalidWebhook, forget, verify_webhook
from celery_app import transcribe_recording
from flask import Flask, request

app = Flask(__name__)
# An event is some kilobytes.
app.config["MAX_CONTENT_LENGTH"] = 1 << 20


@app.post("/hooks/callvault")
def receive() -> tuple[str, int]:
    """204 once the task is enqueued, and for events that nobody here works on."""
    try:
        event = verify_webhook(
            request.headers, request.get_data(), os.environ["EVENTS_SECRET"]
        )
    except InvalidWebhook as refused:
        return str(refused), 403
    if event["type"] == "recording.stored":
        transcribe_recording.delay(event["recording"]["recording_sid"])
    elif event["type"] == "recording.erased":
        forget(event["recording"]["recording_sid"])
    return "", 204
