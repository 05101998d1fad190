"""One run as one page: read, written, refused, and overridden from the command line."""

from __future__ import annotations

import dataclasses
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worlds import make_store

from vsrn.cli import run_command
from vsrn.config import (
    CaptionerConfig,
    Config,
    DataConfig,
    LossConfig,
    ModelConfig,
    TrainConfig,
    check_config,
    config_from_table,
    config_to_toml,
    read_config,
)
from vsrn.errors import ConfigError

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "src/vsrn/configs").rglob("*.toml"))

sizes = st.integers(1, 5000)
margins = st.floats(0, 1e9, allow_nan=False)
words = st.text(st.characters(codec="utf-8"), max_size=20)


@st.composite
def configs(draw: st.DrawFn) -> Config:
    epochs = draw(st.integers(1, 100))
    drops = draw(st.sets(st.integers(1, max(1, epochs - 1)), max_size=3)) if epochs > 1 else set()
    return Config(
        data=DataConfig(
            path=draw(words),
            held_out=draw(words),
            min_count=draw(sizes),
            region_order=draw(st.sampled_from(["stored", "reversed", "shuffled", "centre-in"])),
        ),
        model=ModelConfig(
            feature_dim=draw(st.none() | sizes),
            joint_dim=draw(sizes),
            reasoning_layers=draw(st.integers(0, 9)),
            aggregator=draw(st.sampled_from(["gru", "gru-mean", "gru-residual", "bigru", "mean", "gpo"])),
            caption_aggregator=draw(st.sampled_from(["last", "gpo"])),
            caption_bidirectional=draw(st.booleans()),
            normalisation=draw(st.sampled_from(["coco", "flickr30k", "none"])),
            image_norm=draw(st.booleans()),
            similarity=draw(st.sampled_from(["cosine", "order"])),
            captioner=CaptionerConfig(
                enabled=draw(st.booleans()),
                cell=draw(st.sampled_from(["gru", "lstm"])),
                dropout=draw(st.floats(0, 1, exclude_max=True)),
                max_tokens=draw(st.integers(3, 200)),
            ),
        ),
        loss=draw(
            st.one_of(
                st.builds(LossConfig, margin=margins, warm_up_epochs=st.integers(0, 9)),
                st.builds(LossConfig, margin=margins, negatives=st.just("all")),
                st.builds(LossConfig, matching=st.just("contrastive"), temperature=st.floats(1e-3, 10)),
            )
        ),
        train=TrainConfig(
            batch_size=draw(st.integers(2, 4096)),
            epochs=epochs,
            learning_rate=draw(st.floats(0, 10, exclude_min=True)),
            learning_rate_drop=sorted(drops),
            seed=draw(st.integers(0, 2**31)),
            precision=draw(st.sampled_from(["fp32", "bf16"])),
            drop_regions=draw(st.floats(0, 1)),
        ),
    )


@settings(max_examples=100, deadline=None)
@given(config=configs())
def test_what_is_written_reads_back_equal(tmp_path_factory: pytest.TempPathFactory, config: Config) -> None:
    path = tmp_path_factory.mktemp("config") / "config.toml"
    path.write_bytes(config_to_toml(config).encode())
    assert read_config(path) == config
    # And by a plain TOML reader, field for field.
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    assert table["train"]["learning_rate"] == config.train.learning_rate
    assert table["model"]["captioner"]["max_tokens"] == config.model.captioner.max_tokens
    assert table["model"].get("feature_dim") == config.model.feature_dim


def test_an_empty_file_is_the_paper_on_coco(tmp_path: Path) -> None:
    path = tmp_path / "empty.toml"
    path.write_text("")
    config = read_config(path)
    assert config == Config()
    assert (config.model.joint_dim, config.model.reasoning_layers, config.train.batch_size) == (2048, 4, 128)
    assert (config.train.learning_rate, config.train.learning_rate_drop, config.train.epochs) == (2e-4, [15], 30)
    assert (config.train.gradient_clip, config.loss.margin, config.model.captioner.max_tokens) == (2.0, 0.2, 60)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_of_the_repository_reads_and_says_how_to_run_it(path: Path) -> None:
    config = read_config(path)
    stated = tomllib.loads(path.read_text(encoding="utf-8"))
    assert flat(stated).items() <= flat(dataclasses.asdict(config)).items()
    header = path.read_text(encoding="utf-8").partition("\n[")[0]
    assert f"vsrn train {path.relative_to(ROOT / 'src/vsrn/configs').with_suffix('').as_posix()}" in header


def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in table.items():
        fields |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: repr(value)}
    return fields


UNKNOWN = {
    "tran": ("[tran]\nepochs = 3", "there is no field tran. Did you mean 'train'?"),
    "a field outside its section": ("batch_size = 3", "no field batch_size. Did you mean 'train.batch_size'?"),
    "a section's slip": ("[train]\nbacth_size = 3", "no field train.bacth_size. Did you mean 'train.batch_size'?"),
    "a nested slip": (
        "[model.captioner]\nhiden_dim = 3",
        "no field model.captioner.hiden_dim. Did you mean 'model.captioner.hidden_dim'?",
    ),
    "a slip of a section's name": ("[model.captoiner]\ncell = 'gru'", "Did you mean 'model.captioner'?"),
    "a field of another section": ("[train]\nmargin = 0.1", "no field train.margin. Did you mean 'loss.margin'?"),
    "a field of a deeper section": ("[model]\nhidden_dim = 3", "Did you mean 'model.captioner.hidden_dim'?"),
    "a field of a higher section": ("[model.captioner]\nbatch_size = 3", "Did you mean 'train.batch_size'?"),
    "american spelling": ("[model]\nnormalization = 'coco'", "Did you mean 'model.normalisation'?"),
    "nothing like it": (
        "[loss]\nzzz = 1",
        "no field loss.zzz. It has loss.matching, loss.temperature, loss.margin, loss.negatives, loss.warm_up_epochs,"
        " loss.mask_same_image.",
    ),
}


@pytest.mark.parametrize(("text", "says"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_an_unknown_field_names_the_nearest_right_one(tmp_path: Path, text: str, says: str) -> None:
    assert says in refusal(tmp_path, text)


ILL_TYPED = {
    "train.epochs": "[train]\nepochs = 'many'",
    "train.batch_size": "[train]\nbatch_size = 3.5",
    "train.learning_rate": "[train]\nlearning_rate = '2e-4'",
    "train.learning_rate_drop": "[train]\nlearning_rate_drop = 15",
    "train.learning_rate_drop[1]": "[train]\nlearning_rate_drop = [1, 'two']",
    "model.image_norm": "[model]\nimage_norm = 1",
    "model.captioner": "[model]\ncaptioner = true",
    "model.captioner.enabled": "[model.captioner]\nenabled = 'yes'",
    "data.path": "[data]\npath = 3",
    "train": "train = 3",
}


@pytest.mark.parametrize(("field", "text"), ILL_TYPED.items(), ids=ILL_TYPED.keys())
def test_an_ill_typed_field_is_named(tmp_path: Path, field: str, text: str) -> None:
    assert f"config.toml: {field}: Expected" in refusal(tmp_path, text)


@pytest.mark.parametrize(
    ("text", "choices"),
    [
        ("[model]\nnormalisation = 'f30k'", "coco, flickr30k, none"),
        ("[model.captioner]\ncell = 'rnn'", "gru, lstm"),
        ("[loss]\nnegatives = 'hard'", "hardest, all"),
        ("[model.scan]\naggregation = 'avg'", "logsumexp, mean, max, sum"),
        ("[data]\nregion_order = 'random'", "stored, reversed, shuffled, centre-out, centre-in"),
    ],
)
def test_a_word_that_is_no_choice_is_answered_by_the_choices(tmp_path: Path, text: str, choices: str) -> None:
    assert f"It is one of {choices}." in refusal(tmp_path, text)


CONTRADICTIONS = {
    "model.joint_dim must be at least 1": "[model]\njoint_dim = 0",
    "model.feature_dim": "[model]\nfeature_dim = 0",
    "model.reasoning_layers": "[model]\nreasoning_layers = -1",
    "model.captioner.hidden_dim must": "[model.captioner]\nhidden_dim = 0",
    "model.captioner.dropout": "[model.captioner]\ndropout = 1.0",
    "model.captioner.max_tokens": "[model.captioner]\nmax_tokens = 2",
    "loss.margin": "[loss]\nmargin = -0.1",
    "loss.margin must": "[loss]\nmargin = inf",
    "loss.warm_up_epochs must": "[loss]\nwarm_up_epochs = -1",
    "loss.temperature must": "[loss]\ntemperature = 0",
    "loss.warm_up_epochs and loss.negatives are for": '[loss]\nmatching = "contrastive"\nwarm_up_epochs = 2',
    "loss.warm_up_epochs leads": '[loss]\nwarm_up_epochs = 2\nnegatives = "all"',
    "train.batch_size": "[train]\nbatch_size = 1",
    "train.epochs": "[train]\nepochs = 0\nlearning_rate_drop = []",
    "train.learning_rate": "[train]\nlearning_rate = 0",
    "train.learning_rate must": "[train]\nlearning_rate = nan",
    "train.learning_rate must be finite": "[train]\nlearning_rate = inf",
    "train.gradient_clip": "[train]\ngradient_clip = -1",
    "train.validate_every": "[train]\nvalidate_every = -1",
    "model.reasoning_layers is read by": "[model]\nkind = 'scan'\nreasoning_layers = 2",
    "model.similarity is read by": "[model]\nkind = 'scan'\nsimilarity = 'order'",
    "model.captioner is read by": "[model]\nkind = 'scan'\n[model.captioner]\nhidden_dim = 8",
    "model.scan is read by": "[model.scan]\naggregation = 'mean'",
    "model.scan.inverse_temperature": "[model]\nkind = 'scan'\n[model.scan]\ninverse_temperature = 0.0",
    "model.scan.logsumexp_factor": "[model]\nkind = 'scan'\n[model.scan]\nlogsumexp_factor = inf",
    "train.drop_regions": "[train]\ndrop_regions = -0.1",
    "train.drop_regions must": "[train]\ndrop_regions = 1.5",
    "model.network is read by": "[model.network]\nname = 'vgg19'",
    "model.aggregator is read by": "[model]\nkind = 'vsepp'\naggregator = 'mean'",
    "model.network.crop_size": "[model]\nkind = 'vsepp'\n[model.network]\nname = 'vgg19'\ncrop_size = 257",
    "model.network.smallest_crop": "[model]\nkind = 'vsepp'\n[model.network]\nname = 'vgg19'\nsmallest_crop = 0.0",
    "data.path": "[model]\nkind = 'vsepp'\n[model.network]\nname = 'vgg19'\n[data]\npath = 'store'",
    "data.region_order": "[model]\nkind = 'vsepp'\n[model.network]\nname = 'vgg19'\n[train]\ndrop_regions = 0.2",
    "go together; name both": "[model]\nkind = 'vsepp'\n[model.network]\nname = 'vgg19'\n[data]\nphotos = 'photos'",
    "data.photos and data.annotations are for": "[data]\nphotos = 'photos'\nannotations = 'a.json'",
    "data.min_count": "[data]\nmin_count = 0",
    "train.learning_rate_drop must be rising": "[train]\nlearning_rate_drop = [20, 10]",
    "train.learning_rate_drop must be rising epochs": "[train]\nlearning_rate_drop = [10, 10]",
    "train.learning_rate_drop[0] must be at least 1": "[train]\nlearning_rate_drop = [0]",
    "train.init_from brings the vectors": "[train]\ninit_from = 'runs/a'\n[data]\nword_vectors = 'glove.txt'",
    "train.loggers[0]: Expected": "[train]\nloggers = [3]",
    "train.schedule": "[train]\nschedule = 'linear'",
}


@pytest.mark.parametrize(("says", "text"), CONTRADICTIONS.items(), ids=CONTRADICTIONS.keys())
def test_a_field_out_of_range_or_in_contradiction_is_named(tmp_path: Path, says: str, text: str) -> None:
    message = refusal(tmp_path, text)
    assert message.startswith(str(tmp_path / "config.toml"))
    assert says in message


@pytest.mark.parametrize("content", [b"[train", b"epochs = ", b"\xff\xfe", b"a = " + b"[" * 50_000, b"[a]\n[a]"])
def test_what_is_no_toml_is_refused_naming_the_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.toml cannot be read as TOML"):
        read_config(path)


def test_a_missing_config_names_the_examples(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no config .*none\.toml; `vsrn configs` lists"):
        read_config(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path)


@settings(max_examples=100, deadline=None)
@given(
    table=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers()),
        lambda values: st.dictionaries(
            st.sampled_from(["data", "model", "captioner", "train", "epochs", "cell", "path", "x"]), values, max_size=4
        ),
        max_leaves=8,
    ).filter(lambda table: isinstance(table, dict))
)
def test_any_table_is_a_config_or_a_config_error(table: dict[str, Any]) -> None:
    try:
        config = config_from_table(table)
    except ConfigError as error:
        assert str(error).startswith("the config: ")
    else:
        assert flat({k: v for k, v in table.items() if v != {}}).keys() <= flat(dataclasses.asdict(config)).keys()


def test_the_command_line_overrides_the_file_and_the_file_the_defaults(tmp_path: Path) -> None:
    path = tiny_config(tmp_path)
    options = ["--train.epochs", "1", "--train.learning-rate-drop", "--loss.margin", "0.3", "--model.joint-dim", "6"]
    options += ["--model.image-norm", "False", "--model.captioner.enabled", "False", "--train.seed", "5"]
    assert run_command("train", [str(path), "-o", str(tmp_path / "run"), *options]) == 0
    asked, got = read_config(path), read_config(tmp_path / "run" / "config.toml")
    train = dataclasses.replace(asked.train, epochs=1, learning_rate_drop=[], seed=5)
    model = dataclasses.replace(asked.model, feature_dim=got.model.feature_dim, joint_dim=6, image_norm=False)
    model = dataclasses.replace(model, captioner=dataclasses.replace(asked.model.captioner, enabled=False))
    assert got == dataclasses.replace(asked, train=train, model=model, loss=LossConfig(margin=0.3))


def test_a_contradiction_on_the_command_line_starts_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command("train", [str(tiny_config(tmp_path)), "-o", str(tmp_path / "run"), "--loss.margin", "-1"]) == 2
    assert "loss.margin must be at least 0" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_named_first_is_not_silently_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tiny_config(tmp_path)
    arguments = ["-o", str(tmp_path / "run"), "--data.path", read_config(path).data.path, str(path)]
    assert run_command("train", arguments) == 2
    assert f"name the config first: vsrn train {path}" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_check_config_accepts_the_defaults() -> None:
    check_config(Config())


def refusal(folder: Path, text: str) -> str:
    path = folder / "config.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as refused:
        read_config(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def tiny_config(folder: Path) -> Path:
    """A config that trains in a moment."""
    store = make_store(folder / "store", {"train": 8, "dev": 4})
    path = folder / "tiny.toml"
    config = Config(
        data=DataConfig(path=str(store), min_count=1),
        model=ModelConfig(
            joint_dim=8, word_dim=4, reasoning_layers=1, captioner=CaptionerConfig(hidden_dim=4, word_dim=4)
        ),
        train=TrainConfig(batch_size=4, epochs=2, learning_rate_drop=[1], device="cpu"),
    )
    path.write_text(config_to_toml(config))
    return path


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("[train]\nepochs = " + "9" * 100_000, "cannot be read as TOML: a number in it has thousands of digits"),
        ("[train]\nepochs = 0x" + "f" * 5_000, "train.epochs is beyond the 64 bits that TOML allows"),
        ("[train]\nseed = " + "9" * 20, "train.seed is beyond the 64 bits that TOML allows"),
        ("[train]\nlearning_rate_drop = [0x" + "f" * 5_000 + "]", "train.learning_rate_drop is beyond the 64 bits"),
        ("[train]\nlearning_rate = 0x" + "f" * 5_000, "train.learning_rate is beyond the 64 bits"),
        ("[train]\nseed = -1", "train.seed must be at least 0"),
        ("[model]\njoint_dim = 1000000000000", "model.joint_dim must be at most 1,048,576"),
        ("[model]\ncaption_layers = 1000000000", "model.caption_layers must be at most 100"),
        ("x = " + "[" * 100_000, "cannot be read as TOML"),
    ],
    ids=["digits", "hex", "seed", "list", "float", "negative seed", "size", "layers", "nesting"],
)
def test_a_hostile_config_is_one_sentence(
    text: str, complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.toml").write_text(text)
    assert run_command("train", [str(tmp_path / "config.toml")]) == 2
    said = capsys.readouterr().err
    assert complaint in said
    assert said.startswith("error: ")
    assert len(said.splitlines()) == 1
    assert len(said) < 300 + len(str(tmp_path))
