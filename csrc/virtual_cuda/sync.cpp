// Barriers of the CTA, mbarriers and fences.
#include <algorithm>

#include "checker.h"
#include "lane_ops.h"

namespace kernelforge::vcuda {

Mbarrier& Cta::mbarrier(uint32_t address) {
  auto it = mbarriers.find(address);
  if (it == mbarriers.end()) throw KernelFault("no mbarrier was initialized at shared address " + hex(address));
  return it->second;
}

void mbarrier_check(Cta& cta, uint32_t address, Mbarrier& b) {
  if (b.pending < 0)
    throw KernelFault("more arrivals than the " + std::to_string(b.expected) + " that the mbarrier at " + hex(address) +
                      " expects");
  if (b.pending != 0 || b.tx != 0) return;
  ++b.phase;
  b.pending = b.expected;
  if (cta.checker) cta.checker->mbarrier_phase(address, b.phase);
  // Who sleeps on this phase is woken by it, even if the barrier is a phase further when the warp runs again.
  for (Warp& w : cta.warps) {
    if (w.wait != Wait::kMbarrier || w.wait_address != address || w.wait_parity != ((b.phase - 1) & 1)) continue;
    w.wait = Wait::kReady;
    w.granted = true;
  }
}

namespace {

uint32_t uniform(const Warp& w, uint32_t slot, uint32_t mask, const char* what) {
  const uint32_t* a = w.in<uint32_t>(slot);
  uint32_t first = a[__builtin_ctz(mask)];
  for (uint32_t l = 0; l < kLanes; ++l)
    if ((mask >> l & 1) && a[l] != first)
      throw KernelFault(std::string(what) + " differs between the lanes of the warp");
  return first;
}

enum BarMode : uint8_t { kSync, kArrive, kClusterArrive, kClusterWait };

void complete(Cta& cta, uint32_t id) {
  NamedBarrier& b = cta.barriers[id];
  if (cta.checker) cta.checker->barrier_complete(id, b.waiting);
  for (uint32_t k : b.waiting) cta.warps[k].wait = Wait::kReady;
  b.waiting.clear();
  b.arrived = b.expected = 0;
  ++b.generation;
}

// bar.sync a[, b] and bar.arrive a, b.
void run_bar(Warp& w, const Instr& in, uint32_t mask) {
  Cta& cta = *w.cta;
  uint32_t id = uniform(w, in.op[0], mask, "the barrier"), whole = (cta.threads + kLanes - 1) / kLanes * kLanes;
  uint32_t expected = in.op[1] == kNone ? whole : uniform(w, in.op[1], mask, "the barrier's thread count");
  if (id > 15) throw KernelFault("barrier " + std::to_string(id) + " of 16");
  if (expected == 0 || expected % kLanes || expected > whole)
    throw KernelFault("barrier " + std::to_string(id) + ": thread count " + std::to_string(expected) + " of a CTA of " +
                      std::to_string(cta.threads));
  NamedBarrier& b = cta.barriers[id];
  if (b.arrived && b.expected != expected)
    throw KernelFault("barrier " + std::to_string(id) + ": this warp names " + std::to_string(expected) +
                      " threads, earlier arrivals named " + std::to_string(b.expected));
  if (std::find(b.waiting.begin(), b.waiting.end(), w.id) != b.waiting.end())
    throw KernelFault("a warp arrives twice at one barrier");
  b.expected = expected;
  b.arrived += kLanes;
  if (cta.checker) cta.checker->barrier_arrive(w, id);
  if (in.mode == kSync) {
    b.waiting.push_back(w.id);
    w.wait = Wait::kBarrier;
    w.wait_address = id;
    w.signal = Signal::kBlock;
  }
  if (b.arrived == b.expected) complete(cta, id);
  if (w.wait == Wait::kReady) w.signal = in.mode == kSync ? Signal::kYield : Signal::kNone;
}

// barrier.cluster with a cluster of one CTA.
void run_cluster(Warp& w, const Instr& in, uint32_t) {
  Cta& cta = *w.cta;
  NamedBarrier& b = cta.barriers[16];
  uint32_t whole = (cta.threads + kLanes - 1) / kLanes * kLanes;
  if (in.mode == kClusterArrive) {
    b.expected = whole;
    b.arrived += kLanes;
    w.wait_parity = b.generation;
    if (cta.checker) cta.checker->barrier_arrive(w, 16);
    return;
  }
  b.waiting.push_back(w.id);
  w.wait = Wait::kBarrier;
  w.wait_address = 16;
  w.signal = Signal::kBlock;
  if (b.arrived == whole && b.waiting.size() * kLanes == whole) complete(cta, 16);
  if (w.wait == Wait::kReady) w.signal = Signal::kYield;
}

enum MbarOp : uint8_t { kInit, kInval, kExpectTx, kMbarArrive, kArriveDrop, kCompleteTx };
constexpr int64_t kWithTx = 1, kRelaxed = 2;

void run_mbarrier(Warp& w, const Instr& in, uint32_t mask) {
  Cta& cta = *w.cta;
  uint64_t a[kLanes];
  Instr addressing = in;
  addressing.imm = in.imm >> 8;
  lane_addresses(w, addressing, in.op[1], a);
  int64_t how = in.imm & 0xff;
  const uint32_t* value = in.op[2] == kNone ? nullptr : w.in<uint32_t>(in.op[2]);
  uint64_t state[kLanes] = {};
  uint32_t announced = kNone;
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    uint64_t generic = a[l];
    if ((generic & kWindowMask) == kSharedWindow) generic &= ~kWindowMask;
    uint32_t address = static_cast<uint32_t>(generic);
    shared_pointer(cta, generic, 8);
    if (address & 7) throw KernelFault("mbarrier at " + hex(address) + " is misaligned");
    if (in.mode == kInit) {
      if (!value || value[l] == 0 || value[l] > (1u << 20) - 1)
        throw KernelFault("mbarrier.init with count " + std::to_string(value ? value[l] : 0));
      if (cta.checker) cta.checker->write(w, address, 8), cta.checker->mbarrier_init(w, address);
      cta.mbarriers[address] = Mbarrier{value[l], value[l], 0, 0};
      cta.poison(address, 8);
      continue;
    }
    Mbarrier& b = cta.mbarrier(address);
    if (cta.checker && announced != address) {
      cta.checker->mbarrier_use(w, address, false);
      announced = address;
    }
    switch (in.mode) {
      case kInval:
        cta.mbarriers.erase(address);
        break;
      case kExpectTx:
        b.tx += value[l];
        break;
      case kCompleteTx:
        b.tx -= value[l];
        break;
      case kMbarArrive:
      case kArriveDrop: {
        uint32_t count = how & kWithTx ? 1 : value ? value[l] : 1;
        if (how & kWithTx) b.tx += value[l];
        state[l] = b.phase;
        b.pending -= count;
        if (in.mode == kArriveDrop) b.expected -= count;
        if (cta.checker) cta.checker->mbarrier_arrive(w, address, !(how & kRelaxed));
        break;
      }
    }
    mbarrier_check(cta, address, b);
  }
  if (in.op[0] != kNone) commit(w, in.op[0], state, mask);
}

// mbarrier.{test,try}_wait[.parity]. mode: bit 0 parity, bit 1 try (may suspend).
void run_mbarrier_wait(Warp& w, const Instr& in, uint32_t mask) {
  Cta& cta = *w.cta;
  uint64_t a[kLanes];
  lane_addresses(w, in, in.op[1], a);
  uint32_t done = 0, address = 0, parity = 0;
  bool granted = w.granted;
  w.granted = false;
  for (uint32_t l = 0; l < kLanes; ++l) {
    if (!(mask >> l & 1)) continue;
    if ((a[l] & kWindowMask) == kSharedWindow) a[l] &= ~kWindowMask;
    Mbarrier& b = cta.mbarrier(static_cast<uint32_t>(a[l]));
    bool complete;
    uint64_t phase;
    if (in.mode & 1) {
      uint32_t want = w.in<uint32_t>(in.op[2])[l];
      if (want > 1) throw KernelFault("mbarrier wait with parity " + std::to_string(want) + "; it is 0 or 1");
      complete = granted || (b.phase & 1) != want;
      phase = b.phase;
      if (!complete) address = static_cast<uint32_t>(a[l]), parity = want;
    } else {
      uint64_t token = w.in<uint64_t>(in.op[2])[l];
      complete = b.phase > token;
      phase = token + 1;
      if (!complete) address = static_cast<uint32_t>(a[l]), parity = token & 1;
    }
    if (cta.checker && (l == 0 || !(mask >> (l - 1) & 1) || a[l] != a[l - 1])) {
      cta.checker->mbarrier_use(w, static_cast<uint32_t>(a[l]), false);
      if (complete) cta.checker->mbarrier_observed(w, static_cast<uint32_t>(a[l]), phase);
    }
    done |= static_cast<uint32_t>(complete) << l;
  }
  if (done != mask && (in.mode & 2) && !w.diverged && mask == w.active && done == 0) {  // sleep instead of spinning
    w.wait = Wait::kMbarrier;
    w.wait_address = address;
    w.wait_parity = parity;
    w.signal = Signal::kBlock;
    --w.pc;  // the instruction runs again
    return;
  }
  w.set_predicate(in.op[0], done, mask);
  if (done != mask) {
    w.polled = true;
    if (w.diverged) w.avoid |= mask & ~done;
    w.signal = Signal::kYield;
  } else {
    w.effect = true;
    // One observed phase per turn: a wait by parity is only right for warps that stay within a phase of each other.
    if (!w.diverged) w.signal = Signal::kYield;
  }
}

void run_fence(Warp&, const Instr&, uint32_t) {}
void run_fence_async(Warp& w, const Instr&, uint32_t) {
  if (w.cta->checker) w.cta->checker->fence_proxy_async(w);
}
void run_fence_init(Warp& w, const Instr&, uint32_t) {
  if (w.cta->checker) w.cta->checker->fence_mbarrier_init(w);
}

bool decode_mbarrier(Decoder& d) {
  if (d.has("test_wait") || d.has("try_wait")) {
    bool parity = d.has("parity");
    d.in.mode = static_cast<uint8_t>((parity ? 1 : 0) | (d.has("try_wait") ? 2 : 0));
    std::string p = d.argument(0);
    d.in.op[0] = d.predicate_destination(trim(p.substr(0, p.find('|'))));
    d.address(d.argument(1), 1);
    d.in.op[2] = d.source(2, parity ? Ty::kU32 : Ty::kB64);
    d.emit_as(run_mbarrier_wait);
    return true;
  }
  d.in.flags |= kEffect;
  struct Name {
    const char* name;
    uint8_t mode;
  };
  bool known = false;
  for (const Name& n : {Name{"init", kInit}, Name{"inval", kInval}, Name{"arrive_drop", kArriveDrop},
                        Name{"arrive", kMbarArrive}, Name{"complete_tx", kCompleteTx}, Name{"expect_tx", kExpectTx}}) {
    if (d.mods[1] != n.name) continue;
    d.in.mode = n.mode;
    known = true;
  }
  if (!known || d.has("noComplete")) d.fail("mbarrier operation not supported");
  bool arrive = d.in.mode == kMbarArrive || d.in.mode == kArriveDrop;
  size_t k = arrive && d.argument(0)[0] != '[' ? 1 : 0;
  d.address(d.argument(k), 1);
  d.in.imm = d.in.imm * 256 + (arrive && d.has("expect_tx") ? kWithTx : 0) + (d.has("relaxed") ? kRelaxed : 0);
  if (d.arguments() > k + 1) d.in.op[2] = d.source(k + 1, Ty::kU32);
  if (arrive && k == 1 && d.argument(0) != "_") d.in.op[0] = d.destination(size_t{0}, Ty::kB64);
  if (!d.in.op[2] && d.in.mode != kInval && !arrive) d.fail("a count is missing");
  d.emit_as(run_mbarrier);
  return true;
}

}  // namespace

bool decode_sync(Decoder& d) {
  const std::string& op = d.mods[0];
  if (op == "bar" || op == "barrier") {
    d.in.flags |= kConverged | kEffect;
    if (d.has("cluster")) {
      d.in.mode = d.has("arrive") ? kClusterArrive : kClusterWait;
      d.emit_as(run_cluster);
      return true;
    }
    if (d.has("red")) d.fail("barrier reductions are not supported");
    d.in.mode = d.has("arrive") ? kArrive : kSync;
    d.in.op[0] = d.source(size_t{0}, Ty::kU32);
    if (d.arguments() > 1) d.in.op[1] = d.source(1, Ty::kU32);
    d.emit_as(run_bar);
    return true;
  }
  if (op == "mbarrier") return decode_mbarrier(d);
  if (op == "membar") {
    d.emit_as(run_fence);
    return true;
  }
  if (op == "fence") {
    if (d.has("mbarrier_init"))
      d.emit_as(run_fence_init);
    else if (d.has("proxy") && (d.has("async") || d.has("async::generic")))
      // .async.global orders global memory only, which is not tracked.
      d.emit_as(d.has("global") ? run_fence : run_fence_async);
    else
      d.emit_as(run_fence);
    return true;
  }
  return false;
}

}  // namespace kernelforge::vcuda
