"""The filter's question as a plain query of another engine: the rival of tests.benchmarks.filter.

  PYTHON filter_engines.py ENGINE CSV OUT

Needs nothing of this project but the engine. The question: of upscales with a link by known users,
those that ask for `--style raw` of version 5.1 or 5.2 and whose caption and flags are fit, by the
500 users who upscaled most and at least three times, one row per caption and user. What only the
full grammar answers is left out: malformed and cut messages, reasons and their counts, captions
alike but for letter case. OUT becomes a parquet file with the columns id, user and caption.
"""

import sys

# The tail of an upscale, the flags, and what makes a caption unfit; RE2 and Rust's regex read them.
MESSAGE = (
    r"(?s)\A\*\*(?P<prompt>.*)\*\* - (?:Image #[1-4]|Upscaled(?: \([A-Za-z0-9 ]+\))? by) "
    r"(?:<@!?(?P<uid>\d+)>|(?P<uname>@[^\r\n]+?))"
    r"(?: \(Open on website for full quality\))?(?: \((?:fast|relaxed|turbo)(?:, stealth)?\))?\s*\z"
)
RAW = r"(?:^|\s)(?:(?:--|—)style\s+raw|--raw)(?:\s|$)"
VERSION = r"(?:^|\s)--v (\S+)"
ASPECT = r"(?:^|\s)--(?:ar|aspect) (\d+):(\d+)"
CAPTION = r"(?s)^(.*?)(?:(?:^|\s)(?:--|—)[A-Za-z]+(?:\s.*)?)?$"
UNFIT = r"https?://|::|(?:^|\s)--(?:tile|niji)(?:\s|$)|(?:^|\s)--v\d|<@!?\d{15,21}>"
BLOCKED = r"(?i)\b(?:gore|nude)\b"
NAMES = ["AuthorID", "Author", "Date", "Content", "Attachments", "Reactions"]
ID = r"/(\d+)/[^/]*$"
DEFAULT_51, DEFAULT_52 = "2023-05-04", "2023-06-22"


def duckdb_query(path: str, out: str) -> None:
    """Ask DuckDB, in one query; who appeared first is told by the rows' order."""
    source = "(select *, row_number() over () as place from read_csv({csv}) where {marked})"
    _ask_duckdb(path, out, source)


def duckdb_by_date_query(path: str, out: str) -> None:
    """Ask DuckDB without numbering rows, which takes one thread: dates must only rise."""
    _ask_duckdb(path, out, "(select *, Date as place from read_csv({csv}) where {marked})")


def _ask_duckdb(path: str, out: str, source: str) -> None:
    import duckdb

    python_only = MESSAGE.replace("?P<prompt>", "").replace("?P<uid>", "").replace("?P<uname>", "")
    columns = ", ".join(f"'{name}': 'VARCHAR'" for name in NAMES)
    source = source.format(
        csv=f"'{path}', auto_detect = false, header = true, delim = ',', quote = '\"', "
        f"escape = '\"', new_line = '\\n', columns = {{{columns}}}",
        marked="contains(Content, '** - Image #') or contains(Content, '** - Upscaled')",
    )
    duckdb.sql("set threads = 2")
    duckdb.execute(
        rf"""
        copy (
          with matched as materialized (
            select regexp_extract(Content, '{python_only}', ['prompt', 'uid', 'uname']) as m,
              Attachments as url, Date as day, place
            from {source}
          ),
          upscales as (
            select m.prompt as prompt, m.uid || m.uname as who, url, day, place
            from matched where who not in ('', '@Unknown')
          ),
          users as (
            select who, row_number() over (order by count(*) desc, min(place)) as rank
            from upscales group by who having count(*) >= 3 order by rank limit 500
          ),
          raws as materialized (
            select prompt, rank, url, day, place from upscales join users using (who)
            where url != '' and contains(prompt, 'raw')
          ),
          captions as materialized (
            select regexp_extract(url, '{ID}', 1) as id, rank, place,
              rtrim(regexp_replace(regexp_extract(prompt, '{CAPTION}', 1), '\s+', ' ', 'g'), ' ,;')
                as caption
            from raws
            where regexp_matches(prompt, '{RAW}') and not regexp_matches(prompt, '{UNFIT}')
              and case when contains(prompt, '--v ')
                then regexp_extract(prompt, '{VERSION}', 1) in ('5.1', '5.2')
                else day >= '{DEFAULT_51}' end
              and case when contains(prompt, '--a')
                then greatest(
                  regexp_extract(prompt, '{ASPECT}', 1)::int
                    / regexp_extract(prompt, '{ASPECT}', 2)::int,
                  regexp_extract(prompt, '{ASPECT}', 2)::int
                    / regexp_extract(prompt, '{ASPECT}', 1)::int) <= 2
                else true end
          )
          select id, rank::int as user, caption
          from captions
          where length(caption) >= 5 and not regexp_matches(caption, '{BLOCKED}')
          qualify row_number() over (partition by rank, lower(caption) order by place) = 1
          order by place
        ) to '{out}' (format parquet)
        """
    )


def polars_query(path: str, out: str) -> None:
    """Ask Polars, with its streaming engine."""
    import polars as pl

    content, prompt = pl.col("Content"), pl.col("prompt")
    message = MESSAGE.replace(r"\z", r"$")
    wide = prompt.str.extract(ASPECT, 1).cast(pl.Float64)
    high = prompt.str.extract(ASPECT, 2).cast(pl.Float64)
    upscales = (
        pl.scan_csv(path, infer_schema=False)
        .filter(
            content.str.contains("** - Image #", literal=True)
            | content.str.contains("** - Upscaled", literal=True)
        )
        .select("Date", url="Attachments", m=content.str.extract_groups(message))
        .unnest("m")
        .with_columns(who=pl.coalesce("uid", "uname"))
        .filter(pl.col("who").is_not_null() & (pl.col("who") != "@Unknown"))
        .with_row_index("place")
        .select("place", "Date", "url", "prompt", "who")
        .collect(engine="streaming")
        .lazy()
    )
    users = (
        upscales.group_by("who")
        .agg(pl.len().alias("count"), pl.col("place").min())
        .filter(pl.col("count") >= 3)
        .sort(["count", "place"], descending=[True, False])
        .head(500)
        .with_row_index("user", 1)
        .select("who", "user")
    )
    version = prompt.str.extract(VERSION, 1)
    (
        upscales.join(users, on="who")
        .filter(
            (pl.col("url").fill_null("") != "")
            & prompt.str.contains(RAW)
            & ~prompt.str.contains(UNFIT)
            & (version.is_in(["5.1", "5.2"]) | (version.is_null() & (pl.col("Date") >= DEFAULT_51)))
            & pl.max_horizontal(wide / high, high / wide).fill_null(1.0).le(2)
        )
        .with_columns(
            caption=prompt.str.extract(CAPTION, 1)
            .str.replace_all(r"\s+", " ")
            .str.strip_chars_end(" ,;")
        )
        .filter((pl.col("caption").str.len_chars() >= 5) & ~pl.col("caption").str.contains(BLOCKED))
        .sort("place")
        .with_columns(key=pl.col("caption").str.to_lowercase())
        .unique(["user", "key"], keep="first", maintain_order=True)
        .select(pl.col("url").str.extract(ID, 1).alias("id"), pl.col("user").cast(int), "caption")
        .collect(engine="streaming")
        .write_parquet(out)
    )


def pyarrow_query(path: str, out: str) -> None:
    """Ask PyArrow, block by block; users, ratios and captions at the end, with pandas' help."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.csv

    found = []
    for batch in pyarrow.csv.open_csv(
        path,
        pyarrow.csv.ReadOptions(block_size=8 << 20),
        pyarrow.csv.ParseOptions(newlines_in_values=True),
        pyarrow.csv.ConvertOptions(
            include_columns=["Date", "Content", "Attachments"],
            column_types=dict.fromkeys(NAMES, pa.string()),
            strings_can_be_null=False,
        ),
    ):
        content = batch["Content"]
        is_marked = pc.or_(
            pc.match_substring(content, "** - Image #"),
            pc.match_substring(content, "** - Upscaled"),
        )
        kept = batch.filter(is_marked)
        parts = pc.extract_regex(kept["Content"], MESSAGE)
        found.append(
            pa.table(
                {
                    "prompt": pc.struct_field(parts, "prompt"),
                    "uid": pc.struct_field(parts, "uid"),
                    "uname": pc.struct_field(parts, "uname"),
                    "url": kept["Attachments"],
                    "Date": kept["Date"],
                }
            )
        )
    table = pa.concat_tables(found).combine_chunks()
    who = pc.binary_join_element_wise(table["uid"], table["uname"], "")
    _with_pandas(table.append_column("who", who).to_pandas(), out)


def pandas_query(path: str, out: str) -> None:
    """Ask pandas, in chunks."""
    import pandas as pd

    found = []
    for chunk in pd.read_csv(
        path,
        usecols=["Date", "Content", "Attachments"],
        dtype="str",
        keep_default_na=False,
        chunksize=200_000,
    ):
        is_marked = chunk["Content"].str.contains("** - Image #", regex=False) | chunk[
            "Content"
        ].str.contains("** - Upscaled", regex=False)
        kept = chunk[is_marked]
        parts = kept["Content"].str.extract(MESSAGE.replace(r"\z", r"\Z"))
        parts["who"] = parts["uid"].fillna("") + parts["uname"].fillna("")
        parts["url"], parts["Date"] = kept["Attachments"], kept["Date"]
        found.append(parts)
    _with_pandas(pd.concat(found, ignore_index=True), out)


def _with_pandas(table, out: str) -> None:  # type: ignore[no-untyped-def]
    """Finish what is small by then: rows prompt, who, url, Date in the export's order."""
    table = table[table["who"].fillna("").ne("") & table["who"].ne("@Unknown")]
    counts = table.groupby("who", sort=False).size()
    counts = counts[counts >= 3].sort_values(ascending=False, kind="stable")[:500]
    ranks = {who: rank for rank, who in enumerate(counts.index, start=1)}
    rows = table[table["who"].isin(ranks) & table["url"].ne("")]
    prompt = rows["prompt"]
    rows = rows[prompt.str.contains(RAW.replace("(", "(?:").replace("(?:?:", "(?:"), regex=True)]
    rows = rows[~rows["prompt"].str.contains(UNFIT, regex=True)]
    version = rows["prompt"].str.extract(VERSION)[0]
    rows = rows[version.isin(["5.1", "5.2"]) | (version.isna() & (rows["Date"] >= DEFAULT_51))]
    sides = rows["prompt"].str.extract(ASPECT).astype("float64").fillna(1)
    ratio = (sides[0] / sides[1]).combine(sides[1] / sides[0], max)
    rows = rows[ratio <= 2]
    caption = rows["prompt"].str.extract(CAPTION.replace("$", r"\Z"))[0]
    caption = caption.str.replace(r"\s+", " ", regex=True).str.rstrip(" ,;")
    rows = rows.assign(caption=caption, user=rows["who"].map(ranks))
    rows = rows[caption.str.len().ge(5) & ~caption.str.contains(BLOCKED, regex=True)]
    rows = rows.assign(key=rows["caption"].str.lower()).drop_duplicates(["user", "key"])
    rows = rows.assign(id=rows["url"].str.extract(ID)[0])
    rows[["id", "user", "caption"]].to_parquet(out, index=False)


ENGINES = {
    "duckdb": duckdb_query,
    "duckdb_by_date": duckdb_by_date_query,
    "polars": polars_query,
    "pyarrow": pyarrow_query,
    "pandas": pandas_query,
}

if __name__ == "__main__":
    ENGINES[sys.argv[1]](sys.argv[2], sys.argv[3])
