"""A table of pairs in the order of its ids, held on disk rather than in memory."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from stages.images import pairs, spilled
from stages.images.pairs import COLUMNS, read_pairs
from stages.images.spilled import Spilled

ROOT = Path(__file__).parent.parent
MOST_BYTES_A_ROW = 300
FEW, MANY = 10_000, 40_000


def table(links: dict[str, str]) -> pa.Table:
    """Make rows of ids and links; the caption tells the row's place."""
    rows = [
        {"id": name, "url": link, "caption": f"{i}", "version": "5.2", "aspect": "1:1", "user": 3}
        for i, (name, link) in enumerate(links.items())
    ]
    return pa.Table.from_pylist(rows)


@given(st.permutations(range(23)), st.integers(1, 9), st.integers(1, 30))
def test_rows_come_in_the_order_of_their_places_whatever_a_shelf_holds(
    tmp_path_factory: pytest.TempPathFactory, places: list[int], added: int, shelf_rows: int
) -> None:
    schema = pa.schema([("name", pa.string())])
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(spilled, "SHELF_ROWS", shelf_rows)
        rows = Spilled(tmp_path_factory.mktemp("rows"), schema, len(places))
        for first in range(0, len(places), added):
            some = places[first : first + added]
            batch = pa.RecordBatch.from_arrays([pa.array(map(str, some))], schema=schema)
            rows.add(batch, np.array(some))
    for _ in range(2):
        read = [row for batch in rows.batches() for row in batch.to_pylist()]
        assert read == [{"name": str(i), "place": i} for i in range(len(places))]


def test_rows_are_sorted_by_id_and_each_asks_the_link_that_lasts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spilled, "SHELF_ROWS", 2)
    monkeypatch.setattr(pairs, "BATCH_ROWS", 3)
    fox, hare = (f"https://cdn.discordapp.com/attachments/1/2/{n}.png" for n in ("fox", "hare"))
    lasting = f"{fox}?ex=75a00000&is=1&hm=2"
    given = table({"d": lasting, "b": hare, "c": "no link", "a": fox})
    again = table({"b": "https://a.org/another.png"})
    pq.write_table(pa.concat_tables([given, again]), tmp_path / "pairs.parquet")
    found = read_pairs(tmp_path / "pairs.parquet", tmp_path / "rows")
    rows = [row for batch in found.rows.batches() for row in batch.to_pylist()]
    assert [row["id"] for row in rows] == ["a", "b", "b", "c", "d"]
    assert [row["caption"] for row in rows] == ["3", "1", "0", "2", "0"]
    assert found.is_repeated.tolist() == [False, False, True, False, False]
    assert found.asked.tolist() == [0, 1, 2, 3, 0]
    assert found.takers().tolist() == [2, 1, 0, 1]
    links = [link for batch in found.links for link in batch["link"].to_pylist()]
    assert links == [lasting, hare, "https://a.org/another.png", "no link"]


# ru_maxrss would hold the peak of whoever started the process, too
RUN = """
from pathlib import Path
from stages.download import main
try:
    main()
finally:
    print(Path("/proc/self/status").read_text())
"""


def peak_bytes(pairs: Path, folder: Path) -> int:
    """Run the stage as a process of its own, and tell the most memory that it held."""
    words = ["--pairs", pairs, "--out", folder / "images", "--report", folder / "report.json"]
    words += ["--outcomes", folder / "outcomes.parquet"]
    done = subprocess.run(
        [sys.executable, "-c", RUN, *map(str, words), "--params", folder / "params.yaml"],
        cwd=ROOT,
        env=os.environ | {"DVC_ROOT": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert re.search("only 0 of .* expired", done.stderr), done.stderr
    peak = re.search(r"VmHWM:\s+(\d+) kB", done.stdout)
    assert peak, done.stdout
    return int(peak[1]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
def test_a_row_whose_link_has_expired_takes_few_bytes_of_memory(tmp_path: Path) -> None:
    (tmp_path / "cdn").mkdir()
    section = yaml.safe_load((ROOT / "params.yaml").read_text())["download"]
    section |= {"mirrors": [str(tmp_path / "cdn")], "use_links": True, "acknowledge_terms": True}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"download": section}))
    peaks = []
    for count in (FEW, MANY):
        rng = np.random.default_rng(count)
        numbers = rng.integers(10**18, 9 * 10**18, (count, 3)).astype(str)
        links = (
            f"https://cdn.discordapp.com/attachments/{a}/{b}/someone_a_castle_in_the_sky_{c}.png"
            f"?ex=65a00000&is=64a00000&hm={c}{b}{a}"
            for a, b, c in numbers
        )
        path = tmp_path / f"{count}.parquet"
        rows = table(dict(zip(numbers[:, 1], links, strict=True)))
        pq.write_table(rows, path, row_group_size=4096)  # one is read at a time
        peaks.append(peak_bytes(path, tmp_path))
    assert peaks[1] - peaks[0] < MOST_BYTES_A_ROW * (MANY - FEW), peaks


def test_the_columns_are_those_that_the_filter_writes() -> None:
    from stages.midjourney.judge import PAIRS

    assert set(COLUMNS) <= set(PAIRS.names)
