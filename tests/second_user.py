"""Another user of this machine: `nobody`, whom only root can become."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.imports import ROOT

IS_AT_HAND = os.geteuid() == 0
# What is needed is imported first: the interpreter may lie in root's own folder.
AS_NOBODY = """
import importlib, os, pwd, sys
run = importlib.import_module(sys.argv.pop()).main
nobody = pwd.getpwnam("nobody")
os.setgroups([])
os.setgid(nobody.pw_gid)
os.setuid(nobody.pw_uid)
run()
"""


def module_as_nobody(folder: Path, name: str) -> "subprocess.CompletedProcess[str]":
    """Run a module's main to its end as `nobody`."""
    return subprocess.run(
        [sys.executable, "-c", AS_NOBODY, name],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )


@contextmanager
def open_folder() -> Iterator[Path]:
    """Make a folder that every user may read; pytest's are shut."""
    with tempfile.TemporaryDirectory(prefix="open-") as name:
        folder = Path(name).resolve()
        folder.chmod(0o755)
        yield folder
