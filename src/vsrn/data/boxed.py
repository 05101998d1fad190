"""AVIF and HEIC: photos in files of boxes, told by the brands in their first box."""

from __future__ import annotations

from typing import Literal

from vsrn.errors import PhotoError

# What files with HEVC inside, and with AV1, call themselves.
_HEVC = frozenset([b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"])
_AV1 = frozenset([b"avif", b"avis"])
# Of a first box, which may claim any length.
_MOST_BYTES = 400


def boxed_format(content: bytes) -> Literal["HEIF", "AVIF"] | None:
    """Pillow's name of a photo's format, by the bytes of its file; None where it is neither of the two."""
    if content[4:8] != b"ftyp":
        return None
    # The major brand, a version, and brands that it is compatible with, 4 bytes each.
    first = content[8 : min(int.from_bytes(content[:4]), _MOST_BYTES)]
    brands = {first[place : place + 4] for place in range(0, len(first), 4)}
    if brands & _HEVC and first[:4] not in _AV1:
        return "HEIF"
    return "AVIF" if brands & _AV1 else None


def register_heif(name: str) -> None:
    """Let Pillow read HEIC.

    name  what messages call the photo

    Raises `PhotoError` where the package of the extra `heif` is not installed.
    """
    try:
        import pillow_heif  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise PhotoError(
            f"{name} is HEIC, which needs the package pillow-heif; run `pip install '.[heif]'` in the checkout.",
            "unreadable",
        ) from error
    pillow_heif.register_heif_opener()
