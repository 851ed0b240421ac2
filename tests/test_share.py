"""Results are shared through real servers; what is amiss there is named and mended."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs

from stages.harness.dvc_command import DVC
from stages.storage import place
from tests.bucket_server import s3_server
from tests.imports import ROOT
from tests.shared_graph import SharedGraph
from tests.ssh_server import SshServer, ssh_server

LEAF = hashlib.md5(b"leaf 2 of 1").hexdigest()  # of tree/2
TREE = "457ff691e84bf9ebc5093baf0d91f857.dir"
REPORT = hashlib.md5(b'{"files": 3}\n').hexdigest()  # of count.json, which Git holds
COUNT = hashlib.md5(b"33\n").hexdigest()  # of the file `count`


@dataclass(frozen=True)
class Shared:
    """A recipe that ran, and the remote that its config names."""

    graph: SharedGraph
    store: Path  # where the remote's objects lie on this machine's disk

    bucket_path: str | None = None  # of the same, as S3 names it

    def object(self, name: str) -> Path:
        return self.store / "files/md5" / name[:2] / name[2:]

    def change(self, name: str, content: bytes) -> None:
        """Have the remote hold other bytes as an object, read-only as DVC's are."""
        if self.bucket_path:
            s3 = s3fs.S3FileSystem(skip_instance_cache=True)
            s3.pipe_file(f"{self.bucket_path}/files/md5/{name[:2]}/{name[2:]}", content)
        else:
            replace(self.object(name), content)


def replace(path: Path, content: bytes) -> None:
    path.unlink()
    path.write_bytes(content)
    path.chmod(0o444)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> SharedGraph:
    return SharedGraph(tmp_path_factory.mktemp("graph") / "made").make()


@pytest.fixture
def graph(made: SharedGraph, tmp_path: Path) -> SharedGraph:
    """Copy the recipe that ran, with its cache."""
    shutil.copytree(made.folder, tmp_path / "mine")
    return SharedGraph(tmp_path / "mine")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd") / "server") as server:
        yield server


@pytest.fixture(params=["folder", "s3", "ssh"])
def shared(
    request: pytest.FixtureRequest,
    graph: SharedGraph,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Shared]:
    """Configure a remote of each kind, as the README tells, and commit the config."""
    store = tmp_path / "store"
    with ExitStack() as stack:
        if request.param == "s3":
            bucket = stack.enter_context(s3_server(tmp_path / "s3", monkeypatch))
            url, store = "s3://bucket/recipe", bucket / "recipe"
        elif request.param == "ssh":
            store.mkdir()
            sshd = request.getfixturevalue("sshd")
            url = f"{sshd.url}{store}"
        else:
            store.mkdir()
            url = str(store)
        set_remote(graph, url)
        if request.param == "ssh":
            use_key(graph, sshd.key)
        yield Shared(graph, store, "bucket/recipe" if request.param == "s3" else None)


def set_remote(graph: SharedGraph, url: str) -> None:
    """Commit what `dvc remote add --default storage URL` writes."""
    with (graph.folder / ".dvc/config").open("a", encoding="utf-8") as config:
        config.write(f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {url}\n")
    graph.commit("A remote")


def use_key(graph: SharedGraph, key: Path) -> None:
    """Write what `dvc remote modify --local storage keyfile KEY` does."""
    text = f"['remote \"storage\"']\n    keyfile = {key}\n"
    (graph.folder / ".dvc/config.local").write_text(text, encoding="utf-8")


def cloned(shared: Shared, folder: Path) -> SharedGraph:
    """Clone the repository as another person would, with credentials of their own."""
    clone = shared.graph.clone(folder)
    local = shared.graph.folder / ".dvc/config.local"
    if local.exists():
        (clone.folder / ".dvc/config.local").write_bytes(local.read_bytes())
    return clone


def test_a_clone_that_pulls_is_clean_and_reruns_only_what_a_change_touches(
    shared: Shared, tmp_path: Path
) -> None:
    pushed = shared.graph.share("push")
    assert pushed.returncode == 0, pushed.stderr
    clone = cloned(shared, tmp_path / "theirs")
    pulled = clone.share("pull")
    assert pulled.returncode == 0, pulled.stderr
    assert "5 objects are in place" in pulled.stdout
    assert (clone.folder / "tree/2").read_text("utf-8") == "leaf 2 of 1"
    assert "up to date" in clone.call("dvc", "status")
    clone.call("dvc", "repro")
    assert clone.ran() == []
    clone.set_params(leaves=1, counting="bytes, again")
    clone.call("dvc", "repro")
    assert clone.ran() == ["count"]


def test_the_runs_of_others_are_not_run_again(shared: Shared, tmp_path: Path) -> None:
    """Back to params of an older commit: `dvc repro --pull` takes that run from the remote."""
    assert shared.graph.share("push").returncode == 0
    shared.graph.set_params(leaves=7, counting="bytes")
    shared.graph.call("dvc", "repro")
    shared.graph.commit("Seven")
    assert shared.graph.share("push").returncode == 0
    clone = cloned(shared, tmp_path / "theirs")
    assert clone.share("pull").returncode == 0
    clone.set_params(leaves=1, counting="bytes")
    clone.call("dvc", "repro", "--pull")
    assert clone.ran() == []
    assert (clone.folder / "tree/2").read_text("utf-8") == "leaf 2 of 1"


def test_a_forged_record_of_a_run_is_not_taken(graph: SharedGraph, tmp_path: Path) -> None:
    """DVC would put the remote's files where the record says: over the recipe's code, say."""
    (tmp_path / "store").mkdir()
    set_remote(graph, str(tmp_path / "store"))
    graph.set_params(leaves=7, counting="bytes")
    graph.call("dvc", "repro")
    graph.commit("Seven")
    assert graph.share("push").returncode == 0
    graph.git("checkout", "--quiet", "HEAD~1")
    graph.call("dvc", "checkout")
    assert graph.share("push").returncode == 0
    records = [path for path in (tmp_path / "store/runs").rglob("*") if path.is_file()]
    (record,) = [path for path in records if "leaves: 7" in path.read_text("utf-8")]
    record.write_text(record.read_text("utf-8").replace("path: tree", "path: stages"), "utf-8")
    taken, checked = graph.clone(tmp_path / "taken"), graph.clone(tmp_path / "checked")
    taken.set_params(leaves=7, counting="bytes")
    taken.attempt("dvc", "repro", "--pull")
    assert (taken.folder / "stages/1").exists()  # the day that DVC looks, our check may go
    pulled = checked.share("pull")
    assert f"runs/{record.name} is no record of a run; not taken" in pulled.stdout
    assert not list(checked.folder.glob(f".dvc/cache/runs/*/*/{record.name}"))
    checked.set_params(leaves=7, counting="bytes")
    checked.attempt("dvc", "repro")
    assert not (checked.folder / "stages").exists()
    assert checked.ran() == ["grow", "count"]


def test_what_is_missing_and_changed_is_named_and_mended(shared: Shared) -> None:
    assert shared.graph.share("push").returncode == 0
    shared.object(LEAF).unlink()
    shared.change(COUNT, b"34\n")
    found = shared.graph.share("verify")
    assert found.returncode == 0, found.stderr
    assert f"missing  tree/2  [{LEAF}]; mended from the cache" in found.stdout
    assert f"changed  count  [{COUNT}]: its bytes hash to" in found.stdout
    assert shared.object(LEAF).read_bytes() == b"leaf 2 of 1"
    assert shared.object(COUNT).read_bytes() == b"33\n"
    again = shared.graph.share("verify")
    assert again.returncode == 0
    assert "5 objects read and hashed, nothing amiss" in again.stdout


def test_a_push_mends_what_dvc_believes_to_be_there(shared: Shared) -> None:
    assert shared.graph.share("push").returncode == 0
    shared.object(LEAF).unlink()
    shared.change(COUNT, b"3")
    shared.graph.call("dvc", "push")
    assert not shared.object(LEAF).exists()  # the day that DVC does, ours may go
    pushed = shared.graph.share("push")
    assert pushed.returncode == 0, pushed.stderr
    assert "missing  tree/2" in pushed.stdout
    assert "changed  count" in pushed.stdout
    assert ", 1 bytes, not 3; mended" in pushed.stdout
    assert shared.object(LEAF).read_bytes() == b"leaf 2 of 1"
    assert shared.object(COUNT).read_bytes() == b"33\n"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (LEAF, f"tree/2  [{LEAF}]"),
        (TREE, f"tree/ (the list of its files)  [{TREE}]"),
        (REPORT, f"count.json  [{REPORT}]"),
    ],
    ids=["file", "list", "report"],
)
def test_what_is_spoilt_in_the_cache_is_not_pushed(shared: Shared, name: str, told: str) -> None:
    cached = shared.graph.folder / ".dvc/cache/files/md5" / name[:2] / name[2:]
    replace(cached, b"?" + cached.read_bytes()[1:])
    refused = shared.graph.share("push")
    assert refused.returncode == 1
    assert f"1 of the objects to upload hashes to another name:\n  {told}\n" in refused.stderr
    assert "\n  make verify\n" in refused.stderr
    assert not [path for path in shared.store.rglob("*") if path.is_file()]


def test_what_is_spoilt_in_the_cache_and_sound_in_the_remote_hinders_no_push(
    shared: Shared,
) -> None:
    assert shared.graph.share("push").returncode == 0
    cached = shared.graph.folder / ".dvc/cache/files/md5" / LEAF[:2] / LEAF[2:]
    replace(cached, b"another length")
    for act in ("push", "verify"):
        done = shared.graph.share(act)
        assert done.returncode == 0, done.stderr
        assert "nothing amiss" in done.stdout
    assert shared.object(LEAF).read_bytes() == b"leaf 2 of 1"


def test_a_damaged_list_of_a_folder_is_mended(shared: Shared) -> None:
    assert shared.graph.share("push").returncode == 0
    whole = shared.object(TREE).read_bytes()
    shared.change(TREE, whole.replace(b'"1"', b'"4"'))
    found = shared.graph.share("verify")
    assert found.returncode == 0, found.stderr
    assert "changed  tree/ (the list of its files)" in found.stdout
    assert shared.object(TREE).read_bytes() == whole


def test_a_pull_refuses_and_names_what_was_changed_there(shared: Shared, tmp_path: Path) -> None:
    assert shared.graph.share("push").returncode == 0
    shared.change(LEAF, b"leaf 2 of 9")
    clone = cloned(shared, tmp_path / "theirs")
    refused = clone.share("pull")
    assert refused.returncode != 0
    assert f"changed  tree/2  [{LEAF}]" in refused.stderr
    assert "make verify-remote" in refused.stderr
    assert "dvc repro --single-item --force grow" in refused.stderr
    assert not (clone.folder / "tree").exists()
    assert shared.graph.share("verify").returncode == 0
    assert clone.share("pull").returncode == 0
    assert (clone.folder / "tree/2").read_text("utf-8") == "leaf 2 of 1"


def test_a_plain_pull_of_dvc_s_refuses_it_too_by_the_setting_that_readers_are_told(
    shared: Shared, tmp_path: Path
) -> None:
    command = "dvc remote modify storage verify true"
    assert f"\n{command} " in (ROOT / "README.md").read_text("utf-8")
    assert f"\n  {command}\n".replace("dvc", DVC) in place.how_to_add()
    assert shared.graph.share("push").returncode == 0
    shared.change(LEAF, b"leaf 2 of 9")
    trusting, strict = (cloned(shared, tmp_path / name) for name in ("trusting", "strict"))
    trusting.call("dvc", "pull")
    assert (trusting.folder / "tree/2").exists()  # the day that DVC looks, the setting may go
    strict.call(*command.split())
    assert strict.attempt("dvc", "pull").returncode != 0
    assert not (strict.folder / "tree").exists()


@pytest.mark.parametrize("shared", ["folder", "ssh"], indirect=True)  # S3 shows only whole objects
def test_what_killed_pushes_left_half_copied_goes_once_nobody_can_be_at_it(
    shared: Shared,
) -> None:
    assert shared.graph.share("push").returncode == 0
    record = next((shared.store / "runs").glob("*/*/*"))
    old = [
        shared.object(LEAF).with_name(".mL9PBgbAocotgKT8YW-B_Q.tmp"),
        shared.store / "files/md5/zz/.0L9PBgbAocotgKT8YW-B_Q.tmp",  # where no wanted object lies
        record.with_name(".1L9PBgbAocotgKT8YW-B_Q.tmp"),
    ]
    new = record.with_name(".2L9PBgbAocotgKT8YW-B_Q.tmp")
    theirs = shared.object(LEAF).with_name(".notes.tmp")
    for path in (*old, new, theirs):
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"lea")
    for path in (*old, theirs, shared.object(LEAF)):
        os.utime(path, (time.time() - 3700,) * 2)
    verified = shared.graph.share("verify")
    assert verified.returncode == 0, verified.stderr
    for path in old:
        assert f"half-copied  {path}: a push that was killed left it; taken away" in verified.stdout
    assert not any(path.exists() for path in old)
    assert new.exists()
    assert theirs.exists()
    assert "nothing amiss" in verified.stdout
    assert shared.graph.share("verify").stdout.count("half-copied") == 0


def test_a_pull_names_what_is_missing_there(shared: Shared, tmp_path: Path) -> None:
    assert shared.graph.share("push").returncode == 0
    shared.object(LEAF).unlink()
    shared.object(COUNT).unlink()
    clone = cloned(shared, tmp_path / "theirs")
    refused = clone.share("pull")
    assert refused.returncode != 0
    assert f"missing  tree/2  [{LEAF}]" in refused.stderr
    assert f"missing  count  [{COUNT}]" in refused.stderr
    command = "dvc repro --single-item --force grow count"  # in the order of the graph
    assert command in refused.stderr
    clone.call(*command.split())
    assert "up to date" in clone.call("dvc", "status")


def test_a_pull_tells_what_was_fetched_and_hashed_from_what_was_there(
    graph: SharedGraph, tmp_path: Path
) -> None:
    (tmp_path / "store").mkdir()
    set_remote(graph, str(tmp_path / "store"))
    assert graph.share("push").returncode == 0
    clone = graph.clone(tmp_path / "theirs")
    told = clone.share("pull").stdout
    assert "5 objects are in place: 5 fetched, and hashed on arrival; 0 that the cache had" in told
    (clone.folder / ".dvc/cache/files/md5" / COUNT[:2] / COUNT[2:]).unlink()
    told = clone.share("pull").stdout
    assert ": 1 fetched, and hashed on arrival; 4 that the cache had, not read again" in told


def test_what_no_stage_makes_is_to_be_added_again(graph: SharedGraph, tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    set_remote(graph, str(tmp_path / "store"))
    mine = b"an export of years"
    (graph.folder / "mine").write_bytes(mine)
    graph.call("dvc", "add", "--quiet", "mine")
    graph.commit("Mine")
    assert graph.share("push").returncode == 0
    shared = Shared(graph, tmp_path / "store")
    shared.object(hashlib.md5(mine).hexdigest()).unlink()
    shared.object(COUNT).unlink()
    clone = graph.clone(tmp_path / "theirs")
    refused = clone.share("pull")
    assert "\n  dvc add mine  # when you have it again" in refused.stderr
    assert "\n  dvc repro --single-item --force count\n" in refused.stderr
    (clone.folder / "mine").write_bytes(mine)
    clone.call("dvc", "add", "mine")
    clone.call("dvc", "repro", "--single-item", "--force", "count")
    assert clone.share("push").returncode == 0
    assert graph.share("verify").returncode == 0


@pytest.mark.parametrize(
    "content",
    [b"no list", b"", b'[{"md5": "4fbafd6948b6529caa2b78e476359875", "relpath": "2"}]'],
    ids=["no_json", "empty", "another_list"],
)
def test_a_pull_names_a_folder_whose_list_was_changed(
    shared: Shared, tmp_path: Path, content: bytes
) -> None:
    assert shared.graph.share("push").returncode == 0
    shared.change(TREE, content)
    refused = cloned(shared, tmp_path / "theirs").share("pull")
    assert refused.returncode != 0
    assert "changed  tree/ (the list of its files)" in refused.stderr


def test_what_cannot_be_mended_is_named_with_the_way_out(shared: Shared, tmp_path: Path) -> None:
    """By a clone, whose cache is empty: it sees all, and can mend nothing."""
    assert shared.graph.share("push").returncode == 0
    shared.change(LEAF, b"leaf 2 of 9")
    found = cloned(shared, tmp_path / "theirs").share("verify")
    assert found.returncode != 0
    assert f"changed  tree/2  [{LEAF}]" in found.stderr
    assert "the cache here has no sound copy" in found.stderr
    assert "dvc repro --single-item --force grow\n  make push" in found.stderr
    assert shared.object(LEAF).read_bytes() == b"leaf 2 of 9"


def test_a_changed_object_of_the_cache_mends_nothing(shared: Shared) -> None:
    assert shared.graph.share("push").returncode == 0
    cached = shared.graph.folder / ".dvc/cache/files/md5" / LEAF[:2] / LEAF[2:]
    replace(cached, b"leaf 2 of 9")
    shared.object(LEAF).unlink()
    found = shared.graph.share("verify")
    assert found.returncode != 0
    assert f"missing  tree/2  [{LEAF}]" in found.stderr
    assert not shared.object(LEAF).exists()
