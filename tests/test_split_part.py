"""Parts of a manifest, for models that learn from fewer pictures."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from stages.split_part import PartParams, part, run

MANIFEST = pa.table({"id": range(400), "caption": [f"thing {n // 2}" for n in range(400)]})


def test_a_part_has_about_its_share_of_the_rows() -> None:
    assert 90 <= len(part(MANIFEST, 0.3)) <= 150


def test_a_larger_part_holds_a_smaller_one() -> None:
    small, large = (set(part(MANIFEST, share)["id"].to_pylist()) for share in (0.3, 0.7))
    assert small < large


def test_rows_of_one_caption_stay_together() -> None:
    ids = set(part(MANIFEST, 0.5)["id"].to_pylist())
    assert all((n in ids) == (n + 1 in ids) for n in range(0, 400, 2))


def test_the_whole_is_a_part() -> None:
    assert part(MANIFEST, 1.0).equals(MANIFEST)


def test_a_part_without_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(MANIFEST.slice(0, 1), tmp_path / "whole.parquet")
    with pytest.raises(ValueError, match="leaves none of 1 rows; raise it"):
        run(tmp_path / "whole.parquet", tmp_path / "part.parquet", PartParams(share=1e-9))
    assert not (tmp_path / "part.parquet").exists()


def test_a_missing_manifest_says_what_makes_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m stages\.split"):
        run(tmp_path / "none.parquet", tmp_path / "part.parquet", PartParams(share=0.5))


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1])
def test_a_share_outside_its_range_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="share must be above 0 and at most 1"):
        PartParams(share=share)
