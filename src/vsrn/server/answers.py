"""What goes over the wire, typed: answers, the source of the OpenAPI page, and refusals, a status and one sentence."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from vsrn.errors import PhotoError, SearchError, UnknownFolderError, UnknownPhotoError, VsrnError
from vsrn.search.index import Hit as FoundPhoto
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
    photo: str = Field(description="Where to get a JPEG of at most 1,600 pixels a side, below this service.")
    original: str = Field(description="Where to get its file.")
    thumbnail: str = Field(description="Where to get a small JPEG; a very long photo is cropped to its middle.")


class Folded(Photo):
    """A photo, and those that look like it."""

    alike: list[Photo] = Field(description="With `fold`: others of the answer that are copies or look the same.")


class Hit(Folded):
    """A photo that was found."""

    score: float = Field(description="Inner product of its embedding with the query's; a cosine.")
    fit: float | None = Field(
        description="How likely it is, from 0 to 1, that it fits the sentence; null where nobody measured it."
    )


class SearchResult(BaseModel):
    """Photos that fit a query, best first."""

    hits: list[Hit]
    unknown_words: list[str] = Field(
        description="Words of the sentence that tell the model nothing: it never read them."
    )
    stand_ins: dict[str, list[str]] = Field(
        description="Word that the model never read: the known words that stand in for it."
    )
    spellings: dict[str, str] = Field(description="Unknown word: the word that it may be a misspelling of.")
    said: list[str] = Field(description="The same for people, a sentence each.")


class Photos(BaseModel):
    """Photos of the index."""

    num_photos: int = Field(description="In the whole index.")
    num_passing: int = Field(description="Of them, those that pass the filters.")
    photos: list[Folded]
    next: str | None = Field(description="Where the next piece begins, for `after`; null at the end.")


class Folder(BaseModel):
    """A folder of photos."""

    folder: str = Field(description="Its path below the folder that was indexed.")
    num_photos: int = Field(description="In it and in its folders.")


class Folders(BaseModel):
    """The folders of the index."""

    folders: list[Folder]


class ExplainedRegion(BaseModel):
    """What one region does for a match."""

    box: list[float] = Field(description="Left, top, right, bottom, as fractions of the photo's width and height.")
    weight: float = Field(description="How much it fits the sentence, or as `view` says.")
    share: float = Field(description="Its part of all that speaks for the match, from 0 to 1.")
    label: str | None = Field(None, description="What a detector calls it, where there was one.")


class ExplainedWord(BaseModel):
    """Where one word of the sentence is."""

    word: str
    stands_out: bool = Field(description="Whether a region fits the word clearly.")
    weights: list[float] = Field(description="How much each region fits the word, in the order of `regions`.")
    shares: list[float] = Field(description="The same as parts of all that speaks for the word; they sum to 1, or 0.")


class Explanation(BaseModel):
    """Why a photo fits a sentence."""

    view: str = Field(
        description="What a weight is: how much a region fits the sentence more than an average word (`relevance`),"
        " its largest share in a word (`words`), or the similarity minus that without the region (`sentence`)."
    )
    score: float = Field(description="The similarity of the photo and the sentence.")
    stands_out: bool = Field(description="Whether a region fits the sentence clearly.")
    regions: list[ExplainedRegion]
    words: list[ExplainedWord] = Field(description="Words that name something and that the model knows.")


class Location(BaseModel):
    """Where a photo lies on the machine of the service."""

    path: str


class Caption(BaseModel):
    """What a photo shows, in the words of the model."""

    caption: str


class About(BaseModel):
    """What the service serves."""

    version: str
    num_photos: int
    explains: bool = Field(description="Whether the index keeps what explanations need.")
    captions: bool = Field(description="Whether the model of the index can caption.")
    paths: bool = Field(description="Whether `/api/path` answers.")
    examples: list[str] = Field(description="Sentences in words that the model knows.")
    most_hits: int = Field(description="The largest k.")
    sentence_letters: int = Field(description="The longest sentence.")
    upload_bytes: int = Field(description="The largest photo to search by.")


class State(BaseModel):
    """That the service runs, or can answer."""

    status: str


def photo_of(record: PhotoRecord) -> Photo:
    """What is known of a photo."""
    # A photo that changes gets another address, so that browsers may keep what they have.
    query = f"?id={quote(record.id, safe='')}&v={version_of(record)}"
    addresses = {name: f"api/{name}{query}" for name in ("photo", "original", "thumbnail")}
    return Photo(id=record.id, width=record.width, height=record.height, taken=record.taken, **addresses)


def folded_of(group: Sequence[PhotoRecord]) -> Folded:
    """What is known of a photo, and of those that look like it."""
    first, *rest = map(photo_of, group)
    return Folded(**vars(first), alike=rest)


def hit_of(found: FoundPhoto) -> Hit:
    """What is known of a photo that was found, its score, and those that look like it."""
    folded = folded_of([found.photo, *(one.photo for one in found.alike)])
    fit = None if found.fit is None else round(found.fit, 4)
    return Hit(**vars(folded), score=round(found.score, 6), fit=fit)


def version_of(record: PhotoRecord) -> str:
    """What changes whenever the photo's file does."""
    return record.sha256[:16]


REASONS = {
    400: "The body is no photo that can be read.",
    401: "The token is missing or wrong.",
    403: "A page of another site asks, or this may not be done here; `refusal` of `/api/indexing` says why.",
    404: "The index holds no such photo.",
    408: "The body took too long to arrive.",
    409: "The index was made without what this needs; `/api/about` says what it can do.",
    410: "The photo's file is gone, or another since it was indexed.",
    413: "The body is larger than allowed.",
    422: "A parameter is missing, or outside of what is allowed.",
    429: "Too many requests at once.",
    503: "There is no index yet, or it is damaged, or cannot be read at the moment.",
}

log = logging.getLogger("vsrn.server")


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What a route may refuse with, for OpenAPI."""
    return {status: {"model": Problem, "description": REASONS[status]} for status in statuses}


def problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """A refusal as it goes out."""
    return JSONResponse({"detail": sentence}, status, headers)


def add_refusals(app: FastAPI) -> None:
    """Answer errors in our way."""
    for kind in (StarletteHTTPException, RequestValidationError, VsrnError, Exception):
        app.add_exception_handler(kind, _refusal_of)


async def _refusal_of(_request: Request, error: Exception) -> Response:
    """Our own sentences name files of the server, so none but those of a photo without a name goes out."""
    if isinstance(error, StarletteHTTPException):
        sentence = str(error.detail)
        if sentence == HTTPStatus(error.status_code).phrase:
            sentence = f"{sentence.lower()}; /docs lists what there is."
        return problem(error.status_code, sentence, error.headers)
    if isinstance(error, RequestValidationError):
        first = error.errors()[0]
        return problem(422, f"{first['loc'][-1]}: {first['msg']}.")
    if isinstance(error, UnknownPhotoError | UnknownFolderError):
        # That of a folder names folders below the index's own alone.
        is_photo = isinstance(error, UnknownPhotoError)
        return problem(404, "the index holds no photo of that id.") if is_photo else problem(422, str(error))
    if isinstance(error, PhotoError) and str(error).startswith("this photo "):
        return problem(410 if "since it was indexed" in str(error) else 400, str(error))
    if isinstance(error, VsrnError):
        said = str(error)
        if isinstance(error, SearchError):
            # Only the fact: the index serves others, so that nothing is to be deleted for it.
            said = f"{said.partition('; ')[0].rstrip('.')}; `vsrn index --check` says what is damaged."
        log.error("%s", said)
        return problem(503, "the index cannot answer this; the log of the service says why.")
    # Starlette raises it again behind this, so it reaches the log.
    return problem(500, "this went wrong in the service; its log says how.")
