// Types and functions of SIMT vector functions.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "kf_virtual/hooks.h"

using std::max;
using std::min;

typedef unsigned int uint;
typedef unsigned char uchar;
typedef unsigned short ushort;

#define KF_VECTOR2(name, element)                                                            \
  struct alignas(2 * sizeof(element)) name {                                                 \
    element x, y;                                                                            \
    name() = default;                                                                        \
    name(element x_, element y_) : x(x_), y(y_) {}                                           \
    template <class Other, class = decltype(Other::x)>                                       \
    explicit name(const Other& other) : x(element(other.x)), y(element(other.y)) {}          \
  };                                                                                         \
  inline name make_##name(element x, element y) { return {x, y}; }                           \
  inline name operator+(name a, name b) { return {element(a.x + b.x), element(a.y + b.y)}; } \
  inline name operator-(name a, name b) { return {element(a.x - b.x), element(a.y - b.y)}; } \
  inline name operator*(name a, name b) { return {element(a.x * b.x), element(a.y * b.y)}; }
KF_VECTOR2(int2, int)
KF_VECTOR2(uint2, uint)
KF_VECTOR2(float2, float)
#undef KF_VECTOR2

#define KF_BITWISE2(name)                                                     \
  inline name operator&(name a, name b) { return {a.x & b.x, a.y & b.y}; }    \
  inline name operator|(name a, name b) { return {a.x | b.x, a.y | b.y}; }    \
  inline name operator^(name a, name b) { return {a.x ^ b.x, a.y ^ b.y}; }    \
  inline name operator<<(name a, name b) { return {a.x << b.x, a.y << b.y}; } \
  inline name operator>>(name a, name b) { return {a.x >> b.x, a.y >> b.y}; }
KF_BITWISE2(int2)
KF_BITWISE2(uint2)
#undef KF_BITWISE2

#define KF_VECTOR4(name, element)            \
  struct alignas(4 * sizeof(element)) name { \
    element x, y, z, w;                      \
  };                                         \
  inline name make_##name(element x, element y, element z, element w) { return {x, y, z, w}; }
KF_VECTOR4(int4, int)
KF_VECTOR4(uint4, uint)
KF_VECTOR4(float4, float)
#undef KF_VECTOR4

struct ushort2 {
  ushort x, y;
};
struct ushort4 {
  ushort x, y, z, w;
};

inline void asc_syncthreads() { kf::thread_barrier(); }
inline void asc_threadfence() {}

template <class T>
inline T asc_shfl(T value, int lane) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = kf::exchange_lanes(kf::Lanes::kShuffle, bits, lane);
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
inline T asc_shfl_xor(T value, int mask) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = kf::exchange_lanes(kf::Lanes::kShuffleXor, bits, mask);
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
inline T asc_shfl_up(T value, int delta) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = kf::exchange_lanes(kf::Lanes::kShuffleUp, bits, delta);
  std::memcpy(&value, &bits, 4);
  return value;
}
template <class T>
inline T asc_shfl_down(T value, int delta) {
  static_assert(sizeof(T) == 4);
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  bits = kf::exchange_lanes(kf::Lanes::kShuffleDown, bits, delta);
  std::memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t asc_ballot(bool predicate) { return static_cast<uint32_t>(kf::vote(predicate)); }

#define KF_ATOMIC(name, expression)    \
  template <class T>                   \
  inline T name(T* address, T value) { \
    kf::atomic_begin();                \
    T old = *address;                  \
    *address = expression;             \
    kf::atomic_end();                  \
    return old;                        \
  }
KF_ATOMIC(asc_atomic_add, old + value)
KF_ATOMIC(asc_atomic_max, old > value ? old : value)
KF_ATOMIC(asc_atomic_min, old < value ? old : value)
KF_ATOMIC(asc_atomic_or, old | value)
KF_ATOMIC(asc_atomic_and, old& value)
KF_ATOMIC(asc_atomic_xor, old ^ value)
#undef KF_ATOMIC
