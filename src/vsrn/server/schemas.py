"""What goes over the wire, typed: the source of the OpenAPI page."""

from __future__ import annotations

from urllib.parse import quote

from pydantic import BaseModel, Field

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
