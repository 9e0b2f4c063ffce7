"""Opening images, whatever their mode, safely."""

from __future__ import annotations

import errno
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from storage_schemas.errors import StoreNotFoundError, UnreadableImageError
from storage_schemas.location import storage_errors

MAX_PIXELS = 178_956_970
"""Largest image that is decoded, in pixels: the bound at which Pillow itself suspects a decompression bomb."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded; others, such as EPS, would start programs outside of this one."""
DECODING = {"exif_orientation": "applied", "transparency": "on white", "sixteen_bit": "high byte"}
"""What :func:`open_image` does beyond converting to RGB; recorded with the preprocessing of every store."""

_UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, KeyError, struct.error)
"""What Pillow raises where a file does not hold what its header promises."""
_TURNS: dict[Any, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # 255 divided by the largest value of so many bits
_BITS_PER_SAMPLE, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # of TIFF


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    The orientation that cameras write into EXIF is applied, because networks are trained on upright images; one that
    cannot be read is taken as upright. Transparent images are laid on white: the colours under transparent pixels are
    arbitrary. Of 16-bit grey values the high byte is kept, as Pillow does for 16-bit colour. Grey, palette, CMYK and
    YCbCr images are converted; of several frames the first is taken. The content says what a file is, not its suffix.

    Parameters
    ----------
    path
        The image.

    Returns
    -------
    PIL.Image.Image
        Decoded image of mode ``RGB``; its file is closed.

    Raises
    ------
    StoreNotFoundError
        When the file is not there.
    StorageUnavailableError
        When the file cannot be read.
    UnreadableImageError
        When it is not a readable image of one of :data:`FORMATS`, has more than :data:`MAX_PIXELS`, or
        has 32-bit pixels.
    """
    path = Path(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            _scale_transparency(image)
            image.load()
            return _upright(image, _as_rgb(image, path))
    except FileNotFoundError as error:
        raise StoreNotFoundError(f"There is no image {path}; put it back, or read the dataset anew.") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(
            f"{path} has more than {MAX_PIXELS} pixels, as a decompression bomb has; "
            "scale it down, or remove it from the dataset."
        ) from error
    except UnidentifiedImageError as error:
        raise UnreadableImageError(
            f"{path} is not an image of a known format ({', '.join(FORMATS)}); replace it, or remove it from the dataset."
        ) from error
    except UnreadableImageError:
        raise
    except _UNREADABLE as error:
        if isinstance(error, OSError) and error.errno not in (None, errno.EISDIR):  # the disk, not the image
            with storage_errors(str(path)):
                raise
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UnreadableImageError(
            f"The image {path} cannot be decoded ({reason}); replace it, or remove it from the dataset."
        ) from error


def _as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """A decoded image as 8-bit RGB."""
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM"):  # Pillow scales PPM to 65535
        return Image.fromarray(_high_bytes(image)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnreadableImageError(
            f"{path} has 32-bit pixels (mode {image.mode}), whose range is unknown; save it with 8 or 16 bits a channel."
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")


def _high_bytes(image: Image.Image) -> NDArray[np.uint8]:
    """The eight leading bits of grey values of more than eight, black at 0 and the transparent one white."""
    values = np.asarray(image)
    tags = getattr(image, "tag_v2", {})
    bits = 12 if tags.get(_BITS_PER_SAMPLE) == (12,) else 16
    grey = (values >> (bits - 8)).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        grey = ~grey
    transparent = image.info.get("transparency")
    if transparent is not None:
        grey[values == transparent] = 255
    return grey


def _scale_transparency(image: ImageFile.ImageFile) -> None:
    """Bring the transparent colour of a PNG, which is as the file holds it, to the eight bits of Pillow's pixels."""
    transparent = image.info.get("transparency")
    if image.format != "PNG" or transparent is None or not image.tile:
        return
    stored_as = image.tile[0][3]
    if stored_as in _GREY_STEPS:
        image.info["transparency"] = transparent * _GREY_STEPS[stored_as]
    elif stored_as == "RGB;16B":
        image.info["transparency"] = tuple(value >> 8 for value in transparent)


def _upright(image: Image.Image, pixels: Image.Image) -> Image.Image:
    """Pixels turned as the EXIF of their image says."""
    try:
        turn = _TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
    except _UNREADABLE:  # the pixels are whole; other programs show such an image as it is
        turn = None
    return pixels if turn is None else pixels.transpose(turn)
