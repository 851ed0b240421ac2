"""Make the page that `dvc plots` fills anew, with the scripts that draw it inside.

DVC's own page loads them from the network at each look; this one needs none.

  python -m stages.plots_page FOLDER

FOLDER holds package.json and, after `npm install`, node_modules; page.html becomes the page, which
DVC finds by `plots.html_template` of .dvc/config.
"""

import argparse
import json
from pathlib import Path

from stages.harness.files import replacing
from stages.harness.paths import clear_errors

SCRIPTS = ("vega", "vega-lite", "vega-embed")  # each needs those before it
# DVC replaces {refresh_tag} and {plot_divs}; a {scripts} would load its own.
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Plots</title>
{refresh_tag}
<style>
body { margin: 1rem; font: 15px/1.5 system-ui, sans-serif; color-scheme: light; background: #fff }
body > div { display: inline-block; max-width: 100%; vertical-align: top; overflow-x: auto }
img { display: block; max-width: min(46vw, 60rem) }
p { margin: .5rem }
@media (max-width: 45rem) { img { max-width: 90vw } }
</style>
SCRIPTS
</head>
<body>
{plot_divs}
</body>
</html>
"""


def run(folder: Path) -> Path:
    """Write page.html out of the packages that npm has put below a folder.

    Raises:
        FileNotFoundError: if a package is not there.
        ValueError: if one has another version than package.json says.
    """
    wanted = json.loads((folder / "package.json").read_text("utf-8"))["dependencies"]
    scripts = [_script(folder / "node_modules" / name, wanted[name]) for name in SCRIPTS]
    page = folder / "page.html"
    with replacing(page) as scratch:
        scratch.write_text(PAGE.replace("SCRIPTS", "\n".join(scripts)), encoding="utf-8")
    return page


def _script(package: Path, version: str) -> str:
    """Give a package's script as an element, under a line that names it and its licence."""
    if not package.is_dir():
        raise FileNotFoundError(f"{package}: no such package. Run `make plots`, which fetches it")
    about = json.loads((package / "package.json").read_text("utf-8"))
    if about["version"] != version:
        raise ValueError(
            f"{package}: version {about['version']}, not {version}. Run `make plots` anew"
        )
    code = (package / about["jsdelivr"]).read_text("utf-8")
    lines = [line for line in code.splitlines() if not line.startswith("//# sourceMappingURL")]
    text = "\n".join(lines).replace("</script", "<\\/script")
    return (
        f"<script>\n// {about['name']} {version}, {about['license']}, see NOTICE\n{text}\n</script>"
    )


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m stages.plots_page",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of package.json")
    with clear_errors():
        page = run(parser.parse_args().folder)
        print(f"{page}: {page.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
