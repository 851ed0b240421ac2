"""People's votes between two pictures of one prompt and seed.

A voter's file grows by a line per answer and is never rewritten: JSON, one object a line. An
answer holds the two models, the SHA-256 of their weights, the addresses of their cells, what both
pictures show, and `a`, `b`, `tie` or `both_bad`; `{"undo": ID}` takes an answer back. Older lines
lack the addresses and the negative prompt.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.choice.scores import Score

ANSWERS = ("a", "b", "tie", "both_bad")
FIRST, SECOND, TIED = range(3)  # who won, of two models in the order of the fit
TEXTS = ("id", "grid", "a", "b", "a_weights", "b_weights", "prompt", "answer")
NUMBERS = ("seed", "width", "height")
CELLS = ("a_cell", "b_cell")
VARIED = ("replaced", "setting", "negative_prompt")
MAY_LACK = ("question", "left", *VARIED, *CELLS)  # texts, where they stand


@dataclass(frozen=True, slots=True)
class Vote:
    """One answer to "which of the two?"."""

    a: str
    b: str
    prompt: str
    seed: int
    winner: str | None  # None: a tie, or both bad
    voter: str = ""
    place: str = ""  # what else tells them apart: size, words replaced, settings, negative prompt

    @property
    def question(self) -> tuple[str, ...]:
        """Name what was asked: the same two pictures have one name, whichever stood left."""
        return (self.prompt, str(self.seed), self.place, *sorted((self.a, self.b)))

    @property
    def said(self) -> int:
        """Tell who won, of the two models in the order of their names."""
        return TIED if self.winner is None else sorted((self.a, self.b)).index(self.winner)


@dataclass(frozen=True, slots=True)
class Ballot:
    """The votes of a grid that count, and what was said about the rest."""

    votes: list[Vote]
    problems: list[str]  # by line


@dataclass(frozen=True, slots=True)
class Pictures:
    """What a grid holds."""

    addresses: set[str]  # of its cells
    places: set[tuple[str, int, int, int]]  # prompt, seed, width, height


def read_votes(
    folder: Path, grid: str, weights: Mapping[str, str], scores: Collection[Score] = ()
) -> Ballot:
    """Read every voter's file, and keep the votes on a grid's pictures.

    A line that is cut short or broken, or is about a model that is not asked about, about other
    weights of that name, or about a picture that the grid does not hold, is left out and told.
    Of a voter's answers to one question the last counts. A vote on a model of another name and
    the same weights is one on the first of that weights: their pictures are the same.

    Args:
        folder: VOTER.jsonl of each voter; need not exist.
        grid: whose votes are wanted.
        weights: SHA-256 by model.
        scores: tell the grid's cells, and models of it that are not asked about, on which votes
            are passed over; without any, every picture of `weights` counts.
    """
    pictures = Pictures(
        {score.address for score in scores},
        {(score.prompt, score.seed, score.width, score.height) for score in scores},
    )
    others = {score.model for score in scores} - weights.keys()
    first = first_of_weights(weights)
    votes: dict[tuple[str, ...], Vote] = {}
    problems: list[str] = []
    for path in sorted(folder.glob("*.jsonl")):
        for where, said in answers(path, problems):
            line = {**said, **{x: first.get(said[f"{x}_weights"], said[x]) for x in ("a", "b")}}
            if line["a"] == line["b"]:
                continue
            if line["grid"] != grid or {line["a"], line["b"]} & others:
                continue
            if wrong := _unknown(line, weights) or (scores and _gone(line, pictures)):
                problems.append(f"{where}: {wrong}")
                continue
            vote = as_vote(line, path.stem)
            votes.pop((vote.voter, *vote.question), None)
            votes[vote.voter, *vote.question] = vote
    return Ballot(list(votes.values()), problems)


def first_of_weights(weights: Mapping[str, str]) -> dict[str, str]:
    """Give the first model of each weights, which stands for all that have them.

    Args:
        weights: SHA-256 by model.
    """
    return {sha256: name for name, sha256 in reversed(list(weights.items()))}


def answers(path: Path, problems: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Read the answers of one voter that were not taken back.

    Args:
        path: of a voter's file.
        problems: comes to name each line that is none.

    Yields:
        Where a line stands, and what it says.
    """
    lines: dict[str, tuple[str, dict[str, Any]]] = {}
    for number, text in enumerate(path.read_bytes().split(b"\n"), start=1):
        where = f"{path}, line {number}"
        line = _parse(text)
        if isinstance(line, str):
            problems.append(f"{where}: {line}")
        elif line and "undo" in line:
            if lines.pop(str(line["undo"]), None) is None:
                problems.append(f"{where}: takes back a vote that is not there: {line['undo']!r}")
        elif line:
            lines[line["id"]] = (where, line)
    yield from lines.values()


def _parse(text: bytes) -> dict[str, Any] | str | None:
    """Read one line, or say what is wrong with it; None if it is blank."""
    if not text.strip():
        return None
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):  # the latter by thousands of brackets
        return "not JSON; was the line cut short?"
    if not isinstance(line, dict):
        return f"not an answer: {line!r}"
    if "undo" in line:
        return line
    texts = (*TEXTS, *(name for name in MAY_LACK if name in line))
    for name, kind in [*((text, str) for text in texts), *((number, int) for number in NUMBERS)]:
        if not isinstance(line.get(name), kind) or isinstance(line[name], bool):
            return f"no {name} but {line.get(name)!r}"
    if line["answer"] not in ANSWERS:
        return f"answer {line['answer']!r}; wanted {', '.join(ANSWERS)}"
    if line["a"] == line["b"]:
        return f"{line['a']!r} against itself"
    return line


def _unknown(line: Mapping[str, Any], weights: Mapping[str, str]) -> str | None:
    for side in ("a", "b"):
        if line[side] not in weights:
            return f"no such model: {line[side]!r}"
        if line[f"{side}_weights"] != weights[line[side]]:
            return f"{line[side]!r} had other weights when this was asked"
    return None


def _gone(line: Mapping[str, Any], pictures: Pictures) -> str | None:
    """Say that the grid no longer holds the pictures which a line is about; None if it does."""
    place = (line["prompt"], line["seed"], line["width"], line["height"])
    shown = {line[side] for side in CELLS if side in line}
    if shown <= pictures.addresses if shown else place in pictures.places:
        return None
    drawn = ", drawn as it was then" if place in pictures.places else ""
    prompt, seed, width, height = place
    return f"the grid has no {prompt!r}, seed {seed}, {width} x {height} px{drawn}"


def as_vote(line: Mapping[str, Any], voter: str) -> Vote:
    """Make a vote of a line that `answers` gave."""
    answer = line["answer"]
    size = f"{line['width']}x{line['height']}"
    avoided = line.get("negative_prompt", "")
    varied = [line.get("replaced", ""), line.get("setting", "")]
    place = [size, *varied, f"not: {avoided}" if avoided else ""]
    winner = line[answer] if answer in ("a", "b") else None
    return Vote(
        line["a"],
        line["b"],
        line["prompt"],
        line["seed"],
        winner,
        voter,
        " ".join(filter(None, place)),
    )


def are_connected(votes: Iterable[Vote], models: Sequence[str]) -> bool:
    """Tell whether every model was compared, through others if need be, with every other."""
    group = {model: {model} for model in models}
    for vote in votes:
        if group[vote.a] is not group[vote.b]:
            joined = group[vote.a] | group[vote.b]
            group.update(dict.fromkeys(joined, joined))
    return all(len(group[model]) == len(models) for model in models)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far voters agree where more than one was asked the same."""

    questions: int  # that two or more voters answered
    share: float  # of pairs of voters who said the same
    alpha: float  # 1: always; 0: as chance would have it


def agreement(votes: Iterable[Vote]) -> Agreement | None:
    """Measure how far voters agree; None if no two were asked the same.

    Source: K. Krippendorff, Content Analysis (2nd ed. 2004), section 11.3: alpha of nominal data,
        missing answers allowed.
    """
    said: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for vote in votes:
        said[vote.question].append(vote.said)
    units = [Counter(answers) for answers in said.values() if len(answers) > 1]
    if not units:
        return None
    totals = sum(units, Counter())
    total = sum(totals.values())
    apart = sum(_pairs_apart(unit) / (unit.total() - 1) for unit in units) / total
    by_chance = _pairs_apart(totals) / (total * (total - 1))
    pairs = sum(unit.total() * (unit.total() - 1) for unit in units)
    share = 1 - sum(map(_pairs_apart, units)) / pairs
    return Agreement(len(units), share, 1 - apart / by_chance if by_chance else 1.0)


def _pairs_apart(counts: Counter[int]) -> int:
    """Count ordered pairs of unequal answers."""
    total: int = counts.total()
    return total**2 - sum(count**2 for count in counts.values())
