"""Weights from elsewhere against real servers on loopback: cuts, kills, lies, and tokens kept."""

import errno
import io
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml
from safetensors.numpy import save

from stages.download_weights import run
from stages.harness import patience
from stages.harness.params import load_params
from stages.harness.scratch import exclusive
from stages.remote import transfer
from stages.remote.address import BucketFile, HubFile, WebFile, authorization, parse_source
from stages.remote.partial import BLOCK_BYTES
from stages.remote.weights import WeightsParams
from tests.bucket_server import free_port, s3_server
from tests.weights_server import PIECE_BYTES, Answer, WeightsServer, serving

ROOT = Path(__file__).parent.parent
MB = 1 << 20
TOKEN = "hf_verysecret"


def weights(seed: int, size: int = 6 * MB + 12_345) -> bytes:
    """Make a whole safetensors file of noise."""
    noise = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return bytes(save({"noise": noise}))


WEIGHTS = weights(0)
OTHER_WEIGHTS = weights(1)


def digest(content: bytes) -> str:
    return sha256(content).hexdigest()


def wanted(source: str, content: bytes = WEIGHTS) -> WeightsParams:
    return WeightsParams(
        source=source,
        sha256=digest(content),
        licence="CreativeML-OpenRAIL-M",
        merging_allowed=True,
        attribution="someone",
    )


def fetched(folder: Path, params: WeightsParams) -> bytes:
    """Run the stage and read what it wrote."""
    run("base", folder / "out.safetensors", params, folder / "work")
    return (folder / "out.safetensors").read_bytes()


@pytest.fixture
def server() -> Iterator[WeightsServer]:
    with serving(WeightsServer(WEIGHTS)) as server:
        yield server


@pytest.fixture(autouse=True)
def quiet_surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Let no token, setting or proxy of the machine in, and wait shortly between tries."""
    for name in [n for n in os.environ if n.startswith(("AWS_", "HF_", "CIVITAI_"))]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)


# --- the way it should be ---------------------------------------------------------------------


def test_a_file_arrives_whole_and_another_run_asks_for_nothing(
    server: WeightsServer, tmp_path: Path
) -> None:
    params = wanted(server.link())
    assert fetched(tmp_path, params) == WEIGHTS
    (tmp_path / "out.safetensors").unlink()  # as DVC does before each run
    assert fetched(tmp_path, replace(params, sha256=params.sha256.upper())) == WEIGHTS
    assert len(server.asked) == 1
    assert "range" not in server.asked[0].headers
    assert not list(tmp_path.rglob("*.partial"))
    whole = tmp_path / "work" / params.sha256 / "whole"
    assert whole.samefile(tmp_path / "out.safetensors")


def test_what_is_kept_is_verified_before_it_is_used(server: WeightsServer, tmp_path: Path) -> None:
    params = wanted(server.link())
    whole = tmp_path / "work" / params.sha256 / "whole"
    whole.parent.mkdir(parents=True)
    whole.write_bytes(bytes(len(WEIGHTS)))
    assert fetched(tmp_path, params) == WEIGHTS


# --- cuts and other versions ------------------------------------------------------------------


def test_after_a_cut_only_the_missing_bytes_are_asked_for(
    server: WeightsServer, tmp_path: Path
) -> None:
    server.script = [Answer(cut_after=2 * MB + 5), Answer(cut_after=MB + 7)]
    assert fetched(tmp_path, wanted(server.link())) == WEIGHTS
    first, second, third = server.asked
    assert "range" not in first.headers
    assert second.headers["if-range"] == third.headers["if-range"] == '"one"'
    assert second.start >= 2 * MB
    assert third.start > second.start
    assert server.sent <= len(WEIGHTS) + 2 * BLOCK_BYTES


@pytest.mark.parametrize("knows_if_range", [True, False])
def test_a_file_that_changed_between_tries_is_fetched_from_its_start(
    knows_if_range: bool,
    server: WeightsServer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    server.script = [Answer(cut_after=2 * MB)]
    server.always = Answer(503)
    with pytest.raises(ConnectionError, match="are kept: start again later"):
        fetched(tmp_path, wanted(server.link(), OTHER_WEIGHTS))
    server.always = None
    server.content, server.etag = OTHER_WEIGHTS, '"two"'
    server.knows_if_range = knows_if_range
    assert fetched(tmp_path, wanted(server.link(), OTHER_WEIGHTS)) == OTHER_WEIGHTS
    assert server.asked[-1].start == 0
    assert "do not fit" not in capfd.readouterr().err  # seen at once, not when all had come


@pytest.mark.parametrize("etag", ["", 'W/"weak"'])
def test_parts_that_do_not_fit_are_found_by_the_hash(
    etag: str, server: WeightsServer, tmp_path: Path
) -> None:
    server.content, server.etag = OTHER_WEIGHTS, etag
    folder = tmp_path / "work" / digest(OTHER_WEIGHTS)
    folder.mkdir(parents=True)
    (folder / "partial").write_bytes(WEIGHTS[: 2 * MB])
    assert fetched(tmp_path, wanted(server.link(), OTHER_WEIGHTS)) == OTHER_WEIGHTS
    assert [asked.start for asked in server.asked] == [2 * MB, 0]
    assert not any("if-range" in asked.headers for asked in server.asked)


def test_more_bytes_kept_than_the_file_has_are_dropped(
    server: WeightsServer, tmp_path: Path
) -> None:
    folder = tmp_path / "work" / digest(WEIGHTS)
    folder.mkdir(parents=True)
    (folder / "partial").write_bytes(WEIGHTS + b"more")
    assert fetched(tmp_path, wanted(server.link())) == WEIGHTS
    assert server.sent == len(WEIGHTS)


def test_a_server_without_ranges_sends_the_file_again(
    server: WeightsServer, tmp_path: Path
) -> None:
    server.knows_ranges = False
    server.script = [Answer(cut_after=3 * MB)]
    assert fetched(tmp_path, wanted(server.link())) == WEIGHTS
    assert server.sent == 3 * MB + len(WEIGHTS)


def test_a_server_that_always_cuts_at_one_place_is_left_alone(
    server: WeightsServer, tmp_path: Path
) -> None:
    server.knows_ranges = False
    server.always = Answer(cut_after=MB + 9)
    with pytest.raises(ConnectionError, match=r"failed: .*\(asked 6 times\)"):
        fetched(tmp_path, wanted(server.link()))
    assert len(server.asked) == 7


# --- busy servers -----------------------------------------------------------------------------


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_busy_server_is_asked_again(status: int, server: WeightsServer, tmp_path: Path) -> None:
    server.script = [Answer(status), Answer(status)]
    assert fetched(tmp_path, wanted(server.link())) == WEIGHTS
    assert len(server.asked) == 3


def test_retry_after_is_obeyed(server: WeightsServer, tmp_path: Path) -> None:
    server.script = [Answer(429, {"Retry-After": "1"})]
    assert fetched(tmp_path, wanted(server.link())) == WEIGHTS
    first, second = server.asked
    assert second.at - first.at >= 1


def test_a_server_that_asks_for_hours_is_left_alone(server: WeightsServer, tmp_path: Path) -> None:
    server.always = Answer(429, {"Retry-After": "7200"})
    with pytest.raises(ConnectionError, match="the server answers 429"):
        fetched(tmp_path, wanted(server.link()))
    assert len(server.asked) == 1


def test_a_silent_server_is_asked_again(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transfer, "TIMEOUT", httpx.Timeout(0.2))
    server.script = [Answer(silent_s=0.6)]
    assert fetched(tmp_path, wanted(server.link())) == WEIGHTS


def test_no_server_is_an_error_that_names_the_host(tmp_path: Path) -> None:
    source = f"http://127.0.0.1:{free_port()}/model.safetensors"
    with pytest.raises(ConnectionError, match=r"connection to 127\.0\.0\.1 failed"):
        fetched(tmp_path, wanted(source))


# --- other files than the one wanted ----------------------------------------------------------


def test_a_wrong_hash_shows_both_and_the_file_is_not_fetched_twice(
    server: WeightsServer, tmp_path: Path
) -> None:
    out = tmp_path / "out.safetensors"
    out.write_bytes(b"older")
    with pytest.raises(ValueError, match="not the one in the params") as failure:
        fetched(tmp_path, wanted(server.link(), OTHER_WEIGHTS))
    assert digest(WEIGHTS) in str(failure.value)
    assert digest(OTHER_WEIGHTS) in str(failure.value)
    assert out.read_bytes() == b"older"
    assert fetched(tmp_path, wanted(server.link())) == WEIGHTS
    assert len(server.asked) == 1


def pickled() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("archive/data.pkl", random.Random(0).randbytes(60 * MB))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"<!DOCTYPE html><title>Log in</title>" + b" " * 60 * MB, "a web page.*wants a login"),
        (pickled(), "a pickle"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"no", "cut short: 2 bytes"),
    ],
    ids=["page", "pickle", "pointer", "short"],
)
def test_other_formats_are_named_at_the_first_block(
    content: bytes, message: str, server: WeightsServer, tmp_path: Path
) -> None:
    server.content = content
    with pytest.raises(ValueError, match=message) as failure:
        fetched(tmp_path, wanted(server.link(), content))  # even though the hash is right
    assert str(tmp_path) not in str(failure.value)
    assert server.sent < max(20 * MB, len(content) // 2) or len(content) < MB
    assert not (tmp_path / "out.safetensors").exists()
    server.content = WEIGHTS
    assert fetched(tmp_path, wanted(server.link())) == WEIGHTS


def test_a_safetensors_file_that_was_cut_by_its_maker_is_refused(
    server: WeightsServer, tmp_path: Path
) -> None:
    server.content = WEIGHTS[:-1]
    with pytest.raises(ValueError, match="cut short: its header promises"):
        fetched(tmp_path, wanted(server.link(), WEIGHTS[:-1]))
    assert not (tmp_path / "out.safetensors").exists()


# --- tokens -----------------------------------------------------------------------------------


def test_the_hub_is_asked_where_hf_endpoint_says(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", server.link("").rstrip("/"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetched(tmp_path, wanted("hf:owner/repo/sub/a model.safetensors@refs/pr/1")) == WEIGHTS
    (asked,) = server.asked
    assert asked.path == "/owner/repo/resolve/refs%2Fpr%2F1/sub/a%20model.safetensors"
    assert asked.headers["authorization"] == f"Bearer {TOKEN}"


def test_a_token_stays_with_its_server_when_that_redirects(
    server: WeightsServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    with serving(WeightsServer(b"")) as hub:
        target = server.link("cdn?X-Amz-Signature=alsosecret", "localhost")
        near = Answer(307, {"Location": "/renamed/model.safetensors"})
        far = Answer(302, {"Location": target, "X-Linked-ETag": f'"{digest(WEIGHTS)}"'})
        hub.script = [near, far, far]
        server.script = [Answer(cut_after=2 * MB)]
        monkeypatch.setenv("HF_ENDPOINT", hub.link(""))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        assert fetched(tmp_path, wanted("hf:owner/repo/model.safetensors@main")) == WEIGHTS
        assert {asked.headers["authorization"] for asked in hub.asked} == {f"Bearer {TOKEN}"}
    assert len(server.asked) == 2
    assert server.asked[1].start > 0
    assert not any("authorization" in asked.headers for asked in server.asked)
    printed = "".join(capfd.readouterr())
    assert "secret" not in printed
    assert "MB to come" in printed


@pytest.mark.parametrize(
    ("link", "variable"),
    [
        ("https://huggingface.co/a/b/resolve/main/c", "HF_TOKEN"),
        ("https://civitai.com/api/download/models/1", "CIVITAI_TOKEN"),
        ("http://huggingface.co/a/b/resolve/main/c", None),
        ("https://huggingface.co.example.org/a", None),
        ("https://huggingface.co@example.org/a", None),
        ("https://huggingface.co:444/a", None),
        ("https://cdn.civitai.com/a", None),
    ],
)
def test_each_token_has_one_server(
    link: str, variable: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HF_TOKEN", "CIVITAI_TOKEN"):
        monkeypatch.setenv(name, f" {name} value\n")
    wanted_header = {"Authorization": f"Bearer {variable} value"} if variable else {}
    assert authorization(link) == wanted_header


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("token", ["", TOKEN])
def test_a_gated_file_asks_for_the_token(
    status: int,
    token: str,
    server: WeightsServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    server.always = Answer(status, {"X-Error-Code": "GatedRepo"})
    monkeypatch.setenv("HF_ENDPOINT", server.link(""))
    monkeypatch.setenv("HF_TOKEN", token)
    said = "HF_TOKEN is set, but" if token else "Set the environment variable HF_TOKEN to a read"
    with pytest.raises(ValueError, match=rf"answers {status} GatedRepo\. {said}") as failure:
        fetched(tmp_path, wanted("hf:owner/repo/model.safetensors@main"))
    assert "/owner/repo" in str(failure.value)
    assert "secret" not in str(failure.value)
    assert len(server.asked) == 1


def test_a_missing_file_of_the_hub_says_where_to_look(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.always = Answer(404, {"X-Error-Code": "EntryNotFound"})
    monkeypatch.setenv("HF_ENDPOINT", server.link(""))
    with pytest.raises(ValueError, match=r"404 EntryNotFound\. .*/owner/repo/tree/v2\?"):
        fetched(tmp_path, wanted("hf:owner/repo/model.safetensors@v2"))


def test_a_hash_that_the_hub_announces_is_compared_first(
    server: WeightsServer, tmp_path: Path
) -> None:
    header = {"Location": "/there", "X-Linked-ETag": f'"{digest(OTHER_WEIGHTS)}"'}
    server.script = [Answer(302, header)]
    with pytest.raises(ValueError, match=f"says that its SHA-256 is {digest(OTHER_WEIGHTS)}"):
        fetched(tmp_path, wanted(server.link()))
    assert len(server.asked) == 1


@pytest.mark.parametrize(
    ("target", "message"),
    [("file:///etc/hostname", "redirects to a 'file'"), ("/again", "more than 5 redirects")],
)
def test_redirects_lead_to_servers_and_to_an_end(
    target: str, message: str, server: WeightsServer, tmp_path: Path
) -> None:
    server.always = Answer(302, {"Location": target})
    with pytest.raises(ValueError, match=message):
        fetched(tmp_path, wanted(server.link()))


# --- S3 ---------------------------------------------------------------------------------------


def test_a_file_comes_from_s3_signed_and_from_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    source = "s3://bucket/some folder/model.safetensors"
    with s3_server(tmp_path / "s3", monkeypatch) as bucket:
        (bucket / "some folder").mkdir()
        (bucket / "some folder" / "model.safetensors").write_bytes(WEIGHTS)
        folder = tmp_path / "work" / digest(WEIGHTS)
        folder.mkdir(parents=True)
        (folder / "partial").write_bytes(WEIGHTS[: 2 * MB])
        assert fetched(tmp_path, wanted(source)) == WEIGHTS
        printed = "".join(capfd.readouterr())
        assert f"{(len(WEIGHTS) - 2 * MB) / 1e6:.1f} MB to come" in printed

        with pytest.raises(ValueError, match=r"404 NoSuchKey.*aws s3 ls s3://bucket/"):
            fetched(tmp_path, wanted("s3://bucket/other.safetensors", OTHER_WEIGHTS))
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3secret-misspelt")
        with pytest.raises(ValueError, match=r"403 SignatureDoesNotMatch\. .*AWS_") as failure:
            fetched(tmp_path, wanted(source, OTHER_WEIGHTS))
        monkeypatch.delenv("AWS_ACCESS_KEY_ID")
        monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ValueError, match="403 MissingAuthenticationToken"):
            fetched(tmp_path, wanted(source, OTHER_WEIGHTS))
        printed += str(failure.value) + "".join(capfd.readouterr())
    assert "secret" not in printed
    assert "X-Amz" not in printed


def test_without_credentials_a_bucket_is_asked_as_by_the_public(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.link(""))
    assert fetched(tmp_path, wanted("s3://bucket/model.safetensors")) == WEIGHTS
    assert [asked.path for asked in server.asked] == ["/bucket/model.safetensors"]


def test_a_bucket_in_another_region_is_named(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.link(""))
    body = b"<Error><Code>PermanentRedirect</Code></Error>"
    server.always = Answer(301, {"x-amz-bucket-region": "eu-west-3"}, body)
    with pytest.raises(ValueError, match=r"301 PermanentRedirect, bucket in eu-west-3\. .*REGION"):
        fetched(tmp_path, wanted("s3://bucket/model.safetensors"))


# --- paths ------------------------------------------------------------------------------------


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.safetensors").write_bytes(WEIGHTS)
    return tmp_path


def test_a_file_of_the_repository_is_copied(repository: Path) -> None:
    assert fetched(repository, wanted("mine.safetensors")) == WEIGHTS
    # a second name for the owner's file would let an edit of it into DVC's cache
    assert not (repository / "mine.safetensors").samefile(repository / "out.safetensors")


@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (None, FileNotFoundError, "mine.safetensors: no such file. Put it there"),
        (OTHER_WEIGHTS, ValueError, f"Wanted {digest(WEIGHTS)}, got {digest(OTHER_WEIGHTS)}"),
        (b"PK\x03\x04" + bytes(99), ValueError, "a pickle"),
        (WEIGHTS[:-1], ValueError, "cut short"),
    ],
    ids=["missing", "other", "pickle", "short"],
)
def test_a_bad_path_leaves_the_old_file(
    content: bytes | None, kind: type[Exception], message: str, repository: Path
) -> None:
    (repository / "out.safetensors").write_bytes(b"older")
    (repository / "mine.safetensors").unlink()
    if content is not None:
        (repository / "mine.safetensors").write_bytes(content)
    with pytest.raises(kind, match=message):
        fetched(repository, wanted("mine.safetensors"))
    assert (repository / "out.safetensors").read_bytes() == b"older"
    assert not list(repository.rglob("*.partial"))


def test_what_no_release_may_hold_is_told_before_days_of_training(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    params = replace(wanted("mine.safetensors"), merging_allowed=False)
    assert fetched(repository, params) == WEIGHTS
    assert "merging_allowed of base is false" in capsys.readouterr().err


def test_a_file_is_not_copied_onto_itself(repository: Path) -> None:
    with pytest.raises(ValueError, match="both source and --out"):
        run("base", repository / "mine.safetensors", wanted("mine.safetensors"))
    assert (repository / "mine.safetensors").read_bytes() == WEIGHTS


# --- params -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("models/a.safetensors", Path("models/a.safetensors")),
        ("https://civitai.com/api/download/models/1?type=Model", WebFile),
        ("s3://my-bucket/a/b.safetensors", BucketFile("my-bucket", "a/b.safetensors")),
        ("hf:o/r/f.safetensors", HubFile("o/r", "f.safetensors", "main")),
        ("hf:o/r.x/d/f.safetensors@1a2b", HubFile("o/r.x", "d/f.safetensors", "1a2b")),
    ],
)
def test_sources_are_read(source: str, meant: Any) -> None:
    found = parse_source(source)
    assert found == (WebFile(source) if meant is WebFile else meant)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "neither an https:"),
        ("/mnt/a.safetensors", "nor a path inside"),
        ("../a.safetensors", "nor a path inside"),
        ("ftp://host/a.safetensors", "neither an https:"),
        ("https://", "is not a link"),
        ("https://host:port/a", "is not a link"),
        ("https://me:secret@host/a", "password or a token"),
        ("https://civitai.com/api/download/models/1?token=secret", "CIVITAI_TOKEN"),
        ("s3:bucket/key", "s3://BUCKET/KEY"),
        ("s3://bucket", "s3://BUCKET/KEY"),
        ("hf:owner/f.safetensors", "hf:OWNER/REPO/FILE@REVISION"),
        ("hf:owner/repo/../f.safetensors@main", "hf:OWNER/REPO/FILE@REVISION"),
        ("models/a.ckpt", "names a pickle"),
        ("https://host/a.PT?download=true", "names a pickle"),
        ("hf:owner/repo/pytorch_model.bin@main", "names a pickle"),
    ],
)
def test_bad_sources_are_refused_before_the_work(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as failure:
        wanted(source)
    assert "secret" not in str(failure.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "6ce0161689"}, "64 hex digits.*got '6ce0161689'"),
        ({"licence": " "}, "licence is empty"),
        ({"merging_allowed": "yes"}, "download_weights.base.merging_allowed"),
        ({"license": "MIT", "licence": None}, "unknown key 'download_weights.base.license'"),
        ({"source": "https://h/a?token=secret"}, "password or a token"),
    ],
)
def test_bad_params_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write_params(tmp_path, wanted("a.safetensors"), change)
    with pytest.raises(ValueError, match=message) as failure:
        load_params("download_weights.base", WeightsParams, path)
    assert "secret" not in str(failure.value)


def write_params(folder: Path, params: WeightsParams, change: dict[str, Any] | None = None) -> Path:
    section = {name: getattr(params, name) for name in params.__slots__} | (change or {})
    section = {name: value for name, value in section.items() if value is not None}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump({"download_weights": {"base": section}}))
    return path


# --- killed, started again --------------------------------------------------------------------


def command(folder: Path, params: WeightsParams, name: str = "base") -> list[str]:
    path = write_params(folder, params)
    words = [sys.executable, "-m", "stages.download_weights", name, "--params", str(path)]
    return [*words, "--out", f"{folder}/out.safetensors"]


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "DVC_ROOT": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}


def ended(folder: Path, words: list[str], **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        words,
        env=environment(folder),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        **options,
    )


def test_killed_at_any_moment_it_fetches_at_most_a_block_twice(
    server: WeightsServer, tmp_path: Path
) -> None:
    server.content = weights(2, 24 * MB)
    server.piece_s = 0.005
    words = command(tmp_path, wanted(server.link(), server.content))
    rng = random.Random(0)
    for kill in range(2):
        enough = server.sent + rng.randrange(3 * MB, 8 * MB)
        process = subprocess.Popen(words, env=environment(tmp_path), cwd=ROOT, stdout=-3, stderr=-3)
        while server.sent < enough and process.poll() is None:
            time.sleep(0.002)
        assert process.poll() is None, f"it ended before kill {kill}"
        process.kill()
        process.wait()
        assert not (tmp_path / "out.safetensors").exists()
    server.piece_s = 0.0
    done = ended(tmp_path, words)
    assert done.returncode == 0, done.stderr
    assert "MB kept" in done.stderr
    assert (tmp_path / "out.safetensors").read_bytes() == server.content
    assert len(server.asked) == 3
    for before, after in zip(server.asked, server.asked[1:], strict=False):
        # what the server sent, but for what lay in the sockets when the client died
        assert after.start >= before.start + before.sent - BLOCK_BYTES - 4 * PIECE_BYTES
        assert after.start > before.start


def test_killed_before_the_last_name_it_asks_for_nothing(
    server: WeightsServer, tmp_path: Path
) -> None:
    folder = tmp_path / "work" / digest(WEIGHTS)
    folder.mkdir(parents=True)
    (folder / "partial").write_bytes(WEIGHTS)
    assert fetched(tmp_path, wanted(server.link())) == WEIGHTS
    assert not server.asked


def test_bad_input_ends_with_one_message(tmp_path: Path, server: WeightsServer) -> None:
    words = command(tmp_path, wanted(server.link()), "bse")
    done = ended(tmp_path, words)
    assert done.returncode == 1
    assert "missing section 'bse' in 'download_weights'; did you mean 'base'?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_full_disk_stops_the_stage_and_what_came_is_kept(
    server: WeightsServer, tmp_path: Path
) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3 * MB, 3 * MB))

    (tmp_path / "out.safetensors").write_bytes(b"older")
    words = command(tmp_path, wanted(server.link()))
    done = ended(tmp_path, words, preexec_fn=limit_files)
    assert done.returncode == 1
    assert "File too large (what came is kept: make room" in done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "out.safetensors").read_bytes() == b"older"
    assert ended(tmp_path, words).returncode == 0
    assert server.asked[-1].start == 3 * MB


def test_a_disk_without_room_stops_the_stage_before_the_transfer(
    server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=MB)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(OSError, match="are free") as failure:
        fetched(tmp_path, wanted(server.link()))
    assert failure.value.errno == errno.ENOSPC


def test_two_processes_do_not_share_a_scratch(server: WeightsServer, tmp_path: Path) -> None:
    with (
        exclusive(tmp_path / "work" / digest(WEIGHTS)),
        pytest.raises(BlockingIOError, match="still at work here"),
    ):
        fetched(tmp_path, wanted(server.link()))
