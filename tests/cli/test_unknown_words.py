"""Words that a model never read, and published vocabularies: what the commands and the library say of them."""

from __future__ import annotations

import json
import pickle
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
from colours import export_colours, save_photo
from worlds import make_model, make_store

import vsrn
from vsrn.cli import run_command
from vsrn.data.vocabulary import SPECIAL_WORDS, read_vocabulary
from vsrn.errors import UnknownWordsWarning
from vsrn.search.build import update_index

WORDS = ["zwei", "hunde"]
TINY = """
[model]
joint_dim = 8
word_dim = 4
reasoning_layers = 1
normalisation = "flickr30k"
[model.captioner]
enabled = false
[train]
batch_size = 6
epochs = 1
learning_rate_drop = []
"""


@pytest.fixture
def indexed(tmp_path: Path) -> Path:
    """Photos, a model that reads words of colours, and an index."""
    for number in range(3):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    export_colours(tmp_path / "exported")
    update_index(tmp_path / "photos", tmp_path / "idx", tmp_path / "exported")
    return tmp_path


@pytest.mark.parametrize(
    "command", [["search", "idx", "SENTENCE"], ["explain", "--index", "idx", "--id", "2.png", "SENTENCE"]]
)
def test_a_command_names_them_once_and_in_json(
    command: list[str], indexed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(indexed)
    name, *arguments = (word.replace("SENTENCE", "Zwei zwei green Hunde") for word in command)
    assert run_command(name, [*arguments, "--json"]) == 0
    said = capsys.readouterr()
    assert [said.err.count(f"The model never read '{word}', which counts for nothing.") for word in WORDS] == [1, 1]
    assert json.loads(said.out)["unknown_words"] == WORDS
    assert run_command(name, [word.replace("Zwei zwei", "").replace("Hunde", "") for word in arguments]) == 0
    assert "never read" not in capsys.readouterr().err


def test_the_library_warns_once_of_each_word(indexed: Path) -> None:
    model = vsrn.load(str(indexed / "exported"))
    assert model.unknown_words("Zwei green Hunde") == model.unknown_words(["zwei", "green hunde"]) == ["zwei", "hunde"]
    with pytest.warns(UnknownWordsWarning, match=r"never read: zwei, hunde \(67% of all words\)"):
        model.encode_captions(["Zwei green Hunde"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.encode_captions(["Hunde green", "green"])
    with vsrn.open_index(indexed / "idx") as index, pytest.warns(UnknownWordsWarning, match="spielen"):
        index.search("spielen")


def test_evaluation_and_training_say_the_share_and_warn_beyond_a_third(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = make_store(tmp_path / "store", {"train": 8, "val": 8})
    model = make_model(tmp_path / "model", store)
    assert run_command("evaluate", [str(model), "--split", "val", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["unknown_share"] == 0
    assert "of the words of these captions" not in said.err
    assert "warning" not in said.err
    (store / "val_caps.txt").write_text("red zwei\nein hund\n" * 8)
    assert run_command("evaluate", [str(model), "--split", "val", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["unknown_share"] == 0.75
    assert re.search(r"75\.0% of the words .*\n.*warning: that is more than a third", said.err)

    (tmp_path / "other.json").write_text(json.dumps({"words": [*SPECIAL_WORDS, "red"]}))
    (tmp_path / "tiny.toml").write_text(TINY)
    data = ["--data.path", str(store), "--data.validation", "val", "--data.vocabulary", str(tmp_path / "other.json")]
    assert run_command("train", [str(tmp_path / "tiny.toml"), *data, "-o", str(tmp_path / "run")]) == 0
    words = (store / "train_caps.txt").read_text().split()
    share = 1 - words.count("red") / len(words)
    said = capsys.readouterr()
    assert f"{share:.1%} of the words of these captions are not in the vocabulary" in said.err
    assert "warning: that is more than a third" in said.err


def test_a_pickled_vocabulary_trains_and_becomes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = make_store(tmp_path / "store", {"train": 8, "val": 8})
    words = [*SPECIAL_WORDS, "red", "dog", "boat"]
    pickled, written = tmp_path / "vocab.pkl", tmp_path / "vocab.json"
    pickled.write_bytes(_as_of_2019(words))
    assert run_command("vocab", [str(pickled), "-o", str(written)]) == 0
    assert list(read_vocabulary(written).words) == words == list(read_vocabulary(pickled).words)

    (tmp_path / "tiny.toml").write_text(TINY)
    data = ["--data.path", str(store), "--data.validation", "val", "--data.vocabulary"]
    for number, vocabulary in enumerate((pickled, tmp_path / "run0")):
        run = tmp_path / f"run{number}"
        assert run_command("train", [str(tmp_path / "tiny.toml"), *data, str(vocabulary), "-o", str(run)]) == 0
        assert list(read_vocabulary(run).words) == words

    capsys.readouterr()
    assert run_command("convert", [str(pickled), "--vocab", str(pickled), "-o", str(tmp_path / "x")]) == 2
    assert f"`vsrn vocab {pickled} -o FILE.json`" in capsys.readouterr().err


def _as_of_2019(words: list[str]) -> bytes:
    """An instance of the class `__main__.Vocabulary`, as Python 3 pickles it."""
    table = pickle.dumps({"idx2word": dict(enumerate(words))}, protocol=2)
    return b"\x80\x02c__main__\nVocabulary\n)\x81" + table[2:-1] + b"b."


def test_a_vocabulary_is_built_from_a_file_of_captions(tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("image,caption\na.jpg,a dog runs\nb.jpg,a dog\n")
    arguments = [str(tmp_path / "captions.csv"), "-o", str(tmp_path / "vocab.json"), "--min-count", "2"]
    assert run_command("vocab", arguments) == 0
    assert list(read_vocabulary(tmp_path / "vocab.json").words) == [*SPECIAL_WORDS, "a", "dog"]


@pytest.mark.parametrize("place", ["", "annotations"])
def test_a_vocabulary_is_built_from_cocos_folder(tmp_path: Path, place: str) -> None:
    (tmp_path / "coco" / place).mkdir(parents=True)
    said = {"id": 7, "image_id": 1, "caption": "a dog"}
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [said]}
    (tmp_path / "coco" / place / "captions_train2014.json").write_text(json.dumps(content))
    arguments = [str(tmp_path / "coco"), "-o", str(tmp_path / "vocab.json"), "--min-count", "1"]
    assert run_command("vocab", arguments) == 0
    assert list(read_vocabulary(tmp_path / "vocab.json").words) == [*SPECIAL_WORDS, "a", "dog"]


def test_captions_that_name_their_photos_are_no_captions_of_a_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "train_ims.npy", np.ones((1, 2, 3), np.float32))
    (tmp_path / "train_caps.txt").write_text("a.jpg#0\ta dog\na.jpg#1\ta cat\n")
    assert run_command("vocab", [str(tmp_path), "-o", str(tmp_path / "v.json")]) == 2
    assert "names a photo on every line, as Flickr's .token does" in capsys.readouterr().err
