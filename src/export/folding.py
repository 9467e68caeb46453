"""Batch norm folded into the convolution before it, for good: an exported graph holds none."""

import numpy as np
from mindspore import Parameter, Tensor, nn

from src.models.norms import ChannelBias, ConvNorm
from src.runtime.newer import zip_equal

__all__ = ["fold_batch_norms"]


def fold_batch_norms(net: nn.Cell) -> int:
    """Scales the weights of each convolution that a batch norm follows, and puts a ChannelBias in the norm's place.

    Uses the running statistics. The cell is for inference only afterwards, and its parameters are no longer the
    checkpoint's. Returns how many there were.
    """
    folded = 0
    for _, parent in list(net.cells_and_names()):
        children = list(parent.name_cells().items())
        before = [cell for _, cell in children[:-1]]
        if isinstance(parent, ConvNorm):
            children, before = [("", parent), ("norm", parent.norm)], [parent]
        for conv, (name, norm) in zip_equal(before, children[1:]):
            if isinstance(norm, nn.BatchNorm2d):
                if not isinstance(conv, nn.Conv2d) or conv.out_channels != norm.num_features:
                    raise ValueError(f"{name} of {type(parent).__name__} doesn't follow its convolution")
                bias = absorb(conv, norm)
                if isinstance(parent, nn.SequentialCell):
                    parent[int(name)] = bias
                else:
                    setattr(parent, name, bias)
                # placed in a parent that has no name of its own, the parameter would share its name with others
                bias.bias.name = norm.beta.name.removesuffix("beta") + "bias"
                folded += 1
    return folded


def absorb(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> ChannelBias:
    """Scales the weights of `conv` by what `norm` multiplies with; returns what it adds."""
    gamma, beta, mean, variance = (
        p.asnumpy().astype(np.float64) for p in (norm.gamma, norm.beta, norm.moving_mean, norm.moving_variance)
    )
    scale = gamma / np.sqrt(variance + norm.eps)
    weight = conv.weight.asnumpy() * scale.reshape(-1, 1, 1, 1)
    conv.weight.set_data(Tensor(weight.astype(np.float32)))
    return ChannelBias(Parameter(Tensor((beta - mean * scale).astype(np.float32)), name="bias"))
