// Tells AddressSanitizer and ThreadSanitizer about changes of stack, which they cannot see. Empty in ordinary builds.
#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#elif defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
#endif

namespace kf {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define KF_SWITCHES __attribute__((no_sanitize("thread", "address")))  // does not return as it was called
constexpr std::size_t kStackFactor = 4;  // instrumented frames are larger, and reports are written on this stack
#else
#define KF_SWITCHES
constexpr std::size_t kStackFactor = 1;
#endif

// Nothing instrumented may be entered or left between an announcement and the switch: it would count for the other
// stack. `restart` is told whether the calls of the last run have all returned; only then their records are kept, which
// is much cheaper than new ones.
#define KF_INLINE inline __attribute__((always_inline))

#if defined(__SANITIZE_ADDRESS__)

class StackSwitch {
 public:
  void restart(const void* stack, std::size_t bytes, bool returned) {
    stack_ = stack;
    bytes_ = bytes;
    if (returned) return;
    inner_ = nullptr;
    __asan_unpoison_memory_region(stack, bytes);
  }
  KF_INLINE void before_resume() { __sanitizer_start_switch_fiber(&outer_, stack_, bytes_); }
  KF_INLINE void after_resume() { __sanitizer_finish_switch_fiber(outer_, nullptr, nullptr); }
  KF_INLINE void before_pause() { __sanitizer_start_switch_fiber(&inner_, outer_stack_, outer_bytes_); }
  KF_INLINE void after_pause() { __sanitizer_finish_switch_fiber(inner_, &outer_stack_, &outer_bytes_); }

 private:
  const void* stack_ = nullptr;
  const void* outer_stack_ = nullptr;
  std::size_t bytes_ = 0, outer_bytes_ = 0;
  void* inner_ = nullptr;
  void* outer_ = nullptr;
};

#elif defined(__SANITIZE_THREAD__)

class StackSwitch {
 public:
  StackSwitch() = default;
  StackSwitch(const StackSwitch&) = delete;
  StackSwitch& operator=(const StackSwitch&) = delete;
  ~StackSwitch() {
    if (inner_ != nullptr) __tsan_destroy_fiber(inner_);
  }
  void restart(const void*, std::size_t, bool returned) {
    if (inner_ != nullptr && returned) return;
    if (inner_ != nullptr) __tsan_destroy_fiber(inner_);
    inner_ = __tsan_create_fiber(0);
  }
  KF_INLINE void before_resume() {
    outer_ = __tsan_get_current_fiber();
    __tsan_switch_to_fiber(inner_, 0);
  }
  KF_INLINE void after_resume() {}
  KF_INLINE void before_pause() { __tsan_switch_to_fiber(outer_, 0); }
  KF_INLINE void after_pause() {}

 private:
  void* inner_ = nullptr;
  void* outer_ = nullptr;
};

#else

struct StackSwitch {
  void restart(const void*, std::size_t, bool) {}
  void before_resume() {}
  void after_resume() {}
  void before_pause() {}
  void after_pause() {}
};

#endif

#undef KF_INLINE

}  // namespace kf
