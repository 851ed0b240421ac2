"""A clone of this repository whose recipe runs in minutes: random models, few pictures."""

import copy
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from stages.diffusion.model import save_single_file
from tests.imports import ROOT
from tests.tiny_clip import make_tiny_clip
from tests.tiny_sd import make_tiny_sd

NEEDED = (
    "data/ingredients",
    "data/sample",
    "data/votes",
    "reports/ingredients",
    "stages",
    "dvc.yaml",
    ".dvcignore",
    ".gitignore",
)
RAN = re.compile(r"^Running stage '(.+)':$", re.MULTILINE)
QUICK = {"bucket_step_px": 16, "batch_size": 8, "validation_timesteps": 1, "learning_rate": 0.001}


def tiny_params() -> dict[str, Any]:
    """Shrink the mini profile: the same keys, less work."""
    params: dict[str, Any] = yaml.safe_load((ROOT / "profiles/mini.yaml").read_text("utf-8"))
    params["filter"]["top_users"] = 3
    params["base"] = {
        "weights": "models/tiny/base.safetensors",
        "config": "models/tiny/config",
        "scorer": "models/tiny/clip",
    }
    params["ingredients"]["base"]["path"] = params["base"]["weights"]
    for run in params["train"].values():
        run |= {**QUICK, "resolution": run["resolution"] // 2, "max_epochs": 2}
        run["checkpoint_every_epochs"] = 1
    for run in params["train_ingredient"].values():
        run |= {**QUICK, "resolution": 32}
    params["grid"] |= {"prompts": ["cat", "red apple"], "sizes": [[32, 32]], "steps": 2}
    params["select"]["rule"]["resamples"] = 100
    choose(params["select"])
    return params


def choose(select: dict[str, Any]) -> None:
    """Name what goes on, so that nothing but what a test changes decides what reruns.

    The last choice stays the rule's.
    """
    for run in select["checkpoint"].values():
        run["choice"] = "epoch_002"
    select["mixes"]["choice"] = ["vodka_1", "vodka_2", "vodka_3"]
    for kind, section in select["ingredients"].items():
        section["choice"] = [f"{kind}_realistic", f"{kind}_general"]
    for row, section in select["row"].items():
        section["choice"] = f"row{row}_trained"


def tracked_files() -> list[str]:
    """List what a clone would hold of what the recipe needs: a file that git lacks is missed."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", *NEEDED], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    return [name for name in listing.split("\0") if name]


class TinyRecipe:
    """A folder in which `dvc repro` makes a release of noise, quickly."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in tracked_files():
            place = folder / name
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, place)
        tiny = folder / "models/tiny"
        sd = make_tiny_sd(tiny / "config")
        save_single_file(
            tiny / "base.safetensors", sd.unet, sd.vae, sd.text_encoder, {}, torch.float16
        )
        make_tiny_clip(tiny / "clip")
        self.params = tiny_params()
        self.stages: set[str] = set()  # all of them, once they ran
        self.write_params()
        self.call("git", "init", "--quiet")
        self.call("dvc", "init", "--quiet")

    def clone(self, folder: Path) -> "TinyRecipe":
        """Commit all that Git is to hold, and clone it as another person would."""
        exclude = self.folder / ".git/info/exclude"
        exclude.write_text(".work\n__pycache__\n", encoding="utf-8")
        self.call("git", "add", "--all")
        author = ("-c", "user.name=A", "-c", "user.email=a@example.org")
        self.call("git", *author, "commit", "--quiet", "--message", "All")
        self.call("git", "clone", "--quiet", ".", str(folder))
        cloned = copy.copy(self)
        cloned.folder, cloned.params = folder, copy.deepcopy(self.params)
        return cloned

    def write_params(self) -> None:
        text = yaml.safe_dump(self.params, sort_keys=False)
        (self.folder / "params.yaml").write_text(text, encoding="utf-8")

    def repro(self, *targets: str) -> set[str]:
        """Run `dvc repro`; give the names of the stages that ran."""
        return set(RAN.findall(self.call("dvc", "repro", *targets)))

    def call(self, *command: str) -> str:
        """Run a command here, with this environment's programs; it must succeed."""
        programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env={**os.environ, "PATH": programs, "DVC_NO_ANALYTICS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
        return done.stdout
