"""What goes over the wire, typed: answers, the source of the OpenAPI page, and refusals, a status and one sentence.

What went wrong inside stays in the log of the server.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from vsrn.errors import PhotoError, SearchError, UnknownPhotoError, VsrnError
from vsrn.search.records import PhotoRecord


class Problem(BaseModel):
    """Why a request was refused."""

    detail: str = Field(description="One sentence for people.")


class Photo(BaseModel):
    """A photo of the index."""

    id: str = Field(description="Its path below the folder that was indexed.")
    width: int = Field(description="Pixels, upright.")
    height: int = Field(description="Pixels, upright.")
    taken: str = Field(description="When, by the clock of its camera or else of its file: `2024-05-17 14:03:00`.")
    photo: str = Field(description="Where to get it, below this service.")
    thumbnail: str = Field(description="Where to get a JPEG of at most 256 pixels a side.")


class Hit(Photo):
    """A photo that was found."""

    score: float = Field(description="Inner product of its embedding with the query's; a cosine.")


class SearchResult(BaseModel):
    """Photos that fit a query, best first."""

    hits: list[Hit]
    unknown_words: list[str] = Field(
        default_factory=list, description="Words of the sentence that the model has never read; they count for little."
    )


class Photos(BaseModel):
    """Photos of the index."""

    num_photos: int = Field(description="In the whole index.")
    photos: list[Photo]


class ExplainedRegion(BaseModel):
    """What one region does for a match."""

    box: list[float] = Field(description="Left, top, right, bottom, as fractions of the photo's width and height.")
    weight: float = Field(description="The similarity minus the similarity without this region.")
    share: float = Field(description="Its part of all that speaks for the match, from 0 to 1.")
    label: str | None = Field(default=None, description="What a detector calls it, where there was one.")


class Explanation(BaseModel):
    """Why a photo fits a sentence."""

    score: float = Field(description="The similarity of the photo and the sentence.")
    regions: list[ExplainedRegion]


class Caption(BaseModel):
    """What a photo shows, in the words of the model."""

    caption: str


class About(BaseModel):
    """What the service serves."""

    version: str
    num_photos: int
    explains: bool = Field(description="Whether the index keeps what explanations need.")
    captions: bool = Field(description="Whether the model of the index can caption.")
    examples: list[str] = Field(description="Sentences in words that the model knows.")
    most_hits: int = Field(description="The largest k.")
    sentence_letters: int = Field(description="The longest sentence.")
    upload_bytes: int = Field(description="The largest photo to search by.")


class State(BaseModel):
    """That the service runs, or can answer."""

    status: str


def photo_fields(record: PhotoRecord) -> dict[str, str | int]:
    """The fields of `Photo` for a record."""
    # A photo that changes gets another address, so that browsers may keep what they have.
    query = f"?id={quote(record.id, safe='')}&v={version_of(record)}"
    return {
        "id": record.id,
        "width": record.width,
        "height": record.height,
        "taken": record.taken,
        "photo": f"api/photo{query}",
        "thumbnail": f"api/thumbnail{query}",
    }


def version_of(record: PhotoRecord) -> str:
    """What changes whenever the photo's file does."""
    return record.sha256[:16]


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
