"""A user's mistake is one sentence on standard error, exit code 2, and nothing half written."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from worlds import make_model, make_store

import vsrn
from vsrn.cli import COMMANDS, main
from vsrn.cli.progress import say
from vsrn.config import Config, DataConfig, config_to_toml


class Workplace:
    """A folder with a store, a model and a config that all work, until a test breaks one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = make_store(folder / "store", {"train": 20, "dev": 10})
        self.model = make_model(folder / "model", self.store)
        self.config = folder / "config.toml"
        self.config.write_text(config_to_toml(Config(data=DataConfig(path=str(self.store)))))

    def train(self, *options: str) -> list[str]:
        return ["train", str(self.config), "-o", str(self.folder / "run"), *options]

    def evaluate(self, *options: str) -> list[str]:
        return ["evaluate", str(self.model), "--split", "dev", *options]


@pytest.fixture
def workplace(tmp_path: Path) -> Workplace:
    return Workplace(tmp_path)


def drop_captions(work: Workplace) -> list[str]:
    captions = work.store / "dev_caps.txt"
    captions.write_text("".join(captions.read_text().splitlines(keepends=True)[:-3]))
    return work.evaluate()


def forget_captions(work: Workplace) -> list[str]:
    (work.store / "dev_caps.txt").unlink()
    return work.evaluate()


def poison_features(work: Workplace) -> list[str]:
    features = np.load(work.store / "dev_ims.npy")
    features[4, 2, 1] = np.nan
    np.save(work.store / "dev_ims.npy", features)
    return work.evaluate()


def write_latin1(work: Workplace) -> list[str]:
    (work.store / "dev_caps.txt").write_bytes(b"a dog\n" * 19 + b"caf\xe9\n")
    return work.evaluate()


def empty_a_caption(work: Workplace) -> list[str]:
    (work.store / "dev_caps.txt").write_text("a dog\n" * 7 + "\n" + "a dog\n" * 12)
    return work.evaluate()


def truncate_features(work: Workplace) -> list[str]:
    path = work.store / "dev_ims.npy"
    path.write_bytes(path.read_bytes()[:-50])
    return work.evaluate()


def truncate_weights(work: Workplace) -> list[str]:
    path = work.model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    return work.evaluate()


def swap_vocabulary(work: Workplace) -> list[str]:
    other = make_store(work.folder / "other", {"train": 3})
    shutil.copy(make_model(work.folder / "other_model", other) / "vocabulary.json", work.model / "vocabulary.json")
    return work.evaluate()


def widen_features(work: Workplace) -> list[str]:
    np.save(work.store / "dev_ims.npy", np.ones((10, 5, 99), dtype=np.float32))
    return work.evaluate()


def misspell_field(work: Workplace) -> list[str]:
    work.config.write_text(f'[data]\npath = "{work.store}"\n[train]\nbacth_size = 3\n')
    return work.train()


def mistype_field(work: Workplace) -> list[str]:
    work.config.write_text(f'[data]\npath = "{work.store}"\n[train]\nepochs = "many"\n')
    return work.train()


def contradict(work: Workplace) -> list[str]:
    return work.train("--train.epochs", "3", "--train.learning-rate-drop", "2", "1")


def occupy(work: Workplace) -> list[str]:
    shutil.copytree(work.model, work.folder / "run")
    return work.train()


Mistake = Callable[[Workplace], list[str]]

MISTAKES: list[tuple[Mistake, str]] = [
    (lambda _work: ["trian"], r"no command 'trian'. Did you mean 'train'\?"),
    (lambda work: ["evaluate", str(work.model), "--split", "tset"], r"no split 'tset'; it has dev and train"),
    (lambda work: ["evaluate", str(work.folder / "no"), "--split", "dev"], "there is no folder"),
    (lambda work: ["evaluate", str(work.store), "--split", "dev"], "not a trained model"),
    (lambda work: work.evaluate("--data", str(work.folder / "no")), "there is no folder"),
    (lambda work: work.evaluate("--data", str(work.model)), "holds no split"),
    (lambda work: work.evaluate("--five-fold"), "10 images do not divide"),
    (lambda work: work.evaluate("--device", "abacus"), "no device 'abacus'"),
    (lambda work: work.evaluate("--photos", "photos"), "add --html FILE"),
    (drop_captions, "17 captions and dev_ims.npy 10 images, which do not divide"),
    (forget_captions, "regions but no captions"),
    (poison_features, "row 4 holds NaN"),
    (write_latin1, "dev_caps.txt, line 20: not UTF-8"),
    (empty_a_caption, "dev_caps.txt, line 8: the caption is empty"),
    (truncate_features, r"dev_ims.npy is not a readable .npy array"),
    (truncate_weights, "model.safetensors is not a readable safetensors file"),
    (swap_vocabulary, "vocabulary.json is not the vocabulary that model.safetensors learned with"),
    (widen_features, "regions of 99 numbers, but this model reads 12"),
    (misspell_field, r"no field train.bacth_size. Did you mean 'train.batch_size'\?"),
    (mistype_field, "train.epochs: Expected `int`"),
    (contradict, r"learning_rate_drop must be rising epochs"),
    (occupy, "already holds a run; add --resume"),
    (lambda work: work.train("--resume"), "holds no run to resume"),
    (lambda work: ["train", str(work.folder / "no.toml")], "there is no config"),
    (lambda work: work.train("--model.feature-dim", "2048"), "model.feature_dim is 2048, but"),
    (lambda work: ["vocab", str(work.store), "-o", str(work.model / "vocabulary.json")], "already there"),
    (lambda work: ["convert", str(work.config), "--vocab", str(work.config), "-o", str(work.folder / "out")], "toml"),
    (lambda work: ["extract", str(work.folder / "no"), "-o", str(work.folder / "out")], "there is no folder"),
    (lambda work: ["extract", "x", "-o", "y", "--model", str(work.model), "--weights", "z"], "brings its extractor"),
    (lambda work: work.evaluate("--devise", "cpu"), "Unrecognized options: --devise, cpu. Did you mean '--device'"),
    (lambda work: work.evaluate("--top", "many"), "Error parsing --top: .*'many'. See `vsrn evaluate --help`"),
    (lambda work: work.evaluate("--format", "word"), "invalid choice 'word' for argument '--format'"),
    (lambda _work: ["search"], "Missing from vsrn search: INDEX"),
    (lambda _work: ["index", "-o"], "Missing value for argument '-o/--output'"),
]


def contents(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(("mistake", "sentence"), MISTAKES, ids=[sentence[:30] for _, sentence in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(
    workplace: Workplace, mistake: Mistake, sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = mistake(workplace)
    before = contents(workplace.folder)
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2
    assert len(errors) == 1, said
    assert re.search(sentence, errors[0]), errors[0]
    assert "Traceback" not in said
    assert contents(workplace.folder) == before, "nothing was written"


def test_a_full_disk_is_one_sentence_and_leaves_no_half_written_file(workplace: Workplace, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("a small disk can be made only by root")
    try:
        arguments = workplace.train("-o", str(disk / "run"), "--train.device", "cpu", "--model.joint-dim", "64")
        process = subprocess.run(
            [sys.executable, "-m", "vsrn", *arguments], capture_output=True, text=True, check=False
        )
        assert process.returncode == 2
        assert "error: no space left on the disk" in process.stderr
        assert "Traceback" not in process.stderr
        left = {path.name for path in (disk / "run").rglob("*") if path.is_file()}
        assert left == {"vocabulary.json", "config.toml"}
    finally:
        subprocess.run(["umount", str(disk)], check=True)


REFUSED: dict[str, Callable[[Workplace, str], list[str]]] = {
    "extract": lambda work, out: ["extract", str(work.folder), "-o", out],
    "index": lambda work, out: ["index", str(work.folder), "-o", out],
    "vocab": lambda work, out: ["vocab", str(work.store), "-o", out],
    "train": lambda work, out: work.train("-o", out),
    "export": lambda work, out: ["export", str(work.model), "-o", out],
    "search": lambda _, out: ["search", out, "dog"],
    "read a config": lambda _, out: ["train", out],
    "convert": lambda _, out: ["convert", out, "--vocab", out, "-o", out],
    "demo": lambda _, out: ["demo", "-o", out],
}


@pytest.mark.parametrize("place", ["/proc/idx", "loop/x"])
@pytest.mark.parametrize("command", REFUSED)
def test_what_the_operating_system_refuses_is_one_sentence(
    command: str, place: str, workplace: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No folder can be made in /proc, nor behind a link to itself."""
    if place.startswith("/proc") and not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    monkeypatch.chdir(workplace.folder)
    Path("loop").symlink_to("loop")
    with pytest.raises(SystemExit) as ended:
        main(REFUSED[command](workplace, place))
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2
    assert len(said) == 1
    assert place.split("/")[-2] in said[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_teaches_every_option(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    said = capsys.readouterr().out
    assert ended.value.code == 0
    assert said.startswith(f"usage: vsrn {command}")
    assert len(said.splitlines()) > 10
    # Of each example a line of its own, ready to be copied.
    assert command == "demo" or re.search(rf"^\$ .*vsrn {command} ", said, re.MULTILINE)
    assert not re.search(r"^vsrn ", said, re.MULTILINE)
    # Fields of a config have defaults of their own, empty ones too.
    assert command == "train" or not re.search(r"\(default: (None)?\)", said)


def test_an_option_of_several_commands_is_explained_in_the_same_words(capsys: pytest.CaptureFixture[str]) -> None:
    commands = {
        "--device": ["compare", "demo", "evaluate", "extract", "index", "search", "caption", "explain", "serve"],
        "--precision": ["evaluate", "caption", "explain"],
        "--batch-size": ["evaluate", "caption"],
        "--workers": ["evaluate", "caption"],
        "--weights": ["evaluate", "metrics"],
        "--seed": ["evaluate", "metrics"],
        "--format": ["evaluate", "metrics"],
    }
    helps = {}
    for command in {command for some in commands.values() for command in some}:
        with pytest.raises(SystemExit):
            main([command, "--help"])
        helps[command] = " ".join(re.sub("[─│╭╰]", " ", capsys.readouterr().out).partition(" options ")[2].split())
    for option, some in commands.items():
        # From the option's name to the next option.
        said = {re.split(r" --[a-z-]+ ", helps[command].partition(f" {option} ")[2])[0] for command in some}
        assert len(said) == 1, (option, said)
        assert len(said.pop()) > 20


def test_the_versions_of_what_computes_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    lines = capsys.readouterr().out.splitlines()
    assert ended.value.code == 0
    assert lines[0] == f"vsrn {vsrn.__version__}"
    assert f"torch {torch.__version__.partition('+')[0]}" in "\n".join(lines)
    assert f"numpy {np.__version__}" in lines


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert all(command in said for command in COMMANDS)


def test_what_is_said_cannot_move_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    say("\n1. Drawing pho\x1b[2Jtos\n\x07...")
    assert capsys.readouterr().err == "\n1. Drawing pho\\x1b[2Jtos\\x0a\\x07...\n"


def test_the_help_says_where_the_guides_are_that_commands_name(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    place = re.search(r"are in (.*)\.\n", capsys.readouterr().out)
    assert place is not None
    sources = Path(vsrn.__file__).parent.rglob("*.py")
    named = {
        name for source in sources for name in re.findall(r"docs/([\w-]+\.md)", source.read_text(encoding="utf-8"))
    }
    assert named
    assert [name for name in named if not (Path(place[1]) / name).is_file()] == []


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_a_reader_that_went_away_is_no_error(argument: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    run = subprocess.run(
        [sys.executable, "-m", "vsrn", argument], stdout=writer, stderr=subprocess.PIPE, check=False, text=True
    )
    os.close(writer)
    assert (run.returncode, run.stderr) == (0, "")
