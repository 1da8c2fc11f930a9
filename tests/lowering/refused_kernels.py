"""Kernels outside the portable subset. Each line with a ``refused:`` comment must be refused with that message."""

import tilelang.language as T


def _elementwise(statement):
    """A kernel of 64 fp32 elements around one macro, ``statement(X, Y, Z, i)``."""

    @T.prim_func
    def main(X: T.Tensor((64,), "float32"), Y: T.Tensor((64,), "float32"), Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(64):
                statement(X, Y, Z, i)

    return main


def exp():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.exp(X[i])  # refused: T.exp is not portable: use numerics.exp

    return _elementwise(statement)


def exp2():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.exp2(X[i])  # refused: T.exp2 is not portable: use numerics.exp2

    return _elementwise(statement)


def log():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.log(X[i])  # refused: T.log is not portable: use a polynomial

    return _elementwise(statement)


def sqrt():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.sqrt(X[i])  # refused: T.sqrt is not portable: use x * numerics.rsqrt(x)

    return _elementwise(statement)


def rsqrt():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.rsqrt(X[i])  # refused: T.rsqrt is not portable: use numerics.rsqrt

    return _elementwise(statement)


def trigonometry():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.sin(X[i])  # refused: T.sin is not portable: use a polynomial
        Y[i] = T.cos(X[i])  # refused: T.cos is not portable: use a polynomial
        Y[i] = T.tanh(X[i])  # refused: T.tanh is not portable: use numerics.sigmoid

    return _elementwise(statement)


def pow():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.pow(X[i], 2.0)  # refused: T.pow is not portable: use a polynomial

    return _elementwise(statement)


def sigmoid():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.sigmoid(X[i])  # refused: T.sigmoid is not portable: use numerics.sigmoid

    return _elementwise(statement)


def fma():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.fma(X[i], X[i], X[i])  # refused: T.fma is not portable: use a * b + c
        Y[i] = T.ieee_fmaf(X[i], X[i], X[i])  # refused: T.ieee_fmaf is not portable: use a * b + c

    return _elementwise(statement)


def rounding():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.floor(X[i])  # refused: T.floor is not portable: use the bits of x + 12582912.0
        Y[i] = T.abs(X[i])  # refused: T.abs is not portable: use T.reinterpret

    return _elementwise(statement)


def float_division():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] / Y[i]  # refused: fp32 division is not portable: use numerics.recip

    return _elementwise(statement)


def float_maximum():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.max(X[i], Y[i])  # refused: fp32 T.max is not portable (NaN and -0 differ): use compare
        Y[i] = T.min(X[i], Y[i])  # refused: fp32 T.min is not portable (NaN and -0 differ): use compare

    return _elementwise(statement)


def float_to_int():
    @T.macro
    def statement(X, Y, Z, i):
        Z[i] = T.cast(X[i], "int32")  # refused: cast from float32 to int32 is not portable

    return _elementwise(statement)


def half_arithmetic():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.cast(  # refused: arithmetic of float16 is not portable: carry uint16 bits
            T.cast(X[i], "float16"), "float32"
        )

    return _elementwise(statement)


def double_arithmetic():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.cast(  # refused: arithmetic of float64 is not portable
            T.cast(X[i], "float64") * T.float64(3.0), "float32"
        )

    return _elementwise(statement)


def sum_minus_term():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = (X[i] + T.float32(3.0)) - T.float32(3.0)  # refused: fp32 (x + c) - c is not portable
        Y[i] = (T.float32(3.0) + X[i]) - T.float32(3.0)  # refused: fp32 (x + c) - c is not portable
        Y[i] = (X[i] + Y[i]) - X[i]  # refused: fp32 (x + c) - c is not portable
        total = X[i] + T.float32(12582912.0)
        Y[i] = total - T.float32(12582912.0)  # refused: fp32 (x + c) - c is not portable
        Y[i] = total * T.float32(1.0) - T.float32(12582912.0)  # refused: fp32 (x + c) - c is not portable

    return _elementwise(statement)


def term_minus_sum():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] - (X[i] + T.float32(3.0))  # refused: fp32 x - (x + c) is not portable
        Y[i] = X[i] - (T.float32(3.0) + X[i])  # refused: fp32 x - (x + c) is not portable
        total = Y[i] + X[i]
        Y[i] = X[i] - total  # refused: fp32 x - (x + c) is not portable

    return _elementwise(statement)


def self_difference():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] - X[i]  # refused: fp32 x - x is not portable
        value = X[i] * Y[i]
        Y[i] = value - X[i] * Y[i]  # refused: fp32 x - x is not portable
        Y[i] = T.Select(Z[i] > 0, X[i], Y[i]) - X[i]  # refused: fp32 x - x is not portable

    return _elementwise(statement)


def times_zero():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] * 0.0  # refused: fp32 x * 0.0 is not portable
        Y[i] = T.float32(0.0) * X[i]  # refused: fp32 x * 0.0 is not portable
        zero = T.float32(0.0)
        Y[i] = X[i] * zero  # refused: fp32 x * 0.0 is not portable

    return _elementwise(statement)


def plus_zero():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = X[i] + 0.0  # refused: fp32 x + 0.0 is not portable
        Y[i] = T.float32(0) + X[i]  # refused: fp32 x + 0.0 is not portable
        zero = T.float32(0.0)
        Y[i] = zero + X[i]  # refused: fp32 x + 0.0 is not portable
        Z[i] = T.if_then_else(  # refused: fp32 x + 0.0 is
            X[i] > Y[i] and Z[i] > 0, 1, T.reinterpret("int32", X[i] + 0.0)
        )
        if X[i] + 0.0 > Y[i]:  # refused: fp32 x + 0.0 is not portable
            Y[i] = X[i]

    return _elementwise(statement)


def self_comparison():
    @T.macro
    def statement(X, Y, Z, i):
        Z[i] = T.if_then_else(X[i] != X[i], 1, 0)  # refused: fp32 x == x and x != x are not portable
        value = X[i]
        Z[i] = T.if_then_else(value == X[i], 1, 0)  # refused: fp32 x == x and x != x are not portable

    return _elementwise(statement)


def negated_comparison():
    @T.macro
    def statement(X, Y, Z, i):
        if not (X[i] < Y[i]):  # refused: not of an fp32 comparison is not portable
            Z[i] = 1
        if not (X[i] < Y[i] and Z[i] > 0):  # refused: not of an fp32 comparison is not portable
            Z[i] = 3

    return _elementwise(statement)


def mirrored_comparison():
    @T.macro
    def statement(X, Y, Z, i):
        if X[i] < Y[i] or Y[i] <= X[i]:  # refused: an fp32 comparison or its mirror image
            Z[i] = 1
        if X[i] < Y[i] or X[i] > Y[i]:  # refused: an fp32 comparison or its mirror image
            Z[i] = 1

    return _elementwise(statement)


def comparison_in_the_else_of_its_opposite():
    @T.macro
    def statement(X, Y, Z, i):
        Z[i] = T.if_then_else(  # refused: an fp32 comparison in the else
            X[i] < Y[i], 1, T.if_then_else(X[i] >= Y[i], 2, 3)
        )
        if X[i] <= Y[i]:
            Z[i] = 1
        elif Y[i] < X[i]:  # refused: an fp32 comparison in the else of its opposite
            Z[i] = 2

    return _elementwise(statement)


def foreign_function():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.call_extern("float32", "expf", X[i])  # refused: T.call_extern is not portable: use a primitive

    return _elementwise(statement)


def while_loop():
    @T.macro
    def statement(X, Y, Z, i):
        value = T.alloc_var("int32")
        value = Z[i]
        while value > 3:  # refused: while is not portable
            value = value - 3
        Z[i] = value

    return _elementwise(statement)


def break_out_of_a_loop():
    @T.macro
    def statement(X, Y, Z, i):
        for q in T.serial(4):
            if Z[i] > q:
                break  # refused: T.break is not portable

    return _elementwise(statement)


def thread_index():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            tx = T.get_thread_binding()
            for i in T.Parallel(64):
                Z[i] = tx  # refused: a thread index is not portable: use T.Parallel

    return main


def barrier():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(64):
                Z[i] = i
            T.sync_threads()  # refused: T.sync_threads is not portable: drop it

    return main


def warp_shuffle():
    @T.macro
    def statement(X, Y, Z, i):
        Z[i] = T.shfl_down(Z[i], 1)  # refused: T.shfl_down is not portable: use T.Parallel

    return _elementwise(statement)


def reduction():
    @T.prim_func
    def main(X: T.Tensor((4, 64), "float32"), Y: T.Tensor((4,), "float32")):
        with T.Kernel(1, threads=64) as _:
            x = T.alloc_fragment((4, 64), "float32")
            y = T.alloc_fragment((4,), "float32")
            T.copy(X, x)
            T.reduce_sum(x, y, dim=1)  # refused: T.reduce_sum is not portable: use row_sum of numerics
            T.reduce_max(x, y, dim=1)  # refused: T.reduce_max is not portable
            T.copy(y, Y)

    return main


def integer_reduction():
    @T.prim_func
    def main(X: T.Tensor((4, 64), "int32"), Y: T.Tensor((4,), "int32")):
        with T.Kernel(1, threads=64) as _:
            x = T.alloc_fragment((4, 64), "int32")
            y = T.alloc_fragment((4,), "int32")
            T.copy(X, x)
            T.reduce_sum(x, y, dim=1)  # refused: T.reduce_sum is not portable
            T.copy(y, Y)

    return main


def cumulative_sum():
    @T.prim_func
    def main(X: T.Tensor((4, 64), "int32")):
        with T.Kernel(1, threads=64) as _:
            x = T.alloc_shared((4, 64), "int32")
            T.copy(X, x)
            T.cumsum(x, dim=1)  # refused: T.cumsum is not portable: use a serial loop
            T.copy(x, X)

    return main


def float_atomic():
    @T.macro
    def statement(X, Y, Z, i):
        T.atomic_add(Y[0], X[i])  # refused: T.atomic_add on float32 is not portable

    return _elementwise(statement)


def atomic_with_result():
    @T.macro
    def statement(X, Y, Z, i):
        Z[i] = T.atomic_add(Z[0], 1, return_prev=True)  # refused: T.atomic_add_ret is not portable

    return _elementwise(statement)


def conditional_index_of_an_atomic():
    @T.macro
    def statement(X, Y, Z, i):
        index = T.if_then_else(Z[i] > 3, 1, 2)
        T.atomic_add(Z[index], 1)  # refused: a conditional index of T.atomic_add is not portable

    return _elementwise(statement)


def float_gemm():
    @T.prim_func
    def main(X: T.Tensor((64, 64), "float32"), Y: T.Tensor((64, 64), "float32")):
        with T.Kernel(1, threads=128) as _:
            x = T.alloc_shared((64, 64), "float32")
            y = T.alloc_fragment((64, 64), "float32")
            T.copy(X, x)
            T.gemm(x, x, y, clear_accum=True)  # refused: T.gemm on float32 x float32 -> float32 is not portable
            T.copy(y, Y)

    return main


def data_dependent_loop_around_parallel():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            count = Z[0]
            for q in T.serial(count):  # refused: a data-dependent trip count around T.Parallel
                for i in T.Parallel(64):
                    Z[i] = Z[i] + q

    return main


def dynamic_parallel_extent():
    M = T.dynamic("M")

    @T.prim_func
    def main(Z: T.Tensor((M,), "int32")):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(M):  # refused: dynamic extent of T.Parallel is not portable
                Z[i] = i

    return main


def vectorized_loop():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(16):
                for q in T.vectorized(4):  # refused: T.vectorized is not portable: use T.Parallel
                    Z[i * 4 + q] = i

    return main


def nested_parallel():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(4):
                for q in T.serial(4):
                    for j in T.Parallel(4):  # refused: T.Parallel inside T.Parallel is not portable
                        Z[i * 16 + q * 4 + j] = i

    return main


def loop_annotation():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(64, coalesced_width=2):  # refused: loop annotation 'coalesced_width' is not portable
                Z[i] = i

    return main


def option_of_a_copy():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            x = T.alloc_shared((64,), "int32")
            T.copy(Z, x, coalesced_width=2)  # refused: option coalesced_width of T.copy is not portable
            T.copy(x, Z)

    return main


def converting_copy():
    @T.prim_func
    def main(X: T.Tensor((64,), "float32"), Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            x = T.alloc_shared((64,), "int32")
            T.copy(X, x)  # refused: T.copy from float32 to int32 is not portable
            T.copy(x, Z)

    return main


def swizzled_grid():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:  # refused: attribute threadblock_swizzle_pattern is not portable
            T.use_swizzle(4)
            for i in T.Parallel(64):
                Z[i] = i

    return main


def assignment_outside_parallel():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            Z[0] = Z[0] + 1  # refused: an assignment to Z outside T.Parallel is not portable

    return main


def half_tensor():
    @T.prim_func
    def main(
        X: T.Tensor((64,), "bfloat16"),  # refused: tensor X of bfloat16
        Y: T.Tensor((64,), "bfloat16"),  # refused: tensor Y of bfloat16
    ):
        with T.Kernel(1, threads=64) as _:
            x = T.alloc_shared((64,), "bfloat16")  # refused: buffer x of bfloat16 is not portable: carry uint16 bits
            T.copy(X, x)
            T.copy(x, Y)

    return main


def fp8_and_double_tensors():
    @T.prim_func
    def main(
        X: T.Tensor((64,), "float8_e4m3fn"),  # refused: tensor X of float8_e4m3fn
        Y: T.Tensor((64,), "float64"),  # refused: tensor Y of float64
    ):
        with T.Kernel(1, threads=64) as _:
            pass

    return main


def memory_of_one_device():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:
            x = T.alloc_shared((64,), "int32", scope="shared.tmem")  # refused: scope shared.tmem is not portable
            for i in T.Parallel(64):
                Z[i] = x[i]

    return main


def dynamic_trailing_extent():
    M = T.dynamic("M")

    @T.prim_func
    def main(Z: T.Tensor((64, M), "int32")):  # refused: extent M of axis 1 of tensor Z is not portable
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(64):
                Z[i, 0] = i

    return main


def strided_tensor():
    @T.prim_func
    def main(
        Z: T.StridedTensor((64, 64), (128, 1), "int32"),  # refused: strides of tensor Z are not portable
    ):
        with T.Kernel(1, threads=64) as _:
            for i in T.Parallel(64):
                Z[i, 0] = i

    return main


def nested_block():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:  # noqa: SIM117
            with T.sblock("inner"):  # refused: a nested block is not portable
                for i in T.Parallel(64):
                    Z[i] = i

    return main


def forged_composite():
    @T.prim_func
    def main(Z: T.Tensor((64,), "int32")):
        with T.Kernel(1, threads=64) as _:  # noqa: SIM117
            with T.attr(  # refused: this kf.composite region
                {"variant": 1}, "kf.composite", T.call_extern("int32", "name", Z[3])
            ):
                for i in T.Parallel(64):
                    Z[i] = i

    return main
