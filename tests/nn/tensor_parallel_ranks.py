"""What the ranks of the tensor-parallel tests do."""

from __future__ import annotations

import numpy as np
import torch

import kernelforge as kf
from kernelforge.nn import TPMXFP4Linear


def forward_and_backward(group, x: np.ndarray, weight: np.ndarray, grad: np.ndarray) -> dict[str, np.ndarray]:
    """This rank's columns of y and of x's gradient, its rows of the weight's."""
    rank, size = group.rank(), group.size()
    layer = TPMXFP4Linear(weight.shape[1], weight.shape[0], group)
    layer.load_full(torch.from_numpy(weight))
    own = torch.from_numpy(x).to(torch.bfloat16).chunk(size, -1)[rank].clone().requires_grad_()
    y = layer(own)
    y.backward(torch.from_numpy(grad).to(torch.bfloat16).chunk(size, -1)[rank])
    found = {"y": y.detach(), "dx": own.grad, "dw": layer.weight.grad}
    return {name: tensor.float().numpy() for name, tensor in found.items()}


def dense(weight: np.ndarray) -> np.ndarray:
    """The weight as the layer sees it."""
    return kf.dequantize_mxfp4(*kf.quantize_mxfp4(torch.from_numpy(weight))).numpy()
