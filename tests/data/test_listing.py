"""Listing a folder: every file once, whatever links and names there are, and no folder that stops the rest."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import unicodedata
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from vsrn.data.listing import PhotoFile, PhotoNames, find_photos
from vsrn.errors import DataError, PhotoError


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())


def listed(found: list[PhotoFile]) -> dict[str, str]:
    """Id -> the kind of its refusal, or "" where it may be opened."""
    assert [photo.id for photo in found] == sorted({photo.id for photo in found}), "sorted, and no id twice"
    return {photo.id: photo.refusal.kind if photo.refusal else "" for photo in found}


def test_every_file_is_found_and_none_is_judged(tmp_path: Path) -> None:
    for name in ("b.jpg", "a/z.png", "a/b/c.txt", "a/A.jpg", ".hidden.jpg", ".git/x.jpg", "a-b.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "broken.jpg").symlink_to("nothing.jpg")
    photos = find_photos(tmp_path)
    assert [photo.id for photo in photos] == ["a-b.jpg", "a/A.jpg", "a/b/c.txt", "a/z.png", "b.jpg", "broken.jpg"]
    assert [photo.path for photo in photos] == [tmp_path / photo.id for photo in photos]


def test_the_store_among_the_photos_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "photos_ids.txt").write_bytes(b"x")
    (tmp_path / "a.jpg").write_bytes(b"x")
    assert [photo.id for photo in find_photos(tmp_path, leave_out=tmp_path / "store")] == ["a.jpg"]


def test_an_id_is_one_line_of_utf_8_whatever_the_file_is_called(tmp_path: Path) -> None:
    for name in (b"caf\xe9.jpg", "Straße 犬.jpg".encode(), b"two\nlines.jpg", b" edge.jpg"):
        (Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))).write_bytes(b"x")
    photos = find_photos(tmp_path)
    assert sorted(photo.id for photo in photos) == [
        "Straße 犬.jpg",
        "\\x20edge.jpg",
        "caf\\xe9.jpg",
        "two\\x0alines.jpg",
    ]
    assert all(photo.path.read_bytes() == b"x" for photo in photos)


def test_a_folder_that_is_missing_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*nowhere"):
        find_photos(tmp_path / "nowhere")
    with pytest.raises(DataError, match="holds no files"):
        find_photos(tmp_path)


def test_a_link_that_leads_out_is_refused_unless_it_may_be_followed(tmp_path: Path) -> None:
    photos, elsewhere = tmp_path / "photos", tmp_path / "elsewhere"
    write(photos, "deep/near.jpg")
    write(elsewhere, "far.jpg", "below/further.jpg", "one.jpg")
    (photos / "linked").symlink_to(elsewhere / "below")
    (photos / "one.jpg").symlink_to(Path("..") / "elsewhere" / "one.jpg")
    (photos / "parent").symlink_to("..")
    found = find_photos(photos)
    assert listed(found) == {"deep/near.jpg": "", "linked": "link", "one.jpg": "link", "parent": "link"}
    for photo in found[1:]:
        assert isinstance(photo.refusal, PhotoError)
        assert str(photo.path) in str(photo.refusal)
        assert "--follow-links" in str(photo.refusal)
    # Each folder and each file once: "parent" leads to all of them, "one.jpg" to a file below it.
    followed = find_photos(photos, follow_links=True)
    assert set(listed(followed).values()) == {""}
    assert {photo.path.resolve() for photo in followed} == {
        *(elsewhere / name for name in ("far.jpg", "below/further.jpg", "one.jpg")),
        photos / "deep" / "near.jpg",
    }
    assert len(followed) == 4


def test_links_within_the_folder_add_only_what_is_not_listed(tmp_path: Path) -> None:
    write(tmp_path, "z/a.jpg", ".hidden/b.jpg", ".hidden/c.jpg")
    for name, target in [
        ("again.jpg", "z/a.jpg"),
        ("a", "z"),
        ("up", "."),
        ("z/up", ".."),
        ("shown", ".hidden"),
        ("shown.jpg", ".hidden/b.jpg"),
    ]:
        (tmp_path / name).symlink_to(target)
    # The real folder goes before the link to it, though "a" sorts before "z".
    assert listed(find_photos(tmp_path)) == {"shown/b.jpg": "", "shown/c.jpg": "", "z/a.jpg": ""}


def test_a_link_to_nowhere_or_to_itself_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg")
    (tmp_path / "nowhere.jpg").symlink_to("nothing.jpg")
    (tmp_path / "circle.jpg").symlink_to("circle.jpg")
    (tmp_path / "in-a-file.jpg").symlink_to("a.jpg/b.jpg")
    for follow_links in (False, True):
        found = find_photos(tmp_path, follow_links=follow_links)
        assert listed(found) == {"a.jpg": "", "circle.jpg": "link", "in-a-file.jpg": "link", "nowhere.jpg": "link"}
        assert all("leads nowhere" in str(photo.refusal) for photo in found[1:])


def test_of_several_hard_links_the_first_by_id_is_listed(tmp_path: Path) -> None:
    write(tmp_path, "b/photo.jpg", "c.jpg")
    (tmp_path / "a.jpg").hardlink_to(tmp_path / "b" / "photo.jpg")
    (tmp_path / "z.jpg").hardlink_to(tmp_path / "b" / "photo.jpg")
    (tmp_path / "link.jpg").symlink_to("z.jpg")
    assert listed(find_photos(tmp_path)) == {"a.jpg": "", "c.jpg": ""}


def test_an_index_among_the_photos_is_passed_over(tmp_path: Path) -> None:
    write(tmp_path, "a.jpg", "album/index.json", "idx/index.json", "idx/records.sqlite", "idx/thumbnails-1.bin")
    assert listed(find_photos(tmp_path)) == {"a.jpg": "", "album/index.json": ""}


def test_an_id_is_in_one_unicode_form_and_belongs_to_one_file(tmp_path: Path) -> None:
    composed, apart = (unicodedata.normalize(form, "café/é.jpg") for form in ("NFC", "NFD"))
    write(tmp_path, apart)
    (only,) = find_photos(tmp_path)
    assert only.id == composed
    assert only.path.read_bytes() == apart.encode()
    write(tmp_path, composed)
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this disk takes both forms for one name")
    first, second = find_photos(tmp_path)
    assert (first.id, first.refusal) == (composed, None)
    assert second.id == f"{composed} (2)"
    assert second.refusal is not None
    assert second.refusal.kind == "unreadable"
    assert str(second.refusal) == f"two files read as {composed}; rename one of them."
    assert {first.path, second.path} == {tmp_path / composed, tmp_path / apart}


def test_a_name_that_reads_like_another_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a\n.png", "a\\x0a.png", "a\\x0a.png (2)")
    assert listed(find_photos(tmp_path)) == {"a\\x0a.png": "", "a\\x0a.png (2)": "", "a\\x0a.png (3)": "unreadable"}


@pytest.mark.parametrize(("asked", "on_disk"), [("NFC", "NFD"), ("NFD", "NFC"), ("NFC", "NFC")])
def test_a_file_is_found_by_its_name_in_any_unicode_form(
    tmp_path: Path, asked: Literal["NFC", "NFD"], on_disk: Literal["NFC", "NFD"]
) -> None:
    write(tmp_path, unicodedata.normalize(on_disk, "Übung/d'été/é.jpg"), "plain.jpg")
    names = PhotoNames(tmp_path)
    assert names.path(unicodedata.normalize(asked, "Übung/d'été/é.jpg")).is_file()
    assert names.path("plain.jpg") == tmp_path / "plain.jpg"
    for missing in ("nothing.jpg", "é/nothing.jpg", "Übung/è.jpg"):
        assert not names.path(missing).exists()


def unprivileged() -> list[str]:
    """What to put before a command so that permissions hold for it, root's too."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv, as root may read everything")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]


def test_a_folder_that_may_not_be_listed_is_one_skipped_entry(tmp_path: Path) -> None:
    photos, store = tmp_path / "photos", tmp_path / "store"
    photos.mkdir()
    Image.new("RGB", (50, 50), "red").save(photos / "a.png")
    write(photos, "lost+found/b.png")
    (photos / "lost+found").chmod(0)
    program = [*unprivileged(), sys.executable, "-m", "vsrn", "extract", str(photos), "-o", str(store), "--json"]
    try:
        ran = subprocess.run(program, check=False, capture_output=True, text=True)
    finally:
        (photos / "lost+found").chmod(0o755)
    assert ran.returncode == 0, ran.stderr
    (split,) = json.loads(ran.stdout)["splits"]
    assert split["num_done"] == 1
    (skipped,) = split["skipped"]
    assert (skipped["id"], skipped["kind"]) == ("lost+found/", "unreadable")
    assert "cannot be listed (Permission denied)" in skipped["reason"]


def test_a_root_that_may_not_be_listed_is_an_error(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    write(photos, "a.png")
    photos.chmod(0)
    program = [*unprivileged(), sys.executable, "-m", "vsrn", "extract", str(photos), "-o", str(tmp_path / "store")]
    try:
        ran = subprocess.run(program, check=False, capture_output=True, text=True)
    finally:
        photos.chmod(0o755)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith(f"error: {photos} cannot be listed (Permission denied)")
