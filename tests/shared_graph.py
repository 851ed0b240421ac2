"""A small DVC repository of plain commands, to share through a remote."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import yaml

from tests.imports import ROOT

GRAPH = {
    "stages": {
        "grow": {
            "cmd": "mkdir tree && for n in 1 2 3; do printf 'leaf %s of ${leaves}' $n > tree/$n; "
            "done && echo grow >> ran",
            "params": ["leaves"],
            "outs": ["tree"],
        },
        "count": {
            "cmd": "cat tree/* | wc -c > count && echo '{\"files\": 3}' > count.json "
            "&& echo count >> ran",
            "deps": ["tree"],
            "params": ["counting"],
            "outs": ["count"],
            "metrics": [{"count.json": {"cache": False}}],
        },
    }
}


class SharedGraph:
    """A repository with two stages: `grow` makes a folder of three files, `count` reads it.

    Each stage adds its name to the file `ran`, which nobody tracks.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        """Take a folder that is such a repository, or will be by `make`."""
        self.folder = folder
        self.environment = dict(environment or {})

    def make(self) -> "SharedGraph":
        """Write, run and commit it."""
        self.folder.mkdir(parents=True)
        (self.folder / "dvc.yaml").write_text(yaml.safe_dump(GRAPH, sort_keys=False), "utf-8")
        self.set_params(leaves=1, counting="bytes")
        (self.folder / ".gitignore").write_text("/ran\n", "utf-8")
        shutil.copyfile(ROOT / ".gitattributes", self.folder / ".gitattributes")
        self.git("init", "--quiet", "--initial-branch=main")
        self.call("dvc", "init", "--quiet")
        self.call("dvc", "repro", "--quiet")
        return self.commit("All")

    def clone(self, folder: Path) -> "SharedGraph":
        """Clone the commit: what Git has, nothing else."""
        subprocess.run(["git", "clone", "--quiet", self.folder, folder], check=True)
        return SharedGraph(folder, self.environment)

    def set_params(self, **params: object) -> None:
        (self.folder / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")

    def commit(self, message: str) -> "SharedGraph":
        self.git("add", "--all")
        self.git("commit", "--quiet", "--message", message)
        return self

    def ran(self) -> list[str]:
        """Name the stages that ran here, in order."""
        path = self.folder / "ran"
        return path.read_text("utf-8").split() if path.exists() else []

    def git(self, *words: str) -> str:
        return self.call("git", "-c", "user.name=A", "-c", "user.email=a@example.org", *words)

    def call(self, *command: str) -> str:
        """Run a command that must succeed; give what it printed."""
        done = self.attempt(*command)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def share(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run `python -m stages.share` here."""
        return self.attempt(sys.executable, "-m", "stages.share", *words)

    def attempt(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command with this environment's programs and this repository's modules."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
                "PYTHONPATH": str(ROOT),
                "DVC_NO_ANALYTICS": "1",
                "DVC_SITE_CACHE_DIR": str(self.folder / ".dvc/tmp/site"),
                **self.environment,
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
