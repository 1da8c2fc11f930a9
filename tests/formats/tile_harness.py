"""Lower a small kernel for the "c" target and run it on NumPy arrays; lower it for CUDA and Ascend as source.

The passes here only move buffers to memory the target has; the backends' own passes are tested elsewhere.
"""

from __future__ import annotations

import ctypes
import pathlib
import re
import shutil
import subprocess
import tempfile

import numpy as np
import tilelang
from tilelang import tvm
from tvm import tirx
from tvm.tirx import PyStmtExprMutator

TEMPLATES = pathlib.Path(tilelang.__file__).parent
_SCOPES = {"local.fragment": "local", "shared.dyn": "local", "shared": "local"}


@tirx.functor.mutator
class _ToLocal(PyStmtExprMutator):
    """Shared tiles and fragments become local arrays, parallel loops serial."""

    def __init__(self):
        super().__init__()
        self.renamed: list = []

    def _buffer(self, buffer):
        if buffer.scope() not in _SCOPES:
            return buffer
        for old, new in self.renamed:
            if old.same_as(buffer):
                return new
        new = tirx.decl_buffer(buffer.shape, buffer.dtype, buffer.name, scope=_SCOPES[buffer.scope()])
        self.renamed.append((buffer, new))
        return new

    def visit_sblock_(self, op):
        allocated = [self._buffer(b) for b in op.alloc_buffers]
        body = self.visit_stmt(op.body)
        annotations = {k: v for k, v in (op.annotations or {}).items() if k != "tl.launch_threads"}
        return tirx.SBlock(
            op.iter_vars,
            op.reads,
            op.writes,
            op.name_hint,
            body,
            op.init,
            allocated,
            op.match_buffers,
            annotations,
        )

    def visit_for_(self, op):
        kind = tirx.ForKind.SERIAL if op.kind == tirx.ForKind.PARALLEL else op.kind
        return tirx.For(
            op.loop_var,
            self.visit_expr(op.min),
            self.visit_expr(op.extent),
            kind,
            self.visit_stmt(op.body),
            op.thread_binding,
            op.annotations,
        )

    def visit_buffer_load_(self, op):
        return tirx.BufferLoad(self._buffer(op.buffer), [self.visit_expr(i) for i in op.indices])

    def visit_buffer_store_(self, op):
        return tirx.BufferStore(
            self._buffer(op.buffer), self.visit_expr(op.value), [self.visit_expr(i) for i in op.indices]
        )


def c_source(kernel) -> str:
    with tvm.target.Target({"kind": "c"}) as target:
        moved = kernel.with_body(_ToLocal().visit_stmt(kernel.body))
        return tilelang.lower(moved, target=target).kernel_source


def run_c(kernel, folder: pathlib.Path, **arrays: np.ndarray) -> None:
    """Compile and run; ``arrays`` are the kernel's tensors by name, written in place."""
    source = c_source(kernel)
    # The loader knows a library by its path: a second kernel needs a second one.
    path = pathlib.Path(tempfile.mkdtemp(dir=folder)) / "kernel.cpp"
    path.write_text(source)
    library = path.with_suffix(".so")
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-shared"]
    done = subprocess.run(
        ["g++", *flags, f"-I{TEMPLATES}/src", str(path), "-o", str(library)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    signature = re.search(r"int32_t (\w+_kernel)\((.*?)\) \{", source)
    assert signature is not None, source
    order = [argument.split()[-1].lstrip("*") for argument in signature.group(2).split(",")]
    assert set(order) <= set(arrays), (order, list(arrays))
    getattr(ctypes.CDLL(str(library)), signature.group(1))(*[ctypes.c_void_p(arrays[n].ctypes.data) for n in order])


def cuda_ptx(kernel, folder: pathlib.Path, arch: str = "sm_80") -> str:
    """PTX of a kernel, made without a GPU."""
    with tvm.target.Target({"kind": "cuda", "arch": arch}) as target:
        source = tilelang.lower(kernel, target=target).kernel_source
    path = folder / "kernel.cu"
    path.write_text(source)
    include = [f"-I{TEMPLATES}/src", f"-I{TEMPLATES}/3rdparty/cutlass/include"]
    done = subprocess.run(
        [
            "nvcc",
            "-w",
            "-std=c++17",
            f"-arch={arch}",
            "-ptx",
            "-fmad=false",
            *include,
            str(path),
            "-o",
            str(folder / "k.ptx"),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return (folder / "k.ptx").read_text()


HAS_NVCC = shutil.which("nvcc") is not None
