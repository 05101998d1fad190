"""`vsrn explain`, of a photo and of an index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from colours import Colours, export_colours, save_photo
from PIL import Image

import vsrn
from vsrn.cli import main, run_command
from vsrn.search.build import update_index

SENTENCE = "a green blue"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos, a model and an index."""
    for number in range(3):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    export_colours(tmp_path / "exported")
    update_index(tmp_path / "photos", tmp_path / "idx", tmp_path / "exported")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_photo_and_its_copy_in_an_index_get_the_same_picture(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    of_photo = ["photos/1.png", SENTENCE, "--model", "exported", "-o", "pictures/photo.png"]
    of_index = ["--index", "idx", "--id", "1.png", SENTENCE, "-o", "index.png"]
    assert run_command("explain", of_photo) == 0
    assert run_command("explain", of_index) == 0
    assert "The picture is index.png." in capsys.readouterr().out
    # The index keeps features as halves, which moves weights a little, and colours with them.
    one, other = (np.asarray(Image.open(place / name), float) for name in ("pictures/photo.png", "index.png"))
    assert one.shape == other.shape
    assert np.abs(one - other).mean() < 3


@pytest.mark.parametrize("view", ["relevance", "words", "sentence", "image"])
def test_json_has_the_boxes_and_weights_that_the_library_gives(
    view: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command("explain", ["--index", "idx", "--id", "2.png", SENTENCE, "--view", view, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    with vsrn.open_index(place / "idx") as index:
        expected = index.explain("2.png", SENTENCE, view)  # type: ignore[arg-type]
    assert (printed["photo"], printed["sentence"], printed["view"]) == ("2.png", SENTENCE, view)
    np.testing.assert_allclose([region["weight"] for region in printed["regions"]], expected.weights, atol=1e-6)
    np.testing.assert_allclose([region["box"] for region in printed["regions"]], Colours.boxes, atol=1e-6)
    assert not list(place.glob("*.png")), "nobody asked for a picture"


def test_the_place_of_one_word_is_printed_as_the_library_gives_it(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ["--index", "idx", "--id", "2.png", SENTENCE, "--word", "Blue"]
    assert run_command("explain", [*asked, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    with vsrn.open_index(place / "idx") as index:
        expected = index.explain("2.png", SENTENCE).of_word("blue").weights
    np.testing.assert_allclose([region["weight"] for region in printed["regions"]], expected, atol=1e-6)
    assert [word["word"] for word in printed["words"]] == ["green", "blue"]
    assert run_command("explain", [*asked, "-o", "blue.png"]) == 0
    assert run_command("explain", [*asked[:5], "--view", "words", "-o", "words.png"]) == 0
    assert "green" in capsys.readouterr().out
    assert (place / "words.png").read_bytes() != (place / "blue.png").read_bytes()


def test_the_picture_has_a_name_of_its_own_where_none_is_given(place: Path) -> None:
    before = (place / "photos" / "0.png").read_bytes()
    assert run_command("explain", ["photos/0.png", SENTENCE, "--model", "exported"]) == 0
    with Image.open(place / "0-explained.png") as drawn:
        assert drawn.width == 640
    assert (place / "photos" / "0.png").read_bytes() == before


def test_a_picture_that_is_there_is_replaced_only_by_force(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of the default name too, which two photos of one stem share; a link is as good as a file."""
    explain = ["photos/0.png", SENTENCE, "--model", "exported"]
    assert run_command("explain", explain) == 0
    first = (place / "0-explained.png").read_bytes()
    save_photo(place / "photos" / "other" / "0.png", 77)
    (place / "link.png").symlink_to(place / "elsewhere.png")
    other = ["photos/other/0.png", *explain[1:]]
    for arguments, name in (
        (other, "0-explained.png"),
        ([*other, "-o", "0-explained.png"], "0-explained.png"),
        (["--index", "idx", "--id", "0.png", SENTENCE], "0-explained.png"),
        ([*other, "-o", "link.png"], "link.png"),
    ):
        capsys.readouterr()
        assert run_command("explain", arguments) == 2
        said = capsys.readouterr().err
        assert f"{name} is already there; name another file with -o, or add --force to replace it." in said
    assert (place / "0-explained.png").read_bytes() == first
    assert not (place / "elsewhere.png").exists()
    assert run_command("explain", [*other, "--force"]) == 0
    assert (place / "0-explained.png").read_bytes() != first


def test_force_does_not_overwrite_the_photo_itself(place: Path) -> None:
    before = (place / "photos" / "1.png").read_bytes()
    for photo in (["photos/1.png", SENTENCE, "--model", "exported"], ["--index", "idx", "--id", "1.png", SENTENCE]):
        assert run_command("explain", [*photo, "-o", "photos/1.png", "--force"]) == 2
    assert (place / "photos" / "1.png").read_bytes() == before


@pytest.mark.usefixtures("place")
def test_names_reach_the_terminal_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    explain = ["photos/0.png", SENTENCE, "--model", "exported"]
    for output, code in (("a\x1b[2Jb.png", 0), ("a\x1b[2Jb.png", 2), ("a\x1b[2Jb.pdf", 2)):
        assert run_command("explain", [*explain, "-o", output]) == code
        said = "".join(capsys.readouterr())
        assert "a\\x1b[2Jb" in said
        assert "\x1b" not in said


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_photo_that_is_not_as_it_was_is_drawn_from_its_thumbnail(
    change: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo = place / "photos" / "1.png"
    was = np.asarray(Image.open(photo), float)
    if change == "gone":
        photo.unlink()
    else:
        Image.new("RGB", (24, 16), "black").save(photo)
        os.utime(photo, ns=(7, 7))
    assert run_command("explain", ["--index", "idx", "--id", "1.png", SENTENCE, "-k", "0", "-o", "out.png"]) == 0
    assert "its thumbnail is drawn on" in capsys.readouterr().err
    drawn = np.asarray(Image.open(place / "out.png").convert("L").crop((0, 0, 640, 427)).resize((24, 16)), float)
    # The heat lies over it, but the picture below is still the old one.
    assert np.corrcoef(drawn.ravel(), was.mean(axis=2).ravel())[0, 1] > 0.3


def test_an_index_is_explained_without_torch(place: Path) -> None:
    arguments = ["explain", "--index", "idx", "--id", "1.png", SENTENCE, "-o", "out.png"]
    program = (
        "import sys\nfrom vsrn.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'pymilvus'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=place)
    assert run.stdout.splitlines()[-1] == "[]"
    assert (place / "out.png").is_file()


PHOTO = ["photos/1.png", SENTENCE, "--model", "exported"]
INDEXED = ["--index", "idx", "--id", "1.png", SENTENCE]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "explain one photo and one sentence"),
        (["photos/1.png"], "explain one photo and one sentence"),
        (["photos/1.png", "--model", "exported"], "explain one photo and one sentence"),
        (["photos/1.png", *INDEXED], "explain one photo and one sentence"),
        (["--index", "idx", SENTENCE], "named by both --index INDEX and --id ID"),
        (["photos/1.png", SENTENCE, "--id", "1.png"], "named by both --index INDEX and --id ID"),
        ([*INDEXED, "--model", "exported"], "leave out --model"),
        (["photos/1.png", "  ", "--model", "exported"], "the sentence is empty"),
        ([*PHOTO, "-k", "-1"], "-k is -1"),
        ([*PHOTO, "--word", "red"], "no place is known of the word 'red'; words with places: green, blue"),
        ([*PHOTO, "--word", "blue", "--view", "words"], "leave out --view"),
        ([*PHOTO, "-o", "out.pdf"], "-o out.pdf is no picture"),
        ([*PHOTO, "-o", "photos/1.png"], "is the photo itself"),
        ([*INDEXED, "-o", "photos/1.png"], "is the photo itself"),
        (["photos/9.png", SENTENCE, "--model", "exported"], "photos/9.png does not exist"),
        (["--index", "idx", "--id", "9.png", SENTENCE], "holds no photo '9.png'"),
        (["--index", "photos", "--id", "1.png", SENTENCE], "is not an index"),
        (["photos/1.png", SENTENCE, "--model", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    arguments: list[str], sentence: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in (place / "photos").iterdir()}
    with pytest.raises(SystemExit) as ended:
        main(["explain", *arguments])
    assert ended.value.code == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert sentence in error
    assert {path: path.stat().st_mtime_ns for path in (place / "photos").iterdir()} == before
    assert not [path for path in place.iterdir() if path.suffix]
