// Cooperative threads of execution: the scalar programs of the cores and the threads of vector functions.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

#include "stack_switch.h"

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace kf {

#if defined(__x86_64__)
extern "C" void kf_switch_stack(void** from, void* to) __attribute__((visibility("hidden")));
#endif

/// One stack and the place where it stopped. Fibers return to whoever resumed them, by `pause` or by finishing.
class Fiber {
 public:
  explicit Fiber(std::size_t stack_bytes) : size_(stack_bytes * kStackFactor), stack_(new uint8_t[size_]) {}

  /// Prepares to run `body(argument)` from the start; what the stack held before is forgotten.
  void start(void (*body)(void*), void* argument) {
    body_ = body;
    argument_ = argument;
    switch_.restart(stack_.get(), size_, finished_);
    finished_ = false;
#if defined(__x86_64__)
    auto top = reinterpret_cast<uintptr_t>(stack_.get() + size_) & ~uintptr_t{15};
    auto* frame = reinterpret_cast<void**>(top) - 8;
    for (int i = 0; i < 6; i++) frame[i] = nullptr;
    frame[6] = reinterpret_cast<void*>(&Fiber::enter);
    frame[7] = nullptr;
    self_ = frame;
#else
    getcontext(&self_);
    self_.uc_stack.ss_sp = stack_.get();
    self_.uc_stack.ss_size = size_;
    self_.uc_link = nullptr;
    makecontext(&self_, reinterpret_cast<void (*)()>(&Fiber::enter), 0);
#endif
  }

  KF_SWITCHES void resume() {
    Fiber* outer = current();
    current() = this;
    switch_.before_resume();
#if defined(__x86_64__)
    kf_switch_stack(&caller_, self_);
#else
    swapcontext(&caller_, &self_);
#endif
    switch_.after_resume();
    current() = outer;
  }

  /// Called on the fiber: back to whoever resumed it.
  KF_SWITCHES void pause() {
    switch_.before_pause();
#if defined(__x86_64__)
    kf_switch_stack(&self_, caller_);
#else
    swapcontext(&self_, &caller_);
#endif
    switch_.after_pause();
  }

  bool finished() const { return finished_; }
  bool owns(const void* address) const { return address >= stack_.get() && address < stack_.get() + size_; }

  /// The fiber that runs on this host thread, or null.
  static Fiber*& current() {
    static thread_local Fiber* fiber = nullptr;
    return fiber;
  }

 private:
  KF_SWITCHES static void enter() {
    Fiber* self = current();
    self->switch_.after_pause();
    self->body_(self->argument_);
    self->finished_ = true;
    self->pause();
    std::abort();  // a finished fiber is never resumed
  }

  std::size_t size_;
  std::unique_ptr<uint8_t[]> stack_;
  void (*body_)(void*) = nullptr;
  void* argument_ = nullptr;
  bool finished_ = true;
  StackSwitch switch_;
#if defined(__x86_64__)
  void* self_ = nullptr;
  void* caller_ = nullptr;
#else
  ucontext_t self_{}, caller_{};
#endif
};

}  // namespace kf
