"""Random draws by key: the same for the same key, whoever asks."""

import numpy as np
import pytest
import torch

from stages.diffusion.noise import draw_noise, draw_normal, draw_uniform


def test_a_key_gives_the_same_values_whatever_was_drawn_before() -> None:
    first = draw_normal((4, 8, 8), 555, "train", "a", 3)
    draw_normal((9,), 1, "other")
    torch.manual_seed(0)
    torch.randn(3)
    assert torch.equal(first, draw_normal((4, 8, 8), 555, "train", "a", 3))


def test_the_stream_is_pinned_so_that_no_library_changes_it_unseen() -> None:
    expected = [-0.64983505, -0.58159375]
    drawn = draw_normal((2,), 555, "train", "a", 3).tolist()
    assert drawn == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    "other",
    [
        (556, "train", "a", 3),
        (555, "validation", "a", 3),
        (555, "train", "b", 3),
        (555, "train", "a", 4),
        (555, "train", "a3"),
    ],
)
def test_another_key_gives_other_values(other: tuple[int | str, ...]) -> None:
    assert not torch.equal(draw_normal((16,), 555, "train", "a", 3), draw_normal((16,), *other))


def test_draws_are_standard_normal_and_uniform() -> None:
    values = draw_normal((200_000,), 1).numpy()
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    evenly = np.array([draw_uniform(7, i) for i in range(4000)])
    assert np.histogram(evenly, 10, (0, 1))[0].min() > 330


def test_offset_noise_moves_whole_channels() -> None:
    plain, moved = draw_noise((4, 8, 8), 0.0, 1, "a"), draw_noise((4, 8, 8), 0.1, 1, "a")
    shift = (moved - plain).flatten(1)
    assert torch.allclose(shift, shift[:, :1].expand_as(shift), atol=1e-6)
    assert len(shift[:, 0].unique()) == 4
