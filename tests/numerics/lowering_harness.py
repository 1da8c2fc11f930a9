"""Lower a small kernel for the "c" target and run it on NumPy arrays; lower it for CUDA and Ascend as source.

The passes here do the least that each target needs, so that what is tested is the macro and TileLang's own pipeline.
"""

from __future__ import annotations

import ctypes
import pathlib
import re
import shutil
import struct
import subprocess

import numpy as np
import tilelang
from tilelang import tvm
from tvm import tirx
from tvm.ir import Range
from tvm.tirx import PyStmtExprMutator

TEMPLATES = pathlib.Path(tilelang.__file__).parent
HAS_NVCC = shutil.which("nvcc") is not None
CFLAGS = ["-std=c++17", "-O2", "-ffp-contract=off", "-fwrapv", "-fno-strict-aliasing", "-fPIC", "-shared"]
_HEADER = """#include <cstdint>
#include <cstring>
extern "C" inline float kf_f(int32_t i) { float f; std::memcpy(&f, &i, 4); return f; }
"""


class _Move(PyStmtExprMutator):
    """Buffers to other scopes; composite regions opened."""

    def __init__(self, scopes: dict[str, str]) -> None:
        super().__init__()
        self.scopes = scopes
        self.renamed: list = []

    def _buffer(self, buffer):
        if buffer.scope() not in self.scopes:
            return buffer
        for old, new in self.renamed:
            if old.same_as(buffer):
                return new
        new = tirx.decl_buffer(buffer.shape, buffer.dtype, buffer.name, scope=self.scopes[buffer.scope()])
        self.renamed.append((buffer, new))
        return new

    def visit_attr_stmt_(self, op):
        body = self.visit_stmt(op.body)
        return body if op.attr_key == "kf.composite" else tirx.AttrStmt(op.node, op.attr_key, op.value, body)

    def visit_sblock_(self, op):
        allocated = [self._buffer(b) for b in op.alloc_buffers]
        body = self.visit_stmt(op.body)
        annotations = {k: v for k, v in (op.annotations or {}).items() if k != "tl.launch_threads"}
        return tirx.SBlock(
            op.iter_vars, op.reads, op.writes, op.name_hint, body, op.init, allocated, op.match_buffers, annotations
        )

    def visit_buffer_load_(self, op):
        return tirx.BufferLoad(self._buffer(op.buffer), [self.visit_expr(i) for i in op.indices])

    def visit_buffer_store_(self, op):
        return tirx.BufferStore(
            self._buffer(op.buffer), self.visit_expr(op.value), [self.visit_expr(i) for i in op.indices]
        )


def _loop(mutator, op, kind):
    body = mutator.visit_stmt(op.body)
    return tirx.For(
        op.loop_var,
        mutator.visit_expr(op.min),
        mutator.visit_expr(op.extent),
        kind,
        body,
        op.thread_binding,
        op.annotations,
    )


@tirx.functor.mutator
class _ToLocal(_Move):
    """Shared tiles and fragments become local arrays, parallel loops serial, fp32 immediates their bits."""

    def __init__(self) -> None:
        super().__init__({"local.fragment": "local", "shared.dyn": "local", "shared": "local"})

    def visit_for_(self, op):
        return _loop(self, op, tirx.ForKind.SERIAL if op.kind == tirx.ForKind.PARALLEL else op.kind)

    def visit_float_imm_(self, op):
        # The "c" printer writes six digits.
        (bits,) = struct.unpack("<i", struct.pack("<f", op.value))
        return tirx.call_pure_extern("float32", "kf_f", tirx.IntImm("int32", bits))


@tirx.functor.mutator
class _OpenComposites(PyStmtExprMutator):
    def visit_attr_stmt_(self, op):
        body = self.visit_stmt(op.body)
        return body if op.attr_key == "kf.composite" else tirx.AttrStmt(op.node, op.attr_key, op.value, body)


@tirx.functor.mutator
class _ToVectorCore(_Move):
    """A kernel of copies and T.Parallel loops in TileLang's Ascend dialect: each outermost loop one SIMT function."""

    def __init__(self, threads: int) -> None:
        super().__init__({"local.fragment": "shared.dyn", "shared": "shared.dyn", "shared.dyn": "shared.dyn"})
        self.threads = threads
        self.functions = 0
        self.inside: list | None = None

    def _buffer(self, buffer):
        if buffer.scope() in ("local", "local.var"):
            if self.inside is not None and not any(buffer.same_as(b) for b in self.inside):
                self.inside.append(buffer)
            return buffer
        return super()._buffer(buffer)

    def visit_for_(self, op):
        if op.kind != tirx.ForKind.PARALLEL or self.inside is not None:
            return _loop(self, op, op.kind)
        self.inside = []
        body = _loop(self, op, op.kind)
        allocated, self.inside = self.inside, None
        for tag, extent in (("z", 1), ("y", 1), ("x", self.threads)):
            if tag == "z":
                body = tirx.AttrStmt("simtvf", "tl.simtvf_scope", tirx.IntImm("int32", 1), body)
            var = tirx.Var("simtvf_t" + tag, "int32")
            axis = tirx.IterVar(Range(0, extent), var, 1, "threadIdx." + tag)
            body = tirx.AttrStmt(axis, "thread_extent", tirx.IntImm("int32", extent), body)
        index = {"tl.vf_source_index": tirx.IntImm("int64", self.functions)}
        self.functions += 1
        return tirx.SBlock([], [], [], "SIMT_VF", body, None, allocated, [], index)

    def visit_evaluate_(self, op):
        call = op.value
        if getattr(call.op, "name", "") != "tl.tileop.copy":
            return tirx.Evaluate(self.visit_expr(call))
        regions = []
        for region in call.args[:2]:
            load = self.visit_buffer_load_(region.args[0])
            regions.append(tirx.Call("handle", region.op, [load, *region.args[1:]]))
        return tirx.Evaluate(tirx.Call("handle", tvm.ir.Op.get("tl.tileop.ascend_copy"), regions))

    def visit_sblock_(self, op):
        moved = super().visit_sblock_(op)
        kept = [b for b in moved.alloc_buffers if b.scope() not in ("local", "local.var")]
        return tirx.SBlock(
            moved.iter_vars, moved.reads, moved.writes, moved.name_hint, moved.body, moved.init, kept,
            moved.match_buffers, moved.annotations,
        )  # fmt: skip


def _lower(kernel, mutator, target: dict[str, str]) -> str:
    with tvm.target.Target(target) as made:
        return tilelang.lower(kernel.with_body(mutator.visit_stmt(kernel.body)), target=made).kernel_source


def c_source(kernel) -> str:
    return _lower(kernel, _ToLocal(), {"kind": "c"})


def cuda_source(kernel, arch: str = "sm_80") -> str:
    return _lower(kernel, _OpenComposites(), {"kind": "cuda", "arch": arch})


def ascend_source(kernel, threads: int = 128) -> str:
    return _lower(kernel, _ToVectorCore(threads), {"kind": "ascend"})


def _compile(source: str, path: pathlib.Path) -> ctypes.CDLL:
    path.write_text(source)
    library = path.with_suffix(".so")
    command = ["g++", *CFLAGS, f"-I{TEMPLATES}/src", str(path), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return ctypes.CDLL(str(library))


def _parameters(source: str, result: str) -> list[str]:
    """Names of the entry function's parameters, in order."""
    signature = re.search(result + r" main_kernel\((.*?)\) \{", source)
    assert signature is not None, source
    return [parameter.split()[-1].lstrip("*") for parameter in signature.group(1).split(",")]


def _call(function, names: list[str], arrays: dict[str, np.ndarray], *scalars: int) -> None:
    assert set(names) == set(arrays), (names, list(arrays))
    function(*[ctypes.c_void_p(arrays[name].ctypes.data) for name in names], *scalars)


def run_c(kernel, folder: pathlib.Path, **arrays: np.ndarray) -> None:
    """Compile and run; ``arrays`` are the kernel's tensors by name, written in place."""
    source = c_source(kernel)
    library = _compile(_HEADER + source, folder / "kernel.cpp")
    _call(library.main_kernel, _parameters(source, "int32_t"), arrays)


_CUDA_HOST = """#include <cstdint>
#define __global__
#define __launch_bounds__(...)
struct Index { int x; };
static Index threadIdx, blockIdx;
"""


def run_cuda_source(kernel, folder: pathlib.Path, blocks: int, threads: int, **arrays: np.ndarray) -> None:
    """Run CUDA source on the host, thread after thread: for kernels whose threads do not depend on one another."""
    source = cuda_source(kernel)
    assert "__syncthreads" not in source
    names = _parameters(source, "__launch_bounds__\\(.*?\\)")
    body = "\n".join(line for line in source.splitlines() if not line.startswith("#") or "pragma" in line)
    parameters = ", ".join(f"float* {name}" for name in names)
    launch = f"""
extern "C" void launch({parameters}, int blocks, int threads) {{
  for (blockIdx.x = 0; blockIdx.x < blocks; ++blockIdx.x)
    for (threadIdx.x = 0; threadIdx.x < threads; ++threadIdx.x) main_kernel({", ".join(names)});
}}
"""
    library = _compile(_CUDA_HOST + body + launch, folder / "cuda.cpp")
    _call(library.launch, names, arrays, blocks, threads)


_ASCEND_HOST = """#include <cstdint>
#include <cstring>
#include <vector>
#define __simt_vf__ static
#define __launch_bounds__(...)
#define __global__
#define __vector__
#define __gm__
#define __ubuf__
struct Index { int x; };
static Index threadIdx;
static int block_idx;
static std::vector<char> unified(1 << 18);
namespace cce { struct dim3 { int x; explicit dim3(int x) : x(x) {} }; }
enum asc_load_l2_cache_mode {};
enum asc_store_l2_cache_mode {};
enum event_t {};
enum { PIPE_MTE2, PIPE_MTE3, PIPE_V };
inline void asc_init() {}
template <class... A> inline void asc_sync_notify(A...) {}
template <class... A> inline void asc_sync_wait(A...) {}
template <class... A> inline void asc_copy_gm2ub_align(uint8_t* to, uint8_t* from, int count, int bytes, A...) {
  std::memcpy(to, from, size_t(count) * bytes);
}
template <class... A> inline void asc_copy_ub2gm_align(uint8_t* to, uint8_t* from, int count, int bytes, A...) {
  std::memcpy(to, from, size_t(count) * bytes);
}
template <auto F, class... A> inline void asc_vf_call(cce::dim3 threads, A... a) {
  for (threadIdx.x = 0; threadIdx.x < threads.x; ++threadIdx.x) F(a...);
}
"""


def run_ascend_source(kernel, folder: pathlib.Path, blocks: int, threads: int, **arrays: np.ndarray) -> None:
    """Run AscendC source on the host, SIMT thread after thread, copies at once: for elementwise kernels."""
    source = ascend_source(kernel, threads)
    names = _parameters(source, "__vector__ void")
    body = "\n".join(line for line in source.splitlines() if not line.startswith("#include"))
    body = re.sub(r"\((__ubuf__ \w+ \*)\)(\d+);", r"(\1)(unified.data() + \2);", body)
    parameters = ", ".join(f"float* {name}" for name in names)
    launch = f"""
extern "C" void launch({parameters}, int blocks) {{
  for (block_idx = 0; block_idx < blocks; ++block_idx) main_kernel({", ".join(names)});
}}
"""
    library = _compile(_ASCEND_HOST + body + launch, folder / "ascend.cpp")
    _call(library.launch, names, arrays, blocks)


def cuda_ptx(kernel, folder: pathlib.Path, arch: str = "sm_80") -> str:
    """PTX of a kernel, made without a GPU."""
    path = folder / "kernel.cu"
    path.write_text(cuda_source(kernel, arch))
    include = [f"-I{TEMPLATES}/src", f"-I{TEMPLATES}/3rdparty/cutlass/include"]
    command = ["nvcc", "-w", "-std=c++17", f"-arch={arch}", "-ptx", "-fmad=false", *include, str(path), "-o"]
    done = subprocess.run([*command, str(folder / "kernel.ptx")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (folder / "kernel.ptx").read_text()
