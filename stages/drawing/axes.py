"""The axes of a grid in the viewer: what its cells differ by, each setting on its own.

What search and replace made of a prompt stands in the prompt's own row, on an axis of its own.
"""

from collections.abc import Collection, Mapping
from typing import Any

from stages.drawing.manifest import Entry, Manifest

ALWAYS = ("model", "prompt", "seed", "size")  # others are axes only where they vary
# What stands before and behind a setting's number, as `GridParams.label` words it; the part of a
# cell's setting that has none of these forms names the sampler.
NUMBERED = {"steps": ("", " steps"), "guidance": ("guidance ", ""), "clip skip": ("clip skip ", "")}


def place_of(entry: Entry) -> dict[str, Any]:
    """Give a cell's value on every axis that its grid may have."""
    return {
        "model": entry.model,
        "prompt": (entry.written or entry.prompt, entry.negative_prompt),
        "replaced": entry.replaced,
        "seed": entry.seed,
        "size": (entry.width, entry.height),
        **{_axis_of(part): part for part in entry.setting.split(", ") if part},
    }


def axes_of(manifest: Manifest) -> dict[str, list[Any]]:
    """List the values on each axis of a grid, as they are planned; numbers of settings ascend."""
    places = [place_of(entry) for entry in manifest.entries]
    axes = {
        axis: list(dict.fromkeys(place[axis] for place in places))
        for axis in dict.fromkeys(axis for place in places for axis in place)
    }
    axes["model"] = list(manifest.models)
    for axis in NUMBERED.keys() & axes:
        axes[axis].sort(key=_number)
    return {axis: values for axis, values in axes.items() if axis in ALWAYS or len(values) > 1}


def value_words(axis: str, value: Any) -> str:
    """Say a value of an axis as the page does."""
    match axis:
        case "prompt":
            text, negative = value
            return f"{text} (not: {negative})" if negative else str(text)
        case "replaced":
            return str(value) or "as written"
        case "seed":
            return f"seed {value}"
        case "size":
            width, height = value
            return f"{width} × {height} px"
        case _:
            return str(value)


def common_words(known: Mapping[str, Any], axes: Collection[str]) -> str:
    """Say the settings that all cells have in common.

    Args:
        known: settings of the manifest; where it has none, the words are "".
        axes: of the grid, by which its cells differ.
    """
    words = {"sampler": known.get("sampler", "")}
    for axis, (before, after) in NUMBERED.items():
        number = known.get(axis.replace(" ", "_"))
        words[axis] = "" if number is None else f"{before}{number:g}{after}"
    return ", ".join(text for axis, text in words.items() if text and axis not in axes)


def _axis_of(part: str) -> str:
    """Tell which setting a part of a cell's words is about."""
    for axis, (before, after) in NUMBERED.items():
        if part.startswith(before) and part.endswith(after):
            return axis
    return "sampler"


def _number(part: str) -> float:
    """Read the number in a part of a cell's words."""
    before, after = NUMBERED[_axis_of(part)]
    return float(part.removeprefix(before).removesuffix(after))
