"""`make profile` never loses edits; the targets of remotes pass on what one names."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Make a repository with the Makefile, the profiles and the params."""
    shutil.copyfile(ROOT / "Makefile", tmp_path / "Makefile")
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    shutil.copytree(ROOT / "profiles", tmp_path / "profiles")
    git = ["git", "-c", "user.name=A", "-c", "user.email=a@example.org"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "All"]):
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    return tmp_path


def profile(folder: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    command = ["make", "--no-print-directory", "profile", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_profile_is_put_in_force(copy: Path) -> None:
    done = profile(copy, "NAME=sd15")
    assert done.returncode == 0, done.stderr
    assert (copy / "params.yaml").read_bytes() == (ROOT / "profiles/sd15.yaml").read_bytes()
    assert "sha256: to be filled in" in done.stdout  # what stands between the user and a run
    again = profile(copy, "NAME=mini")
    assert again.returncode == 0  # an unedited profile is nobody's edit
    assert "Next: make run" in again.stdout


def test_edits_are_kept_until_one_says_otherwise(copy: Path) -> None:
    params = copy / "params.yaml"
    edited = params.read_text(encoding="utf-8") + "# mine\n"
    params.write_text(edited, encoding="utf-8")
    refused = profile(copy, "NAME=sd15")
    assert refused.returncode != 0
    assert "neither committed nor a profile; they would be lost" in refused.stderr
    assert params.read_text(encoding="utf-8") == edited
    assert profile(copy, "NAME=sd15", "FORCE=1").returncode == 0
    assert params.read_bytes() == (ROOT / "profiles/sd15.yaml").read_bytes()


def test_an_unknown_profile_names_the_known_ones(copy: Path) -> None:
    refused = profile(copy, "NAME=sdxl")
    assert refused.returncode != 0
    assert "make profile NAME=mini" in refused.stderr
    assert "make profile NAME=sd15" in refused.stderr


@pytest.mark.parametrize(
    ("target", "act"), [("pull", "pull"), ("push", "push"), ("verify-remote", "verify")]
)
def test_a_remote_and_how_closely_to_look_are_passed_on(target: str, act: str) -> None:
    for words, passed in (([], ""), (["REMOTE=attic", "VERIFY=size"], "attic size")):
        command = ["make", "--dry-run", target, *words]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        (line,) = [line for line in done.stdout.splitlines() if "stages.share" in line]
        assert f"python -m stages.share {act}" in line
        for word in ("attic", "size"):
            assert (word in line) == (word in passed)


def test_help_names_every_target_that_has_a_word_of_help() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("run", "pull", "push", "verify-remote", "resolve", "audit"):
        assert f"  {target} " in done.stdout
