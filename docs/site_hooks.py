"""What mkdocs needs to know of this repository: pages link to files outside `docs`, which the site brings along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
BROUGHT = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "benchmarks/**/*",
    "configs/**/*",
    "experiments/*.py",
    "src/vsrn/model/*.py",
    "src/vsrn/models/*/LICENSE",
)


def on_files(files: Files, config: Any) -> Files:
    """Add the files that pages link to, at the places that they have in the repository."""
    for pattern in BROUGHT:
        for path in sorted(ROOT.glob(pattern)):
            if path.is_file() and "__pycache__" not in path.parts:
                files.append(File.generated(config, str(path.relative_to(ROOT)), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Shorten links that climb out of `docs`, and lengthen those that lead into it: on the site both are one folder."""
    if page.file.abs_src_path and Path(page.file.abs_src_path).is_relative_to(ROOT / "docs"):
        depth = len(Path(page.file.src_uri).parent.parts)
        return markdown.replace("](" + "../" * (depth + 1), "](" + "../" * depth)
    return markdown.replace("](docs/", "](").replace("](../docs/", "](../")
