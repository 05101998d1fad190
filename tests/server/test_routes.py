"""What the routes answer, against the library that they stand on, and what they refuse."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from colours import save_photo
from fastapi.testclient import TestClient
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families
from serving import HOME, ODD_ID, SMALL, Place, client_of, copy_place, make_place
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

import vsrn
from vsrn.encoders.explain import ExplainView
from vsrn.errors import PhotoError
from vsrn.search.build import update_index
from vsrn.search.index import Index
from vsrn.search.records import PhotoRecord
from vsrn.server.app import create_app
from vsrn.server.indexing import Indexer
from vsrn.server.photos import FileAnswer, open_unchanged
from vsrn.server.security import Access, Limits
from vsrn.server.traffic import Metrics, Traffic


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return make_place(tmp_path_factory.mktemp("place"))


@pytest.fixture
def own_place(place: Place, tmp_path: Path) -> Place:
    """A copy that a test may spoil."""
    return copy_place(place, tmp_path)


@pytest.fixture
def client(place: Place) -> Iterator[TestClient]:
    yield from client_of(place)


@pytest.fixture
def index(place: Place) -> Iterator[Index]:
    with place.open() as index:
        yield index


def found(answer: Any) -> list[tuple[str, Any]]:
    assert answer.status_code == 200, answer.text
    return [(hit["id"], hit["score"]) for hit in answer.json()["hits"]]


def expected(hits: list[vsrn.Hit]) -> list[tuple[str, Any]]:
    return [(hit.id, pytest.approx(hit.score, abs=2e-6)) for hit in hits]


def test_a_search_finds_what_the_library_finds(client: TestClient, index: Index) -> None:
    for sentence in ("red", "a green blue", "dark red light", "nothing known"):
        answer = client.get("/api/search", params={"sentence": sentence, "k": 5})
        assert found(answer) == expected(index.search(sentence, 5))
        for hit in answer.json()["hits"]:
            record = index.photo(hit["id"])
            assert (hit["width"], hit["height"], hit["taken"]) == (record.width, record.height, record.taken)
    assert len(found(client.get("/api/search", params={"sentence": "red", "k": 200}))) == 12
    assert client.get("/api/search?sentence=Red zorp, green ZORP").json()["unknown_words"] == ["zorp", ","]
    assert "never read 'zorp'" in client.get("/api/search?sentence=red zorp").json()["said"][0]
    nothing = client.get("/api/search?sentence=zorp").json()
    assert nothing["hits"] == []
    assert nothing["said"][-1].startswith("No word of the sentence names anything")
    scores = [score for _, score in found(client.get("/api/search?sentence=red&k=5"))]
    assert len(found(client.get(f"/api/search?sentence=red&min_score={scores[2] - 1e-5}"))) == 3
    assert client.get("/api/search?sentence=red&min_score=nan").status_code == 422


def test_filters_reach_the_library(client: TestClient, index: Index) -> None:
    where = vsrn.Where("holiday", date(2020, 1, 1), date(2090, 1, 1))
    query = {"sentence": "red", "folder": "holiday", "since": "2020-01-01", "until": "2090-01-01"}
    hits = found(client.get("/api/search", params=query))
    assert hits == expected(index.search("red", 24, where))
    assert len(hits) == 8
    assert found(client.get("/api/search", params=query | {"until": "2020-01-01"})) == []


def test_a_folder_that_the_index_does_not_have_is_refused(client: TestClient, place: Place) -> None:
    for spelled in ("holiday/", "./holiday", "/holiday"):
        assert len(found(client.get("/api/search", params={"sentence": "red", "folder": spelled}))) == 8
    for folder, hint in (("holidy", " Did you mean 'holiday'?"), (str(place.photos / "holiday"), "")):
        answer = client.get("/api/search", params={"sentence": "red", "folder": folder})
        assert answer.status_code == 422
        assert answer.json() == {"detail": f"the index has no folder '{folder}'.{hint}"}


def test_photos_find_what_the_library_finds(client: TestClient, place: Place, index: Index) -> None:
    for name in ("03.png", "holiday/07.png"):
        content = (place.photos / name).read_bytes()
        answer = client.post("/api/search/photo?k=4", content=content, headers={"Content-Type": "image/png"})
        assert found(answer) == expected(index.search_image(place.photos / name, 4))
        assert found(answer)[0] == (name, pytest.approx(1, abs=2e-3))
        like = client.get("/api/search/like", params={"id": name, "k": 4})
        assert found(like) == expected(index.search_like(name, 4))
    narrowed = client.post("/api/search/photo?k=4&folder=holiday/beach", content=content)
    assert all(name.startswith("holiday/beach/") for name, _ in found(narrowed))


def index_ids(index: Index) -> list[str]:
    return [record.id for record in index.latest(99)]


def test_links_lead_to_the_photos_whatever_their_names(client: TestClient, place: Place, index: Index) -> None:
    answer = client.get("/api/photos?k=99").json()
    assert answer["num_photos"] == 12
    assert [photo["id"] for photo in answer["photos"]] == index_ids(index)
    assert ODD_ID in index_ids(index)
    for photo in answer["photos"]:
        small, large = (client.get(f"/{photo[kind]}") for kind in ("thumbnail", "photo"))
        assert small.content == index.thumbnail(photo["id"])
        with Image.open(io.BytesIO(large.content)) as picture, Image.open(place.photos / photo["id"]) as original:
            assert picture.format == "JPEG"
            assert picture.size == original.size == (photo["width"], photo["height"])
            # JPEG halves the colours of so small a picture, but not its light.
            light = [np.asarray(image.convert("RGB").convert("L"), float) for image in (picture, original)]
            assert np.abs(light[0] - light[1]).mean() < 12
        for kept in (small, large):
            assert kept.headers["cache-control"] == "private, max-age=31536000, immutable"
            assert kept.headers["content-type"] == "image/jpeg"
    old = client.get("/api/thumbnail", params={"id": "00.png", "v": "0123456789abcdef"})
    assert old.headers["cache-control"] == "no-cache"


def test_the_latest_photos_come_first(client: TestClient) -> None:
    taken = [photo["taken"] for photo in client.get("/api/photos?k=99").json()["photos"]]
    assert taken == sorted(taken, reverse=True)
    assert len(client.get("/api/photos?k=3").json()["photos"]) == 3


def test_an_explanation_is_the_library_s(client: TestClient, index: Index) -> None:
    answer = client.get("/api/explain", params={"id": ODD_ID, "sentence": "a red light"}).json()
    explained = index.explain(ODD_ID, "a red light")
    assert answer["score"] == pytest.approx(explained.score, abs=2e-6)
    assert explained.boxes is not None
    np.testing.assert_allclose([region["box"] for region in answer["regions"]], explained.boxes)
    np.testing.assert_allclose([region["weight"] for region in answer["regions"]], explained.weights, atol=1e-6)
    assert sum(region["share"] for region in answer["regions"]) == pytest.approx(1, abs=1e-5)
    assert [place["word"] for place in answer["words"]] == list(explained.words) == ["red", "light"]
    np.testing.assert_allclose(answer["words"][0]["weights"], explained.words["red"], atol=1e-6)
    np.testing.assert_allclose(answer["words"][0]["shares"], explained.of_word("red").shares, atol=1e-6)
    assert answer["stands_out"] is answer["words"][0]["stands_out"] is True


@pytest.mark.parametrize("view", ["relevance", "words", "sentence"])
def test_an_explanation_has_the_view_that_is_asked_for(view: ExplainView, client: TestClient, index: Index) -> None:
    answer = client.get("/api/explain", params={"id": ODD_ID, "sentence": "a red light", "view": view}).json()
    expected = index.explain(ODD_ID, "a red light", view)
    assert answer["view"] == view
    np.testing.assert_allclose([region["weight"] for region in answer["regions"]], expected.weights, atol=1e-6)
    refused = client.get("/api/explain", params={"id": ODD_ID, "sentence": "a red light", "view": "other"})
    assert refused.status_code == 422


def test_what_a_camera_wrote_stays_here(own_place: Place) -> None:
    """A photo on its side with a place and a date in its EXIF comes upright and without them."""
    exif = Image.Exif()
    exif[0x0112], exif.get_ifd(0x8825)[1] = 6, "N"
    Image.new("RGB", (40, 20), "red").save(own_place.photos / "gps.jpg", exif=exif)
    update_index(own_place.photos, own_place.idx)
    for client in client_of(own_place):
        content = client.get("/api/photo?id=gps.jpg").content
        with Image.open(io.BytesIO(content)) as picture:
            assert picture.size == (20, 40)
            assert not picture.getexif()


def test_the_original_is_sent_byte_for_byte_to_be_kept(client: TestClient, place: Place, index: Index) -> None:
    for photo in client.get("/api/photos?k=99").json()["photos"]:
        answer = client.get(f"/{photo['original']}")
        assert answer.content == (place.photos / photo["id"]).read_bytes()
        assert answer.headers["content-type"] == "application/octet-stream"
        assert answer.headers["x-content-type-options"] == "nosniff"
        name = answer.headers["content-disposition"]
        assert name.startswith("attachment; filename*=UTF-8''")
        assert name.endswith(".png")
        assert not set(name) & set('<>"/&?')
        assert answer.headers["cache-control"] == "private, max-age=31536000, immutable"
        assert client.get("/api/path", params={"id": photo["id"]}).json() == {"path": str(index.path(photo["id"]))}


def test_the_original_of_a_long_video_is_sent_though_its_middle_was_never_read(tmp_path: Path) -> None:
    video = tmp_path / "long.mp4"
    part, middle = 32_000_000, 1_000
    video.write_bytes(b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom")
    with video.open("rb+") as file:
        file.truncate(2 * part + middle)
    content = video.read_bytes()
    known = hashlib.sha256(content[:part] + content[-part:]).hexdigest()
    record = PhotoRecord(video.name, os.fsencode(video.name), len(content), 0, known, 9, 9, "")
    with open_unchanged(video, record) as file:
        assert file.read(12) == content[:12]
    with video.open("rb+") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"x")
    with pytest.raises(PhotoError, match="has changed since it was indexed"):
        open_unchanged(video, record)


def test_the_original_s_file_is_closed_when_its_client_goes(tmp_path: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(bytes(1_000_000))
    file = (tmp_path / "large.jpg").open("rb")
    sent: list[int] = []

    async def send(message: Message) -> None:
        sent.append(len(message.get("body", b"")))
        if len(sent) == 3:
            raise OSError("the client has gone")

    async def wait() -> Message:
        await asyncio.sleep(60)
        return {"type": "http.disconnect"}

    scope: Scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "asgi": {"spec_version": "2.4"}}
    with pytest.raises(ClientDisconnect):
        asyncio.run(FileAnswer(file, 900_000, {})(scope, wait, send))
    assert file.closed
    assert 0 < sum(sent) < 900_000


def test_paths_are_told_at_the_machine_of_the_service_alone(place: Place) -> None:
    bearer = {"Authorization": "Bearer 0123456789abcdef"}
    indexer = Indexer(place.idx, Access("0123456789abcdef"))
    with TestClient(create_app(indexer, place.open()), HOME, headers=bearer) as client:
        assert client.get("/api/about").json()["paths"] is False
        answer = client.get("/api/path?id=00.png")
        assert answer.status_code == 403
        assert str(place.photos) not in answer.text


def test_a_photo_to_look_at_closely_is_larger_and_bounded(own_place: Place) -> None:
    for name, size in (("pano.jpg", (9000, 1500)), ("wide.jpg", (2400, 1000))):
        Image.new("RGB", size, "red").save(own_place.photos / name)
    update_index(own_place.photos, own_place.idx)
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for client in client_of(own_place, Limits()):
        for name in ("pano.jpg", "wide.jpg"):
            for large in ("false", "true"):
                content = client.get(f"/api/photo?id={name}&large={large}").content
                with Image.open(io.BytesIO(content)) as picture:
                    found[name, large] = picture.size
    assert found["pano.jpg", "false"] == (1600, 267)
    assert found["wide.jpg", "false"] == (1600, 667)
    assert found["wide.jpg", "true"] == (2400, 1000)
    width, height = found["pano.jpg", "true"]
    assert width / height == pytest.approx(6, rel=0.01)
    assert width * height == pytest.approx(12_000_000, rel=0.01)


def changed(path: Path) -> None:
    save_photo(path, 1234)


def same_size(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)


def linked_elsewhere(path: Path) -> None:
    elsewhere = path.parent.parent / "secret.png"
    save_photo(elsewhere, 77)
    path.unlink()
    path.symlink_to(elsewhere)


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [changed, same_size, linked_elsewhere, pipe, folder, Path.unlink])
def test_only_what_was_indexed_is_sent(own_place: Place, change: Any) -> None:
    for client in client_of(own_place):
        assert client.get("/api/photo?id=00.png").status_code == 200
        change(own_place.photos / "00.png")
        for route in ("photo", "original"):
            answer = client.get(f"/api/{route}?id=00.png")
            assert answer.status_code == 410
            assert "since it was indexed" in answer.json()["detail"]
        assert client.get("/api/thumbnail?id=00.png").status_code == 200


PHOTO_ROUTES = ["/api/photo", "/api/original", "/api/path", "/api/thumbnail", "/api/search/like", "/api/explain"]
OUTSIDE = [
    "../idx/index.json",
    "/etc/passwd",
    "holiday/../00.png",
    "./00.png",
    "00.png\0",
    "holiday",
    "%2e%2e/idx",
    "🦜",
]


@pytest.mark.parametrize("photo_id", OUTSIDE)
def test_what_is_not_in_the_index_is_not_there(client: TestClient, photo_id: str) -> None:
    for route in PHOTO_ROUTES:
        answer = client.get(route, params={"id": photo_id} | ({"sentence": "red"} if route == "/api/explain" else {}))
        assert (answer.status_code, answer.json()) == (404, {"detail": "the index holds no photo of that id."})


def png(width: int, height: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (width, height)).save(content, "PNG")
    return content.getvalue()


@pytest.mark.parametrize(
    ("method", "url", "content", "status", "sentence"),
    [
        ("GET", "/api/search", None, 422, "sentence: Field required."),
        ("GET", "/api/search?sentence=", None, 422, "sentence: String should have at least 1"),
        ("GET", "/api/search?sentence=%20%20", None, 422, "sentence: String should match"),
        ("GET", "/api/search?sentence=" + "a" * 501, None, 422, "sentence: String should have at most 500"),
        ("GET", "/api/search?sentence=red&k=0", None, 422, "k: Input should be greater"),
        ("GET", "/api/search?sentence=red&k=201", None, 422, "k: Input should be less"),
        ("GET", "/api/search?sentence=red&k=ten", None, 422, "k: Input should be a valid integer"),
        ("GET", "/api/search?sentence=red&since=May", None, 422, "since: Input should be a valid date"),
        ("GET", "/api/search?sentence=red&folder=" + "a" * 5000, None, 422, "folder: String should have at most"),
        ("GET", "/api/search/like?id=" + "a" * 5000, None, 422, "id: String should have at most"),
        ("GET", "/api/photo", None, 422, "id: Field required"),
        ("GET", "/api/search?sentence=red&foldr=x", None, 422, "/api/search has no parameter 'foldr'. Did you mean 'f"),
        ("GET", "/api/search?foldr=x", None, 422, "/api/search has no parameter 'foldr'."),
        ("GET", "/api/search?sentence=red&=x", None, 422, "/api/search has no parameter ''. It has sentence, k,"),
        ("GET", "/api/about?zzz=1", None, 422, "/api/about has no parameter 'zzz'."),
        ("GET", "/api/photo?id=00.png&" + "z" * 9_000, None, 422, "/api/photo has no parameter '" + "z" * 40 + "'"),
        (
            "POST",
            "/api/search/photo?K=3",
            png(9, 9),
            422,
            "/api/search/photo has no parameter 'K'. It has sentence, k, ",
        ),
        ("GET", "/api/nowhere", None, 404, "not found; /docs lists what there is."),
        ("GET", "/static/../app.py", None, 404, "not found"),
        ("GET", "/static/%2e%2e/app.py", None, 404, "not found"),
        ("DELETE", "/api/photo?id=00.png", None, 405, "method not allowed"),
        ("POST", "/api/search/photo", b"", 400, "the body is empty"),
        ("POST", "/api/search/photo", b"no photo", 400, "this photo is not an image in a format"),
        ("POST", "/api/search/photo", png(60, 60)[:60], 400, "this photo is damaged"),
        ("POST", "/api/search/photo", png(101, 100), 400, "this photo claims 101 x 100 pixels"),
        ("POST", "/api/search/photo", b"x" * 5_001, 413, "the photo is larger than 5,000 bytes"),
        ("POST", "/api/search/photo", iter([b"x" * 4_000, b"x" * 4_000]), 413, "the photo is larger than 5,000 bytes"),
        ("POST", "/api/search/photo?k=0", png(9, 9), 422, "k: Input should be greater"),
    ],
)
def test_what_is_too_much_or_nothing_is_refused_in_one_sentence(
    client: TestClient, place: Place, method: str, url: str, content: Any, status: int, sentence: str
) -> None:
    answer = client.request(method, url, content=content)
    assert answer.status_code == status
    assert answer.json().keys() == {"detail"}
    assert answer.json()["detail"].startswith(sentence)
    assert str(place.photos.parent) not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(
    ("module", "content", "sentence"),
    [
        ("pillow_heif", b"\0\0\0\x14ftypheic\0\0\0\0mif1", "this photo is HEIC, which needs the package pillow-heif"),
        ("rawpy", b"FUJIFILMCCD-RAW", "this photo is a camera's raw file, which needs the package rawpy"),
        ("av", b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "this photo is a video, which needs the package av"),
    ],
)
def test_a_photo_that_needs_an_extra_is_refused_by_its_name(
    client: TestClient, module: str, content: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    answer = client.post("/api/search/photo", content=content)
    extra = {"pillow_heif": "heif", "rawpy": "raw", "av": "video"}[module]
    said = f"{sentence}; run `pip install '.[{extra}]'` in the checkout."
    assert (answer.status_code, answer.json()) == (400, {"detail": said})


def test_uploads_touch_no_disk(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment: a folder for temporary files that nobody can write to is no obstacle."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "nowhere"))
    for client in client_of(place, Limits()):
        noise = np.random.default_rng(0).integers(0, 256, size=(900, 900, 3), dtype=np.uint8)
        content = io.BytesIO()
        Image.fromarray(noise).save(content, "PNG")
        assert content.tell() > 2_000_000
        assert len(found(client.post("/api/search/photo", content=content.getvalue()))) == 12


def test_a_photo_that_never_arrives_is_not_waited_for(place: Place) -> None:
    index = place.open()
    app = create_app(Indexer(place.idx, Access()), index, Limits(upload_seconds=0.05))
    scope: dict[str, Any] = {
        "type": "http",
        "method": "POST",
        "path": "/api/search/photo",
        "raw_path": b"/api/search/photo",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"content-length", b"100")],
        "scheme": "http",
        "http_version": "1.1",
        "root_path": "",
    }
    sent: list[Message] = []

    async def receive() -> Message:
        return await asyncio.get_running_loop().create_future()

    async def send(message: Message) -> None:
        sent.append(message)

    async def run() -> None:
        async with app.router.lifespan_context(app):
            await asyncio.wait_for(app(scope, receive, send), 10)

    asyncio.run(run())
    assert sent[0]["status"] == 408


def test_photos_of_more_than_25_megapixels_are_refused(place: Place) -> None:
    for client in client_of(place, Limits()):
        for side, status in [(5_000, 200), (5_001, 400)]:
            content = io.BytesIO()
            Image.new("1", (side, 5_000)).save(content, "PNG")
            answer = client.post("/api/search/photo", content=content.getvalue())
            assert answer.status_code == status
        assert "5001 x 5000 pixels" in answer.json()["detail"]


def test_no_more_requests_are_taken_than_may_be_in_work() -> None:
    held: list[asyncio.Event] = []

    async def app(_scope: Scope, _receive: Receive, send: Send) -> None:
        held.append(asyncio.Event())
        await held[-1].wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def ask(traffic: Traffic, path: str = "/api/search") -> int:
        statuses: list[int] = []

        async def send(message: Message) -> None:
            statuses.append(message.get("status", 0))

        await traffic({"type": "http", "path": path, "method": "GET"}, no_body, send)
        return statuses[0]

    async def run() -> None:
        metrics = Metrics(lambda: 0)
        traffic = Traffic(app, metrics, most=3)
        waiting = [asyncio.create_task(ask(traffic)) for _ in range(3)]
        await asyncio.sleep(0)
        assert await ask(traffic) == 429
        health = asyncio.create_task(ask(traffic, "/healthz"))
        await asyncio.sleep(0)
        assert len(held) == 4
        assert metrics.registry.get_sample_value("vsrn_http_requests_running") == 3
        for event in held:
            event.set()
        assert await asyncio.gather(*waiting, health) == [200] * 4
        again = asyncio.create_task(ask(traffic))
        await asyncio.sleep(0)
        held[-1].set()
        assert await again == 200
        assert metrics.registry.get_sample_value("vsrn_http_requests_running") == 0

    asyncio.run(run())


async def no_body() -> Message:
    return {"type": "http.request", "body": b""}


def test_too_many_photos_at_once_are_refused(place: Place) -> None:
    for client in client_of(place, Limits(uploads_at_once=0)):
        answer = client.post("/api/search/photo", content=png(9, 9))
        assert answer.status_code == 429
        assert answer.json()["detail"].startswith("too many photos")


def test_metrics_count_what_happened(client: TestClient) -> None:
    for _ in range(3):
        client.get("/api/search?sentence=red")
    client.get("/api/search")
    client.get("/api/thumbnail?id=nope")
    client.get("/api/no/such/route")
    client.post("/api/search/photo", content=png(9, 9))
    client.get("/healthz")
    families = text_string_to_metric_families(client.get("/metrics").text)
    samples = {(sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples}
    counted = {key[1:]: value for key, value in samples.items() if key[0] == "vsrn_http_requests_total"}
    assert counted == {
        ("GET", "/api/search", "200"): 3,
        ("GET", "/api/search", "422"): 1,
        ("GET", "/api/thumbnail", "404"): 1,
        ("GET", "other", "404"): 1,
        ("POST", "/api/search/photo", "200"): 1,
    }
    assert samples["vsrn_index_photos",] == 12
    assert samples["vsrn_encoder_batch_sum", "photo"] == 1
    # The first of these warmed the service up.
    assert samples["vsrn_encoder_batch_sum", "sentence"] == 4
    assert samples["vsrn_http_requests_running",] == 0
    assert samples["process_resident_memory_bytes",] > 1e7


def test_the_service_says_what_it_serves(client: TestClient) -> None:
    about = client.get("/api/about").json()
    assert about["num_photos"] == 12
    assert about["version"] == vsrn.__version__
    assert about["explains"] is True
    assert about["upload_bytes"] == SMALL.upload_bytes
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
