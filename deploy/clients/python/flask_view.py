"""The older application's path for playing a call, behind its own login.

The page keeps its `<audio src="/api/calls/CA…/download">`. The application says who may
listen, callvault gives the audio: the answer is a redirect to a URL that plays for an
hour, seeks, and needs no key. Put the view into your application; `login_required` and
`find_call_log` are the ones that you have.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from callvault_client import RecordingPending, ServiceUnavailable, play_url
from flask import Flask, Response, abort, redirect


def add_download(
    app: Flask,
    login_required: Callable[[Any], Any],
    find_call_log: Callable[[str], object],
) -> None:
    """The view, and what is said while Twilio has not answered yet."""

    @app.get("/api/calls/<sid>/download")
    @login_required
    def download(sid: str) -> Any:
        return redirect(play_url(find_call_log(sid), expires_in="1h") or abort(404))

    @app.errorhandler(RecordingPending)
    def not_ready(pending: RecordingPending) -> Response:
        headers = {"Retry-After": str(pending.retry_after), "Cache-Control": "no-store"}
        if isinstance(pending, ServiceUnavailable):
            return Response("Recordings cannot be had just now.", 503, headers)
        return Response("The recording is not here yet.", 404, headers)
