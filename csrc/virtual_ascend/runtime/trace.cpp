// Every load and store of the generated code arrives here when it is compiled with -fsanitize=thread, which is used
// for its instrumentation alone: these definitions take the place of the sanitizer's runtime.
#include <dlfcn.h>

#include <cstdio>

#include "machine.h"

namespace kf {

std::string Machine::code_at(const void* program_counter) {
  Dl_info info{};
  if (program_counter == nullptr || dladdr(program_counter, &info) == 0) return "";
  char text[64];
  std::snprintf(
      text, sizeof(text), " [code at +0x%zx]",
      static_cast<std::size_t>(static_cast<const char*>(program_counter) - static_cast<const char*>(info.dli_fbase)));
  return text;
}

namespace {

inline void access(const void* address, std::size_t bytes, bool write, const void* program_counter) {
  Machine* machine = Machine::current();
  if (machine != nullptr) machine->thread_access(address, bytes, write, program_counter);
}

}  // namespace
}  // namespace kf

// Under ThreadSanitizer itself its runtime is there too, and keeps its names: the kernel is linked with `--wrap`.
#define KF_TRACE extern "C"
#if defined(__SANITIZE_THREAD__)
#define KF_NAME(call) __wrap___tsan_##call
#else
#define KF_NAME(call) __tsan_##call
#endif
#define KF_ACCESS(bytes)                                            \
  KF_TRACE void KF_NAME(read##bytes)(void* address) {               \
    kf::access(address, bytes, false, __builtin_return_address(0)); \
  }                                                                 \
  KF_TRACE void KF_NAME(write##bytes)(void* address) {              \
    kf::access(address, bytes, true, __builtin_return_address(0));  \
  }                                                                 \
  KF_TRACE void KF_NAME(unaligned_read##bytes)(void* address) {     \
    kf::access(address, bytes, false, __builtin_return_address(0)); \
  }                                                                 \
  KF_TRACE void KF_NAME(unaligned_write##bytes)(void* address) {    \
    kf::access(address, bytes, true, __builtin_return_address(0));  \
  }
KF_ACCESS(1)
KF_ACCESS(2)
KF_ACCESS(4)
KF_ACCESS(8)
KF_ACCESS(16)

KF_TRACE void KF_NAME(read_range)(void* address, unsigned long bytes) {
  kf::access(address, bytes, false, __builtin_return_address(0));
}
KF_TRACE void KF_NAME(write_range)(void* address, unsigned long bytes) {
  kf::access(address, bytes, true, __builtin_return_address(0));
}
#if !defined(__SANITIZE_THREAD__)
KF_TRACE void __tsan_init() {}
KF_TRACE void __tsan_func_entry(void*) {}
KF_TRACE void __tsan_func_exit() {}
KF_TRACE void __tsan_vptr_update(void**, void*) {}
KF_TRACE void __tsan_vptr_read(void**) {}
#endif
