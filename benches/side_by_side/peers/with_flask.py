"""One worker of gunicorn with threads: `gunicorn with_flask:app`."""

from flask import Flask, abort, redirect, request

import redirects

app = Flask(__name__)


@app.get("/healthz")
def healthz():
    return {}


@app.get("/v1/calls/<call>/audio")
def audio(call):
    if not redirects.is_known(request.headers.get("Authorization")):
        abort(401)
    return redirect(redirects.link(call), code=307)
