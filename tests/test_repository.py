"""Claims about the repository itself: the lock, the notices, what is committed and how large."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MB = 10**6
MAX_TREE_BYTES = 54 * MB
MAX_WEIGHTS_BYTES = 44 * MB

# An address that pip, npm or uv would download from; written so that this file does not match.
INDEX_URL = re.compile(
    r"https?://[^\s\"'<>]+/(?:simple|whl)(?![\w-])"
    r"|index[-_]url[\"']?\s*[=:\s]\s*[\"']?\w+://"
    r"|\bregistry\s*[=:]\s*[\"']?\w+://"
    r"|\"resolved\":\s*\"\w+:",
    re.IGNORECASE,
)


def normalized(name: str) -> str:
    """Give a distribution's name the form in which PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(path: Path) -> dict[str, str]:
    """Map each distribution named in a requirements file to what follows its name."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        requirement = line.split("#")[0].strip()
        if match := re.match(r"([A-Za-z0-9][\w.-]*)(.*)", requirement):
            found[normalized(match[1])] = match[2].split(";")[0].strip(" \\")
    return found


def git_files(*options: str) -> list[Path]:
    """List the files that git knows and the work tree holds; skip the test where git is absent."""
    try:
        listing = subprocess.run(
            ["git", "ls-files", "-z", *options], cwd=ROOT, capture_output=True, check=True
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git work tree")
    paths = {ROOT / name for name in listing.decode().split("\0") if name}
    return sorted(path for path in paths if path.is_file())


def tracked_bytes(pattern: str) -> int:
    tracked = git_files()
    if not tracked:
        pytest.skip("nothing is committed yet")
    return sum(path.stat().st_size for path in tracked if path.match(pattern))


def test_the_lock_pins_every_direct_requirement_exactly() -> None:
    locked = requirements(ROOT / "requirements.txt")
    for name, wanted in requirements(ROOT / "requirements.in").items():
        assert name in locked, f"{name} is in requirements.in only: run `make lock`"
        if wanted:
            assert locked[name] == wanted


def test_every_line_of_the_lock_is_one_exact_public_version() -> None:
    for name, version in requirements(ROOT / "requirements.txt").items():
        assert re.fullmatch(r"==[\w.!]+", version), f"{name}{version}"


def test_the_lock_with_hashes_is_the_lock_but_for_torch() -> None:
    hashed = requirements(ROOT / "requirements.hashes.txt")
    locked = requirements(ROOT / "requirements.txt")
    assert hashed == {name: version for name, version in locked.items() if name != "torch"}
    assert locked["torch"]


def test_every_package_of_the_lock_with_hashes_has_some() -> None:
    text = (ROOT / "requirements.hashes.txt").read_text(encoding="utf-8")
    without_comments = re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE)
    packages = without_comments.replace("\\\n", " ").splitlines()
    assert len(packages) > 100
    for package in packages:
        assert re.search(r" --hash=sha256:[0-9a-f]{64}(?: |$)", package), package


def test_an_audit_of_packages_that_are_unknown_fails() -> None:
    """pip-audit skips what it finds nothing about, and by itself calls that a pass."""
    done = subprocess.run(
        ["make", "--dry-run", "audit"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "--strict" in done.stdout
    assert "--requirement requirements.txt" in done.stdout


def test_dvc_s_analytics_are_off() -> None:
    """In the committed config, so for everybody; DVC itself is asked."""
    ask = "from dvc.analytics import is_enabled; raise SystemExit(is_enabled())"
    environment = {k: v for k, v in os.environ.items() if k not in ("DVC_NO_ANALYTICS", "DVC_TEST")}
    done = subprocess.run([sys.executable, "-c", ask], cwd=ROOT, env=environment, check=False)
    assert done.returncode == 0


# What remotes and hubs let people in by. Written so that this file does not match.
SECRETS = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"  # an AWS access key's id
    r"|-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----"
    r"|\b(?:hf_[A-Za-z0-9]{30,}|gh[pousr]_[A-Za-z0-9]{36,}|github_pat_\w{40,})"
    r"|\b(?:secret_access_key|access_key_id|session_token|password|passphrase|sas_token"
    r"|connection_string|account_key|client_secret)[\"']?[ \t]*[=:][ \t]*[\"']?"
    r"(?![A-Z_]+\b)[^\s\"'<{$(\[,|)]\S{3,}"  # words in capitals stand for a secret
    r"|://[^\s/:@{}<>\"']+:[^\s/@{}<>\"']+@",
)

# Addresses in tests which show that such an address is refused.
INVENTED = {"://me:word@", "://me:secret@"}


@pytest.mark.parametrize(
    ("line", "is_secret"),
    [
        ("AKIA" + "ABCDEFGHIJKLMNOP", True),
        ("-----BEGIN OPENSSH " + "PRIVATE KEY-----", True),
        ("    secret_access_key " + "= wJalrXUtnFEMI/K7MDENG", True),
        ("    password: " + "hunter2", True),
        ("    secret_access_key " + "= HalrXUtnFEMI/K7MDENG", True),
        ('"passphrase' + '": "open sesame"', True),
        ("url = ssh://someone:" + "hunter2@example.org/store", True),
        ("HF_TOKEN=hf_" + "a" * 34, True),
        ("dvc remote modify --local storage secret_access_key SECRET", False),
        ("url = ssh://someone@example.org:2222/store", False),
        ("PasswordAuthentication no", False),
    ],
)
def test_secrets_are_recognised(line: str, is_secret: bool) -> None:
    assert bool(SECRETS.search(line)) == is_secret


def test_no_tracked_file_holds_a_secret() -> None:
    found = []
    for path in git_files("--cached", "--others", "--exclude-standard"):
        content = path.read_bytes()
        text = "" if b"\0" in content[:8192] else content.decode("utf-8", errors="replace")
        found += [f"{path}: {m[0]}" for m in SECRETS.finditer(text) if m[0] not in INVENTED]
    assert not found


def test_git_ignores_the_config_that_holds_credentials() -> None:
    assert not [path for path in git_files() if path.name == "config.local"]
    subprocess.run(["git", "check-ignore", "-q", ".dvc/config.local"], cwd=ROOT, check=True)


def test_the_lock_leaves_cuda_to_the_torch_wheel() -> None:
    forced = [
        name
        for name in requirements(ROOT / "requirements.txt")
        if name.startswith(("nvidia-", "cuda-", "triton"))
    ]
    assert not forced, "these would come to those with a CPU wheel: add them to no-emit-package"


def test_each_direct_requirement_says_why() -> None:
    lines = (ROOT / "requirements.in").read_text(encoding="utf-8").split("# Development")[0]
    silent = [line for line in lines.splitlines() if line and "#" not in line]
    assert not silent


def test_notice_names_exactly_the_packages_of_pictures_and_of_scripts() -> None:
    packages: dict[str, str] = {}
    for folder in ("models/base", ".dvc/plots"):
        manifest = json.loads((ROOT / folder / "package.json").read_text(encoding="utf-8"))
        packages |= manifest["dependencies"]
    notice = (ROOT / "NOTICE").read_text(encoding="utf-8")
    named = re.findall(r"^ +((?:@[\w-]+/)?[\w-]+) (\d+\.\d+\.\d+)\b", notice, re.MULTILINE)
    assert dict(named) == packages


def test_the_apache_licence_that_notice_refers_to_is_here_in_full() -> None:
    text = (ROOT / "licenses/Apache-2.0.txt").read_text(encoding="utf-8")
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in text
    assert "END OF TERMS AND CONDITIONS" in text


@pytest.mark.parametrize(
    ("line", "is_index"),
    [
        ("--extra-index-url" + " https://example.org/pypi", True),
        ("PIP_INDEX_URL" + "=file:///srv/pypi", True),
        ("https://example.org/" + "simple", True),
        ("registry" + "=https://example.org/", True),
        ('"resolved"' + ': "https://example.org/a.tgz"', True),
        ("uv pip compile --no-emit-index-url", False),
        ("https://github.com/microsoft/fluentui-emoji", False),
    ],
)
def test_index_urls_are_recognised(line: str, is_index: bool) -> None:
    assert bool(INDEX_URL.search(line)) == is_index


def test_no_text_file_holds_an_index_url_or_the_path_of_this_checkout() -> None:
    here = re.compile(rf"(?<![\w.:/-]){re.escape(str(ROOT))}\b")
    found = []
    for path in git_files("--cached", "--others", "--exclude-standard"):
        content = path.read_bytes()
        if b"\0" in content[:8192]:
            continue
        text = content.decode("utf-8", errors="replace")
        found += [f"{path}: {m[0]}" for m in (INDEX_URL.search(text), here.search(text)) if m]
    assert not found


def test_the_tree_of_a_clone_is_at_most_54_mb() -> None:
    assert tracked_bytes("*") <= MAX_TREE_BYTES


def test_the_shipped_weights_are_at_most_44_mb() -> None:
    assert tracked_bytes("*.safetensors") <= MAX_WEIGHTS_BYTES
