"""A real OpenSSH server on loopback that lets one key in."""

import getpass
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.bucket_server import free_port, wait_for

SETTINGS = """\
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
Subsystem sftp internal-sftp
"""


@dataclass(frozen=True)
class SshServer:
    """Where it listens, and what a client needs."""

    url: str  # ssh://USER@HOST:PORT
    key: Path  # that it lets in
    stranger: Path  # that it does not


def make_key(path: Path) -> Path:
    command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(path)]
    subprocess.run(command, check=True)
    return path


@contextmanager
def ssh_server(folder: Path) -> Iterator[SshServer]:
    """Run sshd with keys and settings of its own in a folder, which it makes."""
    program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin:/usr/local/sbin")
    assert program, "the tests need OpenSSH's sshd: apt-get install openssh-server"
    folder.mkdir(parents=True)
    port = free_port()
    make_key(folder / "host_key")
    key, stranger = make_key(folder / "key"), make_key(folder / "stranger")
    settings = folder / "sshd_config"
    settings.write_text(SETTINGS.format(port=port, folder=folder), encoding="utf-8")
    if os.geteuid() == 0 and sys.platform == "linux":
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as Debian's service does at its start
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([program, "-D", "-e", "-f", str(settings)], stderr=log)
    try:
        wait_for(port, process)
        yield SshServer(f"ssh://{getpass.getuser()}@127.0.0.1:{port}", key, stranger)
    finally:
        process.terminate()
        process.wait()
