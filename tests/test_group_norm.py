"""Group norms by channels are torch's own, summed in another order."""

import pytest
import torch
from torch import nn

from stages.diffusion.group_norm import GroupNormByChannels, norm_by_channels


@pytest.mark.parametrize("shape", [(2, 24, 5, 7), (3, 24, 11)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_channel_by_channel_comes_to_the_same(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    norm = nn.GroupNorm(4, 24, eps=1e-6)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    part = nn.Sequential(norm)
    pixels = (torch.randn(shape) * 3 + 50).to(dtype)  # a mean far from 0, where squares cancel
    wanted = norm(pixels.float())
    norm_by_channels(part)
    assert isinstance(part[0], GroupNormByChannels)
    found = part[0](pixels)
    assert found.dtype is dtype
    rounding = torch.finfo(dtype).eps if dtype is not torch.float32 else 2e-5
    assert (found.float() - wanted).abs().max() <= rounding * wanted.abs().max()


def test_wide_groups_stay_and_weights_keep_their_names() -> None:
    part = nn.Sequential(nn.GroupNorm(2, 32), nn.Sequential(nn.GroupNorm(2, 30)))
    before = part.state_dict()
    norm_by_channels(part)
    kinds = [type(part[0]), type(part[1][0])]  # type: ignore[index]
    assert kinds == [nn.GroupNorm, GroupNormByChannels]
    after = part.state_dict()
    assert before.keys() == after.keys()
    assert all(before[key].data_ptr() == after[key].data_ptr() for key in before)
