// SIMT vector functions: threads are fibers, but a thread that meets no barrier costs no switch.
#include <cstring>

#include "machine.h"

namespace kf {
namespace {

constexpr std::size_t kThreadStack = 64 * 1024;
constexpr int kWarp = 32;

enum Stop { kBarrierStop, kExchangeStop };

bool next_thread_of_current() { return Machine::current()->next_thread(); }

}  // namespace

bool Machine::next_thread() {
  if (next_ >= count_) return false;
  thread_ = order_[next_++];
  unsigned x = function_->x, y = function_->y;
  threadIdx = {thread_ % x, thread_ / x % y, thread_ / (x * y)};
  return true;
}

void Machine::run_vector_function(const VectorFunction& function) {
  function_ = &function;
  count_ = function.x * function.y * function.z;
  blockDim = {unsigned(function.x), unsigned(function.y), unsigned(function.z)};
  next_ = 0;
  parked_.clear();
  lane_epoch_++;
  order_.resize(count_);
  for (int i = 0; i < count_; i++) order_[i] = options_.schedule == Schedule::kLate ? count_ - 1 - i : i;
  if (options_.schedule == Schedule::kRandom) {
    for (int i = count_ - 1; i > 0; i--) std::swap(order_[i], order_[random_.below(i + 1)]);
  }
  auto body = [](void* self) {
    const VectorFunction* function = static_cast<Machine*>(self)->function_;
    function->run(function->arguments, &next_thread_of_current);
  };
  auto step = [&](Fiber* fiber) {
    fiber->resume();
    if (!fault_.empty()) throw Fault(fault_);
    if (fiber->finished()) free_.push_back(fiber);
  };
  while (next_ < count_) {
    if (free_.empty()) {
      pool_.emplace_back(new Fiber(kThreadStack));
      free_.push_back(pool_.back().get());
    }
    Fiber* fiber = free_.back();
    free_.pop_back();
    fiber->start(body, this);
    step(fiber);
  }
  while (!parked_.empty()) {
    std::vector<Parked> released;
    released.swap(parked_);
    if (static_cast<int>(released.size()) != count_) {
      throw Fault("a barrier or exchange in " + std::string(current_op_.name) + " at " + describe(current_op_.where) +
                  " is reached by " + std::to_string(released.size()) + " of " + std::to_string(count_) + " threads");
    }
    if (options_.schedule == Schedule::kRandom) {
      for (std::size_t i = released.size() - 1; i > 0; i--) std::swap(released[i], released[random_.below(i + 1)]);
    }
    bool barrier = released[0].kind == kBarrierStop;
    std::vector<uint32_t> values(count_);
    for (const Parked& thread : released) {
      if ((thread.kind == kBarrierStop) != barrier) {
        throw Fault("threads of the vector function at " + describe(current_op_.where) +
                    " wait at a barrier while others exchange values");
      }
      values[thread.linear] = thread.value;
    }
    if (barrier) lane_epoch_++;
    for (const Parked& thread : released) {
      int lane = thread.linear % kWarp, first = thread.linear - lane, partner = lane;
      if (!barrier) {
        switch (thread.lanes) {
          case Lanes::kShuffle:
            partner = thread.operand & (kWarp - 1);
            break;
          case Lanes::kShuffleXor:
            partner = lane ^ thread.operand;
            break;
          case Lanes::kShuffleUp:
            partner = lane - thread.operand < 0 ? lane : lane - thread.operand;
            break;
          case Lanes::kShuffleDown:
            partner = lane + thread.operand >= kWarp ? lane : lane + thread.operand;
            break;
        }
        bool exists = partner >= 0 && partner < kWarp && first + partner < count_;
        exchanged_ = values[exists ? first + partner : thread.linear];
        ballot_ = 0;
        for (int i = 0; i < kWarp && first + i < count_; i++) ballot_ |= uint64_t(values[first + i] & 1) << i;
      }
      thread_ = thread.linear;
      threadIdx = thread.index;
      step(thread.fiber);
    }
  }
  function_ = nullptr;
}

void Machine::thread_barrier() {
  parked_.push_back({Fiber::current(), threadIdx, thread_, kBarrierStop, 0, 0, Lanes::kShuffle});
  Fiber::current()->pause();
}

uint32_t Machine::exchange(Lanes kind, uint32_t value, int operand) {
  parked_.push_back({Fiber::current(), threadIdx, thread_, kExchangeStop, value, operand, kind});
  Fiber::current()->pause();
  return exchanged_;
}

uint64_t Machine::vote(bool predicate) {
  exchange(Lanes::kShuffle, predicate ? 1 : 0, 0);
  return ballot_;
}

void Machine::thread_access(const void* address, std::size_t bytes, bool write, const void* program_counter) {
  Fiber* fiber = Fiber::current();
  if (fiber == nullptr || fiber->owns(address)) return;
  if (address >= &threadIdx && address < &threadIdx + 1) return;
  if (address == &block_idx || (address >= &blockDim && address < &blockDim + 1)) return;
  const auto* at = static_cast<const uint8_t*>(address);
  if (function_ == nullptr) {
    if (running_->ub && running_->ub->contains(at)) {
      begin_scalar_step();
      on_chip(*running_->ub, at - running_->ub->base(), bytes, write);
      return;
    }
    if (find_region(address) == nullptr) outside(address, bytes, write, program_counter);
    scalar_access(address, bytes, write);
    return;
  }
  Space& ub = *running_->ub;
  if (ub.contains(at) && ub.contains(at + bytes - 1)) {
    int64_t offset = at - ub.base();
    on_chip(ub, offset, bytes, write);
    if (in_atomic) return;
    for (std::size_t i = 0; i < bytes; i++) {
      Lane& lane = ub.lane(offset + i);
      auto self = static_cast<uint16_t>(thread_);
      bool raced = lane.write_epoch == lane_epoch_ && lane.writer != self;
      if (write) {
        raced |= lane.read_epoch == lane_epoch_ && lane.reader != self;
        lane.write_epoch = lane_epoch_;
        lane.writer = self;
      } else {
        bool first = lane.read_epoch != lane_epoch_;
        lane.reader = first || lane.reader == self ? self : Lane::kMany;
        lane.read_epoch = lane_epoch_;
      }
      if (raced) {
        fail("race between threads of " + std::string(current_op_.name) + " at " + describe(current_op_.where) +
             ": thread " + std::to_string(thread_) + (write ? " writes" : " reads") + " byte " +
             std::to_string(offset + i) + " of " + ub.name() + " that another thread used since the last barrier" +
             code_at(program_counter));
      }
    }
    return;
  }
  if (find_region(address) == nullptr) outside(address, bytes, write, program_counter);
  global(address, bytes, write);
}

void Machine::outside(const void* address, std::size_t bytes, bool write, const void* program_counter) {
  std::string text = "vector or scalar code called at " + describe(current_op_.where) +
                     (write ? " writes " : " reads ") + std::to_string(bytes) + " bytes outside UB and every argument";
  for (const auto& region : regions_) {
    int64_t distance = static_cast<const uint8_t*>(address) - region.base;
    if (distance >= -65536 && distance < static_cast<int64_t>(region.bytes) + 65536) {
      text +=
          ", at byte " + std::to_string(distance) + " of " + region.name + " (" + std::to_string(region.bytes) + ")";
    }
  }
  fail(text + code_at(program_counter));
}

}  // namespace kf
