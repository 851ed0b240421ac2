"""What single columns of an export tell: dates, links, names, sizes; in each form known."""

from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from stages.midjourney.strings import slices, string_buffers

_UTC = pa.timestamp("s", "UTC")
_PLAIN_DATE = r"\A\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:\.\d*)?(?:Z|\+00:?00)\z"


def utc_seconds(text: pa.Array) -> pa.Array:
    """Read dates: ISO 8601 with or without zone and fraction, or `05/31/2023 4:05 PM`.

    A date without a zone is taken as UTC, for the export does not say where it was made;
    what is no date becomes null.
    """
    try:
        if pc.all(pc.match_substring_regex(text, _PLAIN_DATE)).as_py():
            seconds = pc.binary_slice(text.cast(pa.binary()), 0, 19).cast(pa.string())
            return seconds.cast(pa.timestamp("s")).cast(_UTC)
    except pa.ArrowInvalid:
        pass  # a 31st of February
    parts = pc.extract_regex(
        text,
        r"\A\s*(?P<day>\d{4}-\d\d-\d\d)[T ](?P<time>\d\d:\d\d:\d\d)(?:\.\d*)?"
        r"(?:Z|(?P<sign>[+-])(?P<hours>\d\d):?(?P<minutes>\d\d))?\s*\z",
    )

    def part(name: str) -> pa.Array:
        return pc.struct_field(parts, name)

    def number(name: str) -> pa.Array:
        return pc.cast(pc.if_else(pc.equal(part(name), ""), "0", part(name)), pa.int64())

    local = pc.strptime(
        pc.binary_join_element_wise(part("day"), part("time"), " "),
        format="%Y-%m-%d %H:%M:%S",
        unit="s",
        error_is_null=True,
    )
    east_s = pc.multiply(
        pc.if_else(pc.equal(part("sign"), "-"), -60, 60),
        pc.add(pc.multiply(number("hours"), 60), number("minutes")),
    )
    iso = pc.subtract(local, pc.cast(east_s, pa.duration("s")))
    american = pc.strptime(text, format="%m/%d/%Y %I:%M %p", unit="s", error_is_null=True)
    return pc.cast(pc.coalesce(iso, american), pa.timestamp("s", "UTC"))


def iso_dates(timestamps: pa.Array) -> pa.Array:
    """Write dates as ISO 8601; empty if there is none."""
    written = pc.cast(pc.cast(timestamps, pa.timestamp("s")), pa.string())
    dashed = pc.replace_substring(written, " ", "T", max_replacements=1)
    return pc.fill_null(pc.binary_join_element_wise(dashed, "+00:00", ""), "")


_LINK_START = r"\A[\s\[\"']*https?://[^,\s\"'\]]"


def has_link(attachments: pa.Array) -> pa.Array:
    """Tell where `first_link` will find one."""
    found = pc.starts_with(attachments, "https://cdn.discordapp.com/")  # nearly all do
    others = pc.invert(found)
    return pc.replace_with_mask(
        found, others, pc.match_substring_regex(attachments.filter(others), _LINK_START)
    )


def first_link(attachments: pa.Array) -> pa.Array:
    """Take the first of comma-joined links; empty if there is none."""
    if pc.all(pc.match_substring_regex(attachments, r"\Ahttps?://[^,\s\"'\]]+\z")).as_py():
        return attachments  # as almost always, one each
    found = pc.extract_regex(attachments, r"\A[\s\[\"']*(?P<url>https?://[^,\s\"'\]]+)")
    return pc.fill_null(pc.struct_field(found, "url"), "")


def shorter_side(width: pa.Array, height: pa.Array) -> pa.Array:
    """Read sizes written as digits; null where either is not."""
    sides = [
        pc.cast(pc.if_else(pc.match_substring_regex(side, r"\A\d{1,6}\z"), side, None), pa.int32())
        for side in (width, height)
    ]
    return pc.min_element_wise(*sides, skip_nulls=False)


def ids(message_ids: pa.Array, urls: pa.Array) -> pa.Array:
    """Name pictures by their message, else by Discord's attachment id, else by their address."""
    known = pc.if_else(pc.equal(message_ids, ""), attachment_ids(urls), message_ids)
    unknown = known.is_null()
    hashed = [sha256(url.encode()).hexdigest()[:20] for url in urls.filter(unknown).to_pylist()]
    return pc.replace_with_mask(known, unknown, pa.array(hashed, pa.string()))


def attachment_ids(urls: pa.Array) -> pa.Array:
    """Read the number before the file's name; null if there is none."""
    bounds, text = string_buffers(urls)
    starts, ends = bounds[:-1], bounds[1:]
    query_at = pc.find_substring(urls, "?").to_numpy()
    slashes = np.append(np.flatnonzero(text == ord("/")), [-1, -1])  # the last two: of no row
    last = np.searchsorted(slashes[:-2], np.where(query_at < 0, ends, starts + query_at)) - 1
    before = slashes[last - 1]
    is_there = (last > 0) & (before >= starts)
    part = slices(
        urls, np.where(is_there, before + 1, ends), np.where(is_there, slashes[last], ends)
    )
    return pc.if_else(pc.match_substring_regex(part, r"\A\d+\z"), part, None)
