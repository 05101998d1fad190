"""An exported model at work, on the CPU and without torch, but for extractors other than a fine-tuned `grid`.

The folder comes from `vsrn export RUN --onnx FOLDER`; docs/data-formats.md lists its files, what they take and give. It
may also hold a `fit.json` (`vsrn.encoders.fit`).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime
from typing_extensions import override

from vsrn.config import read_config
from vsrn.data.region_store import StoreInfo
from vsrn.data.regions import RegionNames
from vsrn.data.vocabulary import PAD, read_vocabulary
from vsrn.encoders.backend import Features
from vsrn.encoders.base import Encoder
from vsrn.encoders.explain import ExplainView
from vsrn.encoders.fit import FIT_FILE, Fit, read_fit
from vsrn.encoders.inputs import size_of_batches, slices
from vsrn.errors import CheckpointError, ConfigError, VocabularyError
from vsrn.extractors.provenance import NAME, NAMES_FILE, carry_weights, kept_names, kept_weights
from vsrn.files import read_plain, write_atomically
from vsrn.metrics import Advance, FloatArray, IntArray
from vsrn.onnx_files import first_line, open_session

if TYPE_CHECKING:
    from vsrn.encoders.captioning import CaptionWriter

IMAGE_FILE = "image_encoder.onnx"
CAPTION_FILE = "caption_encoder.onnx"
CAPTIONER_FILE = "captioner.safetensors"
CONFIG_FILE = "config.toml"
VOCABULARY_FILE = "vocabulary.json"
INFO_FILE = "export.json"
# All of them but the extractor's weights, in the order of writing.
FILES = (CONFIG_FILE, VOCABULARY_FILE, IMAGE_FILE, CAPTION_FILE, CAPTIONER_FILE, NAMES_FILE, FIT_FILE, INFO_FILE)
# The metadata entry of an encoder that holds the fingerprint of its model.
MODEL_KEY = "vsrn_model"
# Names of the encoders' outputs.
EMBEDDINGS, REGIONS = "embeddings", "regions"

CAPTIONS_PER_BATCH = 256
_PUT_BACK = "`vsrn index PHOTOS -o INDEX --model MODEL`, with the model that the index was made by, puts it back."

StoredPrecision = Literal["fp32", "fp16"]
Inputs = dict[str, npt.NDArray[Any]]
Size = Annotated[int, msgspec.Meta(ge=1)]


class ExportInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `export.json` of an exported folder.

    model                  fingerprint of the model that the encoders were exported from: SHA-256 (hex) of its
                           weights, as float32, and of the settings that decide its embeddings beside them
    precision              how weights are stored; an fp16 export keeps the fingerprint of its model
    joint_dim              D, numbers per embedding
    feature_dim            F, numbers per region
    vocabulary             fingerprint of vocabulary.json
    extractor              what made the regions that the model learned from; empty where nobody recorded it
    extractor_fingerprint  SHA-256 (hex) of that extractor's weights and settings
    """

    model: str
    precision: StoredPrecision
    joint_dim: Size
    feature_dim: Size
    vocabulary: str
    extractor: str = ""
    extractor_fingerprint: str = ""
    format: Literal[1] = 1


class OnnxEncoder(Encoder):
    """An `Encoder` that runs an exported folder with onnxruntime, on the CPU, and its captioner in numpy.

    Its extractor runs in onnxruntime, where it is a fine-tuned `grid` on the CPU, or else in torch, on `device`.
    """

    main_file = INFO_FILE
    folder: Path

    def __init__(
        self, folder: Path | str, threads: int = 0, checksums: Mapping[str, str] | None = None, device: str = "auto"
    ) -> None:
        """Open an exported folder; each of its encoders is read when first used.

        threads    for each operation; 0 leaves it to onnxruntime
        checksums  of a folder inside an index, whose files must be regular ones: SHA-256 (hex) by file name, each
                   compared before its file is used, or an empty mapping where none is known; None for other folders
        device     where the extractor computes: `cpu`, `cuda`, `mps` or `auto`

        Raises `CheckpointError` where the folder is no export, is broken, or mixes parts of several models; for
        an encoder that is broken itself, at its first use.
        """
        self.folder, self.checksums, self._threads = Path(folder), checksums, threads
        self.info = _read_info(self.file(INFO_FILE))
        try:
            config, vocabulary = read_config(self.file(CONFIG_FILE)), read_vocabulary(self.file(VOCABULARY_FILE))
        except (ConfigError, VocabularyError) as error:
            raise CheckpointError(f"{folder} is not a whole export: {error}") from error
        if vocabulary.fingerprint != self.info.vocabulary:
            raise CheckpointError(
                f"{self.folder / VOCABULARY_FILE} is not the vocabulary that the model learned with; export it again."
            )
        if (config.model.joint_dim, config.model.feature_dim) != (self.info.joint_dim, self.info.feature_dim):
            raise CheckpointError(f"{self.folder / CONFIG_FILE} is not the config that was exported; export it again.")
        for name in (IMAGE_FILE, CAPTION_FILE):
            if not (self.folder / name).is_file():
                raise CheckpointError(f"{folder} is not a whole export: it has no {name}; export it again.")
        learned_from = StoreInfo(self.info.extractor, self.info.extractor_fingerprint)
        able = config.model.captioner.enabled and (self.folder / CAPTIONER_FILE).is_file()
        super().__init__(config, vocabulary, self.folder, device, learned_from, has_captioner=able)

    def file(self, name: str) -> Path:
        """The path of one of its files. Raises `CheckpointError` where `checksums` says that it is another."""
        path = self.folder / name
        if self.checksums is not None:
            try:
                digest = hashlib.sha256(read_plain(path)).hexdigest()
            except OSError as error:
                raise CheckpointError(f"{path} cannot be used ({error.strerror}); {_PUT_BACK}") from error
            if self.checksums and self.checksums.get(name) != digest:
                raise CheckpointError(f"{path} is not the file that the index was made with; {_PUT_BACK}")
        return path

    @cached_property
    def fit(self) -> Fit | None:
        """How likely a photo fits by its similarity; None where nobody measured it. Raises what `read_fit` raises."""
        there = os.path.lexists(self.folder / FIT_FILE)
        return read_fit(self.file(FIT_FILE), self.info.model) if there else None

    @override
    def check(self) -> None:
        assert self._image_session is not self._caption_session

    @override
    def write_files(self, folder: Path) -> set[str]:
        weights, written = self.extractor_weights, set[str]()
        if weights is not None:
            carry_weights(weights, folder)
            written.add(f"{NAME}{weights.suffix}")
        for name in FILES:
            if (self.folder / name).is_file():
                write_atomically(folder / name, self.file(name).read_bytes())
                written.add(name)
        return written

    @property
    @override
    def fingerprint(self) -> str:
        return self.info.model

    @property
    @override
    def extractor_weights(self) -> Path | None:
        weights = kept_weights(self.folder)
        for file in [] if weights is None else files_of(weights):
            self.file(file.relative_to(self.folder).as_posix())
        return weights

    @cached_property
    @override
    def caption_writer(self) -> CaptionWriter:
        from vsrn.encoders.plain_captioner import read_captioner  # noqa: PLC0415 - sentences do without

        if self.checksums is not None and self.config.model.captioner.enabled:
            self.file(CAPTIONER_FILE)
        label = {MODEL_KEY: self.info.model}
        return read_captioner(self.folder / CAPTIONER_FILE, self.config, self.vocabulary, label)

    def _kept_names(self) -> RegionNames:
        if os.path.lexists(self.folder / NAMES_FILE):
            self.file(NAMES_FILE)
        return kept_names(self.folder)

    def encode_tokens(self, tokens: IntArray, lengths: IntArray) -> FloatArray:
        """(B, T) token ids, padded; (B,) real tokens of each, 1 to T -> (B, D) float32, in one batch."""
        inputs: Inputs = {"tokens": tokens.astype(np.int64), "lengths": lengths.astype(np.int64)}
        return self._run(self._caption_session, CAPTION_FILE, inputs)[0]

    def _encode_tokens(self, tokens: Sequence[IntArray], advance: Advance, batch_size: int | None) -> FloatArray:
        # Captions of about one length share a batch, so that little of it is padding.
        order = np.argsort([-len(ids) for ids in tokens], kind="stable")
        embeddings = np.empty((len(tokens), self.info.joint_dim), dtype=np.float32)
        for part in slices(len(order), size_of_batches(batch_size, CAPTIONS_PER_BATCH)):
            batch = [tokens[place] for place in order[part]]
            padded = np.full((len(batch), len(batch[0])), PAD)
            for row, ids in zip(padded, batch, strict=True):
                row[: len(ids)] = ids
            embeddings[order[part]] = self.encode_tokens(padded, np.array([len(ids) for ids in batch]))
            advance(len(batch))
        return embeddings

    def _encode_regions(self, features: Features, counts: IntArray | None) -> FloatArray:
        return self._run(self._image_session, IMAGE_FILE, _region_inputs(features, counts))[0]

    def _reasoned_regions(self, features: Features, counts: IntArray | None) -> tuple[FloatArray, FloatArray]:
        session = self._image_session
        if not self._gives_regions:
            raise CheckpointError(
                f"{self.folder / IMAGE_FILE} gives embeddings only, being from an earlier version of vsrn; export the"
                " model again, and index with that export where this one is an index's own."
            )
        outputs = self._run(session, IMAGE_FILE, _region_inputs(features, counts), (EMBEDDINGS, REGIONS))
        return outputs[0], outputs[1]

    @property
    def _gives_regions(self) -> bool:
        """Whether the image encoder gives reasoned regions; those of earlier versions do not."""
        return REGIONS in {output.name for output in self._image_session.get_outputs()}

    @property
    @override
    def default_view(self) -> ExplainView:
        return super().default_view if self._gives_regions else "sentence"

    def __getstate__(self) -> dict[str, Any]:
        opened = ("_image_session", "_caption_session", "caption_writer")
        return {name: value for name, value in super().__getstate__().items() if name not in opened}

    @cached_property
    def _image_session(self) -> onnxruntime.InferenceSession:
        return self._open(IMAGE_FILE, {"features": self.info.feature_dim, "counts": None})

    @cached_property
    def _caption_session(self) -> onnxruntime.InferenceSession:
        return self._open(CAPTION_FILE, {"tokens": None, "lengths": None})

    def _open(self, name: str, inputs: dict[str, int | None]) -> onnxruntime.InferenceSession:
        """A session; `inputs` gives the last axis of each input, None where it is free."""
        path = self.file(name)
        session = open_session(path, path, self._threads)
        if session.get_modelmeta().custom_metadata_map.get(MODEL_KEY) != self.info.model:
            raise CheckpointError(f"{path} is not from the model that {INFO_FILE} names; export it again.")
        outputs, fitting = _last_sizes(session.get_outputs()), {EMBEDDINGS: self.info.joint_dim}
        fits = outputs in (fitting, fitting | {REGIONS: self.info.joint_dim})
        if not fits or _last_sizes(session.get_inputs()) != inputs:
            raise CheckpointError(f"{path} is not an encoder of the sizes that {INFO_FILE} names; export it again.")
        return session

    def _run(
        self, session: onnxruntime.InferenceSession, name: str, inputs: Inputs, outputs: Sequence[str] = (EMBEDDINGS,)
    ) -> list[FloatArray]:
        """One batch through an encoder: the outputs that are asked for, (B, D), and (B, N, D) for regions."""
        padded = next(iter(inputs.values()))
        wanted = {EMBEDDINGS: (len(padded), self.info.joint_dim), REGIONS: (*padded.shape[:2], self.info.joint_dim)}
        if not len(padded):
            return [np.empty(wanted[output], dtype=np.float32) for output in outputs]
        try:
            found = session.run(list(outputs), inputs)
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise CheckpointError(
                f"{self.folder / name} cannot be run by onnxruntime ({first_line(error)}); export it again."
            ) from error
        for output, values in zip(outputs, found, strict=True):
            if values.shape != wanted[output] or values.dtype != np.float32:
                raise CheckpointError(f"{self.folder / name} does not give one embedding a row; export it again.")
        return [np.asarray(values) for values in found]


def files_of(weights: Path) -> list[Path]:
    """The files of an extractor's weights: the file itself, or everything in the folder but folders."""
    if weights.is_symlink() or not weights.is_dir():
        return [weights]
    return [path for path in sorted(weights.rglob("*")) if path.is_symlink() or not path.is_dir()]


def _read_info(path: Path) -> ExportInfo:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ExportInfo)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{path.parent} is not an exported model: it has no {path.name}; make one with `vsrn export RUN --onnx"
            " FOLDER`."
        ) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not what `vsrn export` writes ({error}); export the model again.") from error


def _last_sizes(entries: Sequence[onnxruntime.NodeArg]) -> dict[str, int | None]:
    """The last axis of each input or output by its name, None where it is free."""
    last = {entry.name: entry.shape[-1] if entry.shape else None for entry in entries}
    return {name: size if isinstance(size, int) else None for name, size in last.items()}


def _region_inputs(features: Features, counts: IntArray | None) -> Inputs:
    counts = np.full(len(features), features.shape[1]) if counts is None else counts
    return {"features": features.astype(np.float32), "counts": counts.astype(np.int64)}
