"""What a file is that Pillow does not know by itself, told by its first bytes, and the extra that reads it."""

from __future__ import annotations

import importlib
import importlib.util
import io
import posixpath
from collections.abc import Iterable
from types import ModuleType
from typing import Literal

from vsrn.errors import PhotoError, SkipKind

Kind = Literal["HEIF", "AVIF", "RAW", "VIDEO"]
Extra = Literal["HEIF", "RAW", "VIDEO"]

# Of each kind that needs an extra: the extra, its module and package, what messages call the file, and its `SkipKind`.
_EXTRAS: dict[Extra, tuple[str, str, str, str, SkipKind]] = {
    "HEIF": ("heif", "pillow_heif", "pillow-heif", "HEIC", "needs-heif"),
    "RAW": ("raw", "rawpy", "rawpy", "a camera's raw file", "needs-raw"),
    "VIDEO": ("video", "av", "av", "a video", "needs-video"),
}
# So much of a file's beginning tells its kind, but for raw files that are TIFF.
FIRST_BYTES = 400

# What files with HEVC inside, and with AV1, call themselves; sound alone; Canon's raw files.
_HEVC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_AV1 = {b"avif", b"avis"}
_SOUND = (b"M4A", b"M4B", b"M4P")
_CANON = b"crx "
# First boxes of QuickTime files that have no box of brands.
_QUICKTIME = {b"moov", b"mdat", b"wide", b"free", b"skip"}
_MATROSKA = b"\x1aE\xdf\xa3"
# Olympus, Panasonic, Fujifilm, Sigma, Minolta, and Canon before TIFF.
_RAW = (b"IIRO", b"IIRS", b"MMOR", b"IIU\0", b"FUJIFILMCCD-RAW", b"FOVb", b"\0MRM", b"II\x1a\0\0\0HEAPCCDR")
_RAW_ENDINGS = {
    *(".3fr", ".arw", ".cr2", ".cr3", ".crw", ".dcr", ".dng", ".erf", ".fff", ".gpr", ".iiq", ".kdc", ".mef"),
    *(".mos", ".mrw", ".nef", ".nrw", ".orf", ".pef", ".raf", ".rw2", ".rwl", ".sr2", ".srf", ".srw", ".x3f"),
}
# What a photo beside a raw file or beside a Live photo's video is called, and such a video.
_CAMERA_ENDINGS, _LIVE_ENDINGS = {".jpg", ".jpeg", ".heic", ".heif", ".hif"}, {".mov", ".mp4"}
# A file of such a name, or that begins like one of `_BEGINNINGS`, ought to be a photo.
PHOTO_ENDINGS = {
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"),
    *(".avif", ".heic", ".heif", ".hif"),
}
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a")
_TIFF = (b"II*\0", b"MM\0*")


def kind_of(content: bytes, ending: str = "") -> Kind | None:
    """Which of the kinds a file is, by its content; None for all others.

    content  the file, or its first `FIRST_BYTES`; of a TIFF all of it
    ending   of its name, with the dot; it tells raw files from other TIFFs
    """
    if content[4:8] == b"ftyp":
        return _by_brands(content)
    if content.startswith(_MATROSKA) or (content[:4] == b"RIFF" and content[8:12] == b"AVI "):
        return "VIDEO"
    if content[4:8] in _QUICKTIME and content[0] == 0:
        return "VIDEO"
    if content.startswith(_RAW) or (content.startswith(_TIFF) and _is_raw_tiff(content, ending)):
        return "RAW"
    return None


def _by_brands(content: bytes) -> Kind | None:
    """The kind of a file whose first box has the major brand, a version, and further brands, 4 bytes each."""
    first = content[8 : min(int.from_bytes(content[:4]), FIRST_BYTES)]
    brands = {first[place : place + 4] for place in range(0, len(first), 4)}
    if brands & _HEVC and first[:4] not in _AV1:
        return "HEIF"
    if brands & _AV1:
        return "AVIF"
    if first[:4] == _CANON:
        return "RAW"
    # A still whose codec is in none of these brands is nothing that we read.
    return None if first.startswith((*_SOUND, b"mif1", b"msf1")) else "VIDEO"


def _is_raw_tiff(content: bytes, ending: str) -> bool:
    """Whether a TIFF holds what a sensor gave: by its name, as a DNG, or as a camera's file with a preview first."""
    if ending.lower() in _RAW_ENDINGS or content[8:10] == b"CR":
        return True
    from PIL.ExifTags import Base  # noqa: PLC0415 - searches by a sentence do without Pillow
    from PIL.TiffImagePlugin import ImageFileDirectory_v2  # noqa: PLC0415 - as above

    try:
        stream = io.BytesIO(content)
        tags = ImageFileDirectory_v2(stream.read(8))
        stream.seek(tags.next)
        tags.load(stream)
        # 1 for a reduced picture.
        return Base.DNGVersion in tags or (Base.Make in tags and bool(int(tags.get(Base.NewSubfileType, 0)) & 1))
    except Exception:
        # Whatever is wrong with it, Pillow will say.
        return False


def ought_to_be_photo(content: bytes, ending: str) -> bool:
    """Whether a file that cannot be read is a damaged photo or video, by its name or how it begins."""
    if ending.lower() in PHOTO_ENDINGS or content.startswith(_BEGINNINGS):
        return True
    return kind_of(content) in ("HEIF", "AVIF", "VIDEO")


def parts_of_photos(ids: Iterable[str]) -> set[str]:
    """Of these ids, those of Live photos' videos and of cameras' raw files that lie beside a photo of the same name."""
    split = {photo_id: posixpath.splitext(photo_id) for photo_id in ids}
    stills = {stem for stem, ending in split.values() if ending.lower() in _CAMERA_ENDINGS}
    parts = _RAW_ENDINGS | _LIVE_ENDINGS
    return {photo_id for photo_id, (stem, ending) in split.items() if ending.lower() in parts and stem in stills}


def installed() -> list[str]:
    """The kinds whose extras are installed."""
    return [kind for kind, (_, module, *_) in _EXTRAS.items() if importlib.util.find_spec(module)]


def extra_module(kind: Extra, name: str) -> ModuleType:
    """The module that reads a kind of files. Raises `PhotoError`, naming the file `name`, where it is not installed."""
    extra, module, package, what, skip_kind = _EXTRAS[kind]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise PhotoError(
            f"{name} is {what}, which needs the package {package}; run `pip install '.[{extra}]'` in the checkout.",
            skip_kind,
        ) from error
