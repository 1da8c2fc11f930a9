// Per-thread scratch memory: grows to the largest request, is reused by later calls, freed with the thread.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>

namespace kf {
namespace {

class Scratch {
 public:
  static constexpr size_t kAlignment = 64;

  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() { std::free(base_); }

  // Makes room for `bytes` and starts handing out from the front; false when memory is short.
  bool reserve(size_t bytes) {
    used_ = 0;
    if (bytes <= capacity_) return true;
    std::free(base_);
    capacity_ = 0;
    const size_t rounded = round_up(bytes);
    base_ = static_cast<uint8_t*>(std::aligned_alloc(kAlignment, rounded));
    if (base_ == nullptr) return false;
    capacity_ = rounded;
    return true;
  }

  template <typename T>
  T* take(size_t count) {
    T* part = reinterpret_cast<T*>(base_ + used_);
    used_ += round_up(count * sizeof(T));
    return part;
  }

  static constexpr size_t round_up(size_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

 private:
  uint8_t* base_ = nullptr;
  size_t capacity_ = 0;
  size_t used_ = 0;
};

inline Scratch& thread_scratch() {
  static thread_local Scratch scratch;
  return scratch;
}

}  // namespace
}  // namespace kf
