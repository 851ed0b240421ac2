"""Pages as files, written band by band where the whole would take too much memory.

Small pages go through Pillow. A large PNG is one stream of deflated rows; a large JPEG is made of
bands that Pillow encodes, whose restart markers let one go on where the last ended; a WebP must
be whole, so its pages are kept small.

Sources: Portable Network Graphics (Third Edition), W3C; ITU-T T.81, B.2 and E.1.4.
"""

import io
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from stages.images.text_chunk import SIGNATURE
from stages.sheets.layout import Page

SUFFIX = {"png": ".png", "jpeg": ".jpg", "webp": ".webp"}
WHOLE_PIXELS = 50_000_000  # a page of at most so many is drawn whole: 150 MB
BAND_HEIGHT_PX = 512  # a multiple of 16, the height of a row of JPEG's blocks
SUB = 1  # PNG's filter: each byte less the one of the pixel at its left
RESTART = re.compile(rb"\xff[\xd0-\xd7]")  # in coded data, where any other FF is followed by 00
SOF0, SOS, EOI = b"\xff\xc0", b"\xff\xda", b"\xff\xd9"


def save_page(page: Page, path: Path, format_: str, quality: int) -> None:
    """Write a page.

    Args:
        page: drawn as it is written.
        path: its suffix is not looked at.
        format_: png, jpeg or webp.
        quality: of JPEG and WebP, 1 to 100; WebP of 100 is lossless.
    """
    if format_ == "webp":
        page.image().save(path, "WEBP", quality=quality, lossless=quality == 100)
    elif page.width * page.height <= WHOLE_PIXELS:
        page.image().save(path, format_.upper(), **_jpeg_options(format_, quality))
    else:
        with path.open("wb") as file:
            if format_ == "png":
                write_png(file, page, BAND_HEIGHT_PX)
            else:
                write_jpeg(file, page, quality, BAND_HEIGHT_PX)


def _jpeg_options(format_: str, quality: int) -> dict[str, int]:
    return {"quality": quality} if format_ == "jpeg" else {}


def write_png(file: BinaryIO, page: Page, band_height: int) -> None:
    """Write a page as PNG, 8 bits a channel, RGB."""
    file.write(SIGNATURE)
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", page.width, page.height, 8, 2, 0, 0, 0))
    deflate = zlib.compressobj()
    for band in page.bands(band_height):
        pixels = np.asarray(band)  # (H, W, 3)
        rows = np.empty((band.height, 1 + 3 * band.width), np.uint8)
        rows[:, 0] = SUB
        rows[:, 1:4] = pixels[:, 0]
        rows[:, 4:] = (pixels[:, 1:] - pixels[:, :-1]).reshape(band.height, -1)  # modulo 256
        _chunk(file, b"IDAT", deflate.compress(rows.tobytes()))
    _chunk(file, b"IDAT", deflate.flush())
    _chunk(file, b"IEND", b"")


def _chunk(file: BinaryIO, kind: bytes, content: bytes) -> None:
    if content or kind == b"IEND":
        file.write(struct.pack(">I", len(content)) + kind + content)
        file.write(struct.pack(">I", zlib.crc32(kind + content)))


def write_jpeg(file: BinaryIO, page: Page, quality: int, band_height: int) -> None:
    """Write a page as one baseline JPEG.

    Args:
        file: open for bytes.
        page: of at most 65,500 px a side.
        quality: 1 to 100.
        band_height: a multiple of 16.
    """
    number = 0  # of the next restart marker, which count 0 to 7 over and over
    for order, band in enumerate(page.bands(band_height)):
        head, coded = _coded(band, quality)
        if order == 0:
            file.write(_of_height(head, page.height))
        for part_number, part in enumerate(coded):
            if order or part_number:
                file.write(bytes([0xFF, 0xD0 + number % 8]))
                number += 1
            file.write(part)
    file.write(EOI)


def _coded(band: Image.Image, quality: int) -> tuple[bytes, list[bytes]]:
    """Encode a band; give its headers, and the coded data of each row of blocks."""
    content = io.BytesIO()
    band.save(content, "JPEG", quality=quality, restart_marker_rows=1)
    encoded = content.getvalue()
    start = next(at for kind, at in _segments(encoded) if kind == SOS)
    start += 2 + struct.unpack_from(">H", encoded, start + 2)[0]
    return encoded[:start], RESTART.split(encoded[start:].removesuffix(EOI))


def _of_height(head: bytes, height: int) -> bytes:
    """Write the page's height where the first band's stands."""
    at = next(at for kind, at in _segments(head) if kind == SOF0)
    return head[: at + 5] + struct.pack(">H", height) + head[at + 7 :]


def _segments(encoded: bytes) -> Iterator[tuple[bytes, int]]:
    """Give the marker and the place of each segment, up to the coded data."""
    at = 2  # after the start of the image
    while at < len(encoded):
        kind = encoded[at : at + 2]
        yield kind, at
        if kind == SOS:
            return
        at += 2 + struct.unpack_from(">H", encoded, at + 2)[0]
