import os
import platform
import pwd
import re
import subprocess
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from stages.harness.files import link_or_copy, replacing
from stages.harness.scratch import exclusive, work_dir
from tests.imports import ROOT

USER_AND_HOST = f"{pwd.getpwuid(os.geteuid()).pw_name} on {platform.node()}"
HOLD = """
import sys
from stages.harness.scratch import exclusive, work_dir
with exclusive(work_dir("train")):
    print("holds it", flush=True)
    sys.stdin.readline()
"""


def start(root: Path, copy: Path) -> "subprocess.Popen[str]":
    """Let a queued experiment take a folder of scratch and keep it until it is written to."""
    copy.mkdir(parents=True)
    return subprocess.Popen(
        [sys.executable, "-c", HOLD],
        env={**os.environ, "DVC_ROOT": str(root), "PYTHONPATH": str(ROOT)},
        cwd=copy,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("copy", [".dvc/tmp/exps/tmpk3x", ".dvc/tmp/exps/standalone/tmpk3x"])
def test_a_queued_experiment_has_the_scratch_of_its_repository(
    copy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path / copy))
    assert work_dir("train") == tmp_path / ".work/train"
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert work_dir("train") == tmp_path / ".work/train"


def test_a_queued_experiment_waits_for_the_one_that_does_the_same(tmp_path: Path) -> None:
    copies = tmp_path / ".dvc/tmp/exps"  # DVC names the repository's root to both
    with start(tmp_path, copies / "tmp1") as first:
        assert first.stdout
        assert first.stdout.readline() == "holds it\n"
        with start(tmp_path, copies / "tmp2") as second:
            assert second.stderr
            line = second.stderr.readline()
            first.communicate("\n")
            assert second.communicate("\n")[0] == "holds it\n"
    assert f"process {first.pid} ({USER_AND_HOST}) is still at work here; waiting for it" in line
    assert (first.returncode, second.returncode) == (0, 0)


def test_a_run_that_another_process_does_is_refused_and_its_user_named(tmp_path: Path) -> None:
    who = re.escape(f"process {os.getpid()} ({USER_AND_HOST}) is still at work here")
    with exclusive(tmp_path), pytest.raises(BlockingIOError, match=who), exclusive(tmp_path):
        pass


def test_writers_of_one_file_wait_for_each_other_and_the_last_one_stays(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out"

    def write(value: int) -> None:
        with replacing(path) as scratch, scratch.open("w") as file:
            for _ in range(20):
                file.write(f"{value}\n")
                file.flush()
                time.sleep(0.002)
            order.append(value)

    order: list[int] = []
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(8)))
    assert sorted(order) == list(range(8))
    assert path.read_text() == f"{order[-1]}\n" * 20
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert "another process is still writing it" in capfd.readouterr().err


def test_a_link_made_twice_leaves_nothing_by_which_its_source_could_be_overwritten(
    tmp_path: Path,
) -> None:
    source, path = tmp_path / "source", tmp_path / "path"
    source.write_text("precious")
    for _ in range(2):
        link_or_copy(source, path)
        assert path.samefile(source)
        assert {file.name for file in tmp_path.iterdir()} == {"source", "path"}
    with replacing(path) as scratch:
        scratch.write_text("new")
    assert (source.read_text(), path.read_text()) == ("precious", "new")


def test_who_writes_a_file_that_is_being_linked_waits_and_leaves_the_source_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, path = tmp_path / "source", tmp_path / "path"
    source.write_text("precious")

    def write() -> None:
        with replacing(path) as scratch:
            scratch.write_text("new")

    with ThreadPoolExecutor() as pool:

        def sync(descriptor: int) -> None:
            monkeypatch.undo()
            writers.append(pool.submit(write))
            time.sleep(0.2)
            assert not writers[0].done()
            os.fsync(descriptor)

        writers: list[Future[None]] = []
        monkeypatch.setattr("os.fsync", sync)
        link_or_copy(source, path)
        writers[0].result()
    assert (source.read_text(), path.read_text()) == ("precious", "new")
    assert {file.name for file in tmp_path.iterdir()} == {"source", "path"}
