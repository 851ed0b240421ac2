"""Break the whole graph at random moments, round after round, and compare what comes out.

  python -m tests.benchmarks.fault_rounds [--rounds 20] [--seed 1] [STAGE …]

What a round is, `tests/faults.py` says; it stops at the first one that ends otherwise than the
unbroken run. tests/test_faults.py does three on a part of the graph.
"""

import argparse
import random
import shutil
import tempfile
import time
from pathlib import Path

from tests.faults import Unbroken, break_and_recover, copied, make_recipe


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.fault_rounds",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=20, help="default: 20")
    parser.add_argument("--seed", type=int, default=1, help="of the first round (default: 1)")
    parser.add_argument("stages", nargs="*", help="as `dvc repro` takes them (default: all)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as scratch:
        folder = Path(scratch).resolve()
        fresh = make_recipe(folder / "fresh")
        whole = Unbroken.run(copied(fresh, folder / "unbroken"), *options.stages)
        took_s = sum(whole.took_s.values())
        print(f"unbroken: {len(whole.took_s)} stages in {took_s:.0f} s", flush=True)
        for seed in range(options.seed, options.seed + options.rounds):
            began = time.monotonic()
            story = break_and_recover(copied(fresh, folder / "round"), whole, random.Random(seed))
            shutil.rmtree(folder / "round")
            took_s = time.monotonic() - began
            print(f"round {seed}: equal after {took_s:.0f} s; {'; '.join(story)}", flush=True)


if __name__ == "__main__":
    main()
