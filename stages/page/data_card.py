"""The data card: where the pairs come from, what was dropped, and what the captions are like."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.images.shards import Stored, read_shards

FREQUENT_WORDS = 30
SAMPLES = 12
BAR_LETTERS = 30
LENGTH_STEP = 20  # letters of a caption
SMALL_WORDS = frozenset(
    [
        "a",
        "an",
        "and",
        "as",
        "at",
        "by",
        "for",
        "from",
        "in",
        "into",
        "is",
        "of",
        "on",
        "or",
        "the",
        "to",
        "with",
    ]
)
POLICY = (
    "User ids are personal data: this card and the pairs hold ranks by number of upscales alone. "
    "Discord forbids re-identifying users and training on message content without permission, and "
    "Midjourney's terms forbid automated collection; who fetched links did so on their own word "
    "(`download.acknowledge_terms`). `X-Robots-Tag` was respected."
)


def data_card(
    images: Path, filter_report: Mapping[str, Any], download_report: Mapping[str, Any]
) -> str:
    """Describe the pairs that a run trains on, as Markdown.

    Args:
        images: the shards that stages.download wrote.
        filter_report, download_report: what the two stages counted.

    Raises:
        FileNotFoundError, ValueError: if the shards are missing or damaged.
    """
    stored = list(read_shards(images))
    captions = [str(sample.facts["caption"]) for sample in stored]
    parts = [
        "# Data card",
        f"{len(stored):,} pairs of picture and caption, by {_user_count(stored):,} users, of "
        f"{filter_report['read']:,} messages.",
        "## From messages to pairs",
        _table(("messages read", filter_report["read"]), filter_report["dropped"]),
        f"{filter_report['kept']:,} messages were kept. Of their pictures, "
        f"{download_report['fetched']:,} were fetched ({download_report['yield']:.1%}).",
        _table(("pictures wanted", download_report["rows"]), download_report["failed"]),
        "## Captions",
        "Letters of a caption:",
        bars(_lengths(captions)),
        f"The {FREQUENT_WORDS} most frequent words (captions that hold them):",
        ", ".join(f"{word} ({count:,})" for word, count in frequent_words(captions)),
        "## Shapes and sizes",
        "Aspect as asked for:",
        bars(_counted(str(sample.facts["aspect"]) for sample in stored)),
        "Width x height, px:",
        bars(_counted(f"{s.facts['width']} x {s.facts['height']}" for s in stored)),
        "## Users",
        "Pairs by the user's rank (1 upscaled most):",
        bars(_by_rank(stored)),
        "## Samples",
        "\n".join(f"- {_plain(captions[i])}" for i in _spread(len(captions))),
        "## Policy",
        POLICY,
    ]
    return "\n\n".join(parts) + "\n"


def frequent_words(captions: Iterable[str]) -> list[tuple[str, int]]:
    """Count the captions that hold each word, most first; of equals by the alphabet."""
    counts = Counter(word for caption in captions for word in _words(caption))
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:FREQUENT_WORDS]


def _words(caption: str) -> set[str]:
    letters = "".join(c if c.isalnum() or c in "-'’" else " " for c in caption.lower())
    words = {word.strip("-'’") for word in letters.split()}
    return {word for word in words if len(word) > 1 and word not in SMALL_WORDS}


def bars(counts: Sequence[tuple[str, int]]) -> str:
    """Draw counts as bars of letters, the longest of BAR_LETTERS."""
    most = max((count for _, count in counts), default=1)
    width = max((len(label) for label, _ in counts), default=0)
    lines = [
        f"{label:>{width}} {'█' * max(1, round(BAR_LETTERS * count / most))} {count:,}"
        for label, count in counts
    ]
    return "\n".join(["```", *lines, "```"])


def _table(first: tuple[str, int], dropped: Mapping[str, int]) -> str:
    rows = sorted(dropped.items(), key=lambda item: (-item[1], item[0]))
    lines = [f"| {first[0]} | {first[1]:,} |", "|---|---:|"]
    return "\n".join([*lines, *(f"| {name} | -{count:,} |" for name, count in rows if count)])


def _counted(values: Iterable[str]) -> list[tuple[str, int]]:
    """Count values, most first; those beyond the tenth together."""
    counts = sorted(Counter(values).items(), key=lambda item: (-item[1], item[0]))
    others = sum(count for _, count in counts[10:])
    return [*counts[:10], *([("others", others)] if others else [])]


def _lengths(captions: Iterable[str]) -> list[tuple[str, int]]:
    counts = Counter(min(len(caption) // LENGTH_STEP, 10) for caption in captions)
    return [
        (f"{step * LENGTH_STEP}{'+' if step == 10 else f'-{(step + 1) * LENGTH_STEP - 1}'}", n)
        for step, n in sorted(counts.items())
    ]


def _by_rank(stored: Sequence[Stored]) -> list[tuple[str, int]]:
    """Sum pairs over tenths of the users, best first."""
    counts = Counter(int(sample.facts["user"]) for sample in stored)
    ranks = sorted(counts)
    step = max(1, -(-len(ranks) // 10))
    groups = [ranks[first : first + step] for first in range(0, len(ranks), step)]
    return [(f"{group[0]}-{group[-1]}", sum(counts[rank] for rank in group)) for group in groups]


def _user_count(stored: Sequence[Stored]) -> int:
    return len({sample.facts["user"] for sample in stored})


def _spread(count: int) -> list[int]:
    """Choose samples evenly spread over the pairs."""
    wanted = min(SAMPLES, count)
    return [i * count // wanted for i in range(wanted)]


def _plain(caption: str) -> str:
    """Take from a stranger's text what Markdown or HTML would act on."""
    return "".join(f"&#{ord(c)};" if c in "<>&[]()*_`|#!\\" else c for c in caption)
