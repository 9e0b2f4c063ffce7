"""Opening images, whatever their mode, safely."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from storage_schemas.errors import StoreNotFoundError, UnreadableImageError

MAX_PIXELS = 178_956_970
"""Largest image that is decoded, in pixels: the bound at which Pillow itself suspects a decompression bomb."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""Formats that are decoded; others, such as EPS, would start programs outside of this one."""
DECODING = {"exif_orientation": "applied", "transparency": "on white", "sixteen_bit": "high byte"}
"""What :func:`open_image` does beyond converting to RGB; recorded with the preprocessing of every store."""


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """Read an image as 8-bit RGB, upright.

    The orientation that cameras write into EXIF is applied, because networks are trained on upright images. Transparent
    images are laid on white: the colours under transparent pixels are arbitrary. Of 16-bit grey values the high byte is
    kept, as Pillow does for 16-bit colour. Grey, palette, CMYK and YCbCr images are converted; of several frames the
    first is taken.

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
    UnreadableImageError
        When it is not a readable image of one of :data:`FORMATS`, has more than :data:`MAX_PIXELS`, or
        has 32-bit pixels.
    """
    path = Path(path)
    try:
        with Image.open(path, formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()
            return _as_rgb(ImageOps.exif_transpose(image), path)
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
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, struct.error) as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise UnreadableImageError(
            f"The image {path} cannot be decoded ({reason}); replace it, or remove it from the dataset."
        ) from error


def _as_rgb(image: Image.Image, path: Path) -> Image.Image:
    """A decoded image as 8-bit RGB."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UnreadableImageError(
            f"{path} has 32-bit pixels (mode {image.mode}), whose range is unknown; save it with 8 or 16 bits a channel."
        )
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert("RGB")
    return image.convert("RGB")
