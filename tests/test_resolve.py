"""A merge of two branches that both ran the recipe: nothing of either is run again."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from stages.storage.conflict import conflicts, refuse_conflicts
from stages.storage.lock_merge import AtHand, merge_locks
from tests.imports import ROOT
from tests.shared_graph import SharedGraph

RESOLVE = (sys.executable, "-m", "stages.resolve")


@pytest.fixture(scope="module")
def branches(tmp_path_factory: pytest.TempPathFactory) -> SharedGraph:
    """Run other leaves on one branch, another way of counting on the other."""
    graph = SharedGraph(tmp_path_factory.mktemp("graph") / "made").make()
    graph.git("switch", "--quiet", "--create", "other")
    graph.set_params(leaves=1, counting="letters")
    graph.call("dvc", "repro")
    graph.commit("Letters")
    graph.git("switch", "--quiet", "main")
    graph.call("dvc", "checkout", "--quiet")
    graph.set_params(leaves=2222, counting="bytes")
    graph.call("dvc", "repro")
    return graph.commit("More leaves")


@pytest.fixture
def merging(branches: SharedGraph, tmp_path: Path) -> SharedGraph:
    """Merge the other branch, which Git cannot: params.yaml and dvc.lock are in conflict."""
    shutil.copytree(branches.folder, tmp_path / "mine")
    graph = SharedGraph(tmp_path / "mine")
    (graph.folder / "ran").unlink()
    assert graph.attempt("git", "merge", "--quiet", "other").returncode != 0
    assert "<<<<<<< " in (graph.folder / "params.yaml").read_text("utf-8")
    return graph


def resolve(graph: SharedGraph, **params: object) -> str:
    graph.set_params(**params)
    return graph.call(*RESOLVE)


def is_settled(graph: SharedGraph) -> bool:
    graph.commit("Merged")
    return "up to date" in graph.call("dvc", "status")


@pytest.mark.parametrize("words", [(), ("--check",)], ids=["resolve", "check"])
def test_a_conflict_in_the_params_is_named_with_its_lines(
    merging: SharedGraph, words: tuple[str, ...]
) -> None:
    found = merging.attempt(*RESOLVE, *words)
    assert found.returncode != 0
    assert "a merge left both versions of\n  params.yaml, lines 1 to 7\n" in found.stderr
    assert "Traceback" not in found.stderr
    assert "make resolve" in found.stderr


@pytest.mark.parametrize("words", [(), ("--check",)], ids=["resolve", "check"])
@pytest.mark.parametrize(("deleted", "lines"), [("<<<<<<< ", "3 to 6"), (">>>>>>> ", "1 to 4")])
def test_a_conflict_of_which_one_mark_was_deleted_is_named_still(
    merging: SharedGraph, deleted: str, lines: str, words: tuple[str, ...]
) -> None:
    """Also where dvc.lock, which `make resolve` looks at first, is merged."""
    merging.git("checkout", "--quiet", "--ours", "dvc.lock")
    merging.git("add", "dvc.lock")
    params = merging.folder / "params.yaml"
    kept = [line for line in params.read_text("utf-8").splitlines() if not line.startswith(deleted)]
    params.write_text("\n".join(kept) + "\n", encoding="utf-8")
    found = merging.attempt(*RESOLVE, *words)
    assert found.returncode == 1
    assert f"a merge left both versions of\n  params.yaml, lines {lines}\n" in found.stderr


def test_of_the_lines_of_the_common_ancestor_the_mark_is_known_too(merging: SharedGraph) -> None:
    merging.git("checkout", "--quiet", "--conflict=zdiff3", "params.yaml")
    found = merging.attempt(*RESOLVE)
    assert "params.yaml, lines 1 to 10\n" in found.stderr
    assert "|||||||, below which Git may show the common ancestor" in found.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("leaves: 2222\n counting: bytes\n", "params.yaml', YAML file structure is corrupted"),
        ("leaves: 2222\n counting: bytes\n", "line 2, column 10"),
        ("counting: bytes\n", "Could not find 'leaves'"),
    ],
)
def test_params_that_were_put_together_badly_are_told_in_words(
    merging: SharedGraph, text: str, words: str
) -> None:
    before = (merging.folder / "dvc.lock").read_bytes()
    (merging.folder / "params.yaml").write_text(text, "utf-8")
    found = merging.attempt(*RESOLVE)
    assert found.returncode == 1
    assert words in found.stderr
    assert "Mend it, then:\n  make resolve\n" in found.stderr
    assert "Traceback" not in found.stderr
    assert (merging.folder / "dvc.lock").read_bytes() == before
    assert "taken from ours" in resolve(merging, leaves=2222, counting="bytes")


@pytest.mark.parametrize("name", ["stages.resolve", "stages.train_parallel"])
def test_params_that_dvc_cannot_read_bring_no_traceback(merging: SharedGraph, name: str) -> None:
    (merging.folder / "params.yaml").write_text("leaves: [\n", "utf-8")
    found = merging.attempt(sys.executable, "-m", name)
    assert found.returncode == 1
    assert "params.yaml" in found.stderr
    assert "Traceback" not in found.stderr


def test_a_conflict_in_the_lock_is_named_before_a_run(merging: SharedGraph) -> None:
    merging.set_params(leaves=1, counting="bytes")
    found = merging.attempt(*RESOLVE, "--check")
    assert found.returncode != 0
    assert "two versions of dvc.lock" in found.stderr
    assert "make resolve" in found.stderr


def test_with_both_changes_only_what_neither_side_ran_is_run(merging: SharedGraph) -> None:
    said = resolve(merging, leaves=2222, counting="letters")
    assert "2 stages, 2 of them recorded differently; 2 taken from ours" in said
    assert "Neither side ran, with what was merged: count." in said
    merging.call("dvc", "repro")
    assert merging.ran() == ["count"]
    assert is_settled(merging)


def test_with_the_params_of_ours_nothing_is_run(merging: SharedGraph) -> None:
    said = resolve(merging, leaves=2222, counting="bytes")
    assert "Neither side ran" not in said
    merging.call("dvc", "repro")
    assert merging.ran() == []
    assert (merging.folder / "tree/1").read_text("utf-8") == "leaf 1 of 2222"
    assert is_settled(merging)


def test_with_the_params_of_theirs_their_run_is_put_in_place(merging: SharedGraph) -> None:
    said = resolve(merging, leaves=1, counting="letters")
    assert "0 taken from ours, 2 from theirs" in said
    assert "Neither side ran" not in said
    assert (merging.folder / "tree/1").read_text("utf-8") == "leaf 1 of 1"
    merging.call("dvc", "repro")
    assert merging.ran() == []
    assert is_settled(merging)


def test_a_run_by_another_command_is_not_taken(branches: SharedGraph, tmp_path: Path) -> None:
    """Params and inputs of both sides are equal; what they ran is not."""
    graph = branches.clone(tmp_path / "mine")
    graph.call("dvc", "cache", "dir", "--local", str(branches.folder / ".dvc/cache"))
    graph.call("dvc", "checkout", "--quiet")
    graph.git("switch", "--quiet", "--create", "words")
    replace(graph.folder / "dvc.yaml", "wc -c", "wc -w")
    graph.call("dvc", "repro")
    graph.commit("Words")
    graph.git("switch", "--quiet", "main")
    replace(graph.folder / "dvc.yaml", 'files": 3', 'files": 3, "folders": 1')
    graph.call("dvc", "repro")
    graph.commit("Folders")
    (graph.folder / "ran").unlink()
    assert graph.attempt("git", "merge", "--quiet", "words").returncode != 0
    graph.git("checkout", "--quiet", "--theirs", "dvc.yaml")
    said = graph.call(*RESOLVE)
    assert "1 of them recorded differently; 0 taken from ours, 1 from theirs" in said
    assert "Neither side ran" not in said
    graph.call("dvc", "repro")
    assert graph.ran() == []
    assert (graph.folder / "count").read_text("utf-8").split() == ["10"]  # words


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize(
    ("params", "taken", "leaf"),
    [
        ({"leaves": 2222, "counting": "bytes"}, "2 taken from the branch below, 0", "2222"),
        ({"leaves": 1, "counting": "letters"}, "0 taken from the branch below, 2", "1"),
    ],
    ids=["below", "on top"],
)
def test_a_rebase_is_put_together_as_a_merge_is(
    branches: SharedGraph, tmp_path: Path, params: dict[str, object], taken: str, leaf: str
) -> None:
    """What Git calls ours is then the branch that one's own commits are put on."""
    shutil.copytree(branches.folder, tmp_path / "mine")
    graph = SharedGraph(tmp_path / "mine")
    graph.git("switch", "--quiet", "other")
    graph.call("dvc", "checkout", "--quiet")
    (graph.folder / "ran").unlink()
    assert graph.attempt("git", "rebase", "--quiet", "main").returncode != 0
    said = resolve(graph, **params)
    assert f"{taken} from the commit on top" in said
    assert said.endswith("git rebase --continue\n")
    assert (graph.folder / "tree/1").read_text("utf-8") == f"leaf 1 of {leaf}"
    graph.call("dvc", "repro")
    assert graph.ran() == []
    graph.git("add", "--all")
    graph.git("-c", "core.editor=true", "rebase", "--continue")
    assert "up to date" in graph.call("dvc", "status")


def test_their_runs_come_from_a_remote_where_the_cache_lacks_them(
    branches: SharedGraph, merging: SharedGraph, tmp_path: Path
) -> None:
    """As when the other branch was run, and pushed, by another person."""
    (tmp_path / "store").mkdir()
    theirs = SharedGraph(tmp_path / "theirs")
    shutil.copytree(branches.folder, theirs.folder)
    for graph in (theirs, merging):
        config = f"[core]\nremote = storage\n['remote \"storage\"']\nurl = {tmp_path / 'store'}\n"
        (graph.folder / ".dvc/config.local").write_text(config, encoding="utf-8")
    theirs.git("switch", "--quiet", "other")
    assert theirs.share("push").returncode == 0
    merging.git("merge", "--abort")
    merging.call("dvc", "gc", "--workspace", "--force")
    shutil.rmtree(merging.folder / ".dvc/cache/runs")
    merging.attempt("git", "merge", "--quiet", "other")
    resolve(merging, leaves=1, counting="letters")
    assert not (merging.folder / "tree/1").exists()
    pulled = merging.share("pull")
    assert pulled.returncode == 0, pulled.stderr
    merging.call("dvc", "repro")
    assert merging.ran() == []
    assert (merging.folder / "tree/1").read_text("utf-8") == "leaf 1 of 1"


def test_an_out_that_was_edited_is_not_overwritten_by_resolving(merging: SharedGraph) -> None:
    edited = merging.folder / "tree/1"
    edited.unlink()
    edited.write_text("mine", encoding="utf-8")
    said = resolve(merging, leaves=1, counting="letters")
    assert "Outs are left as they are" in said
    assert "Next: make pull" in said
    assert edited.read_text("utf-8") == "mine"


def test_a_report_that_git_holds_is_of_the_side_that_was_taken(
    branches: SharedGraph, merging: SharedGraph
) -> None:
    """Git merges JSON line by line, into what no run wrote."""
    report = merging.folder / "count.json"
    report.write_text(f"<<<<<<< HEAD\n{report.read_text('utf-8')}=======\n{{}}\n>>>>>>> other\n")
    resolve(merging, leaves=2222, counting="bytes")
    assert report.read_bytes() == (branches.folder / "count.json").read_bytes()
    assert json.loads(report.read_text("utf-8")) == {"files": 3}


def test_marks_in_a_script_are_named_before_the_lock_is_touched(merging: SharedGraph) -> None:
    merging.set_params(leaves=2222, counting="bytes")
    merging.git("add", "params.yaml")
    text = (merging.folder / "dvc.yaml").read_text("utf-8")
    (merging.folder / "dvc.yaml").write_text(f"# one\n<<<<<<< HEAD\n=======\n>>>>>>> other\n{text}")
    before = (merging.folder / "dvc.lock").read_bytes()
    found = merging.attempt(*RESOLVE)
    assert found.returncode != 0
    assert "dvc.yaml, lines 2 to 4" in found.stderr
    assert (merging.folder / "dvc.lock").read_bytes() == before


def test_git_never_puts_two_locks_together_by_lines(
    branches: SharedGraph, merging: SharedGraph
) -> None:
    """It could: here no line is touched by both. DVC would call a run done that nobody made."""
    lock = merging.folder / "dvc.lock"
    assert lock.read_bytes() == (branches.folder / "dvc.lock").read_bytes()
    merging.git("merge", "--abort")
    (merging.folder / ".gitattributes").unlink()
    merging.commit("No attributes")
    merging.attempt("git", "merge", "--quiet", "other")
    assert "<<<<<<< " not in lock.read_text("utf-8")
    merging.set_params(leaves=2222, counting="letters")
    merging.call("dvc", "repro")
    assert merging.ran() == []  # "up to date"


def test_a_lock_that_was_added_with_marks_can_still_be_put_together(merging: SharedGraph) -> None:
    merging.set_params(leaves=2222, counting="bytes")
    lock = merging.folder / "dvc.lock"
    lock.write_text(f"<<<<<<< HEAD\n=======\n>>>>>>> other\n{lock.read_text('utf-8')}", "utf-8")
    merging.git("add", "--all")
    assert "make resolve" in merging.attempt(*RESOLVE, "--check").stderr
    found = merging.attempt(*RESOLVE)
    assert found.returncode != 0
    assert "git checkout --merge -- dvc.lock\n  make resolve" in found.stderr
    merging.git("checkout", "--quiet", "--merge", "--", "dvc.lock")
    assert "2 taken from ours" in merging.call(*RESOLVE)


def test_without_a_conflict_there_is_nothing_to_do(branches: SharedGraph) -> None:
    before = (branches.folder / "dvc.lock").read_bytes()
    assert "dvc.lock is in no conflict" in branches.call(*RESOLVE)
    assert branches.attempt(*RESOLVE, "--check").returncode == 0
    assert (branches.folder / "dvc.lock").read_bytes() == before


def test_our_own_lock_fits_what_it_was_made_of(tmp_path: Path) -> None:
    """The rule for what fits, on all stages of the recipe: of equal records, none is stale."""
    recorded = yaml.safe_load((ROOT / "dvc.lock").read_text("utf-8"))["stages"]
    params = {
        key: value
        for entry in recorded.values()
        for key, value in entry.get("params", {}).get("params.yaml", {}).items()
    }
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(nested(params)), encoding="utf-8")
    commands = {name: entry["cmd"] for name, entry in recorded.items()}
    merged = merge_locks(recorded, recorded, AtHand(tmp_path, commands))
    assert merged.differing == merged.stale == ()
    other = json.loads(json.dumps(recorded))
    other["train@64"]["params"]["params.yaml"]["train.64"]["learning_rate"] = 1.0
    other["train@64"]["outs"][0]["md5"] = "0" * 32 + ".dir"
    for versions in ((recorded, other), (other, recorded)):
        merged = merge_locks(*versions, AtHand(tmp_path, commands))
        assert merged.stages["train@64"] == recorded["train@64"]
        assert merged.stale == ()


def nested(flat: dict[str, object]) -> dict[str, object]:
    """Build a params file of dotted keys."""
    built: dict[str, object] = {}
    for key, value in flat.items():
        *sections, name = key.split(".")
        place = built
        for section in sections:
            place = place.setdefault(section, {})  # type: ignore[assignment]
        place[name] = value
    return built


def test_a_text_that_only_speaks_of_marks_is_no_conflict(tmp_path: Path) -> None:
    path = tmp_path / "params.yaml"
    path.write_text("title: '<<<<<<< and >>>>>>>'\n# =======\n", encoding="utf-8")
    refuse_conflicts([path])


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\n<<<<<<< HEAD\nb: 2\n", ["line 2"]),
        ("a: 1\n>>>>>>> other\nb: 2\n", ["line 2"]),
        ("a: 1\n||||||| 1a2b3c4\nb: 2\n", ["line 2"]),
        ("<<<<<<< HEAD\na: 1\n<<<<<<< HEAD\n>>>>>>> other\n", ["line 1", "lines 3 to 4"]),
        (">>>>>>> other\na: 1\n=======\n>>>>>>> other\n", ["line 1", "lines 3 to 4"]),
        ("Title\n=======\n<<<<<<< HEAD\n=======\n>>>>>>> other\n", ["lines 3 to 5"]),
        ("Title\n=======\n", []),
    ],
)
def test_marks_that_lost_their_others_are_a_conflict(
    tmp_path: Path, text: str, lines: list[str]
) -> None:
    path = tmp_path / "params.yaml"
    path.write_text(text, encoding="utf-8")
    assert [str(conflict) for conflict in conflicts(path)] == [f"{path}, {line}" for line in lines]


def test_a_run_looks_for_conflicts_first() -> None:
    done = subprocess.run(
        ["make", "--dry-run", "run"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    commands = done.stdout
    assert commands.index("stages.ready") < commands.index("dvc repro")
