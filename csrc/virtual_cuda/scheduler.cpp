// CTAs over threads, warps of a CTA by an adversarial and fair schedule, deadlocks explained.
#include <xmmintrin.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <exception>
#include <mutex>
#include <thread>

#include "checker.h"
#include "machine.h"

namespace kernelforge::vcuda {

Cta::Cta(Launch& l) : launch(&l), entry(l.entry) {
  threads = l.block[0] * l.block[1] * l.block[2];
  size_t count = (threads + kLanes - 1) / kLanes;
  uint32_t dynamic = (entry->shared_bytes + 1023) / 1024 * 1024;
  shared.resize(l.dynamic_shared ? dynamic + l.dynamic_shared : entry->shared_bytes);
  warps.resize(count);
  register_store.resize(count * entry->slots * kLanes + 32);
  predicate_store.resize(count * entry->predicates + 1);
  if (l.check) checker = std::make_unique<Checker>(*this);
}

Cta::~Cta() = default;

void Cta::rethrow(const Warp* w, uint32_t pc, const std::string& what) {
  std::string at = "kernel " + entry->text.name + ", CTA (" + std::to_string(index[0]) + ", " +
                   std::to_string(index[1]) + ", " + std::to_string(index[2]) + ")";
  if (w) at += ", warp " + std::to_string(w->id) + " at " + launch->program->where(*entry, pc);
  throw KernelFault(at + ": " + what);
}

bool Cta::ready(Warp& w) { return w.wait == Wait::kReady; }

// Random landing of what is in flight. force_one: nothing else can happen, so one copy has to land.
void Cta::land_some(bool force_one, bool& any) {
  any = false;
  auto pick = [&] { return force_one || (random.next() & 3) == 0; };
  if (!loads.empty()) {
    size_t tries = force_one ? 1 : loads.size();
    for (size_t k = 0; k < tries && !loads.empty(); ++k) {
      if (!pick()) continue;
      size_t at = random.below(static_cast<uint32_t>(loads.size()));
      BulkLoad l = loads[at];
      loads.erase(loads.begin() + static_cast<long>(at));
      try {
        land_load(*this, l);
      } catch (const KernelFault& e) {
        rethrow(&warps[l.warp], l.pc, e.what());
      }
      any = true;
      if (force_one) return;
    }
  }
  for (Warp& w : warps) {
    for (std::vector<PendingCopy>* list : {&w.copies, &w.stores}) {
      for (PendingCopy& c : *list) {
        if (c.landed || !pick()) continue;
        try {
          list == &w.copies ? land_copy(w, c) : land_store(w, c);
        } catch (const KernelFault& e) {
          rethrow(&w, c.pc, e.what());
        }
        any = true;
        if (force_one) return;
      }
    }
    if (force_one || w.wgmmas.empty()) continue;
    uint32_t upto = w.wgmmas.front().group + random.below(w.wgmma_group - w.wgmmas.front().group + 2);
    try {
      if (upto) land_wgmmas(w, upto);
    } catch (const KernelFault& e) {
      rethrow(&w, w.wgmmas.front().pc, e.what());
    }
  }
}

std::string Cta::explain_deadlock() {
  std::string out = "deadlock: ";
  for (Warp& w : warps) {
    if (w.wait == Wait::kDone) continue;
    uint32_t pc = w.wait == Wait::kBarrier ? w.pc - 1 : w.pc;
    out += "warp " + std::to_string(w.id) + " waits at " + launch->program->where(*entry, pc);
    if (w.wait == Wait::kBarrier) {
      NamedBarrier& b = barriers[w.wait_address];
      out += " for barrier " + std::to_string(w.wait_address) + ", where " + std::to_string(b.arrived) + " of " +
             std::to_string(b.expected) + " threads arrived";
    } else if (w.wait == Wait::kMbarrier) {
      Mbarrier& b = mbarriers[w.wait_address];
      out += " for the mbarrier at " + hex(w.wait_address) + " to end a phase of parity " +
             std::to_string(w.wait_parity) + " (it is in phase " + std::to_string(b.phase) + ", " +
             std::to_string(b.pending) + " of " + std::to_string(b.expected) + " arrivals and " + std::to_string(b.tx) +
             " bytes missing)";
    } else {
      out += " and polls without end";
    }
    out += "; ";
  }
  uint32_t done = 0;
  for (Warp& w : warps) done += w.wait == Wait::kDone;
  return out + std::to_string(done) + " of " + std::to_string(warps.size()) + " warps have ended";
}

void Cta::run(uint32_t x, uint32_t y, uint32_t z) {
  index[0] = x;
  index[1] = y;
  index[2] = z;
  const Schedule& schedule = launch->schedule;
  random.state = schedule.seed * 0x9e3779b97f4a7c15ull + x + y * 65537ull + z * 4294967311ull;
  random.next();
  poison(0, static_cast<uint32_t>(shared.size()));
  mbarriers.clear();
  loads.clear();
  stores.clear();
  for (NamedBarrier& b : barriers) b = NamedBarrier();
  for (uint32_t k = 0; k < warps.size(); ++k) warps[k].reset(this, k, std::min(kLanes, threads - k * kLanes));
  if (checker) checker->reset();
  std::vector<uint32_t> order(warps.size());
  for (uint32_t k = 0; k < order.size(); ++k) order[k] = k;
  uint32_t idle = 0, round = 0;
  while (true) {
    bool progress = false, done = true;
    for (size_t k = order.size(); k > 1; --k) std::swap(order[k - 1], order[random.below(static_cast<uint32_t>(k))]);
    if (round++ % 8 == 0)
      for (Warp& w : warps) w.speed = random.below(6);  // some run ahead for a while, others fall behind
    for (uint32_t k : order) {
      Warp& w = warps[k];
      if (w.wait == Wait::kDone) continue;
      done = false;
      if (!ready(w)) continue;
      uint64_t quantum = 1u << 20;
      if (schedule.preempt > 0) {
        quantum = 1;
        while (quantum < 4096 && !random.chance(schedule.preempt)) ++quantum;
        quantum = (quantum << w.speed) / 4 + 1;
      }
      uint32_t at = w.pc;
      try {
        w.run(quantum);
      } catch (const KernelFault& e) {
        rethrow(&w, w.pc, e.what());
      }
      progress |= w.effect || (!w.polled && (w.wait == Wait::kReady || w.pc != at));
      if (launch->max_instructions && w.executed > launch->max_instructions)
        rethrow(&w, w.pc, "the warp executed more than " + std::to_string(launch->max_instructions) + " instructions");
      if (schedule.landing == Landing::kRandom) {
        bool any = false;
        land_some(false, any);
      }
    }
    if (done) break;
    if (progress) {
      idle = 0;
      continue;
    }
    bool landed = false;
    land_some(true, landed);
    if (!landed && ++idle > 8) rethrow(nullptr, 0, explain_deadlock());
  }
  finish();
}

// What must not be left over.
void Cta::finish() {
  for (const BulkLoad& l : loads) rethrow(&warps[l.warp], l.pc, "the CTA ended while this bulk load was in flight");
  for (Warp& w : warps) {
    for (PendingCopy& c : w.stores)
      rethrow(&w, c.pc, "the warp ended without waiting for this bulk store to read shared memory");
    if (checker && !w.wgmmas.empty()) rethrow(&w, w.wgmmas.front().pc, "the warp ended without waiting for this wgmma");
    if (w.wgmma_issued != warps[w.id / 4 * 4].wgmma_issued)
      rethrow(&w, w.pc,
              "the warps of one warpgroup issued different numbers of wgmma (" + std::to_string(w.wgmma_issued) +
                  " and " + std::to_string(warps[w.id / 4 * 4].wgmma_issued) + ")");
  }
  for (uint32_t id = 0; id < 17; ++id)
    if (barriers[id].arrived)
      rethrow(nullptr, 0,
              "the CTA ended while barrier " + std::to_string(id) + " had " + std::to_string(barriers[id].arrived) +
                  " of " + std::to_string(barriers[id].expected) + " threads");
}

Stats run_launch(Launch& launch, uint32_t threads) {
  auto start = std::chrono::steady_clock::now();
  const Entry& entry = *launch.entry;
  uint32_t block = launch.block[0] * launch.block[1] * launch.block[2];
  if (block == 0 || block > 1024)
    throw KernelFault("kernel " + entry.text.name + ": a block of " + std::to_string(block) +
                      " threads; 1 to 1024 are possible");
  if (entry.text.max_threads && block > entry.text.max_threads)
    throw KernelFault("kernel " + entry.text.name + ": a block of " + std::to_string(block) +
                      " threads, but .maxntid is " + std::to_string(entry.text.max_threads));
  launch.globals = launch.program->module.global_image;
  if (!launch.globals.empty()) {
    launch.globals.resize(launch.globals.size() + 256);  // room to align
    uint64_t base = (reinterpret_cast<uint64_t>(launch.globals.data()) + 255) / 256 * 256;
    size_t bytes = launch.program->module.global_image.size();
    std::memcpy(reinterpret_cast<void*>(base), launch.program->module.global_image.data(), bytes);
    launch.globals_base = base;
    launch.buffers.push_back({base, bytes, true, nullptr});
  }
  std::sort(launch.buffers.begin(), launch.buffers.end(),
            [](const Buffer& a, const Buffer& b) { return a.address < b.address; });
  // Zeroed pages that nobody writes cost nothing.
  std::vector<std::unique_ptr<uint32_t, decltype(&std::free)>> writers;
  for (Buffer& b : launch.buffers) {
    if (!launch.check || !b.writable) continue;
    writers.emplace_back(static_cast<uint32_t*>(std::calloc(b.bytes, sizeof(uint32_t))), &std::free);
    b.writers = writers.back().get();
  }
  uint64_t total = static_cast<uint64_t>(launch.grid[0]) * launch.grid[1] * launch.grid[2];
  std::atomic<uint64_t> next{0};
  std::mutex lock;
  Stats stats;
  std::exception_ptr error;
  uint64_t error_cta = ~0ull;
  auto work = [&] {
    unsigned int csr = _mm_getcsr();
    _mm_setcsr(0x1f80);  // round to nearest, no flushing: whatever the host process had set
    uint64_t current = 0;
    try {
      Cta cta(launch);
      uint64_t instructions = 0, ctas = 0;
      while ((current = next.fetch_add(1)) < total) {
        cta.run(static_cast<uint32_t>(current % launch.grid[0]),
                static_cast<uint32_t>(current / launch.grid[0] % launch.grid[1]),
                static_cast<uint32_t>(current / launch.grid[0] / launch.grid[1]));
        for (const Warp& w : cta.warps) instructions += w.executed;
        ++ctas;
      }
      std::lock_guard<std::mutex> hold(lock);
      stats.instructions += instructions;
      stats.ctas += ctas;
      stats.landed += cta.landed;
    } catch (...) {
      std::lock_guard<std::mutex> hold(lock);
      next = total;
      if (current < error_cta) {
        error_cta = current;
        error = std::current_exception();
      }
    }
    _mm_setcsr(csr);
  };
  uint32_t n = static_cast<uint32_t>(std::min<uint64_t>(std::max(1u, threads), std::max<uint64_t>(1, total)));
  std::vector<std::thread> pool;
  for (uint32_t k = 1; k < n; ++k) pool.emplace_back(work);
  work();
  for (std::thread& t : pool) t.join();
  if (error) std::rethrow_exception(error);
  stats.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  stats.register_bytes = entry.slots * kLanes * 4;
  return stats;
}

}  // namespace kernelforge::vcuda
