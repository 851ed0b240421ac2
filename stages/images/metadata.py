"""Pictures without the words that programs write into them, and with every pixel as it was.

Midjourney and others name the author in text chunks, EXIF and XMP; a picture in a shard names
nobody. Parts are left out whole, nothing is encoded anew: the same file gives the same bytes.
Of EXIF the orientation alone stays, in a block of our own, for cameras leave pictures lying on
their side and say so there.
"""

import hashlib
import re
import struct
import zlib
from collections.abc import Iterable

PNG_HEAD_BYTES = 33  # signature and IHDR, which comes first
PNG_KEPT = b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT cICP".split()
WEBP_KEPT = (b"VP8X", b"VP8 ", b"VP8L", b"ALPH", b"ICCP", b"ANIM", b"ANMF")
WEBP_EXIF_FLAG = 0x08  # in the first byte of VP8X
WEBP_TEXT_FLAGS = WEBP_EXIF_FLAG | 0x04  # and XMP
JPEG_SCAN, JPEG_END = 0xDA, 0xD9
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # no stuffed byte, restart or fill byte
JPEG_APPLICATION = range(0xE0, 0xF0)
JPEG_EXIF = 0xE1
JPEG_COMMENT = 0xFE
EXIF_HEAD = b"Exif\0\0"  # before the block in a JPEG, and by mistake in some WebP
ORIENTATION, SHORT = 0x0112, 3  # an entry's tag, and the kind of its number
UPRIGHT, FIRST_ON_ITS_SIDE, LAST_ORIENTATION = 1, 5, 8
Piece = bytes | memoryview


def without_metadata(content: bytes) -> bytes:
    """Leave out text, EXIF, XMP and comments of a picture that decodes; colour profiles stay.

    Args:
        content: a whole PNG, JPEG or WebP.
    """
    return b"".join(plain_parts(content))


def plain_parts(content: bytes) -> list[Piece]:
    """Give the parts that `without_metadata` leaves, most of them views: pictures are large."""
    return parts_and_orientation(content)[0]


def parts_and_orientation(content: bytes) -> tuple[list[Piece], int]:
    """Give the parts to keep, and how what they show is to be turned: 1 to 8, as EXIF counts."""
    if content.startswith(b"\x89PNG"):
        return _png_parts(content)
    if content.startswith(b"RIFF"):
        return _webp_parts(content)
    return _jpeg_parts(content)


def is_on_its_side(orientation: int) -> bool:
    """Tell whether width and height of what is seen are height and width of what is stored."""
    return orientation >= FIRST_ON_ITS_SIDE


def read_orientation(exif: bytes) -> int:
    """Find the orientation in a block of EXIF; 1, upright, if it tells none.

    Source: TIFF 6.0, section 2; Exif 2.32 (CIPA DC-008), 4.6.4 A, tag 274.
    """
    exif = exif.removeprefix(EXIF_HEAD)
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return UPRIGHT
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, entry)
            if tag == ORIENTATION:
                is_one = kind == SHORT and UPRIGHT <= value <= LAST_ORIENTATION
                return value if is_one else UPRIGHT
    except struct.error:  # cut short
        pass
    return UPRIGHT


def orientation_block(orientation: int) -> bytes:
    """Write a block of EXIF that tells an orientation and nothing else."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, ORIENTATION, SHORT, 1, orientation, 0, 0)


def sha256_parts(parts: Iterable[Piece]) -> str:
    """Hash parts as the one text that they make; 64 hex digits."""
    whole = hashlib.sha256()
    for part in parts:
        whole.update(part)
    return whole.hexdigest()


def _png_parts(content: bytes) -> tuple[list[Piece], int]:
    """Give what is to be kept, up to the end marker, in as few parts as it makes.

    Source: PNG specification, 5.3.
    """
    view, at, kept_from, kind = memoryview(content), 8, PNG_HEAD_BYTES, b""
    parts: list[Piece] = [view[:PNG_HEAD_BYTES]]
    orientation = UPRIGHT
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", content, at)
        kind, end = content[at + 4 : at + 8], at + 12 + length
        if kind == b"eXIf":
            orientation = read_orientation(content[at + 8 : end - 4])
        if kind not in PNG_KEPT:
            parts.append(view[kept_from:at])
            kept_from = end
        at = end
    parts.append(view[kept_from:at])
    if orientation != UPRIGHT:
        chunk = b"eXIf" + orientation_block(orientation)
        framed = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        parts.insert(1, framed)
    return parts, orientation


def _webp_parts(content: bytes) -> tuple[list[Piece], int]:
    """Give the chunks to keep, each padded to even length (RFC 9649, 2.3); nothing behind them."""
    (size,) = struct.unpack_from("<I", content, 4)
    at, end, says_exif = 12, min(8 + size, len(content)), False
    chunks, orientation = list[bytes](), UPRIGHT
    while at + 8 <= end:
        kind = content[at : at + 4]
        (length,) = struct.unpack_from("<I", content, at + 4)
        chunk = content[at : at + 8 + length]
        if kind == b"VP8X" and length:
            says_exif = not chunks and bool(chunk[8] & WEBP_EXIF_FLAG)
            chunk = chunk[:8] + bytes([chunk[8] & ~WEBP_TEXT_FLAGS]) + chunk[9:]
        elif kind == b"EXIF" and says_exif and orientation == UPRIGHT:  # unsaid, nobody reads it
            orientation = read_orientation(chunk[8:])
        if kind in WEBP_KEPT:
            chunks.append(chunk + bytes(len(chunk) % 2))
        at += 8 + length + length % 2
    if orientation != UPRIGHT:
        # VP8X comes first
        chunks[0] = chunks[0][:8] + bytes([chunks[0][8] | WEBP_EXIF_FLAG]) + chunks[0][9:]
        block = orientation_block(orientation)
        chunks.append(b"EXIF" + struct.pack("<I", len(block)) + block)
    size = len(b"WEBP") + sum(map(len, chunks))
    return [b"RIFF" + struct.pack("<I", size) + b"WEBP", *chunks], orientation


def _jpeg_parts(content: bytes) -> tuple[list[Piece], int]:
    """Give the segments to keep, and all from the first scan to the end (ITU-T T.81, B.1.1)."""
    at, orientation = 2, UPRIGHT
    parts: list[Piece] = [content[:at]]
    while at + 4 <= len(content) and content[at] == 0xFF and content[at + 1] != JPEG_SCAN:
        if content[at + 1] == 0xFF:  # a fill byte
            at += 1
            continue
        (length,) = struct.unpack_from(">H", content, at + 2)
        segment = content[at : at + 2 + length]
        if segment[1] == JPEG_EXIF and segment[4:].startswith(EXIF_HEAD):
            orientation = read_orientation(segment[4:]) if orientation == UPRIGHT else orientation
        if _is_jpeg_kept(segment):
            parts.append(segment)
        at += 2 + length
    parts.append(content[at : _jpeg_end(content, at)])
    if orientation != UPRIGHT:
        block = EXIF_HEAD + orientation_block(orientation)
        parts.insert(1, bytes([0xFF, JPEG_EXIF]) + struct.pack(">H", 2 + len(block)) + block)
    return parts, orientation


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
