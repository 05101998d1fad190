"""A published SCAN checkpoint, made from the recorded weights in its format, converts and scores as recorded."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vsrn.cli import run_command
from vsrn.config import ScanConfig
from vsrn.convert.checkpoint import read_checkpoint
from vsrn.model.saved import read_any_model
from vsrn.model.scan import SCAN, similarities

OPTIONS: dict[str, Any] = {
    "margin": 0.2,
    "num_epochs": 30,
    "batch_size": 128,
    "word_dim": 20,
    "embed_size": 48,
    "grad_clip": 2.0,
    "num_layers": 1,
    "learning_rate": 0.0002,
    "lr_update": 15,
    "val_step": 500,
    "max_violation": True,
    "img_dim": 40,
    "no_imgnorm": False,
    "no_txtnorm": False,
    "raw_feature_norm": "clipped_l2norm",
    "agg_func": "LogSumExp",
    "cross_attn": "t2i",
    "precomp_enc_type": "basic",
    "bi_gru": True,
    "lambda_lse": 6.0,
    "lambda_softmax": 9.0,
}


def convert(folder: Path, golden: Path, capsys: pytest.CaptureFixture[str], **options: Any) -> tuple[int, str]:
    content = torch.load(golden / "scan" / "weights.pth", weights_only=True)
    content |= {"opt": argparse.Namespace(**OPTIONS | options), "epoch": 9, "best_rsum": 400.0, "Eiters": 100}
    torch.save(content, folder / "scan.pth.tar", _use_new_zipfile_serialization=False)
    words = ["<pad>", "<start>", "<end>", "<unk>", *(f"w{number}" for number in range(57))]
    ids = ", ".join(f'"{place}": "{word}"' for place, word in enumerate(words))
    (folder / "vocab.json").write_text('{"idx2word": {' + ids + "}}")
    arguments = [str(folder / "scan.pth.tar"), "--vocab", str(folder / "vocab.json"), "-o", str(folder / "out")]
    return run_command("convert", arguments), capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "config", "recorded"),
    [
        ({}, ScanConfig(), "scores_t2i_LogSumExp_clipped_l2norm"),
        (
            {"cross_attn": "i2t", "agg_func": "Mean", "raw_feature_norm": "softmax", "lambda_softmax": 4},
            ScanConfig("image_to_text", "softmax", 4.0, "mean", 6.0),
            "scores_i2t_Mean_softmax",
        ),
    ],
)
def test_a_converted_scan_gives_the_recorded_scores(
    tmp_path: Path,
    golden: Path,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    config: ScanConfig,
    recorded: str,
) -> None:
    assert convert(tmp_path, golden, capsys, **options)[0] == 0
    stored, reference = read_any_model(tmp_path / "out"), np.load(golden / "scan" / "reference.npz")
    assert isinstance(stored.model, SCAN)
    assert stored.config.model.scan == config
    assert stored.config.train.learning_rate_drop == [15]
    images, captions, lengths = (torch.from_numpy(reference[name]) for name in ("images", "captions", "lengths"))
    with torch.no_grad():
        regions, words = stored.model.region_encoder(images).vectors, stored.model.word_encoder(captions, lengths)
        scores = similarities(regions, words, lengths, None, config)
    np.testing.assert_allclose(scores.numpy(), reference[recorded], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"raw_feature_norm": "l1norm"}, "clipped_l2norm, l2norm, softmax, clipped, no_norm"),
        ({"agg_func": "Median"}, "logsumexp, mean, max, sum"),
        ({"cross_attn": "both"}, "it has no 'both'"),
        ({"no_txtnorm": True}, "no unit length"),
        ({"lambda_softmax": 0}, "model.scan.inverse_temperature must be above 0"),
        ({"lambda_lse": None}, "float"),
    ],
)
def test_a_scan_that_ours_cannot_be_is_refused_and_nothing_is_written(
    tmp_path: Path, golden: Path, capsys: pytest.CaptureFixture[str], options: dict[str, Any], says: str
) -> None:
    status, error = convert(tmp_path, golden, capsys, **options)
    assert status == 2
    assert error.startswith(f"error: {tmp_path / 'scan.pth.tar'} ")
    assert says in error
    assert not (tmp_path / "out").exists()


def test_a_scan_in_parallel_is_the_same_model(tmp_path: Path, golden: Path) -> None:
    content = torch.load(golden / "scan" / "weights.pth", weights_only=True)
    content |= {"opt": argparse.Namespace(**OPTIONS)}
    torch.save(content, tmp_path / "plain.pth.tar")
    parts = [{f"module.{name}": one for name, one in part.items()} for part in content["model"]]
    options = argparse.Namespace(**OPTIONS | {"lambda_softmax": np.float64(9), "img_dim": np.int64(40)})
    torch.save(content | {"model": parts, "opt": options}, tmp_path / "parallel.pth.tar")
    theirs, ours = (read_checkpoint(tmp_path / f"{name}.pth.tar") for name in ("plain", "parallel"))
    assert ours.config == theirs.config
    assert ours.weights.keys() == theirs.weights.keys()
    assert all(torch.equal(ours.weights[name], theirs.weights[name]) for name in theirs.weights)
