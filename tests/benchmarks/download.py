"""Time the download of real pictures over loopback: ours, img2dataset, and a bare loop.

  python -m tests.benchmarks.download --folder DIR --nginx PROGRAM [--python PYTHON] [--pictures N]

Writes N sound PNGs of 1024 px (2.1 MB each) into DIR once, serves them by nginx, and runs whole
processes one after another in this call, for absolute times drift; look at the ratios. Ours
verifies and writes shards; PYTHON is that of an environment with img2dataset, which writes shards
too; the bare loop only fetches and hashes. Then ours is killed when half of the pictures are
there and started again, and the server's log says what was fetched twice. Before all, a file is
written as fast as the disk takes it, for that bounds every rate.
"""

import argparse
import hashlib
import importlib.metadata
import io
import multiprocessing
import os
import platform
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from PIL import Image

from tests.benchmarks.filter import median
from tests.benchmarks.timing import Run, timed

SIDE_PX = 1024
BASES = 16  # pictures of different pixels; files differ by a text of their own
CONNECTIONS = 64
CONFIG = """
worker_processes 2;
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  sendfile on;
  tcp_nopush on;
  keepalive_requests 100000;
  log_format sent '$status $body_bytes_sent $uri';
  access_log {folder}/access.log sent;
  types {{ image/png png; }}
  client_body_temp_path {folder}/t1; proxy_temp_path {folder}/t2; fastcgi_temp_path {folder}/t3;
  uwsgi_temp_path {folder}/t4; scgi_temp_path {folder}/t5;
  server {{ listen 127.0.0.1:{port} sndbuf=64k; root {folder}/served; }}
}}
"""
BARE = """
import asyncio, hashlib, sys
import aiohttp

async def main(path, connections):
    waiting = iter(open(path).read().split())
    connector = aiohttp.TCPConnector(limit=connections)
    async with aiohttp.ClientSession(connector=connector) as session:
        async def work():
            for link in waiting:
                async with session.get(link) as response:
                    hashlib.sha256(await response.read()).hexdigest()
        await asyncio.gather(*(work() for _ in range(connections)))

asyncio.run(main(sys.argv[1], int(sys.argv[2])))
"""
THEIRS = """
import sys
from img2dataset import download

if __name__ == "__main__":
    download(
        url_list=sys.argv[1], output_folder=sys.argv[2], thread_count=32, processes_count=2,
        input_format="txt", output_format="webdataset", number_sample_per_shard=250,
        resize_mode="no", skip_reencode=True, encode_format="png", encode_quality=1,
        compute_hash="sha256", disallowed_header_directives=[], enable_wandb=False,
    )
"""


def text_chunk(text: bytes) -> bytes:
    """Make a PNG chunk that changes the file and no pixel."""
    content = b"tEXtDescription\0" + text
    return struct.pack(">I", len(content) - 4) + content + struct.pack(">I", zlib.crc32(content))


def write_pictures(folder: Path, count: int) -> list[str]:
    """Write sound PNGs of about 2.1 MB below `folder`, those that are not there yet.

    Returns:
        Their paths on the server.
    """
    names = [f"/attachments/1008571045445882941/{10**18 + i}/fox_{i:05}.png" for i in range(count)]
    if (folder / names[-1][1:]).is_file():
        return names
    rng = np.random.default_rng(0)
    bases = []
    for _ in range(BASES):
        # noise of about 5.4 bits a sample, on a slope
        noise = rng.integers(0, 42, (SIDE_PX, SIDE_PX, 3), dtype=np.uint8)
        file = io.BytesIO()
        Image.fromarray(noise + np.uint8(80)).save(file, "PNG", compress_level=1)
        bases.append(file.getvalue())
    for i, name in enumerate(names):
        path = folder / name[1:]
        path.parent.mkdir(parents=True, exist_ok=True)
        base = bases[i % BASES]
        path.write_bytes(base[:33] + text_chunk(str(i).encode()) + base[33:])  # after IHDR
    return names


@contextmanager
def serving(nginx: str, folder: Path) -> Iterator[int]:
    """Serve the pictures on a free port of loopback."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    config = folder / "nginx.conf"
    config.write_text(CONFIG.format(folder=folder, port=port))
    server = subprocess.Popen([nginx, "-c", config, "-p", folder], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        yield port
    finally:
        server.terminate()
        server.wait()


def stage(folder: Path) -> list[str | Path]:
    """Write the params and give the command of our stage."""
    section = yaml.safe_load(Path("profiles/sd15.yaml").read_text())["download"]
    section |= {"mirrors": [], "use_links": True, "acknowledge_terms": True}
    section |= {"connections": CONNECTIONS, "allow_private_addresses": True}
    section |= {"requests_per_second": 0.0}
    (folder / "params.yaml").write_text(yaml.safe_dump({"download": section}))
    words: list[str | Path] = [sys.executable, "-m", "stages.download"]
    words += ["--params", folder / "params.yaml", "--pairs", folder / "pairs.parquet"]
    words += ["--out", folder / "images", "--report", folder / "report.json"]
    return [*words, "--outcomes", folder / "outcomes.parquet"]


def forget(folder: Path) -> None:
    """Take away what earlier runs left."""
    for path in (folder / ".work", folder / "images", folder / "theirs"):
        shutil.rmtree(path, ignore_errors=True)


def digest(images: Path) -> str:
    """Hash all shards."""
    whole = hashlib.sha256()
    for shard in sorted(images.glob("*.tar")):
        with shard.open("rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:12]


def disk_rate(folder: Path, count: int = 500) -> float:
    """Measure how fast the disk takes a file of `count` x 4 MB, in MB/s, to its last byte."""
    path, piece = folder / "disk", os.urandom(4_000_000)
    started = time.perf_counter()
    with path.open("wb") as file:
        for _ in range(count):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    seconds = time.perf_counter() - started
    path.unlink()
    return count * len(piece) / 1e6 / seconds


def sent_bytes(folder: Path) -> int:
    """Sum the bodies that the server sent since its log was emptied."""
    lines = (folder / "access.log").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines)


def kill_halfway(folder: Path, command: list[str | Path], count: int) -> None:
    """Kill a download when half of its pictures are kept."""
    process = subprocess.Popen(
        [str(word) for word in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    work = folder / ".work/download"
    while process.poll() is None:
        kept = sum(1 for path in work.glob("pictures/*/*") if "." not in path.name)
        index = work / "packs/index.txt"
        kept += index.read_text().count("\n") if index.is_file() else 0
        if kept >= count // 2:
            process.send_signal(signal.SIGKILL)
        time.sleep(0.05)
    process.wait()


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR")
    parser.add_argument("--nginx", default="nginx", metavar="PROGRAM")
    parser.add_argument("--python", metavar="PYTHON")
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    folder, count = options.folder.resolve(), options.pictures
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["DVC_ROOT"] = str(folder)
    # in a process of its own: a large parent would show in its children's peaks
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as writer:
        names = writer.submit(write_pictures, folder / "served", count).result()
    wanted_bytes = sum((folder / "served" / name[1:]).stat().st_size for name in names)
    print(
        f"{count:,} PNGs of {SIDE_PX} px, {wanted_bytes / 1e9:.2f} GB; {os.cpu_count()} cores, "
        f"Python {platform.python_version()}, aiohttp {importlib.metadata.version('aiohttp')}"
    )
    print(f"the disk takes {disk_rate(folder):.0f} MB/s")
    with serving(options.nginx, folder) as port:
        links = [f"http://127.0.0.1:{port}{name}" for name in names]
        (folder / "links.txt").write_text("\n".join(links) + "\n")
        rows = {
            "id": [name.split("/")[3] for name in names],
            "url": links,
            "caption": [f"a fox, number {i}" for i in range(count)],
            "version": ["5.2"] * count,
            "aspect": ["1:1"] * count,
            "user": pa.array([1] * count, pa.int32()),
        }
        pq.write_table(pa.table(rows), folder / "pairs.parquet")
        bare = [sys.executable, "-c", BARE, folder / "links.txt", str(CONNECTIONS)]
        commands = {"ours": stage(folder), "bare aiohttp and SHA-256": bare}
        if options.python:
            script = folder / "theirs.py"
            script.write_text(THEIRS)
            commands["img2dataset"] = [
                options.python, script, folder / "links.txt", folder / "theirs",
            ]  # fmt: skip
        runs: dict[str, list[Run]] = {name: [] for name in commands}
        for _ in range(options.repeats):
            for name, command in commands.items():
                forget(folder)
                runs[name].append(timed(command))
                if name == "ours":
                    whole = digest(folder / "images")
        for name, found in runs.items():
            run = median(found)
            times = ", ".join(f"{r.seconds:.1f}" for r in found)
            print(
                f"{name}: {count / run.seconds:.1f} pictures a second, {run.peak_mb:.0f} MB "
                f"at its peak ({times} s), {1000 * run.cpu_seconds / count:.1f} ms of CPU a picture"
            )
        if options.python:
            theirs = statistics.median(r.seconds for r in runs["img2dataset"])
            ours = statistics.median(r.seconds for r in runs["ours"])
            print(f"ours / img2dataset: {theirs / ours:.2f} x as many a second")
        forget(folder)
        (folder / "access.log").write_text("")
        kill_halfway(folder, commands["ours"], count)
        again = timed(commands["ours"])
        twice = sent_bytes(folder) - wanted_bytes
        print(
            f"killed at 50 %, went on for {again.seconds:.1f} s: {twice / 1e6:.1f} MB fetched "
            f"twice ({twice / wanted_bytes:.2%}), the same shards: "
            f"{digest(folder / 'images') == whole}"
        )
    forget(folder)


if __name__ == "__main__":
    main()
