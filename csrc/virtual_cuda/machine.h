// The running machine: launch, CTA and warp.
#pragma once

#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <type_traits>
#include <unordered_map>
#include <vector>

#include "program.h"

namespace kernelforge::vcuda {

struct Cta;
class Checker;

// A fault of the executed kernel; the scheduler adds kernel, CTA, warp and source line.
struct KernelFault : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// splitmix64: small, seedable, good enough to choose interleavings.
struct Random {
  uint64_t state;
  uint64_t next() {
    uint64_t z = (state += 0x9e3779b97f4a7c15ull);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
  }
  uint32_t below(uint32_t n) { return static_cast<uint32_t>((next() >> 32) * n >> 32); }
  bool chance(double p) { return static_cast<double>(next() >> 11) * 0x1p-53 < p; }
};

enum class Landing : uint8_t { kLate, kEarly, kRandom };

struct Schedule {
  uint64_t seed = 0;
  Landing landing = Landing::kLate;
  double preempt = 0.0;  // chance, after each instruction, that the warp stops for a while
};

struct Buffer {
  uint64_t address;
  uint64_t bytes;
  bool writable;
  uint32_t* writers = nullptr;  // with checks: per byte 1 + the CTA that stored it, 0 none
};

// The content of a CUtensorMap, as cuTensorMapEncodeTiled takes it.
struct TensorMap {
  uint32_t element_bytes = 1;
  uint32_t rank = 1;
  uint64_t address = 0;
  uint64_t dims[5] = {1, 1, 1, 1, 1};
  uint64_t strides[5] = {0, 0, 0, 0, 0};  // bytes; strides[0] is the element's size
  uint32_t box[5] = {1, 1, 1, 1, 1};
  uint32_t element_strides[5] = {1, 1, 1, 1, 1};
  uint32_t swizzle = 0;  // 0 none, 1 32B, 2 64B, 3 128B
  bool nan_fill = false;
  bool is_float = false;
};

struct Launch {
  const Program* program = nullptr;
  const Entry* entry = nullptr;
  uint32_t grid[3] = {1, 1, 1};
  uint32_t block[3] = {1, 1, 1};
  uint32_t dynamic_shared = 0;
  std::vector<uint8_t> params;
  std::map<uint64_t, TensorMap> tensor_maps;  // by offset in the parameters
  std::vector<Buffer> buffers;                // sorted by address
  std::vector<uint8_t> globals;               // module variables, writable
  uint64_t globals_base = 0;
  Schedule schedule;
  bool check = false;
  uint64_t max_instructions = 0;  // per CTA, 0 = no limit
};

struct Mbarrier {
  uint32_t expected = 0;
  int64_t pending = 0;
  int64_t tx = 0;
  uint64_t phase = 0;  // completed phases
};

// One copy or read that a warp issued and has not waited for. Non-bulk cp.async keeps one per lane.
struct PendingCopy {
  enum Kind : uint8_t { kCopy, kArrive, kBulkStore } kind = kCopy;
  bool landed = false;
  uint8_t lane = 0;
  uint8_t size = 0, source_size = 0;
  uint32_t group = 0;
  uint32_t epoch = 0;   // clock of the checker's agent
  uint32_t shared = 0;  // shared address
  uint64_t global = 0;
  uint32_t bytes = 0;  // bulk
  uint32_t map = 0;    // bulk tensor: index into Cta::stores, else kNone
  uint32_t pc = 0;
};

struct BulkLoad {
  uint32_t warp = 0, pc = 0;
  uint32_t shared = 0, mbarrier = 0;
  const TensorMap* map = nullptr;
  int32_t coordinate[5] = {0, 0, 0, 0, 0};
  uint64_t global = 0;
  uint32_t bytes = 0;
};

struct WgmmaOp {
  uint32_t pc = 0, group = 0;
  uint64_t a = 0, b = 0;
  bool scale_d = false, landed = false;
};

enum class Wait : uint8_t { kReady, kBarrier, kMbarrier, kDone };
enum class Signal : uint8_t { kNone, kSelect, kYield, kBlock };

struct Warp {
  Cta* cta = nullptr;
  uint32_t id = 0;
  uint32_t* rf = nullptr;    // slots x 32 lanes
  uint32_t* pred = nullptr;  // one mask per predicate
  const Instr* code = nullptr;
  const uint32_t* lists = nullptr;

  uint32_t live = 0, active = 0, parked = 0, avoid = 0;
  bool diverged = false;
  uint32_t pc = 0, limit = kNone;
  uint32_t lane_pc[kLanes];
  uint32_t carry = 0;

  Signal signal = Signal::kNone;
  Wait wait = Wait::kReady;
  bool polled = false, effect = false;
  bool granted = false;  // slept on an mbarrier whose phase has ended since
  uint32_t wait_address = 0, wait_parity = 0;
  uint64_t executed = 0;
  uint32_t speed = 0;

  std::vector<PendingCopy> copies;  // cp.async
  uint32_t copy_group[kLanes];
  uint32_t copy_epoch = 1;
  std::vector<PendingCopy> stores;  // bulk groups
  uint32_t store_group[kLanes];
  uint32_t store_epoch = 1;
  std::vector<WgmmaOp> wgmmas;
  uint32_t wgmma_group = 0;
  uint32_t wgmma_issued = 0;
  std::vector<uint32_t> wgmma_hold;  // accumulators in flight (the register file is poisoned): slots x 32
  std::vector<uint32_t> wgmma_held;  // per slot: pending operations on it
  std::vector<uint8_t> local;        // 32 frames

  void reset(Cta* owner, uint32_t index, uint32_t lanes);
  void run(uint64_t quantum);  // until it blocks, yields, ends or the quantum is over
  void select();               // choose the lanes with the lowest pc
  void save_pc();
  void park();

  template <class S>
  const S* in(uint32_t slot) const {
    return reinterpret_cast<const S*>(rf + static_cast<size_t>(slot) * kLanes);
  }
  template <class S>
  S* out(uint32_t slot) {
    return reinterpret_cast<S*>(rf + static_cast<size_t>(slot) * kLanes);
  }
  uint32_t predicate(uint32_t operand) const {
    uint32_t value = pred[operand & 0x7fffffffu];
    return operand >> 31 ? ~value : value;
  }
  void set_predicate(uint32_t operand, uint32_t value, uint32_t mask) {
    if (operand != kNone) pred[operand] = (pred[operand] & ~mask) | (value & mask);
  }
};

struct NamedBarrier {
  uint32_t generation = 0;
  uint32_t expected = 0;
  uint32_t arrived = 0;  // threads
  std::vector<uint32_t> waiting;
};

struct TensorStore {
  const TensorMap* map;
  int32_t coordinate[5];
};

struct Cta {
  Launch* launch = nullptr;
  const Entry* entry = nullptr;
  uint32_t index[3] = {0, 0, 0};
  uint32_t threads = 0;
  std::vector<uint8_t> shared;
  std::vector<Warp> warps;
  std::vector<uint32_t> register_store, predicate_store;
  std::map<uint32_t, Mbarrier> mbarriers;
  NamedBarrier barriers[17];  // 16: barrier.cluster
  std::vector<BulkLoad> loads;
  std::vector<TensorStore> stores;
  std::unique_ptr<Checker> checker;
  Random random{0};
  uint64_t landed = 0;

  Cta(Launch& l);
  ~Cta();
  void run(uint32_t x, uint32_t y, uint32_t z);
  void finish();
  bool ready(Warp& w);
  void land_some(bool force_one, bool& any);
  std::string explain_deadlock();
  [[noreturn]] void rethrow(const Warp* w, uint32_t pc, const std::string& what);
  void poison(uint32_t shared_address, uint32_t bytes);
  Mbarrier& mbarrier(uint32_t address);
};

// Memory (memory.cpp). All throw KernelFault for an access outside every buffer, misaligned, or read-only.
uint8_t* global_pointer(const Launch& launch, uint64_t address, uint64_t bytes, bool write);
// With checks: two CTAs that store to one byte have no order.
void mark_written(const Cta& cta, uint64_t address, uint64_t bytes);
uint8_t* shared_pointer(Cta& cta, uint64_t address, uint64_t bytes);
void lane_addresses(const Warp& w, const Instr& in, uint32_t slot, uint64_t out[kLanes]);

// Async engine (async.cpp).
void land_copy(Warp& w, PendingCopy& c);
void land_store(Warp& w, PendingCopy& c);
void land_load(Cta& cta, const BulkLoad& l);
void land_wgmmas(Warp& w, uint32_t below_group);
void mbarrier_check(Cta& cta, uint32_t address, Mbarrier& b);

struct Stats {
  uint64_t instructions = 0, ctas = 0, landed = 0;
  double seconds = 0;
  uint32_t register_bytes = 0;  // per warp
};
Stats run_launch(Launch& launch, uint32_t threads);

std::string hex(uint64_t v);

// ---- lanes ---------------------------------------------------------------------------------------------------------
// How a value of type T sits in a lane: 8 bytes for 64-bit types, else 4 (signed sign-extended).
template <class T>
struct Rep {
  using S = std::conditional_t<sizeof(T) == 8, uint64_t, uint32_t>;
  static T get(S s) {
    if constexpr (std::is_floating_point_v<T>) {
      T t;
      std::memcpy(&t, &s, sizeof(T));
      return t;
    } else {
      return static_cast<T>(s);
    }
  }
  static S put(T t) {
    if constexpr (std::is_floating_point_v<T>) {
      S s;
      std::memcpy(&s, &t, sizeof(T));
      return s;
    } else if constexpr (sizeof(T) < 4 && std::is_signed_v<T>) {
      return static_cast<S>(static_cast<int32_t>(t));
    } else {
      return static_cast<S>(t);
    }
  }
};

template <class S>
inline void commit(Warp& w, uint32_t slot, const S* values, uint32_t mask) {
  S* d = w.out<S>(slot);
  if (mask == kFullMask) {
    std::memcpy(d, values, kLanes * sizeof(S));
  } else {
    for (uint32_t l = 0; l < kLanes; ++l)
      if (mask >> l & 1) d[l] = values[l];
  }
}

}  // namespace kernelforge::vcuda
