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

from vsrn.cli import run_command
from vsrn.data.exclusion import Exclusion, lasting_glob
from vsrn.data.listing import PhotoFile, PhotoNames, find_photos
from vsrn.errors import ConfigError, DataError, PhotoError


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
    found = names.find(unicodedata.normalize(asked, "Übung/d'été/é.jpg"))
    assert found is not None
    assert found.is_file()
    assert names.find("plain.jpg") == tmp_path / "plain.jpg"
    for missing in ("nothing.jpg", "é/nothing.jpg", "Übung/è.jpg"):
        assert names.find(missing) is None


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
    write(photos, "private/b.png")
    (photos / "private").chmod(0)
    program = [*unprivileged(), sys.executable, "-m", "vsrn", "extract", str(photos), "-o", str(store), "--json"]
    try:
        ran = subprocess.run(program, check=False, capture_output=True, text=True)
    finally:
        (photos / "private").chmod(0o755)
    assert ran.returncode == 0, ran.stderr
    (split,) = json.loads(ran.stdout)["splits"]
    assert split["num_done"] == 1
    (skipped,) = split["skipped"]
    assert (skipped["id"], skipped["kind"]) == ("private/", "unreadable")
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


def touched(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


SYSTEM = ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "#recycle/b.jpg", "lost+found/c.jpg", "$RECYCLE.BIN/S-1-5/d.jpg"]
SYSTEM += [
    "x/System Volume Information/e.jpg",
    "x/.thumbnails/f.jpg",
    ".Trash-1000/files/g.jpg",
    "x/$Recycle.Bin/h.jpg",
]


def test_folders_that_systems_keep_beside_photos_are_left_out_and_counted(tmp_path: Path) -> None:
    touched(tmp_path, "a.jpg", "x/b.jpg", "x/recycle/c.jpg", "x/@eaDirs/d.jpg", ".hidden.jpg", *SYSTEM)
    exclusion = Exclusion(tmp_path)
    found = find_photos(tmp_path, exclusion=exclusion)
    assert [photo.id for photo in found] == ["a.jpg", "x/@eaDirs/d.jpg", "x/b.jpg", "x/recycle/c.jpg"]
    assert (exclusion.num_folders, exclusion.num_files) == (len(SYSTEM), 0)
    assert not any(exclusion.has_photo(photo.id) for photo in found)
    assert all(map(exclusion.has_photo, SYSTEM))
    # A file of captions means the photo, not its thumbnail of the same name; and what a person names is searched.
    touched(tmp_path, "y/7.jpg", "@eaDir/7.jpg")
    assert PhotoNames(tmp_path).find("7") == tmp_path / "y" / "7.jpg"
    assert [photo.id for photo in find_photos(tmp_path / "#recycle")] == ["b.jpg"]


@pytest.mark.parametrize(
    ("glob", "left"),
    [
        ("raw", ["2019/raw/a.jpg", "2020/raw/a.jpg", "raw/a.jpg"]),
        ("raw/", ["2019/raw/a.jpg", "2020/raw/a.jpg", "raw/a.jpg"]),
        ("**/raw", ["2019/raw/a.jpg", "2020/raw/a.jpg", "raw/a.jpg"]),
        ("./raw", ["raw/a.jpg"]),
        ("/raw/", ["raw/a.jpg"]),
        ("2019/raw", ["2019/raw/a.jpg"]),
        ("20*/raw", ["2019/raw/a.jpg", "2020/raw/a.jpg"]),
        ("{photos}/2019/raw/", ["2019/raw/a.jpg"]),
        ("photos/2019", ["2019/raw/a.jpg", "2019/shot.png"]),
        ("photos/2019/*.png", ["2019/shot.png"]),
        ("*.png", ["2019/shot.png", "shot.png"]),
        ("*.png/", []),
        ("shot.[jp]*", ["2019/shot.png", "shot.png"]),
        ("Raw", []),
        (unicodedata.normalize("NFD", "Été"), ["Été/b.jpg"]),
    ],
)
def test_a_glob_leaves_out_names_at_any_depth_or_paths_below_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, glob: str, left: list[str]
) -> None:
    everything = ["2019/raw/a.jpg", "2019/shot.png", "2020/raw/a.jpg", "raw/a.jpg", "shot.png", "z.jpg", "Été/b.jpg"]
    photos = touched(tmp_path / "photos", *everything)
    monkeypatch.chdir(tmp_path)
    for folder in (Path("photos"), photos):
        exclusion = Exclusion(folder, [glob.format(photos=photos)])
        assert [photo.id for photo in find_photos(folder, exclusion=exclusion)] == sorted(set(everything) - set(left))
        assert [name for name in everything if exclusion.has_photo(name)] == left


@pytest.mark.parametrize("named", [".nomedia", ".noindex", "train_ims.npy", "photos_ims.npy.partial"])
def test_a_folder_that_says_so_or_is_a_region_store_is_left_out(tmp_path: Path, named: str) -> None:
    touched(tmp_path, "a.jpg", "x/cover.txt", f"x/{named}", "x/below/b.jpg", "y/c.jpg")
    exclusion = Exclusion(tmp_path)
    assert [photo.id for photo in find_photos(tmp_path, exclusion=exclusion)] == ["a.jpg", "y/c.jpg"]
    # What an index has of such a folder is known to be left out, not to be away.
    assert exclusion.num_folders == 1
    assert exclusion.has_photo("x/below/b.jpg")
    # A person who names the folder means it; photos that lie beside a store are photos.
    assert "below/b.jpg" in [photo.id for photo in find_photos(tmp_path / "x")]
    touched(tmp_path, "x/d.JPG")
    found = [photo.id for photo in find_photos(tmp_path)]
    assert ("x/d.JPG" in found) == (not named.startswith("."))


def test_a_lasting_glob_means_the_same_from_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ones, others = touched(tmp_path / "ones", "raw/a.jpg", "b.jpg"), touched(tmp_path / "others", "raw/a.jpg", "b.jpg")
    monkeypatch.chdir(tmp_path)
    kept = {glob: lasting_glob([Path("ones"), others], glob) for glob in ("raw/", "ones/raw", "./raw", "/b.jpg")}
    monkeypatch.chdir(ones / "raw")

    def left(folder: Path, glob: str) -> list[str]:
        return [photo.id for photo in find_photos(folder, exclusion=Exclusion(folder, [kept[glob]]))]

    assert [left(ones, "raw/"), left(others, "raw/")] == [["b.jpg"], ["b.jpg"]]
    assert [left(ones, "ones/raw"), left(others, "ones/raw")] == [["b.jpg"], ["b.jpg", "raw/a.jpg"]]
    assert [left(ones, "./raw"), left(others, "./raw")] == [["b.jpg"], ["b.jpg"]]
    assert [left(ones, "/b.jpg"), left(others, "/b.jpg")] == [["raw/a.jpg"], ["raw/a.jpg"]]
    with pytest.raises(ConfigError, match="names a folder of photos"):
        lasting_glob([ones], "..")


def test_a_glob_that_leaves_out_everything_is_refused(tmp_path: Path) -> None:
    touched(tmp_path, "a.jpg")
    for glob in ("", "/", ".", str(tmp_path), f"{tmp_path}/"):
        with pytest.raises(ConfigError, match="names no file or folder below"):
            Exclusion(tmp_path, [glob])
    with pytest.raises(DataError, match="beside those that are left out"):
        find_photos(tmp_path, exclusion=Exclusion(tmp_path, ["*"]))


def test_extract_leaves_out_what_it_is_told_to_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos, store = tmp_path / "photos", tmp_path / "store"
    for name in ("a.png", "raw/b.png", "@eaDir/c.png"):
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (50, 50), "red").save(photos / name)
    command = [str(photos), "-o", str(store), "--exclude", "raw"]
    assert run_command("extract", command) == 0
    assert (
        "  2 folders were left out (hidden, of the system, excluded, or part of a photo)\n" in capsys.readouterr().out
    )
    assert (store / "photos_ids.txt").read_text() == "a.png\n"
    assert run_command("extract", [*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["num_folders_left_out"], said["num_files_left_out"]) == (2, 0)
    assert run_command("extract", [*command, "--captions", "captions.json"]) == 2
    assert "leave out --exclude" in capsys.readouterr().err
