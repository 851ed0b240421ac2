"""The text that a PNG carries beside its pixels, as A1111 writes it, and its removal.

Source: Portable Network Graphics (Third Edition), W3C, sections 5.3 and 11.3.3.
"""

import struct
from collections.abc import Iterator

SIGNATURE = b"\x89PNG\r\n\x1a\n"
TEXT_KINDS = (b"tEXt", b"zTXt", b"iTXt")
LENGTH = struct.Struct(">I")


def without_text(png: bytes) -> bytes:
    """Drop a PNG's text; the pixels are not touched.

    Raises:
        ValueError: if it is no PNG.
    """
    kept = (chunk for kind, chunk in _chunks(png) if kind not in TEXT_KINDS)
    return SIGNATURE + b"".join(kept)


def _chunks(png: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Give each chunk's kind, and the whole of it."""
    if not png.startswith(SIGNATURE):
        raise ValueError("not a PNG")
    at = len(SIGNATURE)
    while at < len(png):
        (length,) = LENGTH.unpack_from(png, at)
        end = at + length + 12  # length, kind and CRC are 4 bytes each
        yield png[at + 4 : at + 8], png[at:end]
        at = end
