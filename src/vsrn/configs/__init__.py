"""The configs that come with vsrn, by name: the paper's, those of its rivals, and those of our own comparison."""

from __future__ import annotations

from pathlib import Path

CONFIGS = Path(__file__).parent
CONFIG_FILE = "config.toml"


def config_names() -> list[str]:
    """Names of the packaged configs, such as "f30k" and "scan/coco", those of the first folder first."""
    paths = sorted(path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.toml"))
    return sorted((path.as_posix() for path in paths), key=lambda name: ("/" in name, name))


def find_config(name: Path | str) -> Path:
    """The TOML file that a person means: a file, the config of a run's folder, or a packaged config by its name.

    What is there under the name as a path goes before a packaged config. Where there is nothing, the path comes back
    as it was given, for whoever reads it to refuse.

    >>> find_config("scan/coco").relative_to(CONFIGS).as_posix()
    'scan/coco.toml'
    """
    path = Path(name)
    if path.is_dir() and (path / CONFIG_FILE).is_file():
        return path / CONFIG_FILE
    return find_packaged(path, ".toml")


def find_packaged(path: Path | str, ending: str = "") -> Path:
    """The path itself where it is a file, else the packaged file of this name, else the path.

    path    also as it was named while these files lay in the folder `configs/` of a checkout, as older runs have it
    ending  what may be left out of the name
    """
    path = Path(path)
    name = path.as_posix().removeprefix("configs/").removesuffix(ending) + ending
    packaged = {file.relative_to(CONFIGS).as_posix(): file for file in CONFIGS.rglob("*.t*") if file.is_file()}
    return path if path.is_file() else packaged.get(name, path)
