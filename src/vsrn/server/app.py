"""The routes. What they answer with is in `answers.py`, how in `service.py`, and to whom in `security.py`."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query, Request
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles
from prometheus_client import generate_latest

import vsrn
from vsrn.errors import did_you_mean
from vsrn.files import printable
from vsrn.search.index import Index
from vsrn.search.records import PhotoRecord
from vsrn.search.where import Where
from vsrn.server import answers
from vsrn.server.indexing import Indexer, ServedIndex
from vsrn.server.indexing import routes as indexing_routes
from vsrn.server.photos import FileAnswer, Uploads, attachment
from vsrn.server.security import Guard, Limits
from vsrn.server.service import Service
from vsrn.server.traffic import Metrics, Traffic

STATIC = Path(__file__).parent / "static"
LIMITS = Limits()
MOST_NAME_LETTERS = 40
BYTES = {"schema": {"type": "string", "format": "binary"}}
PHOTO_BODY = {"required": True, "content": {"image/*": BYTES}}
JPEG: dict[int | str, dict[str, Any]] = {200: {"content": {"image/jpeg": BYTES}}}
FILE: dict[int | str, dict[str, Any]] = {200: {"content": {"application/octet-stream": BYTES}}}

Id = Annotated[str, Query(min_length=1, max_length=LIMITS.id_letters, description="A photo's id.")]
Version = Annotated[str, Query(alias="v", max_length=64, description="Its version, so that browsers may keep it.")]
Large = Annotated[bool, Query(description="Of at most 12 megapixels in place of 1,600 pixels a side.")]
Count = Annotated[int, Query(ge=1, le=LIMITS.most_hits, description="How many photos.")]
Sentence = Annotated[
    str, Query(min_length=1, max_length=LIMITS.sentence_letters, pattern=r"\S", description="What photos should show.")
]
Words = Annotated[
    str, Query(max_length=LIMITS.sentence_letters, description="What they should show besides, such as `in snow`.")
]
# Between the time and the row of the last photo of a piece.
AFTER = "~"
After = Annotated[
    str | None, Query(pattern=rf"^[^{AFTER}]{{0,40}}{AFTER}[0-9]{{1,15}}$", description="`next` of the piece before.")
]
Fold = Annotated[bool, Query(description="Put photos that look the same behind the first of them, in its `alike`.")]
Least = Annotated[
    float | None, Query(allow_inf_nan=False, description="Only photos whose `fit`, or else `score`, is at least this.")
]
View = Annotated[
    Literal["relevance", "words", "sentence"] | None,
    Query(description="What a weight is; left out, the one that points best."),
]


def filters(
    folder: Annotated[str | None, Query(max_length=LIMITS.id_letters, description="Only photos in it.")] = None,
    since: Annotated[date | None, Query(description="Only photos taken on this day or later.")] = None,
    until: Annotated[date | None, Query(description="Only photos taken on this day or earlier.")] = None,
    name: Annotated[
        str | None, Query(max_length=LIMITS.name_letters, description="Only photos with this in their file names.")
    ] = None,
) -> Where:
    """Which photos a search looks at."""
    return Where(folder, since, until, paths=False, name=name or None)


Filters = Annotated[Where, Depends(filters)]


async def only_known_parameters(request: Request) -> None:
    """Answer 422 to a parameter that a route under /api does not have: a misspelt filter would search everywhere."""
    path = getattr(request.scope.get("route"), "path", "")
    if not path.startswith("/api/"):
        return
    described = request.app.openapi()["paths"][path][request.method.lower()]
    known = [parameter["name"] for parameter in described.get("parameters", []) if parameter["in"] == "query"]
    for name in request.query_params:
        if name not in known:
            hint = did_you_mean(name, known) or (f" It has {', '.join(known)}." if known else "")
            raise HTTPException(422, f"{path} has no parameter {name[:MOST_NAME_LETTERS]!r}.{hint}")


async def _service(request: Request) -> Service:
    """Raises `HTTPException` 503 where there is no index yet."""
    served: ServedIndex = request.app.state.served
    service = await served.service()
    if service is None:
        raise HTTPException(503, "there is no index yet; make one on the page, or with `vsrn index`.")
    return service


Served = Annotated[Service, Depends(_service)]
routes = APIRouter()


@routes.get("/api/search", tags=["search"])
async def search(
    service: Served, sentence: Sentence, where: Filters, k: Count = 24, min_score: Least = None, fold: Fold = False
) -> answers.SearchResult:
    """Photos that fit a sentence; none where no word of it names anything that the model knows."""
    return await service.result(await service.search(sentence, k, where, min_score), sentence, fold)


@routes.post(
    "/api/search/photo",
    tags=["search"],
    openapi_extra={"requestBody": PHOTO_BODY},
    responses=answers.problems(400, 408, 413),
)
async def search_photo(
    service: Served, request: Request, where: Filters, sentence: Words = "", k: Count = 24, fold: Fold = False
) -> answers.SearchResult:
    """Photos like the one in the body: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF; with extras HEIC, raw files, videos.

    It is not kept.
    """
    async with request.app.state.uploads.receive(request) as content:
        return await service.result(await service.search_photo(content, k, where, sentence), sentence, fold)


@routes.get("/api/search/like", tags=["search"], responses=answers.problems(404))
async def search_like(
    service: Served, id: Id, where: Filters, sentence: Words = "", k: Count = 24, fold: Fold = False
) -> answers.SearchResult:
    """Photos like one of the index."""
    return await service.result(await service.search_like(id, k, where, sentence), sentence, fold)


@routes.get("/api/photos", tags=["photos"])
async def photos(
    service: Served, where: Filters, after: After = None, k: Count = 24, fold: Fold = False
) -> answers.Photos:
    """The photos taken last, and with `after` those before them, to the end of the index."""
    taken, _, row = (after or "").rpartition(AFTER)
    records = await service.read(service.index.latest, k, where, (taken, int(row)) if after else None)
    groups = await service.read(service.index.alike, records) if fold else [[place] for place in range(len(records))]
    return answers.Photos(
        num_photos=await service.read(len, service.index),
        num_passing=await service.read(service.index.count, where),
        photos=[answers.folded_of([records[place] for place in group]) for group in groups],
        next=f"{records[-1].taken}{AFTER}{records[-1].row}" if len(records) == k else None,
    )


@routes.get("/api/folders", tags=["photos"])
async def folders(service: Served) -> answers.Folders:
    """The folders below the indexed one."""
    found = await service.read(service.index.folders)
    return answers.Folders(folders=[answers.Folder(folder=name, num_photos=count) for name, count in found.items()])


@routes.get("/api/thumbnail", tags=["photos"], response_class=Response, responses=JPEG | answers.problems(404))
async def thumbnail(service: Served, id: Id, v: Version = "") -> Response:
    """A small JPEG of a photo."""
    record = await service.read(service.index.photo, id)
    return Response(await service.read(service.index.thumbnail, id), media_type="image/jpeg", headers=_kept(record, v))


@routes.get("/api/photo", tags=["photos"], response_class=Response, responses=JPEG | answers.problems(404, 410))
async def photo(service: Served, id: Id, v: Version = "", large: Large = False) -> Response:
    """A JPEG of a photo, upright, as it was when it was indexed."""
    record = await service.read(service.index.photo, id)
    return Response(await service.photo(record, large), media_type="image/jpeg", headers=_kept(record, v))


@routes.get("/api/original", tags=["photos"], response_class=Response, responses=FILE | answers.problems(404, 410))
async def original(service: Served, id: Id, v: Version = "") -> Response:
    """A photo's file, byte for byte as it was indexed, with all that a camera wrote into it."""
    record = await service.read(service.index.photo, id)
    headers = {"Content-Disposition": attachment(record.id), "Content-Length": str(record.size)}
    return FileAnswer(await service.original(record), record.size, headers | _kept(record, v))


@routes.get("/api/path", tags=["photos"], responses=answers.problems(403, 404))
async def path(service: Served, request: Request, id: Id) -> answers.Location:
    """Where a photo lies on this machine; only where no token is asked, since then nobody else is answered."""
    if not request.app.state.paths:
        raise HTTPException(403, "this service answers other machines too, and tells no paths.")
    return answers.Location(path=printable(await service.read(service.index.path, id)))


@routes.get("/api/explain", tags=["photos"], responses=answers.problems(404, 409))
async def explain(service: Served, id: Id, sentence: Sentence, view: View = None) -> answers.Explanation:
    """Where in a photo its match with a sentence, and each word of it, lies."""
    if not service.index.info.explain:
        raise HTTPException(409, "this index was made with --no-explain and keeps no regions.")
    explained = await service.read(service.index.explain, id, sentence, view)
    return answers.Explanation.model_validate(explained.to_json())


@routes.get("/api/caption", tags=["photos"], responses=answers.problems(404, 409))
async def caption(service: Served, id: Id) -> answers.Caption:
    """A sentence for a photo, written by the model of the index."""
    if not service.captions:
        raise HTTPException(409, "this index cannot caption: its model has no captioner, or it keeps no regions.")
    return answers.Caption(caption=await service.caption(id))


@routes.get("/", include_in_schema=False)
@routes.get("/docs", include_in_schema=False)
async def page(request: Request) -> FileResponse:
    """The page, and that of the routes."""
    name = "docs.html" if request.url.path == "/docs" else "index.html"
    return FileResponse(STATIC / name, headers={"Cache-Control": "no-cache"})


@routes.get("/api/about", tags=["operation"])
async def about(service: Served, request: Request) -> answers.About:
    """What is served, and how much one may ask for."""
    return answers.About(
        version=vsrn.__version__,
        num_photos=await service.read(len, service.index),
        explains=service.index.info.explain,
        captions=service.captions,
        paths=request.app.state.paths,
        examples=service.examples(),
        most_hits=service.limits.most_hits,
        sentence_letters=service.limits.sentence_letters,
        upload_bytes=service.limits.upload_bytes,
    )


@routes.get("/healthz", tags=["operation"])
async def health() -> answers.State:
    """That the process answers at all."""
    return answers.State(status="alive")


@routes.get("/readyz", tags=["operation"], responses=answers.problems(503))
async def ready(service: Served) -> answers.State:
    """That the index and its encoder can be asked."""
    await service.check()
    return answers.State(status="ready")


@routes.get("/metrics", tags=["operation"], response_class=Response)
def read_metrics(request: Request) -> Response:
    """Counters for Prometheus."""
    content = generate_latest(request.app.state.metrics.registry)
    return Response(content, media_type="text/plain; version=0.0.4; charset=utf-8")


def _kept(record: PhotoRecord, version: str) -> dict[str, str]:
    """Browsers keep what is of the very version of a photo that they asked for."""
    is_this = version == answers.version_of(record)
    return {"Cache-Control": "private, max-age=31536000, immutable" if is_this else "no-cache"}


def create_app(indexer: Indexer, index: Index | None = None, limits: Limits = LIMITS) -> FastAPI:
    """The service over the index of an indexer.

    index  the same, where it is open already; else it is opened as soon as it is there. The service closes it
    """
    served = ServedIndex(indexer, lambda opened: Service(opened, metrics, limits))
    metrics = Metrics(served.num_photos)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        if index is not None:
            # Load what the first search needs.
            await served.begin(index).search("", 1, Where())
        yield
        served.close()

    app = FastAPI(
        title="vsrn",
        version=vsrn.__version__,
        description="Photos by a sentence, or by a photo, and why.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        dependencies=[Depends(only_known_parameters)],
        responses=answers.problems(422, 429, 503),
    )
    app.state.uploads, app.state.metrics, app.state.served = Uploads(limits), metrics, served
    # Without a token a service listens to its own machine alone.
    app.state.paths = indexer.access.token is None
    app.add_middleware(Traffic, metrics=metrics, most=limits.requests_at_once)
    app.add_middleware(Guard, access=indexer.access)
    answers.add_refusals(app)
    app.include_router(routes)
    app.include_router(indexing_routes)
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    return app
