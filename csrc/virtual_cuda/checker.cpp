#include "checker.h"

#include <algorithm>

namespace kernelforge::vcuda {

Checker::Checker(Cta& cta) : cta_(cta) {}

void Checker::reset() {
  size_t warps = cta_.warps.size();
  bytes_.assign(cta_.shared.size(), Byte());
  writes_.assign(1, Write());
  entries_.clear();
  sets_.assign(1, Set());
  entry_memo_.clear();
  set_memo_.clear();
  agents_ = static_cast<uint32_t>(warps) * kAgentsPerWarp;
  clocks_.assign(warps, Clock(agents_, 0));
  proxies_.assign(warps, Clock(agents_, 0));
  for (size_t k = 0; k < warps; ++k) clocks_[k][k * kAgentsPerWarp] = 1;
  for (Barrier& b : barriers_) b = Barrier();
  mbarriers_.clear();
  if (cta_.entry->uses_wgmma) {
    touched_.assign(warps, std::vector<uint8_t>(cta_.entry->slots, 1));
    in_flight_.assign(warps, std::vector<uint32_t>(cta_.entry->slots, 0));
  }
}

void Checker::join(Clock& into, const Clock& from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (size_t k = 0; k < from.size(); ++k) into[k] = std::max(into[k], from[k]);
}

void Checker::set(Clock& c, uint32_t agent, uint32_t value) {
  if (c.size() <= agent) c.resize(agent + 1, 0);
  c[agent] = std::max(c[agent], value);
}

void Checker::tick(Warp& w) { ++clocks_[w.id][agent_of(w, kGeneric)]; }

std::string Checker::agent_name(uint32_t agent) const {
  if (agent < cta_.warps.size() * kAgentsPerWarp) {
    const char* names[] = {"", "the cp.async of ", "the wgmma of ", "the bulk store of "};
    return names[agent % kAgentsPerWarp] + std::string("warp ") + std::to_string(agent / kAgentsPerWarp);
  }
  for (const auto& [address, m] : mbarriers_)
    if (m.agent == agent) return "the bulk load that completes on the mbarrier at " + hex(address);
  return "a bulk load";
}

void Checker::race(Warp&, const char* what, uint32_t address, uint32_t agent, uint32_t pc, const char* earlier) {
  throw KernelFault(std::string(what) + " shared byte " + hex(address) + " is not ordered after the " + earlier +
                    " by " + agent_name(agent) + " at " + cta_.launch->program->where(*cta_.entry, pc) +
                    ": a wait, barrier or arrival is missing or comes too early");
}

uint32_t Checker::new_write(uint32_t agent, uint32_t clock, uint32_t pc, bool async) {
  const Write& last = writes_.back();
  if (last.agent != agent || last.clock != clock || last.pc != pc || last.async != async || writes_.size() == 1)
    writes_.push_back({agent, clock, pc, async});
  return static_cast<uint32_t>(writes_.size() - 1);
}

uint32_t Checker::intern(uint32_t agent, uint32_t clock, uint32_t pc, bool atomic) {
  uint64_t key = (static_cast<uint64_t>(agent) << 33) | (static_cast<uint64_t>(clock) << 1) | (atomic ? 1 : 0);
  auto [it, fresh] = entry_memo_.try_emplace(key, static_cast<uint32_t>(entries_.size()));
  if (fresh) entries_.push_back({agent, clock, pc, atomic});
  return it->second;
}

uint32_t Checker::add_reader(uint32_t index, uint32_t entry) {
  uint64_t key = static_cast<uint64_t>(index) << 32 | entry;
  auto it = set_memo_.find(key);
  if (it != set_memo_.end()) return it->second;
  const Entry& e = entries_[entry];
  Set next;
  next.has_atomic = sets_[index].has_atomic || e.atomic;
  bool same = false;
  for (uint32_t k : sets_[index].entries) {
    const Entry& old = entries_[k];
    if (k == entry) same = true;
    if (old.agent == e.agent && old.atomic == e.atomic) continue;  // a later access of the same agent covers it
    next.entries.push_back(k);
  }
  uint32_t result = index;
  if (!same) {
    next.entries.push_back(entry);
    result = static_cast<uint32_t>(sets_.size());
    sets_.push_back(std::move(next));
  }
  set_memo_.emplace(key, result);
  set_memo_.emplace(static_cast<uint64_t>(result) << 32 | entry, result);
  return result;
}

void Checker::check_readers(Warp& w, uint32_t index, uint32_t address, const char* what, bool atomics, bool plain) {
  const Clock& clock = clocks_[w.id];
  for (uint32_t k : sets_[index].entries) {
    const Entry& e = entries_[k];
    if ((e.atomic ? atomics : plain) && e.clock > at(clock, e.agent))
      race(w, what, address, e.agent, e.pc, e.atomic ? "atomic access" : "read");
  }
}

void Checker::on_write(Warp& w, uint32_t address, uint32_t bytes, uint32_t index, const char* what) {
  const Clock& clock = clocks_[w.id];
  uint32_t good_writer = 0, good_readers = 0;
  for (uint32_t a = address; a < address + bytes; ++a) {
    Byte& b = bytes_[a];
    if (b.writer != good_writer) {
      const Write& old = writes_[b.writer];
      if (b.writer && old.clock > at(clock, old.agent)) race(w, what, a, old.agent, old.pc, "write");
      good_writer = b.writer;
    }
    if (b.readers != good_readers) {
      check_readers(w, b.readers, a, what, true, true);
      good_readers = b.readers;
    }
    b.writer = index;
    b.readers = 0;
  }
}

void Checker::on_read(Warp& w, uint32_t address, uint32_t bytes, uint32_t entry, bool async_proxy, const char* what) {
  const Clock& clock = clocks_[w.id];
  uint32_t good_writer = 0, from = kNone, to = 0;
  for (uint32_t a = address; a < address + bytes; ++a) {
    Byte& b = bytes_[a];
    if (b.writer != good_writer) {
      const Write& old = writes_[b.writer];
      if (b.writer && old.clock > at(clock, old.agent)) race(w, what, a, old.agent, old.pc, "write");
      if (b.writer && async_proxy && !old.async && old.clock > at(proxies_[w.id], old.agent))
        throw KernelFault(std::string(what) + " shared byte " + hex(a) +
                          " through the async proxy, but it was written through the generic proxy by " +
                          agent_name(old.agent) + " at " + cta_.launch->program->where(*cta_.entry, old.pc) +
                          " without a fence.proxy.async in between");
      good_writer = b.writer;
    }
    if (b.readers != from) {
      from = b.readers;
      if (sets_[from].has_atomic) check_readers(w, from, a, what, !entries_[entry].atomic, entries_[entry].atomic);
      to = add_reader(from, entry);
    }
    b.readers = to;
  }
}

void Checker::guard_mbarriers(uint32_t address, uint32_t bytes) {
  auto it = cta_.mbarriers.lower_bound(address < 7 ? 0 : address - 7);
  if (it != cta_.mbarriers.end() && it->first < address + bytes)
    throw KernelFault("a store to the live mbarrier at shared address " + hex(it->first));
}

void Checker::read(Warp& w, uint32_t address, uint32_t bytes) {
  uint32_t agent = agent_of(w, kGeneric);
  on_read(w, address, bytes, intern(agent, clocks_[w.id][agent], w.pc, false), false, "the read of");
}

void Checker::write(Warp& w, uint32_t address, uint32_t bytes) {
  guard_mbarriers(address, bytes);
  uint32_t agent = agent_of(w, kGeneric);
  on_write(w, address, bytes, new_write(agent, clocks_[w.id][agent], w.pc, false), "the write of");
}

// Atomics order nothing but do not race with each other: they are kept beside the reads.
void Checker::atomic(Warp& w, uint32_t address, uint32_t bytes) {
  guard_mbarriers(address, bytes);
  uint32_t agent = agent_of(w, kGeneric);
  for (uint32_t a = address; a < address + bytes; ++a)
    check_readers(w, bytes_[a].readers, a, "the atomic access of", false, true);
  on_read(w, address, bytes, intern(agent, clocks_[w.id][agent], w.pc, true), false, "the atomic access of");
}

void Checker::copy_write(Warp& w, uint32_t address, uint32_t bytes, uint32_t group) {
  guard_mbarriers(address, bytes);
  on_write(w, address, bytes, new_write(agent_of(w, kCopy), group, w.pc, false), "the asynchronous write of");
}

void Checker::wgmma_read(Warp& w, uint32_t address, uint32_t bytes, uint32_t group) {
  on_read(w, address, bytes, intern(agent_of(w, kWgmma), group, w.pc, false), true, "the wgmma's read of");
}

void Checker::store_read(Warp& w, uint32_t address, uint32_t bytes, uint32_t group) {
  on_read(w, address, bytes, intern(agent_of(w, kStore), group, w.pc, false), true, "the bulk store's read of");
}

void Checker::load_write(Warp& w, uint32_t address, uint32_t bytes, uint32_t mbarrier) {
  guard_mbarriers(address, bytes);
  // In flight: no clock reaches this one before the load has landed.
  on_write(w, address, bytes, new_write(mbarriers_.at(mbarrier).agent, kNone, w.pc, true), "the bulk load into");
}

void Checker::load_landed(uint32_t address, uint32_t bytes, uint32_t mbarrier, uint64_t phase) {
  uint32_t pc = writes_[bytes_[address].writer].pc;
  uint32_t index = new_write(mbarriers_.at(mbarrier).agent, static_cast<uint32_t>(phase), pc, true);
  for (uint32_t a = address; a < address + bytes; ++a) bytes_[a].writer = index;
}

void Checker::waited(Warp& w, Agent agent, uint32_t group) { set(clocks_[w.id], agent_of(w, agent), group); }

void Checker::barrier_arrive(Warp& w, uint32_t barrier) {
  join(barriers_[barrier].clock, clocks_[w.id]);
  join(barriers_[barrier].proxy, proxies_[w.id]);
  tick(w);
}

void Checker::barrier_complete(uint32_t barrier, const std::vector<uint32_t>& waiting) {
  for (uint32_t k : waiting) {
    join(clocks_[k], barriers_[barrier].clock);
    join(proxies_[k], barriers_[barrier].proxy);
  }
  barriers_[barrier] = Barrier();
}

void Checker::mbarrier_init(Warp& w, uint32_t address) {
  Mbar m;
  auto it = mbarriers_.find(address);
  m.agent = it == mbarriers_.end() ? agents_++ : it->second.agent;
  m.init_warp = w.id;
  m.init_clock = clocks_[w.id][agent_of(w, kGeneric)];
  mbarriers_[address] = std::move(m);
}

void Checker::mbarrier_use(Warp& w, uint32_t address, bool async) {
  const Mbar& m = mbarriers_.at(address);
  if (at(clocks_[w.id], m.init_warp * kAgentsPerWarp) < m.init_clock)
    throw KernelFault("the mbarrier at " + hex(address) + " is used before its initialization by warp " +
                      std::to_string(m.init_warp) + " is visible: a barrier is missing");
  if (async && !m.init_fenced && at(proxies_[w.id], m.init_warp * kAgentsPerWarp) < m.init_clock)
    throw KernelFault("a bulk copy completes on the mbarrier at " + hex(address) + ", whose initialization by warp " +
                      std::to_string(m.init_warp) + " was not followed by fence.mbarrier_init or fence.proxy.async");
}

void Checker::mbarrier_arrive(Warp& w, uint32_t address, bool release) {
  Mbar& m = mbarriers_.at(address);
  if (!release || (m.last_warp == w.id && m.last_executed == w.executed && m.last_completed == m.completed)) return;
  join(m.pending, clocks_[w.id]);
  join(m.pending_proxy, proxies_[w.id]);
  m.last_warp = w.id;
  m.last_executed = w.executed;
  m.last_completed = m.completed;
  tick(w);
}

void Checker::mbarrier_copies_arrive(Warp& w, uint32_t address, uint32_t group) {
  set(mbarriers_.at(address).pending, agent_of(w, kCopy), group);
}

void Checker::mbarrier_phase(uint32_t address, uint64_t completed) {
  Mbar& m = mbarriers_.at(address);
  join(m.done, m.pending);
  join(m.done_proxy, m.pending_proxy);
  set(m.done, m.agent, static_cast<uint32_t>(completed));
  m.pending.clear();
  m.pending_proxy.clear();
  m.completed = completed;
}

void Checker::mbarrier_observed(Warp& w, uint32_t address, uint64_t) {
  const Mbar& m = mbarriers_.at(address);
  join(clocks_[w.id], m.done);
  join(proxies_[w.id], m.done_proxy);
}

void Checker::fence_proxy_async(Warp& w) {
  join(proxies_[w.id], clocks_[w.id]);
  tick(w);
}

void Checker::fence_mbarrier_init(Warp& w) {
  for (auto& [address, m] : mbarriers_)
    if (m.init_warp == w.id) m.init_fenced = true;
}

void Checker::wgmma_fence(Warp& w) {
  if (!touched_.empty()) std::fill(touched_[w.id].begin(), touched_[w.id].end(), 0);
}

void Checker::wgmma_issue(Warp& w, const uint32_t* slots, size_t count, uint32_t group) {
  for (size_t k = 0; k < count; ++k) {
    if (touched_[w.id][slots[k]])
      throw KernelFault("a register of this wgmma was accessed, or never fenced, since the last wgmma.fence of warp " +
                        std::to_string(w.id) + " (register operand " + std::to_string(k) + ")");
    in_flight_[w.id][slots[k]] = group;
  }
}

void Checker::wgmma_done(Warp& w, uint32_t groups) {
  if (in_flight_.empty()) return;
  for (uint32_t& g : in_flight_[w.id])
    if (g <= groups) g = 0;
}

void Checker::touch_registers(Warp& w, uint32_t pc) {
  for (uint32_t slot : cta_.entry->touched[pc]) {
    if (in_flight_[w.id][slot])
      throw KernelFault("it touches a register of the wgmma group " + std::to_string(in_flight_[w.id][slot] - 1) +
                        " of warp " + std::to_string(w.id) + ", which was not waited for");
    touched_[w.id][slot] = 1;
  }
}

}  // namespace kernelforge::vcuda
