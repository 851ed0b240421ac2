"""What the graph costs: each stage's time and memory, and DVC's own time around them.

  python -m tests.benchmarks.graph --folder DIR

DIR, empty or new, becomes a fresh clone of this checkout's last commit, in which `dvc repro` makes
everything anew with the running environment. Then a `dvc repro` that has nothing to do, and `dvc
status`, the median of three each. Prints Markdown.

A stage's time is from its process's start to its end. Its memory is the largest of the peaks
(VmHWM) that it and its descendants had, one process each, asked every 50 ms: `getrusage` would give
a child its parent's peak.
"""

import argparse
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DVC = [sys.executable, "-m", "dvc"]
RUNNING = re.compile(r"^Running stage '(?P<name>[^']+)'")
POLL_S = 0.05
ROUNDS = 3
GOALS = {
    "overhead of the graph": "15 %",
    "dvc repro with nothing to do": "6 s",
    "dvc status": "4 s",
}


@dataclass(slots=True)
class Stage:
    """A stage as it ran."""

    name: str
    seconds: float = 0.0
    peak_mb: float = 0.0

    @property
    def group(self) -> str:
        """Name the `foreach` that it belongs to."""
        return self.name.partition("@")[0]


class Watch:
    """Looks at the processes below one that runs stages, until it ends."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.stages: list[Stage] = []
        self.is_over = threading.Event()
        self.thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.is_over.set()
        self.thread.join()

    def _look(self) -> None:
        started: dict[int, float] = {}  # since when a stage's process is there
        while not self.is_over.wait(POLL_S):
            now = time.perf_counter()
            family = list(descendants(self.pid))
            at_work = [pid for pid in family if b"-m\0stages." in command(pid)]
            if at_work and self.stages:
                stage = self.stages[-1]
                stage.seconds = now - started.setdefault(at_work[0], now) + POLL_S
                stage.peak_mb = max(stage.peak_mb, *map(peak_mb, family))


def children(pid: int) -> list[int]:
    """List a process's children, of all its threads."""
    found: list[int] = []
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            found += map(int, path.read_text().split())
        except OSError:
            continue
    return found


def descendants(pid: int) -> Iterator[int]:
    """List children, their children and so on."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def command(pid: int) -> bytes:
    """Give a process's words, each with a zero after it; nothing if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def peak_mb(pid: int) -> float:
    """Give a process's largest resident set so far."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    found = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(found[1]) / 1024 if found else 0.0


def run_graph(folder: Path) -> tuple[list[Stage], float]:
    """Run `dvc repro` in a clone; its stages, and the seconds that all took."""
    began = time.perf_counter()
    with (
        subprocess.Popen([*DVC, "repro"], cwd=folder, stdout=subprocess.PIPE, text=True) as process,
        Watch(process.pid) as watch,
    ):
        assert process.stdout
        for line in process.stdout:
            if found := RUNNING.match(line):
                watch.stages.append(Stage(found["name"]))
                print(f"{time.perf_counter() - began:7.1f} s  {found['name']}", file=sys.stderr)
    if process.returncode:
        sys.exit(f"dvc repro failed in {folder}")
    return watch.stages, time.perf_counter() - began


def median_s(folder: Path, *words: str) -> float:
    """Run a command of DVC's several times; the median of its seconds."""
    times = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        subprocess.run([*DVC, *words], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.graph",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--folder", type=Path, required=True, help="becomes the clone")
    folder = parser.parse_args().folder
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"{folder}: is not empty")
    subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", ROOT, folder], check=True)
    stages, total_s = run_graph(folder)
    of_stages_s = sum(stage.seconds for stage in stages)
    figures = {
        "overhead of the graph": f"{100 * (total_s / of_stages_s - 1):.1f} %",
        "dvc repro with nothing to do": f"{median_s(folder, 'repro'):.1f} s",
        "dvc status": f"{median_s(folder, 'status'):.1f} s",
    }
    print("| stages | of them | time | most memory |\n|---|---|---|---|")
    for group in dict.fromkeys(stage.group for stage in stages):
        ran = [stage for stage in stages if stage.group == group]
        seconds, peak = sum(stage.seconds for stage in ran), max(stage.peak_mb for stage in ran)
        print(f"| `{group}` | {len(ran)} | {seconds:.1f} s | {peak:,.0f} MB |")
    print(f"| all | {len(stages)} | {of_stages_s:.1f} s | |\n")
    print("| | measured | goal |\n|---|---|---|")
    for name, figure in figures.items():
        print(f"| {name} | {figure} | {GOALS[name]} |")


if __name__ == "__main__":
    main()
