"""Where to look for the pictures of a table of links: decided on columns, before anybody is asked.

Each function takes Arrow columns and gives Arrow columns; none reads a clock, a disk or a network,
so batches may be decided anywhere.
"""

from collections.abc import Iterable, Sequence, Set

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


def one_link_per_picture(links: pa.RecordBatch) -> pa.Array:
    """Choose, of the links to one picture, the one that ends last; bad links stand for themselves.

    Args:
        links: all of them, of schema LINKS.

    Returns:
        The chosen link of each row.
    """
    names = pc.coalesce(links["picture"], links["link"])
    columns = {"name": names, "link": links["link"], "end": pc.fill_null(links["ends_at"], 0)}
    last_first = pa.table(columns).sort_by([("end", "descending"), ("link", "descending")])
    best = last_first.group_by("name", use_threads=False).aggregate([("link", "first")])
    chosen = pc.index_in(names, best["name"].combine_chunks())
    return best["link_first"].combine_chunks().take(chosen)


def shared_paths(links: pa.RecordBatch) -> frozenset[str]:
    """List the paths below a mirror that several pictures have: those of other hosts or queries.

    Args:
        links: all of them, of schema LINKS.
    """
    columns: list[tuple[pa.Array, pa.Array]] = []
    for first in range(0, len(links) or 1, LINKS_AT_ONCE):
        good = links.slice(first, LINKS_AT_ONCE)["picture"].drop_null().to_pylist()
        pairs = [(path, picture_address(link)) for link in good for path in mirror_paths(link)]
        columns.append((_strings(path for path, _ in pairs), _strings(whose for _, whose in pairs)))
    paths, pictures = (pa.chunked_array(parts, pa.string()) for parts in zip(*columns, strict=True))
    counts = pa.table({"path": paths, "picture": pictures}).group_by("path")
    counted = counts.aggregate([("picture", "count_distinct")])
    is_shared = pc.greater(counted["picture_count_distinct"], 1)
    return frozenset(counted["path"].filter(is_shared).to_pylist())


def _strings(texts: Iterable[str]) -> pa.Array:
    return pa.array(texts, pa.string())


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
