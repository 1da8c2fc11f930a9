"""What every op's front end needs: tensor descriptions, checks whose errors say what to do, registration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch

from .. import backends

LIBRARY = torch.library.Library("kernelforge", "DEF")
"""Owner of the schemas under ``torch.ops.kernelforge``."""

_DISPATCH_KEYS = ("CPU", "CUDA", "PrivateUse1")
# Packed and scale types have byte twins, which every torch function handles.
_BYTE_VIEWS = tuple(getattr(torch, name) for name in ("float4_e2m1fn_x2", "float8_e8m0fnu") if hasattr(torch, name))


class Meta(NamedTuple):
    """What an op checks about a tensor; hashable, so that checks run once per combination."""

    dtype: torch.dtype
    shape: torch.Size
    device: torch.device
    contiguous: bool

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)} on {self.device}"


def meta(tensor: torch.Tensor | None) -> Meta | None:
    """The description of a tensor; None stays None."""
    if tensor is None:
        return None
    # Not Meta(...), which is a function in Python: calls describe many tensors.
    return tuple.__new__(Meta, (tensor.dtype, tensor.shape, tensor.device, tensor.is_contiguous()))


def bytes_of(tensor: torch.Tensor | None) -> torch.Tensor | None:
    """``float4_e2m1fn_x2`` and ``float8_e8m0fnu`` as uint8; other tensors as they are."""
    if tensor is not None and tensor.dtype in _BYTE_VIEWS:
        return tensor.view(torch.uint8)
    return tensor


def require_tensor(name: str, value: Any) -> None:
    """Raise ``TypeError`` unless ``value`` is a tensor."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: a torch.Tensor is wanted, given {type(value).__name__}")


def expect(
    name: str, given: Meta | None, dtypes: Sequence[torch.dtype], shape: Sequence[int | str], device: torch.device
) -> Meta:
    """Check one argument and return it.

    Args:
        name: as the user knows it.
        given: its description.
        dtypes: the types that are accepted.
        shape: extents; a string stands for any extent and names it in the error.
        device: where the op's first argument lies.

    Raises:
        TypeError: wrong dtype, or missing.
        ValueError: wrong shape, device, or not contiguous.
    """
    wanted = f"{' or '.join(str(d).removeprefix('torch.') for d in dtypes)}[{', '.join(map(str, shape))}]"
    if given is None:
        raise TypeError(f"{name}: missing, wanted {wanted}")
    if given.dtype not in dtypes:
        raise TypeError(f"{name}: given {given}, wanted {wanted}")
    fits = len(given.shape) == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(given.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name}: given {given}, wanted {wanted}")
    if given.device != device:
        raise ValueError(
            f"{name}: given on {given.device}, wanted on {device} like the first argument; move it with .to()"
        )
    if not given.contiguous:
        raise ValueError(f"{name}: given {given} with gaps or permuted strides; pass {name}.contiguous()")
    return given


def choose_device(backend: str | None, device: torch.device) -> str:
    """The kernelforge device that runs tensors on ``device``: ``backend`` if given, else theirs.

    Raises:
        ValueError: ``backend`` cannot take tensors that lie there.
        DeviceUnavailable: no such device, or it cannot run here.
    """
    if backend is None:
        return backends.device_for_tensor(device.type)
    home = home_of(backend)
    if device.type != home:
        raise ValueError(f"backend: {backend!r} takes tensors on {home}, given tensors on {device}")
    return backends.device(backend)[1].name


def home_of(device: str) -> str:
    """The torch device type of the tensors that a kernelforge device takes."""
    owner, chosen = backends.device(device)
    return "cpu" if chosen.virtual else owner.tensor_device


def require_numerics(op: str, numerics: str, modes: Sequence[str] = ("exact",)) -> None:
    """Raise ``ValueError`` unless the op has the mode asked for."""
    if numerics not in modes:
        raise ValueError(f"numerics: {op} has {' and '.join(map(repr, modes))}, given {numerics!r}")


_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter})


def call(op: Any, implementation: Callable[..., Any], tensors: Sequence[torch.Tensor], *rest: Any) -> Any:
    """``op(*tensors, *rest)``, of an op that :func:`define` made of ``implementation``; it writes nothing in place.

    Where no one looks on (tensors are plain, no gradient is asked for, nothing is traced, transformed or profiled)
    torch's dispatcher would do nothing but wrap every argument anew, for autograd's kernel and again for the op's, both
    of them Python. The implementation is called without it then.
    """
    watched = (
        torch.compiler.is_compiling()
        or not _PLAIN.issuperset(map(type, tensors))
        or (torch.is_grad_enabled() and torch._C._any_requires_grad(*tensors))
        or torch.autograd.forward_ad._current_level >= 0
        or torch._C._len_torch_function_stack() > 0
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._functorch.maybe_current_level() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )
    return op(*tensors, *rest) if watched else implementation(*tensors, *rest)


def define(schema: str, implementation: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register an op under ``torch.ops.kernelforge`` for every device, with its fake twin; return its overload."""
    name = schema.partition("(")[0]
    LIBRARY.define(schema, tags=(torch.Tag.needs_exact_strides,) if hasattr(torch.Tag, "needs_exact_strides") else ())
    for key in _DISPATCH_KEYS:
        LIBRARY.impl(name, implementation, key)
    torch.library.register_fake(f"kernelforge::{name}", fake, lib=LIBRARY)
    return getattr(torch.ops.kernelforge, name).default
