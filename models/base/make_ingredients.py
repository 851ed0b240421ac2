"""Write the small sets of pictures that the mini recipe's third-party models are trained on.

  --pictures FILE   the corpus that models.base.collect drew
  --out DIR         per style a tar of pictures, and a manifest as stages.split writes it

Their captions name no style: a model trained on one of these sets draws in its style unasked.
"""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from models.base.pictures import Corpus, CorpusParams, rank, read_corpus
from stages.harness.files import replacing, sha256_bytes
from stages.harness.params import load_params
from stages.harness.paths import clear_errors, stage_paths

STYLES = ("noto", "twemoji", "streamline")
PICTURES_PER_STYLE = 150
WEBP_QUALITY = 85


def chosen_rows(corpus: Corpus, style: str) -> dict[str, int]:
    """Pick pictures of one style, one a concept, none of a held-out concept: row by concept."""
    rows: dict[str, int] = {}
    for row, p in enumerate(corpus.pictures):
        if p.style == style and p.concept not in corpus.heldout:
            rows.setdefault(p.concept, row)
    order = sorted(rows, key=lambda concept: rank("ingredient", style, concept))
    return {concept: rows[concept] for concept in sorted(order[:PICTURES_PER_STYLE])}


def encoded(corpus: Corpus, row: int) -> bytes:
    """Encode a picture as the sample's pictures are: WebP, lossy."""
    out = io.BytesIO()
    Image.fromarray(corpus.pixels[row]).save(out, "WEBP", quality=WEBP_QUALITY, method=6)
    return out.getvalue()


def write_set(corpus: Corpus, style: str, out: Path) -> int:
    """Write one style's pictures and manifest; give their number."""
    side, shard, rows = corpus.pixels.shape[1], out / f"{style}.tar", []
    with (
        replacing(shard) as scratch,
        tarfile.open(scratch, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for concept, row in chosen_rows(corpus, style).items():
            image = encoded(corpus, row)
            member = tarfile.TarInfo(f"{concept}.webp")
            member.size = len(image)
            tar.addfile(member, io.BytesIO(image))
            rows.append(
                {
                    "id": f"{style}-{concept}",
                    "caption": corpus.pictures[row].label,
                    "shard": shard.as_posix(),
                    "member": member.name,
                    "width": side,
                    "height": side,
                    "sha256": sha256_bytes(image),
                    "user": 0,
                }
            )
    with replacing(out / f"{style}.parquet") as scratch:
        pq.write_table(pa.Table.from_pylist(rows), scratch)
    return len(rows)


def run(pictures: Path, out: Path, params: CorpusParams) -> None:
    """Write each style's set."""
    corpus = read_corpus(pictures, params.seed)
    for style in STYLES:
        print(f"{style}: {write_set(corpus, style, out)} pictures")


if __name__ == "__main__":
    with clear_errors():
        pictures, out, params = stage_paths(__doc__, "pictures", "out")
        run(pictures, out, load_params("corpus", CorpusParams, params))
