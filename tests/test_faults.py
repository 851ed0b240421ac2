"""Whatever is killed, full, shut or spoilt: one command later all is as it should be."""

import getpass
import os
import random
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.faults import (
    Command,
    Unbroken,
    break_and_recover,
    check,
    copied,
    made_files,
    make,
    make_recipe,
    start,
)
from tests.second_user import IS_AT_HAND, module_as_nobody, open_folder
from tests.tiny_recipe import TinyRecipe

# From the export to a chosen checkpoint, its grid and a merge of it: a stage of every kind.
TARGETS = ("grid_sheet@train_64", "merge_mix@hybrid")


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TinyRecipe]:
    recipe = make_recipe(tmp_path_factory.mktemp("fresh"))
    inputs = recipe.params["merge"]["mixes"]["hybrid"]["inputs"]
    inputs[1]["file"] = recipe.params["base"]["weights"]  # b; and not another run
    recipe.write_params()
    yield recipe
    shutil.rmtree(recipe.folder)


@pytest.fixture(scope="module")
def unbroken(fresh: TinyRecipe, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unbroken]:
    recipe = copied(fresh, tmp_path_factory.mktemp("unbroken") / "copy")
    yield Unbroken.run(recipe, *TARGETS)
    shutil.rmtree(recipe.folder)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_killed_at_random_moments_nothing_is_lost_and_nothing_is_left(
    fresh: TinyRecipe, unbroken: Unbroken, tmp_path: Path, seed: int
) -> None:
    story = break_and_recover(copied(fresh, tmp_path / "round"), unbroken, random.Random(seed))
    assert len(story) >= 4  # a kill in a stage of each kind, and in the push


AS_ROOT = () if os.geteuid() == 0 else ("sudo", "--non-interactive")
# Root may write anywhere, unless it gives up that right.
BOUND = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override", "--inh-caps=-all")
# What stages say of a full disk, and what DVC says when it cannot even copy from its cache.
FULL = ("No space left on device", "No possible cache link types")


def bytes_below(folder: Path) -> int:
    """Count the bytes of a folder's files, each once, whatever its names."""
    sizes = {}
    for path in folder.rglob("*"):
        status = path.lstat()
        sizes[status.st_ino] = -(-status.st_size // 4096) * 4096
    return sum(sizes.values())


@contextmanager
def disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a disk of so many bytes on a folder."""
    mount = [*AS_ROOT, "mount", "-t", "tmpfs", "-o", f"size={size},mode=777", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("to fill a disk one must mount it, as root or by sudo")
    try:
        yield
    finally:
        subprocess.run([*AS_ROOT, "umount", "--lazy", str(folder)], check=True)


def resize(folder: Path, size: int) -> None:
    remount = ["mount", "-o", f"remount,size={size}", str(folder)]
    subprocess.run([*AS_ROOT, *remount], check=True)


def test_a_cache_that_is_read_only_is_told_before_the_work_and_nothing_changes(
    unbroken: Unbroken, tmp_path: Path
) -> None:
    recipe = copied(unbroken.recipe, tmp_path / "copy")
    cache = recipe.folder / ".dvc/cache/files/md5"
    cache.chmod(0o555)
    done = make(recipe.folder, "run", by=BOUND)
    assert done.returncode
    assert f"{cache}: may not be written to" in done.stderr
    assert "dvc cache dir --local" in done.stderr
    assert made_files(recipe.folder) == unbroken.files
    cache.chmod(0o755)
    start(recipe, unbroken.targets).finish()
    check(recipe, unbroken)


def test_the_second_of_two_users_in_one_tree_learns_who_is_at_work(fresh: TinyRecipe) -> None:
    with open_folder() as folder:
        recipe = copied(fresh, folder / "copy")
        recipe.folder.parent.chmod(0o755)
        first = start(recipe, ["train@64"])
        assert first.waits_for("train@64")
        programs = {program.pid for program in first.programs()}
        second = make_run_as_another(recipe.folder)
        first.finish()
        assert second.returncode
        told = re.search(r"process (\d+) \(`python -m dvc repro.*\n  kill \1\n", second.stderr)
        assert told
        assert int(told[1]) in programs
        assert set(made_files(recipe.folder)) > {"data/images/00000.tar", "data/filtered.parquet"}
        if IS_AT_HAND:  # the tree is free now, but it is still the first one's
            assert f", by {getpass.getuser()}, since" in second.stderr
            alone = make_run_as_another(recipe.folder)
            assert alone.returncode
            assert "may not be written to" in alone.stderr


def make_run_as_another(folder: Path) -> "subprocess.CompletedProcess[str]":
    """Begin `make run` as another user, or as another terminal of one's own.

    The other user may be unable to run this environment's Python: make's first command is then
    run by itself.
    """
    return module_as_nobody(folder, "stages.ready") if IS_AT_HAND else make(folder, "run")


def test_a_dvc_lock_that_was_cut_short_costs_no_training(
    unbroken: Unbroken, tmp_path: Path
) -> None:
    recipe = copied(unbroken.recipe, tmp_path / "copy")
    lock = recipe.folder / "dvc.lock"
    lock.write_bytes(lock.read_bytes()[:1000])
    command = start(recipe, unbroken.targets)
    command.finish()
    assert not {name for name in command.began if name.startswith("train")}
    check(recipe, unbroken)


def test_spoilt_weights_that_nobody_has_are_trained_anew(
    unbroken: Unbroken, tmp_path: Path
) -> None:
    """Though the scratch holds the spoilt file, too, under another name."""
    recipe = copied(unbroken.recipe, tmp_path / "copy")
    remote = recipe.folder.parent / "remote"
    shutil.rmtree(remote)
    remote.mkdir()
    (weights,) = (recipe.folder / "models/train/64").glob("epoch_002*")
    (scratch,) = (recipe.folder / ".work/train/64").glob("*/weights/epoch_002*")
    same = [path for path in (recipe.folder / ".dvc/cache").rglob("*") if is_copy(path, weights)]
    for path in (weights, scratch):
        path.unlink()
        path.hardlink_to(same[0])
    same[0].chmod(0o644)
    with same[0].open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"?")
    same[0].chmod(stat.S_IREAD)
    done = make(recipe.folder, "verify")
    assert done.returncode
    assert "models/train/64/epoch_002.safetensors" in done.stderr
    command = start(recipe, unbroken.targets)
    command.finish()
    assert "train@64" in command.began
    Command(recipe.folder, "push").finish()
    check(recipe, unbroken)


def is_copy(path: Path, other: Path) -> bool:
    return path.is_file() and path.read_bytes() == other.read_bytes()


def test_a_full_disk_is_told_and_given_room_the_run_goes_on(
    fresh: TinyRecipe, unbroken: Unbroken, tmp_path: Path
) -> None:
    before, after = (bytes_below(r.folder.parent) for r in (fresh, unbroken.recipe))
    place = tmp_path / "disk"
    place.mkdir()
    with disk(place, before + (1 << 20)):
        recipe = copied(fresh, place / "copy")
        for share in (0.0, 0.2):
            resize(place, int(before + (1 << 20) + share * (after - before)))
            status, said = start(recipe, unbroken.targets).end()
            assert status
            assert any(words in said for words in FULL)
        resize(place, 4 * after)
        start(recipe, unbroken.targets).finish()
        Command(recipe.folder, "push").finish()
        check(recipe, unbroken)
