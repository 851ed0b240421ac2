"""Processes of ours end at once: what still lives is not looked through for cycles."""

import subprocess
import sys

import pytest

CYCLE = """
class Cycle:
    def __init__(self):
        self.itself = self
    def __del__(self):
        print("found")
cycle = Cycle()
del cycle
"""


@pytest.mark.parametrize(("first", "said"), [("", "found\n"), ("import stages\n", "")])
def test_a_process_that_imports_ours_looks_for_no_cycles_as_it_ends(first: str, said: str) -> None:
    """The first case shows that Python otherwise does."""
    done = subprocess.run(
        [sys.executable, "-c", first + CYCLE], capture_output=True, text=True, check=True
    )
    assert done.stdout == said
