"""Time and peak memory of whole processes.

A child's peak is at least what its parent held when it was started: keep parents small.
"""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Run:
    """One process."""

    seconds: float
    peak_mb: float
    cpu_seconds: float = 0.0  # of all cores, with the processes that it waited for


def timed(command: Sequence[str | Path]) -> Run:
    """Run a process to its end; its time, and its largest resident set."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr
    error = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{command[0]} failed:\n{error.decode()[-2000:]}")
    seconds = time.perf_counter() - started
    return Run(seconds, usage.ru_maxrss / 1024, usage.ru_utime + usage.ru_stime)
