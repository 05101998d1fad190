"""Text encoders of Hugging Face, `model.text_encoder = "hf:NAME"`: small ones with random weights, in folders."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from colours import FEATURE_DIM, Colours, save_photo
from listening import listening
from safetensors.torch import load_file, save_file
from text_models import LONGEST, edit_config, make_text_model
from training_runs import assert_same_run, train
from worlds import make_store

import vsrn
from vsrn.config import (
    CaptionerConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    TextConfig,
    TrainConfig,
    check_config,
    config_to_toml,
    read_config,
)
from vsrn.data.region_store import StoreInfo
from vsrn.data.splits import open_split
from vsrn.data.vocabulary import END, START, UNK, SubwordVocabulary, read_vocabulary
from vsrn.encoders.export import export_onnx
from vsrn.encoders.torch_backend import TorchEncoder
from vsrn.errors import CheckpointError, ConfigError, VocabularyError
from vsrn.metrics import FloatArray
from vsrn.model.pretrained_text import read_source
from vsrn.model.registry import build_model
from vsrn.model.saved import StoredModel, model_fingerprint, read_model
from vsrn.search.build import update_index
from vsrn.training.run import prepare_run

transformers = pytest.importorskip("transformers")

CAPTIONS = ["a red dog runs", "Boat!", "a small TREES sleeps a blue bird sings", ""]
KINDS = ["bert", "distilbert", "roberta", "clip"]
NO_CAPTIONER = CaptionerConfig(enabled=False)
PLAIN = TextConfig()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("data") / "store", {"train": 40, "dev": 12, "test": 10})


def config_of(store: Path, folder: Path | str, text: TextConfig = PLAIN, **model: Any) -> Config:
    """A config that trains in a moment: 3 epochs of 5 steps."""
    fields: dict[str, Any] = {
        "joint_dim": 16,
        "caption_aggregator": "gpo",
        "captioner": NO_CAPTIONER,
        "reasoning_layers": 1,
    } | model
    recipe = TrainConfig(
        batch_size=16, epochs=3, learning_rate=5e-3, learning_rate_drop=[2], validate_every=4, loggers=[], device="cpu"
    )
    named = ModelConfig(text_encoder=f"hf:{folder}", text=text, **fields)
    return Config(DataConfig(path=str(store)), named, LossConfig(), recipe)


def fresh(config: Config, run: Path) -> Any:
    """The text encoder with which a run starts, in evaluation mode, and its vocabulary."""
    prepared = prepare_run(config, run, resume=False)
    encoder: Any = prepared.model.caption_encoder
    return encoder.eval(), prepared.vocabulary


def published_states(folder: Path, caption: str) -> FloatArray:
    """(T, H) the last hidden states that transformers itself gives for a caption."""
    model = transformers.AutoModel.from_pretrained(folder).eval()
    model = getattr(model, "text_model", model)
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    ids = torch.tensor([tokenizer(caption, padding=False, truncation=False)["input_ids"]])
    with torch.inference_mode():
        states: torch.Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return states[0].numpy()


@pytest.mark.parametrize("kind", KINDS)
def test_its_states_are_those_that_transformers_gives(kind: str, store: Path, tmp_path: Path) -> None:
    folder = make_text_model(tmp_path / "text", kind)
    encoder, vocabulary = fresh(config_of(store, folder), tmp_path / "run")
    tokens = [vocabulary.encode(caption) for caption in CAPTIONS]
    longest = max(map(len, tokens))
    padded = torch.tensor([ids + [0] * (longest - len(ids)) for ids in tokens])
    seen: list[Any] = []
    encoder.network.register_forward_hook(lambda _m, _i, output: seen.append(output.last_hidden_state))
    with torch.inference_mode():
        embeddings = encoder(padded, torch.tensor([len(ids) for ids in tokens]))
    for ids, states, caption in zip(tokens, seen[0], CAPTIONS, strict=True):
        assert (ids[0], ids[-1]) == (START, END)
        np.testing.assert_allclose(states[: len(ids)], published_states(folder, caption), atol=1e-5)
    np.testing.assert_allclose(embeddings.norm(dim=1), np.ones(4), atol=1e-6)


def test_a_caption_is_pooled_as_vse_infinity_and_vsrn_plus_plus_do_it(store: Path, tmp_path: Path) -> None:
    """Of a sorted word each channel has a weight; or graph convolutions and a GRU; or the last token's state."""
    folder = make_text_model(tmp_path / "text")
    states = torch.from_numpy(published_states(folder, CAPTIONS[0]))[None]
    for place, (aggregator, layers) in enumerate([("gpo", 0), ("gru", 2), ("last", 0)]):
        config = config_of(store, folder, TextConfig(reasoning_layers=layers), caption_aggregator=aggregator)
        encoder, vocabulary = fresh(config, tmp_path / f"run{place}")
        with torch.inference_mode():
            words = encoder.projection(states)
            for layer in encoder.reasoning:
                words = layer(words)
            pooled = words[:, -1] if aggregator == "last" else encoder.aggregator(words)
            found = encoder(torch.tensor([vocabulary.encode(CAPTIONS[0])]), torch.tensor([states.shape[1]]))
        assert len(encoder.reasoning) == layers
        np.testing.assert_allclose(found, pooled / pooled.norm(), atol=1e-5)


def test_captions_become_pieces_and_pieces_words(store: Path, tmp_path: Path) -> None:
    _, vocabulary = fresh(config_of(store, make_text_model(tmp_path / "text")), tmp_path / "run")
    pieces = [vocabulary.words[place] for place in vocabulary.encode("A boat, trees")]
    assert pieces == ["<start>", "a", "bo", "##at", "<unk>", "tree", "##s", "<end>"]
    # A special token that somebody types is none.
    typed = vocabulary.encode("a [SEP] [PAD] [CLS] \ud800")
    assert typed[1:-1] == [vocabulary.ids["a"], UNK, UNK, UNK, UNK]
    assert vocabulary.decode([*vocabulary.encode("a boat sleeps"), 9, 9]) == "a boat sleeps"
    assert vocabulary.unknown_words(["a boat of trees", "dgo"]) == ["of", "dgo"]
    assert vocabulary.unknown_share(["a boat of trees", "dgo dgo"]) == 0.5
    again = read_vocabulary(tmp_path / "run")
    assert isinstance(again, SubwordVocabulary)
    assert again == vocabulary
    assert again.fingerprint == vocabulary.fingerprint
    assert again.fingerprint != replace(again, tokenizer=again.tokenizer.replace("true", "false")).fingerprint


@pytest.mark.parametrize("model", [{}, {"captioner": CaptionerConfig(hidden_dim=8, word_dim=8)}, {"kind": "vsepp"}])
def test_a_run_goes_on_bit_for_bit_and_needs_its_source_no_more(
    model: dict[str, Any], store: Path, tmp_path: Path
) -> None:
    if "kind" in model:
        model |= {"reasoning_layers": ModelConfig().reasoning_layers}
    folder = make_text_model(tmp_path / "text")
    config = config_of(store, folder, TextConfig(frozen_epochs=1), **model)
    train(config, tmp_path / "whole")
    train(config, tmp_path / "halves", stop_after=3)
    train(config, tmp_path / "thirds", stop_after=8)
    folder.rename(tmp_path / "moved")
    for run in ("halves", "thirds"):
        assert train(config, tmp_path / run, resume=True).finished
        assert_same_run(tmp_path / "whole", tmp_path / run)
    loaded = vsrn.load(tmp_path / "whole")
    split = open_split(store, "test")
    assert loaded.encode_captions(CAPTIONS).shape == (4, 16)
    assert np.isfinite(loaded.encode_split(split).captions).all()
    saved = loaded.save_pretrained(tmp_path / "saved")
    np.testing.assert_array_equal(vsrn.load(saved).encode_captions(CAPTIONS), loaded.encode_captions(CAPTIONS))
    assert vsrn.load(saved).fingerprint == loaded.fingerprint
    assert str(tmp_path) not in (saved / "config.toml").read_text()
    # Another run may start from its weights, also without the source.
    other = replace(config, train=replace(config.train, init_from=str(tmp_path / "whole")))
    prepared = prepare_run(other, tmp_path / "other", resume=False)
    ours, theirs = prepared.model.state_dict(), read_model(tmp_path / "whole").model.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def weights_after(config: Config, run: Path, steps: int) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of the text encoder before the first step, and after some."""
    fresh_one, _ = fresh(config, run.with_name(f"{run.name}-fresh"))
    before: dict[str, torch.Tensor] = fresh_one.state_dict()
    train(replace(config, train=replace(config.train, max_steps=steps, validate_every=steps)), run)
    held = load_file(run / "model.safetensors")
    return before, {name: held[f"caption_encoder.{name}"] for name in before}


def test_frozen_epochs_keep_its_weights_and_later_ones_change_them(store: Path, tmp_path: Path) -> None:
    folder = make_text_model(tmp_path / "text")
    config = config_of(store, folder, TextConfig(frozen_epochs=1))
    for steps, frozen in ((5, True), (6, False)):
        before, after = weights_after(config, tmp_path / f"run{steps}", steps)
        network = [name for name in before if name.startswith("network.")]
        same = {name: torch.equal(before[name], after[name]) for name in before}
        assert all(same[name] for name in network) == frozen
        assert not same["projection.weight"]
    always = config_of(store, folder, TextConfig(frozen_epochs=3))
    notes = prepare_run(always, tmp_path / "always", resume=False).notes
    assert any("model.text.frozen_epochs 3 lasts to the last of 3 epochs" in note for note in notes)


def test_its_weights_have_a_learning_rate_of_their_own(store: Path, tmp_path: Path) -> None:
    """Adam's first step moves a weight by the learning rate, where its gradient is far from 0."""
    config = config_of(store, make_text_model(tmp_path / "text"))
    config = replace(config, train=replace(config.train, text_learning_rate_factor=0.02, gradient_clip=0.0))
    before, after = weights_after(config, tmp_path / "run", 1)
    moved = {
        name: float((after[name] - before[name]).abs().max()) for name in before if before[name].is_floating_point()
    }
    assert moved["projection.weight"] == pytest.approx(5e-3, rel=1e-3)
    assert moved["network.encoder.layer.0.output.dense.weight"] == pytest.approx(1e-4, rel=1e-2)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["learning_rate"] for row in rows if "learning_rate" in row] == [5e-3]


@pytest.mark.parametrize(
    ("kind", "aggregator"),
    [("bert", "gpo"), ("bert", "gru"), ("distilbert", "mean"), ("roberta", "gpo"), ("clip", "last")],
)
def test_an_export_gives_the_same_without_torch_and_transformers(
    kind: str, aggregator: str, store: Path, tmp_path: Path
) -> None:
    folder = make_text_model(tmp_path / "text", kind)
    text = TextConfig(reasoning_layers=1 if aggregator == "gru" else 0)
    config = config_of(store, folder, text, caption_aggregator=aggregator)
    train(replace(config, train=replace(config.train, max_steps=2)), tmp_path / "run")
    stored = read_model(tmp_path / "run")
    export_onnx(stored, tmp_path / "onnx")
    by_torch, by_onnx = vsrn.load(tmp_path / "run"), vsrn.load(tmp_path / "onnx")
    long = [*CAPTIONS, " ".join(["dog"] * (LONGEST + 5))]
    np.testing.assert_allclose(by_onnx.encode_captions(long), by_torch.encode_captions(long), atol=1e-5)
    assert by_onnx.fingerprint == by_torch.fingerprint == model_fingerprint(stored)
    features = open_split(store, "test").read_images(np.arange(10))[0]
    np.testing.assert_allclose(by_onnx.compare(features, None, long), by_torch.compare(features, None, long), atol=1e-5)
    program = (
        f"import sys, vsrn; print(vsrn.load({str(tmp_path / 'onnx')!r}).encode_captions(['a red dog']).shape);"
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["(1, 16)", "[]"]


def test_what_brings_code_or_pickles_is_refused(store: Path, tmp_path: Path) -> None:
    whole = make_text_model(tmp_path / "text")
    config = config_of(store, whole)

    def refused(match: str, hostile: Path, kind: type[Exception] = ConfigError) -> None:
        with pytest.raises(kind, match=match) as said:
            prepare_run(config_of(store, hostile), tmp_path / "run", resume=False)
        assert str(said.value).isprintable()
        assert not (tmp_path / "run").exists()

    def copy(name: str, **fields: object) -> Path:
        folder = make_text_model(tmp_path / name)
        edit_config(folder, **fields)
        return folder

    code = "open('ran', 'w')"
    mapped = copy("mapped", auto_map={"AutoModel": "modeling.Model", "AutoConfig": "modeling.Config"})
    (mapped / "modeling.py").write_text(code)
    refused(r"names code to run \(auto_map\), and no code of a model runs here", mapped)
    refused(r"names code to run \(attn_implementation\)", copy("kernel", attn_implementation="someone/kernel"))
    refused(r"is of the kind 'gpt2'; a text encoder is one of bert, ", copy("gpt", model_type="gpt2"))
    refused(r"has hidden_size = 1099511627776, which is out of range", copy("large", hidden_size=2**40))
    refused(r"has hidden_act = .__import__", copy("act", hidden_act="__import__('os')"))
    refused(r"cannot be built \(ValueError: ", copy("heads", num_attention_heads=5))
    refused("or has relative positions", copy("relative", position_embedding_type="relative_key"))
    refused("does not fit the network: it has in another shape", copy("other", intermediate_size=44), CheckpointError)

    pickled = copy("pickled")
    tensors = load_file(pickled / "model.safetensors")
    (pickled / "model.safetensors").unlink()
    torch.save(tensors, pickled / "pytorch_model.bin")
    refused(r"names a folder without model\.safetensors; no other form is read", pickled)
    (pickled / "model.safetensors").write_bytes((pickled / "pytorch_model.bin").read_bytes())
    refused("is not a readable safetensors file", pickled, CheckpointError)

    broken = copy("broken")
    (broken / "tokenizer.json").write_text("{}")
    refused(r"tokenizer\.json: the tokenizer cannot be read", broken)
    refused("is neither a folder nor a name on the hub", tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="wants a name, as in"):
        prepare_run(config_of(store, ""), tmp_path / "run", resume=False)
    assert not Path("ran").exists()
    assert fresh(config, tmp_path / "run")[0].kind == "bert"


def test_a_strangers_run_is_opened_by_its_sizes_alone(store: Path, tmp_path: Path) -> None:
    config = config_of(store, make_text_model(tmp_path / "text"))
    train(replace(config, train=replace(config.train, max_steps=1)), tmp_path / "run")
    kept = read_config(tmp_path / "run/config.toml")
    sizes = json.loads(kept.model.text.architecture)
    for changed, match in (
        ({"model_type": "gpt2"}, "is of the kind 'gpt2'"),
        ({"num_hidden_layers": 10_000}, "num_hidden_layers = 10000, which is out of range"),
        # It takes no memory before the weights are seen not to fit.
        ({"hidden_size": 2**20, "intermediate_size": 2**20}, "does not fit the network"),
        (None, "model.text.architecture is no JSON"),
    ):
        text = replace(kept.model.text, architecture="{" if changed is None else json.dumps(sizes | changed))
        hostile = replace(kept, model=replace(kept.model, text=text))
        (tmp_path / "run/config.toml").write_text(config_to_toml(hostile))
        with pytest.raises((ConfigError, CheckpointError), match=match):
            vsrn.load(tmp_path / "run")
    (tmp_path / "run/config.toml").write_text(config_to_toml(kept))
    page = json.loads((tmp_path / "run/vocabulary.json").read_text())
    (tmp_path / "run/vocabulary.json").write_text(json.dumps(page | {"tokenizer": page["tokenizer"][:-9]}))
    with pytest.raises((CheckpointError, VocabularyError)):
        vsrn.load(tmp_path / "run").encode_captions(["a dog"])


def test_nothing_is_downloaded_unless_a_person_says_so(store: Path, tmp_path: Path) -> None:
    config = config_of(store, Path("someone/model"))
    (tmp_path / "mine.toml").write_text(config_to_toml(config))
    with listening(tmp_path / "ear") as ear:
        arguments = [sys.executable, "-m", "vsrn", "train", "mine.toml", "-o", "run"]

        def run(*more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [*arguments, *more], cwd=tmp_path, env=ear.environment, capture_output=True, text=True, check=False
            )

        done = run()
        assert done.returncode == 2
        assert "the config.json of model.text_encoder 'hf:someone/model' is not on this machine" in done.stderr
        assert ear.heard == []
        done = run("--model.text.download", "True")
        assert done.returncode == 2
        assert "the hub did not serve the config.json of 'hf:someone/model'" in done.stderr
        assert any("huggingface.co" in line for line in ear.heard)
        assert "Traceback" not in done.stderr


def test_what_contradicts_it_is_said(store: Path, tmp_path: Path) -> None:
    config = config_of(store, tmp_path)
    for data in (replace(config.data, vocabulary="some.json"), replace(config.data, word_vectors="some.txt")):
        with pytest.raises(ConfigError, match="has its own words and layers; leave out data.vocabulary"):
            check_config(replace(config, data=data))
    with pytest.raises(ConfigError, match=r'model.text is for model.text_encoder = "hf:NAME"'):
        check_config(replace(config, model=replace(config.model, text_encoder="gru", text=TextConfig(frozen_epochs=1))))
    with pytest.raises(ConfigError, match=r'model.text_encoder is read by model.kind = "vsrn" and "vsepp" alone'):
        check_config(Config(model=ModelConfig(kind="scan", text_encoder="hf:x", captioner=NO_CAPTIONER)))


def test_early_names_and_heads_of_published_files_are_understood(store: Path, tmp_path: Path) -> None:
    """bert-base-uncased calls LayerNorm's scale gamma, begins every name with "bert." and has heads beside it."""
    folder = make_text_model(tmp_path / "text")
    wanted, vocabulary = fresh(config_of(store, folder), tmp_path / "one")
    tensors = load_file(folder / "model.safetensors")
    early = {
        "bert."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
        for name, tensor in tensors.items()
    } | {"cls.predictions.bias": torch.zeros(3), "bert.embeddings.position_ids": torch.arange(LONGEST)[None]}
    save_file(early, folder / "model.safetensors")
    found, _ = fresh(config_of(store, folder), tmp_path / "two")
    for name, tensor in wanted.network.state_dict().items():
        assert torch.equal(found.network.state_dict()[name], tensor)
    assert len(vocabulary) == len(found.network.get_input_embeddings().weight)


def test_photos_are_searched_by_its_words(tmp_path: Path) -> None:
    """An index takes the exported model along, tokenizer and all."""
    for number in range(4):
        save_photo(tmp_path / "photos" / f"{number}.png", number)
    config = config_of(tmp_path, make_text_model(tmp_path / "text"))
    source = read_source(config.model)
    text = replace(config.model.text, architecture=source.architecture)
    config = replace(config, model=replace(config.model, feature_dim=FEATURE_DIM, text=text))
    model = build_model(config, source.vocabulary)
    model.caption_encoder.load_first_weights()
    stored = StoredModel(config, source.vocabulary, model.eval(), StoreInfo("colours", Colours.fingerprint))
    encoder = TorchEncoder(stored, device="cpu")
    update_index(tmp_path / "photos", tmp_path / "idx", encoder)
    with vsrn.open_index(tmp_path / "idx") as index:
        hits = index.search("a boat sings", k=4)
    photos = [tmp_path / "photos" / f"{number}.png" for number in range(4)]
    wanted = dict(zip(photos, encoder.similarity(photos, "a boat sings")[:, 0], strict=True))
    assert [hit.score for hit in hits] == pytest.approx([wanted[hit.path] for hit in hits], abs=2e-3)
    assert len(hits) == 4
    why = encoder.explain(photos[0], "a boat sings")
    assert set(why.words) == {"boat", "sings"}
