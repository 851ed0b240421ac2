"""Draw the corpus: one table of pictures and words from the emoji packages of package.json.

  --packages DIR   node_modules, as `npm ci --prefix models/base` fills it
  --out FILE       the table, parquet: style, concept, label, tags, group, tone, image
  --report FILE    counts by style, JSON

A picture's *concept* is the emoji that it shows, without its skin tone; the words come from
emojibase. Icons whose name belongs to no emoji are left out, for nobody could say whether they
show a concept that is held out for validation.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import resvg_py
from PIL import Image, UnidentifiedImageError

from stages.harness.files import replacing, write_json
from stages.harness.paths import clear_errors, stage_paths

SIDE_PX = 96  # the larger of the mini model's two resolutions
FLUENT_3D = "fluent-3d"
SVG_STYLES = {
    "fluent-color": "@iconify-json/fluent-emoji",
    "fluent-flat": "@iconify-json/fluent-emoji-flat",
    "noto": "@iconify-json/noto",
    "blob": "@iconify-json/noto-v1",
    "twemoji": "@iconify-json/twemoji",
    "emojione": "@iconify-json/emojione",
    "fxemoji": "@iconify-json/fxemoji",
    "streamline": "@iconify-json/streamline-emojis",
}
FLUENT_3D_PACKAGE = "@lobehub/fluent-emoji-3d"
WORDS_PACKAGE = "emojibase-data"
NAMES_FROM = ("noto", "twemoji", "fluent-flat")  # packages that map code points to icon names
FLAGS_GROUP = 9  # 258 flags are labels to learn by heart, not things to draw
TONES = {2: "1f3fc", 4: "1f3fe"}  # medium-light and medium-dark skin, as in the file names

SCHEMA = pa.schema(
    [
        ("style", pa.string()),
        ("concept", pa.string()),
        ("label", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("group", pa.int32()),
        ("tone", pa.int32()),
        ("image", pa.binary()),
    ]
)


@dataclass(frozen=True, slots=True)
class Concept:
    """What an emoji shows: its code points without variation selector, and emojibase's words."""

    hexcode: str
    label: str
    tags: tuple[str, ...]
    group: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """One picture before it is drawn: an SVG text, or the bytes of a raster file."""

    style: str
    concept: Concept
    tone: int  # 0 is the emoji's own yellow; else a key of TONES
    name: str  # the package's name for it, for messages
    source: str | bytes


def check_packages(packages: Path, manifest: Path) -> None:
    """Make sure that each package of the manifest lies in `packages`, in its exact version.

    Raises:
        FileNotFoundError, ValueError: naming the package, both versions and the remedy.
    """
    remedy = f"Run: npm ci --prefix {manifest.parent}"
    for name, wanted in json.loads(manifest.read_text("utf-8"))["dependencies"].items():
        about = packages / name / "package.json"
        if not about.is_file():
            raise FileNotFoundError(
                f"{about}: the corpus package {name}@{wanted} is missing. {remedy}"
            )
        got = json.loads(about.read_text("utf-8"))["version"]
        if got != wanted:
            raise ValueError(f"{about}: expected {name}@{wanted}, found version {got}. {remedy}")


def plain_hexcode(hexcode: str) -> str:
    """Lower-case code points without U+FE0F, which packages write or leave out at will."""
    return hexcode.lower().replace("-fe0f", "")


def squeezed(name: str) -> str:
    """Reduce a name to letters and digits, so that `alarm-clock`, `alarmclock` and labels meet."""
    return re.sub(r"[^a-z0-9]", "", name.lower().replace("&", "and"))


def read_concepts(packages: Path) -> dict[str, Concept]:
    """Read emojibase's words by plain hexcode, without flags and components."""
    entries = json.loads((packages / WORDS_PACKAGE / "en" / "data.json").read_text("utf-8"))
    concepts = {}
    for entry in entries:
        group = entry.get("group")
        if group in (None, FLAGS_GROUP):
            continue
        hexcode = plain_hexcode(entry["hexcode"])
        words = (entry["label"], tuple(entry.get("tags", ())))
        concepts[hexcode] = Concept(hexcode, words[0].lower(), words[1], group)
    return concepts


def names_of_concepts(packages: Path, concepts: dict[str, Concept]) -> dict[str, Concept]:
    """Map squeezed icon names to concepts: by code point tables, labels, then shortcodes."""
    names: dict[str, Concept] = {}

    def learn(name: str, hexcode: str) -> None:
        if concept := concepts.get(plain_hexcode(hexcode)):
            names.setdefault(squeezed(name), concept)

    for style in NAMES_FROM:
        table = packages / SVG_STYLES[style] / "chars.json"
        for hexcode, name in json.loads(table.read_text("utf-8")).items():
            learn(name, hexcode)
    for concept in concepts.values():
        learn(concept.label, concept.hexcode)
    for table in sorted((packages / WORDS_PACKAGE / "en" / "shortcodes").glob("*.json")):
        for hexcode, codes in json.loads(table.read_text("utf-8")).items():
            for name in [codes] if isinstance(codes, str) else codes:
                learn(name, hexcode)
    return names


def svg_drawings(
    packages: Path, names: dict[str, Concept], unmatched: Counter[str]
) -> Iterator[Drawing]:
    """List the icons that show a concept; `cactus-2` is one more picture of `cactus`."""
    for style, package in SVG_STYLES.items():
        icon_set = json.loads((packages / package / "icons.json").read_text("utf-8"))
        for name, icon in sorted(icon_set["icons"].items()):
            variant = re.sub(r"-\d$", "", name) if style == "streamline" else name
            concept = names.get(squeezed(name)) or names.get(squeezed(variant))
            if concept is None:
                unmatched[style] += 1
                continue
            box = [
                icon.get(key, icon_set.get(key, 0)) for key in ("left", "top", "width", "height")
            ]
            svg = (
                '<svg xmlns="http://www.w3.org/2000/svg" '
                'xmlns:xlink="http://www.w3.org/1999/xlink" '
                f'width="{box[2]}" height="{box[3]}" viewBox="{" ".join(map(str, box))}">'
                f"{icon['body']}</svg>"
            )
            yield Drawing(style, concept, 0, name, svg)


def fluent_3d_drawings(packages: Path, concepts: dict[str, Concept]) -> Iterator[Drawing]:
    """List the glossy pictures, each concept's own and its two skin tones where it has some."""
    files = {plain_hexcode(p.stem): p for p in (packages / FLUENT_3D_PACKAGE / "assets").iterdir()}
    for hexcode, concept in sorted(concepts.items()):
        first, *rest = hexcode.split("-")
        for tone, modifier in {0: "", **TONES}.items():
            toned = "-".join([first, modifier, *rest] if modifier else [first, *rest])
            if path := files.get(toned):
                yield Drawing(FLUENT_3D, concept, tone, path.name, path.read_bytes())


def draw(drawing: Drawing) -> bytes | None:
    """Draw on white at SIDE_PX, as WebP; None if the picture does not decode.

    Vector drawings are kept without loss; a raster file comes as lossy WebP and stays lossy.
    """
    try:
        raster = drawing.source
        if isinstance(raster, str):
            raster = bytes(
                resvg_py.svg_to_bytes(
                    svg_string=raster, width=2 * SIDE_PX, skip_system_fonts=True, dpi=96
                )
            )
        with Image.open(io.BytesIO(raster)) as image:
            picture = image.convert("RGBA")
    except (ValueError, UnidentifiedImageError, OSError):
        return None
    picture.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.LANCZOS)
    canvas = Image.new("RGBA", (SIDE_PX, SIDE_PX), "white")
    corner = ((SIDE_PX - picture.width) // 2, (SIDE_PX - picture.height) // 2)
    canvas.alpha_composite(picture, corner)
    out = io.BytesIO()
    lossless = isinstance(drawing.source, str)
    canvas.convert("RGB").save(
        out, "WEBP", lossless=lossless, quality=50 if lossless else 95, method=2
    )
    return out.getvalue()


def collect(packages: Path, manifest: Path) -> tuple[pa.Table, dict[str, object]]:
    """Draw every picture that shows a concept.

    Returns:
        A table with SCHEMA's columns, and the counts for the report.
    """
    check_packages(packages, manifest)
    concepts = read_concepts(packages)
    unmatched: Counter[str] = Counter()
    drawings = [
        *svg_drawings(packages, names_of_concepts(packages, concepts), unmatched),
        *fluent_3d_drawings(packages, concepts),
    ]
    with ProcessPoolExecutor() as pool:
        images = list(pool.map(draw, drawings, chunksize=64))
    undecoded = Counter(d.style for d, image in zip(drawings, images, strict=True) if not image)
    rows = [
        {
            "style": d.style,
            "concept": d.concept.hexcode,
            "label": d.concept.label,
            "tags": list(d.concept.tags),
            "group": d.concept.group,
            "tone": d.tone,
            "image": image,
        }
        for d, image in zip(drawings, images, strict=True)
        if image
    ]
    report: dict[str, object] = {
        "concepts": len({row["concept"] for row in rows}),
        "pictures": dict(Counter(str(row["style"]) for row in rows)),
        "icons_of_no_concept": dict(unmatched),
        "undecoded": dict(undecoded),
    }
    return pa.Table.from_pylist(rows, SCHEMA), report


def run(packages: Path, out: Path, report: Path) -> None:
    """Draw the corpus and count what was drawn and what was not."""
    table, figures = collect(packages, Path(__file__).with_name("package.json"))
    with replacing(out) as scratch:
        pq.write_table(table, scratch)
    write_json(report, figures)
    print(json.dumps(figures, indent=2, sort_keys=True))


if __name__ == "__main__":
    with clear_errors():
        *paths, _ = stage_paths(__doc__, "packages", "out", "report")
        run(*paths)
