// What the code of a kernel in exact mode calls, and no more: TileLang's own templates, which define the same names,
// bring CUTLASS along, and its parsing takes three times as long as all that nvcc does with such a kernel.
// headers.py decides which kernels include this file.
#pragma once

#include <math_constants.h>

#include <cstdint>

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;

#define KF_DEVICE __forceinline__ __device__

// Eight 16-bit elements in one vector, the first lowest.
KF_DEVICE uint4 make_uint4(ushort e0, ushort e1, ushort e2, ushort e3, ushort e4, ushort e5, ushort e6, ushort e7) {
  uint4 vector;
  *reinterpret_cast<ushort2*>(&vector.x) = make_ushort2(e0, e1);
  *reinterpret_cast<ushort2*>(&vector.y) = make_ushort2(e2, e3);
  *reinterpret_cast<ushort2*>(&vector.z) = make_ushort2(e4, e5);
  *reinterpret_cast<ushort2*>(&vector.w) = make_ushort2(e6, e7);
  return vector;
}

namespace tl {

enum class DataType { kInt8, kInt32 };

KF_DEVICE uint32_t shared_address(const void* pointer) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(pointer));
}

// A vector whose every part is `unit`.
template <typename Vector, typename Unit>
KF_DEVICE Vector broadcast(const Unit unit) {
  constexpr int kParts = sizeof(Vector) / sizeof(Unit);
  static_assert(kParts * sizeof(Unit) == sizeof(Vector), "a vector is a whole number of units");
  Vector vector;
#pragma unroll
  for (int part = 0; part < kParts; ++part) reinterpret_cast<Unit*>(&vector)[part] = unit;
  return vector;
}

// A barrier of some of the block's threads (PTX ISA, "bar").
KF_DEVICE void __sync_thread_partial(int barrier, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads));
}

// Asynchronous copies to shared memory (PTX ISA, "cp.async"); one whose condition is false writes zeros.
template <int kBytes>
KF_DEVICE void cp_async_gs_conditional(const void* shared, const void* global, bool condition) {
  const int read = condition ? kBytes : 0;
  const uint32_t address = shared_address(shared);
  if constexpr (kBytes == 16) {  // only whole vectors can bypass the first cache
    asm volatile("cp.async.cg.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(kBytes), "r"(read));
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(address), "l"(global), "n"(kBytes), "r"(read));
  }
}

template <int kBytes>
KF_DEVICE void cp_async_gs(const void* shared, const void* global) {
  const uint32_t address = shared_address(shared);
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], %2;" ::"r"(address), "l"(global), "n"(kBytes));
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(address), "l"(global), "n"(kBytes));
  }
}

KF_DEVICE void cp_async_commit() { asm volatile("cp.async.commit_group;"); }

template <int kPending>
KF_DEVICE void cp_async_wait() {
  if constexpr (kPending == 0) {
    asm volatile("cp.async.wait_all;");
  } else {
    asm volatile("cp.async.wait_group %0;" ::"n"(kPending));
  }
}

// 8x8 matrices of 16-bit elements from shared memory to the registers of a warp (PTX ISA, "ldmatrix").
KF_DEVICE void ptx_ldmatrix_x2(const void* shared, void* local) {
  int32_t* out = static_cast<int32_t*>(local);
  asm volatile("ldmatrix.sync.aligned.x2.m8n8.shared.b16 {%0, %1}, [%2];"
               : "=r"(out[0]), "=r"(out[1])
               : "r"(shared_address(shared)));
}

KF_DEVICE void ptx_ldmatrix_x4(const void* shared, void* local) {
  int32_t* out = static_cast<int32_t*>(local);
  asm volatile("ldmatrix.sync.aligned.x4.m8n8.shared.b16 {%0, %1, %2, %3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"(shared_address(shared)));
}

// c += a @ b on int8 tiles, exactly (PTX ISA, "mma").
template <DataType kA, DataType kB, DataType kC, int kM, int kN, int kK, bool kTransposeA, bool kTransposeB>
KF_DEVICE void mma_sync(uint32_t* c, const uint32_t* a, const uint32_t* b) {
  static_assert(kA == DataType::kInt8 && kB == DataType::kInt8 && kC == DataType::kInt32, "int8 into int32");
  static_assert(kM == 16 && kN == 8 && kK == 32 && !kTransposeA && kTransposeB, "one shape and layout");
  asm volatile(
      "mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
      "{%10, %11, %12, %13};"
      : "=r"(c[0]), "=r"(c[1]), "=r"(c[2]), "=r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]), "r"(c[0]), "r"(c[1]), "r"(c[2]), "r"(c[3]));
}

}  // namespace tl
