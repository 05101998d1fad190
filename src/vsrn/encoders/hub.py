"""Models in folders and on Hugging Face's hub: written with a card, sent there, and fetched from there by name.

A hub is asked only for a name that a person typed, in `vsrn.load`, `Encoder.from_pretrained` or `push_to_hub`; a name
in a config, a run or an index never leads there. Of what lies there, the files of `FILES` are fetched and no others.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import msgspec

import vsrn
from vsrn.encoders.backend import BackEnd
from vsrn.errors import CheckpointError, one_line
from vsrn.files import write_atomically
from vsrn.pretrained import PACKAGED_MODELS, find_model

if TYPE_CHECKING:
    from vsrn.encoders.base import Encoder
    from vsrn.encoders.torch_backend import Precision

# Everything that a model's folder may hold. Those of one kind make the other kind's unreadable.
OF_RUNS, OF_EXPORTS = "model.safetensors", "export.json"
FILES = (
    *("config.toml", "vocabulary.json", "extractor.safetensors", "extractor.onnx"),
    *("extractor_names.json", "image_encoder.onnx", "caption_encoder.onnx", "captioner.safetensors", "fit.json"),
    *(OF_EXPORTS, OF_RUNS),
)
CARD_FILE, LICENCE_FILE, LOG_FILE, STATE = "README.md", "LICENSE", "metrics.jsonl", "state"
# A name that ends like this is a file's, mistyped, and nobody's on the hub.
_FILE_ENDINGS = (".pth", ".pt", ".tar", ".ckpt", ".safetensors", ".toml", ".json", ".onnx")
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


def fetch(
    name: Path | str,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: Path | str | None = None,
) -> Path:
    """The folder of a model that a person typed: one that is there, a packaged one's, or what the hub has.

    name  a folder or a packaged model's name, which go first; or "user/name" of the hub, unless a folder "user" is here
          or the name ends as a file's does
    revision, token, cache_dir  as `SharedEncoder.from_pretrained` takes them

    Raises `CheckpointError` where there is no such model, or the hub cannot give it.
    """
    typed = str(name)
    on_hub = isinstance(name, str) and _HUB_NAME.fullmatch(typed) and not Path(typed.partition("/")[0]).exists()
    if not on_hub or typed.endswith(_FILE_ENDINGS) or Path(typed).is_dir() or typed in PACKAGED_MODELS:
        return find_model(name)
    from huggingface_hub import snapshot_download  # noqa: PLC0415 - a local folder needs no hub

    wanted = [*FILES, LICENCE_FILE]
    with _asking(typed):
        found = snapshot_download(typed, revision=revision, token=token, cache_dir=cache_dir, allow_patterns=wanted)
    folder = Path(found)
    if not (folder / OF_RUNS).is_file() and not (folder / OF_EXPORTS).is_file():
        raise CheckpointError(f"'{typed}' on the hub is no model of vsrn: it has neither {OF_RUNS} nor {OF_EXPORTS}.")
    return folder


class SharedEncoder(BackEnd):
    """A model that is saved in folders and sent to hubs."""

    @classmethod
    def from_pretrained(
        cls,
        name: Path | str,
        *,
        revision: str | None = None,
        token: str | bool | None = None,
        cache_dir: Path | str | None = None,
        device: str = "auto",
        precision: Precision = "fp32",
    ) -> Encoder:
        """A model of a folder, of the package, or of Hugging Face's hub by its "user/name", ready to use.

        revision   branch, tag or commit on the hub; None for its main branch
        token      of the hub, for what is private; None for the one that `hf auth login` keeps
        cache_dir  where downloads are kept; None for the hub's own cache

        A folder goes first, also where only "user" is one. `device` and `precision` are those of `vsrn.load`. Raises
        what `vsrn.load` raises, and `CheckpointError` where the hub cannot give the model.
        """
        return vsrn.load(fetch(name, revision=revision, token=token, cache_dir=cache_dir), device, precision)

    def save_pretrained(self, folder: Path | str, name: str = "") -> Path:
        """Write the model as it is now to a folder that `vsrn.load` opens, over one that is there; gives the folder.

        name  "user/name" on the hub, for the card

        README.md becomes a model card with the numbers of the model's run, where they are known; a card that is there
        is kept. Paths of data are cut to their names.

        Raises `CheckpointError` where the folder is a run, or holds an export in place of a model or the reverse.
        """
        folder = Path(folder)
        if (folder / STATE).exists() or (folder.exists() and not folder.is_dir()):
            raise CheckpointError(f"{folder} is a run or a file; choose another folder to save the model in.")
        other = OF_EXPORTS if self.main_file == OF_RUNS else OF_RUNS
        if (folder / other).exists():
            raise CheckpointError(f"{folder} holds a model of the other kind (exported or not); choose another folder.")
        folder.mkdir(parents=True, exist_ok=True)
        for stale in {*FILES} - self.write_files(folder):
            (folder / stale).unlink(missing_ok=True)
        licence = self.folder / LICENCE_FILE if self.folder is not None else None
        if licence is not None and licence.is_file() and not (folder / LICENCE_FILE).exists():
            write_atomically(folder / LICENCE_FILE, licence.read_bytes())
        if not (folder / CARD_FILE).exists():
            write_atomically(folder / CARD_FILE, card(self, name).encode())
        return folder

    def push_to_hub(
        self,
        name: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        message: str = "Upload a model of vsrn",
    ) -> str:
        """Send the model as it is now to "user/name" of Hugging Face's hub; gives the address of the commit.

        private   whether a repository that is made for it is private; None for the user's own setting
        token     of the hub, with the right to write; None for the one that `hf auth login` keeps
        revision  branch to write to; None for the main one

        A card that is there is kept, and weights of an extractor that are a link to a large file stay here. Raises
        `CheckpointError` where the name is none of a hub or the hub refuses.
        """
        if not _HUB_NAME.fullmatch(name):
            raise CheckpointError(f"{name!r} is no name on the hub; write it as user/name.")
        from huggingface_hub import HfApi  # noqa: PLC0415 - only who sends a model needs the hub

        api = HfApi(token=token)
        with TemporaryDirectory() as temporary:
            folder = self.save_pretrained(temporary, name)
            sent = [file.name for file in folder.iterdir() if not file.is_symlink()]
            with _asking(name):
                api.create_repo(name, private=private, exist_ok=True)
                # A card that a person wrote there is kept.
                if api.file_exists(name, CARD_FILE, revision=revision):
                    sent.remove(CARD_FILE)
                commit = api.upload_folder(
                    repo_id=name,
                    folder_path=folder,
                    allow_patterns=sent,
                    delete_patterns=list(FILES),
                    revision=revision,
                    commit_message=message,
                )
        return str(commit.commit_url)


@contextlib.contextmanager
def _asking(name: str) -> Iterator[None]:
    """A context in which every error of the hub becomes a `CheckpointError` of one sentence."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError  # noqa: PLC0415

    try:
        yield
    except GatedRepoError as error:
        raise CheckpointError(f"'{name}' on the hub asks for consent first; give it on its page.") from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"there is no folder {name}, and the hub has no '{name}' for you; check the name, or give a token where it"
            " is private."
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(f"'{name}' on the hub has no such revision; name a branch, a tag or a commit.") from error
    except Exception as error:
        # Hubs fail in as many ways as networks do.
        fault = f"{type(error).__name__}: {one_line(error)}"
        raise CheckpointError(f"the hub did not serve '{name}' ({fault}).") from error


def card(encoder: BackEnd, name: str = "") -> str:
    """A model card: YAML head and Markdown, of the model's config and, where they are known, its run's own numbers."""
    model, best = encoder.config.model, validation_of(encoder)
    data = Path(encoder.config.data.path).name
    title = name.rpartition("/")[2] or f"{model.kind}-{model.joint_dim}"
    tags = ["vsrn", "image-text-retrieval", model.kind]
    head: dict[str, Any] = {"library_name": "vsrn", "pipeline_tag": "feature-extraction", "tags": tags}
    numbers = "No validation is recorded beside this model."
    if best is not None:
        measures = {
            f"{direction.replace('_', ' ')} R@{k}": best[direction][f"recall_at_{k}"]
            for direction in ("image_to_text", "text_to_image")
            for k in (1, 5, 10)
        } | {"rsum": best["rsum"]}
        metrics = [{"type": what, "value": value} for what, value in measures.items()]
        task, dataset = {"type": "image-text-retrieval"}, {"type": data, "name": data}
        head["model-index"] = [{"name": title, "results": [{"task": task, "dataset": dataset, "metrics": metrics}]}]
        rows = "".join(f"\n| {what} | {value} |" for what, value in measures.items())
        numbers = f"Best validation of its training run, on `{data}`:\n\n| measure | value |\n|---|---:|{rows}"
    # Every value of JSON is one of YAML.
    front = "\n".join(f"{key}: {msgspec.json.encode(value).decode()}" for key, value in head.items())
    learned = encoder.learned_from.extractor or "not recorded"
    writes = "It also writes captions." if encoder.has_captioner else "It has no captioner."
    paragraphs = [
        f"---\n{front}\n---",
        f"# {title}",
        f"An image-text matching model of kind `{model.kind}`: embeddings of {model.joint_dim} numbers, a vocabulary of"
        f" {len(encoder.vocabulary):,} words, regions of {model.feature_dim} numbers by the extractor `{learned}`."
        f" {writes} Its settings are in `config.toml`.",
        "## Use",
        f'```python\nimport vsrn\n\nmodel = vsrn.load("{name or "FOLDER"}")\n'
        'model.similarity(["beach.jpg"], ["two dogs play on a beach"])\n```',
        "## Numbers",
        numbers,
        f"Fingerprint of its weights: `{encoder.fingerprint}`.",
    ]
    return "\n\n".join(paragraphs) + "\n"


def validation_of(encoder: BackEnd) -> dict[str, Any] | None:
    """The best validation in the log of a model's run; None without one, or where the weights are others by now."""
    folder = encoder.folder
    if folder is None or not (folder / LOG_FILE).is_file():
        return None
    from vsrn.model.saved import model_fingerprint, read_any_model  # noqa: PLC0415 - takes torch along

    if model_fingerprint(read_any_model(folder)) != encoder.fingerprint:
        return None
    found = []
    for line in (folder / LOG_FILE).read_bytes().splitlines():
        try:
            found.append(msgspec.json.decode(line, type=dict[str, Any]).get("validation"))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            break
    return max((row for row in found if row), key=lambda row: float(row["rsum"]), default=None)
