"""What the executors run under a sanitizer: compiled kernels with operands and the expected bits, in folders.

Made by an ordinary process, since compilers and TileLang do not run under a sanitizer.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ascend_kernels
import numpy as np
from ascend_harness import backend as ascend_backend
from ascend_harness import tensor
from cuda_kernels import lower_gemm
from virtual_cuda_kernels import built as built_cuda
from virtual_cuda_kernels import scaled_gemm, scaled_gemm_case

from kernelforge.lowering import Lowered, lower
from kernelforge.ops.mxfp4_gemm import kernel as mxfp4
from kernelforge.ops.mxfp4_gemm import reference
from kernelforge_ascend.backend import VIRTUAL_ARCH
from kernelforge_ascend.marshal import Marshaller, Memory
from kernelforge_ascend.virtual import build
from kernelforge_cuda.nvcc import EXACT_FLAGS
from kernelforge_cuda.virtual import compile_ptx
from kernelforge_cuda.virtual_launch import description

Arrays = dict[str, np.ndarray]
ARCHS = ("sm_80", "sm_90a")
FORMATS = ("e2m1", "e4m3_f32")
M, N, K = 70, 96, 160  # partial tiles in every dimension, several blocks for two threads
ASCEND_TILES = {"block_M": 32, "block_N": 64, "block_K": 128, "threads": 128, "num_stages": 2}

SUM = r"""
extern "C" __global__ void block_sum(const int* x, int* out, int n) {
  __shared__ int part[8];
  int sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) sum += x[i];
  for (int d = 16; d; d >>= 1) sum += __shfl_down_sync(0xffffffff, sum, d);
  if ((threadIdx.x & 31) == 0) part[threadIdx.x >> 5] = sum;
  __syncthreads();
  if (threadIdx.x < 8) atomicAdd(out, part[threadIdx.x]);
}
"""


def _write(folder: Path, inputs: Arrays, outputs: Arrays, **scenario: Any) -> Path:
    """Operands, outputs as they start (``77`` everywhere, or as in ``inputs``) and as they must end."""
    folder.mkdir(parents=True)
    started = {name: inputs.get(name, np.full(value.shape, 77, value.dtype)) for name, value in outputs.items()}
    for name, value in {**inputs, **started}.items():
        np.save(folder / f"{name}.npy", value)
    for name, value in outputs.items():
        np.save(folder / f"{name}.expected.npy", value)
    scenario |= {"arrays": sorted({*inputs, *started}), "outputs": sorted(outputs), "checks": [True, False]}
    (folder / "scenario.json").write_text(json.dumps(scenario))
    return folder


def _gemm_case(a_format: str, experts: int, names: list[str]) -> tuple[Arrays, Arrays]:
    """Operands of the MXFP4 GEMM by the names of the kernel's signature, and the reference's result."""
    rng = np.random.default_rng(17)
    groups = max(experts, 1)
    w = rng.integers(0, 256, (groups, N, K // 2), dtype=np.uint8)
    w_scale = rng.integers(117, 137, (groups, N, K // 32), dtype=np.uint8)
    if a_format == "e2m1":
        a = rng.integers(0, 256, (M, K // 2), dtype=np.uint8)
        a_scale = rng.integers(117, 137, (M, K // 32), dtype=np.uint8)
    else:
        a = rng.integers(0, 256, (M, K), dtype=np.uint8)
        a = np.where((a & 0x7F) == 0x7F, np.uint8(8), a)
        a_scale = rng.standard_normal((M, -(-K // 128))).astype(np.float32)
    offsets = np.array([0, 37, 37, M], np.int32)
    if experts:
        out = reference.grouped_mxfp4_gemm(a, a_scale, w, w_scale, offsets, a_format)
    else:
        out = reference.mxfp4_gemm(a, a_scale, w[0], w_scale[0], a_format)
    operands = [a, a_scale, w.reshape(groups * N, -1), w_scale.reshape(groups * N, -1), *([offsets] if experts else [])]
    return dict(zip(names, operands, strict=False)), {names[-1]: out.view(np.uint16)}


def cuda(root: Path) -> list[Path]:
    """MXFP4 GEMMs, the int8 GEMM, atomics of several CTAs, and a store outside every buffer."""
    made = []
    for arch in ARCHS:
        for a_format in FORMATS:
            for experts in (0, 3):
                lowered = lower_gemm(arch, a_format, experts, N=N, K=K)
                inputs, outputs = _gemm_case(a_format, experts, [argument.name for argument in lowered.info.arguments])
                shapes = {**inputs, **outputs}
                names = [argument.name for argument in lowered.info.arguments]
                scalars = {
                    name: int(shapes[names[position]].shape[axis])
                    for name, (position, axis) in lowered.info.extents().items()
                }
                folder = root / f"mxfp4_gemm-{a_format}-{'grouped' if experts else 'dense'}-{arch}"
                made.append(_write(folder, inputs, outputs, info=description(lowered.info), scalars=scalars))
                (folder / "kernel.ptx").write_text(compile_ptx(lowered.source, arch, flags=EXACT_FLAGS))
        ptx, info = built_cuda(scaled_gemm, arch, 128, 256, 256)
        inputs, result = scaled_gemm_case(128, 256, 256)
        made.append(_write(root / f"int8_gemm-{arch}", inputs, {"C": result}, info=info, scalars={}))
        short = {**inputs, "C": np.zeros(128 * 256 - 64, np.float32)}
        fault = _write(root / f"short_output-{arch}", short, {}, info=info, scalars={}, fault="outside every buffer")
        for folder in (made[-1], fault):
            (folder / "kernel.ptx").write_text(ptx)
        made.append(fault)
    x = np.random.default_rng(1).integers(-(2**31), 2**31, 20_000).astype(np.int32)
    info = {"entry": "block_sum", "grid": ["7", "1", "1"], "block": ["256", "1", "1"], "shared_bytes": "0"}
    info |= {"params": ["x", "out", "n"], "tma": {}}
    inputs = {"x": x, "out": np.zeros(1, np.int32)}
    folder = _write(
        root / "block_sum", inputs, {"out": x.sum(dtype=np.int32, keepdims=True)}, info=info, scalars={"n": x.size}
    )
    (folder / "kernel.ptx").write_text(compile_ptx(SUM, "sm_80", includes=[]))
    return [*made, folder]


def _write_ascend(folder: Path, kernel: Any, inputs: Arrays, outputs: Arrays, **scenario: Any) -> Path:
    """``inputs`` and ``outputs`` together are in the order of the kernel's signature, whatever their names."""
    lowered = kernel if isinstance(kernel, Lowered) else lower(kernel, ascend_backend, VIRTUAL_ARCH)
    arguments = {a.name: v for a, v in zip(lowered.info.arguments, [*inputs.values(), *outputs.values()], strict=True)}
    tensors = [tensor(value) for value in arguments.values()]
    marshal = Marshaller(lowered.info, "cpu")
    blocks = marshal.blocks(tensors)
    workspaces: dict[str, int] = {}

    def workspace(name: str, nbytes: int) -> Memory:
        workspaces[name] = nbytes
        return Memory(0, nbytes)

    values = marshal.values(tensors, blocks, workspace)
    parameters = lowered.info.parameters
    names = list(arguments)
    _write(
        folder,
        {name: arguments[name] for name in names[: len(inputs)]},
        {name: arguments[name] for name in names[len(inputs) :]},
        blocks=blocks,
        parameters=[parameter.name for parameter in parameters],
        workspaces=workspaces,
        scalars={p.name: v for p, v in zip(parameters, values, strict=True) if isinstance(v, int)},
        **scenario,
    )
    (folder / "kernel.cpp").write_text(lowered.source)
    return folder


def ascend(root: Path) -> list[Path]:
    """MXFP4 GEMMs, the int8 GEMM, elementwise and atomic kernels, and an output that is too short."""
    made = []
    rng = np.random.default_rng(23)
    for a_format in FORMATS:
        for experts in (0, 3):
            traced = mxfp4.mxfp4_gemm(N, K, experts, a_format, "bfloat16", **ASCEND_TILES)
            lowered = lower(traced, ascend_backend, VIRTUAL_ARCH)
            inputs, outputs = _gemm_case(a_format, experts, [argument.name for argument in lowered.info.arguments])
            folder = root / f"mxfp4_gemm-{a_format}-{'grouped' if experts else 'dense'}"
            made.append(_write_ascend(folder, lowered, inputs, outputs))
    operands, result = scaled_gemm_case(128, 96, 256)
    lowered = lower(ascend_kernels.scaled_gemm(96, 256, 64, 64, 128), ascend_backend, VIRTUAL_ARCH)
    made.append(_write_ascend(root / "int8_gemm", lowered, operands, {"C": result}))
    x = rng.integers(0x3000, 0x4800, (3, 20, 160), dtype=np.uint16)
    bits = ((x.astype(np.uint32) << 16).view(np.float32) * np.float32(3)).view(np.uint32)
    tripled = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    elementwise = ascend_kernels.bits_of_three_axes(3, 20, 160)
    outputs = {"Y": tripled, "Z": x.max(2).astype(np.int32)}
    made.append(_write_ascend(root / "elementwise", elementwise, {"X": x}, outputs))
    counted = rng.integers(0, 64, (6, 256), dtype=np.int32)
    histogram = np.stack([np.bincount(row, minlength=64) for row in counted]).astype(np.int32)
    made.append(_write_ascend(root / "histogram", ascend_kernels.histogram(6, 256), {"X": counted}, {"H": histogram}))
    made.append(_too_short(root / "short_output", made[4]))
    return made


def _too_short(folder: Path, scenario: Path) -> Path:
    """A scenario whose output lacks its last rows: every order of events ends in a fault on some block."""
    shutil.copytree(scenario, folder)
    facts = json.loads((folder / "scenario.json").read_text())
    (output,) = facts["outputs"]
    np.save(folder / f"{output}.npy", np.load(folder / f"{output}.npy")[:-3])
    facts |= {"outputs": [], "fault": f"of {output}"}
    (folder / "scenario.json").write_text(json.dumps(facts))
    return folder


def build_ascend(folders: list[Path], sanitize: str) -> None:
    """The libraries of :func:`ascend`'s scenarios, unchecked ones instrumented, with an instrumented runtime."""
    for folder in folders:
        (folder / sanitize).mkdir()
        for checked in (False, True):
            build((folder / "kernel.cpp").read_text(), folder / sanitize, checked=checked, sanitize=sanitize)
