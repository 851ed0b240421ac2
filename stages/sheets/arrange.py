"""Which cell of a grid stands where: a sheet per size, a row per prompt, a column per model."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from stages.drawing.axes import axes_of, common_words
from stages.drawing.manifest import Entry, Manifest
from stages.sheets.layout import Row, Sheet


def sheets(manifest: Manifest, cells: Path, columns: Sequence[str]) -> Iterator[Sheet]:
    """Arrange a grid's cells: a sheet per size, a row per prompt, seed and setting.

    There is a column per model.
    """
    at = {(e.model, *e.place): e for e in manifest.entries}
    settings = manifest.settings
    for width, height in dict.fromkeys((e.width, e.height) for e in manifest.entries):
        same_size = [e for e in manifest.entries if (e.width, e.height) == (width, height)]
        rows = []
        by_prompt = sorted(same_size, key=_prompt_order(same_size))
        for place in dict.fromkeys(e.place for e in by_prompt):
            entries = [at[name, *place] for name in columns]
            files = tuple(cells / entry.file if entry.file else None for entry in entries)
            first = entries[0]
            prompt, lines = first.prompt, first.setting.split(", ") if first.setting else []
            if first.negative_prompt != settings.get("negative_prompt", ""):
                prompt += f" (not: {first.negative_prompt})"
            rows.append(Row(prompt, first.seed, files, tuple(lines)))
        title = f"{manifest.group}, {width} x {height} px"
        if common := common_words(settings, axes_of(manifest)):
            title += f", {common}"
        yield Sheet(title, tuple(columns), tuple(rows), width, height)


def _prompt_order(entries: Sequence[Entry]) -> Callable[[Entry], int]:
    """Keep a prompt's rows together, in the order of the prompts."""
    order = {prompt: i for i, prompt in enumerate(dict.fromkeys(e.prompt for e in entries))}
    return lambda entry: order[entry.prompt]
