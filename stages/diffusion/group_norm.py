"""Group normalisation whose compiled code reads a channels-last tensor in long runs.

In memory such a tensor holds all channels of a pixel side by side. A group of 320 / 32 = 10 of
them is 20 bytes of every 640 in half precision, less than the 32 bytes that a GPU fetches at
least, and code that sums group by group fetches the rest in vain. Here sums are taken channel by
channel, a whole pixel at a time, and put together to groups afterwards.
"""

import torch
from torch import Tensor, nn

SHORT_RUN = 16  # channels of a group, below which they fill no 32 bytes in half precision


class GroupNormByChannels(nn.GroupNorm):
    """An nn.GroupNorm of the same function, parameters and names, for torch.compile."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, torch's name
        """Normalise (N, C, ...); sums are float32, as in torch's own.

        The variance of a group is the mean of its channels' variances and the variance of their
        means: the law of total variance, for channels of equal size.
        """
        inner = tuple(range(2, input.ndim))
        grouped = (len(input), self.num_groups, self.num_channels // self.num_groups)
        variances, means = torch.var_mean(input.float(), inner, correction=0)  # (N, C)
        means, variances = means.view(grouped), variances.view(grouped)
        mean = means.mean(2, keepdim=True)  # (N, groups, 1)
        variance = (variances + (means - mean).square()).mean(2, keepdim=True)
        scale = self.weight.float().view(grouped[1:]) * (variance + self.eps).rsqrt()
        shift = self.bias.float().view(grouped[1:]) - mean * scale
        shape = (*input.shape[:2], *(1 for _ in inner))
        return (input.float() * scale.view(shape) + shift.view(shape)).to(input.dtype)


def norm_by_channels(part: nn.Module) -> None:
    """Put GroupNormByChannels where groups are narrow; weights and their names stay."""
    for parent in list(part.modules()):
        for name, norm in parent.named_children():
            if isinstance(norm, nn.GroupNorm) and norm.num_channels < SHORT_RUN * norm.num_groups:
                setattr(parent, name, _by_channels(norm))


def _by_channels(norm: nn.GroupNorm) -> GroupNormByChannels:
    with torch.device("meta"):  # the parameters are the other's own
        new = GroupNormByChannels(norm.num_groups, norm.num_channels, norm.eps)
    new.weight, new.bias = norm.weight, norm.bias
    return new
