"""An index or a model that a stranger made: nothing outside of it is written, read out, run or contacted."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
from colours import colour_model, export_colours, save_photo

import vsrn
from vsrn.cli import run_command
from vsrn.encoders.export import export_onnx
from vsrn.errors import SearchError, VsrnError
from vsrn.search.build import update_index
from vsrn.search.faiss import Base, build_graph

SECRET = b"root:x:0:0:root:/root:/bin/bash\n" * 40


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_colours(tmp_path_factory.mktemp("model") / "exported")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(4):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    return tmp_path / "photos"


@pytest.fixture
def idx(photos: Path, model: Path, tmp_path: Path) -> Path:
    update_index(photos, tmp_path / "idx", model)
    return tmp_path / "idx"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside of the index that must stay as it is, and stay unread."""
    path = tmp_path / "victim.db"
    path.write_bytes(SECRET)
    return path


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A server that nobody may contact; `accept` tells whether somebody did."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        yield server


def run_sql(idx: Path, script: str) -> None:
    with contextlib.closing(sqlite3.connect(idx / "records.sqlite")) as records:
        records.executescript(script)
        records.commit()


def everything(idx: Path, photos: Path) -> list[Callable[[], object]]:
    """Each thing that one may do with an index."""
    return [
        lambda: vsrn.open_index(idx).search("red", 9),
        lambda: vsrn.open_index(idx).search_image(photos / "0.png", 9),
        lambda: vsrn.open_index(idx).latest(9),
        lambda: vsrn.open_index(idx).explain("0.png", "red"),
        lambda: vsrn.open_index(idx).thumbnail("0.png"),
        lambda: update_index(photos, idx),
    ]


def outcomes(idx: Path, photos: Path) -> list[object]:
    """What each of these gives, or the error for the user that it ends in; another error fails the test."""
    found: list[object] = []
    for act in everything(idx, photos):
        try:
            found.append(act())
        except VsrnError as error:
            found.append(error)
    return found


LINKED = ["vectors-1.f16", "regions-1.bin", "thumbnails-1.bin", "lock", "index.json", "records.sqlite"]


@pytest.mark.parametrize("name", [*LINKED, "records.sqlite-wal", "records.sqlite-shm", "model/config.toml"])
def test_a_link_in_an_index_is_neither_followed_nor_written_through(
    name: str, photos: Path, idx: Path, victim: Path
) -> None:
    save_photo(photos / "9.png", 9)
    (idx / name).unlink(missing_ok=True)
    (idx / name).symlink_to(victim)
    found = outcomes(idx, photos)
    assert any(isinstance(one, VsrnError) for one in found)
    assert victim.read_bytes() == SECRET
    assert not any(isinstance(one, bytes) and SECRET[:20] in one for one in found)


@pytest.mark.parametrize("name", ["vectors-1.f16", "index.json", "model/caption_encoder.onnx", "lock"])
def test_a_pipe_in_an_index_is_not_waited_for(name: str, photos: Path, idx: Path) -> None:
    (idx / name).unlink()
    os.mkfifo(idx / name)
    assert any(isinstance(one, VsrnError) for one in outcomes(idx, photos))


def test_a_model_that_is_a_link_is_refused(model: Path, idx: Path) -> None:
    shutil.rmtree(idx / "model")
    (idx / "model").symlink_to(model)
    with pytest.raises(SearchError, match="is a link"):
        vsrn.open_index(idx)


@pytest.mark.parametrize("link", [True, False])
def test_bytes_that_are_no_picture_are_no_thumbnail(link: bool, idx: Path, victim: Path) -> None:
    """Even where the stranger's own checksum says that they are what was written."""
    thumbnails = idx / "thumbnails-1.bin"
    thumbnails.unlink()
    if link:
        thumbnails.symlink_to(victim)
    else:
        thumbnails.write_bytes(SECRET)
    crc = zlib.crc32(SECRET[:200])
    run_sql(idx, f"UPDATE photos SET thumbnail_at = 0, thumbnail_size = 200, thumbnail_crc = {crc}")
    with vsrn.open_index(idx) as index, pytest.raises(SearchError, match="no JPEG|cannot be used"):
        index.thumbnail("0.png")


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT"
SCHEMAS = {
    "an endless view": f"""
        DROP TABLE state;
        CREATE VIEW state AS {ENDLESS} count(*) AS version, 1 AS generation, 4 AS num_rows, 0 AS regions_end,
        0 AS thumbnails_end, x'2f' AS root FROM n;""",
    "a trigger": "CREATE TRIGGER t AFTER INSERT ON dead BEGIN DELETE FROM photos; END;",
    "a virtual table": "ALTER TABLE skipped RENAME TO s; CREATE VIRTUAL TABLE skipped USING fts5(id, reason);",
    "one more table": "CREATE TABLE more (a);",
    "an index of expressions": "CREATE INDEX e ON photos (hex(path));",
    "a computed column": "ALTER TABLE photos ADD COLUMN c AS (hex(path)) VIRTUAL;",
}


@pytest.mark.parametrize("script", SCHEMAS.values(), ids=SCHEMAS)
def test_records_with_other_tables_are_refused(script: str, photos: Path, idx: Path) -> None:
    run_sql(idx, script)
    found = outcomes(idx, photos)
    assert all(isinstance(one, SearchError) and "its tables are others" in str(one) for one in found)


def test_a_journal_that_names_a_file_to_delete_is_refused(photos: Path, idx: Path) -> None:
    """SQLite deletes the file that the end of a rollback journal names; an index never has such a journal."""
    (idx / "records.sqlite-journal").write_bytes(b"\xd9\xd5\x05\xf9\x20\xa1\x63\xd7" + bytes(504))
    found = outcomes(idx, photos)
    assert all(isinstance(one, SearchError) and "-journal is not what" in str(one) for one in found)


@pytest.mark.parametrize("path", ["../../victim.db", "/etc/passwd", "a/../../b"])
def test_a_record_of_a_file_outside_is_refused(path: str, idx: Path) -> None:
    run_sql(idx, f"UPDATE photos SET path = CAST('{path}' AS BLOB)")
    with vsrn.open_index(idx) as index, pytest.raises(SearchError, match="names a file outside"):
        index.path("0.png")


def test_no_server_is_contacted_because_an_index_names_it(
    photos: Path, idx: Path, listener: socket.socket, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
    info = json.loads((idx / "index.json").read_text()) | {"engine": "milvus", "uri": uri}
    (idx / "index.json").write_text(json.dumps(info))
    found = outcomes(idx, photos)
    assert isinstance(found[0], SearchError)
    assert f"add --uri {uri}" in str(found[0])
    assert run_command("search", [str(idx), "red"]) == 2
    assert "nothing is contacted because a folder says so" in capsys.readouterr().err
    with pytest.raises(BlockingIOError):
        listener.accept()


def test_only_the_files_of_a_model_are_copied(photos: Path, tmp_path: Path, victim: Path) -> None:
    model = export_colours(tmp_path / "theirs")
    (model / "notes.txt").symlink_to(victim)
    (model / "LICENSE").symlink_to(victim)
    (model / "captioner.safetensors").symlink_to(victim)
    (model / "evil.py").write_text("raise SystemExit")
    update_index(photos, tmp_path / "new", model)
    copied = sorted(path.name for path in (tmp_path / "new" / "model").iterdir())
    assert copied == ["caption_encoder.onnx", "config.toml", "export.json", "image_encoder.onnx", "vocabulary.json"]
    assert not any(SECRET[:20] in path.read_bytes() for path in (tmp_path / "new" / "model").iterdir())


def test_an_encoder_that_is_no_encoder_is_not_copied(photos: Path, tmp_path: Path, victim: Path) -> None:
    model = export_colours(tmp_path / "theirs")
    (model / "image_encoder.onnx").unlink()
    (model / "image_encoder.onnx").symlink_to(victim)
    with pytest.raises(VsrnError, match="image_encoder.onnx cannot be read by onnxruntime"):
        update_index(photos, tmp_path / "new", model)
    assert not list(tmp_path.glob("new/model/*"))


def test_a_graph_whose_links_lead_outside_is_refused(tmp_path: Path) -> None:
    """Older faiss followed the links of a graph without looking: a wrong one read memory that was not its own."""
    vectors = np.random.default_rng(0).normal(size=(300, 8)).astype(np.float16)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    path = tmp_path / "graph-1-300.faiss"
    build_graph(vectors, path)
    assert Base(1, vectors, path).graph is not None
    graph = faiss.read_index(str(path), faiss.IO_FLAG_SKIP_STORAGE)
    links = faiss.vector_to_array(graph.hnsw.neighbors)
    links[5] = 2**31 - 1
    faiss.copy_array_to_vector(links, graph.hnsw.neighbors)
    faiss.write_index(graph, str(path), faiss.IO_FLAG_SKIP_STORAGE)
    with pytest.raises(SearchError, match="cannot be read; delete it"):
        Base(1, vectors, path)


def test_a_large_extractor_is_copied_into_an_index_not_linked(photos: Path, tmp_path: Path) -> None:
    """A link in an index would not be followed, and would be lost where the index is taken elsewhere."""
    weights = tmp_path / "weights.bin"
    weights.write_bytes(bytes(17_000_000))
    model = tmp_path / "exported"
    export_onnx(colour_model(), model)
    (model / "extractor.bin").symlink_to(weights)
    update_index(photos, tmp_path / "new", model)
    kept = tmp_path / "new" / "model" / "extractor.bin"
    assert not kept.is_symlink()
    assert kept.stat().st_size == 17_000_000
    with vsrn.open_index(tmp_path / "new") as index:
        assert index.search_image(photos / "0.png", 1)[0].id == "0.png"
    kept.write_bytes(b"\x01" + bytes(16_999_999))
    with (
        vsrn.open_index(tmp_path / "new") as index,
        pytest.raises(VsrnError, match="extractor.bin is not the file"),
    ):
        index.search_image(photos / "0.png", 1)
