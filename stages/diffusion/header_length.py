"""A safetensors header's length, looked at before anybody reads it."""

from pathlib import Path

from stages.diffusion.header import MAX_HEADER_BYTES


def check_header_length(path: Path) -> None:
    """Refuse a file whose header is longer than any program reads; what else it is stays open.

    Raises:
        ValueError: naming the file, the limit and the length.
    """
    with path.open("rb") as file:
        start = file.read(9)
    length = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and length > MAX_HEADER_BYTES:
        raise ValueError(
            f"{path}: its safetensors header says that it is {length:,} bytes long; at most "
            f"{MAX_HEADER_BYTES:,} are read, here as in the safetensors library, and a model of "
            "1,000 tensors takes 0.2 million. The file is damaged, or made to exhaust memory: "
            "fetch it again, from where you trust it"
        )
