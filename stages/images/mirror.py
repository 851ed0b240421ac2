"""Mirrors hold what links point to: the path of the link, below a folder or an address.

An address is the base of a web server, `https://host/base`, or of a bucket, `s3://bucket/base`.
"""

from collections.abc import Iterator, Sequence
from errno import EDQUOT, EFBIG, ENOSPC, EROFS
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from stages.images.link import mirror_paths


def is_address(mirror: str) -> bool:
    """Tell a mirror elsewhere from a folder."""
    return "://" in mirror


def check_address(mirror: str) -> None:
    """Refuse what is no base of links.

    Raises:
        ValueError: naming what is wrong.
    """
    parts = urlsplit(mirror)
    if parts.scheme not in ("http", "https", "s3") or not parts.hostname:
        raise ValueError(f"mirrors are folders, https:// or s3:// addresses, got {mirror!r}")
    if parts.username is not None or parts.query or parts.fragment:
        raise ValueError(
            "an address in mirrors holds a password, a query or a fragment. Params are committed: "
            "leave them out; s3:// takes credentials from AWS_*"
        )


def check_mirrors(mirrors: Sequence[str]) -> None:
    """Stop before the work if a mirror's folder is not there.

    Raises:
        NotADirectoryError: naming the mirror.
    """
    for mirror in mirrors:
        if not is_address(mirror) and not Path(mirror).is_dir():
            raise NotADirectoryError(
                f"{mirror}: no such folder, but download.mirrors names it. A mirror holds "
                "attachments/CHANNEL/ATTACHMENT/NAME for Discord's links; correct the params, "
                "or take it out of the list"
            )


def mirrored(link: str, mirrors: Sequence[str]) -> Iterator[Path | str]:
    """List the files that folders hold for a link, and its addresses, in the mirrors' order."""
    below = mirror_paths(link)
    for mirror in mirrors:
        if is_address(mirror):
            names = dict.fromkeys(quote(unquote(name)) for name in below[:1])
            yield from (f"{mirror.rstrip('/')}/{name}" for name in names)
        else:
            yield from (path for name in below if (path := Path(mirror) / name).is_file())


def copy_object(address: str, path: Path, max_bytes: int) -> str:
    """Copy an object of a bucket, with the credentials that AWS's tools use.

    Args:
        address: `s3://bucket/key`, the key quoted as in a link.
        path: of the copy.
        max_bytes: larger objects are not copied.

    Returns:
        The reason for which it cannot be had, one of outcome.REASONS; empty: it is there.
    """
    from botocore.exceptions import BotoCoreError  # slow to import, and only buckets need it

    bucket = _buckets()
    parts = urlsplit(address)
    name = f"{parts.netloc}{unquote(parts.path)}"
    try:
        if bucket.size(name) > max_bytes:
            return "too_large"
        bucket.get_file(name, str(path))
    except FileNotFoundError:
        return "gone"
    except PermissionError:
        return "refused"
    except OSError as error:
        if error.filename == str(path) or error.errno in (ENOSPC, EFBIG, EDQUOT, EROFS):
            raise
        return "unreachable"
    except BotoCoreError:  # no way to the server, or no answer
        return "unreachable"
    return ""


@cache
def _buckets() -> Any:
    import botocore.session
    import fsspec

    is_public = botocore.session.get_session().get_credentials() is None
    # no listing is remembered: each object is asked for once; trying again is the caller's
    settings = {"retries": {"max_attempts": 0}, "connect_timeout": 10}
    buckets = fsspec.filesystem(
        "s3", anon=is_public, use_listings_cache=False, config_kwargs=settings
    )
    buckets.retries = 1
    return buckets
