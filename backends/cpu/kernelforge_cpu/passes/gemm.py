"""The exact int8 dot, registered with TileLang as the C target's gemm."""

from __future__ import annotations

from typing import Any

from tilelang import language as T
from tilelang.cpu.op.gemm.gemm_scalar import GEMM_INST_SCALAR, GemmScalar
from tilelang.tileop.gemm.registry import register_gemm_impl


class GemmExactDot(GemmScalar):
    """int8 x int8 -> int32 by the microkernel; other types keep TileLang's loop."""

    def lower(
        self,
        layout_map: dict[Any, Any],
        target: Any,
        thread_bounds: Any,
        thread_index: Any,
        mbar_phase_expr: Any = None,
    ) -> Any:
        a, b, c = self.ARegion, self.BRegion, self.CRegion
        dtypes = (str(a.buffer.dtype), str(b.buffer.dtype), str(c.buffer.dtype))
        if dtypes != ("int8", "int8", "int32") or self.trans_A:
            return super().lower(layout_map, target, thread_bounds, thread_index, mbar_phase_expr)
        A, B, C = a.buffer, b.buffer, c.buffer
        a0, a1 = (axis.min for axis in a.region[-2:])
        b0, b1 = (axis.min for axis in b.region[-2:])
        c0, c1 = (axis.min for axis in c.region[-2:])
        M, N, K = self.M, self.N, self.K
        transposed, clear = int(self.trans_B), int(bool(self.clear_accum))

        @T.prim_func
        def _gemm_exact_dot() -> None:
            T.call_extern(
                "int32",
                "kf_gemm_s8",
                T.address_of(C[c0, c1]),
                T.int64(C.shape[1]),
                T.address_of(A[a0, a1]),
                T.int64(A.shape[1]),
                T.address_of(B[b0, b1]),
                T.int64(B.shape[1]),
                M,
                N,
                K,
                transposed,
                clear,
            )

        return _gemm_exact_dot


# TileLang picks the implementation by this instruction's name on the C target; the name is replaced, not added.
register_gemm_impl("cpu.scalar", GEMM_INST_SCALAR, lambda target: target.kind.name in {"c", "llvm"}, GemmExactDot)
