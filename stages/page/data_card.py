"""The data card: where the pairs come from, what was dropped, and what the captions are like."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    "Midjourney's terms forbid automated collection."
)
MIRRORS_ONLY = "The pictures came from mirrors; no link of the export was asked."
LINKS_ASKED = (
    "Links were asked on the word of who ran this (`download.acknowledge_terms`), and a picture "
    "whose answer forbids machines by `X-Robots-Tag` was left out."
)

Count = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Card:
    """What the card says of the pairs; counts in the order in which they are drawn."""

    pairs: int
    users: int
    lengths: list[Count]  # letters of a caption
    words: list[Count]  # captions that hold them
    aspects: list[Count]
    sizes: list[Count]
    ranks: list[Count]  # pairs
    upscales: list[Count]  # users
    samples: list[str]
    policy: str


def describe(
    images: Path, filter_report: Mapping[str, Any], download_report: Mapping[str, Any]
) -> Card:
    """Count what the card shows.

    Args:
        images: the shards that stages.download wrote.
        filter_report, download_report: what the two stages counted.

    Raises:
        FileNotFoundError, ValueError: if the shards are missing or damaged.
    """
    stored = list(read_shards(images))
    captions = [str(sample.facts["caption"]) for sample in stored]
    curve = filter_report.get("users_by_upscales", {})
    were_asked = bool(download_report.get("by_source", {}).get("link"))
    return Card(
        pairs=len(stored),
        users=len({sample.facts["user"] for sample in stored}),
        lengths=_lengths(captions),
        words=frequent_words(captions),
        aspects=_counted(str(sample.facts["aspect"]) for sample in stored),
        sizes=_counted(f"{s.facts['width']} x {s.facts['height']}" for s in stored),
        ranks=_by_rank(stored),
        upscales=sorted(curve.items(), key=lambda item: int(item[0].split(" ")[0])),
        samples=[captions[i] for i in _spread(len(captions))],
        policy=f"{POLICY} {LINKS_ASKED if were_asked else MIRRORS_ONLY}",
    )


def data_card(
    card: Card, filter_report: Mapping[str, Any], download_report: Mapping[str, Any]
) -> str:
    """Write the card as Markdown."""
    parts = [
        "# Data card",
        f"{card.pairs:,} pairs of picture and caption, by {card.users:,} users, of "
        f"{filter_report['read']:,} messages.",
        "## From messages to pairs",
        _table(("messages read", filter_report["read"]), filter_report["dropped"]),
        f"{filter_report['kept']:,} messages were kept. Of their pictures, "
        f"{download_report['fetched']:,} were fetched ({download_report['yield']:.1%}).",
        _table(("pictures wanted", download_report["rows"]), download_report["failed"]),
        "## Captions",
        "Letters of a caption:",
        bars(card.lengths),
        f"The {FREQUENT_WORDS} most frequent words (captions that hold them):",
        ", ".join(f"{word} ({count:,})" for word, count in card.words),
        "## Shapes and sizes",
        "Aspect as asked for:",
        bars(card.aspects),
        "Width x height, px:",
        bars(card.sizes),
        "## Users",
        "Users of the export by their number of upscales:",
        bars(card.upscales),
        "Pairs by the user's rank (1 upscaled most):",
        bars(card.ranks),
        "## Samples",
        "\n".join(f"- {_plain(caption)}" for caption in card.samples),
        "## Policy",
        card.policy,
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


def _spread(count: int) -> list[int]:
    """Choose samples evenly spread over the pairs."""
    wanted = min(SAMPLES, count)
    return [i * count // wanted for i in range(wanted)]


def _plain(caption: str) -> str:
    """Take from a stranger's text what Markdown or HTML would act on."""
    return "".join(f"&#{ord(c)};" if c in "<>&[]()*_`|#!\\" else c for c in caption)
