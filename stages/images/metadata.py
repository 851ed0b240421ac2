"""Pictures without the words that programs write into them, and with every pixel as it was.

Midjourney and others name the author in text chunks, EXIF and XMP; a picture in a shard names
nobody. Parts are left out whole, nothing is encoded anew: the same file gives the same bytes.
"""

import hashlib
import re
import struct
from collections.abc import Iterable, Iterator

PNG_KEPT = b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT cICP".split()
WEBP_KEPT = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"ANIM", b"ANMF")
WEBP_TEXT_FLAGS = 0x08 | 0x04  # EXIF and XMP, in the first byte of VP8X
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # no stuffed byte, restart or fill byte
JPEG_APPLICATION = range(0xE0, 0xF0)
JPEG_COMMENT = 0xFE
Piece = bytes | memoryview


def without_metadata(content: bytes) -> bytes:
    """Leave out text, EXIF, XMP and comments of a picture that decodes; colour profiles stay.

    Args:
        content: a whole PNG, JPEG or WebP.
    """
    return b"".join(plain_parts(content))


def plain_parts(content: bytes) -> list[Piece]:
    """Give the parts that `without_metadata` leaves, most of them views: pictures are large."""
    if content.startswith(b"\x89PNG"):
        return list(_png_parts(content))
    if content.startswith(b"RIFF"):
        chunks = list(_webp_chunks(content))
        size = len(b"WEBP") + sum(map(len, chunks))
        return [b"RIFF" + struct.pack("<I", size) + b"WEBP", *chunks]
    return [content[:2], *_jpeg_segments(content)]


def sha256_parts(parts: Iterable[Piece]) -> str:
    """Hash parts as the one text that they make; 64 hex digits."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def _png_parts(content: bytes) -> Iterator[memoryview]:
    """Give what is to be kept, up to the end marker, in as few parts as it makes.

    Source: PNG specification, 5.3.
    """
    view, at, kept_from, kind = memoryview(content), 8, 0, b""
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", content, at)
        kind, end = content[at + 4 : at + 8], at + 12 + length
        if kind not in PNG_KEPT:
            yield view[kept_from:at]
            kept_from = end
        at = end
    yield view[kept_from:at]


def _webp_chunks(content: bytes) -> Iterator[bytes]:
    """Give the chunks to keep, each padded to even length (RFC 9649, 2.3); nothing behind them."""
    (size,) = struct.unpack_from("<I", content, 4)
    at, end = 12, min(8 + size, len(content))
    while at + 8 <= end:
        kind = content[at : at + 4]
        (length,) = struct.unpack_from("<I", content, at + 4)
        chunk = content[at : at + 8 + length]
        if kind == b"VP8X" and length:
            chunk = chunk[:8] + bytes([chunk[8] & ~WEBP_TEXT_FLAGS]) + chunk[9:]
        if kind in WEBP_KEPT:
            yield chunk + bytes(len(chunk) % 2)
        at += 8 + length + length % 2


def _jpeg_segments(content: bytes) -> Iterator[bytes]:
    """Give the segments to keep, and all from the first scan to the end (ITU-T T.81, B.1.1)."""
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != JPEG_SCAN:
        if content[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", content, at + 2)
        segment = content[at : at + 2 + length]
        if _is_jpeg_kept(segment):
            yield segment
        at += 2 + length
    yield content[at : _jpeg_end(content, at)]


def _jpeg_end(content: bytes, at: int) -> int:
    """Find the end of a picture, from its first scan on; what programs put behind it is no part."""
    while marker := JPEG_MARKER.search(content, at):
        if marker[0][1] == JPEG_END:
            return marker.end()
        length = int.from_bytes(content[marker.end() : marker.end() + 2], "big")
        at = marker.end() + length
    return len(content)


def _is_jpeg_kept(segment: bytes) -> bool:
    """Keep what decoding and colours need: no comment, and of applications' own only these."""
    is_colour = segment[4:].startswith((b"JFIF\0", b"Adobe", b"ICC_PROFILE\0"))
    return is_colour or not (segment[1] in JPEG_APPLICATION or segment[1] == JPEG_COMMENT)
