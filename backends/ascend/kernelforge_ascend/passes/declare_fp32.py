"""Definitions of the calls that spell fp32 arithmetic."""

from __future__ import annotations

from typing import Any

from .rewriter import RootRewriter, rebuild_block

PRELUDE = """\
#if defined(__clang__)
#pragma clang fp contract(off)
#endif
#define KF_FUNCTION __simt_callee__ __aicore__ inline
KF_FUNCTION float kf_add(float a, float b) { return a + b; }
KF_FUNCTION float kf_sub(float a, float b) { return a - b; }
KF_FUNCTION float kf_mul(float a, float b) { return a * b; }
KF_FUNCTION float kf_f(int32_t bits) { union { int32_t i; float f; } v; v.i = bits; return v.f; }
KF_FUNCTION int32_t kf_i(float x) { union { float f; int32_t i; } v; v.f = x; return v.i; }
"""
"""One IEEE operation each, never contracted."""


class _Declare(RootRewriter):
    def finish_root(self, node: Any, body: Any) -> Any:
        annotations = dict(node.annotations)
        annotations["pragma_import_c"] = PRELUDE + annotations.get("pragma_import_c", "")
        return rebuild_block(node, body=body, annotations=annotations)


def declare_fp32(function: Any) -> Any:
    """Print the definitions of ``pin_fp32``'s calls, and a ban on contraction, before the kernel."""
    return function.with_body(_Declare().visit(function.body))
