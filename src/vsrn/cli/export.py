"""`vsrn export`: a run -> the part of it that travels, or encoders that need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro

from vsrn.cli.options import Json, print_json
from vsrn.cli.progress import say
from vsrn.errors import ConfigError


def main(
    run: tyro.conf.Positional[Path],
    *,
    output: Annotated[Path | None, tyro.conf.arg(aliases=["-o"], metavar="FOLDER")] = None,
    onnx: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None,
    half: bool = False,
    json: Json = False,
) -> None:
    """Write what is needed to use a trained model, and nothing of its training.

    $ vsrn export runs/flickr8k -o flickr8k
    $ vsrn export runs/flickr8k --onnx flickr8k-onnx

    -o copies the weights, the vocabulary and the config. --onnx writes both encoders as ONNX files, which run without
    torch (it needs `pip install '.[onnx]'`); a captioner comes along and runs in torch.

    Args:
        run: A run, or a model made by `vsrn convert`.
        output: Folder to write the model to; it must not exist yet.
        onnx: Folder to write the ONNX encoders to; it must not exist yet.
        half: Store all weights of the ONNX folder as float16: half the size, computed in float32 all the same.
    """
    if output is None and onnx is None:
        raise ConfigError("say what to write: -o FOLDER for the model, --onnx FOLDER for encoders that need no torch.")
    if half and onnx is None:
        raise ConfigError("--half is for ONNX encoders; add --onnx FOLDER.")
    from vsrn.encoders.export import check_free, export_model, export_onnx
    from vsrn.model.saved import read_any_model, read_model

    for folder in filter(None, (output, onnx)):
        check_free(folder)
    # Files of any kind of model can be copied; only encoders with embeddings become ONNX.
    embedding = None if onnx is None else read_model(run)
    if output is not None:
        export_model(embedding or read_any_model(run), output)
    if onnx is not None and embedding is not None:
        export_onnx(embedding, onnx, "fp16" if half else "fp32")
    sizes = {str(folder): sum(file.stat().st_size for file in folder.iterdir()) for folder in (output, onnx) if folder}
    for name, size in sizes.items():
        say(f"{name}: {size / 1e6:,.1f} MB.")
    if json:
        print_json({"written": [{"folder": name, "bytes": size} for name, size in sizes.items()]})
