"""The hashes by which A1111, Civitai and ComfyUI know a file of weights."""

import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

CHUNK_BYTES = 1 << 20
TENSORS_HASH = "modelspec.hash_sha256"  # in metadata: of all that follows the header, 0x and hex


@dataclass(frozen=True, slots=True)
class Digests:
    """Hex digits, in lower case; Civitai shows the same in upper case.

    Source: modules/hashes.py and sd_models.py of A1111; AutoV1 to V3 are Civitai's names for them.
    """

    sha256: str  # of the file
    auto_v1: str  # of 64 KiB at 1 MiB, 8 digits
    auto_v2: str  # `sha256`, 10 digits
    auto_v3: str  # of all that follows the header, 12 digits: metadata may change
    crc32: str  # of the file
    tensors_sha256: str  # of all that follows the header


def legacy_hash(path: Path) -> str:
    """Hash 64 KiB at 1 MiB, as A1111's first versions did; 8 hex digits, also called AutoV1."""
    with path.open("rb") as file:
        file.seek(0x100000)
        return hashlib.sha256(file.read(0x10000)).hexdigest()[:8]


def tensors_start(path: Path) -> int:
    """Tell where in a safetensors file the header ends."""
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def hash_tensors(path: Path) -> str:
    """Hash all that follows a safetensors file's header; 64 hex digits."""
    with path.open("rb") as file:
        file.seek(tensors_start(path))
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest_file(path: Path) -> Digests:
    """Read a safetensors file once and hash it in all ways."""
    whole, tensors, crc32 = hashlib.sha256(), hashlib.sha256(), 0
    with path.open("rb") as file:
        length = file.read(8)
        header = length + file.read(int.from_bytes(length, "little"))
        whole.update(header)
        crc32 = zlib.crc32(header)
        while chunk := file.read(CHUNK_BYTES):
            whole.update(chunk)
            tensors.update(chunk)
            crc32 = zlib.crc32(chunk, crc32)
    return Digests(
        sha256=whole.hexdigest(),
        auto_v1=legacy_hash(path),
        auto_v2=whole.hexdigest()[:10],
        auto_v3=tensors.hexdigest()[:12],
        crc32=f"{crc32:08x}",
        tensors_sha256=tensors.hexdigest(),
    )
