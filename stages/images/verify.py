"""Is a file the picture that it claims to be, to its last byte?

Files from the network are untrusted: nothing is decoded before its format, its size in bytes and
its size in pixels are known to be among those expected.
"""

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Condition, Lock

from PIL import Image

from stages.images.metadata import (
    JPEG_SCAN,
    Piece,
    is_on_its_side,
    parts_and_orientation,
    sha256_parts,
)
from stages.images.outcome import Failed, Picture

# The limits here are the caller's, and they come before decoding; Pillow's own limit only warns.
Image.MAX_IMAGE_PIXELS = None

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by colour type
PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
DEFLATE_RATIO = 1032  # zlib shrinks nothing further: https://zlib.net/zlib_tech.html
MOST_SCANS = 200  # of a JPEG; progressive ones have some ten, and each takes time to decode
DECODED_BYTES = {"JPEG": 12, "WEBP": 16}  # a pixel, at most, while Pillow decodes it
ROOM_BYTES = 320_000_000  # for all that are decoded at once; a picture that takes more comes alone
# What Pillow's readers raise on broken files.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error)


class Room:
    """An amount of memory that threads share: who finds none left waits."""

    def __init__(self, size: int) -> None:
        """Begin empty.

        Args:
            size: in bytes.
        """
        self.size = size
        self._taken = 0
        self._next, self._changed = Lock(), Condition()

    @contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Wait for room and hold it; who wants more than there is gets all, when it is empty."""
        with self._next, self._changed:  # in turn, or many small ones would keep out a large one
            self._changed.wait_for(lambda: not self._taken or self._taken + size <= self.size)
            self._taken += size
        try:
            yield
        finally:
            with self._changed:
                self._taken -= size
                self._changed.notify_all()


DECODING = Room(ROOM_BYTES)


def picture_format(head: bytes) -> str | None:
    """Tell the format by its first 12 bytes; None if it is none of those we train on."""
    if head.startswith(PNG_SIGNATURE):
        return "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    return None


def verify(path: Path, max_bytes: int, max_pixels: int) -> Picture | Failed:
    """Check a file to its last byte, within limits; see `verified`."""
    found = verified(path, max_bytes, max_pixels)
    return found if isinstance(found, Failed) else found[0]


def verified(path: Path, max_bytes: int, max_pixels: int) -> tuple[Picture, list[Piece]] | Failed:
    """Check a file to its last byte, within limits: a PNG by its chunks, others by decoding.

    Every byte of a PNG's pixels is under a checksum, which finds what a network does to a file;
    other formats have none, and must be decoded.

    Args:
        path: a file that is not changed meanwhile.
        max_bytes: larger files are not read.
        max_pixels: width * height; larger pictures are not decoded.

    Returns:
        The picture, as wide and high as it is seen, and the parts of its bytes that are left
        without metadata.
    """
    if path.stat().st_size > max_bytes:
        return Failed("too_large")
    content = path.read_bytes()
    name = picture_format(content[:12])
    if name is None:
        return Failed("not_an_image")
    size = (
        png_size(content, max_pixels) if name == "PNG" else decoded_size(content, name, max_pixels)
    )
    if size is None:
        return Failed("broken_image")
    width, height = size
    if width * height > max_pixels:
        return Failed("too_many_pixels")
    parts, orientation = parts_and_orientation(content)
    if is_on_its_side(orientation):
        width, height = height, width
    return Picture(SUFFIXES[name], width, height, sha256_parts(parts)), parts


def decoded_size(content: bytes, name: str, max_pixels: int) -> tuple[int, int] | None:
    """Decode a picture completely, if it is not too large; None if that fails, or goes on for long.

    Args:
        content: of a file.
        name: its format.
        max_pixels: a picture of more is only measured.
    """
    try:
        with Image.open(io.BytesIO(content), formats=[name]) as image:
            width, height = image.size
        del image
        # within a scan, no 0xFF is followed by a marker
        if name == "JPEG" and content.count(bytes([0xFF, JPEG_SCAN])) > MOST_SCANS:
            return None
        if width * height <= max_pixels:
            with DECODING.taken(width * height * DECODED_BYTES[name]):
                _decode(content, name)
    except BROKEN:
        return None
    return width, height


def _decode(content: bytes, name: str) -> None:
    """Decode a picture completely, and hold nothing of it."""
    with Image.open(io.BytesIO(content), formats=[name]) as image:
        image.load()


def png_size(content: bytes, max_pixels: int) -> tuple[int, int] | None:
    """Check every chunk's CRC up to the end marker; None if one is wrong or missing.

    What has sound checksums may still be no picture, and then it would stop the training: its
    header must be one that the format knows, and its compressed pixels long enough for its size.

    Args:
        content: of a file.
        max_pixels: a picture of more is only measured.

    Source: W3C, "Portable Network Graphics", 5.3 Chunk layout, 5.6 Chunk ordering, 11.2.2 IHDR.
    """
    view, at = memoryview(content), len(PNG_SIGNATURE)
    header, pixels, pixel_bytes = b"", b"", 0
    while at + 12 <= len(view):
        (length,) = struct.unpack_from(">I", view, at)
        kind, end = content[at + 4 : at + 8], at + 12 + length
        if end > len(view):
            return None
        (crc,) = struct.unpack_from(">I", view, end - 4)
        if zlib.crc32(view[at + 4 : end - 4]) != crc:
            return None
        if not header:
            header = content[at + 8 : end - 4]
            if kind != b"IHDR" or not _is_png_header(header):
                return None
        if kind == b"IDAT":
            pixels += content[at + 8 : at + 8 + max(0, 2 - len(pixels))][:length]
            pixel_bytes += length
        if kind == b"IEND":
            return _png_size(header, pixels, pixel_bytes, max_pixels)
        at = end
    return None


def _is_png_header(header: bytes) -> bool:
    if len(header) != 13:
        return False
    width, height, depth, colour, compression, filters, interlace = struct.unpack(
        ">IIBBBBB", header
    )
    is_known = depth in PNG_DEPTHS.get(colour, ()) and not compression and not filters
    return bool(width and height and is_known and interlace <= 1)


def _png_size(
    header: bytes, start: bytes, pixel_bytes: int, max_pixels: int
) -> tuple[int, int] | None:
    """Read width and height, unless the pixels are none.

    Args:
        header: a sound IHDR.
        start: of the compressed pixels, two bytes.
        pixel_bytes: all that they have.
        max_pixels: a picture of more is only measured.
    """
    width, height, depth, colour = struct.unpack_from(">IIBB", header)
    if len(start) < 2 or start[0] & 15 != 8 or int.from_bytes(start, "big") % 31:  # RFC 1950, 2.2
        return None
    least_bytes = width * height * depth * PNG_CHANNELS[colour] // 8
    if width * height <= max_pixels and least_bytes > DEFLATE_RATIO * pixel_bytes:
        return None
    return width, height
