"""`make verify`: a spoilt object of the cache is found, named, and mended or taken away."""

import os
import shutil
import subprocess
import sys
from hashlib import md5
from pathlib import Path

import pytest

from tests.shared_graph import SharedGraph


def verify(graph: SharedGraph) -> "subprocess.CompletedProcess[str]":
    return graph.attempt(sys.executable, "-m", "stages.verify_cache")


def object_of(graph: SharedGraph, content: bytes) -> Path:
    name = md5(content).hexdigest()
    return graph.folder / ".dvc/cache/files/md5" / name[:2] / name[2:]


LEAF = b"leaf 2 of 1"


def rot(path: Path) -> None:
    """Change a byte as a failing disk does: neither size, time nor mode tell."""
    before = path.stat()
    path.chmod(0o644)
    with path.open("r+b") as file:
        first = file.read(1)
        file.seek(0)
        file.write(bytes([first[0] ^ 1]))
    path.chmod(before.st_mode)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.fixture(params=["hardlink", "copy"])
def graph(request: pytest.FixtureRequest, tmp_path: Path) -> SharedGraph:
    """Make a repository whose tree and cache share files, or do not."""
    made = SharedGraph(tmp_path / "graph").make()
    made.call("dvc", "config", "cache.type", request.param)
    made.call("dvc", "checkout", "--relink")
    return made


@pytest.fixture
def linked(tmp_path: Path) -> SharedGraph:
    made = SharedGraph(tmp_path / "graph").make()
    made.call("dvc", "config", "cache.type", "hardlink")
    made.call("dvc", "checkout", "--relink")
    return made


def test_a_sound_cache_is_left_as_it_is(graph: SharedGraph) -> None:
    done = verify(graph)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "6 objects read and hashed, nothing amiss.\n"


def test_what_the_tree_has_in_a_file_of_its_own_comes_from_there(linked: SharedGraph) -> None:
    linked.call("dvc", "config", "cache.type", "copy")
    linked.call("dvc", "checkout", "--relink")
    rot(object_of(linked, LEAF))
    done = verify(linked)
    assert done.returncode == 0, done.stderr
    name = md5(LEAF).hexdigest()
    assert f"changed  tree/2 [{name}]; mended from the working tree" in done.stdout
    assert object_of(linked, LEAF).read_bytes() == LEAF
    assert "nothing amiss" in verify(linked).stdout


def test_what_the_remote_has_comes_from_there_into_cache_and_tree(linked: SharedGraph) -> None:
    linked.call("dvc", "remote", "add", "--default", "storage", "../remote")
    linked.call("dvc", "push", "--quiet")
    rot(object_of(linked, LEAF))
    assert (linked.folder / "tree/2").read_bytes() != LEAF  # one file under two names
    (linked.folder / "tree/1").unlink()  # a person's own doing is left to the person
    (linked.folder / "tree/1").write_text("mine")
    assert "up to date" not in linked.call("dvc", "status")
    done = verify(linked)
    assert done.returncode == 0, done.stderr
    assert f"changed  tree/2 [{md5(LEAF).hexdigest()}]; mended from" in done.stdout
    assert (linked.folder / "tree/2").read_bytes() == LEAF
    assert (linked.folder / "tree/1").read_text() == "mine"


def test_what_nobody_has_is_taken_away_and_made_anew(linked: SharedGraph) -> None:
    assert "up to date" in linked.call("dvc", "status")
    rot(object_of(linked, LEAF))
    assert "up to date" in linked.call("dvc", "status")  # DVC sees nothing
    scratch = linked.folder / ".work/train/1/weights"
    scratch.parent.mkdir(parents=True)
    scratch.hardlink_to(object_of(linked, LEAF))
    done = verify(linked)
    assert done.returncode == 1
    assert f"  tree/2 [{md5(LEAF).hexdigest()}]\n" in done.stderr
    assert "`make run` makes anew what stages made (grow)" in done.stderr
    assert not scratch.exists()
    before = linked.ran()
    linked.call("dvc", "repro")
    assert linked.ran() == [*before, "grow"]
    assert (linked.folder / "tree/2").read_bytes() == LEAF
    assert "nothing amiss" in verify(linked).stdout


def test_the_bytes_of_what_a_person_added_are_kept_when_nobody_has_others(
    linked: SharedGraph,
) -> None:
    (linked.folder / "mine").write_bytes(b"an export of years")
    linked.call("dvc", "add", "--quiet", "mine")
    rot(object_of(linked, b"an export of years"))
    spoilt = object_of(linked, b"an export of years").read_bytes()
    done = verify(linked)
    assert done.returncode == 1
    assert "No stage makes what mine.dvc name: get it again" in done.stderr
    (kept,) = (linked.folder / ".work/spoilt").iterdir()
    assert kept.read_bytes() == spoilt


def test_a_spoilt_object_in_the_remote_is_not_taken_for_good(linked: SharedGraph) -> None:
    linked.call("dvc", "remote", "add", "--default", "storage", "../remote")
    linked.call("dvc", "push", "--quiet")
    name = md5(LEAF).hexdigest()
    rot(linked.folder.parent / "remote/files/md5" / name[:2] / name[2:])
    rot(object_of(linked, LEAF))
    done = verify(linked)
    assert done.returncode == 1
    assert f"tree/2 [{name}]" in done.stderr
    assert not object_of(linked, LEAF).exists()


def test_what_a_person_wrote_through_a_hard_link_is_kept_and_told(linked: SharedGraph) -> None:
    linked.call("dvc", "remote", "add", "--default", "storage", "../remote")
    linked.call("dvc", "push", "--quiet")
    edits = (b"my own caption", b"another caption of mine")
    for edit in edits:
        (linked.folder / "tree/2").chmod(0o644)
        with (linked.folder / "tree/2").open("r+b") as file:
            file.write(edit)
        done = verify(linked)
        assert done.returncode == 0, done.stderr
        kept = f".work/spoilt/{md5(LEAF).hexdigest()}.{md5(edit).hexdigest()}"
        assert f"; as it was: {kept}\n" in done.stdout
        assert (linked.folder / "tree/2").read_bytes() == LEAF
    assert {path.read_bytes() for path in (linked.folder / ".work/spoilt").iterdir()} == {*edits}


def test_what_the_cache_lacks_is_named_until_it_is_there(linked: SharedGraph) -> None:
    rot(object_of(linked, LEAF))
    assert verify(linked).returncode == 1
    again = verify(linked)
    assert again.returncode == 1
    assert "Of 5 of this commit, 1 are not in the cache:" in again.stderr
    assert f"  tree/2 [{md5(LEAF).hexdigest()}]\n" in again.stderr
    linked.call("dvc", "repro")
    assert "nothing amiss" in verify(linked).stdout


# Dies as by SIGKILL before the n-th change of a file in the cache, the tree or .work.
VERIFY_AND_DIE = """
import os, sys
from stages.verify_cache import Repo, run
left = int(sys.argv[1])
def count(event, arguments):
    global left
    if event in ("os.link", "os.remove", "os.rename", "os.chmod"):
        if any(place in str(arguments[0]) for place in ("/files/md5/", "/tree/", "/spoilt/")):
            left -= 1
            if not left:
                os._exit(9)
with Repo() as repo:
    sys.addaudithook(count)
    run(repo)
"""


@pytest.mark.parametrize("has_remote", [True, False])
def test_a_verify_that_is_killed_is_made_good_by_the_next(
    linked: SharedGraph, has_remote: bool
) -> None:
    if has_remote:
        linked.call("dvc", "remote", "add", "--default", "storage", "../remote")
        linked.call("dvc", "push", "--quiet")
    status, moment = 9, 0
    while status == 9:
        moment += 1
        shutil.rmtree(linked.folder / ".work", ignore_errors=True)
        rot(object_of(linked, LEAF))
        status = linked.attempt(sys.executable, "-c", VERIFY_AND_DIE, str(moment)).returncode
        done = verify(linked)
        if has_remote:
            assert done.returncode == 0, done.stderr
            assert (linked.folder / "tree/2").read_bytes() == LEAF
        else:
            assert done.returncode == 1
            assert "tree/2" in done.stderr
            assert not (linked.folder / "tree/2").exists()
            assert not object_of(linked, LEAF).exists()
            object_of(linked, LEAF).write_bytes(LEAF)  # as a run would
            (linked.folder / "tree/2").hardlink_to(object_of(linked, LEAF))
        assert object_of(linked, LEAF).read_bytes() == LEAF
        assert not list((linked.folder / "tree").glob("*.partial"))
        (kept,) = (linked.folder / ".work/spoilt").iterdir()
        assert kept.read_bytes() != LEAF
    assert moment > 4


def test_a_lock_that_dvc_cannot_read_is_named_with_what_mends_it(linked: SharedGraph) -> None:
    lock = linked.folder / "dvc.lock"
    whole = lock.read_text("utf-8")
    for text, command in (
        (whole[:200], ".venv/bin/python -m stages.ready"),
        (f"<<<<<<< HEAD\n{whole}=======\n>>>>>>> other\n", "make resolve"),
    ):
        lock.write_text(text, "utf-8")
        done = verify(linked)
        assert done.returncode == 1
        assert f"\n  {command}\n" in done.stderr


def test_a_remote_that_is_gone_is_named_and_the_rest_is_done(linked: SharedGraph) -> None:
    linked.call("dvc", "remote", "add", "--default", "storage", "../remote")
    rot(object_of(linked, LEAF))
    shutil.rmtree(linked.folder.parent / "remote", ignore_errors=True)
    done = verify(linked)
    assert done.returncode == 1
    assert "nothing can be mended from the remote: remote 'storage'" in done.stdout
    assert "tree/2" in done.stderr


def test_an_object_of_another_commit_is_taken_away_and_no_error(linked: SharedGraph) -> None:
    linked.set_params(leaves=2, counting="bytes")
    linked.call("dvc", "repro", "--quiet")
    rot(object_of(linked, LEAF))
    done = verify(linked)
    assert done.returncode == 0, done.stderr
    assert "changed  a file of another commit" in done.stdout
    assert not object_of(linked, LEAF).exists()
    linked.set_params(leaves=1, counting="bytes")
    linked.call("dvc", "repro")
    assert (linked.folder / "tree/2").read_bytes() == LEAF


def test_the_list_of_a_folder_is_verified_too(linked: SharedGraph) -> None:
    linked.call("dvc", "remote", "add", "--default", "storage", "../remote")
    linked.call("dvc", "push", "--quiet")
    (listing,) = (linked.folder / ".dvc/cache/files/md5").glob("??/*.dir")
    before = listing.read_bytes()
    rot(listing)
    done = verify(linked)
    assert done.returncode == 0, done.stderr
    assert "tree/ (the list of its files)" in done.stdout
    assert listing.read_bytes() == before
    assert "up to date" in linked.call("dvc", "status")
