"""DVC's command for messages that say what to type next."""

import os
import sys
from pathlib import Path

OWN = Path(".venv")  # the environment that `make` makes


def dvc_command() -> str:
    """Name DVC's program so that the person who started this finds it.

    `make` puts its environment on the path of what it starts, but not on that of the shell where
    the person types. Who activated an environment has its programs there.
    """
    is_own = OWN.is_dir() and OWN.samefile(sys.prefix)
    is_active = os.environ.get("VIRTUAL_ENV") == sys.prefix
    return f"{OWN}/bin/dvc" if is_own and not is_active else "dvc"


DVC = dvc_command()


def repro_command(words: str) -> str:
    """Give the command that runs stages; they call `python`, which `make` puts on their path."""
    return f"dvc repro {words}" if DVC == "dvc" else f'make run ARGS="{words}"'
