"""Control flow, tile operators and tensors outside the portable subset, marked as in ``refused_fp32``."""

import tilelang.language as T
from elementwise_kernel import elementwise


def foreign_function():
    @T.macro
    def statement(X, Y, Z, i):
        Y[i] = T.call_extern("float32", "expf", X[i])  # refused: T.call_extern is not portable: use a primitive

    return elementwise(statement)


def while_loop():
    @T.macro
    def statement(X, Y, Z, i):
        value = T.alloc_var("int32")
        value = Z[i]
        while value > 3:  # refused: while is not portable
            value = value - 3
        Z[i] = value

    return elementwise(statement)


def break_out_of_a_loop():
    @T.macro
    def statement(X, Y, Z, i):
        for q in T.serial(4):
            if Z[i] > q:
                break  # refused: T.break is not portable

    return elementwise(statement)


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

    return elementwise(statement)


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

    return elementwise(statement)


def atomic_with_result():
    @T.macro
    def statement(X, Y, Z, i):
        Z[i] = T.atomic_add(Z[0], 1, return_prev=True)  # refused: T.atomic_add_ret is not portable

    return elementwise(statement)


def conditional_index_of_an_atomic():
    @T.macro
    def statement(X, Y, Z, i):
        index = T.if_then_else(Z[i] > 3, 1, 2)
        T.atomic_add(Z[index], 1)  # refused: a conditional index of T.atomic_add is not portable

    return elementwise(statement)


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
