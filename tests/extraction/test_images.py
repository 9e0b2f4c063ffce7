"""Opening images of every mode, and refusing what is none."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from semrsm_dist.extraction import images
from semrsm_dist.extraction.images import open_image
from storage_schemas.errors import InvalidInputError, StoreNotFoundError


def test_an_rgb_image_keeps_its_pixels(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = open_image(tmp_path / "a.png")
    assert image.mode == "RGB"
    assert np.array_equal(np.asarray(image), pixels)


@pytest.mark.parametrize(
    ("mode", "colour", "suffix", "expected"),
    [
        ("1", 1, "png", (255, 255, 255)),
        ("L", 77, "png", (77, 77, 77)),
        ("P", (10, 200, 30), "png", (10, 200, 30)),
        ("CMYK", (0, 255, 255, 0), "tif", (255, 0, 0)),
        ("I;16", 40_000, "png", (156, 156, 156)),
        ("I;16", 40_000, "tif", (156, 156, 156)),
        ("RGBA", (9, 9, 9, 0), "png", (255, 255, 255)),
        ("RGBA", (200, 100, 0, 255), "webp", (200, 100, 0)),
        ("LA", (0, 0), "png", (255, 255, 255)),
    ],
)
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, colour: object, suffix: str, expected: tuple[int, ...]) -> None:
    path = tmp_path / f"image.{suffix}"
    image = Image.new("RGB" if mode == "P" else mode, (4, 4), colour)  # type: ignore[arg-type]
    image = image.quantize(4) if mode == "P" else image
    image.save(path, lossless=True) if suffix == "webp" else image.save(path)
    opened = open_image(path)
    assert opened.mode == "RGB"
    assert np.asarray(opened)[2, 2].tolist() == list(expected)


def test_a_transparent_palette_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png", transparency=0)
    assert np.asarray(open_image(tmp_path / "a.png"))[0, 0].tolist() == [255, 255, 255]


def test_the_orientation_of_the_camera_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (20, 30)


def huge_png(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 100), b"IEND"]
    body = b"".join(struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(huge_png(60_000, 60_000))
    with pytest.raises(InvalidInputError, match=r"^[^\n]*bomb\.png has more than \d+ pixels[^\n]*$"):
        open_image(tmp_path / "bomb.png")


def test_the_bound_holds_where_pillow_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(images, "MAX_PIXELS", 15)
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(InvalidInputError, match=r"^[^\n]* has more than 15 pixels[^\n]*$"):
        open_image(tmp_path / "a.png")


def encoded(format: str) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is not an image of a known format"),
        (b"just text", "is not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "is not an image of a known format"),
        (encoded("JPEG")[:1500], "cannot be decoded"),
        (encoded("PNG")[:1500], "cannot be decoded"),
        (encoded("WEBP")[:300], "cannot be decoded|is not an image of a known format"),
        (encoded("TIFF")[:1500], "cannot be decoded"),
    ],
)
def test_a_file_that_cannot_be_decoded_is_named(tmp_path: Path, data: bytes, sentence: str) -> None:
    (tmp_path / "bad.jpg").write_bytes(data)
    with pytest.raises(InvalidInputError, match=rf"^[^\n]*bad\.jpg[^\n]*({sentence})[^\n]*$"):
        open_image(tmp_path / "bad.jpg")


def test_pixels_of_unknown_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(np.ones((3, 3), np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(InvalidInputError, match=r"^[^\n]* has 32-bit pixels \(mode F\)[^\n]*$"):
        open_image(tmp_path / "a.tif")


def test_a_missing_image_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreNotFoundError, match=r"^There is no image [^\n]*gone\.png[^\n]*$"):
        open_image(tmp_path / "gone.png")
    with pytest.raises(InvalidInputError, match=r"^[^\n]*$"):
        open_image(tmp_path)
