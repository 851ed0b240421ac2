"""The filter as one runs it: reasons, layouts, engagement, and what it says to bad input."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.filter import run
from stages.harness.params import load_params
from stages.midjourney import export, repeated
from stages.midjourney.columns import attachment_ids, utc_seconds
from stages.midjourney.engagement import Engagement, count_users, top_users
from stages.midjourney.export import Export
from stages.midjourney.judge import PAIRS
from stages.midjourney.layout import LAYOUTS
from stages.midjourney.reject import REASONS, FilterParams
from stages.midjourney.repeated import SeenIds

ROOT = Path(__file__).parent.parent
PARAMS = FilterParams(
    versions=("5.1", 5.2),
    raw_only=True,
    min_caption_chars=5,
    top_users=2,
    min_user_upscales=2,
    max_malformed_fraction=0.5,
    min_side_px=768,
    max_aspect=2.0,
    blocked_words=("nude",),
    one_row_per_caption_and_user=True,
)
HEADER = ["AuthorID", "Author", "Date", "Content", "Attachments", "Reactions"]
ANN, BEN, CAT = "<@111111111111111111>", "<@222222222222222222>", "<@333333333333333333>"
RAW = "--style raw --v 5.2"
URL = "https://cdn.discordapp.com/attachments/995431151084773486/{}/Ann_fox_0a1b.png"

Row = tuple[str, str]  # content, attachments


def upscale(prompt: str, user: str = ANN, number: int = 1) -> Row:
    return f"**{prompt}** - Image #1 {user} ", URL.format(1141181543921971739 + number)


ROW_BY_REASON: dict[str, Row] = {
    "malformed": ("nice one!", ""),
    "unfinished": (f"**red fox {RAW}** - {ANN} (62%) (fast)", URL.format(1)),
    "not_upscaled": (f"**red fox {RAW}** - {ANN} (fast)", URL.format(1)),
    "no_attachment": (upscale(f"red fox {RAW}")[0], ""),
    "unknown_user": upscale(f"red fox {RAW}", "@Unknown"),
    "cut": upscale("fox, " * 319 + "fo…"),
    "not_raw": upscale("raw fish, sushi --v 5.2"),
    "image_prompt": upscale(f"<https://s.mj.run/Xg2Gq1TXMgc> red fox {RAW}"),
    "empty_caption": upscale(RAW),
    "mention": upscale(f"as {BEN} did {RAW}"),
    "weights": upscale(f"red fox::2 snow::1 {RAW}"),
    "mistyped_flag": upscale(f"red fox --v5 {RAW}"),
    "tile": upscale(f"red fox --tile {RAW}"),
    "niji": upscale("red fox --raw --niji 5"),
    "version": upscale("red fox --style raw --v 6.0"),
    "short_caption": upscale(f"fox {RAW}"),
    "blocked_word": upscale(f"a Nude fox {RAW}"),
    "aspect": upscale(f"red fox --ar 5:2 {RAW}"),
    "few_upscales": upscale(f"red fox {RAW}", CAT),
    "not_a_top_user": upscale(f"red fox {RAW}", "@Dee Dee (AI)"),
    "repeated_caption": upscale(f"Red  FOX, {RAW}"),
}


def write_csv(path: Path, rows: Iterable[Row]) -> Path:
    text = io.StringIO(newline="")
    text.write(",".join(HEADER) + "\n")
    writer = csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n")
    for content, link in rows:
        date = "2023-08-01T12:34:56.7890000+02:00"
        writer.writerow(["936929561302675456", "Midjourney Bot", date, content, link, ""])
    raw = text.getvalue().encode()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)
    return path


def filtered(
    export: Path, params: FilterParams = PARAMS
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    out, report = export.parent / "out.parquet", export.parent / "report.json"
    run(export, out, report, export.parent / "funnel.csv", params)
    return pq.read_table(out).to_pylist(), json.loads(report.read_text())


@pytest.fixture
def messages_csv(tmp_path: Path) -> Path:
    """A row per reason, after a pair by each of three users."""
    pairs = [
        *(upscale(f"red fox {RAW}", ANN, i) for i in range(1)),
        *(upscale(f"blue\nwhale, {i} --ar 3:2 {RAW}", BEN, i) for i in range(3)),
        *(upscale("a plain grid --v 4", "@Dee Dee (AI)", i) for i in range(2)),
    ]
    return write_csv(tmp_path / "messages.csv", [*pairs, *ROW_BY_REASON.values()])


def test_every_row_is_kept_or_has_its_one_reason(messages_csv: Path) -> None:
    pairs, report = filtered(messages_csv)
    by_reason = dict.fromkeys(ROW_BY_REASON, 1) | {
        "not_raw": 3,
        "too_small": 0,
        "repeated_message": 0,
    }
    assert report["dropped"] == by_reason
    assert set(REASONS) == set(report["dropped"])
    assert report["kept"] == len(pairs) == 4
    assert report["read"] == report["kept"] + sum(report["dropped"].values())


def test_a_pair_tells_what_later_stages_need_and_nobodys_id(messages_csv: Path) -> None:
    pairs, _ = filtered(messages_csv)
    assert pairs[1] == {
        "id": "1141181543921971739",
        "url": URL.format(1141181543921971739),
        "caption": "blue whale, 0",
        "prompt": f"blue\nwhale, 0 --ar 3:2 {RAW}",
        "kind": "upscale",
        "version": "5.2",
        "aspect": "3:2",
        "user": 2,
        "timestamp": "2023-08-01T10:34:56+00:00",
    }
    assert "222222222222222222" not in str(pairs)
    assert "111111111111111111" not in (messages_csv.parent / "report.json").read_text()


def test_a_row_alone_with_its_reason_leaves_an_empty_result(tmp_path: Path) -> None:
    export = write_csv(tmp_path / "messages.csv", [ROW_BY_REASON["version"]] * 3)
    with pytest.raises(ValueError, match=r"not one of 3 messages passed .* version 3"):
        filtered(export)
    assert not (tmp_path / "out.parquet").exists()


def test_users_rank_by_upscales_and_then_by_appearance(tmp_path: Path) -> None:
    people = [CAT, ANN, BEN, ANN, BEN]
    rows = [upscale(f"red fox {i} {RAW}", user, i) for i, user in enumerate(people)]
    params = replace(PARAMS, min_user_upscales=1, top_users=3)
    pairs, _ = filtered(write_csv(tmp_path / "messages.csv", rows), params)
    assert [pair["user"] for pair in pairs] == [3, 1, 2, 1, 2]


@given(
    batches=st.lists(st.lists(st.sampled_from("abcdef")), min_size=1),
    rows_in_memory=st.sampled_from([1, 4, 1000]),
    count=st.integers(1, 7),
    min_upscales=st.integers(0, 3),
)
def test_ranks_are_those_of_a_plain_count_however_little_fits_in_memory(
    batches: list[list[str]], rows_in_memory: int, count: int, min_upscales: int
) -> None:
    users = [user for batch in batches for user in batch]
    plain = [(user, n) for user, n in Counter(users).most_common() if n >= min_upscales]
    with Engagement(Path(tempfile.gettempdir()), rows_in_memory) as engagement:
        for number, batch in enumerate(batches):
            is_candidate = pa.array([user < "c" for user in batch], pa.bool_())
            engagement.add(count_users(pa.array(batch, pa.string()), is_candidate, 100 * number))
        best, few = top_users(engagement.by_part(), count, min_upscales)
    assert (
        list(zip(best["user"].to_pylist(), best["upscales"].to_pylist(), strict=True))
        == (plain[:count])
    )
    left = {user for user, _ in plain}
    assert few == sum(user < "c" and user not in left for user in users)


def test_all_users_and_captions_pass_when_the_params_say_so(messages_csv: Path) -> None:
    params = replace(PARAMS, top_users=100, min_user_upscales=0, one_row_per_caption_and_user=False)
    _, report = filtered(messages_csv, params)
    assert report["kept"] == 7
    assert [report["dropped"][name] for name in REASONS[-3:]] == [0, 0, 0]


def test_too_many_malformed_rows_stop_the_stage(messages_csv: Path) -> None:
    with pytest.raises(ValueError, match=r"1 of 27 messages \(3\.7%\).*max_malformed_fraction"):
        filtered(messages_csv, replace(PARAMS, max_malformed_fraction=0.01))


def test_the_same_export_gives_the_same_bytes_in_any_form(messages_csv: Path) -> None:
    wanted, _ = filtered(messages_csv)
    before = (messages_csv.parent / "out.parquet").read_bytes()
    rows = [(row["Content"], row["Attachments"]) for row in csv_rows(messages_csv)]
    filtered(write_csv(messages_csv.with_suffix(".csv.gz"), rows))
    assert (messages_csv.parent / "out.parquet").read_bytes() == before
    table = pa.Table.from_pylist(csv_rows(messages_csv))
    shuffled = table.select(["Attachments", "Content", "Author", "Date"])
    pq.write_table(shuffled, messages_csv.with_suffix(".parquet"))
    assert filtered(messages_csv.with_suffix(".parquet"))[0] == wanted


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_byte_order_mark_and_windows_line_ends_do_no_harm(messages_csv: Path) -> None:
    wanted, _ = filtered(messages_csv)
    raw = messages_csv.read_bytes().replace(b'"\n', b'"\r\n').replace(b"s\n", b"s\r\n")
    messages_csv.write_bytes(b"\xef\xbb\xbf" + raw)
    assert filtered(messages_csv)[0] == wanted


def test_rows_with_another_number_of_fields_are_malformed(messages_csv: Path) -> None:
    with messages_csv.open("a") as file:
        file.write('"one","field"\n')
    _, report = filtered(messages_csv)
    assert report["dropped"]["malformed"] == 2
    assert report["read"] == report["kept"] + sum(report["dropped"].values())


# --- bad files, large files, several files -----------------------------------------------------


def test_a_row_cut_off_in_its_quotes_is_malformed_and_the_rest_stays(messages_csv: Path) -> None:
    wanted, before = filtered(messages_csv)
    line = messages_csv.read_bytes().splitlines(keepends=True)[1]
    messages_csv.write_bytes(messages_csv.read_bytes() + line[: line.index(b"red fox") + 3])
    pairs, report = filtered(messages_csv)
    assert pairs == wanted
    assert report["read"] == before["read"] + 1
    assert report["dropped"]["malformed"] == before["dropped"]["malformed"] + 1


def test_rows_that_are_no_utf8_are_malformed_and_the_rest_stays(messages_csv: Path) -> None:
    wanted, before = filtered(messages_csv)
    line = messages_csv.read_bytes().splitlines(keepends=True)[1]
    garbled = line.replace(b"red fox", b"red \xff\xfe fox")
    messages_csv.write_bytes(messages_csv.read_bytes() + garbled * 2)
    pairs, report = filtered(messages_csv)
    assert pairs == wanted
    assert report["dropped"]["malformed"] == before["dropped"]["malformed"] + 2
    assert report["read"] == report["kept"] + sum(report["dropped"].values())


def test_a_row_of_too_few_fields_that_is_no_utf8_either_is_malformed_and_the_rest_stays(
    messages_csv: Path,
) -> None:
    wanted, before = filtered(messages_csv)
    head, *lines = messages_csv.read_bytes().splitlines(keepends=True)
    sound = lines[0].replace(b"red fox", "großer Fuchs 🦊".encode())
    messages_csv.write_bytes(b"".join([head, b'"\xff\xfe"\n', *lines, b"\xb9\n", sound]))
    pairs, report = filtered(messages_csv)
    assert pairs[:-1] == wanted
    assert pairs[-1]["caption"] == "großer Fuchs 🦊"
    assert report["dropped"]["malformed"] == before["dropped"]["malformed"] + 2
    assert report["read"] == before["read"] + 3


def test_a_byte_order_mark_stays_out_of_a_file_that_is_read_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "messages.csv"
    path.write_bytes(b"\xef\xbb\xbfDate,Content,Attachments\n2023,\xc3\xa9,x\n\xff\n2024,b,y\n")
    source = Export(path)
    read = [row for batch in source.batches() for row in batch.to_pylist()]
    assert [tuple(row.values()) for row in read] == [("2023", "é", "x"), ("2024", "b", "y")]
    assert source.bad_rows == 1


def test_nul_bytes_are_letters_like_others(messages_csv: Path) -> None:
    line = messages_csv.read_bytes().splitlines(keepends=True)[1]
    messages_csv.write_bytes(
        messages_csv.read_bytes()
        + line.replace(b"red fox", b"re\0d fox")
        + line.replace(b"**red", b"\0**red")
    )
    pairs, report = filtered(messages_csv)
    assert "re\0d fox" in [pair["caption"] for pair in pairs]
    assert report["dropped"]["malformed"] == 2


def test_a_field_of_ten_megabytes_is_one_message_among_others(messages_csv: Path) -> None:
    wanted, before = filtered(messages_csv)
    line = messages_csv.read_bytes().splitlines(keepends=True)[1]
    head, *lines = messages_csv.read_bytes().splitlines(keepends=True)
    long = line.replace(b"red fox", b"red fox, " * (10_000_000 // 9))
    messages_csv.write_bytes(b"".join([head, *lines[:3], long, *lines[3:]]))
    pairs, report = filtered(messages_csv)
    assert len(pairs) == len(wanted) + 1
    assert max(len(pair["caption"]) for pair in pairs) > 9_000_000
    assert report["read"] == before["read"] + 1


def test_a_quote_that_never_ends_stops_the_stage_and_names_the_file(
    messages_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "BLOCK_BYTES", (2000, 4000))
    line = messages_csv.read_bytes().splitlines(keepends=True)[1]
    messages_csv.write_bytes(messages_csv.read_bytes() + b'"' + b"x" * 9000 + line)
    with pytest.raises(ValueError, match=r"messages\.csv: not readable as CSV"):
        filtered(messages_csv)


@pytest.mark.parametrize("suffix", [".csv.gz", ".csv.zst", ".parquet"])
def test_a_file_cut_short_or_spoilt_in_its_middle_stops_the_stage_and_is_named(
    suffix: str, tmp_path: Path
) -> None:
    rows = [upscale(f"fox {sha256(b'%d' % i).hexdigest()}") for i in range(999)]
    path = write_csv(tmp_path / "messages.csv", rows)
    whole = tmp_path / f"whole{suffix}"
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(csv_rows(path)), whole)
    else:
        with pa.output_stream(
            whole, compression={".csv.gz": "gzip", ".csv.zst": "zstd"}[suffix]
        ) as f:
            f.write(path.read_bytes())
    content = whole.read_bytes()
    middle = len(content) // 2
    spoilt = content[:middle] + bytes(9) + content[middle + 9 :]
    # zstd holds a checksum only if it is asked to
    for broken in (content[:-3000], *([spoilt] if suffix != ".csv.zst" else [])):
        whole.write_bytes(broken)
        with pytest.raises(ValueError, match=rf"whole{suffix}: not readable as"):
            filtered(whole)


def test_a_column_that_holds_no_text_is_told_with_its_file(tmp_path: Path) -> None:
    path = tmp_path / "messages.parquet"
    columns = {"Date": ["1"], "Content": [{"text": "a fox"}], "Attachments": ["x"]}
    pq.write_table(pa.table(columns), path)
    with pytest.raises(ValueError, match=r"messages\.parquet: not readable as parquet: .*struct"):
        filtered(path)


@pytest.mark.parametrize("block_bytes", [(700, 1 << 20), (1500, 1 << 20), (1 << 20,)])
def test_the_size_of_a_block_changes_nothing(
    block_bytes: tuple[int, ...], messages_csv: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filtered(messages_csv)
    before = (messages_csv.parent / "out.parquet").read_bytes()
    monkeypatch.setattr(export, "BLOCK_BYTES", block_bytes)
    monkeypatch.setattr(export, "BATCH_BYTES", 900)
    filtered(messages_csv)
    assert (messages_csv.parent / "out.parquet").read_bytes() == before


def test_of_a_parquet_file_that_is_one_row_group_little_is_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, path = 20_000, tmp_path / "messages.parquet"
    columns = {name: [""] * rows for name in HEADER}
    columns["Content"] = [os.urandom(1000).hex() for _ in range(rows)]
    pq.write_table(pa.table(columns), path, compression="none", use_dictionary=False)
    monkeypatch.setattr(export, "BATCH_ROWS", 1000)
    monkeypatch.setattr(export, "BATCH_BYTES", 1)
    before, peak, read = pa.total_allocated_bytes(), 0, 0
    for batch in Export(path).batches():
        read += len(batch)
        peak = max(peak, pa.total_allocated_bytes() - before)
    assert read == rows
    assert peak < path.stat().st_size / 3


@pytest.mark.parametrize("name", ["", "*.csv*", "part-*"])
def test_a_folder_or_a_pattern_is_its_files_in_the_order_of_their_names(
    name: str, messages_csv: Path
) -> None:
    wanted, before = filtered(messages_csv)
    rows = [(row["Content"], row["Attachments"]) for row in csv_rows(messages_csv)]
    folder = messages_csv.parent / "parts"
    folder.mkdir()
    write_csv(folder / "part-1.csv", rows[:5])
    write_csv(folder / "part-2.csv.gz", rows[5:9])
    with pa.CompressedOutputStream(str(folder / "part-3.csv.zst"), "zstd") as file:
        file.write(write_csv(folder / "whole", rows[9:]).read_bytes())
    (folder / "whole").unlink()
    out, report = messages_csv.parent / "out.parquet", messages_csv.parent / "report.json"
    run(folder / name, out, report, folder.parent / "funnel.csv", PARAMS)
    assert pq.read_table(out).to_pylist() == wanted
    assert json.loads(report.read_text()) == before


def test_the_funnel_falls_from_all_that_was_read_to_what_is_kept(messages_csv: Path) -> None:
    _, report = filtered(messages_csv)
    with (messages_csv.parent / "funnel.csv").open(newline="") as file:
        steps = [(row["after"], int(row["messages"])) for row in csv.DictReader(file)]
    assert steps[0] == ("read", report["read"])
    assert steps[-1][1] == report["kept"]
    fell = {after: high - low for (_, high), (after, low) in pairwise(steps)}
    assert fell == report["dropped"]


def test_a_folder_or_pattern_without_exports_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no file in this folder ends in"):
        filtered(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"x\*: no such export file, folder or pattern"):
        filtered(tmp_path / "x*")


@given(
    rows=st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"]), max_size=9), min_size=3, max_size=3
        )
    ),
    order=st.permutations(["Date", "Content", "Attachments", "Author"]),
    line_end=st.sampled_from(["\n", "\r\n"]),
    block=st.sampled_from([64, 4096]),
)
@settings(max_examples=60)
def test_what_a_csv_writer_writes_is_read_back(
    rows: list[list[str]], order: list[str], line_end: str, block: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "BLOCK_BYTES", (block, 1 << 20))
        path = Path(folder, "messages.csv")
        named = [dict(zip(order, [*row, "bot"], strict=True)) for row in rows]
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, order, quoting=csv.QUOTE_ALL, lineterminator=line_end)
            writer.writeheader()
            writer.writerows(named)
        source = Export(path)
        read = [row for batch in source.batches() for row in batch.to_pylist()]
    wanted = [{name: row[name] for name in source.layout.columns} for row in named]
    assert read == wanted
    assert not source.bad_rows


MARKS = ['"', '""', ",", "\n", "\r\n", "\r", "\0", "é", "x", '","', '"\n"', "**", " - "]
broken_csv = st.lists(st.sampled_from([m.encode() for m in MARKS]) | st.binary(max_size=3))


@given(broken_csv.map(b"".join), st.sampled_from([64, 4096]))
def test_any_bytes_after_a_header_are_rows_that_all_are_counted_or_a_clear_refusal(
    content: bytes, block: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "BLOCK_BYTES", (block, 1 << 20))
        sound = write_csv(Path(folder, "messages.csv"), [upscale(f"red fox {RAW}")])
        sound.write_bytes(sound.read_bytes() + content + b"\n")
        params = replace(PARAMS, max_malformed_fraction=1.0, min_user_upscales=1)
        refused = ""
        try:
            pairs, report = filtered(sound, params)
        except ValueError as error:
            refused = str(error)
    if refused:
        assert "messages.csv: not readable as CSV" in refused
        return
    assert report["kept"] == len(pairs) >= 1
    assert report["read"] == report["kept"] + sum(report["dropped"].values())


@given(
    st.lists(
        st.from_regex(
            r"https?://[a-z]{1,4}(/[0-9a-z]{0,3}){0,4}(\?[0-9a-z/]{0,5})?", fullmatch=True
        )
    )
)
def test_a_picture_is_named_by_the_number_before_its_file(urls: list[str]) -> None:
    names = attachment_ids(pa.array(urls, pa.string())).to_pylist()
    for url, name in zip(urls, names, strict=True):
        parts = url.split("?")[0].split("/")
        wanted = parts[-2] if len(parts) > 2 and parts[-2].isdecimal() else None
        assert name == wanted, url


# --- layouts ----------------------------------------------------------------------------------

CONTENT, LINK = upscale(f"red fox {RAW}")
LAYOUT_ROWS: dict[str, dict[str, Any]] = {
    "Kaggle's cleaned table": {
        "Attachments": LINK,
        "version": "5.2",
        "aspect": "1:1",
        "clean_prompts": "red fox",
        "Content": CONTENT.replace(" --v 5.2", ""),
    },
    "midjourney-v5 table": {
        "Attachments": LINK,
        "clean_prompts": "red fox",
        "user_name": "Ann",
        "upscaled": True,
        "Content": CONTENT,
    },
    "DiscordChatExporter": {
        "AuthorID": "936929561302675456",
        "Author": "Midjourney Bot",
        "Date": "08/01/2023 10:34 AM",
        "Content": CONTENT,
        "Attachments": f"{LINK},{LINK}",
        "Reactions": "",
    },
    "midjourney-messages table": {
        "id": "77",
        "channel_id": "1",
        "content": CONTENT,
        "timestamp": "2023-08-01T10:34:56.789000+00:00",
        "image_id": "5",
        "height": "1024",
        "width": "1024",
        "url": LINK,
        "size": "100",
    },
    "midjourney-v6 table": {
        "prompt": f"red fox {RAW}",
        "image_url": "https://example.com/pictures/red-fox.png",
        "timestamp": "2023-08-01 10:34:56",
    },
    "threads table": {
        "text": "red fox",
        "args": RAW,
        "channel_id": "1",
        "userid": "111111111111111111",
        "timestamp": "2023-08-01T10:34:56+00:00",
        "label": "Image #2",
        "id": "77",
        "url_png": LINK,
    },
}


def test_every_layout_has_an_example() -> None:
    assert set(LAYOUT_ROWS) == {layout.name for layout in LAYOUTS}


@pytest.mark.parametrize("name", LAYOUT_ROWS)
@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_layout_is_known_by_its_header(name: str, suffix: str, tmp_path: Path) -> None:
    export = tmp_path / f"export{suffix}"
    row = LAYOUT_ROWS[name]
    if suffix == ".csv":
        with export.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            writer.writeheader()
            writer.writerow(row)
    else:
        pq.write_table(pa.Table.from_pylist([row]), export)
    assert Export(export).layout.name == name
    pairs, _ = filtered(export, replace(PARAMS, min_user_upscales=1))
    assert [(p["caption"], p["version"], p["kind"], p["user"]) for p in pairs] == [
        ("red fox", "5.2", "upscale", 1)
    ]
    assert pq.read_schema(tmp_path / "out.parquet").names == PAIRS.names


def test_a_picture_known_to_be_small_is_dropped(tmp_path: Path) -> None:
    rows = [LAYOUT_ROWS["midjourney-messages table"] | {"id": str(i)} for i in range(3)]
    rows[0] |= {"height": "512"}
    rows[1] |= {"height": "?", "content": CONTENT.replace("fox", "owl")}
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "export.parquet")
    pairs, report = filtered(tmp_path / "export.parquet")
    assert report["dropped"]["too_small"] == 1
    assert [pair["id"] for pair in pairs] == ["1", "2"]


MESSAGE = LAYOUT_ROWS["midjourney-messages table"]


def message_rows(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist([MESSAGE | row for row in rows])


@pytest.mark.parametrize("name", ["midjourney-messages table", "threads table"])
def test_messages_that_two_files_of_an_export_share_count_once(name: str, tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([LAYOUT_ROWS[name] | {"id": str(7 * i)} for i in range(3)])
    (tmp_path / "d").mkdir()
    for file in ("a.parquet", "b.parquet"):
        pq.write_table(rows, tmp_path / "d" / file)
    several = replace(PARAMS, min_user_upscales=3, one_row_per_caption_and_user=False)
    pairs, report = filtered(tmp_path / "d", several)
    assert [pair["id"] for pair in pairs] == ["0", "7", "14"]
    assert {reason: n for reason, n in report["dropped"].items() if n} == {"repeated_message": 3}
    assert report["users_by_upscales"] == {"2 to 3": 1}
    with pytest.raises(ValueError, match=r"not one of 6 messages passed .* 3"):
        filtered(tmp_path / "d", replace(several, min_user_upscales=4))


def test_a_repeated_message_is_that_alone_and_the_first_counts(tmp_path: Path) -> None:
    owl = CONTENT.replace("fox", "owl")
    unknown = CONTENT.replace(ANN, "@Unknown")
    rows = [
        {"id": "1", "content": unknown},  # counts for nobody: the next is the first
        {"id": "1"},
        {"id": "2", "content": CONTENT.replace("--style raw", "")},
        {"id": "2", "content": owl},  # edited
        {"id": "1", "url": ""},
        {"id": "1", "content": unknown},
        {"id": "1", "content": CONTENT.replace("Image #1 ", "")},  # a grid
        {"id": "", "content": owl},
        {"id": "", "content": owl},
        {"id": "3f", "content": owl},  # no id of Discord's
        {"id": "3f", "content": owl},
    ]
    pq.write_table(message_rows(*rows), tmp_path / "export.parquet")
    free = replace(PARAMS, min_user_upscales=6, one_row_per_caption_and_user=False)
    pairs, report = filtered(tmp_path / "export.parquet", free)
    assert [pair["caption"] for pair in pairs] == ["red fox"] + ["red owl"] * 4
    wanted = {"unknown_user": 2, "not_raw": 1, "repeated_message": 2, "not_upscaled": 1}
    assert {reason: n for reason, n in report["dropped"].items() if n} == wanted


@given(
    batches=st.lists(st.lists(st.one_of(st.none(), st.integers(0, 30)))),
    longest_run=st.sampled_from([0, 4, 1 << 20]),
)
def test_ids_that_came_before_are_those_that_a_set_holds(
    batches: list[list[int | None]], longest_run: int
) -> None:
    seen, plain = SeenIds(), set[int]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeated, "LONGEST_RUN", longest_run)
        for batch in batches:
            wanted = []
            for number in batch:
                wanted.append(number in plain)
                plain |= set() if number is None else {number}
            assert seen.came_before(pa.array(batch, pa.uint64())).tolist() == wanted


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2023-11-04T10:11:12.1234567+00:00", "2023-11-04T10:11:12+00:00"),
        ("2023-11-04T10:11:12-05:30", "2023-11-04T15:41:12+00:00"),
        ("2023-11-04 10:11:12", "2023-11-04T10:11:12+00:00"),
        ("2023-11-04T10:11:12Z", "2023-11-04T10:11:12+00:00"),
        ("05/31/2023 4:05 PM", "2023-05-31T16:05:00+00:00"),
        ("2023-13-04T10:11:12Z", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_dates_are_read_in_every_form(text: str, iso: str | None) -> None:
    moment = utc_seconds(pa.array([text]))[0].as_py()
    assert (moment.isoformat() if moment else None) == iso


def test_unknown_columns_show_the_header_and_the_layouts(tmp_path: Path) -> None:
    export = tmp_path / "messages.csv"
    export.write_text("When,Who,What\n1,2,3\n")
    with pytest.raises(ValueError, match=r"When, Who, What(.|\n)*DiscordChatExporter: Date"):
        filtered(export)


@pytest.mark.parametrize(
    ("content", "message"),
    [("", "is empty, not even a header"), (",".join(HEADER) + "\n", "has a header and no rows")],
)
def test_an_export_without_rows_is_refused(content: str, message: str, tmp_path: Path) -> None:
    export = tmp_path / "messages.csv"
    export.write_text(content)
    with pytest.raises(ValueError, match=message):
        filtered(export)


def test_a_file_that_is_no_parquet_is_named(tmp_path: Path) -> None:
    export = tmp_path / "messages.parquet"
    export.write_text("hello")
    with pytest.raises(ValueError, match=r"messages\.parquet: not readable as parquet"):
        filtered(export)


# --- command line and params ------------------------------------------------------------------


def section(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {name: getattr(PARAMS, name) for name in PARAMS.__slots__}
    values |= {"versions": ["5.1", 5.2], "blocked_words": []} | changes
    return {"filter": {name: value for name, value in values.items() if value is not None}}


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (section(topusers=3), r"unknown key 'filter.topusers'; did you mean 'top_users'\?"),
        (section(top_users=None), "missing key 'filter.top_users'"),
        (section(top_users=None, top_user=3), r"missing key 'filter.top_users' \(it has 'top_u"),
        (section(top_users="many"), "filter.top_users: Input should be a valid integer.*'many'"),
        (section(top_users=0), "top_users must be at least 1, got 0"),
        (section(max_aspect=0.5), r"max_aspect must be at least 1, got 0\.5"),
        (section(max_malformed_fraction=7.0), r"must lie in \[0, 1\], got 7\.0"),
        (section(versions=[]), "must name at least one version"),
        ({"filters": {}}, r"missing section 'filter'; did you mean 'filters'\?"),
        ([], "missing section 'filter'"),
    ],
)
def test_bad_params_are_named_with_the_nearest_key(
    params: object, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(params))))
    with pytest.raises(ValueError, match=message):
        load_params("filter", FilterParams, path)


def filter_command(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "stages.filter", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_command_line_filters_and_fails_with_one_clear_message(messages_csv: Path) -> None:
    folder = messages_csv.parent
    (folder / "params.yaml").write_text(yaml.safe_dump(section()))
    options = ["--out", f"{folder}/new/pairs.parquet", "--report", f"{folder}/filter.json"]
    options += ["--funnel", f"{folder}/funnel.csv"]
    options += ["--params", f"{folder}/params.yaml"]
    done = filter_command("--export", str(messages_csv), *options)
    assert done.returncode == 0, done.stderr
    assert "DiscordChatExporter, 27 messages, kept" in done.stdout
    assert pq.read_schema(folder / "new" / "pairs.parquet").names == PAIRS.names
    failed = filter_command("--export", f"{folder}/nowhere.csv", *options)
    assert failed.returncode == 1
    assert "nowhere.csv: no such export file" in failed.stderr
    assert "Traceback" not in failed.stderr


def test_help_explains_each_option() -> None:
    shown = filter_command("--help").stdout
    assert "usage: python -m stages.filter" in shown
    for words in (
        "--export PATH",
        "as CSV, CSV.gz, CSV.zst or parquet",
        "--params FILE",
        "`user` is a",
    ):
        assert words in shown


def test_the_filter_runs_without_torch() -> None:
    code = "import sys, stages.filter; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
