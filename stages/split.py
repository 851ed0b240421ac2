"""Hold some pictures out for validation, and list both sides.

  --images DIR        the shards that stages.download wrote
  --train FILE        becomes a parquet table of the pictures to train on
  --validation FILE   becomes a parquet table of those held out

The columns of both are id, caption, shard, member, width, height, sha256, user: a picture is file
`member` of the tar file `shard`. Exactly ceil(validation_fraction * n) rows are held out, and no
caption stands on both sides, whatever its letter case and spacing.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stages.harness.files import replacing
from stages.harness.params import Params, load_params
from stages.harness.paths import clear_errors, stage_paths
from stages.images.holdout import validation_rows
from stages.images.shards import Stored, read_shards

MANIFEST = pa.schema(
    [
        ("id", pa.string()),
        ("caption", pa.string()),
        ("shard", pa.string()),  # path of the tar file, as --images names its folder
        ("member", pa.string()),  # name of the picture inside
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the picture's bytes there
        ("user", pa.int32()),  # rank by number of upscales, from 1
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitParams(Params):
    """Section `split`."""

    validation_fraction: float  # of the pictures; the rest is trained on
    seed: int  # another one holds out other captions

    def __post_init__(self) -> None:
        """Refuse a split that leaves one side empty."""
        if not 0 < self.validation_fraction < 1:
            raise ValueError(
                f"validation_fraction must lie between 0 and 1, got {self.validation_fraction}"
            )


def manifest_row(stored: Stored) -> dict[str, Any]:
    """Describe a sample in the columns of MANIFEST.

    Raises:
        ValueError: if its facts lack one.
    """
    own = {"shard": stored.shard.as_posix(), "member": stored.member}
    if missing := [name for name in MANIFEST.names if name not in stored.facts | own]:
        raise ValueError(f"{stored.shard}: the .json of {stored.member} has no {missing[0]!r}")
    return {name: (stored.facts | own)[name] for name in MANIFEST.names}


def run(images: Path, train: Path, validation: Path, params: SplitParams) -> None:
    """Split the pictures of one folder.

    Raises:
        FileNotFoundError: if the folder holds no shards.
        ValueError: if a shard is broken, or no exact split exists.
    """
    rows = [manifest_row(stored) for stored in read_shards(images)]
    pictures = pa.Table.from_pylist(rows, MANIFEST)
    captions = pictures["caption"].to_pylist()
    held_out = set(validation_rows(captions, params.validation_fraction, params.seed))
    if len(held_out) == len(pictures):
        raise ValueError(
            f"{images}: with {len(pictures)} picture(s), split.validation_fraction = "
            f"{params.validation_fraction} leaves none to train on"
        )
    is_held_out = pa.array([row in held_out for row in range(len(pictures))])
    is_trained_on = pa.array([row not in held_out for row in range(len(pictures))])
    for path, side in ((train, is_trained_on), (validation, is_held_out)):
        with replacing(path) as scratch:
            pq.write_table(pictures.filter(side), scratch)
    print(
        f"{images}: {len(pictures):,} pictures, {len(pictures) - len(held_out):,} to train on, "
        f"{len(held_out):,} held out"
    )


def main() -> None:
    """Run from the command line."""
    images, train, validation, params = stage_paths(__doc__, "images", "train", "validation")
    with clear_errors():
        run(images, train, validation, load_params("split", SplitParams, params))


if __name__ == "__main__":
    main()
