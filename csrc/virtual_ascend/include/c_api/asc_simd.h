// The asc_* calls of CANN's C API that TileLang's Ascend 950 code generator prints, for the virtual device.
#pragma once

#include <cstdint>
#include <type_traits>
#include <utility>

#include "kf_virtual/hooks.h"

#define __aicore__
#define __simt_callee__
#define __simd_callee__
#define __simt_vf__
#define __simd_vf__
#define __launch_bounds__(x)
#define __global__
#define __vector__
#define __cube__
#define __mix__(cubes, vectors)
#define __gm__
#define __ubuf__
#define __cbuf__
#define __ca__
#define __cb__
#define __cc__

#define ASC_IS_AIC (kf::is_cube())
#define ASC_IS_AIV (!kf::is_cube())

using event_t = int;
using asc_load_l2_cache_mode = int;
using asc_store_l2_cache_mode = int;
using asc_dual_dst_mode = int;
using asc_unit_flag_mode = int;
using asc_quant_mode = int;
using asc_relu_pre_mode = int;
using half = _Float16;
struct bfloat16_t {
  uint16_t bits;
};
enum asc_lock_mode { ASC_LOCK_BLOCK, ASC_LOCK_NON_BLOCK };
struct float4_e2m1x2_t {
  uint8_t bits;
};
struct fp8_e8m0_t {
  uint8_t bits;
};

inline void asc_init() {}
inline int asc_get_sub_block_id() { return kf::sub_block(); }

inline void asc_sync_notify(kf_pipe source, kf_pipe target, event_t event, KF_HERE) {
  kf::flag_set(source, target, event, where);
}
inline void asc_sync_wait(kf_pipe source, kf_pipe target, event_t event, KF_HERE) {
  kf::flag_wait(source, target, event, where);
}
inline void asc_sync_intra_arrive(kf_pipe pipe, int id, KF_HERE) { kf::intra_arrive(pipe, id, where); }
inline void asc_sync_intra_wait(kf_pipe pipe, int id, KF_HERE) { kf::intra_wait(pipe, id, where); }
inline void asc_sync_pipe(kf_pipe pipe, KF_HERE) { kf::pipe_barrier(pipe, where); }
inline void asc_sync(KF_HERE) { kf::pipe_barrier(PIPE_ALL, where); }

inline void asc_lock(kf_pipe pipe, int id, asc_lock_mode mode = ASC_LOCK_BLOCK, KF_HERE) {
  if (mode != ASC_LOCK_BLOCK) kf::unsupported("asc_lock(ASC_LOCK_NON_BLOCK)", where);
  kf::buffer_lock(pipe, id, where);
}
inline void asc_unlock(kf_pipe pipe, int id, asc_lock_mode mode = ASC_LOCK_BLOCK, KF_HERE) {
  if (mode != ASC_LOCK_BLOCK) kf::unsupported("asc_unlock(ASC_LOCK_NON_BLOCK)", where);
  kf::buffer_unlock(pipe, id, where);
}

// -- Global memory <-> UB: rows of bytes, strides between row starts
// ---------------------------------------------------

template <class T>
inline void asc_copy_gm2ub_align(T* ub, T* gm, uint32_t rows, uint32_t row_bytes, uint32_t left_pad, uint32_t right_pad,
                                 int data_select, asc_load_l2_cache_mode, int64_t gm_stride, int64_t ub_stride,
                                 KF_HERE) {
  if (left_pad != 0) kf::unsupported("asc_copy_gm2ub_align with left padding", where);
  kf::gm_to_ub(ub, gm, rows, row_bytes, data_select ? right_pad * sizeof(T) : 0, gm_stride, ub_stride, where);
}
template <class T>
inline void asc_copy_ub2gm_align(T* gm, T* ub, uint32_t rows, uint32_t row_bytes, asc_store_l2_cache_mode,
                                 int64_t gm_stride, int64_t ub_stride, KF_HERE) {
  kf::ub_to_gm(gm, ub, rows, row_bytes, gm_stride, ub_stride, where);
}
template <class T>
inline void asc_set_copy_pad_val(T value) {
  kf::set_pad(static_cast<uint64_t>(value));
}

// -- Global memory -> L1, fractal ------------------------------------------------------------------------------------

inline void asc_set_gm2l1_nz_para(int matrices, int, uint16_t c0_stride, int, KF_HERE) {
  if (matrices != 1) kf::unsupported("asc_set_gm2l1_nz_para of several matrices", where);
  kf::set_nz_parameters(c0_stride);
}
template <class T>
inline void asc_copy_gm2l1_nd2nz(T* l1, T* gm, int64_t row_stride, asc_load_l2_cache_mode, uint32_t n, uint32_t d, int,
                                 int, KF_HERE) {
  kf::gm_to_l1(l1, gm, sizeof(T), row_stride, n, d, false, where);
}
template <class T>
inline void asc_copy_gm2l1_dn2nz(T* l1, T* gm, int64_t row_stride, asc_load_l2_cache_mode, uint32_t n, uint32_t d, int,
                                 int, KF_HERE) {
  kf::gm_to_l1(l1, gm, sizeof(T), row_stride, n, d, true, where);
}
struct asc_fill_l1_config {
  uint64_t repeat, blk_num, dst_gap;
};
template <class T>
inline void asc_fill_l1(T* l1, uint32_t value, asc_fill_l1_config config, KF_HERE) {
  kf::fill_l1(l1, sizeof(T), value, config.repeat, config.blk_num, config.dst_gap, where);
}
inline void asc_copy_ub2l1(void* l1, void* ub, uint32_t bursts, uint32_t length, uint32_t ub_gap, uint32_t l1_gap,
                           KF_HERE) {
  kf::ub_to_l1(l1, ub, bursts, length, ub_gap, l1_gap, where);
}

// -- Cube ------------------------------------------------------------------------------------------------------------

template <class T>
inline void asc_copy_l12l0a(T* l0a, T* l1, uint32_t m_start, uint32_t k_start, uint32_t m_step, uint32_t k_step,
                            uint32_t l1_stride, uint32_t l0_stride, KF_HERE) {
  kf::l1_to_l0(false, l0a, l1, m_start, k_start, m_step, k_step, l1_stride, l0_stride, where);
}
template <class T>
inline void asc_copy_l12l0b(T* l0b, T* l1, uint32_t m_start, uint32_t k_start, uint32_t m_step, uint32_t k_step,
                            uint32_t l1_stride, uint32_t l0_stride, KF_HERE) {
  kf::l1_to_l0(true, l0b, l1, m_start, k_start, m_step, k_step, l1_stride, l0_stride, where);
}
template <class T>
inline void asc_copy_l12l0b_transpose(T*, T*, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, KF_HERE) {
  kf::unsupported("asc_copy_l12l0b_transpose", where);
}
template <class C, class A, class B>
inline void asc_mmad(C* l0c, A* l0a, B* l0b, uint32_t m, uint32_t k, uint32_t n, uint32_t unit_flag, bool, bool,
                     bool clear, KF_HERE) {
  constexpr bool exact = std::is_same_v<A, int8_t> && std::is_same_v<B, int8_t> && std::is_same_v<C, int32_t>;
  constexpr bool rounded = std::is_same_v<A, bfloat16_t> && std::is_same_v<B, bfloat16_t> && std::is_same_v<C, float>;
  if (!exact && !rounded) kf::unsupported("asc_mmad of anything but int8 into int32, bfloat16 into float", where);
  if (unit_flag != 0) kf::unsupported("asc_mmad with a unit flag", where);
  (exact ? kf::mmad_int8 : kf::mmad_bf16)(l0c, l0a, l0b, m, k, n, clear, where);
}
template <class T>
inline void asc_copy_l12l0a_mx(uint64_t, T*, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, KF_HERE) {
  kf::unsupported("asc_copy_l12l0a_mx", where);
}
template <class T>
inline void asc_copy_l12l0b_mx(uint64_t, T*, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, uint32_t, KF_HERE) {
  kf::unsupported("asc_copy_l12l0b_mx", where);
}
template <class C, class A, class B>
inline void asc_mmad_mx(C*, A*, B*, uint32_t, uint32_t, uint32_t, uint32_t, bool, bool, bool, KF_HERE) {
  kf::unsupported("asc_mmad_mx", where);
}

inline void asc_set_l0c_copy_nz_para(int matrices, int, int, KF_HERE) {
  if (matrices != 1) kf::unsupported("asc_set_l0c_copy_nz_para of several matrices", where);
}
template <class D, class S>
inline void asc_copy_l0c2ub(D* ub, S* l0c, uint32_t n, uint32_t m, uint32_t ub_stride, uint32_t l0c_stride,
                            int sub_block, asc_dual_dst_mode dual, asc_unit_flag_mode unit_flag, asc_quant_mode quant,
                            asc_relu_pre_mode relu, int split, int nz_to_nd, int nz_to_dn, int clip, KF_HERE) {
  if (unit_flag || quant || relu || split || !nz_to_nd || nz_to_dn || clip || sizeof(D) != 4 || sizeof(S) != 4) {
    kf::unsupported("asc_copy_l0c2ub other than a plain copy of 32-bit sums", where);
  }
  kf::l0c_to_ub(ub, l0c, n, m, ub_stride, l0c_stride, sub_block, dual, where);
}
template <class D, class S>
inline void asc_copy_l0c2gm(D* gm, S* l0c, uint32_t n, uint32_t m, uint32_t gm_stride, uint32_t l0c_stride,
                            asc_store_l2_cache_mode, asc_unit_flag_mode unit_flag, asc_quant_mode quant,
                            asc_relu_pre_mode relu, int split, int nz_to_nd, int nz_to_dn, int clip, KF_HERE) {
  if (unit_flag || quant || relu || split || !nz_to_nd || nz_to_dn || clip || sizeof(D) != 4 || sizeof(S) != 4) {
    kf::unsupported("asc_copy_l0c2gm other than a plain copy of 32-bit sums", where);
  }
  kf::l0c_to_gm(gm, l0c, n, m, gm_stride, l0c_stride, where);
}

// -- Scalar access to global memory past the data cache ---------------------------------------------------------------

template <class T>
inline T asc_load_dev(T* gm, KF_HERE) {
  return static_cast<T>(kf::scalar_load(gm, sizeof(T), where));
}
template <class T>
inline void asc_store_dev(T* gm, T value, KF_HERE) {
  kf::scalar_store(gm, static_cast<uint64_t>(value), sizeof(T), where);
}

// -- Vector functions
// --------------------------------------------------------------------------------------------------

namespace cce {
struct dim3 {
  int x, y, z;
  kf::Where where;
  dim3(int x_, KF_HERE) : x(x_), y(1), z(1), where(where) {}
  dim3(int x_, int y_, KF_HERE) : x(x_), y(y_), z(1), where(where) {}
  dim3(int x_, int y_, int z_, KF_HERE) : x(x_), y(y_), z(z_), where(where) {}
};
}  // namespace cce

// The checkers trace the accesses of generated code; this glue is not part of it.
#define KF_NOT_TRACED __attribute__((no_sanitize("thread")))
#define KF_GLUE KF_NOT_TRACED __attribute__((always_inline)) inline

namespace kf {

template <class... Arguments>
struct Pack;
template <>
struct Pack<> {
  template <class Function, class... Before>
  KF_GLUE void call(Function function, Before... before) const {
    function(before...);
  }
};
template <class First, class... Rest>
struct Pack<First, Rest...> {
  First first;
  Pack<Rest...> rest;
  KF_GLUE Pack(First first_, Rest... rest_) : first(first_), rest(rest_...) {}
  template <class Function, class... Before>
  KF_GLUE void call(Function function, Before... before) const {
    rest.call(function, before..., first);
  }
};

template <auto kFunction, class... Arguments>
struct VectorCall {
  Pack<Arguments...> arguments;
  KF_NOT_TRACED static void run(void* self, bool (*next)()) {
    while (next()) static_cast<VectorCall*>(self)->arguments.call(kFunction);
  }
  KF_NOT_TRACED static void drop(void* self) { delete static_cast<VectorCall*>(self); }
};

}  // namespace kf

template <auto kFunction, class... Arguments>
KF_NOT_TRACED inline void asc_vf_call(cce::dim3 threads, Arguments... arguments) {
  using Call = kf::VectorCall<kFunction, Arguments...>;
  auto* call = new Call{kf::Pack<Arguments...>(arguments...)};
  kf::issue_vector_function({&Call::run, &Call::drop, call, threads.x, threads.y, threads.z}, threads.where);
}

// -- Entry: calls the kernel with arguments read from an array of pointers
// ------------------------------------------------

namespace kf {
template <class... Parameters, std::size_t... kIndex>
KF_NOT_TRACED inline void call_kernel(void (*kernel)(Parameters...), void** arguments, std::index_sequence<kIndex...>) {
  kernel(*static_cast<Parameters*>(arguments[kIndex])...);
}
template <class... Parameters>
KF_NOT_TRACED inline void call_kernel(void (*kernel)(Parameters...), void** arguments) {
  call_kernel(kernel, arguments, std::index_sequence_for<Parameters...>{});
}
}  // namespace kf

#define KF_ENTRY(kernel) \
  extern "C" KF_NOT_TRACED void kf_entry(void** arguments) { kf::call_kernel(&kernel, arguments); }
