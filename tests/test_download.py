"""The download against a real server on loopback: faults, kills, and the same bytes every time."""

import asyncio
import io
import json
import os
import random
import re
import resource
import shutil
import socket
import subprocess
import sys
import tarfile
import time
import tracemalloc
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote

import botocore.session
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import yaml
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngInfo

from stages.download import run
from stages.harness import patience
from stages.harness.params import load_params
from stages.harness.patience import retry_after_s
from stages.harness.scratch import exclusive, replacing_folder
from stages.images import address, arrivals, numbers, shards
from stages.images import verify as verifying
from stages.images.address import is_public
from stages.images.arrivals import Arrivals
from stages.images.download_params import DownloadParams
from stages.images.ends import ENDS, outcome_code
from stages.images.fetch import fetch_all
from stages.images.kept import INDEX, Kept, Packed
from stages.images.link import expires_at, host_key, is_link, mirror_paths, original, picture_key
from stages.images.metadata import read_orientation, without_metadata
from stages.images.numbers import Numbers
from stages.images.outcome import REASONS, Failed, Fetched, Outcome, Picture
from stages.images.part import Part
from stages.images.plan import (
    name_pictures,
    one_link_per_picture,
    plan,
    read_links,
    shared_paths,
)
from stages.images.robots import disallows
from stages.images.shards import read_shards, sample_key
from stages.images.tally import row_outcomes
from stages.images.verify import DECODED_BYTES, ROOM_BYTES, Room, verify
from tests.bucket_server import s3_server
from tests.image_server import FOLDER, ImageServer, png, png_of, serving

ROOT = Path(__file__).parent.parent
PARAMS = DownloadParams(
    mirrors=(),
    use_links=True,
    acknowledge_terms=True,
    min_side_px=16,
    max_bytes=1_000_000,
    max_pixels=1_000_000,
    connections=4,
    requests_per_second=0.0,
    timeout_s=1.0,
    retries=1,
    min_yield=0.0,
    shard_size=5,
    allow_private_addresses=True,
)
MIRROR_ONLY = replace(PARAMS, mirrors=("cdn",), use_links=False, acknowledge_terms=False)


@pytest.fixture
def image_server() -> Iterator[ImageServer]:
    with serving(ImageServer()) as server:
        yield server


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "FIRST_PAUSE_S", 0.01)


def write_pairs(path: Path, links: dict[str, str]) -> Path:
    """Write a table of pairs: links by id."""
    rows = [
        {
            "id": name,
            "url": link,
            "caption": f"a {name}, «été»",
            "prompt": f"a {name}, «été» --ar 1:1",
            "kind": "upscale",
            "version": "5.2",
            "aspect": "1:1",
            "user": 3,
            "timestamp": "",
        }
        for name, link in links.items()
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def outs(folder: Path) -> tuple[Path, Path, Path]:
    """Say where the stage shall write."""
    return folder / "images", folder / "report.json", folder / "outcomes.parquet"


def downloaded(
    folder: Path, links: dict[str, str], params: DownloadParams = PARAMS, work: str = "work"
) -> dict[str, Any]:
    """Run the stage and read its report."""
    pairs = write_pairs(folder / "pairs.parquet", links)
    run(pairs, *outs(folder), params, folder / work)
    report: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return report


def fetched(links: list[str], kept: Kept, params: DownloadParams = PARAMS) -> dict[str, Outcome]:
    """Fetch pictures without their rows."""
    wanted = Arrivals(np.ones(len(links), int))
    fetch_all([read_links(pa.array(links))], kept, params, lambda: None, wanted)
    return {link: wanted.take(number) for number, link in enumerate(links)}


def chosen_links(links: list[str]) -> list[str]:
    """Give for each link the one that is asked in its place."""
    read = read_links(pa.array(links, pa.string()))
    columns = name_pictures(read), read["ends_at"]
    asked, chosen = one_link_per_picture(*map(pa.chunked_array, ([column] for column in columns)))
    return [links[chosen[number]] for number in asked]


def shard_bytes(folder: Path) -> dict[str, str]:
    return {p.name: sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def outcomes(folder: Path) -> list[tuple[str, str]]:
    table = pq.read_table(folder / "outcomes.parquet").to_pydict()
    return list(zip(table["id"], table["outcome"], strict=True))


def stored_ids(folder: Path) -> list[str]:
    return [stored.facts["id"] for stored in read_shards(folder / "images")]


# --- outcomes ---------------------------------------------------------------------------------

OUTCOME_BY_NAME = {
    "fox": "fetched",
    "once-500": "fetched",
    "once-408": "fetched",
    "once-429": "fetched",
    "cut-once": "fetched",
    "to-fox2": "fetched",
    "robots-nofollow": "fetched",
    "status-404": "gone",
    "status-410": "gone",
    "status-401": "refused",
    "status-403": "refused",
    "status-204": "refused",
    "status-503": "server_error",
    "status-429": "rate_limited",
    "cut-always": "unreachable",
    "slow": "timeout",
    "html": "not_an_image",
    "short": "broken_image",
    "noend": "broken_image",
    "flipped": "broken_image",
    "claims": "too_many_pixels",
    "endless": "too_large",
    "small": "too_small",
    "robots-noai": "robots",
    "to-self": "redirects",
    "to-file": "bad_link",
    "to-nonsense": "bad_link",
}
TRIES = {
    "status-503": 2,
    "status-429": 2,
    "cut-always": 2,
    "slow": 2,
    "once-500": 2,
    "to-self": 6,
}


def test_each_answer_ends_as_what_it_is(image_server: ImageServer, tmp_path: Path) -> None:
    links = {name: image_server.link(name) for name in OUTCOME_BY_NAME}
    links["closed"] = f"http://127.0.0.1:{closed_port()}/fox.png"
    links["expired"] = f"{image_server.link('expired')}?ex=65a00000&is=64a00000&hm=ab"
    links["climbing"] = f"http://127.0.0.1:{image_server.port}/a/%2e%2e/%2e%2e/fox.png"
    links["ftp"] = "ftp://127.0.0.1/fox.png"
    wanted = OUTCOME_BY_NAME | {"closed": "unreachable", "expired": "expired"}
    wanted |= {"climbing": "bad_link", "ftp": "bad_link"}
    report = downloaded(tmp_path, links)
    assert set(stored_ids(tmp_path)) == {n for n, o in wanted.items() if o == "fetched"}
    by_reason = Counter(outcome for outcome in wanted.values() if outcome != "fetched")
    assert {reason: n for reason, n in report["failed"].items() if n} == by_reason
    assert set(report["failed"]) == set(REASONS)
    told = {n: "fetched_link" if o == "fetched" else o for n, o in wanted.items()}
    assert outcomes(tmp_path) == sorted(told.items())
    assert report["rows"] == len(links) == report["fetched"] + sum(report["failed"].values())
    tries = {name: image_server.asked[name] for name in TRIES}
    assert tries == TRIES
    assert all(image_server.asked[f"status-{code}"] == 1 for code in (401, 403, 404, 410))
    assert not image_server.asked["expired"]
    assert image_server.user_agents == {"cosmopolitan"}


def test_a_body_longer_than_its_content_length_is_no_picture_and_harms_no_other(
    image_server: ImageServer, tmp_path: Path
) -> None:
    links = {name: image_server.link(name) for name in ("longer", "fox", "hare")}
    failed = downloaded(tmp_path, links, replace(PARAMS, connections=1))["failed"]
    # cut short, or the server closed before it was read
    assert failed["broken_image"] + failed["unreachable"] == 1
    assert stored_ids(tmp_path) == ["fox", "hare"]


def test_a_name_that_no_server_knows_fails_and_harms_no_other(
    image_server: ImageServer, tmp_path: Path
) -> None:
    links = {"nowhere": "http://nowhere.invalid/fox.png", "fox": image_server.link("fox")}
    failed = downloaded(tmp_path, links)["failed"]
    assert failed["unreachable"] + failed["timeout"] == 1  # a resolver may be slow to say no
    assert stored_ids(tmp_path) == ["fox"]


def test_links_that_need_not_be_asked_keep_no_answer_waiting(
    image_server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Kept, "failure", lambda *_: time.sleep(0.005))  # as of far more links
    end = "?ex=65a00000&is=64a00000&hm=ab"
    links = {"0": image_server.link("fox")}
    links |= {f"1{i:03}": f"{image_server.link(f'hare{i}')}{end}" for i in range(300)}
    report = downloaded(tmp_path, links, replace(PARAMS, connections=2, retries=0))
    assert (report["fetched"], report["failed"]["expired"]) == (1, 300)


def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def test_retry_after_holds_all_questions_to_the_host(
    image_server: ImageServer, tmp_path: Path
) -> None:
    names = ["wait-1", *(f"fox{i}" for i in range(4))]
    links = {name: image_server.link(name) for name in names}
    report = downloaded(tmp_path, links, replace(PARAMS, connections=1))
    assert report["fetched"] == len(names)
    first, *others = image_server.asked_at
    later = [at - first for at in others if at - first > 0.9]
    assert image_server.asked["wait-1"] == 2
    assert len(later) >= 1
    assert not any(0.3 < at - first < 0.9 for at in others)


def test_retry_after_of_a_host_to_which_another_led_holds_questions_to_it(
    tmp_path: Path,
) -> None:
    class Leading(ImageServer):
        async def answer(self, request: web.Request) -> web.StreamResponse:
            if request.host.startswith("127.0.0.1"):
                where = self.link("wait-1").replace("127.0.0.1", "localhost")
                return web.Response(status=302, headers={"Location": where})
            return await super().answer(request)

    with serving(Leading(delay_s=0.02)) as server:
        links = {"0": server.link("any")}
        there = server.link("fox").replace("127.0.0.1", "localhost")
        links |= {f"1{i:02}": there.replace("fox", f"fox{i}") for i in range(40)}
        report = downloaded(tmp_path, links, replace(PARAMS, connections=2))
        assert report["fetched"] == len(links)
        first, *others = server.asked_at
    assert not any(0.4 < at - first < 0.9 for at in others)


def test_a_host_that_wants_a_long_rest_gets_it_from_all_links(
    image_server: ImageServer, tmp_path: Path
) -> None:
    links = {name: image_server.link(name) for name in ("wait-99999", "xfox", "xhare")}
    with pytest.raises(ValueError, match="rate_limited 3"):
        downloaded(tmp_path, links, replace(PARAMS, connections=1))
    assert image_server.asked == {"wait-99999": 1}


def test_a_host_is_asked_no_faster_than_the_params_say(
    image_server: ImageServer, tmp_path: Path
) -> None:
    names = ["fox", *(f"to-fox{i}" for i in range(5)), *(f"once-50{i}" for i in (0, 2, 3, 4))]
    links = {name: image_server.link(name) for name in names}
    rate, began = 10.0, time.monotonic()
    report = downloaded(tmp_path, links, replace(PARAMS, requests_per_second=rate))
    assert report["fetched"] == len(names)
    at = image_server.asked_at
    assert len(at) == len(names) + 9  # redirects and second tries count, too
    # Of what lies between, a busy machine may let the server see some late and at once.
    assert at[-1] - began >= (len(at) - 1) / rate


def test_a_host_is_one_host_however_it_is_spelt(image_server: ImageServer, tmp_path: Path) -> None:
    link = image_server.link("fox")
    spellings = ["localhost", "LOCALHOST", "LocalHost", "localHOST"]
    links = {f"{i}": link.replace("127.0.0.1", host) for i, host in enumerate(spellings)}
    rate, began = 5.0, time.monotonic()
    report = downloaded(tmp_path, links, replace(PARAMS, requests_per_second=rate))
    assert report["fetched"] == len(spellings)
    assert image_server.asked_at[-1] - began >= (len(spellings) - 1) / rate
    assert host_key("https://a.org.:443/x") == host_key("http://A.org:80/y") == "a.org"
    assert host_key("https://a.org:80/x") == "a.org:80"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "[::1]", "[::ffff:127.0.0.1]"]
)
def test_private_addresses_are_not_asked(
    host: str, image_server: ImageServer, tmp_path: Path
) -> None:
    link = image_server.link("fox").replace("127.0.0.1", host)
    params = replace(PARAMS, allow_private_addresses=False)
    with pytest.raises(ValueError, match=r"(private_address|bad_link) 1"):
        downloaded(tmp_path, {"fox": link}, params)
    assert not image_server.asked


def test_a_redirect_to_a_private_address_is_not_followed(
    image_server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(address, "is_public", lambda ip: ip == "127.0.0.1")
    links = {name: image_server.link(name) for name in ("to-private", "hare")}
    report = downloaded(tmp_path, links, replace(PARAMS, allow_private_addresses=False))
    assert report["failed"]["private_address"] == 1
    assert stored_ids(tmp_path) == ["hare"]
    assert not image_server.asked["fox"]


def test_a_mirror_s_redirect_to_a_private_address_is_not_followed(
    image_server: ImageServer, tmp_path: Path
) -> None:
    mirror = f"http://127.0.0.1:{image_server.port}"  # itself private, and named by the params
    params = replace(MIRROR_ONLY, mirrors=(mirror,), allow_private_addresses=False)
    names = ("to-private", "to-fox2")
    links = {name: f"https://cdn.discordapp.com{FOLDER}/{name}.png" for name in names}
    report = downloaded(tmp_path, links, params)
    assert report["failed"]["private_address"] == 1
    assert stored_ids(tmp_path) == ["to-fox2"]
    assert not image_server.asked["fox"]


def test_a_picture_whose_link_has_two_spellings_is_taken_from_a_mirror_for_each(
    image_server: ImageServer, tmp_path: Path
) -> None:
    params = replace(MIRROR_ONLY, mirrors=(f"http://127.0.0.1:{image_server.port}",))
    bases = [f"http{s}://{host}" for s in ("", "s") for host in ("a.org", "A.org", "a.org.")]
    links = {f"{i}": f"{base}/folder/fox.png" for i, base in enumerate(bases)}
    report = downloaded(tmp_path, links, params)
    assert report["fetched"] == len(bases)
    assert {stored.facts["sha256"] for stored in read_shards(tmp_path / "images")} == {
        sha256(without_metadata(png("fox"))).hexdigest()
    }
    assert image_server.asked == {"fox": 1}


@pytest.mark.parametrize("other", ["https://b.org/fox.png", "https://a.org/fox.png?id=2"])
def test_no_mirror_gives_one_picture_for_two(
    other: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cdn = tmp_path / "cdn"
    cdn.mkdir()
    for name in ("fox", "hare"):
        (cdn / f"{name}.png").write_bytes(png(name))
    params = replace(MIRROR_ONLY, mirrors=(str(cdn),))
    links = {"1": "https://a.org/fox.png", "2": other, "3": "https://a.org/hare.png"}
    report = downloaded(tmp_path, links, params)
    assert stored_ids(tmp_path) == ["3"]
    assert report["failed"]["not_mirrored"] == 2
    assert "1 path(s) of links stand for several pictures" in capsys.readouterr().out
    # each by itself is no riddle
    for link in (links["1"], other):
        assert downloaded(tmp_path, {"1": link}, params)["by_source"]["mirror"] == 1


def test_a_path_is_shared_however_it_is_quoted_and_not_for_a_signature() -> None:
    signed = "https://cdn.discordapp.com/attachments/1/2/a.png?ex=6f&is=6e&hm="
    links = [
        "https://a.org/x/%61%20b.png",
        "https://b.org/x/a%20b.png",
        "https://a.org/x%2520y.png",
        "https://a.org/x%20y.png",
        f"{signed}1",
        f"{signed.replace('cdn.discordapp.com', 'media.discordapp.net')}2&width=9",
        "no link",
    ]
    assert shared_paths([read_links(pa.array(links))]) == {"x/a b.png", "x%20y.png"}
    for none in (["no link"], []):
        assert not shared_paths([read_links(pa.array(none, pa.string()))])


def test_a_name_that_turns_to_a_private_address_is_refused_when_connecting(
    image_server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # DNS rebinding: 127.0.0.1 stands for a public address, 127.0.0.2 for one's own network
    monkeypatch.setattr(address, "is_public", lambda ip: ip == "127.0.0.1")
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    resolved: list[str] = []
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, *rest: Any, **named: Any) -> Any:
        if host == "rebinding.test":
            host = next(answers)
            resolved.append(host)
        return real(host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    params = replace(PARAMS, allow_private_addresses=False)
    links = [
        image_server.link(name).replace("127.0.0.1", "rebinding.test") for name in ("fox", "hare")
    ]
    outcomes = [fetched([link], Kept(tmp_path, ""), params)[link] for link in links]
    assert isinstance(outcomes[0], Fetched)
    assert outcomes[1] == Failed("private_address")
    assert resolved[:2] == ["127.0.0.1", "127.0.0.2"]
    assert set(image_server.asked) == {"fox"}


@pytest.mark.parametrize(
    ("ip", "public"),
    [
        ("162.159.130.233", True),
        ("2606:4700::6810:84e5", True),
        ("10.1.2.3", False),
        ("172.16.0.1", False),
        ("192.168.1.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),
        ("2002:a00:1::", False),
        ("64:ff9b:1::7f00:1", False),
        ("::127.0.0.1", False),
        ("::ffff:0:127.0.0.1", False),
        ("fec0::1", False),
        ("192.0.0.192", False),
        ("192.0.1.1", True),
        ("168.63.129.16", False),
        ("168.63.129.17", True),
        ("3fff::1", False),
        ("5f00::1", False),
    ],
)
def test_public_addresses_are_told_from_others(ip: str, public: bool) -> None:
    assert is_public(ip) == public


def test_a_failing_disk_stops_the_stage_and_leaves_the_old_shards(
    image_server: ImageServer, tmp_path: Path
) -> None:
    links = {f"fox{i}": image_server.link(f"fox{i}") for i in range(6)}
    downloaded(tmp_path, links)
    before = shard_bytes(tmp_path / "images")

    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))

    done = subprocess.run(
        command(tmp_path, PARAMS),
        env=environment(tmp_path),
        cwd=ROOT,
        capture_output=True,
        text=True,
        preexec_fn=limit_files,
        check=False,
    )
    assert done.returncode == 1
    assert "File too large" in done.stderr
    assert "Traceback" not in done.stderr
    assert shard_bytes(tmp_path / "images") == before
    assert not list(tmp_path.glob("*.partial"))
    # with room again it goes on, and asks for nothing that it had
    kept = Kept(tmp_path / ".work/download", "any")
    had = [f for f, link in links.items() if kept.packed(link) or kept.picture_path(link).exists()]
    assert had
    image_server.asked.clear()
    subprocess.run(command(tmp_path, PARAMS), env=environment(tmp_path), cwd=ROOT, check=True)
    assert image_server.asked.keys() == links.keys() - set(had)
    assert stored_ids(tmp_path) == sorted(links)


OWN_DISK = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]  # needs no root
FIRST_SMALL_THEN_LARGE = """
mount -t tmpfs -o size="$SMALL" tmpfs "$DISK"
if "$@"; then exit 9; fi
mount -o remount,size=64m "$DISK"
exec "$@"
"""


@pytest.mark.parametrize("size", ["24k", "60k", "150k", "300k"])
def test_a_full_disk_stops_the_stage_and_with_room_again_it_goes_on(
    size: str, image_server: ImageServer, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"  # of the scratch
    disk.mkdir()
    tried = [*OWN_DISK, 'mount -t tmpfs tmpfs "$0"', str(disk)]
    if not shutil.which("unshare") or subprocess.run(tried, check=False).returncode:
        pytest.skip("on this system nobody but root may mount a disk")
    links = {f"fox{i:02}": image_server.link(f"fox{i:02}") for i in range(40)}
    write_pairs(tmp_path / "pairs.parquet", links)
    done = subprocess.run(
        [*OWN_DISK, FIRST_SMALL_THEN_LARGE, "sh", *command(tmp_path, PARAMS)],
        env=environment(disk) | {"DISK": str(disk), "SMALL": size},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    # only those on their way are asked for again
    assert sum(image_server.asked.values()) <= len(links) + PARAMS.connections
    downloaded(tmp_path / "whole", links)
    assert shard_bytes(tmp_path / "images") == shard_bytes(tmp_path / "whole/images")


# --- killed, started again --------------------------------------------------------------------


def command(folder: Path, params: DownloadParams) -> list[str]:
    section = {name: getattr(params, name) for name in params.__slots__}
    section["mirrors"] = list(params.mirrors)
    (folder / "params.yaml").write_text(yaml.safe_dump({"download": section}))
    words = [sys.executable, "-m", "stages.download", "--params", f"{folder}/params.yaml"]
    words += ["--pairs", f"{folder}/pairs.parquet", "--out", f"{folder}/images"]
    words += ["--report", f"{folder}/report.json"]
    return [*words, "--outcomes", f"{folder}/outcomes.parquet"]


def environment(folder: Path) -> dict[str, str]:
    scratch = {"DVC_ROOT": str(folder), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONWARNINGS": "error"}
    return {**os.environ, **scratch}


def test_killed_at_any_moment_it_fetches_nothing_twice_and_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    names = [f"picture{i:03}" for i in range(80)] + [f"status-{404}", "robots-noai"]
    rng = random.Random(0)
    kills = 3
    params = replace(PARAMS, timeout_s=10.0, shard_size=32)
    with serving(ImageServer(delay_s=0.05)) as server:
        links = {name: server.link(name) for name in names}
        broken = tmp_path / "broken"
        write_pairs(broken / "pairs.parquet", links)
        for kill in range(kills):
            asked = sum(server.asked.values())
            process = subprocess.Popen(
                command(broken, params), env=environment(broken), cwd=ROOT, stdout=-3, stderr=-3
            )
            wanted = asked + rng.randrange(2, 20)
            while sum(server.asked.values()) < wanted and process.poll() is None:
                time.sleep(0.005)
            assert process.poll() is None, f"it ended before kill {kill}"
            process.kill()
            process.wait()
            assert not (broken / "images").exists()
        subprocess.run(
            command(broken, params), env=environment(broken), cwd=ROOT, stdout=-3, check=True
        )
        again = sum(count - 1 for count in server.asked.values())
        assert again <= kills * params.connections
        downloaded(tmp_path / "whole", links, params)
    assert shard_bytes(broken / "images") == shard_bytes(tmp_path / "whole" / "images")
    for name in ("report.json", "outcomes.parquet"):
        assert (broken / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_killed_twenty_times_at_random_moments_it_ends_with_the_same_bytes(
    tmp_path: Path,
) -> None:
    names = [f"picture{i:03}" for i in range(150)]
    rng, at_work = random.Random(20), 0
    params = replace(PARAMS, timeout_s=10.0, shard_size=16)
    with serving(ImageServer(delay_s=0.03)) as server:
        links = {name: server.link(name) for name in names}
        downloaded(tmp_path / "whole", links, params)
        wanted = shard_bytes(tmp_path / "whole" / "images")
        broken = tmp_path / "broken"
        write_pairs(broken / "pairs.parquet", links)
        for _ in range(20):
            process = subprocess.Popen(
                command(broken, params), env=environment(broken), cwd=ROOT, stdout=-3, stderr=-3
            )
            # a start may take a second, of which nothing is to be seen: count from the first answer
            asked = sum(server.asked.values()) + rng.randrange(12)
            while sum(server.asked.values()) < asked and process.poll() is None:
                time.sleep(0.002)
            time.sleep(rng.uniform(0, 0.03))
            process.kill()
            at_work += process.wait() != 0
            if (broken / "images").exists():
                assert shard_bytes(broken / "images") == wanted
        assert at_work >= 10
        subprocess.run(
            command(broken, params), env=environment(broken), cwd=ROOT, stdout=-3, check=True
        )
        again = sum(server.asked.values()) - 2 * len(names)
    assert again <= at_work * params.connections
    assert shard_bytes(broken / "images") == wanted


def test_a_file_broken_in_its_middle_goes_on_there_and_a_changed_one_from_its_start(
    tmp_path: Path,
) -> None:
    with serving(ImageServer()) as server:
        for version, first in (("one", "same"), ("two", "changed")):
            name = f"part-{first}-{version}"
            link = server.link(name)
            kept = Kept(tmp_path / version / "work", "").picture_path(link)
            kept.parent.mkdir(parents=True)
            part = Part(kept)
            tag = server.tag(name) if first == "same" else '"of another file"'
            assert part.begin(200, {"ETag": tag}) == 0
            part.body.write_bytes(png(name)[:1500])
            assert downloaded(tmp_path / version, {"fox": link})["fetched"] == 1
            (stored,) = read_shards(tmp_path / version / "images")
            assert stored.facts["sha256"] == sha256(without_metadata(png(name))).hexdigest()
            whole = len(png(name))
            assert server.sent[name] == (whole - 1500 if first == "same" else whole)
            assert not list(kept.parent.glob("*.*"))


def test_what_came_before_the_last_try_failed_is_not_fetched_again(tmp_path: Path) -> None:
    class Fragile(ImageServer):
        async def answer(self, request: web.Request) -> web.StreamResponse:
            if "part-" not in request.path or self.asked["part-fox"]:
                return await super().answer(request)
            self.asked["part-fox"] += 1
            content = png("part-fox")
            headers = {"ETag": self.tag("part-fox"), "Content-Length": str(len(content))}
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            await response.write(content[:1500])
            await asyncio.sleep(0.2)
            assert request.transport
            request.transport.close()
            return response

    with serving(Fragile()) as server:
        links = {name: server.link(name) for name in ("hare", "part-fox")}
        params = replace(PARAMS, retries=0)
        assert downloaded(tmp_path, links, params)["failed"]["unreachable"] == 1
        assert downloaded(tmp_path, links, params)["fetched"] == 2
        assert server.sent["part-fox"] == len(png("part-fox")) - 1500


def test_a_part_without_a_strong_version_is_not_gone_on_with(tmp_path: Path) -> None:
    part = Part(tmp_path / "picture")
    assert part.begin(200, {"ETag": 'W/"weak"'}) == 0
    part.body.write_bytes(b"abc")
    assert part.range_headers() == {}
    assert part.begin(200, {"ETag": '"strong"'}) == 0
    part.body.write_bytes(b"abc")
    assert part.range_headers() == {"Range": "bytes=3-", "If-Range": '"strong"'}
    assert part.begin(206, {"Content-Range": "bytes 3-9/10"}) == 3
    assert part.begin(206, {"Content-Range": "bytes 4-9/10"}) is None
    assert part.begin(206, {"Content-Range": f"bytes {'9' * 4301}-9/10"}) is None
    assert not part.body.exists()
    assert part.begin(200, {"ETag": '"strong"'}) == 0
    part.body.write_bytes(b"abc")
    # of a server that knows no If-Range
    assert part.begin(206, {"Content-Range": "bytes 3-9/10", "ETag": '"another"'}) is None
    assert not part.body.exists()


def test_what_is_kept_serves_other_params_and_rows(
    image_server: ImageServer, tmp_path: Path
) -> None:
    links = {name: image_server.link(name) for name in ("fox", "hare", "small")}
    assert downloaded(tmp_path, links)["failed"]["too_small"] == 1
    links["owl"] = image_server.link("owl")
    fresh_signature = {n: f"{link}?ex=ffffffff&is=1&hm=2" for n, link in links.items()}
    report = downloaded(tmp_path, fresh_signature, replace(PARAMS, min_side_px=8))
    assert report["fetched"] == 4
    assert image_server.asked == dict.fromkeys(links, 1)


def test_a_kept_picture_that_lost_its_bytes_is_fetched_again(
    image_server: ImageServer, tmp_path: Path
) -> None:
    link = image_server.link("fox")
    downloaded(tmp_path, {"fox": link})
    (pack,) = (tmp_path / "work").glob("packs/*/*.tar")
    pack.write_bytes(pack.read_bytes()[:600])
    assert downloaded(tmp_path, {"fox": link})["fetched"] == 1
    assert image_server.asked["fox"] == 2


def test_a_killed_pass_remembers_final_failures_and_a_new_pass_asks_anew(
    image_server: ImageServer, tmp_path: Path
) -> None:
    names = ("status-404", "status-503", "robots-noai")
    links = [image_server.link(name) for name in names]
    for _ in range(2):  # a pass that never came to its end
        outcomes = fetched(links, Kept(tmp_path, "pass"))
        assert outcomes[links[0]] == Failed("gone")
    assert [image_server.asked[name] for name in names] == [1, 4, 1]
    Kept(tmp_path, "pass").end_pass()
    fetched(links, Kept(tmp_path, "pass"))
    assert image_server.asked["status-404"] == 2


def test_half_a_line_in_the_journal_is_no_memory(tmp_path: Path) -> None:
    name = sha256(b"http://a/b").hexdigest()
    for text in (f"{name} go", f"{name[:9]}{name} gone\n", f"{name}\n"):
        (tmp_path / "failed-pass.txt").write_text(text)
        assert Kept(tmp_path, "pass").failure("http://a/b") is None
    (tmp_path / "failed-pass.txt").write_text(f"{name} gone\n")
    assert Kept(tmp_path, "pass").failure("http://a/b") == "gone"


def test_of_a_spoilt_index_the_last_whole_line_of_each_picture_counts(tmp_path: Path) -> None:
    def packed(pack: str, at: int) -> Packed:
        return Packed(pack, at, 5, 6, Picture(".png", 32, 32, "ab" * 32))

    kept = Kept(tmp_path, "pass")
    for name in ("one.tar", "two.tar"):
        (kept.packs / "1").mkdir(exist_ok=True)
        (kept.packs / "1" / name).touch()
    kept.pack("http://a/fox", packed("1/one.tar", 512))
    kept.pack("http://a/hare", packed("1/one.tar", 2048))
    kept.pack("http://a/fox", packed("1/two.tar", 512))
    kept.pack("http://a/owl", packed("1/gone.tar", 512))
    index = kept.packs / INDEX
    whole = index.read_bytes()
    with index.open("ab") as file:
        file.write(whole[: len(whole) // 5])  # a kill cut it short
    for _ in range(2):
        kept = Kept(tmp_path, "pass")
        assert kept.packed("http://a/fox") == packed("1/two.tar", 512)
        assert kept.packed("http://a/hare") == packed("1/one.tar", 2048)
        assert kept.packed("http://a/owl") is None
        assert index.read_bytes().count(b"\n") == 2  # it was tidied up
    kept.unpack("http://a/hare")
    assert kept.packed("http://a/hare") is None
    kept.pack("http://a/fox", packed("1/two.tar", 1024))
    kept.drop_dead_packs()
    assert [path.name for path in (kept.packs / "1").iterdir()] == ["two.tar"]
    kept = Kept(tmp_path, "pass")
    assert kept.packed("http://a/fox") == packed("1/two.tar", 1024)
    index.unlink()  # while it runs
    assert kept.packed("http://a/fox") is None


@given(
    changes=st.lists(st.tuples(st.integers(0, 30), st.integers(-1, 2**40)), max_size=60),
    most_fresh=st.integers(1, 20),
)
def test_numbers_are_held_as_a_dictionary_would(
    changes: list[tuple[int, int]], most_fresh: int
) -> None:
    held, wanted = Numbers(), dict[str, int]()
    names = [sha256(bytes([i])).hexdigest() for i in range(31)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(numbers, "MOST_FRESH", most_fresh)
        for i, number in changes:
            held.put(names[i], number)
            wanted[names[i]] = number
            assert [held.get(name) for name in names] == [
                None if wanted.get(name, -1) < 0 else wanted[name] for name in names
            ]
    assert held.all().tolist() == sorted(number for number in wanted.values() if number >= 0)


def test_of_many_pictures_on_disk_little_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numbers, "MOST_FRESH", 1 << 12)
    names = [sha256(number.to_bytes(4)).hexdigest() for number in range(1 << 16)]
    tracemalloc.start()
    try:
        held = Numbers()
        for number, name in enumerate(names):
            held.put(name, number)
        taken, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert taken < 17 * len(names)
    assert held.get(names[5]) == 5


def test_a_picture_is_stored_once_in_its_shard_and_serves_other_rows_from_there(
    image_server: ImageServer, tmp_path: Path
) -> None:
    names = [f"fox{i}" for i in range(7)]
    links = {name: image_server.link(name) for name in names}
    downloaded(tmp_path, links)  # of 5 pictures a shard
    packs = tmp_path / "work" / "packs"
    first = {path.name: path for path in packs.glob("*/*.tar")}
    assert all(path.samefile(tmp_path / "images" / name) for name, path in first.items())
    assert not [path for path in (tmp_path / "work/pictures").rglob("*") if path.is_file()]
    before = shard_bytes(tmp_path / "images")
    del links["fox0"]
    downloaded(tmp_path, links)
    assert stored_ids(tmp_path) == names[1:]
    assert first["00000.tar"].exists()  # it alone holds fox0
    assert not first["00001.tar"].exists()
    links["fox0"] = image_server.link("fox0")
    downloaded(tmp_path, links)
    assert shard_bytes(tmp_path / "images") == before
    assert len(list(packs.glob("*/*.tar"))) == len(first)
    assert image_server.asked == dict.fromkeys(names, 1)


def test_pictures_that_wait_on_disk_for_their_turn_and_for_two_rows_give_the_same_bytes(
    image_server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    links = {f"fox{i}": image_server.link(f"fox{i % 4}") for i in range(9)}
    downloaded(tmp_path / "held", links)
    monkeypatch.setattr(arrivals, "HELD_BYTES", 0)
    downloaded(tmp_path / "read", links, replace(PARAMS, connections=1))
    assert len(stored_ids(tmp_path / "read")) == len(links)
    assert shard_bytes(tmp_path / "read/images") == shard_bytes(tmp_path / "held/images")


def test_two_processes_do_not_share_a_scratch(tmp_path: Path) -> None:
    folder = tmp_path / ".work" / "download"
    write_pairs(tmp_path / "pairs.parquet", {"fox": "http://127.0.0.1:1/fox.png"})
    with exclusive(folder):
        done = subprocess.run(
            command(tmp_path, PARAMS),
            env=environment(tmp_path),
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert re.search(rf"process {os.getpid()} \(.*\) is still at work here", done.stderr)
    with exclusive(folder):
        pass


# --- mirrors ----------------------------------------------------------------------------------


def mirror_with(folder: Path, **pictures: bytes) -> Path:
    for name, content in pictures.items():
        path = folder / f"{FOLDER[1:]}/{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_mirrors_come_first_and_what_they_lack_or_broke_is_asked(
    image_server: ImageServer, tmp_path: Path
) -> None:
    one = mirror_with(tmp_path / "one", fox=png("fox"), hare=b"<html>", small=png("small", 8))
    two = mirror_with(tmp_path / "two", fox=b"", hare=png("hare"))
    params = replace(PARAMS, mirrors=(str(one), str(two)))
    links = {name: image_server.link(name) for name in ("fox", "hare", "owl", "small")}
    report = downloaded(tmp_path, links, params)
    assert report["by_source"] == {"mirror": 2, "link": 1}
    assert report["failed"]["too_small"] == 1
    assert set(image_server.asked) == {"owl", "small"}
    offline = downloaded(tmp_path, links, replace(params, use_links=False))
    assert offline["failed"] == dict.fromkeys(REASONS, 0) | {"not_mirrored": 1, "too_small": 1}


def test_without_links_nobody_is_asked_and_no_word_is_needed(
    image_server: ImageServer, tmp_path: Path
) -> None:
    mirror = mirror_with(tmp_path / "mirror", fox=png("fox"))
    params = replace(MIRROR_ONLY, mirrors=(str(mirror),))
    expired = f"{image_server.link('fox')}?ex=65a00000&is=64a00000&hm=ab"
    assert downloaded(tmp_path, {"fox": expired}, params)["fetched"] == 1
    assert not image_server.asked


def test_a_missing_mirror_is_named(tmp_path: Path) -> None:
    params = replace(MIRROR_ONLY, mirrors=(str(tmp_path / "nowhere"),))
    with pytest.raises(NotADirectoryError, match=r"nowhere: no such folder.*download\.mirrors"):
        downloaded(tmp_path, {"fox": "http://127.0.0.1:1/fox.png"}, params)


def test_a_mirror_at_an_address_comes_before_the_link_even_in_ones_own_network(
    image_server: ImageServer, tmp_path: Path
) -> None:
    host = f"http://127.0.0.1:{image_server.port}"
    links = {
        name: f"https://cdn.discordapp.com{FOLDER}/{quote(name)}.png?ex=65a00000&is=64a00000&hm=ab"
        for name in ("fox", "a hare", "status-404", "html", "once-500")
    }
    params = replace(
        MIRROR_ONLY, mirrors=(f"{host}/status", f"{host}/base/"), allow_private_addresses=False
    )
    report = downloaded(tmp_path, links, params)
    assert report["by_source"] == {"mirror": 3, "link": 0}
    assert report["failed"]["not_mirrored"] == 1
    assert report["failed"]["not_an_image"] == 1
    before = shard_bytes(tmp_path / "images")
    asked = image_server.asked.total()
    del links["html"], links["status-404"]
    again = downloaded(tmp_path, links, params)  # what is kept is asked for no more
    assert again["by_source"] == {"mirror": 3, "link": 0}
    assert image_server.asked.total() == asked
    assert shard_bytes(tmp_path / "images") == before


def test_a_mirror_in_a_bucket_gives_what_the_credentials_may_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    names = ("fox", "a hare", "missing", "heavy")
    links = {name: f"https://cdn.discordapp.com{FOLDER}/{quote(name)}.png" for name in names}
    params = replace(MIRROR_ONLY, mirrors=("s3://bucket/some base",), timeout_s=20.0)
    with s3_server(tmp_path / "s3", monkeypatch) as bucket:
        mirror_with(bucket / "some base", fox=png("fox"), heavy=bytes(params.max_bytes + 1))
        (bucket / f"some base{FOLDER}/a hare.png").write_bytes(png("a hare"))
        report = downloaded(tmp_path, links, params)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
        with pytest.raises(ValueError, match="refused 4"):
            downloaded(tmp_path, links, params, work="other")
    assert stored_ids(tmp_path) == ["a hare", "fox"]
    assert report["failed"]["not_mirrored"] == 1
    assert report["failed"]["too_large"] == 1


@pytest.mark.parametrize(
    ("beginning", "is_same", "outcome"),
    [
        (png("fox")[:1500], True, "fetched"),
        (bytes(1500), True, "not_an_image"),  # nobody asked for what seemed to be there
        (bytes(1500), False, "fetched"),
    ],
)
def test_an_object_broken_in_its_middle_goes_on_there_and_a_changed_one_from_its_start(
    beginning: bytes,
    is_same: bool,
    outcome: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    params = replace(MIRROR_ONLY, mirrors=("s3://bucket",), timeout_s=20.0)
    address = f"s3://bucket{FOLDER}/fox.png"
    with s3_server(tmp_path / "s3", monkeypatch) as bucket:
        mirror_with(bucket, fox=png("fox"))
        client = botocore.session.get_session().create_client("s3", "us-east-1")
        tag = client.head_object(Bucket="bucket", Key=f"{FOLDER[1:]}/fox.png")["ETag"]
        path = Kept(tmp_path / "work", "").picture_path(address)
        path.parent.mkdir()
        part = Part(path)
        assert part.begin(200, {"ETag": tag if is_same else '"of another file"'}) == 0
        part.body.write_bytes(beginning)
        link = f"https://cdn.discordapp.com{FOLDER}/fox.png"
        (found,) = fetched([link], Kept(tmp_path / "work", ""), params).values()
    if outcome != "fetched":
        assert found == Failed(outcome)
        return
    assert isinstance(found, Fetched)
    assert found.path.read_bytes() == png("fox")
    assert found.source == "mirror"


def test_a_bucket_that_is_not_there_is_asked_again_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3secret")
    params = replace(MIRROR_ONLY, mirrors=("s3://bucket",), timeout_s=20.0, retries=0)
    with pytest.raises(ValueError, match="unreachable 1"):
        downloaded(tmp_path, {"fox": f"https://cdn.discordapp.com{FOLDER}/fox.png"}, params)


@pytest.mark.parametrize(
    ("link", "paths"),
    [
        ("https://a.org/b/c.png?x=1", ["b/c.png"]),
        ("https://a.org/b/c%20d.png", ["b/c%20d.png", "b/c d.png"]),
        ("https://a.org/../../etc/passwd", []),
        ("https://a.org/b/%2e%2e/%2e%2e/passwd", []),
        ("https://a.org/b/..%5c..%5cpasswd", []),
        ("https://a.org/C:/x", []),
        ("https://a.org/%00", []),
        ("https://a.org//x", ["x"]),
        ("https://a.org/", []),
        (f"https://a.org/{'x' * 256}", []),
    ],
)
def test_no_path_leads_out_of_a_mirror(link: str, paths: list[str]) -> None:
    assert mirror_paths(link) == paths


# --- links, headers, files --------------------------------------------------------------------


@pytest.mark.parametrize(
    "link",
    [
        "",
        "fox.png",
        "file:///etc/passwd",
        "https://",
        "https://me:word@a.org/x",
        "http://[::1/x",
        "https://a.org:99999/x",
        "https://a.org/a b",
        "https://a.org/\nx",
        "https://a.org/../x",
    ],
)
def test_what_is_no_link_is_told(link: str) -> None:
    assert not is_link(link)


def test_a_host_that_no_dns_could_hold_is_an_outcome_and_no_crash(tmp_path: Path) -> None:
    links = [f"http://{'a' * 70}.com/fox.png", "http://a..b/fox.png", "http://[v1.a]/fox.png"]
    outcomes = fetched(links, Kept(tmp_path, "pass"))
    assert all(isinstance(outcome, Failed) for outcome in outcomes.values())
    assert outcomes[links[0]] == Failed("bad_link")


def test_a_picture_is_known_by_its_link_without_the_signature() -> None:
    base = "attachments/1/2/a.png"
    key = f"https://cdn.discordapp.com/{base}"
    assert picture_key(f"{key}?ex=6f&is=6e&hm=ab") == key
    assert picture_key(f"https://media.discordapp.net/{base}?width=5&height=5") == key
    assert picture_key("https://a.org/picture?id=5#top") == "https://a.org/picture?id=5"
    scaled = f"https://media.discordapp.net/{base}?ex=6f&is=6e&hm=ab&format=webp&quality=lossless"
    assert original(scaled) == f"{key}?ex=6f&is=6e&hm=ab"


def test_the_plan_says_where_to_look_and_why_a_link_is_not_asked() -> None:
    base = "https://cdn.discordapp.com/attachments/1/2"
    signed = f"{base}/b.png?ex=64&is=1&hm=2"  # ends at 100 s
    links = read_links(pa.array([f"{base}/a%20b.png", signed, "ftp://a/b", f"{base}/../c.png"]))
    assert links["ends_at"].to_pylist() == [None, 100, None, None]
    mirrors = ["cdn", "s3://bucket/base/", "https://a.org/m"]
    before, after = (plan(links, mirrors, True, now) for now in (99.9, 100.0))
    assert before["reason"].to_pylist() == [None, None, "bad_link", "bad_link"]
    assert after["reason"].to_pylist() == [None, "expired", "bad_link", "bad_link"]
    assert after["places"].to_pylist() == [
        [
            "cdn/attachments/1/2/a%20b.png",
            "cdn/attachments/1/2/a b.png",
            "s3://bucket/base/attachments/1/2/a%20b.png",
            "https://a.org/m/attachments/1/2/a%20b.png",
        ],
        [
            "cdn/attachments/1/2/b.png",
            "s3://bucket/base/attachments/1/2/b.png",
            "https://a.org/m/attachments/1/2/b.png",
        ],
        [],
        [],
    ]
    offline = plan(links, [], False, 0.0)
    assert offline["reason"].to_pylist() == ["not_mirrored", "not_mirrored", "bad_link", "bad_link"]
    assert set(filter(None, after["reason"].to_pylist())) <= set(REASONS)


@pytest.mark.parametrize(("end", "reason"), [("f" * 40, None), ("-" + "f" * 40, "expired")])
def test_an_end_that_no_clock_shows_is_no_crash(end: str, reason: str | None) -> None:
    link = f"https://cdn.discordapp.com/attachments/1/2/b.png?ex={end}&is=1&hm=2"
    links = read_links(pa.array([link]))
    assert chosen_links([link]) == [link]
    assert plan(links, [], True, time.time())["reason"].to_pylist() == [reason]


DISCORD = "https://cdn.discordapp.com/attachments/1"
links_of_few_pictures = st.lists(
    st.builds(
        lambda number, end: f"{DISCORD}/{number}/a.png" + f"?ex={end:x}&is=1&hm=2" * bool(end),
        st.integers(1, 4),
        st.integers(0, 5),
    )
    | st.sampled_from(["", "x", "ftp://a/b"])
)


@given(links_of_few_pictures, st.integers(0, 6), st.integers(1, 5))
def test_a_plan_is_the_same_in_batches_of_any_size(urls: list[str], now: int, size: int) -> None:
    links = read_links(pa.array(urls, pa.string()))
    whole = plan(links, ["cdn"], True, now)
    parts = [plan(links.slice(at, size), ["cdn"], True, now) for at in range(0, len(urls), size)]
    assert pa.Table.from_batches(parts, whole.schema) == pa.Table.from_batches([whole])
    for url, chosen in zip(urls, chosen_links(urls), strict=True):
        if not is_link(url):
            assert chosen == url
            continue
        same = [
            other for other in urls if is_link(other) and picture_key(other) == picture_key(url)
        ]
        assert chosen in same
        assert all((expires_at(other) or 0) <= (expires_at(chosen) or 0) for other in same)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2))))
def test_every_row_has_the_outcome_of_its_picture_or_repeats_one(
    rows: list[tuple[bool, int]],
) -> None:
    picture = Picture(".png", 32, 32, "")
    pictures: list[Outcome] = [
        Fetched(Path("a"), picture, "mirror"),
        Fetched(Path("b"), picture, "link"),
        Failed("gone"),
    ]
    codes = pa.array([outcome_code(outcome) for outcome in pictures], pa.int8())
    repeated = pa.array([row[0] for row in rows], pa.bool_())
    asked = pa.array([row[1] for row in rows], pa.int32())
    found = [ENDS[code - 1] for code in row_outcomes(repeated, asked, codes).to_pylist()]
    ends = ["mirror", "link", "gone"]
    assert found == ["repeated_id" if again else ends[number] for again, number in rows]


def test_the_end_of_a_link_is_read_from_its_signature() -> None:
    signed = "https://cdn.discordapp.com/a/1/2/a.png?ex=65a00000&is=64a00000&hm=ab"
    assert expires_at(signed) == 0x65A00000
    assert expires_at("https://a.org/a.png?ex=65a00000") is None
    assert expires_at(signed.replace("65a00000", "soon")) is None


def test_of_two_links_to_a_picture_the_one_that_lasts_is_asked() -> None:
    base = "https://cdn.discordapp.com/attachments/1/2/a.png"
    early, late = (f"{base}?ex={ex}&is=1&hm=2" for ex in ("65a00000", "75a00000"))
    other = base.replace("a.png", "b.png")
    links = [base, late, early, "x", early, other, "x"]
    assert chosen_links(links) == [late, late, late, "x", late, other, "x"]


@pytest.mark.parametrize(
    ("headers", "keep_away"),
    [
        ([], False),
        (["all"], False),
        (["nofollow, NoImageAI"], True),
        (["nofollow", "noindex"], True),
        (["otherbot: noai, noindex"], False),
        (["otherbot: nofollow", "noai"], True),
        (["cosmopolitan: noindex"], True),
        (["unavailable_after: 25 Jun 2030 15:00:00 PST, noindex"], True),
        (["max-snippet: 5, none"], True),
    ],
)
def test_robots_headers_are_read(headers: list[str], keep_away: bool) -> None:
    assert disallows(headers) == keep_away


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        ("7", 7.0),
        (None, None),
        ("", None),
        ("-3", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Mon, 01 Jan 2024 00:00:00 +99999999999999999999", None),
        ("Mon, 01 Jan 2024 99999999999999999999:00:00 GMT", None),
    ],
)
def test_retry_after_holds_seconds_or_a_date(header: str | None, wait_s: float | None) -> None:
    assert retry_after_s(header) == wait_s


def test_retry_after_may_be_a_date_to_come() -> None:
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    header = format_datetime(in_an_hour, usegmt=True)
    assert retry_after_s(header) == pytest.approx(3600.0, abs=30)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_is_whole_or_broken_at_every_length(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    Image.linear_gradient("L").resize((40, 30)).convert("RGB").save(path)
    content = path.read_bytes()
    picture = verify(path, 10**6, 10**6)
    assert picture == Picture(suffix, 40, 30, sha256(content).hexdigest())
    # a JPEG without its end marker is whole to Pillow
    whole = len(content) - (2 if suffix == ".jpg" else 0)
    for length in range(0, whole, 1 + whole // 97):
        path.write_bytes(content[:length])
        assert verify(path, 10**6, 10**6) in (Failed("not_an_image"), Failed("broken_image"))


def test_a_png_of_sound_checksums_that_holds_no_picture_is_broken(tmp_path: Path) -> None:
    path = tmp_path / "picture"
    pixels = zlib.compress(bytes(600 * (1 + 3 * 600)))
    for sound in ([pixels], [b"", pixels[:1], pixels[1:]]):
        path.write_bytes(png_of(600, 600, *sound))
        assert isinstance(verify(path, 10**6, 10**6), Picture)
    for broken in (
        png_of(600, 600, pixels, depth=77),
        png_of(600, 600, pixels, colour=1),
        png_of(600, 600, b"no compressed pixels" * 99),
        png_of(600, 600, zlib.compress(bytes(100))),
        png_of(600, 600, b""),
        png_of(0, 600, pixels),
    ):
        path.write_bytes(broken)
        assert verify(path, 10**6, 10**6) == Failed("broken_image")


@pytest.mark.parametrize(("room_bytes", "most"), [(10, 1), (2 * 64 * 64 * 12, 2)])
def test_pictures_are_decoded_at_once_as_far_as_there_is_room(
    room_bytes: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at_once, peak = 0, 0
    load = JpegImageFile.load

    def slow(image: JpegImageFile) -> Any:
        nonlocal at_once, peak
        at_once += 1
        peak = max(peak, at_once)
        time.sleep(0.05)
        loaded = load(image)
        at_once -= 1
        return loaded

    monkeypatch.setattr(JpegImageFile, "load", slow)
    monkeypatch.setattr(verifying, "DECODING", Room(room_bytes))
    path = tmp_path / "picture.jpg"
    Image.new("RGB", (64, 64)).save(path)
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda _: verify(path, 10**6, 10**6), range(8)))
    assert all(isinstance(picture, Picture) for picture in found)
    assert peak == most


PEAKS = """
import sys
from pathlib import Path
from stages.images.verify import DECODED_BYTES, ROOM_BYTES, Room, verify

def peak():
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

verify(Path(sys.argv[1]), 10**8, 10**8)  # what each process takes once
before = peak()
found = verify(Path(sys.argv[2]), 10**8, 10**8)
print(found.suffix, peak() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peaks are read from /proc")
@pytest.mark.parametrize(
    ("name", "suffix", "mode", "options"),
    [
        ("JPEG", ".jpg", "CMYK", {"progressive": True, "subsampling": 0}),
        ("WEBP", ".webp", "RGB", {}),
    ],
)
def test_a_pixel_that_is_decoded_takes_what_is_reckoned_and_no_more(
    name: str, suffix: str, mode: str, options: dict[str, Any], tmp_path: Path
) -> None:
    paths, side_px = [tmp_path / f"{size}{suffix}" for size in ("small", "large")], 2400
    for path, side in zip(paths, (16, side_px), strict=True):
        Image.new(mode, (side, side)).save(path, **options)
    words = [sys.executable, "-c", PEAKS, *map(str, paths)]
    said = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.split()[0] == suffix
    assert 0.9 < int(said.split()[1]) / side_px**2 / DECODED_BYTES[name] < 1.1


@pytest.mark.parametrize("name", ["params.yaml", "profiles/mini.yaml", "profiles/sd15.yaml"])
def test_no_picture_that_a_profile_allows_takes_more_than_the_room_for_decoding(name: str) -> None:
    params = load_params("download", DownloadParams, ROOT / name)
    assert params.max_pixels * max(DECODED_BYTES.values()) <= ROOM_BYTES


def test_limits_come_before_decoding(tmp_path: Path) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(png("fox"))
    assert verify(path, 10**6, 32 * 32 - 1) == Failed("too_many_pixels")
    assert verify(path, 100, 10**6) == Failed("too_large")
    Image.new("RGB", (40, 30)).save(path, "GIF")
    assert verify(path, 10**6, 10**6) == Failed("not_an_image")


@pytest.mark.parametrize(("repeats", "is_sound"), [(100, True), (250, False)])
def test_a_jpeg_of_hundreds_of_scans_is_not_decoded(
    repeats: int, is_sound: bool, tmp_path: Path
) -> None:
    file = io.BytesIO()
    Image.new("L", (64, 64), 128).save(file, "JPEG", progressive=True)
    content, end = file.getvalue(), b"\xff\xd9"
    last_scan = content[content.rindex(b"\xff\xda") : -len(end)]
    path = tmp_path / "picture.jpg"
    path.write_bytes(content.removesuffix(end) + last_scan * repeats + end)
    found = verify(path, 10**6, 10**6)
    assert isinstance(found, Picture) if is_sound else found == Failed("broken_image")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_loses_its_words_and_no_pixel(suffix: str, tmp_path: Path) -> None:
    image = Image.linear_gradient("L").resize((41, 33)).convert("RGB")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    exif = Image.Exif()
    exif[0x013B] = "SomeUser"  # artist
    words: dict[str, Any] = {"exif": exif, "xmp": b"<x:xmpmeta>SomeUser</x:xmpmeta>"}
    text = PngInfo()
    text.add_itxt("Author", "SomeUser")
    own: dict[str, dict[str, Any]] = {
        ".png": {"pnginfo": text},
        ".jpg": {"comment": "SomeUser"},
        ".webp": {},
    }
    path = tmp_path / f"picture{suffix}"
    image.save(path, icc_profile=profile, **words, **own[suffix])
    assert b"SomeUser" in path.read_bytes()
    plain = without_metadata(path.read_bytes())
    assert b"SomeUser" not in plain
    assert without_metadata(plain) == plain
    with Image.open(path) as before, Image.open(io.BytesIO(plain)) as after:
        assert (after.mode, after.size) == (before.mode, before.size)
        assert after.tobytes() == before.tobytes()
        assert after.info["icc_profile"] == profile


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_a_picture_that_lies_on_its_side_stays_so_for_those_who_turn_it_and_names_nobody(
    suffix: str, orientation: int, tmp_path: Path
) -> None:
    exif = Image.Exif()
    exif[0x013B] = "SomeUser"  # artist
    exif[0x0112] = orientation
    path = tmp_path / f"picture{suffix}"
    Image.linear_gradient("L").resize((41, 33)).convert("RGB").save(path, exif=exif)
    plain = without_metadata(path.read_bytes())
    assert b"SomeUser" not in plain
    assert without_metadata(plain) == plain
    with Image.open(path) as before, Image.open(io.BytesIO(plain)) as after:
        seen = ImageOps.exif_transpose(after)
        assert seen.tobytes() == ImageOps.exif_transpose(before).tobytes()
        assert list(after.getexif()) == ([0x0112] if orientation > 1 else [])
    picture = verify(path, 10**6, 10**6)
    assert isinstance(picture, Picture)
    assert (picture.width, picture.height) == seen.size
    assert picture.sha256 == sha256(plain).hexdigest()
    # ours is as sound as what came
    path.write_bytes(plain)
    assert verify(path, 10**6, 10**6) == picture


@given(st.binary(max_size=40), st.sampled_from([b"", b"II*\0", b"MM\0*", b"MM\0*\0\0\0\x08"]))
def test_exif_that_is_none_is_no_crash_and_turns_nothing_oddly(rest: bytes, head: bytes) -> None:
    assert read_orientation(head + rest) in range(1, 9)


def test_what_programs_put_behind_a_picture_is_left_out(tmp_path: Path) -> None:
    for suffix, behind in (
        (".jpg", b"Author: SomeUser"),
        (".webp", b"Author: SomeUser"),
        (".webp", b"VP8X" + bytes(4)),
    ):
        path = tmp_path / f"picture{suffix}"
        Image.linear_gradient("L").convert("RGB").save(path, progressive=True)
        plain = without_metadata(path.read_bytes())
        assert without_metadata(path.read_bytes() + behind) == plain
        path.write_bytes(path.read_bytes() + behind)
        assert isinstance(verify(path, 10**6, 10**6), Picture)


def test_a_nearly_full_disk_that_takes_a_part_of_each_write_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Narrow(io.FileIO):
        def write(self, data: Any) -> int:
            return super().write(memoryview(data)[:3])

    async def pieces() -> AsyncIterator[bytes]:
        for piece in (b"ten bytes.", b"and more"):
            yield piece

    part = Part(tmp_path / "picture")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", lambda path, *_, **__: Narrow(path, "ab"))
        assert asyncio.run(part.take(200, {}, 18, pieces(), 100)) is None
    assert part.body.read_bytes() == b"ten bytes.and more"


def test_a_version_in_any_letters_is_remembered(tmp_path: Path) -> None:
    for tag in ('"plain"', '"../a/b?"', '"1.5%2E+~"', '"snow\u2603"', '"raw\udce9"'):
        part = Part(tmp_path / "picture")
        assert part.begin(200, {"ETag": tag}) == 0
        part.body.write_bytes(b"beginning")
        headers = {"ETag": tag, "Content-Range": "bytes 9-17/18"}
        assert Part(tmp_path / "picture").begin(206, headers) == len(b"beginning")
        assert [path.parent for path in tmp_path.rglob("*")] == [tmp_path]


@pytest.mark.parametrize(
    ("headers", "is_kept"),
    [
        ({"ETag": f'"{"0" * 32}-10000"'}, True),  # S3's, of an object in 10,000 parts
        ({"Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT"}, True),
        ({"ETag": f'"{"f" * 64}"'}, True),  # a SHA-256
        ({"ETag": f'"{"f" * 65}"'}, False),
        ({"ETag": f'"{"/" * 30}"'}, False),
        ({"ETag": f'"{"f" * 65}"', "Last-Modified": "Sun, 06 Nov 1994 08:49:37 GMT"}, False),
    ],
)
def test_a_version_too_long_for_a_name_on_any_disk_is_begun_anew(
    headers: dict[str, str], is_kept: bool, tmp_path: Path
) -> None:
    part = Part(tmp_path / sha256(b"picture").hexdigest())
    assert part.begin(200, headers) == 0
    part.body.write_bytes(b"beginning")
    again = Part(tmp_path / sha256(b"picture").hexdigest()).range_headers()
    assert again.get("If-Range") == (next(iter(headers.values())) if is_kept else None)
    assert len(part.body.name) <= 143  # bytes, of eCryptfs; others take 255


# --- shards -----------------------------------------------------------------------------------


def test_shards_are_sorted_and_the_same_bytes_in_any_order_of_rows(
    image_server: ImageServer, tmp_path: Path
) -> None:
    names = [f"fox{i}" for i in range(12)]
    links = {name: image_server.link(name) for name in names}
    downloaded(tmp_path / "one", links)
    shuffled = dict(random.Random(1).sample(sorted(links.items()), len(links)))
    downloaded(tmp_path / "two", shuffled, replace(PARAMS, connections=1))
    assert stored_ids(tmp_path / "one") == sorted(names)
    assert shard_bytes(tmp_path / "one/images") == shard_bytes(tmp_path / "two/images")
    assert list(shard_bytes(tmp_path / "one/images")) == ["00000.tar", "00001.tar", "00002.tar"]


def test_shards_go_to_the_disk_as_they_grow_and_are_the_same_bytes(
    image_server: ImageServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[int] = []

    def advise(file: int, start: int, end: int, _: int) -> None:
        assert os.fstat(file).st_size >= end > start == 0
        sent.append(end)

    links = {name: image_server.link(name) for name in ("fox1", "fox2", "fox3")}
    downloaded(tmp_path / "one", links)
    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(shards, "WRITTEN_OUT_BYTES", 4096)
    downloaded(tmp_path / "two", links)
    assert sent == sorted(set(sent))
    assert sent
    assert shard_bytes(tmp_path / "one/images") == shard_bytes(tmp_path / "two/images")


def test_a_sample_is_picture_caption_and_facts_and_names_nobody(
    image_server: ImageServer, tmp_path: Path
) -> None:
    downloaded(tmp_path, {"1141": image_server.link("SomeUser_fox")})
    with tarfile.open(tmp_path / "images" / "00000.tar") as tar:
        assert tar.getnames() == ["1141.png", "1141.txt", "1141.json"]
        picture, caption, facts = (file.read() for m in tar if (file := tar.extractfile(m)))
        assert {(m.mtime, m.uid, m.gid, m.uname) for m in tar} == {(0, 0, 0, "")}
    assert picture == png("SomeUser_fox")
    assert caption.decode() == "a 1141, «été»"
    assert json.loads(facts) == {
        "id": "1141",
        "caption": "a 1141, «été»",
        "user": 3,
        "version": "5.2",
        "aspect": "1:1",
        "sha256": sha256(picture).hexdigest(),
        "width": 32,
        "height": 32,
    }
    assert b"SomeUser" not in (tmp_path / "images" / "00000.tar").read_bytes()


def test_one_id_is_one_sample_and_an_odd_id_makes_no_path(
    image_server: ImageServer, tmp_path: Path
) -> None:
    table = pq.read_table(write_pairs(tmp_path / "a", {"../../etc/fox": image_server.link("fox")}))
    pairs = tmp_path / "pairs.parquet"
    pq.write_table(pa.concat_tables([table, table]), pairs)
    run(pairs, *outs(tmp_path), PARAMS, tmp_path / "work")
    (stored,) = read_shards(tmp_path / "images")
    assert stored.member == f"{sample_key('../../etc/fox')}.png"
    assert "/" not in stored.member
    assert json.loads((tmp_path / "report.json").read_text())["failed"]["repeated_id"] == 1
    told = [("../../etc/fox", "fetched_link"), ("../../etc/fox", "repeated_id")]
    assert outcomes(tmp_path) == told


def test_a_folder_with_other_things_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("precious")
    with (
        pytest.raises(FileExistsError, match=r"holds 'mine\.txt'"),
        replacing_folder(tmp_path, "*.tar"),
    ):
        pass
    assert (tmp_path / "mine.txt").read_text() == "precious"


# --- what stops it ----------------------------------------------------------------------------


def test_too_small_a_yield_stops_the_stage_and_leaves_no_shards(
    image_server: ImageServer, tmp_path: Path
) -> None:
    links = {name: image_server.link(name) for name in ("fox", "status-404", "status-403")}
    wanted = r"only 1 of 3 pictures \(33\.3%\).*min_yield = 0\.5.*(gone|refused) 1"
    with pytest.raises(ValueError, match=wanted):
        downloaded(tmp_path, links, replace(PARAMS, min_yield=0.5))
    assert not (tmp_path / "images").exists()
    table = pq.read_table(tmp_path / "outcomes.parquet")
    assert table.filter(pc.equal(table["outcome"], "gone"))["id"].to_pylist() == ["status-404"]
    downloaded(tmp_path, links)
    asked = image_server.asked
    assert (asked["fox"], asked["status-404"]) == (1, 2), "the next try asks anew for the rest"


def test_no_picture_at_all_stops_the_stage_whatever_the_limit(
    image_server: ImageServer, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match="only 0 of 1 pictures"):
        downloaded(tmp_path, {"gone": image_server.link("status-404")})


def test_other_tables_are_refused(tmp_path: Path) -> None:
    table = tmp_path / "pairs.parquet"
    with pytest.raises(FileNotFoundError, match="no such table of pairs"):
        run(table, *outs(tmp_path), PARAMS, tmp_path)
    table.write_text("hello")
    with pytest.raises(ValueError, match="not readable as parquet"):
        run(table, *outs(tmp_path), PARAMS, tmp_path)
    pq.write_table(pa.table({"id": ["1"], "link": ["x"]}), table)
    with pytest.raises(ValueError, match="no column 'aspect', only id, link"):
        run(table, *outs(tmp_path), PARAMS, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"acknowledge_terms": False}, "use_links needs acknowledge_terms: true"),
        ({"use_links": False}, "name a mirror in mirrors, or set use_links"),
        ({"mirrors": ["ftp://host/x"]}, r"mirrors are folders, https:// .* got 'ftp:"),
        ({"mirrors": ["https://me:word@host/x"]}, "holds a password"),
        ({"requests_per_second": -1.0}, "requests_per_second must be at least 0"),
        ({"connections": 0}, "connections must be above 0, got 0"),
        ({"retries": -1}, "retries must be at least 0, got -1"),
        ({"min_yield": 95.0}, r"min_yield must lie in \[0, 1\], got 95\.0"),
        ({"min_side": 5}, "unknown key 'download.min_side'; did you mean 'min_side_px'"),
    ],
)
def test_bad_params_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    command(tmp_path, PARAMS)
    path = tmp_path / "params.yaml"
    section = yaml.safe_load(path.read_text())["download"] | changes
    path.write_text(yaml.safe_dump({"download": section}))
    with pytest.raises(ValueError, match=message):
        load_params("download", DownloadParams, path)


def test_help_explains_each_option() -> None:
    words = [sys.executable, "-m", "stages.download", "--help"]
    shown = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for part in ("--pairs FILE", "--out DIR", "--report FILE", "--outcomes FILE", "killed goes on"):
        assert part in shown


def test_download_and_split_run_without_torch() -> None:
    code = "import sys, stages.download, stages.split; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_fetched_picture_tells_where_it_is(image_server: ImageServer, tmp_path: Path) -> None:
    link = image_server.link("fox")
    outcome = fetched([link], Kept(tmp_path, "pass"))[link]
    assert isinstance(outcome, Fetched)
    assert outcome.path.read_bytes() == png("fox")
    assert outcome.source == "link"
