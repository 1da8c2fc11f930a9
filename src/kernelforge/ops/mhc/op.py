"""Hyper-connections: public functions."""

from __future__ import annotations

from typing import Any

import torch

from ..support import require_numerics, require_tensor
from . import torch_ops

Tensor = torch.Tensor


def mhc_pre(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    iters: int = 20,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
    numerics: str = "exact",
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Collapse n residual streams into a block's input, and make the weights that spread its output again.

    The RMS-normalized flattened streams are projected by ``fn`` and split into n, n and n*n: pre = sigmoid(. * scale[0]
    + base) + eps, post = 2 sigmoid(. * scale[1] + base), comb = sinkhorn(. * scale[2] + base); collapsed = sum over j
    of pre[j] * x[j]. (Manifold-constrained hyper-connections, as in DeepSeek-V4.) Differentiable in x, fn, scale, base.
    No intermediate of the streams' size is written.

    Args:
        x: streams [..., S, n, C], bfloat16 or float32, contiguous; 2 <= n <= 8, C a multiple of 32.
        fn: float32 [n(n+2), n*C].
        scale: float32 [3].
        base: float32 [n(n+2)].
        iters, eps: Sinkhorn's, as in :func:`kernelforge.sinkhorn`; ``eps`` is also added to pre.
        norm_eps: added to the mean square under the root, 2^-20 to 1.
        numerics: ``"exact"``, the contract of ``docs/numerics.md``.
        backend: None for the tensors' own device, or a device name such as ``"cpu"``, ``"cuda:virtual"``.

    Returns:
        collapsed [..., S, C] in the type of ``x``, post float32 [..., S, n], comb float32 [..., S, n, n].

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it, what was given and what is wanted.
        DeviceUnavailable: the device cannot run here.
    """
    _require("mhc_pre", numerics, x=x, fn=fn, scale=scale, base=base)
    collapsed, post, comb, _, _ = torch_ops.pre(x, fn, scale, base, iters, eps, norm_eps, backend)
    return collapsed, post, comb


def mhc_head(
    x: Tensor,
    fn: Tensor,
    scale: Tensor,
    base: Tensor,
    *,
    eps: float = 1e-6,
    norm_eps: float = 1e-6,
    numerics: str = "exact",
    backend: str | None = None,
) -> Tensor:
    """The final collapse of the streams: :func:`mhc_pre` with ``pre`` alone.

    Args:
        x: streams [..., S, n, C] as in :func:`mhc_pre`.
        fn: float32 [n, n*C].
        scale: float32 [1].
        base: float32 [n].
        eps, norm_eps, numerics, backend: as in :func:`mhc_pre`.

    Returns:
        [..., S, C] in the type of ``x``.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`mhc_pre`.
    """
    _require("mhc_head", numerics, x=x, fn=fn, scale=scale, base=base)
    collapsed: Tensor = torch_ops.head(x, fn, scale, base, eps, norm_eps, backend)[0]
    return collapsed


def mhc_post(
    y: Tensor, x: Tensor, post: Tensor, comb: Tensor, *, numerics: str = "exact", backend: str | None = None
) -> Tensor:
    """Spread a block's output over the streams: out[k] = post[k] * y + sum over j of comb[j, k] * x[j].

    ``comb`` is used transposed, so its columns mix the streams. Differentiable in all four.

    Args:
        y: the block's output [..., S, C], in the type of ``x``.
        x: streams [..., S, n, C] as in :func:`mhc_pre`.
        post: float32 [..., S, n].
        comb: float32 [..., S, n, n].
        numerics, backend: as in :func:`mhc_pre`.

    Returns:
        The streams after the block, like ``x``.

    Raises:
        TypeError, ValueError, DeviceUnavailable: as in :func:`mhc_pre`.
    """
    _require("mhc_post", numerics, y=y, x=x, post=post, comb=comb)
    out: Tensor = torch_ops.post(y, x, post, comb, backend)
    return out


def _require(op: str, numerics: str, **tensors: Any) -> None:
    require_numerics(op, numerics)
    for name, value in tensors.items():
        require_tensor(name, value)
