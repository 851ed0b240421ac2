"""The graph that a ComfyUI server runs for one cell, made from a template that one may edit."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stages.drawing.cell import Cell

WORD = re.compile(r"\{\{(\w+)\}\}")
SAMPLERS = {  # ours -> ComfyUI's sampler and scheduler
    "ddim": ("ddim", "ddim_uniform"),
    "dpmpp_2m": ("dpmpp_2m", "normal"),
    "dpmpp_2m_karras": ("dpmpp_2m", "karras"),
    "euler": ("euler", "normal"),
}
NEEDED = ("checkpoint", "prompt", "seed", "file_name")  # without which cells would be alike


@dataclass(frozen=True, slots=True)
class Workflow:
    """A template: nodes by id, as ComfyUI's "Export (API)" writes them."""

    nodes: dict[str, Any]

    @property
    def version(self) -> str:
        """Name the graph, whatever its spacing."""
        text = json.dumps(self.nodes, sort_keys=True)
        return f"workflow {hashlib.sha256(text.encode()).hexdigest()[:16]}"

    @property
    def words(self) -> set[str]:
        """Name the words that stand in it."""
        return set(WORD.findall(json.dumps(self.nodes)))

    def filled(self, cell: Cell, checkpoint: str, file_name: str) -> dict[str, Any]:
        """Put a cell's values in the place of the words.

        Args:
            cell: what to draw.
            checkpoint: as the server calls it.
            file_name: how the picture's file is to begin. If it is new, the server cannot answer
                with an older file of an equal picture.
        """
        sampler, schedule = SAMPLERS[cell.sampler]
        values: dict[str, Any] = {
            "checkpoint": checkpoint,
            "clip_layer": -cell.clip_skip,
            "file_name": file_name,
            "guidance": cell.guidance,
            "height": cell.height,
            "negative_prompt": cell.negative_prompt,
            "prompt": cell.prompt,
            "sampler": sampler,
            "schedule": schedule,
            "seed": cell.seed,
            "steps": cell.steps,
            "width": cell.width,
        }
        filled: dict[str, Any] = _fill(self.nodes, values)
        return filled


def read_workflow(path: Path) -> Workflow:
    """Read a template.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is no graph in API format, or lacks a word that every cell needs.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such workflow; profiles/comfyui.json is one")
    try:
        nodes = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    are_nodes = isinstance(nodes, dict) and all(
        isinstance(node, dict) and {"class_type", "inputs"} <= node.keys()
        for node in nodes.values()
    )
    if not are_nodes:
        raise ValueError(
            f"{path}: not a workflow in API format (id: {{class_type, inputs}}). In ComfyUI use "
            "Workflow, Export (API)"
        )
    words = Workflow(nodes).words
    known = {*NEEDED, "clip_layer", "guidance", "height", "negative_prompt", "sampler"}
    known |= {"schedule", "steps", "width"}
    if unknown := sorted(words - known):
        raise ValueError(f"{path}: no such word {unknown[0]!r}; known: {', '.join(sorted(known))}")
    if missing := [word for word in NEEDED if word not in words]:
        raise ValueError(f"{path}: {{{{{missing[0]}}}}} stands nowhere in it; put it in its place")
    return Workflow(nodes)


def _fill(value: Any, values: dict[str, Any]) -> Any:
    """Replace a text that is one word by its value, as a number if it is one; others within."""
    if isinstance(value, dict):
        return {key: _fill(inner, values) for key, inner in value.items()}
    if isinstance(value, list):
        return [_fill(inner, values) for inner in value]
    if not isinstance(value, str):
        return value
    if whole := WORD.fullmatch(value):
        return values[whole[1]]
    return WORD.sub(lambda found: str(values[found[1]]), value)
