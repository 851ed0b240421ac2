"""What a kill leaves in a working tree, and that `make run` clears it away."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from stages import ready
from stages.harness.lock_file import HEADER, entries, is_whole, mend_lock_file
from stages.harness.processes import dvc_at_work, orphans
from tests.imports import ROOT

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


def test_a_stage_of_another_tree_is_left_alone(tree: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    with left_over(other, SLEEP) as stage:
        ready.run(tree)
        assert not is_gone(stage.pid)
        assert [process.pid for process in orphans(other)] == [stage.pid]


def test_a_stage_whose_dvc_lives_is_no_orphan(tree: Path) -> None:
    """Nor are the processes that it starts."""
    env = {**os.environ, "DVC_STAGE": "train@64", "DVC_ROOT": str(tree)}
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(60)"]
    program = f"import subprocess; subprocess.run({command}, env={env!r})"
    (tree / "dvc").write_text(program)
    # to be told by its command, as the real one
    dvc = subprocess.Popen([sys.executable, str(tree / "dvc"), "repro"], stdout=subprocess.PIPE)
    try:
        assert dvc.stdout
        dvc.stdout.readline()
        dvc.stdout.close()
        assert orphans(tree) == []
        dvc.kill()
        dvc.wait()
        assert len(orphans(tree)) == 1
        ready.run(tree)
        assert orphans(tree) == []
    finally:
        dvc.kill()
        dvc.wait()


@pytest.mark.parametrize("lock", ["lock", "rwlock"])
def test_a_dvc_at_work_is_named_and_nothing_is_touched(
    tree: Path, monkeypatch: pytest.MonkeyPatch, lock: str
) -> None:
    monkeypatch.setattr(ready, "SOON_S", 0.1)
    (tree / "dvc").write_text(SLEEP)
    dvc = subprocess.Popen([sys.executable, str(tree / "dvc"), "repro"])
    (tree / "dvc.lock").write_text("schema")
    info = {"pid": dvc.pid, "cmd": "dvc repro"}
    holders = {"lock": f" {dvc.pid}\n", "rwlock": json.dumps({"write": {"/out": info}})}
    (tree / ".dvc/tmp" / lock).write_text(holders[lock])
    try:
        with pytest.raises(BlockingIOError, match=rf"process {dvc.pid} .*\n  kill {dvc.pid}"):
            ready.run(tree)
        assert (tree / "dvc.lock").read_text() == "schema"
    finally:
        dvc.kill()
        dvc.wait()
    ready.run(tree)
    assert not (tree / "dvc.lock").read_text().startswith("schema\n")


@pytest.mark.parametrize("text", ["", '{"write": {"/out": {"pid": ', '{"write": {}}'])
def test_a_lock_that_was_cut_short_goes(tree: Path, text: str) -> None:
    (tree / ".dvc/tmp/rwlock").write_text(text)
    ready.run(tree)
    assert not (tree / ".dvc/tmp/rwlock").exists()


def test_a_number_that_another_program_has_by_now_blocks_nothing(tree: Path) -> None:
    (tree / ".dvc/tmp/lock").write_text(f"{os.getpid()}\n")  # pytest's
    info = {"pid": os.getpid(), "cmd": "dvc repro"}
    (tree / ".dvc/tmp/rwlock").write_text(json.dumps({"write": {"/out": info}}))
    assert dvc_at_work(tree) is None
    ready.run(tree)
    assert not (tree / ".dvc/tmp/rwlock").exists()


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


@pytest.mark.parametrize("size", [0, 1, 20, 60, 50_000, 120_001, len(WHOLE) - 1])
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


def test_a_merge_conflict_in_the_lock_file_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "dvc.lock"
    text = HEADER + f"<<<<<<< HEAD\n{entries(WHOLE)[NAMES[0]]}=======\n>>>>>>> theirs\n"
    path.write_text(text, "utf-8")
    with pytest.raises(ValueError, match=r"git checkout --ours dvc\.lock"):
        mend_lock_file(path)
    assert path.read_text("utf-8") == text


def test_make_run_makes_ready_first() -> None:
    lines = (ROOT / "Makefile").read_text("utf-8").splitlines()
    run = next(n for n, line in enumerate(lines) if line.startswith("run:"))
    assert lines[run + 1].endswith("python -m stages.ready")
    assert lines[run + 2].endswith("python -m dvc repro $(ARGS)")
