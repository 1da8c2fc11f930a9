// Run-time choice of the instruction set, once per process.
#pragma once

#include <cstdlib>
#include <cstring>

#if defined(__x86_64__)
#define KF_X86 1
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic push  // GCC's own "undefined" vectors trip these (GCC bug 105593)
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#include <sys/syscall.h>
#include <unistd.h>
#endif
#if defined(__aarch64__)
#define KF_AARCH64 1
#include <arm_neon.h>
#if defined(__linux__)
#include <sys/auxv.h>
#endif
#endif

#define KF_INLINE inline __attribute__((always_inline))

// Functions between BEGIN and END are compiled for the named features, whatever the command line says.
#define KF_INLINE_LAMBDA __attribute__((always_inline))
#define KF_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define KF_TARGET_BEGIN(features) \
  KF_PRAGMA(clang attribute push(__attribute__((target(features))), apply_to = function))
#define KF_TARGET_END _Pragma("clang attribute pop")
#else
#define KF_TARGET_BEGIN(features) _Pragma("GCC push_options") KF_PRAGMA(GCC target(features))
#define KF_TARGET_END _Pragma("GCC pop_options")
#endif

namespace kf {
namespace {

// Return codes of the functions that generated code calls.
enum Status : int {
  kOk = 0,
  kBadArgument = 1,
  kOutOfMemory = 2,
  kIsaMissing = 3,  // KERNELFORGE_CPU_ISA names an instruction set this CPU or build lacks, or no known one
};

// Ordered from the least to the most wanted.
enum class Isa : int { kMissing = -1, kPortable, kNeon, kAvx2, kAvx512Bf16, kAvx512Vnni, kAmx };

#if defined(KF_X86)
// Linux hands out the AMX tile registers on request; the grant holds for every thread of the process.
inline bool request_amx() {
  constexpr int kArchReqXcompPerm = 0x1023, kXfeatureTileData = 18;
  return syscall(SYS_arch_prctl, kArchReqXcompPerm, kXfeatureTileData) == 0;
}
#endif

inline bool isa_available(Isa isa) {
  if (isa == Isa::kPortable) return true;
#if defined(KF_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool vnni = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                    __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                    __builtin_cpu_supports("avx512vnni");
  if (isa == Isa::kAvx2) return avx2;
  if (isa == Isa::kAvx512Vnni) return vnni;
  if (isa == Isa::kAvx512Bf16) return vnni && __builtin_cpu_supports("avx512bf16");
  if (isa == Isa::kAmx) {
    unsigned eax = 7, ebx = 0, ecx = 0, edx = 0;
    asm volatile("cpuid" : "+a"(eax), "=b"(ebx), "+c"(ecx), "=d"(edx));
    const bool tiles = (edx >> 24 & 1) && (edx >> 22 & 1) && (edx >> 25 & 1);  // AMX-TILE, AMX-BF16, AMX-INT8
    return vnni && tiles && request_amx();
  }
#elif defined(KF_AARCH64)
  if (isa == Isa::kNeon) {
#if defined(__ARM_FEATURE_DOTPROD)
    return true;
#elif defined(__linux__)
    constexpr unsigned long kHwcapAsimdDp = 1ul << 20;
    return (getauxval(AT_HWCAP) & kHwcapAsimdDp) != 0;
#endif
  }
#endif
  return false;
}

// Value of the environment variable, null where it is unset or empty.
inline const char* wanted_isa() {
  const char* wanted = std::getenv("KERNELFORGE_CPU_ISA");
  return wanted == nullptr || *wanted == '\0' ? nullptr : wanted;
}

// What KERNELFORGE_CPU_ISA names, else the most wanted one there is.
inline Isa detect_isa() {
  struct Name {
    const char* name;
    Isa isa;
  };
  constexpr Name kNames[] = {
      {"amx", Isa::kAmx},   {"avx512vnni", Isa::kAvx512Vnni}, {"avx512bf16", Isa::kAvx512Bf16}, {"avx2", Isa::kAvx2},
      {"neon", Isa::kNeon}, {"portable", Isa::kPortable}};
  const char* wanted = wanted_isa();
  const bool any = wanted == nullptr;
  for (const Name& entry : kNames) {
    if (!any && std::strcmp(wanted, entry.name) != 0) continue;
    if (isa_available(entry.isa)) return entry.isa;
    if (!any) return Isa::kMissing;
  }
  return Isa::kMissing;
}

inline Isa current_isa() {
  static const Isa isa = detect_isa();
  return isa;
}

// The same for operands of two int8 slices: one bf16 dot takes less time than two VNNI ones.
inline Isa current_isa_for_two_slices() {
  static const Isa isa = [] {
    const bool better = wanted_isa() == nullptr && current_isa() == Isa::kAvx512Vnni && isa_available(Isa::kAvx512Bf16);
    return better ? Isa::kAvx512Bf16 : current_isa();
  }();
  return isa;
}

}  // namespace
}  // namespace kf
