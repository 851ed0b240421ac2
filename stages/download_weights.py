"""Fetch one file of weights that the params name, verify its SHA-256, and put it in its place.

    python -m stages.download_weights base --out models/base.safetensors

reads the section `download_weights.base`: source, sha256, licence, merging_allowed, attribution.
The source is a path in the repository, https://…, s3://BUCKET/KEY or hf:OWNER/REPO/FILE@REVISION.
Tokens come from the environment: HF_TOKEN, CIVITAI_TOKEN, AWS_ACCESS_KEY_ID and its like;
HF_ENDPOINT and AWS_ENDPOINT_URL name other servers. What came is kept in .work/download_weights,
so that a transfer that was cut or killed goes on where it was: start it again with the same
command. That folder may be deleted at any time.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.diffusion.header import read_header
from stages.harness.files import link_or_copy, replacing, sha256_file
from stages.harness.params import load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.scratch import work_dir
from stages.remote.address import Remote, parse_source
from stages.remote.transfer import fetch
from stages.remote.weights import WeightsParams


def run(name: str, out: Path, params: WeightsParams, work: Path | None = None) -> None:
    """Put one file of weights in its place.

    Args:
        name: of the weights, for messages.
        out: the file to write; an older one stays whole until the new one is.
        params: the section `download_weights.NAME`.
        work: scratch that outlives the process; by default `.work/download_weights`.

    Raises:
        ValueError: if the file is not the one wanted, or no whole safetensors file.
        OSError: if it is missing, its server cannot be reached, or the disk is full.
    """
    source, sha256 = parse_source(params.source), params.sha256.lower()
    print(f"{name}: fetching {params.source} into {out}", flush=True)
    if isinstance(source, Path):
        copy_local(source, out, sha256)
    else:
        publish_remote(name, params.source, source, out, sha256, work)
    print(f"{out}: {out.stat().st_size:,} bytes, SHA-256 as wanted, {params.licence}")
    if not params.merging_allowed:
        print(
            f"warning: merging_allowed of {name} is false: no release may descend from it, and "
            "`stages.release` will refuse one. Read its licence now; training takes days",
            file=sys.stderr,
        )


def copy_local(path: Path, out: Path, sha256: str) -> None:
    """Copy a file of the repository; the copy is DVC's, the file stays its owner's.

    Raises:
        FileNotFoundError: if it is missing.
        ValueError: if it is no whole safetensors file, or has another hash.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file. Put it there, or name an https:, s3: or hf: address as source"
        )
    if path.resolve() == out.resolve():
        raise ValueError(f"{path}: is both source and --out; keep the source somewhere else")
    read_header(path)
    with replacing(out) as scratch:
        shutil.copyfile(path, scratch)
        if (got := sha256_file(scratch)) != sha256:
            raise ValueError(
                f"{path}: its SHA-256 is not the one in the params. Wanted {sha256}, got {got}. "
                "If the file is right, write its hash in the params"
            )


def publish_remote(
    name: str, source: str, remote: Remote, out: Path, sha256: str, work: Path | None
) -> None:
    """Fetch a file and give it its place.

    Raises:
        ValueError, OSError: see `fetch`.
    """

    def check_start(path: Path) -> None:
        with path.open("rb") as file:
            start = file.read(9)
        if start[8:9] != b"{":
            check_whole(path)

    def check_whole(path: Path) -> None:
        try:
            read_header(path)
        except ValueError as error:
            text = str(error).replace(str(path), source)
            is_page = "web page" in text
            raise ValueError(f"{text} {remote.login_advice() if is_page else ''}".strip()) from None

    whole = fetch(name, source, remote, sha256, work or work_dir("download_weights"), check_start)
    check_whole(whole)
    link_or_copy(whole, out)


def main(argv: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    options = _parser().parse_args(argv)
    with clear_errors():
        params = load_params(f"download_weights.{options.name}", WeightsParams, options.params)
        run(options.name, options.out, params)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m stages.download_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="of the weights in the params")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="FILE", help="the safetensors file to write"
    )
    add_params_option(parser)
    return parser


if __name__ == "__main__":
    main()
