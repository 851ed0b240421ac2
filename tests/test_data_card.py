"""The data card: its numbers, and what a stranger's words may not do to it."""

import re
from pathlib import Path

import pytest
from PIL import Image

from stages.images.outcome import Fetched
from stages.images.shards import Sample, write_shards
from stages.images.verify import verify
from stages.page.data_card import data_card, describe, frequent_words

FILTER = {"read": 1000, "kept": 5, "dropped": {"malformed": 15, "not_raw": 980, "tile": 0}}
FILTER |= {"users_by_upscales": {"1": 30, "16 to 31": 2, "2 to 3": 10}}
DOWNLOAD = {"rows": 5, "fetched": 4, "yield": 0.8, "failed": {"gone": 1, "expired": 0}}


@pytest.fixture
def images(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.new("RGB", (40, 30)).save(path)
    picture = verify(path, 10**6, 10**6)
    captions = ["red fox in the snow", "Red fox, <b>bold</b> [x](y)", "an owl", "fox " * 80]
    samples = [
        Sample(
            str(i),
            caption,
            Fetched(path, picture, "mirror"),  # type: ignore[arg-type]
            {"user": 1 + i // 3, "version": "5.2", "aspect": "4:3"},
        )
        for i, caption in enumerate(captions)
    ]
    folder = tmp_path / "images"
    folder.mkdir()
    write_shards(samples, folder, 3)
    return folder


def test_a_card_tells_the_funnel_the_captions_the_shapes_and_the_users(images: Path) -> None:
    card = data_card(describe(images, FILTER, DOWNLOAD), FILTER, DOWNLOAD)
    assert "4 pairs of picture and caption, by 2 users, of 1,000 messages" in card
    assert card.index("| not_raw | -980 |") < card.index("| malformed | -15 |")
    assert "tile" not in card
    assert "| gone | -1 |" in card
    assert "fox (3), red (2)" in card
    assert re.search(r"4:3 █{30} 4\n", card)
    assert re.search(r"40 x 30 █{30} 4\n", card)
    assert re.search(r"1-1 █{30} 3\n2-2 █{10} 1\n", card)
    assert re.search(r" 1 █{30} 30\n +2 to 3 █{10} 10\n16 to 31 █{2} 2\n", card)
    assert re.search(r"0-19 █+ 2\n *20-39 █+ 1\n *200\+ █+ 1\n", card)


def test_a_caption_is_shown_as_it_is_and_does_nothing(images: Path) -> None:
    card = data_card(describe(images, FILTER, DOWNLOAD), FILTER, DOWNLOAD)
    assert "<b>" not in card
    assert "[x](y)" not in card
    assert "Red fox, &#60;b&#62;bold" in card


def test_the_policy_says_of_robots_only_what_was_asked(images: Path) -> None:
    mirrors = {"by_source": {"mirror": 4, "link": 0}}
    asked = {"by_source": {"mirror": 0, "link": 4}}
    assert "X-Robots-Tag" not in describe(images, FILTER, DOWNLOAD | mirrors).policy
    assert "X-Robots-Tag" in describe(images, FILTER, DOWNLOAD | asked).policy


def test_words_count_once_a_caption_and_small_ones_not_at_all() -> None:
    assert frequent_words(["the Fox, fox of snow", "snow-white owl"]) == [
        ("fox", 1),
        ("owl", 1),
        ("snow", 1),
        ("snow-white", 1),
    ]
