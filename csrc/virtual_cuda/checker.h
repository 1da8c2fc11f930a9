// Rules that bits cannot show: happens-before over shared memory, and the proxy and fence rules of sm_90.
//
// Every warp has a vector clock. So have, per warp, three asynchronous agents (its cp.async groups, its wgmma groups,
// its bulk-store groups), whose clock is the group's number and which a warp learns by waiting for the group; and each
// mbarrier is the agent of the bulk loads that complete on it, its clock being the phase. Every byte of shared memory
// remembers its last write and the reads since. An access that does not follow all earlier conflicting accesses by a
// wait, barrier or mbarrier is an error, whatever the schedule of this run was.
#pragma once

#include <cstdint>
#include <string>
#include <unordered_map>
#include <vector>

#include "machine.h"

namespace kernelforge::vcuda {

using Clock = std::vector<uint32_t>;

class Checker {
 public:
  explicit Checker(Cta& cta);
  void reset();

  enum Agent : uint32_t { kGeneric = 0, kCopy = 1, kWgmma = 2, kStore = 3, kAgentsPerWarp = 4 };

  // Accesses by the instruction a warp executes now.
  void read(Warp& w, uint32_t address, uint32_t bytes);
  void write(Warp& w, uint32_t address, uint32_t bytes);
  void atomic(Warp& w, uint32_t address, uint32_t bytes);
  // Asynchronous accesses, at issue: the agent's group counts from 1.
  void copy_write(Warp& w, uint32_t address, uint32_t bytes, uint32_t group);
  void wgmma_read(Warp& w, uint32_t address, uint32_t bytes, uint32_t group);
  void store_read(Warp& w, uint32_t address, uint32_t bytes, uint32_t group);
  void load_write(Warp& w, uint32_t address, uint32_t bytes, uint32_t mbarrier);
  void load_landed(uint32_t address, uint32_t bytes, uint32_t mbarrier, uint64_t phase);
  // Waits: the warp has seen every group up to `group` of its agent.
  void waited(Warp& w, Agent agent, uint32_t group);

  // Synchronization.
  void barrier_arrive(Warp& w, uint32_t barrier);
  void barrier_complete(uint32_t barrier, const std::vector<uint32_t>& waiting);
  void mbarrier_init(Warp& w, uint32_t address);
  void mbarrier_use(Warp& w, uint32_t address, bool async);
  void mbarrier_arrive(Warp& w, uint32_t address, bool release);
  void mbarrier_copies_arrive(Warp& w, uint32_t address, uint32_t group);
  void mbarrier_phase(uint32_t address, uint64_t completed);
  void mbarrier_observed(Warp& w, uint32_t address, uint64_t phase);
  void fence_proxy_async(Warp& w);
  void fence_mbarrier_init(Warp& w);

  // wgmma registers.
  void wgmma_fence(Warp& w);
  void wgmma_issue(Warp& w, const uint32_t* slots, size_t count, uint32_t group);
  void wgmma_done(Warp& w, uint32_t groups);
  void touch_registers(Warp& w, uint32_t pc);

 private:
  struct Entry {
    uint32_t agent, clock, pc;
    bool atomic;
  };
  struct Set {
    std::vector<uint32_t> entries;  // indices into entries_
    bool has_atomic = false;
  };
  struct Byte {
    uint32_t writer = 0;   // index into writes_, 0: never written
    uint32_t readers = 0;  // index into sets_, 0: none
  };
  struct Write {
    uint32_t agent = 0, clock = 0, pc = 0;
    bool async = false;  // through the async proxy
  };
  struct Barrier {
    Clock clock, proxy;
  };
  struct Mbar {
    uint32_t agent = 0;
    uint32_t init_warp = 0, init_clock = 0;
    bool init_fenced = false;
    Clock pending, pending_proxy, done, done_proxy;
    uint32_t last_warp = kNone;
    uint64_t last_executed = 0, last_completed = 0, completed = 0;
  };

  uint32_t agent_of(const Warp& w, Agent a) const { return w.id * kAgentsPerWarp + a; }
  static void join(Clock& into, const Clock& from);
  static uint32_t at(const Clock& c, uint32_t agent) { return agent < c.size() ? c[agent] : 0; }
  static void set(Clock& c, uint32_t agent, uint32_t value);
  void tick(Warp& w);
  uint32_t new_write(uint32_t agent, uint32_t clock, uint32_t pc, bool async);
  uint32_t intern(uint32_t agent, uint32_t clock, uint32_t pc, bool atomic);
  uint32_t add_reader(uint32_t set_index, uint32_t entry);
  void on_write(Warp& w, uint32_t address, uint32_t bytes, uint32_t write_index, const char* what);
  void on_read(Warp& w, uint32_t address, uint32_t bytes, uint32_t entry, bool async_proxy, const char* what);
  void check_readers(Warp& w, uint32_t set_index, uint32_t address, const char* what, bool atomics, bool plain);
  [[noreturn]] void race(Warp& w, const char* what, uint32_t address, uint32_t agent, uint32_t pc, const char* earlier);
  std::string agent_name(uint32_t agent) const;
  void guard_mbarriers(uint32_t address, uint32_t bytes);

  Cta& cta_;
  std::vector<Byte> bytes_;
  std::vector<Write> writes_;
  std::vector<Entry> entries_;
  std::vector<Set> sets_;
  std::unordered_map<uint64_t, uint32_t> entry_memo_, set_memo_;
  std::vector<Clock> clocks_, proxies_;  // per warp
  Barrier barriers_[17];
  std::unordered_map<uint32_t, Mbar> mbarriers_;
  uint32_t agents_ = 0;
  // Registers of wgmma, per warp and slot: accessed since the last wgmma.fence; in use by this group (0: none).
  std::vector<std::vector<uint8_t>> touched_;
  std::vector<std::vector<uint32_t>> in_flight_;
};

}  // namespace kernelforge::vcuda
