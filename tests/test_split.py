"""The split as one runs it: exact, leak-free, and steady when rows are added."""

import io
import math
import subprocess
import sys
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from stages.images.holdout import normalised_caption
from stages.images.outcome import Fetched, Picture
from stages.images.shards import Sample, write_shards
from stages.split import MANIFEST, SplitParams, run

ROOT = Path(__file__).parent.parent
PARAMS = SplitParams(validation_fraction=0.15, seed=555)
Rows = list[dict[str, Any]]


def write_images(folder: Path, captions: dict[str, str]) -> Path:
    """Write shards of 40 samples, one per id; the split never looks at the pictures."""
    images = folder / "images"
    images.mkdir(parents=True)
    samples = []
    for name, caption in sorted(captions.items()):
        path = folder / f"{name}.png"
        path.write_bytes(name.encode())
        picture = Picture(".png", 96, 144, sha256(name.encode()).hexdigest())
        samples.append(Sample(name, caption, Fetched(path, picture, "mirror"), {"user": 7}))
    write_shards(samples, images, 40)
    return images


def split(images: Path, params: SplitParams = PARAMS) -> tuple[Rows, Rows]:
    """Run the stage and read both sides."""
    paths = (images.parent / "split" / "train.parquet", images.parent / "validation.parquet")
    run(images, *paths, params)
    train, validation = (pq.read_table(path).to_pylist() for path in paths)
    return train, validation


def ids(rows: Rows) -> set[str]:
    return {row["id"] for row in rows}


def numbered(count: int) -> dict[str, str]:
    return {f"{i:04}": f"thing number {i}" for i in range(count)}


@pytest.mark.parametrize("count", [2, 3, 7, 100, 131])
def test_the_validation_side_has_exactly_its_size(count: int, tmp_path: Path) -> None:
    train, validation = split(write_images(tmp_path, numbered(count)))
    assert len(validation) == math.ceil(0.15 * count)
    assert ids(train) | ids(validation) == set(numbered(count))
    assert len(train) + len(validation) == count


def test_no_caption_stands_on_both_sides(tmp_path: Path) -> None:
    captions = {
        f"{i:04}": ("Red  fox {}, " if i % 2 else "red FOX {}").format(i // 2) for i in range(200)
    }
    train, validation = split(write_images(tmp_path, captions))
    sides = [{normalised_caption(row["caption"]) for row in rows} for rows in (train, validation)]
    assert not sides[0] & sides[1]
    assert len(validation) == 30


def test_a_row_leads_to_its_picture(tmp_path: Path) -> None:
    images = write_images(tmp_path, numbered(90))
    train, validation = split(images)
    assert pq.read_schema(tmp_path / "validation.parquet").names == MANIFEST.names
    for row in (*train, *validation):
        with tarfile.open(row["shard"]) as tar:
            file = tar.extractfile(row["member"])
            assert file
            assert sha256(file.read()).hexdigest() == row["sha256"]
        assert (row["width"], row["height"], row["user"]) == (96, 144, 7)
        assert row["caption"] == f"thing number {int(row['id'])}"
    assert {Path(row["shard"]).name for row in train} == {"00000.tar", "00001.tar", "00002.tar"}


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    images = write_images(tmp_path, numbered(50))
    split(images)
    first = (tmp_path / "validation.parquet").read_bytes()
    split(images)
    assert (tmp_path / "validation.parquet").read_bytes() == first


def test_more_rows_move_few(tmp_path: Path) -> None:
    _, before = split(write_images(tmp_path / "one", numbered(400)))
    _, after = split(write_images(tmp_path / "two", numbered(440)))
    assert len(ids(before) - ids(after)) <= 12  # a draw anew would move some 50
    _, other = split(tmp_path / "one" / "images", SplitParams(validation_fraction=0.15, seed=1))
    assert len(ids(before) - ids(other)) > 30


# --- what stops it ----------------------------------------------------------------------------


def test_a_folder_without_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no shards .* stages\.download"):
        split(tmp_path)


@pytest.mark.parametrize("damage", ["cut", "other", "no_picture", "no_json", "no_fact"])
def test_a_broken_shard_is_named(damage: str, tmp_path: Path) -> None:
    images = write_images(tmp_path, numbered(10))
    shard = images / "00000.tar"
    names = {"no_picture": ["a.json"], "no_json": ["a.png"], "no_fact": ["a.png", "a.json"]}
    if damage == "cut":
        shard.write_bytes(shard.read_bytes()[:3000])
    elif damage == "other":
        shard.write_bytes(b"hello")
    else:
        with tarfile.open(shard, "w") as tar:
            for name in names[damage]:
                header = tarfile.TarInfo(name)
                header.size = 2
                tar.addfile(header, io.BytesIO(b"{}"))
    with pytest.raises(ValueError, match=r"00000\.tar: "):
        split(images)
    assert not (tmp_path / "validation.parquet").exists()


def test_a_single_picture_cannot_be_split(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"1 picture\(s\).*leaves none to train on"):
        split(write_images(tmp_path, numbered(1)))


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_that_leaves_a_side_empty_is_refused(fraction: float) -> None:
    with pytest.raises(ValueError, match="must lie between 0 and 1"):
        SplitParams(validation_fraction=fraction, seed=1)


def test_the_command_line_splits_and_fails_with_one_clear_message(tmp_path: Path) -> None:
    images = write_images(tmp_path, numbered(20))
    params = tmp_path / "params.yaml"
    params.write_text(yaml.safe_dump({"split": {"validation_fraction": 0.15, "seed": 555}}))
    words = [sys.executable, "-m", "stages.split", "--params", str(params)]
    words += ["--train", f"{tmp_path}/train.parquet", "--validation", f"{tmp_path}/val.parquet"]
    done = subprocess.run(
        [*words, "--images", str(images)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "20 pictures, 17 to train on, 3 held out" in done.stdout
    failed = subprocess.run(
        [*words, "--images", str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert failed.returncode == 1
    assert "no shards" in failed.stderr
    assert "Traceback" not in failed.stderr
