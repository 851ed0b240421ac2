"""Write a part of a manifest: the mini recipe's older models learn from fewer pictures.

  python -m stages.split_part NAME --manifest FILE --out FILE

NAME is a section of the params, `split_part.NAME`. Whole groups of one caption are taken, by a
hash, so that a larger part holds a smaller one.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from stages.harness.files import replacing
from stages.harness.params import Params, load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.images.holdout import holdout_rank

SEED = 0  # another order than the split's, whose lowest ranks are all held out


@dataclass(frozen=True, slots=True, kw_only=True)
class PartParams(Params):
    """A section `split_part.<name>`."""

    share: float  # of the captions, above 0 and at most 1

    def __post_init__(self) -> None:
        """Check the range."""
        if not 0 < self.share <= 1:
            raise ValueError(f"share must be above 0 and at most 1, got {self.share}")


def part(manifest: pa.Table, share: float) -> pa.Table:
    """Keep the rows whose caption ranks below `share`."""
    captions = manifest["caption"].to_pylist()
    return manifest.filter(pa.array([holdout_rank(text, SEED) < share for text in captions]))


def run(manifest: Path, out: Path, params: PartParams) -> None:
    """Write the part of one manifest.

    Raises:
        FileNotFoundError: if there is no such manifest.
        ValueError: if nothing is left of it.
    """
    if not manifest.is_file():
        raise FileNotFoundError(f"{manifest}: no such manifest. `python -m stages.split` makes it")
    whole = pq.read_table(manifest)
    kept = part(whole, params.share)
    if not len(kept):
        raise ValueError(
            f"{manifest}: a share of {params.share} leaves none of {len(whole)} rows; raise it"
        )
    with replacing(out) as scratch:
        pq.write_table(kept, scratch)
    print(f"{out}: {len(kept):,} of {len(whole):,} rows")


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.split_part",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", metavar="NAME", help="section split_part.NAME of the params")
    parser.add_argument("--manifest", type=Path, required=True, metavar="FILE", help="the whole")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the part")
    add_params_option(parser)
    options = parser.parse_args()
    with clear_errors():
        params = load_params(f"split_part.{options.name}", PartParams, options.params)
        run(options.manifest, options.out, params)


if __name__ == "__main__":
    main()
