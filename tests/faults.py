"""Kill `make run` and `make push` at random moments of the tiny recipe, and let them recover.

A round begins with nothing, in a folder of its own. At random moments of a download, a training
run, a grid, a merge and others it kills DVC, the stage or both, and starts the one documented
command again. At the end every file must be that of the unbroken run, every object in DVC's cache
and in the remote must hash to its name, and no process or half-written file may be left.
"""

import copy
import hashlib
import os
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from stages.harness.files import sha256_file
from stages.harness.half_copied import is_half_copied
from stages.harness.processes import orphans, stage_of
from tests.imports import ROOT
from tests.tiny_recipe import RAN, TinyRecipe

# A stage's module stays a dep; what it imports would make DVC's own work four times as long.
IMPORTED_DEP = re.compile(r"^ +- stages/\w+/.*\n", re.MULTILINE)
KINDS = ("download", "train@", "grid_cells", "merge_")  # of stages that every round kills
VICTIMS = ("dvc", "stage", "both")
TELLS_OF_ITS_RUN = "drawn"  # below reports: what this run drew, not what is there
MAKE = ("make", "--no-print-directory")
OF_A_MAKE = ("MAKEFLAGS", "MAKEOVERRIDES", "MAKELEVEL", "MFLAGS")
INSTALLED = "requirements.installed"  # below .venv; the Makefile says what it is
LIMIT_S = 3600.0  # for one command, on a machine however busy


class FaultError(AssertionError):
    """Something was lost, or left behind."""


@dataclass(frozen=True, slots=True)
class Kill:
    """What is killed, and when."""

    stage: str  # waited for
    after_s: float  # from its start
    victim: str  # one of VICTIMS


class Command:
    """A target of make under way."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.began: dict[str, float] = {}  # by stage, time.monotonic
        self.lines: list[str] = []
        self.words = words
        self.process = subprocess.Popen(
            [*MAKE, *words],
            cwd=folder,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)
                if found := RAN.match(line):
                    self.began[found[1]] = time.monotonic()

    def waits_for(self, stage: str) -> bool:
        """Wait until a stage runs; false if the command ends without it."""
        while stage not in self.began:
            if self.process.poll() is not None:
                return False
            time.sleep(0.01)
        return True

    def programs(self) -> list[psutil.Process]:
        """List what make runs just then, without the stages: DVC, or what is in its place."""
        return [p for p in psutil.Process(self.process.pid).children(True) if not stage_of(p)]

    def kill(self, victim: str) -> None:
        """Kill DVC, the stage that runs just then, or both; DVC where no stage runs."""
        dvc = self.programs()
        stages: list[psutil.Process] = []
        for program in dvc:
            with suppress(psutil.NoSuchProcess):  # it ended meanwhile
                stages += [child for child in program.children() if stage_of(child)]
        for process in {"dvc": dvc, "stage": stages or dvc, "both": [*dvc, *stages]}[victim]:
            with suppress(psutil.NoSuchProcess):  # it ended by itself, or with another
                process.kill()
        self.process.wait(LIMIT_S)

    def finish(self) -> None:
        """Wait for its end, which must be a good one."""
        status, text = self.end()
        if status:
            raise FaultError(f"make {' '.join(self.words)}: {text[-4000:]}")

    def end(self) -> tuple[int, str]:
        """Wait for its end; give its exit status, and what it and the stages said."""
        status = self.process.wait(LIMIT_S)
        self._reader.join()
        return status, "".join(self.lines)


def environment() -> dict[str, str]:
    """Give what make runs in; bits of a sum depend on the number of threads."""
    # Of a make that runs the tests, this one takes no options.
    inherited = {name: text for name, text in os.environ.items() if name not in OF_A_MAKE}
    programs = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return {**inherited, "PATH": programs, "DVC_NO_ANALYTICS": "1", "OMP_NUM_THREADS": "1"}


def make_recipe(folder: Path) -> TinyRecipe:
    """Make a recipe of which nothing has run, with a folder for a remote."""
    recipe = TinyRecipe(folder / "recipe")
    graph = recipe.folder / "dvc.yaml"
    graph.write_text(IMPORTED_DEP.sub("", graph.read_text("utf-8")), "utf-8")
    (folder / "remote").mkdir()
    recipe.call("dvc", "remote", "add", "--default", "storage", "../remote")
    for name in ("Makefile", "requirements.txt"):
        shutil.copyfile(ROOT / name, recipe.folder / name)
    lend_environment(recipe.folder)
    return recipe


def lend_environment(folder: Path) -> None:
    """Give a folder this environment as its own, so that make installs none."""
    own = folder / ".venv"
    own.mkdir()
    for path in Path(sys.prefix).iterdir():
        (own / path.name).symlink_to(path)
    (own / INSTALLED).unlink(missing_ok=True)
    shutil.copyfile(folder / "requirements.txt", own / INSTALLED)


def copied(recipe: TinyRecipe, folder: Path) -> TinyRecipe:
    """Copy a recipe as it is, with its cache and its remote."""
    shutil.copytree(recipe.folder.parent, folder, symlinks=True)
    other = copy.copy(recipe)
    other.folder = folder / recipe.folder.name
    return other


def start(recipe: TinyRecipe, targets: Sequence[str]) -> Command:
    """Begin as a user does."""
    return Command(recipe.folder, "run", f"ARGS={' '.join(targets)}")


def make(folder: Path, *words: str, by: Sequence[str] = ()) -> "subprocess.CompletedProcess[str]":
    """Run a target of make to its end, perhaps through another program."""
    command = [*by, *MAKE, *words]
    return subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, check=False
    )


@dataclass(frozen=True, slots=True)
class Unbroken:
    """A run that nothing disturbed."""

    recipe: TinyRecipe
    targets: tuple[str, ...]
    took_s: dict[str, float]  # by stage, in the order of the run
    push_s: float
    files: dict[str, str]  # hashes by path

    @classmethod
    def run(cls, recipe: TinyRecipe, *targets: str) -> "Unbroken":
        """Make it."""
        command = start(recipe, targets)
        command.finish()
        times = [*command.began.values(), time.monotonic()]
        took_s = {
            stage: end - begin
            for stage, begin, end in zip(command.began, times, times[1:], strict=False)
        }
        began = time.monotonic()
        Command(recipe.folder, "push").finish()
        push_s = time.monotonic() - began
        files = made_files(recipe.folder)
        return cls(recipe, targets, took_s, push_s, files)

    def kills(self, moments: random.Random) -> Iterator[Kill]:
        """Draw one kill in a stage of each kind and one in any, in the order of the run."""
        stages = list(self.took_s)
        chosen = {moments.choice([s for s in stages if s.startswith(kind)]) for kind in KINDS}
        chosen.add(moments.choice(stages))
        for stage in sorted(chosen, key=stages.index):
            after_s = moments.uniform(0.0, self.took_s[stage])
            yield Kill(stage, after_s, moments.choice(VICTIMS))


def break_and_recover(begin: TinyRecipe, unbroken: Unbroken, moments: random.Random) -> list[str]:
    """Run the graph and push it with kills, and compare.

    Args:
        begin: a copy of what the unbroken run began with.
        unbroken: what it is to come to.
        moments: decides when and whom.

    Returns:
        What was done, in words.

    Raises:
        FaultError: if it does not end as the unbroken run did.
    """
    story = []
    for kill in unbroken.kills(moments):
        command = start(begin, unbroken.targets)
        if not command.waits_for(kill.stage):
            command.finish()
            story.append(f"{kill.stage} was done before")  # an orphan had finished it
            continue
        time.sleep(kill.after_s)
        command.kill(kill.victim)
        story.append(f"{kill.victim} {kill.after_s:.2f} s into {kill.stage}")
    start(begin, unbroken.targets).finish()
    push = Command(begin.folder, "push")
    time.sleep(moments.uniform(0.0, unbroken.push_s))
    if push.process.poll() is None:
        push.kill("dvc")
        story.append("push")
    Command(begin.folder, "push").finish()
    check(begin, unbroken)
    return story


def check(recipe: TinyRecipe, unbroken: Unbroken) -> None:
    """Compare a run that recovered with the unbroken one.

    Raises:
        FaultError: naming what differs, or is left behind.
    """
    files = made_files(recipe.folder)
    differing = sorted(
        path
        for path in files.keys() | unbroken.files.keys()
        if files.get(path) != unbroken.files.get(path)
    )
    if differing:
        raise FaultError(f"not as in the unbroken run: {', '.join(differing[:9])}")
    if left := orphans(recipe.folder.resolve()):
        raise FaultError(f"still running: {left}")
    if halves := sorted(recipe.folder.rglob("*.partial")):
        raise FaultError(f"half-written: {', '.join(map(str, halves))}")
    cache, remote = recipe.folder / ".dvc/cache", recipe.folder.parent / "remote"
    for store in (cache, remote):
        if changed := changed_objects(store):
            raise FaultError(f"{store}: {', '.join(changed)} do not hash to their names")
    status = recipe.call("dvc", "status", *unbroken.targets)
    if "up to date" not in status:
        raise FaultError(f"dvc status: {status}")
    cloud = recipe.call("dvc", "status", "--cloud")
    if "in sync" not in cloud:
        raise FaultError(f"dvc status --cloud: {cloud}")


def made_files(folder: Path) -> dict[str, str]:
    """Hash all files that the graph made in a folder, by their path."""
    made = (path for top in ("data", "models", "reports") for path in (folder / top).rglob("*"))
    return {
        str(path.relative_to(folder)): sha256_file(path)
        for path in made
        if path.is_file() and path.name != ".gitignore" and path.parent.name != TELLS_OF_ITS_RUN
    }


def changed_objects(store: Path) -> list[str]:
    """List the objects in a cache or a remote whose bytes are not those of their name.

    What a full disk cut short has a name that no object has; `stages.ready` takes it away later.
    """
    changed = []
    objects = (path for path in (store / "files/md5").glob("??/*") if not is_half_copied(path.name))
    for path in objects:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "md5").hexdigest()
        if found != f"{path.parent.name}{path.name}".removesuffix(".dir"):
            changed.append(str(path))
    return sorted(changed)
