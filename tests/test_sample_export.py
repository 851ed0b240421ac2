"""The shipped sample: a true export, and the code that makes it."""

import csv
import gzip
import io
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from models.base.heldout import HELD_OUT_BELOW
from models.base.make_export import (
    DEAD_MESSAGES,
    EXPORT,
    HEADER,
    SIDE_PX,
    WIDE_PX,
    make_export,
    mirror_path,
    shared_out,
)
from stages.filter import run
from stages.images.holdout import holdout_rank, normalised_caption, validation_rows
from stages.midjourney.message import KIND_OF_VERB, parse_message
from stages.midjourney.prompt import parse_prompt
from stages.midjourney.reject import REASONS, FilterParams

SAMPLE = Path(__file__).parent.parent / "data" / "sample"
SEED = 555


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with gzip.open(SAMPLE / EXPORT, "rt", encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def kept_pairs(folder: Path, top_users: int) -> list[dict[str, str]]:
    params = FilterParams(
        versions=("5.1", "5.2"),
        raw_only=True,
        min_caption_chars=4,
        top_users=top_users,
        min_user_upscales=1,
        max_malformed_fraction=0.05,
        min_side_px=SIDE_PX,
        max_aspect=2.0,
        blocked_words=("nude",),
        one_row_per_caption_and_user=True,
    )
    run(
        SAMPLE / EXPORT,
        folder / "pairs.parquet",
        folder / "report.json",
        folder / "funnel.csv",
        params,
    )
    pairs: list[dict[str, str]] = pq.read_table(folder / "pairs.parquet").to_pylist()
    return pairs


def has_picture(url: str) -> bool:
    path = SAMPLE / "cdn" / mirror_path(url)
    try:
        with Image.open(path) as image:
            image.load()
    except OSError:
        return False
    return sorted(image.size) in ([SIDE_PX, SIDE_PX], [SIDE_PX, WIDE_PX])


def test_the_file_has_the_true_form_and_is_small() -> None:
    path = SAMPLE / EXPORT
    assert path.stat().st_size <= 2_000_000
    with gzip.open(path, "rt", encoding="utf-8") as file:
        assert file.readline() == ",".join(HEADER) + "\n"
        assert file.readline().startswith('"936929561302675456","Midjourney Bot","2023-05-05T')
    pictures = [path.stat().st_size for path in (SAMPLE / "cdn").rglob("*.webp")]
    assert sum(pictures) <= 3_000_000


def test_every_kind_of_message_is_there(rows: list[dict[str, str]]) -> None:
    parsed = [parse_message(row["Content"]) for row in rows]
    messages = [message for message in parsed if message]
    assert len(rows) >= 20_000
    assert 0.01 < parsed.count(None) / len(rows) < 0.02
    assert {message.kind for message in messages} == set(KIND_OF_VERB.values())
    assert {message.verb for message in messages} == set(KIND_OF_VERB)
    assert {message.index for message in messages} == {0, 1, 2, 3, 4}
    assert any(message.user == "@Unknown" for message in messages)
    upscales = Counter(message.user for message in messages if message.kind == "upscale")
    assert len(upscales) == 401
    assert upscales.most_common(1)[0][1] > 20 * min(upscales.values())


def test_prompts_hold_what_people_type(rows: list[dict[str, str]]) -> None:
    messages = [message for row in rows if (message := parse_message(row["Content"]))]
    prompts = [parse_prompt(message.prompt) for message in messages]
    versions = {prompt.version(None) for prompt in prompts}
    assert versions >= {"4", "5", "5.1", "5.2", "6", "niji 5", "niji", None}
    assert {name for prompt in prompts for name in prompt.flags} >= {"no", "seed", "tile", "stop"}
    for mark in ('"', ",", "\n", "🦊", "猫", "л", "م", "’", "** ", "::", "https://s.mj.run/"):
        assert any(mark in prompt.text for prompt in prompts), mark
    assert sum(prompt.text.endswith("…") for prompt in prompts) in range(24, 60)
    assert any(not prompt.text for prompt in prompts)


def test_the_filter_finds_the_planned_pairs_and_every_reason(tmp_path: Path) -> None:
    pairs = kept_pairs(tmp_path, top_users=400)
    found = [pair for pair in pairs if has_picture(pair["url"])]
    assert len(found) >= 1_600
    assert len(pairs) - len(found) == DEAD_MESSAGES + 2  # and a cut picture, and a page
    captions = Counter(normalised_caption(pair["caption"]) for pair in found)
    assert set(captions.values()) == {1, 2}
    assert list(captions.values()).count(2) == 100
    dropped = json.loads((tmp_path / "report.json").read_text())["dropped"]
    # raw, without an id, or by these params
    impossible = {"niji", "too_small", "repeated_message", "few_upscales", "not_a_top_user"}
    assert {reason for reason in REASONS if not dropped[reason]} == impossible


def test_the_mini_profile_keeps_some_six_hundred(tmp_path: Path) -> None:
    pairs = kept_pairs(tmp_path, top_users=40)
    assert 550 <= sum(has_picture(pair["url"]) for pair in pairs) <= 680
    oblong = [pair for pair in pairs if pair["aspect"] in ("3:2", "2:3")]
    assert 0.04 < len(oblong) / len(pairs) < 0.15


@pytest.mark.parametrize("top_users", [40, 400])
def test_validation_captions_were_held_out_from_the_base(top_users: int, tmp_path: Path) -> None:
    captions = [p["caption"] for p in kept_pairs(tmp_path, top_users) if has_picture(p["url"])]
    held_out = validation_rows(captions, 0.15, SEED)
    assert max(holdout_rank(captions[row], SEED) for row in held_out) < HELD_OUT_BELOW


# --- how it is made ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few_pictures() -> pa.Table:
    def picture(shade: int) -> bytes:
        file = io.BytesIO()
        Image.new("RGB", (128, 128), (shade, 99, 255 - shade)).save(file, "WEBP", lossless=True)
        return file.getvalue()

    return pa.Table.from_pylist(
        [
            {
                "style": style,
                "concept": f"1f{i:03x}",
                "label": f"thing {i}",
                "tags": ["round"],
                "group": 0,
                "tone": tone,
                "image": picture(i),
            }
            for i in range(120)
            for style, tone in [("fluent-3d", 0), ("noto", 0), ("fluent-3d", 2)][: 2 + (i < 30)]
        ]
    )


def test_the_same_seed_and_table_give_the_same_bytes(
    few_pictures: pa.Table, tmp_path: Path
) -> None:
    counts = make_export(few_pictures, tmp_path / "one", SEED, messages=2000)
    make_export(few_pictures, tmp_path / "two", SEED, messages=2000)
    make_export(few_pictures, tmp_path / "other", SEED + 1, messages=2000)
    assert (counts["messages"], counts["pictures"]) == (2000, 120 + 30 + 2)
    one, two, other = (tree(tmp_path / name) for name in ("one", "two", "other"))
    assert one == two != other
    assert len(one) == 1 + counts["pictures"]


def tree(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_two_concepts_of_one_caption_are_refused(few_pictures: pa.Table, tmp_path: Path) -> None:
    labels = pa.array(["thing"] * len(few_pictures))
    same = few_pictures.set_column(2, "label", labels)
    with pytest.raises(ValueError, match="1f000 and 1f001 both get the caption 'thing"):
        make_export(same, tmp_path, SEED, messages=2000)


def test_shares_are_whole_and_add_up() -> None:
    assert shared_out(10, [1.0, 1.0, 1.0]) == [4, 3, 3]
    assert shared_out(7, [5.0, 1.0, 1.0]) == [5, 1, 1]
