"""Folders that hold what links point to: the path of the link, below the folder."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from stages.images.link import mirror_paths


def check_mirrors(mirrors: Sequence[Path]) -> None:
    """Stop before the work if a mirror is not there.

    Raises:
        NotADirectoryError: naming the mirror.
    """
    for mirror in mirrors:
        if not mirror.is_dir():
            raise NotADirectoryError(
                f"{mirror}: no such folder, but download.mirrors names it. A mirror holds "
                "attachments/CHANNEL/ATTACHMENT/NAME for Discord's links; correct the params, "
                "or take it out of the list"
            )


def mirrored(link: str, mirrors: Sequence[Path]) -> Iterator[Path]:
    """List the files that mirrors hold for a link, in the mirrors' order."""
    below = mirror_paths(link)
    for mirror in mirrors:
        yield from (path for name in below if (path := mirror / name).is_file())
