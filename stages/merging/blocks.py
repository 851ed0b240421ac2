"""Where a tensor stands in the network, and what an expression means for it there."""

import re
from collections.abc import Iterable, Mapping
from fractions import Fraction

from stages.diffusion.single_file import UNET, VAE
from stages.merging.table import LAST, MIDDLE
from stages.merging.terms import Call, Sum, Term, Weights, calls, model_names, model_weights
from stages.merging.text import format_weight

PARTS = {  # by the beginning of their keys; SDXL's text encoders are its conditioner
    UNET: "unet",
    "cond_stage_model.": "text_encoder",
    "conditioner.": "text_encoder",
    VAE: "vae",
}
BLOCK = re.compile(re.escape(UNET) + r"(?:(input|output)_blocks\.(\d+)|(middle_block))\.")


def part_of(key: str) -> str | None:
    """Name the network that a key of the original layout belongs to; None if it is another's."""
    return next((part for prefix, part in PARTS.items() if key.startswith(prefix)), None)


def block_of(key: str) -> int:
    """Give a key's place among the 26 block weights: 0 for BASE, then IN00 to OUT11.

    The UNet's embeddings, of the time and of SDXL's sizes, go with IN00 and its last layer with
    OUT11; BASE is what is not of the UNet. A smaller UNet has fewer blocks and leaves the last of
    each kind unused.

    Source: https://github.com/bbc-mc/sdweb-merge-block-weighted-gui
    """
    if key.startswith((UNET + "time_embed.", UNET + "label_emb.")):
        return 1
    if key.startswith(UNET + "out."):
        return 1 + LAST
    found = BLOCK.match(key)
    if not found:
        return 0
    if found[3]:
        return 1 + MIDDLE
    return 1 + (MIDDLE + 1 if found[1] == "output" else 0) + min(int(found[2]), LAST - MIDDLE - 1)


# One key of each place at which an expression may mean something else.
PLACES = {
    **{f"IN{i:02}": f"{UNET}input_blocks.{i}." for i in range(MIDDLE)},
    "M00": f"{UNET}middle_block.",
    **{f"OUT{i:02}": f"{UNET}output_blocks.{i}." for i in range(LAST - MIDDLE)},
    "text encoder": "cond_stage_model.",
    "VAE": VAE,
}


def meanings(weights: Weights) -> list[tuple[str, Weights]]:
    """Say what an expression comes to, place by place; neighbours of one meaning are one line.

    Returns:
        As in [("IN00 to OUT11", …), ("text encoder to VAE", …)]; one pair if all mean the same.
    """
    found: list[tuple[str, str, Weights]] = []
    for place, key in PLACES.items():
        settled = at_key(weights, key)
        if found and found[-1][2] == settled:
            found[-1] = (found[-1][0], place, settled)
        else:
            found.append((place, place, settled))
    return [
        (first if first == last else f"{first} to {last}", settled)
        for first, last, settled in found
    ]


def check_blocks(weights: Weights, keys: Iterable[str]) -> None:
    """Refuse block weights and parts that a file's keys know nothing of: they would do nothing.

    Raises:
        ValueError: naming what the expression asks for.
    """
    keys = list(keys)
    known = {part_of(key) for key in keys}
    for call in calls(weights):
        if call.method == "mbw" and not any(BLOCK.match(key) for key in keys):
            raise ValueError(
                f"mbw: block weights are for the UNet of SD 1.x, 2.x and SDXL, and no key begins "
                f"with {UNET}input_blocks. Merge this architecture without them"
            )
        for name, _ in call.models if call.method == "parts" else ():
            if name not in ("rest", *known):
                raise ValueError(
                    f"parts: no file that {name}= names holds keys of the {name}, as the original "
                    "layout has them, so that it would do nothing. Leave it away, or name a file "
                    "that does"
                )


def sources_by_key(weights: Weights, tensors: Mapping[str, Iterable[str]]) -> dict[str, list[str]]:
    """Say which models an expression takes each tensor from, in the order of its names.

    Args:
        weights: of the whole expression.
        tensors: keys of each model, by its name, in the order of the expression.

    Returns:
        By key, sorted; without the tensors that only models hold of which nothing is taken there.
    """
    names = list(tensors)
    holders = {name: set(keys) for name, keys in tensors.items()}
    found = {}
    for key in sorted(set().union(*holders.values())):
        taken = model_names(at_key(weights, key)) or names[:1]
        if any(key in holders[name] for name in taken):
            found[key] = [name for name in names if name in taken]
    return found


def sum_warning(text: str, weights: Weights) -> str | None:
    """Say so if weights do not sum to 1: the result is then not of the inputs' scale.

    Each part of the network is looked at, for an expression may mean another sum in each.
    """
    totals = {
        key: sum(model_weights(at_key(weights, key)).values(), Fraction())
        for key in PLACES.values()
    }
    wrong: dict[str, Fraction] = {}
    for key, total in totals.items():
        if total != 1:
            wrong.setdefault(str(part_of(key)), total)
    if not wrong:
        return None
    sums = " and ".join(f"to {format_weight(t)} in the {part}" for part, t in wrong.items())
    advice = "Each part's weights should sum to 1, or it is not of its inputs' scale"
    if len(set(totals.values())) == 1:
        total = next(iter(wrong.values()))
        sums = f"to {format_weight(total)}"
        advice = "The added models' weights must exceed the subtracted ones' by 1, as in a + b - c"
        if total > 0 and all(weight >= 0 for weight in weights.values()):
            advice = f"({text}) / {format_weight(total)} has the same proportions and sums to 1"
    return f"merge expression {text!r}: the weights sum {sums}, not to 1. {advice}"


def at_key(weights: Mapping[Term, Fraction] | Sum, key: str) -> Weights:
    """Say what an expression means for one tensor: block weights and parts are settled.

    Returns:
        A sum of models and of methods that compute with values.
    """
    if all(isinstance(term, str) for term in dict(weights)):
        return dict(weights)
    settled: Weights = {}
    for term, weight in dict(weights).items():
        for inner, share in _settled(term, key).items():
            settled[inner] = settled.get(inner, Fraction()) + weight * share
    return settled


def _settled(term: Term, key: str) -> Weights:
    if isinstance(term, str):
        return {term: Fraction(1)}
    if term.method == "mbw":
        second = dict(term.numbers)["blocks"][block_of(key)]
        mixed: Weights = {}
        for name, share in (("a", 1 - second), ("b", second)):
            for inner, weight in at_key(term.model(name), key).items():
                mixed[inner] = mixed.get(inner, Fraction()) + share * weight
        return mixed
    if term.method == "parts":
        given = dict(term.models)
        return at_key(given.get(part_of(key) or "", given["rest"])[0], key)
    models = tuple(
        (name, tuple(tuple(at_key(model, key).items()) for model in sums))
        for name, sums in term.models
    )
    return {Call(term.method, models, term.numbers): Fraction(1)}
