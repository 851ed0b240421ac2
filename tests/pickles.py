"""Find pickles by content: what runs code when it is read, whatever its name says."""

import bz2
import gzip
import io
import lzma
import pickletools
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# The first bytes of a pickle of protocol 2 to 5; the older protocols have no mark.
MARK = re.compile(rb"\x80[\x02-\x05]")
# Opcodes by which a pickle names or calls something of a module. One without them builds numbers
# and lists only, but is a pickle all the same where it stands at a file's start.
CALLS = {"GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "REDUCE", "EXT1"}
NAME = re.compile(r"[A-Za-z_][\w.]*")
OBJECT_ARRAY = re.compile(rb"\x93NUMPY.{4,8}\{'descr': '\|O'", re.DOTALL)
MAX_STEPS = 10_000  # opcodes looked at from one mark; a pickle's imports come long before
PACKED: dict[bytes, Callable[[bytes], bytes]] = {
    b"\x1f\x8b": gzip.decompress,
    b"BZh": bz2.decompress,
    b"\xfd7zXZ\x00": lzma.decompress,
    b"\x78\x01": zlib.decompress,
    b"\x78\x9c": zlib.decompress,
    b"\x78\xda": zlib.decompress,
}


def pickles_below(paths: Iterable[Path]) -> list[str]:
    """Name every pickle in files and folders, also inside archives and compressed files."""
    found: list[str] = []
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                found += pickles_in(file.read_bytes(), str(file))
    return found


def pickles_in(content: bytes, name: str) -> list[str]:
    """Name the pickles in some bytes.

    Args:
        content: of a file, or of a member of one.
        name: by which to call it.
    """
    if starts_as_pickle(content) or has_imports(content) or OBJECT_ARRAY.search(content):
        return [name]
    return [
        found
        for inner, inner_name in members(content, name)
        for found in pickles_in(inner, inner_name)
    ]


def members(content: bytes, name: str) -> Iterator[tuple[bytes, str]]:
    """Unpack an archive or a compressed file; nothing else has members."""
    file = io.BytesIO(content)
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            for member in archive.namelist():
                yield archive.read(member), f"{name}/{member}"
    elif content[257:262] == b"ustar":
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            for entry in tar:
                if opened := tar.extractfile(entry):
                    yield opened.read(), f"{name}/{entry.name}"
    for mark, unpack in PACKED.items():
        if content.startswith(mark):
            try:
                yield unpack(content), f"{name} (unpacked)"
            except (OSError, EOFError, lzma.LZMAError, zlib.error):
                continue  # bytes that only begin alike


def starts_as_pickle(content: bytes) -> bool:
    """Tell whether bytes begin with a pickle, to its last opcode.

    One of protocol 0 or 1 has no mark; it must call something, for `.` alone is one, too.
    """
    calls = False
    try:
        for opcode, _, _ in pickletools.genops(content):
            calls |= opcode.name in CALLS
    except Exception:  # noqa: BLE001 # genops raises what its readers happen to raise
        return False
    return calls or bool(MARK.match(content))


def has_imports(content: bytes) -> bool:
    """Tell whether somewhere in bytes a pickle begins that names something of a module."""
    return any(_imports(content[mark.start() :]) for mark in MARK.finditer(content))


def _imports(content: bytes) -> bool:
    strings: list[str] = []
    try:
        for step, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if opcode.name in ("GLOBAL", "INST"):
                return all(NAME.fullmatch(word) for word in str(argument).split(" "))
            if opcode.name == "STACK_GLOBAL":
                return all(map(NAME.fullmatch, strings[-2:])) and len(strings) > 1
            if isinstance(argument, str):
                strings.append(argument)
            if step > MAX_STEPS:
                return False
    except Exception:  # noqa: BLE001 # as above: no pickle, then
        return False
    return False
