"""Is a file the picture that it claims to be, to its last byte?

Files from the network are untrusted: nothing is decoded before its format, its size in bytes and
its size in pixels are known to be among those expected.
"""

import io
import struct
import zlib
from pathlib import Path

from PIL import Image

from stages.harness.files import sha256_bytes
from stages.images.outcome import Failed, Picture

# The limits here are the caller's, and they come before decoding; Pillow's own limit only warns.
Image.MAX_IMAGE_PIXELS = None

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "WEBP": ".webp"}
# What Pillow's readers raise on broken files.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, OverflowError, struct.error, zlib.error)


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
    """Decode a file completely, within limits.

    Args:
        path: a file that is not changed meanwhile.
        max_bytes: larger files are not read.
        max_pixels: width * height; larger pictures are not decoded.
    """
    if path.stat().st_size > max_bytes:
        return Failed("too_large")
    content = path.read_bytes()
    name = picture_format(content[:12])
    if name is None:
        return Failed("not_an_image")
    if name == "PNG" and not is_whole_png(content):
        return Failed("broken_image")
    try:
        with Image.open(io.BytesIO(content), formats=[name]) as image:
            width, height = image.size
            if width * height > max_pixels:
                return Failed("too_many_pixels")
            image.load()
    except BROKEN:
        return Failed("broken_image")
    return Picture(SUFFIXES[name], width, height, sha256_bytes(content))


def is_whole_png(content: bytes) -> bool:
    """Check every chunk's CRC up to the end marker; Pillow skips those of the pixels.

    Source: W3C, "Portable Network Graphics", 5.3 Chunk layout.
    """
    view, at = memoryview(content), len(PNG_SIGNATURE)
    while at + 12 <= len(view):
        (length,) = struct.unpack_from(">I", view, at)
        end = at + 12 + length
        if end > len(view):
            return False
        (crc,) = struct.unpack_from(">I", view, end - 4)
        if zlib.crc32(view[at + 4 : end - 4]) != crc:
            return False
        if content[at + 4 : at + 8] == b"IEND":
            return True
        at = end
    return False
