"""The split's rule, and the concepts that the mini base must never see."""

import math
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.base.heldout import HELD_OUT_BELOW, heldout_concepts, planned_caption
from stages.images.holdout import holdout_rank, normalised_caption, validation_rows


@pytest.mark.parametrize(
    "caption", ["red apple", "Red  Apple", " red\napple. ", '"RED APPLE",', "red apple!"]
)
def test_case_spacing_and_ends_make_no_new_caption(caption: str) -> None:
    assert normalised_caption(caption) == "red apple"
    assert holdout_rank(caption, 555) == holdout_rank("red apple", 555)


@pytest.mark.parametrize(("one", "other"), [("keycap: #", "keycap: *"), ("cat 1", "cat 2")])
def test_what_a_caption_is_about_stays(one: str, other: str) -> None:
    assert normalised_caption(one) != normalised_caption(other)


@given(st.text(max_size=40))
def test_normalising_twice_changes_nothing(caption: str) -> None:
    once = normalised_caption(caption)
    assert normalised_caption(once) == once


@given(st.text(max_size=20), st.integers(0, 10**6))
def test_ranks_lie_in_the_unit_interval(caption: str, seed: int) -> None:
    assert 0 <= holdout_rank(caption, seed) < 1


def test_the_rank_of_a_caption_never_changes() -> None:
    assert holdout_rank("red apple", 555) == pytest.approx(0.5783269, abs=1e-6)


def test_the_size_is_that_of_the_article() -> None:
    captions = [f"caption {i}" for i in range(11_475)]
    assert len(validation_rows(captions, 0.15, seed=555)) == 1_722


def test_the_fraction_is_the_decimal_number_that_was_written() -> None:
    captions = [f"caption {i}" for i in range(100)]
    assert math.ceil(0.07 * 100) == 8
    assert len(validation_rows(captions, 0.07, seed=1)) == 7


@given(
    st.lists(st.integers(1, 3), min_size=5, max_size=60),
    st.sampled_from([0.0, 0.1, 0.15, 0.5]),
    st.integers(0, 99),
)
def test_the_split_is_exact_whole_by_caption_and_without_order(
    sizes: list[int], fraction: float, seed: int
) -> None:
    captions = [f"c{i}" for i, size in enumerate(sizes) for _ in range(size)]
    captions += [f"single {i}" for i in range(10)]  # so that an exact fill exists
    rows = validation_rows(captions, fraction, seed)
    assert len(rows) == math.ceil(round(fraction * len(captions), 9))
    inside = Counter(captions[row] for row in rows)
    assert all(Counter(captions)[caption] == count for caption, count in inside.items())
    backwards = validation_rows(captions[::-1], fraction, seed)
    assert {captions[::-1][row] for row in backwards} == set(inside)


def test_one_more_caption_moves_few() -> None:
    captions = [f"caption {i}" for i in range(1000)]
    before = {captions[row] for row in validation_rows(captions, 0.15, seed=1)}
    captions.append("one more")
    after = {captions[row] for row in validation_rows(captions, 0.15, seed=1)}
    assert len(before - after) <= 1


def test_a_split_that_cannot_be_exact_is_refused() -> None:
    with pytest.raises(ValueError, match=r"exactly 1 of 4 rows .* 2 groups, the largest of 2"):
        validation_rows(["a", "A", "b", "b"], 0.1, seed=1)


def test_a_fraction_of_one_is_refused() -> None:
    with pytest.raises(ValueError, match=r"below 1, got 1\.0"):
        validation_rows(["a"], 1.0, seed=1)


def test_the_base_keeps_clear_of_what_any_style_shows_of_a_held_out_concept() -> None:
    names = [f"thing {i}" for i in range(400)]
    pictures = pa.table(
        {
            "style": ["noto", "fluent-3d"] * 400,
            "concept": [f"1f{i:03x}" for i in range(400) for _ in range(2)],
            "label": [name for name in names for _ in range(2)],
            "tags": pa.array([["round", "small"]] * 800, pa.list_(pa.string())),
        }
    )
    held = heldout_concepts(pictures, seed=555)
    captions = [planned_caption(name, ["round", "small"]) for name in names]
    validation = validation_rows(captions, 0.15, seed=555)
    assert {f"1f{row:03x}" for row in validation} <= held
    assert len(held) == pytest.approx(HELD_OUT_BELOW * 400, rel=0.25)


def test_a_planned_caption_starts_with_its_label_and_adds_only_words() -> None:
    assert planned_caption("ox", ["ox", ":-)", "--v"]) == "ox"
    assert planned_caption("ox", ["bull", ":-)"]) == "ox, bull"
