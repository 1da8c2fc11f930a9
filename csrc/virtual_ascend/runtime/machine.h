// One block of AI cores: a cube core and two vector cores, each a scalar program that issues to pipes.
//
// Everything of a block runs on one host thread, one step at a time, in an order drawn from a seed: a run repeats.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "fiber.h"
#include "kf_virtual/hooks.h"
#include "memory.h"

namespace kf {

constexpr std::size_t kUbBytes = 248 * 1024, kL1Bytes = 512 * 1024, kL0Bytes = 64 * 1024, kL0cBytes = 256 * 1024;
constexpr int kEvents = 8, kIntraFlags = 16, kIntraLimit = 15, kBuffers = 32;
constexpr std::size_t kQueueLimit = 256;
const char* const kPipeNames[kPipes] = {"S", "V", "M", "MTE1", "MTE2", "MTE3", "FIX"};
const char* const kCoreNames[kCores] = {"cube", "vector 0", "vector 1"};

enum class Schedule { kEarly, kLate, kRandom };
enum class KernelKind { kMixed, kVector, kCube };

struct Options {
  KernelKind kind = KernelKind::kMixed;
  Schedule schedule = Schedule::kRandom;
  uint64_t seed = 0;
  bool check = false;
  bool rounded = false;  // sums of the cube unit need not be exact (native mode)
};

/// "MTE2 -> V event 1".
std::string flag_name(int key);

struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 0x1234567) {}
  uint32_t next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    return static_cast<uint32_t>(state_ >> 16);
  }
  uint32_t below(uint32_t n) { return next() % n; }

 private:
  uint64_t state_;
};

struct Flag {
  bool set = false;
  Clock clock{};
  Where where{};
};

struct Mutex {
  uint32_t tickets = 0, served = 0;
  Clock clock{};
};

enum class OpKind { kWork, kSet, kWait, kArrive, kAwait, kLock, kUnlock, kBarrier };

struct Op {
  OpKind kind = OpKind::kWork;
  const char* name = "";
  Where where{};
  int a = 0, b = 0, c = 0;  // target pipe and event; flag id; buffer id and ticket
  std::function<void()> work;
  Clock issued{};
};

struct Pipe {
  std::deque<Op> queue;
  uint32_t time = 0;
  Clock known{};  // what later steps of this pipe may rely on
  Clock done{};   // what has happened once every step so far is complete
  std::vector<Where> history;
  std::vector<const char*> names;
};

/// The step that last waited for a cross-core flag.
struct Waiter {
  int agent = 0;
  uint32_t time = 0;
};

/// What a scalar program waits for.
enum class Blocked { kNo, kFlag, kPipes, kQueue };

struct Core {
  int index = 0;
  std::unique_ptr<Space> ub;
  Pipe pipes[kPipes];
  std::map<int, Flag> flags;  // (source, target, event)
  std::deque<Clock> arrived[2 * kIntraFlags];
  Waiter waiters[2 * kIntraFlags];
  Mutex buffers[kBuffers];
  std::unique_ptr<Fiber> scalar;
  bool active = false;
  uint32_t c0_stride = 0;
  uint64_t pad = 0;
  Blocked blocked = Blocked::kNo;
  int blocked_key = 0;
  Where blocked_where{};
};

class Machine {
 public:
  Machine(const std::vector<GlobalRegion>& regions, void (*entry)(void**), void** arguments, const Options& options);

  void run_block(int block);

  // Called by the API on the scalar fiber of the running core.
  Core& core() { return *running_; }
  void issue(int pipe, Op op);
  void set_from_scalar(int key, Where where);
  void wait_scalar(Blocked what, int key, Where where);
  void run_vector_function(const VectorFunction& function);  // on the scheduler, as the work of a V operation

  // Called by the work of an operation: checked access, raising a Fault that explains.
  uint8_t* on_chip(Space& space, int64_t offset, std::size_t bytes, bool write, bool need_written = true);
  uint8_t* global(const void* address, std::size_t bytes, bool write);
  void begin_scalar_step();
  void scalar_access(const void* address, std::size_t bytes, bool write);
  void thread_access(const void* address, std::size_t bytes, bool write, const void* program_counter);

  [[noreturn]] void fail(const std::string& text);
  std::string describe(const Where& where) const;
  Space& ub_of(int vector_core) { return *cores_[1 + vector_core].ub; }
  int64_t ub_offset(const void* address) { return static_cast<const uint8_t*>(address) - ub_base(); }
  uint8_t* ub_base();
  GlobalRegion* find_region(const void* address);

  void thread_barrier();
  uint32_t exchange(Lanes kind, uint32_t value, int operand);
  uint64_t vote(bool predicate);
  bool next_thread();

  const Options& options() const { return options_; }
  static Machine*& current();

  Space l1{"L1", kL1Bytes}, l0a{"L0A", kL0Bytes}, l0b{"L0B", kL0Bytes}, l0c{"L0C", kL0cBytes};
  bool in_atomic = false;

 private:
  void schedule();
  bool ready(const Core& core, int pipe) const;
  void execute(Core& core, int pipe);
  bool scalar_ready(const Core& core) const;
  void resume_scalar(Core& core);
  void finish();
  void set_flag(Core& core, int key, Where where);
  void one_waiter(Core& core, int agent, const Op& op);
  std::string blocked_report() const;
  std::string conflict_text(const std::string& place, const Conflict& conflict, bool write) const;
  std::string blocks_text(const std::string& place, int other, bool write) const;
  std::string agent_name(int agent) const;
  std::string step_text(int agent, uint32_t time) const;
  [[noreturn]] void outside(const void* address, std::size_t bytes, bool write, const void* program_counter);
  static std::string code_at(const void* program_counter);

  std::vector<GlobalRegion> regions_;
  void (*entry_)(void**);
  void** arguments_;
  Options options_;
  Random random_{1};
  Core cores_[kCores];
  Core* running_ = nullptr;
  Op current_op_;
  Step step_{};
  std::string fault_;
  int block_ = 0;
  int priorities_[kAgents];

  // The running vector function.
  const VectorFunction* function_ = nullptr;
  std::vector<std::unique_ptr<Fiber>> pool_;
  std::vector<Fiber*> free_;
  struct Parked {
    Fiber* fiber;
    Thread index;
    int linear;
    int kind;
    uint32_t value;
    int operand;
    Lanes lanes;
  };
  std::vector<Parked> parked_;
  std::vector<int> order_;
  int next_ = 0, count_ = 0, thread_ = 0;
  uint32_t lane_epoch_ = 0, exchanged_ = 0;
  uint64_t ballot_ = 0;
};

}  // namespace kf
