"""Checkpoints: everything that a run needs to go on as if it had never been interrupted.

A checkpoint is one safetensors file, whole or absent, named after the optimizer step. The two
newest are kept, so that one that a full disk or a broken machine cut short costs minutes.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim import Optimizer

from stages.diffusion.header import read_header
from stages.harness.files import replacing

TENSOR = "$tensor"
KEPT = 2


def save_checkpoint(folder: Path, step: int, state: dict[str, Any]) -> None:
    """Write a checkpoint, then drop all but the newest.

    Args:
        folder: of this run's checkpoints alone.
        step: optimizer steps done.
        state: dicts, lists, tensors and what JSON holds.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_pack(state, "state", tensors))
    with replacing(_path(folder, step)) as scratch:
        save_file(tensors, scratch, metadata={"state": text})
    for path in _checkpoints(folder)[KEPT:]:
        path.unlink()


def load_checkpoint(folder: Path, say: Callable[[str], None]) -> dict[str, Any] | None:
    """Map the newest checkpoint that is whole; None if there is none.

    Args:
        folder: of this run's checkpoints alone.
        say: told when a damaged one is passed over.

    Returns:
        What `save_checkpoint` was given, its tensors on the CPU.
    """
    for path in _checkpoints(folder):
        try:
            header = read_header(path)
        except ValueError as error:
            say(f"passing over a checkpoint: {error}")
            continue
        tensors = load_file(path)
        state: dict[str, Any] = _unpack(json.loads(header.metadata["state"]), tensors)
        return state
    return None


def optimizer_state(optimizer: Optimizer) -> dict[str, Any]:
    """Give an optimizer's state in a form that a checkpoint holds."""
    state = optimizer.state_dict()
    return {**state, "state": {str(i): entry for i, entry in state["state"].items()}}


def load_optimizer_state(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Put back what `optimizer_state` gave, each tensor in its weight's memory layout."""
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    entries = {int(i): _laid_out(entry, weights[int(i)]) for i, entry in state["state"].items()}
    # a group may hold tensors, too, which torch leaves where they are
    groups = [
        {
            name: value.to(weights[0].device) if isinstance(value, Tensor) else value
            for name, value in group.items()
        }
        for group in state["param_groups"]
    ]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


def _path(folder: Path, step: int) -> Path:
    return folder / f"step_{step:09}.safetensors"


def _checkpoints(folder: Path) -> list[Path]:
    """List the checkpoints, newest first."""
    return sorted(folder.glob("step_*.safetensors"), reverse=True)


def _laid_out(value: Any, weight: Tensor) -> Any:
    if isinstance(value, dict):  # bitsandbytes keeps its moments one level down
        return {name: _laid_out(inner, weight) for name, inner in value.items()}
    if isinstance(value, Tensor) and value.shape == weight.shape:
        return torch.empty_like(weight, dtype=value.dtype).copy_(value)
    return value


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Replace each tensor by its name in `tensors`."""
    match value:
        case Tensor():
            tensors[name] = value.detach().cpu().contiguous()
            return {TENSOR: name}
        case dict():
            return {key: _pack(inner, f"{name}/{key}", tensors) for key, inner in value.items()}
        case list() | tuple():
            return [_pack(inner, f"{name}/{i}", tensors) for i, inner in enumerate(value)]
        case _:
            return value


def _unpack(value: Any, tensors: dict[str, Tensor]) -> Any:
    match value:
        case {"$tensor": name}:
            return tensors[name]
        case dict():
            return {key: _unpack(inner, tensors) for key, inner in value.items()}
        case list():
            return [_unpack(inner, tensors) for inner in value]
        case _:
            return value
