"""Imports go down only, and what a person waits for needs no torch."""

from __future__ import annotations

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import vsrn

PACKAGE = Path(vsrn.__file__).parent

# From the ground up: a module imports only from lines above its own, or from its own line.
ORDER = [
    "vsrn",
    "vsrn.errors",
    "vsrn.files",
    "vsrn.configs",
    "vsrn.other_names",
    "vsrn.config",
    "vsrn.metrics",
    "vsrn.onnx_files",
    "vsrn.tensors",
    "vsrn.devices",
    "vsrn.pretrained",
    "vsrn.data",
    "vsrn.extractors",
    "vsrn.model",
    "vsrn.encoders",
    "vsrn.training",
    "vsrn.search",
    "vsrn.evaluation",
    "vsrn.convert",
    "vsrn.toy",
    "vsrn.server",
    "vsrn.cli",
    "vsrn.__main__",
]
# What lies on disk and what a search by a sentence needs are there at once.
WITHOUT_TORCH = [
    "vsrn.errors",
    "vsrn.files",
    "vsrn.config",
    "vsrn.metrics",
    "vsrn.onnx_files",
    "vsrn.pretrained",
    "vsrn.data",
]
WITHOUT_PILLOW_TOO = [
    "vsrn.data.splits",
    "vsrn.encoders.onnx_backend",
    "vsrn.search.index",
    "vsrn.search.writer",
    "vsrn.server.running",
    "vsrn.cli",
    "vsrn.cli.options",
    "vsrn.cli.progress",
]

MODULES = {
    ".".join(["vsrn", *path.relative_to(PACKAGE).with_suffix("").parts]).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def line_of(module: str) -> int:
    """The line of ORDER that a module stands on: its own name's, or its nearest package's."""
    while module not in ORDER:
        module = module.rpartition(".")[0]
        assert module != "vsrn", "every module has a line of its own; only `import vsrn` stands on the first"
    return ORDER.index(module)


def imports_of(module: str, *, for_types_too: bool = True) -> set[str]:
    """Modules of ours that a module imports, at its top or inside a function."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    ignored = [] if for_types_too else [node for node in ast.walk(tree) if is_for_types_only(node)]
    hidden = {id(inner) for node in ignored for inner in ast.walk(node)}
    found = set()
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            assert node.module is not None
            # `from vsrn.a import b` means the module vsrn.a.b, or a name of the module vsrn.a.
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                found.add(dotted if dotted in MODULES else node.module)
    return {name for name in found if name in MODULES}


def is_for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_down_only(module: str) -> None:
    # The front door may name what is behind it, and loads none of it before it is asked to.
    if module == "vsrn":
        return
    above = {name for name in imports_of(module) if line_of(name) > line_of(module)}
    assert not above


def test_no_imports_go_round_in_a_circle() -> None:
    graph = {module: imports_of(module, for_types_too=False) - {module, "vsrn"} for module in MODULES}
    # Raises CycleError, naming the circle.
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) >= MODULES.keys()


def test_what_lies_on_disk_is_read_without_torch() -> None:
    ground = [module for module in MODULES if module.startswith(tuple(WITHOUT_TORCH))]
    assert loaded_by(f"import {', '.join(ground)}") <= {"PIL"}


def test_a_search_and_the_command_line_start_without_torch_and_pillow() -> None:
    assert loaded_by(f"import {', '.join(WITHOUT_PILLOW_TOO)}") == set()


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], [], ["trian"], ["train", "--help"], ["vocab", "-h"]])
def test_help_needs_no_torch(arguments: list[str]) -> None:
    program = f"from vsrn.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit:\n    pass"
    assert loaded_by(program) == set()


def test_a_mistake_in_a_config_is_told_without_waiting_for_torch(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text("[train]\nepochz = 3\n")
    arguments = ["train", str(tmp_path / "config.toml")]
    program = (
        f"from vsrn.cli import main\ntry:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 2"
    )
    assert loaded_by(program) == set()


def loaded_by(program: str) -> set[str]:
    """Heavy packages that a program loads in a fresh interpreter."""
    heavy = "{'torch', 'torchvision', 'timm', 'PIL', 'nltk', 'matplotlib', 'tensorboard'}"
    report = f"{program}\nimport sys\nprint('LOADED', *sorted({heavy} & set(sys.modules)), sep=' ')"
    run = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split()[1:])
