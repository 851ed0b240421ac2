"""No remote, a wrong key, a server that is away: clear words, the next command, a bad status."""

import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from dvc.repo import Repo

from stages.storage import place
from stages.storage.place import open_place
from tests.bucket_server import free_port, s3_server
from tests.shared_graph import SharedGraph
from tests.ssh_server import SshServer, ssh_server
from tests.test_faults import BOUND

ACTS = ("pull", "push", "verify")


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> SharedGraph:
    return SharedGraph(tmp_path_factory.mktemp("graph") / "made").make()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    with s3_server(tmp_path / "s3", monkeypatch) as folder:
        yield folder


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with ssh_server(tmp_path_factory.mktemp("sshd") / "server") as server:
        yield server


def refusal(graph: SharedGraph, act: str, url: str | None, **settings: object) -> str:
    """Share through a remote, which must not work; give the error, which is no traceback."""
    local = graph.folder / ".dvc/config.local"
    lines = [f"    {name} = {value}\n" for name, value in settings.items()]
    remote = (
        f"[core]\n    remote = storage\n['remote \"storage\"']\n    url = {url}\n{''.join(lines)}"
    )
    local.write_text(remote if url else "", encoding="utf-8")
    done = graph.share(act)
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("act", ACTS)
def test_without_a_remote_one_is_told_how_to_add_it(graph: SharedGraph, act: str) -> None:
    error = refusal(graph, act, None)
    assert "no remote is configured" in error
    assert "dvc remote add --default storage s3://BUCKET/FOLDER" in error


@pytest.mark.parametrize("is_active", [False, True], ids=["make", "activated"])
def test_the_next_command_is_one_that_the_person_s_shell_finds(
    graph: SharedGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_active: bool
) -> None:
    """`make` runs what is in .venv; only who activated it has `dvc` and `python` on the path."""
    clone = with_store(graph, tmp_path)
    (clone.folder / ".venv").symlink_to(sys.prefix)
    monkeypatch.setenv("VIRTUAL_ENV", sys.prefix if is_active else "/another")
    dvc = "dvc" if is_active else ".venv/bin/dvc"
    repro = "dvc repro {}\n" if is_active else 'make run ARGS="{}"\n'
    for path in (tmp_path / "store/files").glob("md5/*/*"):
        path.unlink()
    missing = clone.share("pull").stderr
    assert f"\n  {repro.format('--single-item --force grow count')}" in missing
    (clone.folder / ".dvc/config.local").write_text("", encoding="utf-8")
    assert f"\n  {dvc} remote add --default storage /SHARED" in clone.share("push").stderr


def with_store(graph: SharedGraph, folder: Path) -> SharedGraph:
    """Clone a graph, push what it made to a folder, and let the clone know of it."""
    clone = graph.clone(folder / "clone")
    (folder / "store").mkdir()
    for one in (graph, clone):
        config = f"[core]\nremote = storage\n['remote \"storage\"']\nurl = {folder / 'store'}\n"
        (one.folder / ".dvc/config.local").write_text(config, encoding="utf-8")
    pushed = graph.share("push")
    assert pushed.returncode == 0, pushed.stderr
    return clone


def test_without_a_lock_there_is_nothing_to_pull_by(graph: SharedGraph, tmp_path: Path) -> None:
    clone = with_store(graph, tmp_path)
    (clone.folder / "dvc.lock").unlink()
    done = clone.share("pull")
    assert done.returncode != 0
    assert "dvc.lock records no outs, so there is nothing to pull" in done.stderr
    assert "\n  git pull\n" in done.stderr
    assert "\n  make run\n" in done.stderr


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("size", [0, 200])
def test_a_lock_that_is_empty_or_cut_is_named_with_what_mends_it(
    graph: SharedGraph, tmp_path: Path, act: str, size: int
) -> None:
    clone = with_store(graph, tmp_path)
    lock = clone.folder / "dvc.lock"
    whole = lock.read_text("utf-8")
    lock.write_text(whole[:size], encoding="utf-8")
    done = clone.share(act)
    assert done.returncode != 0
    assert "dvc.lock is empty or cut short" in done.stderr
    assert "\n  .venv/bin/python -m stages.ready\n" in done.stderr
    clone.call("python", "-m", "stages.ready")
    assert lock.read_text("utf-8") == whole
    assert clone.share("pull").returncode == 0


def test_a_file_in_the_way_that_nothing_else_holds_is_named_and_kept(
    graph: SharedGraph, tmp_path: Path
) -> None:
    """As a stage leaves it that was killed."""
    clone = with_store(graph, tmp_path)
    (clone.folder / "tree").mkdir()
    (clone.folder / "tree/1").write_text("half")
    done = clone.share("pull")
    assert done.returncode != 0
    assert "nothing else holds these files:\n  tree/1\n" in done.stderr
    assert (clone.folder / "tree/1").read_text() == "half"
    command = done.stderr.splitlines()[-2]
    clone.call(*command.split())
    assert (clone.folder / "tree/1").read_text("utf-8") == "leaf 1 of 1"
    assert "up to date" in clone.call("dvc", "status")


def attempt_bound(graph: SharedGraph, act: str) -> str:
    """Share as somebody who may not write where modes forbid it; it must fail."""
    done = graph.attempt(*BOUND, sys.executable, "-m", "stages.share", act)
    assert done.returncode != 0
    return done.stderr


def test_a_cache_that_is_read_only_is_told_before_a_pull(
    graph: SharedGraph, tmp_path: Path
) -> None:
    clone = with_store(graph, tmp_path)
    (clone.folder / ".dvc/cache").mkdir(mode=0o555)
    error = attempt_bound(clone, "pull")
    assert ".dvc/cache: may not be written to" in error
    assert "\n  dvc cache dir --local " in error
    assert not (clone.folder / "tree").exists()


def test_a_shared_folder_that_one_may_only_read_is_told_with_the_way_out(
    graph: SharedGraph, tmp_path: Path
) -> None:
    clone = with_store(graph, tmp_path)
    assert clone.share("pull").returncode == 0
    clone.set_params(leaves=2, counting="bytes")
    clone.call("dvc", "repro")
    folders = [path for path in (tmp_path / "store").rglob("*") if path.is_dir()]
    for folder in (tmp_path / "store", *folders):
        folder.chmod(0o555)
    error = attempt_bound(clone, "push")
    assert f"remote 'storage', {tmp_path / 'store'}: does not let us in" in error
    assert "ask the folder's owner for the right to read and write it" in error
    for folder in (tmp_path / "store", *folders):
        folder.chmod(0o755)


def test_what_was_run_is_pulled_and_what_was_not_is_named(
    graph: SharedGraph, tmp_path: Path
) -> None:
    clone = with_store(graph, tmp_path)
    more = "  more:\n    cmd: echo 1 > more\n    outs: [more]\n"
    path = clone.folder / "dvc.yaml"
    path.write_text(path.read_text("utf-8") + more, encoding="utf-8")
    done = clone.share("pull")
    assert done.returncode == 0, done.stderr
    assert "dvc.lock records no run of more. Next: make run" in done.stdout
    assert (clone.folder / "tree/1").read_text("utf-8") == "leaf 1 of 1"


def test_an_unknown_remote_is_named_with_the_known_ones(graph: SharedGraph, tmp_path: Path) -> None:
    refusal(graph, "pull", str(tmp_path / "away"))
    done = graph.share("pull", "--remote", "attic")
    assert done.returncode != 0
    assert "no remote 'attic'; known: storage" in done.stderr
    assert "\n  dvc remote add attic ssh://USER@HOST/FOLDER\n" in done.stderr
    assert "\n  dvc remote modify attic verify true\n" in done.stderr


def test_a_kind_of_remote_that_the_lock_does_not_reach_is_told(graph: SharedGraph) -> None:
    error = refusal(graph, "push", "gs://bucket/recipe")
    assert "remote 'storage': gs is supported, but requires 'dvc-gs'" in error
    assert "\n  dvc remote modify storage url ADDRESS\n" in error


def test_an_address_without_a_scheme_is_told_with_its_settings(
    graph: SharedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3secret")
    error = refusal(graph, "push", "s3://bucket/recipe", endpointurl="127.0.0.1:9000")
    assert "does not answer (Invalid endpoint: 127.0.0.1:9000)" in error
    assert "dvc config --list --show-origin | grep storage" in error


@pytest.mark.parametrize("act", ACTS)
def test_a_wrong_secret_of_s3_is_refused(
    graph: SharedGraph, bucket: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    error = refusal(graph, act, "s3://bucket/recipe")
    assert "remote 'storage', s3://bucket/recipe: does not let us in" in error
    assert "dvc remote modify --local storage secret_access_key SECRET" in error
    assert not list(bucket.iterdir())


def test_no_credentials_of_s3_are_missed(
    graph: SharedGraph, bucket: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    error = refusal(graph, "pull", "s3://bucket/recipe")
    assert "does not let us in (Unable to locate credentials)" in error
    assert "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in error
    assert not list(bucket.iterdir())


def test_credentials_of_s3_in_the_local_config_are_used(
    graph: SharedGraph, bucket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the refusals advise; without these two, as the test before shows, nothing works."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (graph.folder / ".dvc/config.local").write_text("", encoding="utf-8")
    graph.call("dvc", "remote", "add", "--local", "--default", "storage", "s3://bucket/recipe")
    for name, value in (("access_key_id", "someone"), ("secret_access_key", "s3secret")):
        graph.call("dvc", "remote", "modify", "--local", "storage", name, value)
    pushed = graph.share("push")
    assert pushed.returncode == 0, pushed.stderr
    assert list((bucket / "recipe").rglob("*.dir"))
    assert "config.local" not in graph.git("status", "--porcelain", "--untracked-files=all")


def test_a_bucket_that_does_not_exist_is_named(graph: SharedGraph, bucket: Path) -> None:
    error = refusal(graph, "push", "s3://pail/recipe")
    assert "s3://pail/recipe: there is no such bucket" in error
    assert not list(bucket.iterdir())


def test_a_key_that_the_ssh_server_does_not_know_is_refused(
    graph: SharedGraph, sshd: SshServer, tmp_path: Path
) -> None:
    error = refusal(graph, "push", f"{sshd.url}{tmp_path}", keyfile=sshd.stranger)
    assert "does not let us in" in error
    assert "dvc remote modify --local storage keyfile PATH" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "why"),
    [(None, "[Errno 2] No such file or directory: '"), ("no key", "Invalid private key")],
    ids=["absent", "no_key"],
)
def test_a_key_s_file_that_is_none_is_not_taken_for_a_folder_that_the_server_lacks(
    graph: SharedGraph, sshd: SshServer, tmp_path: Path, content: str | None, why: str
) -> None:
    key = tmp_path / "my key"
    if content:
        key.write_text(content, encoding="utf-8")
    error = refusal(graph, "push", f"{sshd.url}{tmp_path}", keyfile=key)
    assert f"does not let us in ({why}" in error
    assert "dvc remote modify --local storage keyfile PATH" in error
    user, port = sshd.url.removeprefix("ssh://").split("@127.0.0.1:")
    assert f"\n  ssh -p {port} -i '{key}' {user}@127.0.0.1\n" in error


def test_a_folder_that_the_ssh_server_lacks_is_named(
    graph: SharedGraph, sshd: SshServer, tmp_path: Path
) -> None:
    error = refusal(graph, "push", f"{sshd.url}{tmp_path}/away", keyfile=sshd.key)
    assert "there is no such folder" in error


@pytest.mark.parametrize("act", ["pull", "push"])
def test_a_shared_folder_that_is_not_mounted_is_not_made(
    graph: SharedGraph, tmp_path: Path, act: str
) -> None:
    error = refusal(graph, act, str(tmp_path / "away"))
    assert "there is no such folder. Is the address right, and the disk mounted?" in error
    assert not (tmp_path / "away").exists()


@pytest.mark.parametrize("scheme", ["s3", "ssh"])
def test_a_server_that_is_away_is_called_so(
    graph: SharedGraph, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3secret")
    port = free_port()  # nobody listens there
    if scheme == "s3":
        settings = {"endpointurl": f"http://127.0.0.1:{port}"}
        error = refusal(graph, "pull", "s3://bucket/recipe", **settings)
    else:
        error = refusal(graph, "pull", f"ssh://127.0.0.1:{port}/store")
    assert "does not answer" in error
    assert str(port) in error
    assert "dvc config --list --show-origin | grep storage" in error


def test_a_server_that_says_nothing_is_not_waited_for_forever(
    graph: SharedGraph, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"ssh://127.0.0.1:{silent.getsockname()[1]}/store"
        config = f"['remote \"silent\"']\nurl = {url}\n"
        (graph.folder / ".dvc/config.local").write_text(config, encoding="utf-8")
        with (
            Repo(str(graph.folder)) as repo,
            pytest.raises(ConnectionError, match="does not answer"),
        ):
            open_place(repo, "silent")
