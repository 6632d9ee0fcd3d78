"""What kind of image a file is, judged by its bytes rather than its name, and whether a study can use it."""

from __future__ import annotations

import functools
import hashlib
import io
import struct
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

if TYPE_CHECKING:  # Pillow comes with the first file that is looked at: plans without files need none
    from PIL import Image

FORMATS: Final = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""Names of Pillow's readers for pictures. Its other readers run programs (EPS: Ghostscript), or read fonts and film."""
MODES: Final = frozenset({"1", "CMYK", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"})
"""Pillow's pixel formats that convert to 8-bit RGB without loss, except for transparency and the gamut of CMYK."""
MAX_BYTES: Final = 2**29
MAX_ASPECT: Final = 64
"""Longer over shorter side. Enlarging the shorter side of a very thin image would create millions of pixels."""
TRANSPARENT: Final = "with transparency, which is dropped"
FRAMES: Final = "with several frames, of which the first is used"
ORIENTED: Final = "turned by their EXIF orientation, which is used only with an image_size"
_ORIENTATION: Final = 0x0112
_JPEG2000_SIZE: Final = b"\xff\x4f\xff\x51"
"""The first bytes of the pixels' stream, whose header follows."""

# Pillow warns of sizes, which are checked here, and of tags. The filter is for good, because pictures are opened in
# threads: the filters belong to the process, and `warnings.catch_warnings` would set back those of another thread.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Picture(NamedTuple):
    """What is known of a file.

    Attributes:
        digest: of its bytes.
        format: one of `FORMATS`; "" for any other file.
        width: in pixels.
        height: in pixels.
        loss: the part that will not be used, `TRANSPARENT`, `FRAMES` or `ORIENTED`; "" if all of it will be.
        problem: why the file cannot be used; "" if it can.
    """

    digest: str
    format: str
    width: int
    height: int
    loss: str
    problem: str


def digest_of(data: bytes) -> str:
    """Return the digest of a file's bytes."""
    return hashlib.sha256(data).hexdigest()[:32]


def open_picture(file: io.BytesIO) -> Image.Image:
    """Open an image file with the readers in `FORMATS` only.

    Raises:
        OSError: it is not a picture, or is truncated. For Pillow's other errors, see `unreadable`.
    """
    from PIL import Image

    return Image.open(file, formats=_readers())


@functools.cache
def _readers() -> tuple[str, ...]:
    """Return those of `FORMATS` that this Pillow supports; it raises if it is asked for others."""
    from PIL import Image

    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def unreadable() -> tuple[type[Exception], ...]:
    """Return the errors that Pillow raises for files that are damaged, too large or not pictures."""
    from PIL import Image

    return (OSError, SyntaxError, ValueError, IndexError, TypeError, EOFError, Image.DecompressionBombError)


def examine(path: Path) -> Picture:
    """Read a file once and return what it is. It is decoded only if its end seems to be missing."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        return Picture("", "", 0, 0, "", error.strerror or str(error))
    if len(data) > MAX_BYTES:
        return Picture("", "", 0, 0, "", f"more than {MAX_BYTES:,} bytes")
    found = Picture(digest_of(data), "", 0, 0, "", "")
    try:
        with open_picture(io.BytesIO(data)) as image:
            name = (
                "JPEG" if image.format == "MPO" else str(image.format)
            )  # MPO: a camera's JPEG with previews behind it
            found = Picture(found.digest, name, *image.size, _loss(image, name), _misfit(image, data))
            if not found.problem and not _whole(name, data):
                image.load()
    except unreadable() as error:
        is_foreign = type(error).__name__ == "UnidentifiedImageError"
        return found._replace(problem="no picture that can be read" if is_foreign else str(error))
    return found


def _misfit(image: Image.Image, data: bytes) -> str:
    """Return why a picture that can be read cannot be used; "" if it can."""
    shorter, longer = sorted(image.size)
    if image.mode not in MODES:
        return f"pixels of type {image.mode}, which 8 bits per channel cannot hold"
    if (depth := _depth(image, data)) > 8:
        return f"{depth} bits per channel, of which 8 would be kept"
    if longer > MAX_ASPECT * shorter:
        return f"{image.width}x{image.height} pixels; one side may be at most {MAX_ASPECT} times the other"
    return ""


def _depth(image: Image.Image, data: bytes) -> int:
    """Return the bits per channel in the file; in colour images, Pillow silently keeps only 8 of them."""
    if image.format == "PNG":
        return int(data[24])  # in the header, which always comes first
    if image.format == "TIFF":
        tags: Any = image
        return int(max(tags.tag_v2.get(258, (1,))))
    if image.format == "PPM":
        *_, arguments = image.tile[0]  # type: ignore[attr-defined]
        largest = arguments[-1] if isinstance(arguments, tuple) else arguments
        return int(largest).bit_length() if isinstance(largest, int) else 8
    if image.format == "JPEG2000" and (start := data.find(_JPEG2000_SIZE)) >= 0:
        end = start + 42 + 3 * int.from_bytes(data[start + 40 : start + 42], "big")
        # A channel's byte is its depth less one; the highest bit says whether its values have a sign.
        return max((1 + (depth & 0x7F) for depth in data[start + 42 : end : 3]), default=8)
    if image.format == "AVIF" and (start := data.find(b"av1C")) >= 0:
        flags = data[start + 6 : start + 7] or b"\0"
        return 8 + 2 * bool(flags[0] & 0x40) * (1 + bool(flags[0] & 0x20))  # 8, 10 or 12
    return 8


def _loss(image: Image.Image, name: str) -> str:
    if name != "JPEG" and getattr(image, "is_animated", False):
        return FRAMES
    if image.mode in ("LA", "PA", "RGBA") or "transparency" in image.info:
        return TRANSPARENT
    # Pillow turns TIFFs as it decodes them, and would decode a PNG to look for tags behind its pixels.
    return ORIENTED if name not in ("TIFF", "PNG") and turn(image) is not None else ""


def turn(image: Image.Image) -> Image.Transpose | None:
    """Return how a picture must be turned or mirrored to be upright, by its EXIF orientation; None if it is upright."""
    from PIL.Image import Transpose

    damaged: tuple[type[Exception], ...] = (*unreadable(), struct.error, KeyError)
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except damaged:  # the tags, which does not damage the pixels
        return None
    return {
        2: Transpose.FLIP_LEFT_RIGHT,
        3: Transpose.ROTATE_180,
        4: Transpose.FLIP_TOP_BOTTOM,
        5: Transpose.TRANSPOSE,
        6: Transpose.ROTATE_270,
        7: Transpose.TRANSVERSE,
        8: Transpose.ROTATE_90,
    }.get(orientation)


def _whole(name: str, data: bytes) -> bool:
    """Return whether a file ends as its format requires; if not, it may still be whole, with data appended."""
    match name:
        case "PNG":
            return data[-8:-4] == b"IEND"
        case "JPEG":
            return data[-2:] == b"\xff\xd9"
        case "GIF":
            return data[-1:] == b";"
        case "BMP":
            return int.from_bytes(data[2:6], "little") == len(data)
        case "WEBP":
            return int.from_bytes(data[4:8], "little") + 8 == len(data)
    return False
