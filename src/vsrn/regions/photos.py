"""Photos from a stranger's disk: found, and decoded without trusting a byte of them.

find_photos("photos/")       every file under the folder, as (id, path)
decode_photo("beach.jpg")    one RGB picture, upright, or a `PhotoError` that says why not
read_photo("beach.jpg")      the same with the photo's size and date
"""

from __future__ import annotations

import io
import os
import re
import stat
import warnings
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from vsrn.errors import DataError, PhotoError
from vsrn.files import normal_name, printable

# Formats that Pillow decodes by itself: EPS and the like start other programs, so they stay out.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
MAX_PIXELS = 100_000_000
# An uncompressed RGB TIFF of that size, and a little more.
MAX_BYTES = 320_000_000
READ_TRIES = 3

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Orientations in which width and height change places.
_LYING = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_EXIF_IFD, _DATE_TAKEN, _DATE_CHANGED = 0x8769, 0x9003, 0x0132
_GREY_16_BIT = ("I;16", "I;16L", "I;16B", "I;16N")
_NOT_ONE_LINE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]|^\s|\s$")


@dataclass(frozen=True)
class PhotoFile:
    """A file that ought to be a photo.

    id       its path below the folder that was searched, with forward slashes, in Unicode's NFC form;
             a folder that cannot be listed has a slash at its end
    path     where to open it
    refusal  why it is not to be opened, for instance a link that leads out of the folder; None where it may be
    """

    id: str
    path: Path
    refusal: PhotoError | None = None


@dataclass(frozen=True)
class FileContent:
    """A file as it was at one moment: its bytes, and the status that was the same before and after reading them.

    modified_ns, changed_ns  times of the last change of its bytes, and of its bytes or status, in ns since 1970
    inode                    its number on its disk
    """

    content: bytes
    size: int
    modified_ns: int
    changed_ns: int
    inode: int


@dataclass(frozen=True)
class DecodedPhoto:
    """A photo's picture, and what its file says of it.

    pixels         8 bits a channel, RGB, upright; may be smaller than the photo
    width, height  of the photo itself, upright, in pixels
    taken          when, by the clock of the camera that says so in EXIF; None where nobody says
    """

    pixels: Image.Image
    width: int
    height: int
    taken: datetime | None


def find_photos(folder: Path | str, *, leave_out: Path | None = None, follow_links: bool = False) -> list[PhotoFile]:
    """Every file under `folder`, sorted by id; `leave_out` names a folder that is not searched.

    Only hidden files and hidden folders are passed over. What is not a photo is listed all the same,
    so that whoever decodes it can say so. Each real folder is searched once, whatever links lead to it.
    Raises `DataError` where the folder is missing, unreadable or empty.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}; name the folder that holds the photos.")
    searched = {_identity(leave_out)} if leave_out is not None and leave_out.is_dir() else set()
    photos: list[PhotoFile] = []
    folders = [folder]
    while folders:
        current = folders.pop()
        if _identity(current) in searched:
            continue
        searched.add(_identity(current))
        files, below = _list_folder(current)
        photos += [PhotoFile(photo_id(path.relative_to(folder)), path) for path in files]
        folders += reversed(below)
    if not photos:
        raise DataError(f"{folder} holds no files; name the folder that holds the photos.")
    return sorted(photos, key=lambda photo: photo.id)


def decode_photo(source: Path | bytes, *, max_pixels: int = MAX_PIXELS, target_size: int | None = None) -> Image.Image:
    """The picture of `read_photo` alone."""
    return read_photo(source, max_pixels=max_pixels, target_size=target_size).pixels


def read_file(path: Path) -> FileContent:
    """Read a whole file, again where it changes meanwhile. Raises `PhotoError` where that cannot be done."""
    name = printable(path)
    for _ in range(READ_TRIES):
        with _open_file(path, name) as file:
            before = os.fstat(file.fileno())
            if not stat.S_ISREG(before.st_mode):
                raise PhotoError(f"{name} is not a regular file; name an image file.", "unreadable")
            if before.st_size > MAX_BYTES:
                raise PhotoError(
                    f"{name} has {before.st_size:,} bytes, more than the {MAX_BYTES:,} allowed.", "too-large"
                )
            content = file.read(before.st_size + 1)
            after = os.fstat(file.fileno())
        if _moment(before) == _moment(after) and len(content) == before.st_size:
            return FileContent(content, before.st_size, before.st_mtime_ns, before.st_ctime_ns, before.st_ino)
    raise PhotoError(f"{name} keeps changing while it is read; run the command again later.", "unreadable")


def read_photo(
    source: Path | bytes, *, max_pixels: int = MAX_PIXELS, target_size: int | None = None, name: str | None = None
) -> DecodedPhoto:
    """Decode one photo into an RGB picture of 8 bits a channel, turned upright as its EXIF says.

    source       a path, or the bytes of the file
    max_pixels   photos that claim more are refused before any pixel is decoded
    target_size  the side, in pixels, that the caller is going to shrink to: a JPEG is then decoded at a
                 fraction of its size, though never below twice this side

    Transparency is laid on white, 16-bit and floating-point greys are scaled to 8 bits, an animation
    gives its first frame. Raises `PhotoError`, and nothing else, whatever the bytes are.

    Pillow's own warnings about odd files are switched off for the whole process: they name no file.
    """
    name = name or ("this photo" if isinstance(source, bytes) else printable(source))
    _silence_pillow()
    try:
        with Image.open(_open_regular(source, name), formats=FORMATS) as image:
            _refuse_bomb(image, name, max_pixels)
            width, height = image.size
            if target_size is not None:
                image.draft(None, (2 * target_size, 2 * target_size))
            image.load()
            # Pillow opens some files with a header that their pixels then outgrow (a frame of a GIF).
            _refuse_bomb(image, name, max_pixels)
            orientation, taken = _orientation_of(image), _date_of(image)
            turn = _UPRIGHT.get(orientation)
            photo = _to_rgb(image if turn is None else image.transpose(turn)).copy()
            photo.info.clear()  # what it says of orientation or transparency has been heeded
            return DecodedPhoto(photo, *((height, width) if orientation in _LYING else (width, height)), taken)
    except PhotoError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise PhotoError(f"{name} is not an image in a format vsrn reads ({known}); convert it.") from error
    except Image.DecompressionBombError as error:
        raise PhotoError(f"{name} claims far more than {max_pixels:,} pixels; shrink it first.") from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise PhotoError(f"{name} cannot be read ({error.strerror}); check its permissions.") from error
        # Decoders of damaged files raise whatever their parsing stumbles over, MemoryError included.
        raise PhotoError(f"{name} is damaged or cut short ({_one_line(error)}); replace the file.") from error


def _list_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    """Files and folders directly below, hidden ones left out, each sorted by name."""
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error.strerror}); check its permissions.") from error
    files: list[Path] = []
    below: list[Path] = []
    for entry in entries:
        if not entry.name.startswith("."):
            (below if _is_folder(entry) else files).append(folder / entry.name)
    return files, below


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def photo_id(relative: Path) -> str:
    """The path as one line of UTF-8 in NFC: what would break the line or the encoding is written as an escape."""
    text = normal_name(os.fsencode(relative.as_posix()).decode("utf-8", "backslashreplace"))
    return _NOT_ONE_LINE.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def _open_file(path: Path, name: str) -> io.FileIO:
    try:
        return io.FileIO(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "r")
    except (OSError, ValueError) as error:
        raise PhotoError(f"{name} cannot be opened ({_one_line(error)}); check the path.", "unreadable") from error


def _moment(status: os.stat_result) -> tuple[int, int, int]:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _silence_pillow() -> None:
    # catch_warnings is not safe among threads, so one lasting filter on one module's warnings it is.
    quiet = ("ignore", None, Warning, re.compile(r"PIL\."), 0)
    if quiet not in warnings.filters:
        warnings.filterwarnings("ignore", module=r"PIL\.")


def _open_regular(source: Path | bytes, name: str) -> Path | io.BytesIO:
    """What to hand to Pillow, once it is sure that opening it cannot hang and there is something in it."""
    if isinstance(source, bytes):
        size = len(source)
    else:
        try:
            status = source.stat()
        except FileNotFoundError as error:
            fact = "is a link that leads nowhere" if source.is_symlink() else "does not exist"
            raise PhotoError(f"{name} {fact}; check the path.") from error
        except (OSError, ValueError) as error:
            raise PhotoError(f"{name} cannot be opened ({_one_line(error)}); check the path.") from error
        if not stat.S_ISREG(status.st_mode):
            raise PhotoError(f"{name} is not a regular file; name an image file.")
        size = status.st_size
    if size == 0:
        raise PhotoError(f"{name} is empty (0 bytes); replace the file.")
    return io.BytesIO(source) if isinstance(source, bytes) else source


def _refuse_bomb(image: Image.Image, name: str, max_pixels: int) -> None:
    width, height = image.size
    if width < 1 or height < 1:
        raise PhotoError(f"{name} is {width} x {height} pixels; replace the file.")
    if width * height > max_pixels:
        raise PhotoError(
            f"{name} claims {width} x {height} pixels, more than the {max_pixels:,} allowed; shrink it first."
        )


def _orientation_of(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Damaged EXIF is no reason to lose the photo: its pixels have been read.
        return 1


def _date_of(image: Image.Image) -> datetime | None:
    """When the photo was taken, or else last changed, by its EXIF."""
    try:
        exif = image.getexif()
        written = exif.get_ifd(_EXIF_IFD).get(_DATE_TAKEN) or exif.get(_DATE_CHANGED)
        return datetime.strptime(str(written).strip("\0 "), "%Y:%m:%d %H:%M:%S")
    except Exception:
        # As above; and cameras whose clock was never set write zeros.
        return None


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _GREY_16_BIT or image.mode in ("I", "F"):
        image = Image.fromarray(_grey_to_8_bits(np.asarray(image), sixteen=image.mode in _GREY_16_BIT))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        opaque = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        white = Image.new("RGBA", opaque.size, "white")
        return Image.alpha_composite(white, opaque).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_8_bits(grey: npt.NDArray[np.generic], *, sixteen: bool) -> npt.NDArray[np.uint8]:
    """(H, W) greys of any type -> (H, W) 8-bit greys.

    The white point is the type's: 65,535 for 16 bits, 1.0 for numbers that stay within 0..1. Wider types
    do not say theirs: 255 or 65,535, whichever holds the picture, and else its own darkest and brightest.
    """
    values = grey.astype(np.float32)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    np.clip(values, -1e37, 1e37, out=values)  # so that no difference of two overflows
    black, brightest = float(values.min()), float(values.max())
    if sixteen:
        black, white = 0.0, 65535.0
    elif black >= 0 and brightest <= 65535:
        fits = [1.0, 255.0, 65535.0] if grey.dtype.kind == "f" else [255.0, 65535.0]
        black, white = 0.0, next(limit for limit in fits if brightest <= limit)
    else:
        white = brightest
    values -= black
    if white > black:
        values *= 255.0 / (white - black)
    return np.rint(values).clip(0, 255).astype(np.uint8)


def _one_line(error: BaseException) -> str:
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:200].rstrip(".") or type(error).__name__
