"""What was published in 2019 loads and gives the same numbers; what is hostile or foreign does not."""

from __future__ import annotations

import argparse
import collections
import os
import pickle
import resource
import shutil
import struct
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from greedy import greedy
from hypothesis import example, given, settings
from hypothesis import strategies as st

import vsrn
from vsrn.cli import run_command
from vsrn.convert.checkpoint import read_checkpoint
from vsrn.data.vocabulary import SPECIAL_WORDS, Vocabulary, read_vocabulary
from vsrn.errors import CheckpointError, VocabularyError
from vsrn.model.saved import read_model

NUM_WORDS = 57
RECORDINGS = ["f30k", "coco", "options", "order"]
PROTOCOL_2 = b"\x80\x02"


class Calls:
    """Pickles as a call: whoever loads it without care makes that call."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.function, self.arguments = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.function, self.arguments


def hostile_calls(marker: Path) -> dict[str, tuple[Any, str]]:
    """Name -> something that would touch the marker, and the name it asks for."""
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    return {
        "os.system": (Calls(os.system, touch), r"(posix|nt)\.system"),
        "eval": (Calls(eval, code), r"(__builtin__|builtins)\.eval"),
        "exec": (Calls(exec, code), r"(__builtin__|builtins)\.exec"),
        "open": (Calls(open, str(marker), "w"), r"\bopen"),
        "Popen": (Calls(subprocess.Popen, ["touch", str(marker)]), r"Popen"),
        "pathlib": (Calls(Path.touch, marker), r"(__builtin__|builtins)\.getattr|pathlib"),
        "nested": ({"model": [[Calls(Calls, Calls(os.system, touch))]]}, r"system|Calls"),
        "torch.hub": (Calls(torch.hub.load, "owner/name", "model"), r"torch\.hub\.load"),
        "torch bytes": (Calls(torch.storage._load_from_bytes, b""), r"torch\.storage\._load_from_bytes"),
        "numpy.load": (Calls(np.load, str(marker), None, True), r"numpy\.load"),
        "numpy array": (np.zeros(3), r"numpy(\._?core)+\.multiarray\._reconstruct"),
        "namedtuple": (Calls(collections.namedtuple, "Name", code), r"collections\.namedtuple"),
    }


HOSTILE = list(hostile_calls(Path("marker")))


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("call", HOSTILE)
def test_a_hostile_checkpoint_is_refused_by_name_and_nothing_of_it_runs(
    tmp_path: Path, call: str, as_zip: bool, protocol: int
) -> None:
    marker, path = tmp_path / "ran", tmp_path / "model.pth.tar"
    payload, name = hostile_calls(marker)[call]
    content = {"model": [{}, {}], "opt": payload}
    torch.save(content, path, _use_new_zipfile_serialization=as_zip, pickle_protocol=protocol)
    with pytest.raises(CheckpointError, match=rf"asks for \S*({name})\S*, which no checkpoint needs") as refusal:
        read_checkpoint(path)
    assert is_one_sentence(refusal.value, path)
    assert not marker.exists()


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("call", [call for call in HOSTILE if not call.startswith(("numpy array", "torch"))])
def test_a_hostile_vocabulary_is_refused_by_name_and_nothing_of_it_runs(
    tmp_path: Path, call: str, protocol: int
) -> None:
    marker, path = tmp_path / "ran", tmp_path / "vocab.pkl"
    payload, name = hostile_calls(marker)[call]
    path.write_bytes(pickle.dumps({"idx2word": payload}, protocol=protocol))
    with pytest.raises(VocabularyError, match=rf"asks for \S*({name})\S*, which no vocabulary needs") as refusal:
        read_vocabulary(path)
    assert is_one_sentence(refusal.value, path)
    assert not marker.exists()


# Written by hand, as no pickler would write them.
HAND_WRITTEN = {
    "GLOBAL": b"cos\nsystem\n(V%s\ntR.",
    "INST": b"(V%s\nios\nsystem\n.",
    "OBJ": b"(cos\nsystem\nV%s\no.",
    "STACK_GLOBAL": b"\x80\x04\x8c\x02os\x8c\x06system\x93(V%s\ntR.",
    "the class's own module": b"c__main__\nos.system\n(V%s\ntR.",
    "an attribute of the class": b"\x80\x04Vvocab\nVVocabulary.__init__.__globals__\n\x93(V%s\ntR.",
    "an extension code": b"\x82\x01(V%s\ntR.",
    "a persistent id": b"Pos.system\n(V%s\ntR.",
}


@pytest.mark.parametrize("pickled", HAND_WRITTEN.values(), ids=HAND_WRITTEN.keys())
def test_no_opcode_reaches_a_function(tmp_path: Path, pickled: bytes) -> None:
    marker, path = tmp_path / "ran", tmp_path / "file.pkl"
    path.write_bytes(pickled % f"touch {marker}".encode())
    with pytest.raises(VocabularyError, match=r"file\.pkl"):
        read_vocabulary(path)
    with pytest.raises(CheckpointError, match=r"file\.pkl"):
        read_checkpoint(path)
    assert not marker.exists()


def test_a_vocabulary_cannot_spoil_the_next_one(tmp_path: Path) -> None:
    # BUILD on the class itself, instead of on an instance, would set attributes that stay.
    spoiler, good = tmp_path / "spoiler.pkl", tmp_path / "good.pkl"
    spoiler.write_bytes(b"cvocab\nVocabulary\n(N}V__setstate__\nccopy_reg\n_reconstructor\nstb.")
    good.write_bytes(python2_vocabulary(["dog"]))
    with pytest.raises(VocabularyError, match=r"spoiler\.pkl"):
        read_vocabulary(spoiler)
    assert list(read_vocabulary(good).words) == [*SPECIAL_WORDS, "dog"]


@pytest.mark.parametrize("module", ["vocab", "__main__"])
@pytest.mark.parametrize("protocol", [0, 1])
def test_older_protocols_of_python_2_rebuild_a_vocabulary_too(tmp_path: Path, module: str, protocol: int) -> None:
    path = tmp_path / "vocab.pkl"
    table = pickle.dumps({"idx2word": dict(enumerate([*SPECIAL_WORDS, "dog"]))}, protocol=protocol)
    rebuilt = f"ccopy_reg\n_reconstructor\n(c{module}\nVocabulary\nc__builtin__\nobject\nNtR".encode()
    path.write_bytes(rebuilt + table[:-1] + b"b.")
    assert list(read_vocabulary(path).words) == [*SPECIAL_WORDS, "dog"]


def test_python_2_strings_in_a_vocabulary_are_read_as_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "vocab.pkl"
    path.write_bytes(python2_vocabulary(["dog", "café"]))
    assert list(read_vocabulary(path).words) == [*SPECIAL_WORDS, "dog", "café"]


@settings(max_examples=150, deadline=None)
@given(content=st.binary(max_size=200) | st.binary(max_size=200).map(lambda tail: PROTOCOL_2 + tail))
def test_random_bytes_give_no_other_error(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("random") / "file"
    path.write_bytes(content)
    with pytest.raises(CheckpointError):
        read_checkpoint(path)
    with pytest.raises(VocabularyError):
        read_vocabulary(path)


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
def test_a_truncated_checkpoint_is_refused_wherever_it_was_cut(tmp_path: Path, golden: Path, as_zip: bool) -> None:
    whole, path = checkpoint_bytes(tmp_path, golden, as_zip=as_zip), tmp_path / "cut.pth.tar"
    places = {*range(0, 64), *range(64, len(whole), max(1, len(whole) // 150)), len(whole) - 1}
    for place in sorted(places):
        path.write_bytes(whole[:place])
        with pytest.raises(CheckpointError, match="truncated or foreign"):
            read_checkpoint(path)


def test_a_truncated_vocabulary_is_refused_wherever_it_was_cut(tmp_path: Path) -> None:
    whole, path = python2_vocabulary(["dog", "café"]), tmp_path / "cut.pkl"
    for place in range(len(whole)):
        path.write_bytes(whole[:place])
        with pytest.raises(VocabularyError):
            read_vocabulary(path)


@settings(max_examples=150, deadline=None)
@given(place=st.integers(0, 4000), byte=st.integers(0, 255))
@example(place=363, byte=10)  # a tensor's name with a line end in it
def test_a_damaged_checkpoint_loads_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, small_checkpoint: bytes, place: int, byte: int
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "model.pth.tar"
    damaged = bytearray(small_checkpoint)
    damaged[place % len(damaged)] = byte
    path.write_bytes(damaged)
    try:
        read_checkpoint(path)
    except CheckpointError as error:
        assert is_one_sentence(error, path)


def test_a_zip_that_grows_when_it_is_read_is_refused_before_it_does(tmp_path: Path) -> None:
    stored, bomb = tmp_path / "stored.pth", tmp_path / "bomb.pth"
    torch.save({"model": [{"fc.weight": torch.zeros(4_000_000)}, {}], "opt": argparse.Namespace()}, stored)
    with zipfile.ZipFile(stored) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))
    assert bomb.stat().st_size < stored.stat().st_size / 100
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(bomb)


@pytest.mark.parametrize("number", [b"r\x00\x00\x00\x08", b"p134217728\n"], ids=["LONG_BINPUT", "PUT"])
def test_a_few_bytes_cannot_take_all_memory(tmp_path: Path, number: bytes) -> None:
    # Python's unpickler would fill a table of two gigabytes for this.
    path = tmp_path / "file.pkl"
    path.write_bytes(PROTOCOL_2 + b"}" + number + b".")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(VocabularyError, match=r"file\.pkl"):
        read_vocabulary(path)
    with pytest.raises(CheckpointError, match=r"file\.pkl"):
        read_checkpoint(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024, "kilobytes"


FOREIGN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a resnet": lambda _: torchvision.models.resnet18().state_dict(),
    "a resnet as one encoder": lambda good: good | {"model": [torchvision.models.resnet18().state_dict()] * 2},
    "a tensor": lambda _: torch.zeros(3),
    "a list": lambda good: [good],
    "nothing": lambda _: {},
    "no options": lambda good: {"model": good["model"]},
    "options that are a dict": lambda good: good | {"opt": vars(good["opt"])},
    "options that are None": lambda good: good | {"opt": None},
    "options that are empty": lambda good: good | {"opt": argparse.Namespace()},
    "an option of the wrong kind": lambda good: good | {"opt": changed(good["opt"], num_epochs="many")},
    "an option out of range": lambda good: good | {"opt": changed(good["opt"], learning_rate=-1.0)},
    "an infinite option": lambda good: good | {"opt": changed(good["opt"], num_epochs=float("inf"))},
    "a period of zero": lambda good: good | {"opt": changed(good["opt"], lr_update=0)},
    "one encoder": lambda good: good | {"model": good["model"][:1]},
    "encoders by name": lambda good: good | {"model": dict(zip("ab", good["model"], strict=True))},
    "a number for an encoder": lambda good: good | {"model": [3, good["model"][1]]},
    "a number for a tensor": lambda good: with_image(good, **{"fc.bias": 3}),
    "a key that is no text": lambda good: good | {"model": [{**good["model"][0], 3: torch.zeros(1)}, good["model"][1]]},
    "a tensor too many": lambda good: with_image(good, **{"fc2.weight": torch.zeros(3)}),
    "a tensor without dimensions": lambda good: with_image(good, **{"fc.weight": torch.tensor(1.0)}),
    "an empty tensor": lambda good: with_image(good, **{"fc.weight": torch.zeros(0, 0)}),
    "a kernel without a tap": lambda good: with_image(good, **{"Rs_GCN_1.g.weight": torch.zeros(3, 3, 0)}),
    "a vector for a matrix": lambda good: with_caption(good, **{"embed.weight": torch.zeros(3)}),
    "a sparse tensor": lambda good: with_image(good, **{"fc.weight": torch.eye(3).to_sparse()}),
    "a complex tensor": lambda good: with_image(good, **{"fc.weight": torch.eye(3, dtype=torch.complex64)}),
    "a tensor larger than the file": lambda good: with_image(
        good, **{"fc.weight": torch.zeros(1).expand(2**20, 2**20)}
    ),
}


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("make", FOREIGN.values(), ids=FOREIGN.keys())
def test_a_foreign_checkpoint_is_refused_in_one_sentence(
    tmp_path: Path, golden: Path, make: Callable[[dict[str, Any]], Any], as_zip: bool
) -> None:
    path = tmp_path / "foreign.pth.tar"
    torch.save(make(open_checkpoint(golden)), path, _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=r"foreign\.pth\.tar") as refusal:
        read_checkpoint(path)
    assert is_one_sentence(refusal.value, path)


@pytest.mark.parametrize("name", ["no_imgnorm", "use_abs", "measure", "max_violation", "margin", "lr_update"])
def test_a_missing_option_is_named(tmp_path: Path, golden: Path, name: str) -> None:
    content = open_checkpoint(golden)
    delattr(content["opt"], name)
    path = tmp_path / "model.pth.tar"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=rf"model\.pth\.tar is not .*'{name}'"):
        read_checkpoint(path)


@pytest.mark.parametrize("missing", ["fc.weight", "Rs_GCN_2.theta.weight", "img_rnn.weight_hh_l0", "bn.running_mean"])
def test_a_checkpoint_that_lacks_a_tensor_is_not_converted(
    tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str], missing: str
) -> None:
    content = open_checkpoint(golden)
    del content["model"][0][missing]
    torch.save(content, tmp_path / "model.pth.tar")
    assert convert(tmp_path, tmp_path / "model.pth.tar") == 2
    assert "model.pth.tar" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shape", [(64, 49), (65, 48), (64, 48, 2), (64,)])
def test_a_tensor_of_another_shape_is_not_converted(
    tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str], shape: tuple[int, ...]
) -> None:
    content = open_checkpoint(golden)
    content["model"][0]["Rs_GCN_1.w_g.weight".replace("w_g", "g")] = torch.zeros(shape)
    torch.save(content, tmp_path / "model.pth.tar")
    assert convert(tmp_path, tmp_path / "model.pth.tar") == 2
    assert "reasoning.0.w_g.weight" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# A float64 whose bytes are valid in no multi-byte encoding, one with a NUL, and one that is plain ASCII.
BEST_RSUMS = [431.7, 0.0, -1.9, struct.unpack("<d", b"abcdefgh")[0], struct.unpack("<d", bytes(range(0xF8, 0x100)))[0]]


@pytest.mark.parametrize("best_rsum", BEST_RSUMS)
def test_a_best_rsum_that_python_2_pickled_as_a_numpy_number_does_no_harm(
    tmp_path: Path, golden: Path, best_rsum: float
) -> None:
    source, path = golden / "f30k" / "checkpoint.pth.tar", tmp_path / "model.pth.tar"
    path.write_bytes(with_numpy_best_rsum(source.read_bytes(), best_rsum))
    ours, theirs = read_checkpoint(path), read_checkpoint(source)
    assert ours.config == theirs.config
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)


def numpy_option(options: argparse.Namespace) -> argparse.Namespace:
    """The options with every number as numpy holds it."""
    return changed(
        options,
        margin=np.float64(options.margin),
        grad_clip=np.float32(options.grad_clip),
        learning_rate=np.float64(options.learning_rate),
        num_epochs=np.int64(options.num_epochs),
        batch_size=np.int16(options.batch_size),
        use_abs=np.bool_(options.use_abs),
        measure=np.str_(options.measure),
    )


def in_parallel(part: dict[str, Any]) -> dict[str, Any]:
    return {f"module.{name}": tensor for name, tensor in part.items()}


def one_table(good: dict[str, Any]) -> dict[str, Any]:
    sides = zip(("img_enc", "txt_enc"), good["model"], strict=True)
    return {f"{side}.{name}": tensor for side, part in sides for name, tensor in part.items()}


def without_counters(part: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor for name, tensor in part.items() if "num_batches" not in name}


def as_parameters(part: dict[str, Any]) -> dict[str, Any]:
    return {name: torch.nn.Parameter(one) if one.is_floating_point() else one for name, one in part.items()}


VARIANTS: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
    "in parallel": lambda good: good | {"model": [in_parallel(part) for part in good["model"]]},
    "one part in parallel": lambda good: good | {"model": [in_parallel(good["model"][0]), good["model"][1]]},
    "as a tuple": lambda good: good | {"model": tuple(good["model"])},
    "one table": lambda good: good | {"model": one_table(good)},
    "one table in parallel": lambda good: good | {"model": in_parallel(one_table(good))},
    "parts in parallel in one table": lambda good: (
        good | {"model": {name.replace("enc.", "enc.module."): one for name, one in one_table(good).items()}}
    ),
    "encoders by their names": lambda good: (
        good | {"model": {"img_enc": good["model"][0], "txt_enc": good["model"][1]}}
    ),
    "a state_dict": lambda good: {"opt": good["opt"], "state_dict": in_parallel(one_table(good))},
    "wrapped": lambda good: {"epoch": 3, "model": good},
    "wrapped twice": lambda good: {"checkpoint": {"state_dict": good}},
    "numbers of numpy": lambda good: good | {"opt": numpy_option(good["opt"]), "best_rsum": np.float64(431.7)},
    "without counters": lambda good: good | {"model": [without_counters(part) for part in good["model"]]},
    "as parameters": lambda good: good | {"model": [as_parameters(part) for part in good["model"]]},
}


@pytest.mark.parametrize("as_zip", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("vary", VARIANTS.values(), ids=VARIANTS.keys())
def test_the_same_model_saved_otherwise_is_the_same_model(
    tmp_path: Path, golden: Path, vary: Callable[[dict[str, Any]], dict[str, Any]], as_zip: bool
) -> None:
    path = tmp_path / "model.pth.tar"
    torch.save(vary(open_checkpoint(golden)), path, _use_new_zipfile_serialization=as_zip)
    ours, theirs = read_checkpoint(path), read_checkpoint(golden / "f30k" / "checkpoint.pth.tar")
    assert ours.config == theirs.config
    assert ours.options == theirs.options
    counters = {name for name in theirs.weights if name.endswith("num_batches_tracked")}
    assert theirs.weights.keys() - counters <= ours.weights.keys() <= theirs.weights.keys()
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in ours.weights)


@pytest.mark.parametrize("loose", [np.float64(0.1), np.int64(7), np.str_("cosine"), np.bool_(True), np.float32(0.5)])
def test_a_number_of_numpy_is_that_number(tmp_path: Path, golden: Path, loose: Any) -> None:
    content = open_checkpoint(golden)
    content["opt"].loose = loose
    torch.save(content, tmp_path / "model.pth.tar")
    read = read_checkpoint(tmp_path / "model.pth.tar").options["loose"]
    assert (read, type(read)) == (loose.item(), type(loose.item()))


def test_a_checkpoint_in_place_of_a_model_names_the_command(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = golden / "f30k" / "checkpoint.pth.tar"
    with pytest.raises(CheckpointError, match=r"`vsrn convert .*checkpoint\.pth\.tar --vocab"):
        vsrn.load(checkpoint)
    for command in (
        ["evaluate", str(checkpoint), "--split", "test", "--data", "x"],
        ["export", str(checkpoint), "-o", "x"],
    ):
        assert run_command(command[0], command[1:]) == 2
        assert "`vsrn convert" in capsys.readouterr().err


def test_the_hand_written_number_is_what_python_2_would_have_written() -> None:
    for best_rsum in BEST_RSUMS:
        loaded = pickle.loads(PROTOCOL_2 + python2_float64(best_rsum) + b".", encoding="latin1")
        np.testing.assert_equal(loaded, np.float64(best_rsum))


@pytest.mark.parametrize("name", [*RECORDINGS, "f30k_gpu"])
def test_a_converted_model_gives_the_recorded_embeddings(tmp_path: Path, golden: Path, name: str) -> None:
    recorded = dict(np.load(golden / name.removesuffix("_gpu") / "reference.npz"))
    assert convert(tmp_path, golden / name / "checkpoint.pth.tar") == 0
    stored = read_model(tmp_path / "out")
    with torch.no_grad():
        images = stored.model.image_encoder(torch.from_numpy(recorded["images"])).embeddings
        captions = stored.model.caption_encoder(*map(torch.from_numpy, (recorded["captions"], recorded["lengths"])))
    np.testing.assert_allclose(images.numpy(), recorded["image_embeddings"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(captions.numpy(), recorded["caption_embeddings"], rtol=0, atol=1e-5)
    assert stored.model.captioner is None
    assert stored.vocabulary == Vocabulary(fifty_seven_words())


@pytest.mark.parametrize("name", RECORDINGS)
def test_a_captioner_converted_with_its_model_writes_the_recorded_captions(
    tmp_path: Path, golden: Path, name: str
) -> None:
    recorded = dict(np.load(golden / name / "reference.npz"))
    folder = golden / name
    assert convert(tmp_path, folder / "checkpoint.pth.tar", "--captioner", str(folder / "captioner.pth")) == 0
    captioner = read_model(tmp_path / "out").model.captioner
    assert captioner is not None
    words, scores = greedy(
        captioner, torch.from_numpy(recorded["reasoned_regions"]), recorded["greedy_caption"].shape[1]
    )
    np.testing.assert_array_equal(words.numpy(), recorded["greedy_caption"])
    np.testing.assert_allclose(scores.numpy(), recorded["greedy_logprobs"], rtol=0, atol=1e-5)


def test_scans_json_vocabulary_serves_a_conversion_too(tmp_path: Path, golden: Path) -> None:
    vocab = tmp_path / "vocab.json"
    vocab.write_text('{"idx2word": {' + ", ".join(f'"{i}": "{w}"' for i, w in enumerate(fifty_seven_words())) + "}}")
    assert convert(tmp_path, golden / "f30k" / "checkpoint.pth.tar", vocab=vocab) == 0
    assert list(read_model(tmp_path / "out").vocabulary.words) == fifty_seven_words()


def test_a_vocabulary_of_another_size_is_refused_with_both_sizes(
    tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    vocab = tmp_path / "other.pkl"
    vocab.write_bytes(python2_vocabulary([f"w{number}" for number in range(60)]))
    assert convert(tmp_path, golden / "f30k" / "checkpoint.pth.tar", vocab=vocab) == 2
    assert "other.pkl has 64 words" in (message := capsys.readouterr().err)
    assert "trained with 57" in message
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_a_model_or_a_run_is_left_alone(
    tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(tmp_path, golden / "f30k" / "checkpoint.pth.tar") == 0
    before = contents(tmp_path / "out")
    assert convert(tmp_path, golden / "coco" / "checkpoint.pth.tar") == 2
    assert "already holds a model" in capsys.readouterr().err
    assert contents(tmp_path / "out") == before

    shutil.rmtree(tmp_path / "out")
    (tmp_path / "out" / "state").mkdir(parents=True)
    (tmp_path / "out" / "config.toml").write_text("# of a run without a validation yet\n")
    assert convert(tmp_path, golden / "coco" / "checkpoint.pth.tar") == 2
    assert (tmp_path / "out" / "config.toml").read_text() == "# of a run without a validation yet\n"


def test_a_file_where_the_folder_should_be_is_named(
    tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").write_text("mine")
    assert convert(tmp_path, golden / "f30k" / "checkpoint.pth.tar") == 2
    assert str(tmp_path / "out") in capsys.readouterr().err
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("broken", ["checkpoint", "vocab", "captioner"])
def test_nothing_is_written_where_one_of_the_files_is_bad(
    tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str], broken: str
) -> None:
    files = {
        "checkpoint": golden / "f30k" / "checkpoint.pth.tar",
        "vocab": vocabulary_file(tmp_path),
        "captioner": golden / "f30k" / "captioner.pth",
    }
    bad = tmp_path / "bad-file"
    bad.write_bytes(files[broken].read_bytes()[:-300])
    files[broken] = bad
    assert convert(tmp_path, files["checkpoint"], "--captioner", str(files["captioner"]), vocab=files["vocab"]) == 2
    assert "bad-file" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def small_checkpoint(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> bytes:
    """A checkpoint of a few kilobytes, nearly all of it pickle, so that damage hits something."""
    content = open_checkpoint(golden)
    content["model"] = [{"fc.weight": torch.ones(2, 3), "fc.bias": torch.ones(2)}, {"embed.weight": torch.ones(4, 2)}]
    path = tmp_path_factory.mktemp("small") / "model.pth.tar"
    torch.save(content, path, _use_new_zipfile_serialization=False)
    return path.read_bytes()


def convert(folder: Path, checkpoint: Path, *options: str, vocab: Path | None = None) -> int:
    """`vsrn convert` into folder/out."""
    vocab = vocab or vocabulary_file(folder)
    return run_command("convert", [str(checkpoint), "--vocab", str(vocab), "-o", str(folder / "out"), *options])


def vocabulary_file(folder: Path) -> Path:
    path = folder / "vocab.pkl"
    path.write_bytes(python2_vocabulary(fifty_seven_words()[4:]))
    return path


def fifty_seven_words() -> list[str]:
    return [*SPECIAL_WORDS, *(f"word{number}" for number in range(NUM_WORDS - 4))]


def python2_vocabulary(words: list[str]) -> bytes:
    """The bytes that Python 2 wrote for the original's vocabulary: strings as raw bytes."""
    all_words = [*SPECIAL_WORDS, *words]
    items = b"".join(b"J" + struct.pack("<i", number) + python2_string(word) for number, word in enumerate(all_words))
    return PROTOCOL_2 + b"cvocab\nVocabulary\n)\x81}" + python2_string("idx2word") + b"}(" + items + b"usb."


def python2_string(text: str) -> bytes:
    """SHORT_BINSTRING, which Python 3 can read and not write."""
    encoded = text.encode()
    return b"U" + bytes([len(encoded)]) + encoded


def python2_float64(number: float) -> bytes:
    """What Python 2 and numpy 1 wrote for a float64, without the protocol before and the stop after."""
    dtype = b"cnumpy\ndtype\n(U\x02f8K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    return b"cnumpy.core.multiarray\nscalar\n(" + dtype + b"U\x08" + struct.pack("<d", number) + b"tR"


def with_numpy_best_rsum(checkpoint: bytes, best_rsum: float) -> bytes:
    """The checkpoint with its `best_rsum` replaced, in the bytes, by one as numpy pickles it."""
    key = python2_string("best_rsum")
    value = checkpoint.index(key) + len(key)
    # LONG_BINPUT and its number.
    assert checkpoint[value : value + 1] == b"r"
    value += 5
    assert checkpoint[value : value + 1] == b"G", "a float: one opcode and eight bytes"
    return checkpoint[:value] + python2_float64(best_rsum) + checkpoint[value + 9 :]


def open_checkpoint(golden: Path) -> dict[str, Any]:
    """A recorded checkpoint as the 2019 code held it, to be changed and saved again."""
    with torch.serialization.safe_globals([argparse.Namespace]):
        content: dict[str, Any] = torch.load(golden / "f30k" / "checkpoint.pth.tar", weights_only=True)
    return {**content, "model": [dict(part) for part in content["model"]]}


def checkpoint_bytes(folder: Path, golden: Path, *, as_zip: bool) -> bytes:
    path = folder / "whole.pth.tar"
    torch.save(open_checkpoint(golden), path, _use_new_zipfile_serialization=as_zip)
    return path.read_bytes()


def changed(options: argparse.Namespace, **changes: Any) -> argparse.Namespace:
    return argparse.Namespace(**{**vars(options), **changes})


def with_image(content: dict[str, Any], **tensors: Any) -> dict[str, Any]:
    return content | {"model": [content["model"][0] | tensors, content["model"][1]]}


def with_caption(content: dict[str, Any], **tensors: Any) -> dict[str, Any]:
    return content | {"model": [content["model"][0], content["model"][1] | tensors]}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def is_one_sentence(error: Exception, path: Path) -> bool:
    message = str(error)
    return message.startswith(str(path)) and message.endswith(".") and "\n" not in message and len(message) < 400
