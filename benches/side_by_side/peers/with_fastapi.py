"""One worker of uvicorn with uvloop and httptools: `uvicorn with_fastapi:app`."""

from typing import Annotated

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import RedirectResponse

import redirects

app = FastAPI()


@app.get("/healthz")
async def healthz():
    return {}


@app.get("/v1/calls/{call}/audio")
async def audio(call: str, authorization: Annotated[str | None, Header()] = None):
    if not redirects.is_known(authorization):
        raise HTTPException(401)
    return RedirectResponse(redirects.link(call), status_code=307)
