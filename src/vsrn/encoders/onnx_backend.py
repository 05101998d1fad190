"""Exported encoders at work, run by onnxruntime alone: captions or regions in, vectors out, no torch.

The folder comes from `vsrn export RUN --onnx FOLDER`:

    image_encoder.onnx     features (B, N, F) float32, counts (B,) int64 real regions  -> embeddings (B, D),
                           and regions (B, N, D), what entered the aggregator, where they are asked for
    caption_encoder.onnx   tokens (B, T) int64, lengths (B,) int64 real tokens          -> embeddings (B, D)
    captioner.safetensors  weights of the captioner, where the model has one; torch runs it
    config.toml, vocabulary.json
    extractor.*            optional, weights of the extractor of regions (`vsrn.extractors.provenance`)
    export.json            `ExportInfo`, written last
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import msgspec
import numpy as np
import numpy.typing as npt
import onnxruntime

from vsrn.config import Config, RegionOrder, read_config
from vsrn.data.region_store import FloatArray, IntArray, RegionNames, StoreInfo
from vsrn.data.splits import at_places, back_in_place, in_order, reading_places
from vsrn.data.vocabulary import PAD, Vocabulary, read_vocabulary
from vsrn.errors import CheckpointError, ConfigError, DataError, VocabularyError
from vsrn.extractors.provenance import NAMES_FILE, kept_names, kept_weights
from vsrn.files import read_plain

IMAGE_FILE = "image_encoder.onnx"
CAPTION_FILE = "caption_encoder.onnx"
CONFIG_FILE = "config.toml"
VOCABULARY_FILE = "vocabulary.json"
INFO_FILE = "export.json"
# Name of the entry by which an encoder says which model it is from.
MODEL_KEY = "vsrn_model"
# Names of the encoders' outputs.
EMBEDDINGS, REGIONS = "embeddings", "regions"

IMAGES_PER_BATCH = 128
CAPTIONS_PER_BATCH = 256

StoredPrecision = Literal["fp32", "fp16", "int8"]
Inputs = dict[str, npt.NDArray[Any]]
Size = Annotated[int, msgspec.Meta(ge=1)]


class ExportInfo(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The `export.json` of an exported folder.

    model                  fingerprint of the model that the encoders were exported from: SHA-256 (hex) of its
                           weights, as float32, and of the settings that decide its embeddings beside them
    precision              how weights are stored; fp16 and int8 encoders keep the fingerprint of their model
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


class OnnxEncoder:
    """Encodes captions and regions with an exported model, as `vsrn.encoders.torch_backend.Encoder` does with torch.

    An int8 encoder scales its activations by the largest in a batch, so an image's embedding moves a little with the
    images encoded beside it; a fp32 one's does not. With one or two regions an image, int8 is not to be trusted where
    channels are normalised over the regions (COCO and Flickr30K paths): so few leave little but signs, and a rounding
    that turns one shows.

    >>> encoder = OnnxEncoder.load("exported/flickr8k")  # doctest: +SKIP
    >>> encoder.encode_captions(["two dogs play on a beach"]).shape  # doctest: +SKIP
    (1, 256)
    """

    def __init__(
        self,
        folder: Path,
        info: ExportInfo,
        config: Config,
        vocabulary: Vocabulary,
        threads: int,
        checksums: Mapping[str, str] | None = None,
    ) -> None:
        self.folder = folder
        self.checksums = checksums
        self.info = info
        self.config = config
        self.vocabulary = vocabulary
        self._threads = threads

    @classmethod
    def load(cls, folder: Path | str, threads: int = 0, checksums: Mapping[str, str] | None = None) -> Self:
        """Open an exported folder; each encoder itself is read when first used, so a text search reads one.

        threads    for each operation; 0 leaves it to onnxruntime
        checksums  of a folder inside an index: SHA-256 (hex) by file name, each compared before its file is used;
                   every file must then be a regular one. Where the mapping is empty no checksum is known. None for
                   any other folder.

        Raises `CheckpointError` where the folder is no export, is broken, or mixes parts of several models; for
        an encoder that is broken itself, at its first use.
        """
        folder = Path(folder)
        if checksums is not None:
            for name in (INFO_FILE, CONFIG_FILE, VOCABULARY_FILE):
                check_file(folder, name, checksums)
        info = _read_info(folder)
        try:
            config, vocabulary = read_config(folder / CONFIG_FILE), read_vocabulary(folder / VOCABULARY_FILE)
        except (ConfigError, VocabularyError) as error:
            raise CheckpointError(f"{folder} is not a whole export: {error}") from error
        if vocabulary.fingerprint != info.vocabulary:
            raise CheckpointError(
                f"{folder / VOCABULARY_FILE} is not the vocabulary that the model learned with; export it again."
            )
        if (config.model.joint_dim, config.model.feature_dim) != (info.joint_dim, info.feature_dim):
            raise CheckpointError(f"{folder / CONFIG_FILE} is not the config that was exported; export it again.")
        for name in (IMAGE_FILE, CAPTION_FILE):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder} is not a whole export: it has no {name}; export it again.")
        return cls(folder, info, config, vocabulary, threads, checksums)

    def file(self, name: str) -> Path:
        """The path of one of its files. Raises `CheckpointError` where `checksums` says that it is another."""
        if self.checksums is not None:
            check_file(self.folder, name, self.checksums)
        return self.folder / name

    def check(self) -> None:
        """Open both encoders. Raises `CheckpointError` where one is broken, or from another model."""
        assert self._image_session is not self._caption_session

    @property
    def similarity(self) -> str:
        """How an image and a caption embedding are compared: "cosine" or "order"."""
        return self.config.model.similarity

    @property
    def region_order(self) -> RegionOrder:
        """The order in which the model reads an image's regions."""
        return self.config.data.region_order

    @property
    def learned_from(self) -> StoreInfo:
        """Which extractor made the regions that the model learned from; empty where nobody recorded it."""
        return StoreInfo(self.info.extractor, self.info.extractor_fingerprint)

    @property
    def extractor_weights(self) -> Path | None:
        """That extractor's weights, where the folder has them; None where it comes with its own.

        Raises `CheckpointError` where `checksums` says that they are others.
        """
        weights = kept_weights(self.folder)
        if weights is not None and self.checksums is not None:
            for file in files_of(weights):
                self.file(file.relative_to(self.folder).as_posix())
        return weights

    @property
    def region_names(self) -> RegionNames:
        """What the regions that it learned from are called. Raises `CheckpointError` where that cannot be read."""
        if (self.folder / NAMES_FILE).is_symlink() or (self.folder / NAMES_FILE).exists():
            self.file(NAMES_FILE)
        return kept_names(self.folder)

    def encode_captions(self, captions: Sequence[str]) -> FloatArray:
        """Sentences -> (B, D) float32 embeddings; captions of like length are encoded together."""
        tokens = [np.array(self.vocabulary.encode(caption), dtype=np.int64) for caption in captions]
        by_length = np.argsort([-len(ids) for ids in tokens], kind="stable")
        embeddings = np.empty((len(tokens), self.info.joint_dim), dtype=np.float32)
        for places in _batches(by_length, CAPTIONS_PER_BATCH):
            embeddings[places] = self.encode_tokens(*_pad([tokens[place] for place in places]))
        return embeddings

    def encode_tokens(self, tokens: IntArray, lengths: IntArray) -> FloatArray:
        """(B, T) token ids, padded; (B,) real tokens of each, 1 to T -> (B, D) float32, in one batch.

        Raises `DataError` where the shapes, an id or a length are out of range.
        """
        tokens, lengths = np.asarray(tokens), np.asarray(lengths)
        _refuse_counts(lengths, tokens, "caption", "tokens", axes=2)
        if tokens.size and not 0 <= tokens.min() <= tokens.max() < len(self.vocabulary):
            raise DataError(f"a token id is outside the vocabulary, whose ids are 0 to {len(self.vocabulary) - 1}.")
        inputs: Inputs = {"tokens": tokens.astype(np.int64), "lengths": lengths.astype(np.int64)}
        return self._run(self._caption_session, CAPTION_FILE, inputs)[0]

    def encode_regions(self, features: FloatArray, counts: IntArray | None = None) -> FloatArray:
        """(B, N, F) region features, (B,) real regions of each or None for all -> (B, D) float32.

        Raises `DataError` where the regions are not of the size that the model reads.
        """
        features, counts = self._fitting(features, counts)
        features = in_order(features, counts, self.region_order)
        embeddings = np.empty((len(features), self.info.joint_dim), dtype=np.float32)
        for places in _batches(np.arange(len(features)), IMAGES_PER_BATCH):
            inputs = _region_inputs(features[places], counts[places])
            (embeddings[places],) = self._run(self._image_session, IMAGE_FILE, inputs)
        return embeddings

    def reasoned_regions(self, features: FloatArray, counts: IntArray | None = None) -> tuple[FloatArray, FloatArray]:
        """The same -> (B, D) float32 embeddings and (B, N, D) float32 reasoned regions, in one batch.

        Raises `DataError` as `encode_regions` does, and `CheckpointError` where the export is from before encoders
        gave their reasoned regions.
        """
        features, counts = self._fitting(features, counts)
        session = self._image_session
        if REGIONS not in {output.name for output in session.get_outputs()}:
            raise CheckpointError(
                f"{self.folder / IMAGE_FILE} gives embeddings only, being from an earlier version of vsrn; export the"
                " model again, and index with that export where this one is an index's own."
            )
        places = reading_places(features, counts, self.region_order)
        inputs = _region_inputs(at_places(features, places), counts)
        embeddings, regions = self._run(session, IMAGE_FILE, inputs, (EMBEDDINGS, REGIONS))
        return embeddings, back_in_place(regions, places)

    def _fitting(self, features: FloatArray, counts: IntArray | None) -> tuple[FloatArray, IntArray]:
        """Features and counts that the encoder can read. Raises `DataError` where they are not."""
        features = np.asarray(features)
        if features.ndim != 3 or features.shape[2] != self.info.feature_dim:
            raise DataError(
                f"region features of shape {features.shape} do not fit: this model reads (images, regions,"
                f" {self.info.feature_dim}); extract the photos as its training data was."
            )
        counts = np.full(len(features), features.shape[1]) if counts is None else np.asarray(counts)
        _refuse_counts(counts, features, "image", "regions", axes=3)
        return features, counts

    @cached_property
    def _image_session(self) -> onnxruntime.InferenceSession:
        return self._open(IMAGE_FILE, {"features": self.info.feature_dim, "counts": None})

    @cached_property
    def _caption_session(self) -> onnxruntime.InferenceSession:
        return self._open(CAPTION_FILE, {"tokens": None, "lengths": None})

    def _open(self, name: str, inputs: dict[str, int | None]) -> onnxruntime.InferenceSession:
        """A session; `inputs` gives the last axis of each input, None where it is free."""
        path = self.file(name)
        try:
            session = onnxruntime.InferenceSession(path, _options(self._threads), providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's errors have no base of their own
            raise CheckpointError(
                f"{path} cannot be read by onnxruntime ({_first_line(error)}); export it again."
            ) from error
        if session.get_modelmeta().custom_metadata_map.get(MODEL_KEY) != self.info.model:
            raise CheckpointError(f"{path} is not from the model that {INFO_FILE} names; export it again.")
        sizes = {entry.name: _last_size(entry) for entry in session.get_inputs()}
        outputs = {entry.name: _last_size(entry) for entry in session.get_outputs()}
        fitting = {EMBEDDINGS: self.info.joint_dim}
        if sizes != inputs or outputs not in (fitting, fitting | {REGIONS: self.info.joint_dim}):
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
                f"{self.folder / name} cannot be run by onnxruntime ({_first_line(error)}); export it again."
            ) from error
        for output, values in zip(outputs, found, strict=True):
            if values.shape != wanted[output] or values.dtype != np.float32:
                raise CheckpointError(f"{self.folder / name} does not give one embedding a row; export it again.")
        return [np.asarray(values) for values in found]


def check_file(folder: Path, name: str, checksums: Mapping[str, str]) -> None:
    """Raise `CheckpointError` where a file of a model inside an index is not the one that the index was made with."""
    path = folder / name
    try:
        digest = hashlib.sha256(read_plain(path)).hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be used ({error.strerror}); {_PUT_BACK}") from error
    if checksums and checksums.get(name) != digest:
        raise CheckpointError(f"{path} is not the file that the index was made with; {_PUT_BACK}")


def files_of(weights: Path) -> list[Path]:
    """The files of an extractor's weights: the file itself, or everything in the folder but folders."""
    if weights.is_symlink() or not weights.is_dir():
        return [weights]
    return [path for path in sorted(weights.rglob("*")) if path.is_symlink() or not path.is_dir()]


_PUT_BACK = "`vsrn index PHOTOS -o INDEX --model MODEL`, with the model that the index was made by, puts it back."


def _read_info(folder: Path) -> ExportInfo:
    path = folder / INFO_FILE
    try:
        return msgspec.json.decode(path.read_bytes(), type=ExportInfo)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(
            f"{folder} is not an exported model: it has no {INFO_FILE}; make one with `vsrn export RUN --onnx FOLDER`."
        ) from error
    except (OSError, msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not what `vsrn export` writes ({error}); export the model again.") from error


def _options(threads: int) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Everything that goes wrong is raised, and said again by us in one sentence.
    options.log_severity_level = 4
    # Weights that only rest as int8 are widened once, when the model is read, not at every run.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    # An idle worker sleeps instead of spinning: the query path shares its cores with everything else.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _last_size(entry: onnxruntime.NodeArg) -> int | None:
    """The last axis of an input or output, None where it is free."""
    size = entry.shape[-1] if entry.shape else None
    return size if isinstance(size, int) else None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _region_inputs(features: FloatArray, counts: IntArray) -> Inputs:
    return {"features": features.astype(np.float32), "counts": counts.astype(np.int64)}


def _refuse_counts(counts: IntArray, padded: npt.NDArray[Any], what: str, of: str, axes: int) -> None:
    """Raise `DataError` where (B,) counts cannot be the real share of (B, N, ...) padded rows."""
    if padded.ndim != axes or counts.shape != padded.shape[:1]:
        raise DataError(
            f"{of} of shape {padded.shape} and counts of shape {counts.shape} do not fit; give one count per {what}."
        )
    if len(counts) and not 1 <= counts.min() <= counts.max() <= padded.shape[1]:
        raise DataError(f"every {what} must have 1 to {padded.shape[1]} {of}, since it is padded to that many.")


def _pad(tokens: Sequence[IntArray]) -> tuple[IntArray, IntArray]:
    """Token ids of B captions -> (B, T) padded with <pad>, and (B,) lengths."""
    lengths = np.array([len(ids) for ids in tokens])
    padded = np.full((len(tokens), lengths.max()), PAD, dtype=np.int64)
    for row, ids in enumerate(tokens):
        padded[row, : len(ids)] = ids
    return padded, lengths


def _batches(places: IntArray, size: int) -> Iterator[IntArray]:
    for first in range(0, len(places), size):
        yield places[first : first + size]
