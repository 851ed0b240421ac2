"""Where to look for the pictures of a table of links: decided on columns, before anybody is asked.

Each function takes Arrow columns and gives Arrow columns; none reads a clock, a disk or a network,
so batches may be decided anywhere.
"""

from collections.abc import Iterable, Iterator, Sequence, Set
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.images.link import expires_at, is_link, mirror_paths, picture_address, picture_key
from stages.images.mirror import places

LINKS_AT_ONCE = 4096  # as objects of Python, each far larger than its bytes
LAST_TIME_S = 1 << 53  # exact as a float, too
LINKS = pa.schema(
    [
        ("link", pa.string()),
        ("picture", pa.string()),  # its name, whatever the link's signature; null: no such link
        ("ends_at", pa.int64()),  # Unix time; null: the link does not say
    ]
)
PLAN = pa.schema(
    [
        ("link", pa.string()),
        ("places", pa.list_(pa.string())),  # of mirrors: paths and addresses, in their order
        ("reason", pa.string()),  # why the link itself is not to be asked; null: it is
    ]
)


def read_links(links: pa.Array) -> pa.RecordBatch:
    """Read what links say of themselves.

    Args:
        links: of strings.

    Returns:
        Of schema LINKS, a row for each link.
    """
    texts = links.to_pylist()
    are_links = list(map(is_link, texts))
    known = list(zip(texts, are_links, strict=True))
    pictures = [picture_key(link) if is_good else None for link, is_good in known]
    ends = [_bounded(expires_at(link)) if is_good else None for link, is_good in known]
    columns = [links, pa.array(pictures, pa.string()), pa.array(ends, pa.int64())]
    return pa.RecordBatch.from_arrays(columns, schema=LINKS)


def _bounded(time_s: int | None) -> int | None:
    """Bring a time that a stranger wrote within those that clocks may show."""
    return None if time_s is None else max(-LAST_TIME_S, min(time_s, LAST_TIME_S))


def name_pictures(links: pa.RecordBatch) -> pa.Array:
    """Give each link a short name of its picture; bad links stand for themselves.

    Args:
        links: of schema LINKS.

    Returns:
        Of 16 bytes each, for there may be millions.
    """
    names = pc.fill_null(pc.coalesce(links["picture"], links["link"]), "").to_pylist()
    digests = [blake2b(name.encode(), digest_size=16).digest() for name in names]
    return pa.array(digests, pa.binary(16))


def one_link_per_picture(
    names: pa.ChunkedArray, ends: pa.ChunkedArray
) -> tuple[np.ndarray, np.ndarray]:
    """Choose, of the links to one picture, the one that ends last; of equal ones the first.

    Args:
        names: of all links' pictures.
        ends: when each link ends, as in schema LINKS.

    Returns:
        Of each link the number of its picture, counted as they first come; and of each picture
        the place of the chosen link.
    """
    numbers = np.asarray(names.combine_chunks().dictionary_encode().indices)
    last = np.asarray(pc.fill_null(ends, 0).combine_chunks())
    order = np.lexsort((-last, numbers))  # stable
    ordered = numbers[order]
    is_first = np.ones(len(order), bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    return numbers, order[is_first]


def shared_paths(links: Iterable[pa.RecordBatch]) -> frozenset[str]:
    """List the paths below a mirror that several pictures have: those of other hosts or queries.

    Args:
        links: all of them, of schema LINKS; gone through twice if there is such a path.
    """
    parts = [np.empty((0, 2), np.uint64)]
    for batch in links:
        pairs = [(_short(path), _short(whose)) for path, whose in _paths(batch)]
        parts.append(np.array(pairs, np.uint64).reshape(-1, 2))
    paths, pictures = np.concatenate(parts).T
    order = np.lexsort((pictures, paths))
    paths, pictures = paths[order], pictures[order]
    is_shared = (paths[1:] == paths[:-1]) & (pictures[1:] != pictures[:-1])
    shared = set(paths[1:][is_shared].tolist())
    if not shared:
        return frozenset()
    return frozenset(path for batch in links for path, _ in _paths(batch) if _short(path) in shared)


def _paths(links: pa.RecordBatch) -> Iterator[tuple[str, str]]:
    """Give the paths below a mirror of each picture, and which picture that is."""
    for link in links["picture"].drop_null().to_pylist():
        whose = picture_address(link)
        for path in mirror_paths(link):
            yield path, whose


def _short(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(errors="replace"), digest_size=8).digest(), "big")


def plan(
    links: pa.RecordBatch,
    mirrors: Sequence[str],
    use_links: bool,
    now: float,
    shared: Set[str] = frozenset(),
) -> pa.RecordBatch:
    """Say where to look for each picture: in which places of mirrors, and whether at its link.

    Args:
        links: of schema LINKS.
        mirrors: folders and addresses.
        use_links: whether links may be asked at all.
        now: Unix time.
        shared: paths for which no mirror is asked, as `shared_paths` lists them.

    Returns:
        Of schema PLAN, a row for each link. The reasons are of outcome.REASONS.
    """
    is_bad = links["picture"].is_null()
    is_over = pc.fill_null(pc.less_equal(pc.cast(links["ends_at"], pa.float64()), now), False)
    is_barred = pa.repeat(not use_links, len(links))
    names = ["bad_link", "not_mirrored", "expired"]
    reason = pc.case_when(pc.make_struct(is_bad, is_barred, is_over, field_names=names), *names)
    known = zip(links["link"].to_pylist(), is_bad.to_pylist(), strict=True)
    found = [[] if is_no_link else places(link, mirrors, shared) for link, is_no_link in known]
    columns = [links["link"], pa.array(found, PLAN.field("places").type), reason]
    return pa.RecordBatch.from_arrays(columns, schema=PLAN)
