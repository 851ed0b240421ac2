"""What people's votes say about models, as evidence to choose by."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from stages.choice.rule import VOTES, Evidence, RuleParams
from stages.choice.scores import Score
from stages.choice.strengths import floors, resampled_strengths
from stages.choice.votes import (
    Ballot,
    Vote,
    agreement,
    are_connected,
    first_of_weights,
    read_votes,
)
from stages.harness.counted import counted
from stages.harness.files import sha256_file


@dataclass(frozen=True, slots=True)
class Poll:
    """The models that votes are asked about, and the votes."""

    models: list[str]
    voted_as: dict[str, str]  # by model: the first of its weights, which has the votes of all
    ballot: Ballot

    @property
    def fitted(self) -> list[str]:
        """The models of different weights."""
        return list(dict.fromkeys(self.voted_as[name] for name in self.models))


def read_poll(
    folder: Path,
    grid: str,
    candidates: Mapping[str, Path],
    others: Mapping[str, Path],
    scores: Collection[Score],
) -> Poll:
    """Read the votes on a grid's models.

    Args:
        folder: of the voters' files.
        grid: whose votes count.
        candidates: weights by model.
        others: the same of models that are asked about if anybody voted on them.
        scores: tell which pictures the grid holds.
    """
    hashes = {name: sha256_file(path) for name, path in {**candidates, **others}.items()}
    ballot = read_votes(folder, grid, hashes, scores)
    first = first_of_weights(hashes)
    voted_as = {name: first[sha256] for name, sha256 in hashes.items()}
    voted_on = {name for vote in ballot.votes for name in (vote.a, vote.b)}
    also = [name for name in others if name not in candidates and voted_as[name] in voted_on]
    return Poll([*candidates, *also], voted_as, ballot)


def votes_evidence(poll: Poll, rule: RuleParams) -> tuple[list[Evidence], list[str]]:
    """Give the evidence of votes, none if they cannot decide, and remarks on them."""
    votes = poll.ballot.votes
    remarks = _remarks_on_problems(poll.ballot.problems)
    if not votes:
        return [], remarks
    if shortage := _shortage(votes, poll.fitted, rule.min_votes):
        return [], [*remarks, f"{counted(len(votes), 'vote')}, {shortage}: left aside."]
    return [_evidence(poll, rule)], [*remarks, *_remarks_on_voters(votes)]


def _shortage(votes: Sequence[Vote], models: Sequence[str], min_votes: int) -> str | None:
    """Say why votes cannot decide; None if they can."""
    if len(votes) < min_votes:
        return f"fewer than select.rule.min_votes = {min_votes}"
    if not are_connected(votes, models):
        return "not enough to compare all candidates"
    return None


def _remarks_on_problems(problems: Sequence[str]) -> list[str]:
    """Print the lines that do not count, and remark on the first."""
    if not problems:
        return []
    print("\n".join(problems))
    lines = counted(len(problems), "line")
    return [f"{lines} of votes not counted, the first: {problems[0]}."]


def _remarks_on_voters(votes: Sequence[Vote]) -> list[str]:
    """Say how many voted, and how far they agree."""
    voters = len({vote.voter for vote in votes})
    remarks = [f"{counted(len(votes), 'vote')} counted, of {counted(voters, 'voter')}."]
    if agreed := agreement(votes):
        remarks.append(
            f"Voters agree in {agreed.share:.0%} of what two were asked alike "
            f"({agreed.questions} questions, Krippendorff's alpha {agreed.alpha:.2f})."
        )
    return remarks


def _evidence(poll: Poll, rule: RuleParams) -> Evidence:
    """Fit strengths; models of the same weights share theirs."""
    votes, fitted = poll.ballot.votes, poll.fitted
    strengths, resampled = resampled_strengths(votes, fitted, rule.resamples, rule.seed)
    values = dict(zip(fitted, strengths.tolist(), strict=True))
    by_model = dict(zip(fitted, resampled, strict=True))
    return Evidence(
        VOTES,
        {name: values[poll.voted_as[name]] for name in poll.models},
        resampled={name: by_model[poll.voted_as[name]] for name in poll.models},
        prompts=len({vote.prompt for vote in votes}),
        errors=_least_errors(poll),
    )


def _least_errors(poll: Poll) -> dict[frozenset[str], float]:
    """Give the least standard error of each model, and of each two of different weights."""
    floor = floors(poll.ballot.votes, poll.fitted)
    named = [frozenset({name}) for name in poll.models]
    named += [frozenset(pair) for pair in combinations(poll.models, 2)]
    voted = {names: frozenset(poll.voted_as[name] for name in names) for names in named}
    return {names: floor.get(as_, 0.0) for names, as_ in voted.items() if len(as_) == len(names)}
