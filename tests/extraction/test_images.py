"""Opening images of every mode, and refusing what is none."""

from __future__ import annotations

import io
import resource
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
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


def png(width: int, height: int, bits: int, colour_type: int, rows: bytes, *chunks: bytes) -> bytes:
    """A PNG with given pixels, as the bytes of its rows."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)
    body = b""
    for chunk in (b"IHDR" + header, *chunks, b"IDAT" + zlib.compress(rows), b"IEND"):
        body += struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(
    bits: int,
    photometric: int,
    pixels: bytes,
    *,
    size: tuple[int, int] = (2, 1),
    samples: int = 1,
    order: str = "<",
    extra: int | None = None,
) -> bytes:
    """A TIFF of one strip with the given bits of each sample of a pixel."""
    width, height = size
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: photometric, 277: samples, 278: height, 279: len(pixels)}
    tags |= {} if extra is None else {338: extra}
    end = 8 + 2 + 12 * (len(tags) + 1) + 4
    tags[273] = end + 2 * samples
    data = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    for tag, value in sorted(tags.items()):
        several = tag == 258 and samples > 1
        entry = struct.pack(f"{order}I", end) if several else struct.pack(f"{order}HH", value, 0)
        data += struct.pack(f"{order}HHI", tag, 3, samples if several else 1) + entry
    return data + bytes(4) + struct.pack(f"{order}{samples}H", *[bits] * samples) + pixels


def words(*values: int, order: str = ">") -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


GREY, RGB, PALETTE, GREY_ALPHA, RGB_ALPHA = 0, 2, 3, 4, 6
COLOURS = b"PLTE" + bytes([255, 0, 0, 0, 255, 0])
WHITE = [255, 255, 255]


PIXELS = {
    "1-bit grey PNG": (png(2, 1, 1, GREY, b"\0\x40"), [[0, 0, 0], WHITE]),
    "2-bit grey PNG": (png(2, 1, 2, GREY, b"\0\x60"), [[85] * 3, [170] * 3]),
    "4-bit grey PNG": (png(2, 1, 4, GREY, b"\0\x5a"), [[85] * 3, [170] * 3]),
    "2-bit grey PNG, one grey transparent": (png(2, 1, 2, GREY, b"\0\x60", b"tRNS" + words(1)), [WHITE, [170] * 3]),
    "4-bit grey PNG, one grey transparent": (png(2, 1, 4, GREY, b"\0\x5a", b"tRNS" + words(5)), [WHITE, [170] * 3]),
    "8-bit grey PNG, one grey transparent": (png(2, 1, 8, GREY, b"\0\x50\x51", b"tRNS" + words(0x50)), [WHITE, [0x51] * 3]),
    "16-bit grey PNG": (png(2, 1, 16, GREY, b"\0" + words(40_000, 255)), [[156] * 3, [0] * 3]),
    "16-bit grey PNG, one grey transparent": (
        png(2, 1, 16, GREY, b"\0" + words(40_000, 40_001), b"tRNS" + words(40_000)),
        [WHITE, [156] * 3],
    ),
    "16-bit grey PNG with alpha": (png(2, 1, 16, GREY_ALPHA, b"\0" + words(40_000, 65_535, 40_000, 0)), [[156] * 3, WHITE]),
    "16-bit RGB PNG": (png(2, 1, 16, RGB, b"\0" + words(40_000, 20_000, 255, 65_535, 0, 256)), [[156, 78, 0], [255, 0, 1]]),
    "16-bit RGB PNG, one colour transparent": (
        png(2, 1, 16, RGB, b"\0" + words(40_000, 20_000, 255, 0, 0, 65_535), b"tRNS" + words(40_000, 20_000, 255)),
        [WHITE, [0, 0, 255]],
    ),
    "16-bit RGB PNG with alpha": (
        png(2, 1, 16, RGB_ALPHA, b"\0" + words(40_000, 20_000, 255, 65_535, 1, 2, 3, 0)),
        [[156, 78, 0], WHITE],
    ),
    "1-bit palette PNG": (png(2, 1, 1, PALETTE, b"\0\x40", COLOURS), [[255, 0, 0], [0, 255, 0]]),
    "palette PNG with alphas": (png(2, 1, 8, PALETTE, b"\0\0\1", COLOURS, b"tRNS\x80"), [[255, 127, 127], [0, 255, 0]]),
    "8-bit grey TIFF": (tiff(8, 1, bytes([100, 255])), [[100] * 3, WHITE]),
    "8-bit grey TIFF, white is zero": (tiff(8, 0, bytes([100, 255])), [[155] * 3, [0] * 3]),
    "12-bit grey TIFF": (tiff(12, 1, bytes([0x80, 0x0F, 0xFF])), [[128] * 3, WHITE]),
    "16-bit grey TIFF": (tiff(16, 1, words(40_000, 65_535, order="<")), [[156] * 3, WHITE]),
    "16-bit grey TIFF, big endian": (tiff(16, 1, words(40_000, 65_535), order=">"), [[156] * 3, WHITE]),
    "16-bit grey TIFF, white is zero": (tiff(16, 0, words(40_000, 65_535, order="<")), [[99] * 3, [0] * 3]),
    "16-bit RGB TIFF": (
        tiff(16, 2, words(40_000, 20_000, 256, 65_535, 0, 1, order="<"), samples=3),
        [[156, 78, 1], [255, 0, 0]],
    ),
    "16-bit RGB TIFF, big endian": (
        tiff(16, 2, words(40_000, 20_000, 256, 65_535, 0, 1), samples=3, order=">"),
        [[156, 78, 1], [255, 0, 0]],
    ),
    "8-bit RGB TIFF with alpha": (
        tiff(8, 2, bytes([200, 100, 0, 255, 9, 9, 9, 0]), samples=4, extra=2),
        [[200, 100, 0], WHITE],
    ),
    "8-bit CMYK TIFF": (tiff(8, 5, bytes([0, 255, 255, 0, 0, 0, 0, 255]), samples=4), [[255, 0, 0], [0, 0, 0]]),
    "16-bit CMYK TIFF": (
        tiff(16, 5, words(0, 65_535, 65_535, 0, 0, 0, 0, 65_535, order="<"), samples=4),
        [[255, 0, 0], [0, 0, 0]],
    ),
    "PBM": (b"P4\n2 1\n\x40", [WHITE, [0, 0, 0]]),
    "16-bit PGM": (b"P5\n2 1\n65535\n" + words(40_000, 65_535), [[156] * 3, WHITE]),
    "12-bit PGM": (b"P5\n2 1\n4095\n" + words(2048, 4095), [[128] * 3, WHITE]),
    "16-bit PPM": (b"P6\n2 1\n65535\n" + words(40_000, 20_000, 65_535, 0, 0, 0), [[156, 78, 255], [0, 0, 0]]),
}


@pytest.mark.parametrize(("data", "expected"), PIXELS.values(), ids=PIXELS.keys())
def test_every_depth_of_bits_becomes_eight(tmp_path: Path, data: bytes, expected: list[list[int]]) -> None:
    (tmp_path / "image.jpg").write_bytes(data)  # the content counts, not the suffix
    assert np.asarray(open_image(tmp_path / "image.jpg")).tolist() == [expected]


def test_a_palette_with_alpha_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image = image.convert("PA")
    image.putalpha(Image.fromarray(np.array([[255, 0]], dtype=np.uint8)))
    assert image.mode == "PA"
    image.save(tmp_path / "a.tif")
    with Image.open(tmp_path / "a.tif") as found:
        assert found.mode == "PA"
    assert np.asarray(open_image(tmp_path / "a.tif")).tolist() == [[[255, 0, 0], WHITE]]


def test_a_cmyk_jpeg_is_read_as_adobe_writes_it(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "a.jpg", quality=100)
    assert b"\xff\xee\x00\x0eAdobe" in (tmp_path / "a.jpg").read_bytes()
    assert np.asarray(open_image(tmp_path / "a.jpg"))[8, 8].tolist() == [255, 0, 0]


@pytest.mark.parametrize("suffix", ["gif", "webp", "png", "tif"])
def test_of_several_frames_the_first_is_taken(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (4, 3), (255, 0, 0)), Image.new("RGB", (4, 3), (0, 255, 0))
    path = tmp_path / f"a.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    first.save(path, save_all=True, append_images=[second], **options)
    with Image.open(path) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]
    assert set(map(tuple, np.asarray(open_image(path)).reshape(-1, 3).tolist())) == {(255, 0, 0)}


def test_a_transparent_palette_is_laid_on_white(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([255, 0, 0, 0, 255, 0])
    image.save(tmp_path / "a.png", transparency=0)
    assert np.asarray(open_image(tmp_path / "a.png"))[0, 0].tolist() == [255, 255, 255]


def exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
def test_the_orientation_of_the_camera_is_applied(tmp_path: Path, suffix: str) -> None:
    scene = np.random.default_rng(0).integers(0, 256, (2, 3, 3), dtype=np.uint8)
    seen = {  # what the sensor saw of the scene when the camera was held so, by the definition of the EXIF standard
        1: scene,
        2: scene[:, ::-1],
        3: scene[::-1, ::-1],
        4: scene[::-1],
        5: scene.transpose(1, 0, 2),
        6: np.rot90(scene),
        7: scene[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(scene, -1),
        9: scene,  # no orientation that there is
    }
    for orientation, pixels in seen.items():
        path = tmp_path / f"{orientation}.{suffix}"
        options = {"lossless": True} if suffix == "webp" else {}
        Image.fromarray(np.ascontiguousarray(pixels)).save(path, exif=exif(orientation), **options)
        assert np.array_equal(np.asarray(open_image(path)), scene), orientation


def test_transparency_and_depth_are_seen_to_before_an_image_is_turned(tmp_path: Path) -> None:
    turned = b"eXIf" + exif(6).tobytes().removeprefix(b"Exif\0\0")
    rows = b"\0" + words(40_000) + b"\0" + words(300)
    (tmp_path / "a.png").write_bytes(png(1, 2, 16, GREY, rows, b"tRNS" + words(300), turned))
    assert np.asarray(open_image(tmp_path / "a.png")).tolist() == [[WHITE, [156] * 3]]


@pytest.mark.parametrize("block", [b"garbage", b"II*\0\xff\xff\0\0", b"II*\0\x08\0\0\0\x05\0", b""])
@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_an_image_with_unreadable_exif_is_taken_as_upright(tmp_path: Path, suffix: str, block: bytes) -> None:
    pixels = np.full((2, 3, 3), 128, dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / f"a.{suffix}", exif=b"Exif\0\0" + block)
    assert np.array_equal(np.asarray(open_image(tmp_path / f"a.{suffix}")), pixels)


def huge(kind: str, side: int) -> bytes:
    """A file of a few bytes whose header promises an image of ``side`` by ``side`` pixels."""
    if kind == "png":
        return png(side, side, 8, RGB, bytes(100))
    if kind == "gif":  # whose only frame is larger than its screen
        screen, frame = struct.pack("<HHBBB", 4, 4, 0x80, 0, 0), struct.pack("<HHHHB", 0, 0, side, side, 0)
        return b"GIF89a" + screen + bytes(6) + b"," + frame + b"\x02\x02\x44\x01\0;"
    if kind == "bmp":
        return b"BM" + struct.pack("<IHHIIiiHHIIiiII", 64, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0) + bytes(10)
    if kind == "ppm":
        return f"P6 {side} {side} 255 ".encode() + bytes(10)
    if kind == "tif":
        return tiff(8, 1, bytes(10), size=(side, side))
    if kind == "webp":
        body = b"\x2f" + struct.pack("<I", (side - 1) | (side - 1) << 14) + bytes(20)
        return b"RIFF" + struct.pack("<I", 12 + len(body)) + b"WEBPVP8L" + struct.pack("<I", len(body)) + body
    assert kind == "jpg"
    data = bytearray(encoded("JPEG"))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = struct.pack(">HH", side, side)
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "gif", "bmp", "ppm", "tif", "webp", "jpg"])
@pytest.mark.parametrize("side", [16_000, 60_000])
def test_a_decompression_bomb_is_refused_by_its_header(tmp_path: Path, kind: str, side: int) -> None:
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(huge(kind, 16_000 if kind == "webp" else side))
    sentence = r"^[^\n]*bomb\.\w+ has more than \d+ pixels[^\n]*$"
    with memory_to_spare(200 * 2**20), pytest.raises(InvalidInputError, match=sentence):  # 256 million pixels at least
        open_image(path)


@contextmanager
def memory_to_spare(count: int) -> Iterator[None]:
    """Let an allocation fail that makes this process larger by so many bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


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
        (encoded("JPEG")[:-2], "cannot be decoded"),
        (encoded("PNG")[:1500], "cannot be decoded"),
        (encoded("GIF")[:1500], "cannot be decoded"),
        (encoded("BMP")[:-1], "cannot be decoded"),
        (encoded("PPM")[:-1], "cannot be decoded"),
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
