"""What a kill leaves in a working tree, and that `make run` clears it away."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from stages import ready
from stages.harness import half_copied
from stages.harness.cache_folder import cache_folder
from stages.harness.lock_file import HEADER, entries, is_whole, mend_lock_file
from stages.harness.processes import dvc_at_work, orphans
from tests import second_user
from tests.imports import ROOT
from tests.shared_graph import SharedGraph

# Starts a child in the environment of a stage and dies, as a killed DVC does.
LEAVE_ALONE = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[2]], stdout=subprocess.DEVNULL,
                         env={**os.environ, "DVC_STAGE": "train@64", "DVC_ROOT": sys.argv[1]})
print(child.pid, flush=True)
"""
SLEEP = "import time; time.sleep(60)"
SAVE = """
import signal, sys, time
from pathlib import Path
def save(*_):
    Path("saved").touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
Path("listens").touch()
time.sleep(60)
"""
STUBBORN = """
import signal, subprocess, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
Path("child").write_text(str(child.pid))
Path("listens").touch()
time.sleep(60)
"""
COUNT = """
import signal, time
from pathlib import Path
asked = 0
def count(*_):
    global asked
    asked += 1
signal.signal(signal.SIGTERM, count)
Path("listens").touch()
while not asked:
    time.sleep(0.01)
time.sleep(0.5)
Path("asked").write_text(str(asked))
"""
PASS_ON = """
import signal, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {program!r}])
signal.signal(signal.SIGTERM, lambda *_: child.terminate())
child.wait()
"""
HOLD_SCRATCH = """
import time
from pathlib import Path
from stages.harness.scratch import exclusive, work_dir
with exclusive(work_dir("train") / "64/abc"):
    Path("listens").touch()
    time.sleep(60)
"""
HOLD = (
    "import fcntl, os; lock = open('.dvc/tmp/lock', 'w'); fcntl.flock(lock, fcntl.LOCK_EX); "
    "lock.write(str(os.getpid())); lock.flush()"
)


@contextmanager
def left_over(root: Path, program: str) -> Iterator[psutil.Process]:
    """Run a program as a stage whose DVC is dead."""
    started = subprocess.run(
        [sys.executable, "-c", LEAVE_ALONE, str(root), program],
        cwd=root,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    process = psutil.Process(int(started.stdout))
    try:
        yield process
    finally:
        if process.is_running():
            process.kill()


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.01)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / ".dvc/tmp").mkdir(parents=True)
    return tmp_path.resolve()


def test_a_stage_that_a_killed_dvc_left_is_asked_to_end_and_named(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with left_over(tree, SAVE) as stage:
        wait_for(tree / "listens")
        ready.run(tree)
        assert is_gone(stage.pid)
    assert (tree / "saved").exists()
    said = capsys.readouterr().out
    assert f"train@64: a DVC that was killed left it running, process {stage.pid}" in said


def test_one_that_does_not_listen_is_killed_with_its_children(tree: Path) -> None:
    with left_over(tree, STUBBORN) as stage:
        wait_for(tree / "listens")
        ready.run(tree, patience_s=0.2)
        assert is_gone(stage.pid)
        assert is_gone(int((tree / "child").read_text()))


@pytest.mark.parametrize("trap", ["", "trap : TERM; "], ids=["dies", "lives_on"])
def test_a_stage_below_a_shell_is_asked_too(tree: Path, trap: str) -> None:
    """A shell tells its children nothing, whether it ends or not."""
    (tree / "save.py").write_text(SAVE)
    command = ["sh", "-c", f"{trap}{sys.executable} save.py; true"]
    with left_over(tree, f"import os; os.execvp('sh', {command})") as stage:
        wait_for(tree / "listens")
        ready.run(tree, patience_s=20)
        assert is_gone(stage.pid)
    assert (tree / "saved").exists()


def test_what_a_program_tells_its_children_is_not_told_twice(tree: Path) -> None:
    """As torchrun does; a trainer that is asked twice ends without a checkpoint."""
    with left_over(tree, PASS_ON.format(program=COUNT)):
        wait_for(tree / "listens")
        ready.run(tree)
    assert (tree / "asked").read_text() == "1"


def test_a_stage_of_another_tree_is_left_alone(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with left_over(other, SLEEP) as stage:
        ready.run(tree)
        assert not is_gone(stage.pid)
        assert [process.pid for process in orphans(other)] == [stage.pid]


@contextmanager
def living_dvc(
    tree: Path, program: str = "", words: Sequence[str] = ("dvc.py", "repro")
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program in the place of DVC, until it is there."""
    for name in {"dvc.py", "sync.py"}:
        text = f"{program}\nimport time; print(flush=True); time.sleep(60)"
        (tree / name).write_text(text)
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout
        with process.stdout:
            process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()


WAYS = [
    ("-m", "dvc", "repro"),
    ("-P", "-m", "dvc", "repro"),
    ("sync.py",),  # a program of somebody's own, by DVC's `Repo`, as `stages.share` is
]


def write_rwlock(tree: Path, pid: int) -> None:
    info = {"pid": pid, "cmd": "dvc repro"}
    (tree / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {"/out": info}}))


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
@pytest.mark.parametrize("copy", [".", ".dvc/tmp/exps/tmp1"])
def test_a_stage_whose_dvc_lives_is_no_orphan(tree: Path, words: list[str], copy: str) -> None:
    env = {**os.environ, "DVC_STAGE": "train@64", "DVC_ROOT": str(tree)}
    start = f"subprocess.Popen([sys.executable, '-c', {SLEEP!r}], env={env!r}, stdout=-3)"
    (tree / copy / ".dvc/tmp").mkdir(parents=True, exist_ok=True)
    with living_dvc(tree, f"import subprocess, sys; {start}", words) as dvc:
        write_rwlock(tree / copy, dvc.pid)
        assert orphans(tree) == []
        dvc.kill()
        dvc.wait()
        assert len(orphans(tree)) == 1
        ready.run(tree)
        assert orphans(tree) == []


@pytest.mark.skipif(not second_user.IS_AT_HAND, reason="only root can be a second user, too")
def test_a_stage_that_another_user_s_dvc_left_is_named_and_left_to_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whose environment one cannot read; the lock of its scratch tells who it is."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with second_user.open_folder() as tree:
        (tree / ".dvc/cache").mkdir(parents=True)
        (tree / ".dvc/cache").chmod(0o777)
        with left_over(tree, HOLD_SCRATCH) as stage:
            wait_for(tree / "listens")
            refused = second_user.module_as_nobody(tree, "stages.ready")
            assert refused.returncode == 1
            assert f"process {stage.pid} (`python" in refused.stderr
            assert ", by root, since" in refused.stderr
            assert f"is at work in {tree}/.work/train/64/abc" in refused.stderr
            assert not is_gone(stage.pid)
            ready.run(tree)
            assert is_gone(stage.pid)
        assert second_user.module_as_nobody(tree, "stages.ready").returncode == 0


def test_a_stage_of_a_queued_experiment_is_ended_once_its_dvc_is_dead(tmp_path: Path) -> None:
    """It works in a copy of the tree; DVC tells it the repository's own root."""
    graph = SharedGraph(tmp_path.resolve() / "graph").make()
    stages = f"stages: {{sleep: {{cmd: \"exec {sys.executable} -c '{SLEEP}'\", outs: [out]}}}}"
    (graph.folder / "dvc.yaml").write_text(stages, "utf-8")
    graph.commit("Sleep")
    graph.call("dvc", "exp", "run", "--queue")
    graph.call("sh", "-c", "dvc queue start > worker.log 2>&1")  # a pipe would wait for its end
    deadline = time.monotonic() + 60
    while not (found := stages_of(graph.folder)):
        assert time.monotonic() < deadline, graph.call("dvc", "queue", "status")
        time.sleep(0.05)
    (stage,) = found
    assert ".dvc/tmp/exps" in stage.cwd()
    ready.run(graph.folder)
    assert not is_gone(stage.pid)
    dvc = stage.parent()
    assert dvc
    dvc.kill()
    wait_until_gone(dvc)
    deadline = time.monotonic() + 60
    while not is_gone(stage.pid):  # the queue's worker may still be at it for a moment
        assert time.monotonic() < deadline, "the stage lives on"
        ready.run(graph.folder)
        time.sleep(0.1)
    graph.call("dvc", "queue", "stop", "--kill")


def stages_of(root: Path) -> list[psutil.Process]:
    """Find the processes that work for a stage of a repository."""
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
        except psutil.Error:
            continue
        if environment.get("DVC_ROOT") == str(root) and "DVC_STAGE" in environment:
            found.append(process)
    return found


def wait_until_gone(process: psutil.Process) -> None:
    deadline = time.monotonic() + 30
    while not is_gone(process.pid):
        assert time.monotonic() < deadline, f"{process} lives"
        time.sleep(0.01)


@pytest.mark.parametrize("words", WAYS, ids=" ".join)
@pytest.mark.parametrize("lock", ["lock", "rwlock"])
def test_a_dvc_at_work_is_named_and_nothing_is_touched(
    tree: Path, monkeypatch: pytest.MonkeyPatch, lock: str, words: list[str]
) -> None:
    monkeypatch.setattr(ready, "SOON_S", 0.1)
    (tree / "dvc.lock").write_text("schema")
    copied = tree / "models/.mL9PBgbAocotgKT8YW-B_Q.tmp"  # as a pull copies from the cache
    copied.parent.mkdir()
    copied.touch()
    with living_dvc(tree, HOLD if lock == "lock" else "", words) as dvc:
        if lock == "rwlock":
            write_rwlock(tree, dvc.pid)
        with pytest.raises(BlockingIOError, match=rf"process {dvc.pid} .*\n  kill {dvc.pid}"):
            ready.run(tree)
        assert (tree / "dvc.lock").read_text() == "schema"
        assert copied.exists()
    ready.run(tree)
    assert not (tree / "dvc.lock").exists()  # it held nothing, and DVC refuses an empty one
    assert not copied.exists()


def test_a_lock_whose_holder_is_out_of_sight_is_respected(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ready, "SOON_S", 0.1)
    with (
        living_dvc(tree, HOLD.replace("str(os.getpid())", "'4194305'")),
        pytest.raises(BlockingIOError, match="held by a process that is not to be seen"),
    ):
        ready.run(tree)


def test_a_dvc_that_let_go_of_its_lock_blocks_nothing(tree: Path) -> None:
    """As the worker of a queue, which lives long and works in trees of its own."""
    with living_dvc(tree, f"{HOLD}; lock.close()") as dvc:
        assert str(dvc.pid) in (tree / ".dvc/tmp/lock").read_text()
        assert dvc_at_work(tree) is None


@pytest.mark.parametrize("text", ["", '{"write": {"/out": {"pid": ', '{"write": {}}'])
def test_a_lock_that_was_cut_short_goes(tree: Path, text: str) -> None:
    (tree / ".dvc/tmp/rwlock").write_text(text)
    ready.run(tree)
    assert not (tree / ".dvc/tmp/rwlock").exists()


def test_a_copy_that_dvc_did_not_finish_goes_and_nobody_else_s_file(tree: Path) -> None:
    (tree / "models/vodka").mkdir(parents=True)
    for name in (".mL9PBgbAocotgKT8YW-B_Q.tmp", "mine.tmp", ".mine.tmp"):
        (tree / "models/vodka" / name).touch()
    ready.run(tree)
    assert {p.name for p in (tree / "models/vodka").iterdir()} == {"mine.tmp", ".mine.tmp"}


def test_a_copy_that_a_killed_pull_left_in_the_cache_goes_once_nobody_can_be_at_it(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tree / ".dvc/cache/files/md5/a2"
    folder.mkdir(parents=True)
    half, whole = folder / ".mL9PBgbAocotgKT8YW-B_Q.tmp", folder / ("0" * 30)
    half.touch()
    whole.touch()
    ready.run(tree)
    assert half.exists()  # another clone's pull may be writing it
    monkeypatch.setattr(half_copied, "ABANDONED_S", -1.0)
    ready.run(tree)
    assert not half.exists()
    assert whole.exists()


# A DVC that is killed when it is about to write down a run that is done.
KILLED_AT_ITS_RECORD = """
import os, signal, sys
import dvc.utils.serialize
from dvc.cli import main
dvc.utils.serialize.dump_yaml = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
main(["repro"])
"""


def test_a_dvc_that_was_killed_before_it_wrote_a_run_down_can_go_on(tmp_path: Path) -> None:
    graph = SharedGraph(tmp_path.resolve() / "graph").make()
    graph.set_params(leaves=2, counting="bytes")
    graph.attempt(sys.executable, "-c", KILLED_AT_ITS_RECORD)
    assert graph.ran()[-1] == "grow"
    failed = graph.attempt("dvc", "repro")
    assert "failed to reproduce 'grow'" in failed.stderr  # the day that DVC does not, ours may go
    ready.run(graph.folder)
    graph.call("dvc", "repro")
    assert (graph.folder / "tree/2").read_text("utf-8") == "leaf 2 of 2"
    assert "up to date" in graph.call("dvc", "status")


def test_a_number_that_another_program_has_by_now_blocks_nothing(tree: Path) -> None:
    (tree / ".dvc/tmp/lock").write_text(f"{os.getpid()}\n")  # pytest's
    write_rwlock(tree, os.getpid())
    before = psutil.Process().create_time() - 60.0
    os.utime(tree / ".dvc/tmp/rwlock", (before, before))
    assert dvc_at_work(tree) is None
    ready.run(tree)
    assert not (tree / ".dvc/tmp/rwlock").exists()


@pytest.mark.parametrize(
    ("of_user", "config", "local", "wanted"),
    [
        ("", "", "", ".dvc/cache"),
        ("", "[core]\nanalytics = false\n[cache]\ntype = hardlink\n", "", ".dvc/cache"),
        ("", "[cache]\ndir = ../shared\n", "", ".dvc/../shared"),
        ("", "[cache]\ndir = ../shared\n", "[cache]\n    dir = /own/100%\n", "/own/100%"),
        ("[cache]\ndir = /mine\n", "", "", "/mine"),
        ('[cache]\ndir = "/my cache"\n', "", "", "/my cache"),
        ("[cache]\ndir = /mine\n", "[cache]\ndir = ../shared\n", "", ".dvc/../shared"),
    ],
)
def test_the_cache_is_where_dvc_s_config_says(
    tree: Path, monkeypatch: pytest.MonkeyPatch, of_user: str, config: str, local: str, wanted: str
) -> None:
    monkeypatch.setenv("DVC_GLOBAL_CONFIG_DIR", str(tree / "home"))  # ~/.config/dvc by default
    (tree / "home").mkdir()
    (tree / "home/config").write_text(of_user)
    (tree / ".dvc/config").write_text(config)
    (tree / ".dvc/config.local").write_text(local)
    assert cache_folder(tree) == tree / wanted


def test_a_config_that_dvc_cannot_read_is_told_in_words(tree: Path) -> None:
    (tree / ".dvc/config").write_text("[cache\n")
    with pytest.raises(ValueError, match="DVC's config "):
        cache_folder(tree)


WHOLE = (ROOT / "dvc.lock").read_text("utf-8")
NAMES = list(entries(WHOLE))


def committed(folder: Path, text: str) -> Path:
    path = folder / "dvc.lock"
    path.write_text(text, "utf-8")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "dvc.lock"], ["commit", "-qm", "All"]):
        subprocess.run([*git, *words], cwd=folder, check=True)
    return path


def test_a_whole_lock_file_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    assert mend_lock_file(path) is None
    path.write_text(WHOLE, "utf-8")
    before = path.stat().st_mtime_ns
    assert mend_lock_file(path) is None
    assert path.stat().st_mtime_ns == before


CUT_AT_A_LINE = WHOLE.index("    outs:", len(WHOLE) // 2)  # reads well, but lacks outs


@pytest.mark.parametrize("size", [0, 1, 20, 60, 50_000, 120_001, CUT_AT_A_LINE, len(WHOLE) - 1])
def test_a_lock_file_that_was_cut_gets_its_entries_from_the_last_commit(
    tmp_path: Path, size: int
) -> None:
    path = committed(tmp_path, WHOLE)
    path.write_text(WHOLE[:size], "utf-8")
    assert mend_lock_file(path)
    assert path.read_text("utf-8") == WHOLE


def test_newer_entries_are_kept_and_what_no_commit_has_is_named(tmp_path: Path) -> None:
    first, second, third = (entries(WHOLE)[name] for name in NAMES[:3])
    path = committed(tmp_path, HEADER + first)
    newer = first.replace("size: ", "size: 1")
    path.write_text(HEADER + newer + second + third[:-20], "utf-8")
    assert mend_lock_file(path) == ([], [NAMES[2]])
    assert path.read_text("utf-8") == HEADER + newer + second
    assert is_whole(HEADER + newer + second)


def test_an_entry_with_half_a_hash_is_not_whole() -> None:
    entry = entries(WHOLE)[NAMES[0]]
    place = entry.index("md5: ", entry.index("hash: md5") + 12) + 20
    assert is_whole(HEADER + entry)
    assert not is_whole(HEADER + entry[:place] + "\n")


# As DVC 3.67 writes it; the first of the inputs lies on a web server, the second in a bucket.
FROM_ELSEWHERE = """\
  fetch:
    cmd: cat vodka > out
    deps:
    - path: https://example.org/vodka
      hash: md5
      checksum: '"686897696a7c876b7e"'
      size: 3
    - path: s3://bucket/vodka
      hash: md5
      etag: 900150983cd24fb0d6963f7d28e17f72-2
      size: 3
    outs:
    - path: out
      hash: md5
      md5: b026324c6904b2a9cb4b88d6d61c81d1
      size: 2
"""


def test_inputs_that_lie_elsewhere_have_a_hash_of_their_server_s(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    path.write_text(HEADER + FROM_ELSEWHERE, "utf-8")
    assert mend_lock_file(path) is None
    assert path.read_text("utf-8") == HEADER + FROM_ELSEWHERE


@pytest.mark.parametrize("name", ["checksum", "etag"])
@pytest.mark.parametrize("rest", ["", "\n", ":\n"])
def test_an_input_from_elsewhere_without_its_hash_is_not_whole(name: str, rest: str) -> None:
    assert not is_whole(HEADER + FROM_ELSEWHERE[: FROM_ELSEWHERE.index(name) + len(name)] + rest)


def test_a_merge_conflict_is_named_with_the_way_out_and_left_alone(tree: Path) -> None:
    path = tree / "dvc.lock"
    text = HEADER + f"<<<<<<< HEAD\n{entries(WHOLE)[NAMES[0]]}=======\n>>>>>>> theirs\n"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match="make resolve"):
        ready.run(tree)
    assert path.read_text("utf-8") == text


@pytest.mark.parametrize(
    ("target", "command"),
    [
        ("run", "dvc repro $(ARGS)"),
        ("train-parallel", "stages.train_parallel $(ARGS)"),
        ("pull", "stages.share pull $(TO_SHARE)"),
    ],
)
def test_what_changes_the_tree_makes_ready_first(target: str, command: str) -> None:
    """DVC lets go of its lock while a stage runs: a pull would put files under it."""
    lines = (ROOT / "Makefile").read_text("utf-8").splitlines()
    start = next(n for n, line in enumerate(lines) if line.startswith(f"{target}:"))
    assert lines[start + 1].endswith("python -m stages.ready")
    assert lines[start + 2].endswith(f"python -m {command}")
