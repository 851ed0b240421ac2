"""Show a whole run on one page that needs no network: pictures, figures, choices, ancestry.

It shows what it finds, and names what is missing: an unfinished recipe has a page too. Only the
sections of the params that `report.sections` lists are read; dvc.yaml lists the same, so that
the page is made again when one of them changes.
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from stages.harness.counted import counted
from stages.harness.dvc_command import DVC
from stages.harness.files import replacing, write_json
from stages.harness.params import Params, load_params
from stages.harness.paths import add_params_option, clear_errors
from stages.harness.scratch import replacing_folder
from stages.page.data_card import data_card, describe
from stages.page.findings import Findings, read_findings
from stages.page.headline import headline
from stages.page.site import PAGE, Sources, make_site

LAST_GRID = "final"
LINE_LETTERS = 96  # of params shown


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportParams(Params):
    """Section `report`."""

    title: str  # of the page
    samples: int  # pictures of the data to show
    sections: tuple[str, ...]  # of the params to show; what is expected is read from them, too

    def __post_init__(self) -> None:
        """Check the range."""
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, got {self.samples}")


def run(
    sources: Sources,
    out: Path,
    params: ReportParams,
    all_params: Mapping[str, Any],
    picture: Path | None = None,
    card: Path | None = None,
    metrics: Path | None = None,
) -> list[str]:
    """Write the page of one run.

    Args:
        sources: folders to read.
        out: becomes the site; that of an earlier run is replaced.
        params: the section `report`.
        all_params: the whole params; only the listed sections of it are looked at.
        picture: becomes a copy of the largest sheet of the last grid, to be committed and shown
            where the page cannot be.
        card: becomes the data card, if filter and download have reported.
        metrics: becomes the few figures by which commits are compared, JSON.

    Returns:
        What is missing.

    Raises:
        FileNotFoundError: if there is no folder of reports.
        FileExistsError: if `out` holds something else than a site.
        ValueError: if there is nothing to show, or a file is damaged.
    """
    if out.exists() and any(out.iterdir()) and not (out / PAGE).is_file():
        raise FileExistsError(f"{out}: will not replace it, for it holds no {PAGE}")
    findings = read_findings(sources.reports, out, *([metrics] if metrics else []))
    if findings == Findings():
        raise ValueError(f"{sources.reports}: no report of any stage. Run `{DVC} repro` first")
    sections = {name: all_params.get(name) for name in params.sections}
    known = {name: section for name, section in sections.items() if section is not None}
    texts = {name: _as_yaml(section) for name, section in sections.items()}
    with replacing_folder(out, "*") as folder:
        site = make_site(folder, findings, sources, known, params.title, params.samples, texts)
        pictures = sum(1 for path in folder.rglob("*") if path.is_file()) - 1
    if picture:
        last = sources.reports / "sheets" / LAST_GRID
        sheets = sorted(last.glob("*x*.*"), key=lambda sheet: sheet.stat().st_size)
        if not sheets:
            raise FileNotFoundError(
                f"{last}: no sheet to copy to {picture}. Run `{DVC} repro` first"
            )
        with replacing(picture) as scratch:
            shutil.copyfile(sheets[-1], scratch)
    if card and findings.filter and findings.download:
        described = describe(sources.images, findings.filter, findings.download)
        text = data_card(described, findings.filter, findings.download)
        with replacing(card) as scratch:
            scratch.write_text(text, encoding="utf-8")
    if metrics:
        write_json(metrics, headline(findings))
    for name in findings.unknown:
        print(f"{sources.reports / name}: not shown, for it is no report that the page knows")
    for name in site.left_over:
        print(f"left over from other params, and not shown: {name}")
    for name in site.missing:
        print(f"missing: {name}")
    missing = counted(len(site.missing), "part")
    print(f"{out / PAGE}: {counted(pictures, 'picture')}, {missing} missing")
    return site.missing


def _as_yaml(section: Any) -> str:
    """Write a section out in full, aliases too; nothing if there is none."""
    if section is None:
        return ""
    text = yaml.dump(
        section, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=LINE_LETTERS
    )
    return text.removesuffix("...\n")


class _Dumper(yaml.SafeDumper):
    """Writes what an alias stands for in its place."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002, the name is PyYAML's
        return True


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    for name, text in (
        ("reports", "what the stages wrote: counts, losses, choices, cells, sheets"),
        ("images", "the shards that stages.download wrote"),
        ("out", "becomes the page, index.html, and its pictures"),
    ):
        parser.add_argument(f"--{name}", type=Path, required=True, metavar="DIR", help=text)
    for name, text in (
        ("split", "train.parquet and validation.parquet, from stages.split"),
        ("release", "what stages.release wrote: its file tells the ancestry"),
    ):
        parser.add_argument(f"--{name}", type=Path, metavar="DIR", help=text)
    parser.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="becomes a copy of the last grid's largest sheet, for a README",
    )
    parser.add_argument("--card", type=Path, metavar="FILE", help="becomes the data card, Markdown")
    parser.add_argument(
        "--metrics",
        type=Path,
        metavar="FILE",
        help="becomes the few figures by which commits are compared, JSON",
    )
    add_params_option(parser)
    return parser.parse_args(argv)


def main() -> None:
    """Run from the command line."""
    options = parse()
    with clear_errors():
        params = load_params("report", ReportParams, options.params)
        all_params = yaml.safe_load(options.params.read_text(encoding="utf-8"))
        sources = Sources(options.reports, options.images, options.split, options.release)
        run(
            sources,
            options.out,
            params,
            all_params,
            options.picture,
            options.card,
            options.metrics,
        )


if __name__ == "__main__":
    main()
