"""Files that are whole or absent, and hashes that name their bytes."""

import fcntl
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Large, for after each piece a thread waits up to 5 ms for others that keep the interpreter busy:
# beside imports, 2 GB in pieces of 256 kB took four times as long, and so did the imports.
PIECE = 16 << 20  # bytes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a scratch path; move it to `path` only if the block succeeds.

    A failure in the block, a full disk included, leaves what stood at `path` untouched and
    takes the scratch file away; a kill leaves a `.partial` beside it, which the next run replaces.
    Who comes while another still writes there waits for it, and replaces what it wrote.

    Args:
        path: of a file; missing parent folders are made.

    Raises:
        FileExistsError: if what stands there is no file, but a folder, a device or the like.
    """
    _make_way(path)
    scratch = scratch_of(path)
    with _alone(scratch):
        try:
            yield scratch
            _publish(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def _make_way(path: Path) -> None:
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path}: is no file, and will not be replaced by one")
    path.parent.mkdir(parents=True, exist_ok=True)


def _publish(scratch: Path, path: Path) -> None:
    """Give a file its name once its bytes are on the disk."""
    with scratch.open("rb") as file:
        os.fsync(file.fileno())
    scratch.replace(path)


def scratch_of(path: Path) -> Path:
    """Name the file that is written before it becomes `path`."""
    return path.with_name(path.name + ".partial")


@contextmanager
def _alone(scratch: Path) -> Iterator[None]:
    """Hold a scratch file for one writer; a killed one lets go of it by itself."""
    while True:
        descriptor = os.open(scratch, os.O_RDONLY | os.O_CREAT, 0o666)
        try:
            _lock(descriptor, scratch)
            if not _is_at(descriptor, scratch):
                continue  # whoever held it is through, and took it away
            yield
            return
        finally:
            with suppress(OSError):  # processes forked meanwhile would hold it on
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)


def _lock(descriptor: int, scratch: Path) -> None:
    with suppress(OSError):  # some file systems know no locks: there nobody waits
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.stderr.write(f"{scratch}: another process is still writing it; waiting for it\n")
            fcntl.flock(descriptor, fcntl.LOCK_EX)


def _is_at(descriptor: int, path: Path) -> bool:
    """Tell whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def write_json(path: Path, value: object) -> None:
    """Write JSON whose bytes depend on the value alone: sorted keys, UTF-8, a last newline."""
    text = json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with replacing(path) as scratch:
        scratch.write_text(text + "\n", encoding="utf-8")


def link_or_copy(source: Path, path: Path) -> None:
    """Give a file a second name, or copy it where the disk allows no hard link.

    Neither name is ever to be written in place: it would change what both show. So the scratch
    file, which the next writer writes into, is never the link; it keeps others waiting, as above.
    """
    _make_way(path)
    scratch = scratch_of(path)
    link = path.with_name(path.name + ".link.partial")
    with _alone(scratch):
        try:
            link.unlink(missing_ok=True)
            try:
                link.hardlink_to(source)
            except OSError:
                shutil.copyfile(source, link)
            _publish(link, path)
        finally:
            link.unlink(missing_ok=True)  # it is left where both names were one file already
            scratch.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hash a file's bytes, read in pieces; 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        piece = memoryview(bytearray(min(size, PIECE) or PIECE))
        while count := file.readinto(piece):
            digest.update(piece[:count])
    return digest.hexdigest()


def sha256_folder(folder: Path) -> str:
    """Hash the files below a folder, by name and content; 64 hex digits.

    Raises:
        FileNotFoundError: if it is no folder, or holds no file.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    if not files:
        raise FileNotFoundError(f"{folder}: no such folder, or no file in it")
    return sha256_json({str(p.relative_to(folder).as_posix()): sha256_file(p) for p in files})


def sha256_bytes(content: bytes) -> str:
    """Hash bytes in memory; 64 hex digits."""
    return hashlib.sha256(content).hexdigest()


def sha256_json(value: object) -> str:
    """Hash a JSON value, whatever the order of its keys; 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return sha256_bytes(text.encode())
