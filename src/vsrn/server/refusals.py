"""Every refusal is a status and one sentence; what went wrong inside stays in the log of the server."""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException as StarletteHTTPException

from vsrn.errors import PhotoError, SearchError, UnknownPhotoError, VsrnError
from vsrn.server.schemas import Problem

REASONS = {
    400: "The body is no photo that can be read.",
    401: "The token is missing or wrong.",
    404: "The index holds no such photo.",
    408: "The body took too long to arrive.",
    409: "The index was made without what this needs; `/api/about` says what it can do.",
    410: "The photo's file is gone, or another since it was indexed.",
    413: "The body is larger than allowed.",
    422: "A parameter is missing, or outside of what is allowed.",
    429: "Too many requests at once.",
    503: "The index is damaged, or cannot be read at the moment.",
}

log = logging.getLogger("vsrn.server")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may refuse with, for OpenAPI."""
    return {status: {"model": Problem, "description": REASONS[status]} for status in statuses}


def add_refusals(app: FastAPI) -> None:
    """Answer errors in our way."""
    app.add_exception_handler(StarletteHTTPException, _http)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(VsrnError, _ours)
    app.add_exception_handler(Exception, _unexpected)


def refuse(status: int, sentence: str) -> HTTPException:
    """An error to raise in a route."""
    return HTTPException(status, sentence)


async def _http(_request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    sentence = str(error.detail)
    if sentence == HTTPStatus(error.status_code).phrase:
        sentence = f"{sentence.lower()}; /docs lists what there is."
    return _problem(error.status_code, sentence, error.headers)


async def _invalid(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _problem(422, f"{first['loc'][-1]}: {first['msg']}.")


async def _ours(_request: Request, error: Exception) -> Response:
    """Our own sentences name files of the server, so none but those of a photo without a name goes out."""
    if isinstance(error, UnknownPhotoError):
        return _problem(404, "the index holds no photo of that id.")
    if isinstance(error, PhotoError) and str(error).startswith("this photo "):
        return _problem(410 if "since it was indexed" in str(error) else 400, str(error))
    log.error("%s", _for_the_log(error))
    return _problem(503, "the index cannot answer this; the log of the service says why.")


async def _unexpected(_request: Request, _error: Exception) -> Response:
    # Starlette raises it again behind this, so it reaches the log.
    return _problem(500, "this went wrong in the service; its log says how.")


def _for_the_log(error: Exception) -> str:
    """What an error says. Of the index only the fact: it serves others, so that nothing is to be deleted for it."""
    if not isinstance(error, SearchError):
        return str(error)
    fact = str(error).partition("; ")[0].rstrip(".")
    return f"{fact}; `vsrn index --check` says what is damaged."


def _problem(status: int, sentence: str, headers: Any = None) -> JSONResponse:
    return JSONResponse({"detail": sentence}, status, headers)
