"""Choosing: the rule's order, a person's word, several places, honest intervals."""

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from stages import select
from stages.choice.evidence import Measures, gather
from stages.choice.rule import LOSS, SCORE, Evidence, RuleParams, decide, difference, fill_places
from stages.choice.scores import (
    Score,
    interval,
    resampled_means,
    score_table,
    student_t,
    write_scores,
)
from stages.choice.votes import (
    Agreement,
    Vote,
    agreement,
    read_votes,
)
from stages.harness.files import sha256_bytes
from stages.harness.named import named_weights

Report = dict[str, Any]
RULE = RuleParams(
    min_votes=20,
    min_score_lead=0.5,
    min_loss_lead=0.01,
    resamples=400,
    confidence=0.95,
    seed=1,
)
VOTED = range(5)  # seeds of the pictures that `make_votes` is about
PROMPTS = [f"prompt {i}" for i in range(12)]
MIXES = ["64-difference", "96-difference", "hybrid-difference", "hybrid"]
MIX_PLACES = {
    "64": ["64-difference", "hybrid"],
    "96": ["96-difference", "hybrid"],
    "hybrid": ["hybrid-difference", "hybrid"],
}


def make_weights(folder: Path, names: list[str]) -> list[str]:
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / f"{name}.safetensors").write_text(f"weights of {name}")
    return [f"{name}={folder / name}.safetensors" for name in names]


def make_scores(
    path: Path, means: dict[str, float], noise: float = 0.01, seeds: Sequence[int] = (1, 2)
) -> Path:
    """Score models on PROMPTS: each mean, plus what the prompt adds, plus noise."""
    rng = random.Random(0)
    rows = []
    for index, prompt in enumerate(PROMPTS):
        for model, mean in means.items():
            for seed in seeds:
                score = mean + index + rng.gauss(0, noise)
                rows.append(Score(model, prompt, seed, 64, 64, score))
    write_scores(path, rows)
    return path


def make_votes(
    folder: Path, wins: list[tuple[str, str, int]], *, ties: int = 0, voter: str = "anna"
) -> Path:
    """Write votes: winner, loser, how often."""
    folder.mkdir(exist_ok=True)
    lines = []
    for winner, loser, count in wins:
        for number in range(count + ties):
            said = "b" if number < count else "tie"
            lines.append(vote_line(loser, winner, f"prompt {number % 12}", number // 12, said))
    (folder / f"{voter}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def vote_line(a: str, b: str, prompt: str, seed: int, answer: str, **others: Any) -> str:
    weights = {f"{side}_weights": weights_hash(name) for side, name in (("a", a), ("b", b))}
    place = {"prompt": prompt, "seed": seed, "width": 64, "height": 64}
    name = f"{a} {b} {prompt} {seed} {answer}"
    line = {"id": name, "grid": "test", "a": a, "b": b, "answer": answer}
    return json.dumps({**line, **weights, **place, **others})


def weights_hash(name: str) -> str:
    return sha256_bytes(f"weights of {name}".encode())


class Choosing:
    """Runs the stage in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scores: list[Path] = []
        self.loss: Path | None = None
        self.votes: Path | None = None
        self.reference: str | None = None

    def one(self, names: list[str], choice: str = "auto") -> Report:
        return self._run(names, select.OneParams(choice=choice), "out.safetensors")

    def several(
        self, names: list[str], places: dict[str, list[str]], choice: str | list[str] = "auto"
    ) -> Report:
        return self._run(names, select.SeveralParams(choice=choice, places=places), "out")

    def _run(
        self, names: list[str], params: select.OneParams | select.SeveralParams, out: str
    ) -> Report:
        weights = named_weights(make_weights(self.folder / "weights", names))
        reference = None
        if self.reference:
            make_weights(self.folder / "weights", [self.reference])
            reference = self.folder / "weights" / f"{self.reference}.safetensors"
        measures = Measures(self.scores, self.loss, self.votes, self.reference, "test", reference)
        report = self.folder / "report.json"
        select.run("test", weights, measures, self.folder / out, report, params, RULE)
        written: Report = json.loads(report.read_text())
        return written

    def chosen_weights(self, out: str = "out.safetensors") -> str:
        return (self.folder / out).read_text()


@pytest.fixture
def choosing(tmp_path: Path) -> Choosing:
    return Choosing(tmp_path)


def test_the_best_score_wins_and_its_file_is_copied(choosing: Choosing, tmp_path: Path) -> None:
    choosing.scores = [make_scores(tmp_path / "s.csv", {"a": 1.0, "b": 1.5, "c": 1.2})]
    report = choosing.one(["a", "b", "c"])
    assert report["choice"] == "b"
    assert report["by"] == "score"
    assert report["sha256"] == sha256_bytes(b"weights of b")
    assert report["is_clear"] is True
    assert "b (7" in report["reason"]
    assert "before c" in report["reason"]
    assert choosing.chosen_weights() == "weights of b"
    assert not (tmp_path / "out.safetensors").is_symlink()


def test_swapped_scores_give_another_choice(choosing: Choosing, tmp_path: Path) -> None:
    choosing.scores = [make_scores(tmp_path / "s.csv", {"a": 1.0, "b": 1.5})]
    assert choosing.one(["a", "b"])["choice"] == "b"
    choosing.scores = [make_scores(tmp_path / "s.csv", {"a": 1.5, "b": 1.0})]
    assert choosing.one(["a", "b"])["choice"] == "a"
    assert choosing.chosen_weights() == "weights of a"


def test_a_lead_within_chance_is_taken_and_told(choosing: Choosing, tmp_path: Path) -> None:
    choosing.scores = [make_scores(tmp_path / "s.csv", {"a": 1.0, "b": 1.01}, noise=1.0)]
    report = choosing.one(["a", "b"])
    means = {name: figures["score"] for name, figures in report["candidates"].items()}
    assert report["choice"] == max(means, key=lambda name: means[name])
    assert report["is_clear"] is False
    assert "no clear winner" in report["reason"]


def test_votes_come_before_scores_and_scores_before_losses(
    choosing: Choosing, tmp_path: Path
) -> None:
    names = ["epoch_010", "epoch_020", "epoch_030"]
    choosing.loss = tmp_path / "loss.csv"
    choosing.loss.write_text(
        "epoch,train_loss,val_loss,low,high\n0,,0.6,,\n10,0.5,0.40,,\n20,0.4,0.50,,\n30,0.3,0.55,,\n"
    )
    report = choosing.one(names)
    assert (report["choice"], report["by"]) == ("epoch_010", "validation loss")
    assert report["is_clear"] is None
    choosing.scores = [
        make_scores(tmp_path / "s.csv", dict(zip(names, (1, 2, 1), strict=True)), seeds=VOTED)
    ]
    report = choosing.one(names)
    assert (report["choice"], report["by"]) == ("epoch_020", "score")
    wins = [(names[2], names[0], 30), (names[2], names[1], 30)]
    choosing.votes = make_votes(tmp_path / "votes", wins, ties=3)
    report = choosing.one(names)
    assert (report["choice"], report["by"]) == ("epoch_030", "votes")
    assert "66 votes counted, of 1 voter." in report["reason"]
    assert report["is_clear"] is True


def test_the_next_measure_decides_between_equals(choosing: Choosing, tmp_path: Path) -> None:
    names = ["epoch_010", "epoch_020"]
    choosing.scores = [make_scores(tmp_path / "s.csv", dict.fromkeys(names, 1.0), noise=0)]
    choosing.loss = tmp_path / "loss.csv"
    choosing.loss.write_text("epoch,val_loss\n10,0.5\n20,0.4\n")
    report = choosing.one(names)
    assert (report["choice"], report["by"]) == ("epoch_020", "validation loss")
    assert "lower by 20.00%, at least select.rule.min_loss_lead = 1.00%" in report["reason"]
    assert "Not decided by score: epoch_020" in report["reason"]


def make_losses(path: Path, losses: dict[int, float]) -> Path:
    path.write_text("epoch,val_loss\n" + "".join(f"{e},{x}\n" for e, x in losses.items()))
    return path


@pytest.mark.parametrize("loss", ["nan", "inf", "-inf"])
def test_a_loss_that_is_no_number_is_the_worst_and_named(
    choosing: Choosing, tmp_path: Path, loss: str
) -> None:
    names = ["epoch_010", "epoch_020", "epoch_030"]
    choosing.loss = tmp_path / "loss.csv"
    choosing.loss.write_text(f"epoch,val_loss\n10,{loss}\n20,0.5\n30,0.4\n")
    report = choosing.one(names)
    assert report["choice"] == "epoch_030"
    assert "The validation loss of epoch_010 is no finite number" in report["reason"]
    assert "validation_loss" not in report["candidates"]["epoch_010"]
    report = choosing.one(names[:2])
    assert report["choice"] == "epoch_020"
    assert "before epoch_010 (inf), which is no finite number" in report["reason"]
    choosing.loss.write_text(f"epoch,val_loss\n10,{loss}\n20,{loss}\n")
    assert "no clear winner by any measure" in choosing.one(names[:2])["reason"]


def test_a_score_whose_lead_may_be_chance_leaves_the_choice_to_the_loss(
    choosing: Choosing, tmp_path: Path
) -> None:
    means = {"epoch_010": 1.0, "epoch_020": 1.02}
    choosing.scores = [make_scores(tmp_path / "s.csv", means, noise=0.5)]
    choosing.loss = make_losses(tmp_path / "loss.csv", {10: 0.4, 20: 0.5})
    report = choosing.one(list(means))
    assert (report["choice"], report["by"]) == ("epoch_010", "validation loss")
    assert report["is_clear"] is None
    assert "the interval holds zero, and less than select.rule.min_score_lead" in report["reason"]


def test_a_sure_lead_decides_however_small_and_a_large_one_however_unsure(
    choosing: Choosing, tmp_path: Path
) -> None:
    choosing.loss = make_losses(tmp_path / "loss.csv", {10: 0.4, 20: 0.5})
    sure = {"epoch_010": 1.0, "epoch_020": 1.02}
    choosing.scores = [make_scores(tmp_path / "s.csv", sure, noise=0.001)]
    report = choosing.one(list(sure))
    assert (report["choice"], report["by"], report["is_clear"]) == ("epoch_020", "score", True)
    large = {"epoch_010": 1.0, "epoch_020": 3.0}
    choosing.scores = [make_scores(tmp_path / "s.csv", large, noise=9.0)]
    report = choosing.one(list(large))
    assert (report["by"], report["is_clear"]) == ("score", False)
    assert "but the lead is at least select.rule.min_score_lead = 0.5" in report["reason"]


def test_who_surely_lost_by_score_does_not_come_back_by_loss(
    choosing: Choosing, tmp_path: Path
) -> None:
    means = {"epoch_010": 1.0, "epoch_020": 1.0, "epoch_030": -9.0}
    choosing.scores = [make_scores(tmp_path / "s.csv", means, noise=0.5)]
    choosing.loss = make_losses(tmp_path / "loss.csv", {10: 0.5, 20: 0.4, 30: 0.1})
    assert choosing.one(list(means))["choice"] == "epoch_020"


def test_when_no_measure_decides_the_first_one_s_best_goes_on_and_that_is_told(
    choosing: Choosing, tmp_path: Path
) -> None:
    means = {"epoch_010": 1.0, "epoch_020": 1.2}
    choosing.scores = [make_scores(tmp_path / "s.csv", means, noise=0.5)]
    choosing.loss = make_losses(tmp_path / "loss.csv", {10: 0.4, 20: 0.401})
    report = choosing.one(list(means))
    scores = {name: figures["score"] for name, figures in report["candidates"].items()}
    assert report["choice"] == max(scores, key=scores.__getitem__)
    assert (report["by"], report["is_clear"]) == ("score", False)
    for words in (
        "no clear winner by any measure",
        "Not decided by score",
        "less than select.rule",
    ):
        assert words in report["reason"]
    assert "Not decided by validation loss: epoch_010" in report["reason"]


def test_few_votes_or_votes_on_some_only_are_left_aside_and_told(
    choosing: Choosing, tmp_path: Path
) -> None:
    choosing.scores = [make_scores(tmp_path / "s.csv", {"a": 2.0, "b": 1.0, "c": 1.0}, seeds=VOTED)]
    choosing.votes = make_votes(tmp_path / "votes", [("b", "a", 5)])
    report = choosing.one(["a", "b", "c"])
    assert report["choice"] == "a"
    assert "5 votes, fewer than select.rule.min_votes = 20" in report["reason"]
    choosing.votes = make_votes(tmp_path / "votes", [("b", "a", 50)])
    report = choosing.one(["a", "b", "c"])
    assert report["choice"] == "a"
    assert "not enough to compare all candidates" in report["reason"]
    choosing.votes = tmp_path / "nobody voted.csv"
    assert choosing.one(["a", "b", "c"])["choice"] == "a"


def test_votes_on_a_model_are_votes_on_all_of_its_weights(
    choosing: Choosing, tmp_path: Path
) -> None:
    names = ["a", "b", "twin"]
    for name in names:
        (tmp_path / name).write_text("weights of a" if name == "twin" else f"weights of {name}")
    weights = {name: tmp_path / name for name in names}
    votes = make_votes(tmp_path / "votes", [("a", "b", 30)])
    rule, measures = RULE, Measures([], None, votes, None, "test")
    for among in (names, ["b", "twin"]):  # `a` may be no candidate of this choice
        found, _ = gather({name: weights[name] for name in among}, measures, rule)
        assert [kind.kind for kind in found] == ["votes"]
        assert found[0].values["twin"] == found[0].values.get("a", found[0].values["twin"])
        gap = difference("twin", "b", found[0], 0.95)
        assert gap
        assert gap.is_clear
    decision = decide(names, {"winner": names}, "auto", gather(weights, measures, rule)[0], rule)
    assert decision.chosen == {"winner": "a"}
    assert decision.is_clear is False, "nothing tells the two apart"


def test_a_persons_name_wins_and_the_rules_choice_is_told(
    choosing: Choosing, tmp_path: Path
) -> None:
    choosing.scores = [make_scores(tmp_path / "s.csv", {"a": 1.0, "b": 1.5})]
    report = choosing.one(["a", "b"], choice="a")
    assert (report["choice"], report["by"]) == ("a", "a person")
    assert "would have taken: b" in report["reason"]
    assert choosing.chosen_weights() == "weights of a"


def test_a_name_that_is_no_candidate_is_refused(choosing: Choosing, tmp_path: Path) -> None:
    (tmp_path / "out.safetensors").write_text("the last choice")
    choosing.scores = [make_scores(tmp_path / "s.csv", {"a": 1.0, "b": 1.5})]
    with pytest.raises(ValueError, match=r"select\.test: .*'c' is no candidate. Candidates: a, b"):
        choosing.one(["a", "b"], choice="c")
    assert choosing.chosen_weights() == "the last choice"


def test_nothing_to_choose_by_is_refused_but_one_candidate_needs_nothing(
    choosing: Choosing,
) -> None:
    with pytest.raises(ValueError, match="nothing to choose by"):
        choosing.one(["a", "b"])
    report = choosing.one(["a"])
    assert (report["choice"], report["by"]) == ("a", "the only candidates")


@pytest.mark.parametrize("worst", MIXES)
def test_three_of_four_mixes_go_on_and_keep_their_places(
    choosing: Choosing, tmp_path: Path, worst: str
) -> None:
    means = {name: 2.0 - (name == worst) + 0.1 * i for i, name in enumerate(MIXES)}
    choosing.scores = [make_scores(tmp_path / "s.csv", means)]
    report = choosing.several(MIXES, MIX_PLACES)
    assert set(report["choice"].values()) == set(MIXES) - {worst}
    for place, name in report["choice"].items():
        assert name in MIX_PLACES[place]
        assert choosing.chosen_weights(f"out/{place}.safetensors") == f"weights of {name}"
    # only the place of the one that fell out has changed hands
    at_home = sum(names[0] == report["choice"][place] for place, names in MIX_PLACES.items())
    assert at_home == (3 if worst == "hybrid" else 2)


def test_the_closest_call_of_several_is_the_one_at_the_border(
    choosing: Choosing, tmp_path: Path
) -> None:
    means = dict(zip(MIXES, (3.0, 1.0, 2.0, 1.05), strict=True))
    choosing.scores = [make_scores(tmp_path / "s.csv", means, noise=1.0)]
    reason = choosing.several(MIXES, MIX_PLACES)["reason"]
    assert "hybrid (" in reason
    assert "before 96-difference (" in reason or "96-difference (" in reason
    assert "no clear winner" in reason


def test_of_each_kind_a_realistic_and_a_general_one_go_on(
    choosing: Choosing, tmp_path: Path
) -> None:
    names = ["real-1", "real-2", "general", "bonus"]
    places = {"realistic": ["real-1", "real-2"], "general": ["general"]}
    choosing.scores = [
        make_scores(
            tmp_path / "s.csv", {"real-1": 1.0, "real-2": 2.0, "general": 0.0, "bonus": 9.0}
        )
    ]
    report = choosing.several(names, places)
    assert report["choice"] == {"realistic": "real-2", "general": "general"}
    report = choosing.several(names, places, choice=["bonus", "general"])
    assert report["choice"] == {"realistic": "bonus", "general": "general"}
    assert choosing.chosen_weights("out/realistic.safetensors") == "weights of bonus"


@pytest.mark.parametrize("choice", [["bonus"], ["bonus", "bonus"], "bonus"])
def test_a_person_names_a_different_candidate_for_each_place(
    choosing: Choosing, choice: str | list[str]
) -> None:
    places = {"realistic": ["r"], "general": ["g"]}
    with pytest.raises(ValueError, match="2 different candidates, for the places realistic, gen"):
        choosing.several(["r", "g", "bonus"], places, choice)


def test_places_must_list_candidates_and_be_fillable(choosing: Choosing) -> None:
    with pytest.raises(ValueError, match="place 'x' lists 'nobody', which is no candidate"):
        choosing.several(["a"], {"x": ["nobody"]})
    with pytest.raises(ValueError, match="nobody is left for place 'y'"):
        choosing.several(["a"], {"x": ["a"], "y": ["a"]})


def test_the_winner_is_compared_to_the_reference_which_is_never_chosen(
    choosing: Choosing, tmp_path: Path
) -> None:
    choosing.scores = [make_scores(tmp_path / "s.csv", {"a": 1.0, "b": 1.5, "bloody": 3.0})]
    choosing.reference = "bloody"
    report = choosing.one(["a", "b"])
    assert report["choice"] == "b"
    assert "Compared with bloody: score -1.5" in report["reason"]
    assert report["reference"]["score_lead"] == pytest.approx(-1.5, abs=0.05)
    assert report["reference"]["score_lead_high"] < 0


def test_a_candidate_may_be_the_reference_also_where_a_loss_is_known(
    choosing: Choosing, tmp_path: Path
) -> None:
    names = ["epoch_001", "epoch_002"]
    choosing.scores = [make_scores(tmp_path / "s.csv", dict(zip(names, (1.0, 2.0), strict=True)))]
    choosing.loss = tmp_path / "loss.csv"
    choosing.loss.write_text("epoch,val_loss\n1,0.5\n2,0.4\n")
    choosing.reference = "epoch_001"
    report = choosing.one(names)
    assert "Compared with epoch_001: score +0.997 (" in report["reason"]
    assert report["reason"].count("Compared") == 1
    assert "loss" not in report["reason"].partition("Compared")[2]


def test_votes_count_though_nobody_voted_on_the_reference(
    choosing: Choosing, tmp_path: Path
) -> None:
    choosing.votes = make_votes(tmp_path / "votes", [("a", "b", 30)])
    choosing.reference = "bloody"
    report = choosing.one(["a", "b"])
    assert (report["choice"], report["by"]) == ("a", "votes")
    assert "nothing to compare by" in report["reason"]
    choosing.votes = make_votes(tmp_path / "votes", [("a", "b", 30), ("bloody", "a", 30)])
    report = choosing.one(["a", "b"])
    assert report["choice"] == "a"
    assert report["reference"]["votes_lead_high"] < 0


def test_a_failed_picture_counts_below_every_other_of_the_table() -> None:
    rows = [Score("a", "p", 1, 64, 64, 5.0), Score("a", "p", 2, 64, 64, 9.0)]
    rows += [Score("b", "p", 1, 64, 64, 6.0), Score("b", "p", 2, 64, 64, None)]
    table = score_table(rows, ["a", "b"], "s.csv")
    assert table.means.tolist() == [[7.0], [3.5]]  # 6 and 5 - (9 - 5)
    assert (table.failed, table.cells) == ({"b": 1}, 2)
    alike = [Score("a", "p", 1, 64, 64, 5.0), Score("b", "p", 1, 64, 64, None)]
    assert score_table(alike, ["a", "b"], "s.csv").means.tolist() == [[5.0], [4.0]]


@pytest.mark.parametrize("failed", [7, 12])
@pytest.mark.parametrize("names", [["nan", "good"], ["good", "nan"]])
def test_who_fails_in_half_of_the_cells_loses_however_good_the_rest_and_is_named(
    choosing: Choosing, tmp_path: Path, names: list[str], failed: int
) -> None:
    scores = [Score("good", prompt, 1, 64, 64, 5.0) for prompt in PROMPTS]
    scores += [
        Score("nan", prompt, 1, 64, 64, None if n < failed else 9.0)
        for n, prompt in enumerate(PROMPTS)
    ]
    write_scores(tmp_path / "s.csv", scores)
    choosing.scores = [tmp_path / "s.csv"]
    report = choosing.one(names)
    assert (report["choice"], report["by"]) == ("good", "score")
    assert f"{failed} of 12 pictures of nan failed" in report["reason"]


def test_of_two_equal_ones_the_one_without_failures_goes_on() -> None:
    alike = dict.fromkeys("ab", np.full(9, 5.0))
    values = dict.fromkeys("ab", 5.0)
    evidence = Evidence(SCORE, values, resampled=alike, prompts=9, failed={"a": 1})
    losses = Evidence(LOSS, {"a": 0.1, "b": 0.2}, lower_is_better=True)
    decision = decide(["a", "b"], {"winner": ["a", "b"]}, "auto", [evidence, losses], RULE)
    assert (decision.chosen, decision.by) == ({"winner": "b"}, "score")
    assert "equal, but fewer pictures of b failed" in decision.reason


def test_scores_that_do_not_compare_are_refused(choosing: Choosing, tmp_path: Path) -> None:
    scores = make_scores(tmp_path / "s.csv", {"a": 1.0, "b": 1.5})
    choosing.scores = [scores]
    with pytest.raises(ValueError, match=r"s\.csv: no scores of 'c'; it holds a, b"):
        choosing.one(["a", "c"])
    scores.write_text(scores.read_text().rsplit("\n", 2)[0] + "\n")
    with pytest.raises(ValueError, match="not scored on the same cells"):
        choosing.one(["a", "b"])
    scores.write_text(scores.read_text() + "a,p,1,64,64,,nan\n")
    with pytest.raises(ValueError, match=r"line 49: not a score"):
        choosing.one(["a", "b"])


def test_scores_that_are_missing_are_told_with_who_writes_them(
    choosing: Choosing, tmp_path: Path
) -> None:
    choosing.scores = [tmp_path / "s.csv"]
    with pytest.raises(FileNotFoundError, match=r"s\.csv: no such file. .*stages\.grid_score"):
        choosing.one(["a", "b"])


def test_an_epoch_of_another_run_is_refused(choosing: Choosing, tmp_path: Path) -> None:
    choosing.loss = tmp_path / "loss.csv"
    choosing.loss.write_text("epoch,val_loss\n10,0.5\n")
    with pytest.raises(ValueError, match="no loss of 'epoch_020'; it holds epochs 10"):
        choosing.one(["epoch_010", "epoch_020"])


def test_broken_votes_are_told_by_line_and_the_rest_is_used(tmp_path: Path) -> None:
    lines = [
        vote_line("a", "b", "p", 1, "a"),
        vote_line("a", "ghost", "p", 1, "a"),
        vote_line("a", "b", "p", 2, "both_bad"),
        vote_line("a", "b", "p", 3, "maybe"),
        vote_line("a", "b", "p", 4, "b").replace('"seed": 4', '"seed": "four"'),
        vote_line("a", "b", "p", 5, "b", b_weights="older"),
        '{"undo": "nothing"}',
        "[1]",
        "",
        vote_line("a", "b", "p", 6, "b")[:40],
    ]
    (tmp_path / "anna.jsonl").write_bytes("\n".join(lines).encode() + b"\n\xff\n")
    ballot = read_votes(tmp_path, "test", {name: weights_hash(name) for name in "ab"})
    assert [vote.winner for vote in ballot.votes] == ["a", None]
    said = {int(p.split(", line ")[1].split(":")[0]): p for p in ballot.problems}
    assert sorted(said) == [2, 4, 5, 6, 7, 8, 10, 11]
    for number, words in {
        2: "no such model: 'ghost'",
        4: "answer 'maybe'; wanted a, b, tie, both_bad",
        5: "no seed but 'four'",
        6: "'b' had other weights when this was asked",
        7: "takes back a vote that is not there",
        10: "was the line cut short?",
    }.items():
        assert words in said[number]


def test_votes_on_pictures_that_the_grid_no_longer_holds_are_told_and_not_counted(
    choosing: Choosing, tmp_path: Path
) -> None:
    scores = [
        Score(model, prompt, 1, 64, 64, 5.0, address=f"{model}, {prompt}, 20 steps")
        for model in "ab"
        for prompt in PROMPTS
    ]
    write_scores(tmp_path / "s.csv", scores)

    def cells(prompt: str, steps: int) -> dict[str, str]:
        return {f"{side}_cell": f"{side}, {prompt}, {steps} steps" for side in "ab"}

    lines = [
        vote_line("a", "b", PROMPTS[0], 1, "a", **cells(PROMPTS[0], 20)),
        vote_line("a", "b", PROMPTS[1], 1, "a", **cells(PROMPTS[1], 30)),
        vote_line("a", "b", PROMPTS[2], 1, "a"),  # of a time when lines lacked the cells
        vote_line("a", "b", "gone", 1, "a"),
        vote_line("a", "b", PROMPTS[3], 9, "a"),
        vote_line("a", "b", PROMPTS[4], 1, "a", a_cell=f"a, {PROMPTS[4]}, 20 steps", b_cell="?"),
        vote_line("a", "b", PROMPTS[5], 1, "a", a_cell=1),
    ]
    choosing.votes = tmp_path / "votes"
    choosing.votes.mkdir()
    (choosing.votes / "anna.jsonl").write_text("\n".join(lines))
    ballot = read_votes(choosing.votes, "test", {name: weights_hash(name) for name in "ab"}, scores)
    assert [vote.prompt for vote in ballot.votes] == [PROMPTS[0], PROMPTS[2]]
    said = [problem.split("jsonl, ")[1] for problem in ballot.problems]
    assert said == [
        "line 7: no a_cell but 1",
        "line 2: the grid has no 'prompt 1', seed 1, 64 x 64 px, drawn as it was then",
        "line 4: the grid has no 'gone', seed 1, 64 x 64 px",
        "line 5: the grid has no 'prompt 3', seed 9, 64 x 64 px",
        "line 6: the grid has no 'prompt 4', seed 1, 64 x 64 px, drawn as it was then",
    ]
    choosing.scores = [tmp_path / "s.csv"]
    assert "5 lines of votes not counted" in choosing.one(["a", "b"])["reason"]


def test_the_same_prompt_with_another_negative_one_is_another_question(tmp_path: Path) -> None:
    lines = [
        vote_line("a", "b", "p", 1, "a", id="1", negative_prompt="blurry"),
        vote_line("a", "b", "p", 1, "b", id="2", negative_prompt=""),
        vote_line("a", "b", "p", 1, "tie", id="3"),  # an old line: as if there were none
    ]
    (tmp_path / "anna.jsonl").write_text("\n".join(lines))
    ballot = read_votes(tmp_path, "test", {name: weights_hash(name) for name in "ab"})
    assert [(vote.winner, vote.place) for vote in ballot.votes] == [
        ("a", "64x64 not: blurry"),
        (None, "64x64"),
    ]
    assert not ballot.problems


def test_an_answer_may_be_taken_back_or_given_anew(tmp_path: Path) -> None:
    first, second = vote_line("a", "b", "p", 1, "a"), vote_line("a", "b", "p", 2, "a")
    undo = json.dumps({"undo": json.loads(second)["id"]})
    anew = vote_line("b", "a", "p", 1, "a")  # the same question, sides swapped: b is better
    (tmp_path / "anna.jsonl").write_text("\n".join([first, second, undo, anew]))
    ballot = read_votes(tmp_path, "test", {name: weights_hash(name) for name in "ab"})
    assert [(vote.seed, vote.winner) for vote in ballot.votes] == [(1, "b")]
    assert not ballot.problems


def test_votes_on_other_grids_and_on_models_of_another_choice_are_passed_over(
    choosing: Choosing, tmp_path: Path
) -> None:
    scores = dict.fromkeys(("a", "b", "c"), 1.0)
    choosing.scores = [make_scores(tmp_path / "s.csv", scores, seeds=VOTED)]
    choosing.votes = make_votes(tmp_path / "votes", [("a", "b", 30), ("c", "a", 30)])
    line = vote_line("x", "y", "p", 1, "a", grid="another")
    (choosing.votes / "ben.jsonl").write_text(line + "\n")
    report = choosing.one(["a", "b"])
    assert report["choice"] == "a"
    assert "30 votes counted" in report["reason"]
    assert "not counted" not in report["reason"]


def test_voters_that_were_asked_the_same_agree_or_not(choosing: Choosing, tmp_path: Path) -> None:
    choosing.votes = make_votes(tmp_path / "votes", [("a", "b", 24)])
    make_votes(tmp_path / "votes", [("a", "b", 12), ("b", "a", 12)], voter="ben")
    reason = choosing.one(["a", "b"])["reason"]
    assert "Voters agree in" in reason
    said = [Vote("a", "b", "p", n, w, v) for v in "xy" for n, w in enumerate("aabb")]
    assert agreement(said) == Agreement(4, 1.0, 1.0)
    assert agreement(said[:4]) is None


def test_alpha_is_what_the_matrix_of_coincidences_gives() -> None:
    said = ["aabb-aab    ", "aabbaaab-b b", " baab-ab-ba ", "aabbabaa-ba "]  # - is a tie
    votes = [
        Vote("a", "b", f"unit {unit}", 1, None if value == "-" else value, voter=str(row))
        for row, line in enumerate(said)
        for unit, value in enumerate(line)
        if value != " "
    ]
    found = agreement(votes)
    assert found
    assert found.alpha == pytest.approx(alpha_by_hand(votes))


def alpha_by_hand(votes: list[Vote]) -> float:
    """Compute it from the matrix of coincidences, as the book does by hand."""
    units: dict[str, list[int]] = {}
    for vote in votes:
        units.setdefault(vote.prompt, []).append(vote.said)
    matrix = np.zeros((3, 3))
    for said in units.values():
        for i, one in enumerate(said):
            for j, other in enumerate(said):
                if i != j:
                    matrix[one, other] += 1 / (len(said) - 1)
    totals = matrix.sum(0)
    n = totals.sum()
    apart = n - np.trace(matrix)
    return float(1 - (n - 1) * apart / (n**2 - (totals**2).sum()))


@pytest.mark.parametrize("prompts", [1, 2])
def test_fewer_than_three_prompts_have_no_interval(prompts: int) -> None:
    assert interval(np.ones(100), 0.95, prompts) == (-np.inf, np.inf)


def test_votes_on_two_prompts_may_all_agree_and_yet_have_no_clear_winner(
    choosing: Choosing, tmp_path: Path
) -> None:
    choosing.votes = tmp_path / "votes"
    choosing.votes.mkdir()
    lines = [vote_line("a", "b", f"prompt {n % 2}", n, "a") for n in range(20)]
    (choosing.votes / "anna.jsonl").write_text("\n".join(lines))
    choosing.scores = [make_scores(tmp_path / "s.csv", {"a": 1.0, "b": 1.0}, seeds=range(20))]
    report = choosing.one(["a", "b"])
    assert (report["choice"], report["by"], report["is_clear"]) == ("a", "votes", False)
    assert "fewer than 3 prompts, too few for an interval): no clear winner" in report["reason"]
    assert "votes_low" not in report["candidates"]["a"]


@pytest.mark.parametrize(
    ("freedom", "wanted"), [(1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (20, 2.086)]
)
def test_students_quantiles_are_those_of_the_tables(freedom: int, wanted: float) -> None:
    assert student_t(0.975, freedom) == pytest.approx(wanted, abs=0.004)


@pytest.mark.parametrize("prompts", [3, 20])
@pytest.mark.parametrize(("number", "is_clear"), [(8, False), (20, True)])
def test_votes_that_all_agree_leave_an_interval_as_wide_as_so_few_votes_do(
    tmp_path: Path, prompts: int, number: int, is_clear: bool
) -> None:
    votes = tmp_path / "votes"
    votes.mkdir()
    lines = [vote_line("a", "b", f"prompt {n % prompts}", n, "a") for n in range(number)]
    (votes / "anna.jsonl").write_text("\n".join(lines))
    rule = replace(RULE, min_votes=8)
    weights = named_weights(make_weights(tmp_path / "weights", ["a", "b"]))
    measures = Measures([], None, votes, None, "test")
    (evidence,), _ = gather(weights, measures, rule)
    lead = difference("a", "b", evidence, 0.95)
    assert lead
    assert lead.is_clear == is_clear
    assert lead.high - lead.low == pytest.approx(2 * 1.96 * evidence.error("a", "b"), rel=0.001)


def test_intervals_resample_prompts_not_pictures() -> None:
    """Twenty seeds of one prompt say no more about other prompts than one."""
    rng = np.random.default_rng(0)
    by_prompt = rng.normal(size=10)
    rows = [Score("a", f"p{p}", s, 64, 64, by_prompt[p]) for p in range(10) for s in range(20)]
    table = score_table(rows, ["a"], "s.csv")
    spread = resampled_means(table, 4000, seed=1)[0].std()
    assert spread == pytest.approx(by_prompt.std() / np.sqrt(10), rel=0.05)


def test_the_best_that_fit_go_on_whatever_the_order_of_places() -> None:
    places = {"x": ["a", "b"], "y": ["a", "c"]}
    assert fill_places(["a", "b", "c"], places) == {"x": "b", "y": "a"}
    assert fill_places(["a", "c", "b"], places) == {"x": "a", "y": "c"}


def test_a_lower_loss_is_the_better_one() -> None:
    evidence = Evidence("validation loss", {"a": 0.5}, lower_is_better=True)
    assert evidence.merit("a") == -0.5


def test_the_command_line_reads_the_choices_own_section(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rule = {"min_votes": 20, "min_score_lead": 0.5, "min_loss_lead": 0.01}
    rule |= {"resamples": 100, "confidence": 0.95, "seed": 1}
    section = {"rule": rule, "checkpoint": {64: {"choice": "epoch_020"}}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"select": section}))
    make_weights(tmp_path / "run", ["epoch_010", "epoch_020"])
    monkeypatch.chdir(tmp_path)
    words = ["select", "checkpoint", "64", "--from", "run", "--out", "models/vodka/64.safetensors"]
    monkeypatch.setattr("sys.argv", [*words, "--report", "reports/select/checkpoint-64.json"])
    select.main()
    assert (tmp_path / "models/vodka/64.safetensors").read_text() == "weights of epoch_020"
    assert "epoch_020: named in the params" in capsys.readouterr().out
    monkeypatch.setattr(
        "sys.argv", [*words, "--report", "r.json", "--votes", "none", "--grid", "g"]
    )
    section["checkpoint"] = {64: {"choice": "epoch_030"}}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump({"select": section}))
    with pytest.raises(SystemExit, match=r"Candidates: epoch_010, epoch_020"):
        select.main()


def test_votes_without_the_name_of_their_grid_are_refused(
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["final", "--from", "a=a.safetensors", "--out", "o", "--report", "r"]
    with pytest.raises(SystemExit):
        select.parse([*words, "--votes", "data/votes"])
    assert "--votes needs --grid" in capsys.readouterr().err
    assert select.parse([*words, "--votes", "data/votes", "--grid", "final"]).grid == "final"
