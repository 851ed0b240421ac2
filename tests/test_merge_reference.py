"""Each merge method on hand-written 4x4 tensors: against sd-mecha, and the papers' own arithmetic.

SD_MECHA holds what the functions of sd-mecha 1.1.8 (torch 2.13.0, CPU) gave for these tensors,
rounded to five decimals: `weighted_sum`, `add_difference`, `slerp`, `train_difference_mask`,
`ties_sum`, `model_stock`, `add_cosine_a`. Where its definition is another than ours, the inputs
are such that both agree: its slerp evens lengths out, so these are equal; its `k` keeps one
element more; its model stock goes row by row, so the tensors are one row.
"""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from stages.merging.files import merge_files
from stages.merging.methods import (
    dare,
    model_stock,
    similarity,
    slerp,
    ties,
    train_difference,
)
from tests.test_merge_methods import BASE, A, B

KEY = "model.diffusion_model.input_blocks.4.0.in_layers.2.weight"
Array = NDArray[np.float64]

SD_MECHA: dict[str, tuple[Callable[[], Tensor], list[list[float]]]] = {
    "slerp": (
        lambda: slerp(A.clone(), A.T.contiguous(), 0.3),
        [
            [1.30489, 0.44018, 6.52892, -9.14094],
            [3.4745, 7.82935, -10.44136, -0.85354],
            [9.12977, -11.74178, -14.3538, 3.89457],
            [-13.04221, 8.68289, -7.80924, 20.87825],
        ],
    ),
    "train_difference": (
        lambda: train_difference(A.clone(), B.clone(), BASE.clone(), 0.5),
        [
            [4.15, 1.47344, 5.16, -5.6875],
            [1.15, 6.405, -8.35, -5.53906],
            [10.6875, -12.39318, -13.4, 9.4625],
            [-15.12143, 12.0625, -15.0, 15.56406],
        ],
    ),
    "ties": (
        lambda: ties(BASE.clone(), [A.clone(), B.clone()], 0.5, 1),
        [
            [8.0, 7.5, 7.0, -6.5],
            [-6.0, 5.5, -5.0, -8.0],
            [1.0, -6.75, -11.0, 12.0],
            [-13.0, 14.0, -15.0, 16.0],
        ],
    ),
    "model_stock": (
        lambda: model_stock(BASE.clone(), [A.clone(), B.clone()]),
        [
            [2.0023, 1.50115, 2.14549, -0.78982],
            [0.57044, 2.36026, -1.0046, 0.21248],
            [2.57504, -1.21938, -1.29097, 2.07389],
            [-1.43416, 2.50345, -1.29097, 3.07619],
        ],
    ),
    "similarity": (
        lambda: similarity(A.clone(), B.clone(), 0.1),
        [
            [7.16145, 6.79977, 5.7932, -6.5],
            [-4.68227, 5.53685, -5.6034, 4.5],
            [4.59897, -3.9791, -5.4136, -2.5],
            [-3.31773, -0.35753, -3.82719, 0.5],
        ],
    ),
}
SUMS = {  # by hand; sd-mecha's weighted_sum and add_difference give the first two, too
    "0.7*a + 0.3*b": [
        [3.1, 0.85, 4.2, -4.75],
        [1.7, 5.85, -6.4, -4.25],
        [7.5, -8.05, -8.6, 7.65],
        [-9.7, 9.35, -10.2, 11.35],
    ],
    "a + 0.5*(b - x)": [
        [4.5, 1.25, 6.0, -7.75],
        [1.5, 8.25, -10.0, -6.25],
        [10.5, -12.25, -13.0, 10.25],
        [-14.5, 12.75, -15.0, 15.75],
    ],
    "0.5*a + 0.25*b + 0.25*x": [
        [2.75, 1.125, 3.5, -3.375],
        [1.25, 4.625, -4.5, -2.625],
        [5.75, -5.625, -6.0, 5.625],
        [-6.75, 6.875, -7.0, 8.375],
    ],
}


@pytest.mark.parametrize("method", SD_MECHA)
def test_a_method_gives_what_sd_mecha_gives(method: str) -> None:
    function, expected = SD_MECHA[method]
    assert function().numpy() == pytest.approx(np.array(expected), abs=2e-5)


@pytest.mark.parametrize("expression", SUMS)
def test_a_sum_is_what_one_adds_up_by_hand(tmp_path: Path, expression: str) -> None:
    found = merge_tensors(tmp_path, expression)
    assert found.numpy() == pytest.approx(np.array(SUMS[expression]), abs=1e-5)


def merge_tensors(folder: Path, expression: str) -> Tensor:
    inputs = {}
    for name, tensor in {"a": A, "b": B, "x": BASE}.items():
        if name in expression:
            inputs[name] = folder / f"{name}.safetensors"
            save_file({KEY: tensor.contiguous()}, inputs[name])
    out = folder / "out.safetensors"
    merge_files(inputs, expression, out, "float32")
    return load_file(out)[KEY]


def test_ties_is_algorithm_1_of_its_paper_element_by_element() -> None:
    base, models = BASE.double().numpy().ravel(), [A.double().numpy().ravel(), B.numpy().ravel()]
    for keep, scale in ((0.25, 1.0), (0.5, 0.5), (0.75, 2.0)):
        trimmed = []
        for model in models:
            task = model - base
            least = sorted(np.abs(task))[-round(keep * 16)]
            trimmed.append([t if abs(t) >= least else 0.0 for t in task])  # equals stay together
        expected = []
        for place, start in enumerate(base):
            column = [task[place] for task in trimmed]
            sign = np.sign(sum(column))
            agreeing = [value for value in column if value and np.sign(value) == sign]
            expected.append(start + scale * (sum(agreeing) / len(agreeing) if agreeing else 0.0))
        found = ties(BASE.clone(), [A.clone(), B.clone()], keep, scale).numpy().ravel()
        assert found == pytest.approx(np.array(expected), rel=1e-6), (keep, scale)


def test_dare_is_equation_3_of_its_paper_with_the_mask_that_it_draws() -> None:
    keep = 0.4
    mask = torch.rand(4, 4, generator=torch.Generator().manual_seed(5)) < keep
    assert 0 < mask.sum() < 16
    expected = [
        [x + (a - x) / keep if m else x for x, a, m in zip(xs, as_, ms, strict=True)]
        for xs, as_, ms in zip(BASE.tolist(), A.tolist(), mask.tolist(), strict=True)
    ]
    found = dare(BASE.clone(), A.clone(), keep, torch.Generator().manual_seed(5))
    assert found.numpy() == pytest.approx(np.array(expected), rel=1e-6)


@pytest.mark.parametrize("count", [2, 3])
def test_model_stock_is_equation_2_of_its_paper_in_double_precision(count: int) -> None:
    models = [A, B, (A + 2 * B.T).contiguous()][:count]
    base = BASE.double().numpy()
    tasks: list[Array] = [model.double().numpy() - base for model in models]
    cosines = [
        (u * v).sum() / np.sqrt((u * u).sum() * (v * v).sum()) for u, v in combinations(tasks, 2)
    ]
    cosine = max(0.0, float(np.mean(cosines)))
    t = count * cosine / (1 + (count - 1) * cosine)
    mean = np.mean([model.double().numpy() for model in models], axis=0)
    found = model_stock(BASE.clone(), [model.clone() for model in models]).numpy()
    assert found == pytest.approx(t * mean + (1 - t) * base, rel=1e-5)


def test_train_difference_is_supermergers_formula_element_by_element() -> None:
    expected = []
    for a, b, c in zip(A.ravel().tolist(), B.ravel().tolist(), BASE.ravel().tolist(), strict=True):
        whole = abs(b - c) + abs(b - a)
        expected.append(a + 1.8 * 0.7 * (b - c) * (abs(b - a) / whole if whole else 0))
    found = train_difference(A.clone(), B.clone(), BASE.clone(), 0.7).ravel()
    assert found.tolist() == pytest.approx(expected, rel=1e-6)


def test_similarity_is_the_cosine_of_each_column() -> None:
    a, b = A.double().numpy(), B.double().numpy()
    cosine = (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0))
    k = 1 - np.clip(cosine - 0.1, 0, 1)
    found = similarity(A.clone(), B.clone(), 0.1).numpy()
    assert found == pytest.approx((1 - k) * a + k * b, rel=1e-5)
