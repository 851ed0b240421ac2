"""What `models/base` ships: the judge knows the sample's pictures by their captions."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from stages.diffusion.scorer import Scorer
from stages.filter import run as filter_export
from stages.harness.params import load_params
from stages.images.mirror import mirrored
from stages.midjourney.reject import FilterParams
from tests.imports import ROOT

PICTURES = 30


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[str, Path]]:
    """Captions and pictures of the sample, as the mini profile keeps them."""
    folder = tmp_path_factory.mktemp("pairs")
    params = load_params("filter", FilterParams, ROOT / "profiles/mini.yaml")
    export = ROOT / "data/sample/messages.csv"
    filter_export(export, folder / "pairs.parquet", folder / "report.json", params)
    rows = pq.read_table(folder / "pairs.parquet", columns=["caption", "url"]).to_pylist()
    found = [
        (row["caption"], path)
        for row in rows
        for path in mirrored(row["url"], [ROOT / "data/sample/cdn"])
        if path.is_file() and path.stat().st_size > 500
    ]
    return found[:: len(found) // PICTURES][:PICTURES]


def test_the_judge_prefers_a_picture_s_own_caption(pairs: list[tuple[str, Path]]) -> None:
    scorer = Scorer(ROOT / "models/base/clip")
    captions = [caption for caption, _ in pairs]
    right = 0
    for caption, path in pairs:
        with Image.open(path) as picture:
            scores = {text: scorer.score(picture, text) for text in captions}
        right += max(scores, key=scores.__getitem__) == caption
    assert len(pairs) == PICTURES
    assert right >= 0.8 * PICTURES  # held-out concepts are among them; chance finds one
