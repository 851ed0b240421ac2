"""Tests of stages.harness.paths: how a stage ends."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WAITING = """
import sys, time
from stages.harness.paths import clear_errors

with clear_errors():
    print("here", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("is_traceback_wanted", [False, True])
def test_ctrl_c_ends_a_stage_with_one_line_and_the_status_of_shells(
    monkeypatch: pytest.MonkeyPatch, is_traceback_wanted: bool
) -> None:
    monkeypatch.setenv("TRACEBACK", "1" if is_traceback_wanted else "")
    with subprocess.Popen(
        [sys.executable, "-c", WAITING],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=30)
    if is_traceback_wanted:
        assert told.startswith("Traceback")
    else:
        assert told == "-c: stopped by Ctrl-C (SIGINT)\n"
        assert process.returncode == 130
