// Loops over the 32 lanes, shared by the arithmetic families. F::run is the scalar operation.
#pragma once

#include "decode.h"
#include "machine.h"

namespace kernelforge::vcuda {

// A shared address given as a shared or a generic one.
inline uint32_t shared_address(uint64_t address) {
  return static_cast<uint32_t>((address & kWindowMask) == kSharedWindow ? address & ~kWindowMask : address);
}

template <class F, class D, class A>
void run_unary(Warp& w, const Instr& in, uint32_t mask) {
  const auto* a = w.in<typename Rep<A>::S>(in.op[1]);
  alignas(64) typename Rep<D>::S out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = Rep<D>::put(F::run(Rep<A>::get(a[l])));
  commit(w, in.op[0], out, mask);
}

template <class F, class D, class A, class B = A>
void run_binary(Warp& w, const Instr& in, uint32_t mask) {
  const auto* a = w.in<typename Rep<A>::S>(in.op[1]);
  const auto* b = w.in<typename Rep<B>::S>(in.op[2]);
  alignas(64) typename Rep<D>::S out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l) out[l] = Rep<D>::put(F::run(Rep<A>::get(a[l]), Rep<B>::get(b[l])));
  commit(w, in.op[0], out, mask);
}

template <class F, class D, class A, class B = A, class C = A>
void run_ternary(Warp& w, const Instr& in, uint32_t mask) {
  const auto* a = w.in<typename Rep<A>::S>(in.op[1]);
  const auto* b = w.in<typename Rep<B>::S>(in.op[2]);
  const auto* c = w.in<typename Rep<C>::S>(in.op[3]);
  alignas(64) typename Rep<D>::S out[kLanes];
  for (uint32_t l = 0; l < kLanes; ++l)
    out[l] = Rep<D>::put(F::run(Rep<A>::get(a[l]), Rep<B>::get(b[l]), Rep<C>::get(c[l])));
  commit(w, in.op[0], out, mask);
}

// Pick the instance of a template over the integer types of a PTX type.
#define VCUDA_INTEGER_TYPES(T, CASE) \
  switch (T) {                       \
    case Ty::kU16:                   \
    case Ty::kB16:                   \
      CASE(uint16_t);                \
    case Ty::kU32:                   \
    case Ty::kB32:                   \
      CASE(uint32_t);                \
    case Ty::kU64:                   \
    case Ty::kB64:                   \
      CASE(uint64_t);                \
    case Ty::kS16:                   \
      CASE(int16_t);                 \
    case Ty::kS32:                   \
      CASE(int32_t);                 \
    case Ty::kS64:                   \
      CASE(int64_t);                 \
    default:                         \
      break;                         \
  }

template <template <class> class F>
Handler unary_integer(Ty t) {
#define VCUDA_CASE(T) return run_unary<F<T>, T, T>
  VCUDA_INTEGER_TYPES(t, VCUDA_CASE)
#undef VCUDA_CASE
  return nullptr;
}

template <template <class> class F>
Handler binary_integer(Ty t) {
#define VCUDA_CASE(T) return run_binary<F<T>, T, T>
  VCUDA_INTEGER_TYPES(t, VCUDA_CASE)
#undef VCUDA_CASE
  return nullptr;
}

template <template <class> class F>
Handler ternary_integer(Ty t) {
#define VCUDA_CASE(T) return run_ternary<F<T>, T, T>
  VCUDA_INTEGER_TYPES(t, VCUDA_CASE)
#undef VCUDA_CASE
  return nullptr;
}

// d, a, b, ... of one type, then emit.
inline bool emit_uniform(Decoder& d, Handler fn, Ty t, int operands) {
  if (!fn) d.fail("type not supported");
  d.in.op[0] = d.destination(size_t{0}, t);
  for (int k = 1; k <= operands; ++k) d.in.op[k] = d.source(static_cast<size_t>(k), t);
  d.emit_as(fn);
  return true;
}

}  // namespace kernelforge::vcuda
