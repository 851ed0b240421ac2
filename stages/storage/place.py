"""The remote that DVC's config names: opened, and asked whether it answers."""

import shlex
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncssh import Error as SshError
from asyncssh import KeyImportError
from botocore.exceptions import BotoCoreError, NoCredentialsError, PartialCredentialsError
from dvc.config import ConfigError, NoRemoteError, RemoteNotFoundError
from dvc.data_cloud import Remote
from dvc.repo import Repo

from stages.harness.dvc_command import DVC

ANSWER_S = 30.0  # a remote that says nothing for so long is called unreachable
# Of folders and sockets, of S3, of SSH; of a key or an address that neither of them can read.
REMOTE_ERRORS = (OSError, BotoCoreError, SshError, ValueError)
HOW_TO_BE_LET_IN = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in the environment, or\n"
    f"  {DVC} remote modify --local {{name}} access_key_id KEY\n"
    f"  {DVC} remote modify --local {{name}} secret_access_key SECRET\n"
    "(--local: in .dvc/config.local, which Git ignores)",
    "ssh": "have ssh-agent hold a key that the server knows, or name its file\n"
    f"  {DVC} remote modify --local {{name}} keyfile PATH\n"
    "(--local: in .dvc/config.local, which Git ignores), and try\n"
    "  {ssh}",
    "local": "ask the folder's owner for the right to read and write it",
}


class Place:
    """Where the recipe's objects are kept for others: a bucket, a folder, a folder behind SSH."""

    def __init__(self, remote: Remote) -> None:
        """Take what DVC made of its config; nothing is sent yet."""
        self.name: str = remote.name
        self.fs = remote.fs
        self.root: str = remote.path
        self.address: str = remote.fs.unstrip_protocol(remote.path)
        self.objects: Any = remote.odb  # DVC's object database, that its push and pull use

    def ask(self) -> None:
        """Make sure that it answers, lets us in and exists.

        Raises:
            OSError: if not; the message tells what to do.
        """
        # S3 has no folders: only the bucket can be missing.
        root = self.root.split("/")[0] if self.fs.protocol == "s3" else self.root
        try:
            _within(ANSWER_S, lambda: self.fs.fs.info(root))  # the first use of `fs.fs` connects
        except REMOTE_ERRORS as error:
            raise self.explained(error) from error

    def explained(self, error: Exception) -> OSError:
        """Say in words what an error of the remote means, and the next command."""
        where = f"remote {self.name!r}, {self.address}"
        is_refused = isinstance(
            error, PermissionError | NoCredentialsError | PartialCredentialsError
        )
        if is_refused or self._is_of_key(error):
            next_step = HOW_TO_BE_LET_IN.get(
                self.fs.protocol, "look at its settings in .dvc/config"
            )
            return PermissionError(
                f"{where}: does not let us in ({error}). Next: "
                + next_step.format(name=self.name, ssh=self._ssh())
            )
        if isinstance(error, FileNotFoundError):
            kind = "bucket" if self.fs.protocol == "s3" else "folder"
            return FileNotFoundError(
                f"{where}: there is no such {kind}. Is the address right"
                f"{', and the disk mounted' if self.fs.protocol == 'local' else ''}? If so, make "
                f"the {kind}; otherwise\n  {DVC} remote modify {self.name} url ADDRESS"
            )
        return ConnectionError(
            f"{where}: does not answer ({error or type(error).__name__}). Is the address right, "
            f"and the server up and within reach of this machine? Its settings:\n"
            f"  {DVC} config --list --show-origin | grep {self.name}"
        )

    def _is_of_key(self, error: Exception) -> bool:
        """Tell whether an error is of the file with our key for SSH, and not of the remote."""
        keys = self.fs.fs_args.get("client_keys") or []
        named = getattr(error, "filename", None)
        is_named = isinstance(named, str) and Path(named) in map(Path, keys)
        return is_named or isinstance(error, KeyImportError)

    def _ssh(self) -> str:
        """Give the command that tries the same as DVC does, by hand."""
        settings = self.fs.fs_args
        words = ["ssh"]
        if port := settings.get("port"):
            words += ["-p", str(port)]
        for key in settings.get("client_keys") or []:
            words += ["-i", key]
        user, host = settings.get("username"), settings.get("host", "")
        return shlex.join([*words, f"{user}@{host}" if user else host])


def how_to_add(name: str = "storage", *, is_default: bool = True) -> str:
    """Give the commands that add a remote, one for each kind."""
    new = f"--default {name}" if is_default else name
    return f"""\
  {DVC} remote add {new} s3://BUCKET/FOLDER
  {DVC} remote add {new} ssh://USER@HOST/FOLDER
  {DVC} remote add {new} /SHARED/FOLDER
then, that a plain `dvc pull` hashes, too,
  {DVC} remote modify {name} verify true
and commit .dvc/config; README, "Share results", says more"""


def open_place(repo: Repo, name: str | None) -> Place:
    """Open a remote that answers.

    Args:
        repo: this repository.
        name: of the remote; None is the default one, `core.remote`.

    Raises:
        ValueError: if there is no such remote, or its config is wrong.
        OSError: if it does not answer, does not let us in, or does not exist.
    """
    remotes = repo.config["remote"]
    name = name or repo.config["core"].get("remote")
    known = ", ".join(sorted(remotes)) or "none"
    try:
        remote = repo.cloud.get_remote(name)
    except NoRemoteError as error:
        if remotes:
            raise ValueError(
                f"no default remote is set; known: {known}. Choose one:\n"
                f"  {DVC} remote default NAME"
            ) from error
        raise ValueError(
            f"no remote is configured, so there is no place to share results. Next, one of\n"
            f"{how_to_add()}"
        ) from error
    except RemoteNotFoundError as error:
        raise ValueError(
            f"DVC's config has no remote {name!r}; known: {known}. To add one:\n"
            + how_to_add(str(name), is_default=False)
        ) from error
    except ConfigError as error:
        raise ValueError(f"remote {name!r}: {error}") from error
    except ImportError as error:
        raise ValueError(
            f"remote {name!r}: {error}. What the lock installs reaches s3://, ssh:// and folders; "
            f"to go there instead:\n  {DVC} remote modify {name} url ADDRESS"
        ) from error
    if remote.worktree or remote.fs.version_aware:
        raise ValueError(
            f"remote {name!r} is version_aware or a worktree: what lies there is not named by its "
            "content, so it cannot be verified. Take these two options away"
        )
    place = Place(remote)
    place.ask()
    return place


def _within(limit_s: float, function: Callable[[], object]) -> None:
    """Call a function that may hang; its errors pass through.

    Raises:
        TimeoutError: if it has not come back in time; it is left behind in its thread.
    """
    errors: list[BaseException] = []

    def call() -> None:
        try:
            function()
        except BaseException as error:  # noqa: BLE001 # raised below, in the caller's thread
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise TimeoutError(f"nothing heard for {limit_s:.0f} s")
    if errors:
        raise errors[0]
